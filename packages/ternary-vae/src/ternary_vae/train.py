"""One run, from top to bottom: set-up, model, stages, loop (evaluate, save, stop, step, log), record.

Batches, samples, pairs and learning rates are functions of (seed, stage, step): a checkpoint needs no random states and
resuming is bitwise on a CPU. The rows of several processes are gathered before the loss is made, so that losses of
whole batches (level means, extremes) are those of one process.
"""

import dataclasses
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from studycore.devices import choose_device, describe, set_threads
from studycore.errors import Stopped, UserError
from studycore.runs import recording
from studycore.stopping import stop_on_signals
from studycore.streams import derive_seed
from ternary_vae.config import RunOptions, TrainConfig
from ternary_vae.evaluate import headline, order_metrics, radii, reconstruct
from ternary_vae.losses import total
from ternary_vae.model import (
    TernaryVAEV5_11_PartialFreeze,
    architecture_of,
    count_parameters,
    create_model,
    draw_weights,
)
from ternary_vae.operations import Batches, Operations, training_indices
from ternary_vae.record import Loaded, load_model, load_run_checkpoint, open_or_create, save_checkpoint, start_of
from ternary_vae.report import run_metrics, write_run_report, write_run_results
from ternary_vae.schedules import learning_rate, rate_factors
from ternary_vae.stages import StageForward, StageLoss, first_variances, noise, samples, set_mode, set_trained


def start_model(config: TrainConfig, folder: Path, loaded: Loaded | None = None) -> TernaryVAEV5_11_PartialFreeze:
    """The model that a run in `folder` begins with: drawn from its seed, or that of config.start, verified.

    `loaded` is what load_model gave for it, where that is at hand. UserError lists where the start's architecture
    differs from the configuration's.
    """
    if config.start is None:
        return create_model(config, config.seed, config.projection_seed)
    path, stored, model = loaded or load_model(start_of(config.start, folder))
    wanted, there = architecture_of(config), architecture_of(stored)
    own = {"curvature", "max_radius", "radius", "hidden_dim", "n_projection_layers", "projection_dropout"}
    own |= {"use_dual_projection", "projection_dtype"}
    free = own if config.start_projections == "drawn" else set()
    if differing := [
        f"{k} {there[k]} there, {wanted[k]} asked for" for k in wanted if k not in free and wanted[k] != there[k]
    ]:
        raise UserError(
            f"start: {path.path} is of another architecture: {'; '.join(differing)}; give the stored values "
            "(`ternary-vae inspect` shows them)"
        )
    if config.start_projections == "loaded":
        return model
    fresh = TernaryVAEV5_11_PartialFreeze(**wanted)
    kept = {name: w for name, w in model.state_dict().items() if not name.startswith("projection.")}
    fresh.load_state_dict({**fresh.state_dict(), **kept}, strict=True)
    draw_weights(
        fresh.projection, config.seed if config.projection_seed is None else config.projection_seed, "projection"
    )
    return fresh


def gather_rows(x_N: Tensor, rows: int, accelerator: Accelerator) -> Tensor:
    """The whole batch's rows from each process's part, in the batch's order; gradients flow into the own part only."""
    world, rank = accelerator.num_processes, accelerator.process_index
    if world == 1:
        return x_N
    most = -(-rows // world)
    padded = x_N.new_zeros(most, *x_N.shape[1:])
    padded[: len(x_N)] = x_N.detach()
    parts: Tensor = accelerator.gather(padded)
    whole = parts.unflatten(0, (world, most)).transpose(0, 1).flatten(0, 1)[:rows].clone()
    whole[rank::world] = x_N
    return whole


def create_optimizer(
    trained: Mapping[str, nn.Parameter], config: TrainConfig, stage: str, lr: float
) -> torch.optim.AdamW:
    """AdamW with one group per part of the model; `factor` is the part's own on the learning rate."""
    factors = rate_factors(config, stage)
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        groups.setdefault(name.partition(".")[0], []).append(parameter)
    listed = [{"params": group, "factor": factors.get(part, 1.0)} for part, group in groups.items()]
    return torch.optim.AdamW(listed, lr=lr, weight_decay=config.weight_decay)


def optimizer_tensors(trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by name: "<parameter>/exp_avg" and so on."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in trained.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Puts back what `optimizer_tensors` gave."""
    for full, tensor in tensors.items():
        name, _, key = full.rpartition("/")
        assert name in trained, f"the state of {name}, which this stage does not train"
        # AdamW keeps its step count on the CPU.
        value = tensor.clone() if key == "step" else tensor.to(trained[name].device)
        optimizer.state[trained[name]][key] = value


TIE_BREAK = 1e-6
"""Weight of the smallest gap beside the hierarchy."""


@dataclasses.dataclass
class Progress:
    """Where a run stands, after the evaluation of an epoch and before its steps; what state.json holds."""

    stage: int = 0
    epoch: int = 0
    """Of the stage."""
    stage_step: int = 0
    step: int = 0
    rows: int = 0
    """Of metrics.jsonl."""
    ended: bool = False
    """The stage is over."""
    covered: int = 0
    """Evaluations in a row with every training operation right."""
    best: float | None = None
    """Best score of the last stage."""
    best_epoch: int = 0
    best_step: int = 0
    waiting: int = 0
    """Evaluations since."""
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    """Loss terms added up since the last evaluation, over `count` updates."""
    count: int = 0
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of this very model."""
    variances: list[float] = dataclasses.field(default_factory=list)
    """Of the radius within each level when the stage began."""


def refuse_nan(values: Mapping[str, Any], config: TrainConfig, stage: str, epoch: int) -> None:
    """UserError naming the learning rate where a loss or a metric is infinite or NaN; nothing of it is saved."""
    if not all(math.isfinite(value) for value in values.values()):
        rate = "coverage_lr" if stage == "coverage" else "lr"
        raise UserError(
            f"{rate}: {getattr(config, rate)} made the loss infinite or NaN in epoch {epoch} of the {stage} stage; lower "
            "it or set grad_clip"
        )


def score(metrics: Mapping[str, Any], stage: str) -> float:
    """What the best checkpoint is chosen by: coverage of the operations that training sees, the negative hierarchy, or in
    joint training their sum. Where the hierarchy can go no further, the smallest gap between levels decides."""
    coverage = float(metrics.get("coverage_seen", metrics["coverage"]))
    if stage == "coverage":
        return coverage
    # A hierarchy that does not exist, of radii that are all equal, is the worst.
    order = -float(metrics.get("hierarchy", 1.0)) + TIE_BREAK * float(metrics.get("min_level_gap", -1.0))
    return order + coverage if stage == "joint" else order


def judge_evaluation(at: Progress, config: TrainConfig, stage: str, last_stage: bool) -> bool:
    """Brings best, patience and the end of the stage up to date after an evaluation; whether it is the best so far."""
    if stage == "coverage":
        all_right = at.metrics.get("coverage_seen", at.metrics["coverage"]) == 1.0
        at.covered = at.covered + 1 if all_right else 0
        at.ended = config.coverage_patience is not None and at.covered >= config.coverage_patience
    if not last_stage:
        return False
    value = score(at.metrics, stage)
    if at.best is None or value > at.best:
        at.best, at.best_epoch, at.best_step, at.waiting = value, at.epoch, at.step, 0
        return True
    at.waiting += 1
    at.ended = at.ended or (config.early_stopping_patience is not None and at.waiting >= config.early_stopping_patience)
    return False


@dataclasses.dataclass
class Snapshot:
    """The best model so far, kept until the next save writes it."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def evaluate(
    model: TernaryVAEV5_11_PartialFreeze, config: TrainConfig, operations: Operations, seen_N: Tensor, stage: str
) -> dict[str, Any]:
    """What is measured at every evaluation; the hierarchy only where projections are trained."""
    model.eval()
    right_N = reconstruct(model, operations)
    found: dict[str, Any] = {"coverage": float(right_N.double().mean())}
    if not bool(seen_N.all()):
        found["coverage_seen"] = float(right_N[seen_N].double().mean())
        found["coverage_unseen"] = float(right_N[~seen_N].double().mean())
    if stage != "coverage":
        found |= order_metrics(model, operations, headline(config.view))
    set_mode(model, config, stage)
    return found


def train(
    config: TrainConfig,
    folder: Path,
    options: RunOptions | None = None,
    argv: Sequence[str] = (),
    resume: bool = False,
    quiet: bool = False,
    verb: str = "train",
) -> Path:
    """Trains a run in the new `folder`, or goes on with the one there (`resume`), and returns the folder.

    With `quiet` nothing is printed and the report is left to `ternary-vae report`; results.json is written all the same.
    UserError for what can't be run; Stopped when a signal came, after saving.
    """
    options = options or RunOptions()
    # ---------------------------------------------------------------------------------------------------- set-up
    device, reason = choose_device(options.device)
    set_threads(options.threads)
    if device == "mps" and "float64" in (config.dtype, config.projection_dtype):
        raise UserError("dtype, projection_dtype: float64 does not exist on mps; give --projection-dtype float32")
    tracker = None if options.tracker == "none" else options.tracker
    if tracker and find_spec(tracker) is None:
        raise UserError(f"--tracker: {tracker} is not installed; `pip install {tracker}`, or leave --tracker out")
    accelerator = Accelerator(cpu=device == "cpu", log_with=tracker, project_dir=folder)
    main, rank, world = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
    device = str(accelerator.device)
    if main and not quiet:
        print(f"ternary-vae trains on {device} ({reason}), {torch.get_num_threads()} threads, {world} processes")

    # ------------------------------------------------------------------------------------------------------ data
    operations = Operations.all(config.trits).to(device)
    seen = training_indices(config.trits, config.train_fraction, config.seed)
    training = operations[seen.to(device)]
    seen_N = torch.zeros(len(operations), dtype=torch.bool)
    seen_N[seen] = True

    # ---------------------------------------------------------------------------------------------- model, resume
    checkpoint, model = load_run_checkpoint(folder, config) if resume else (None, None)
    if model is None:
        model = start_model(config, folder)
    model.to(device)
    at = Progress(**checkpoint.state) if checkpoint else Progress()
    run = open_or_create(folder, config, argv, describe(device), resume, verb) if main else None
    if run is not None:
        run.metrics.rows = run.metrics.rows[: at.rows]
        run.metrics.rewind(at.step if checkpoint else -1)
        run.update(parameters=count_parameters(model))
    if tracker:
        accelerator.init_trackers("ternary-vae", config=dataclasses.asdict(config))

    # ---------------------------------------------------------------------------------------------------- stages
    outcome, told = "", time.monotonic()
    best: Snapshot | None = None
    names, resumed = config.stage_names, checkpoint is not None
    with stop_on_signals() as stop, recording(*[run] if run else []):
        for index in range(at.stage, len(names)):
            at.stage = index
            stage, last_stage, stage_started = names[at.stage], at.stage == len(names) - 1, time.monotonic()
            epochs = config.coverage_epochs if stage == "coverage" else config.epochs
            trained = set_trained(model, config, stage)
            if not at.variances:
                model.eval()
                r_N, norm_N = radii(model, training, headline(config.view))
                r_N = r_N if config.radius == "hyperbolic" else norm_N
                at.variances = first_variances(r_N, training.v_N.cpu(), config.trits).tolist()
            variance_L = torch.tensor(at.variances, dtype=torch.float64)
            batches = Batches(
                training.v_N, config.trits, config.batch_size, config.deep_share, derive_seed(config.seed, stage)
            )
            optimizer = create_optimizer(trained, config, stage, config.lr)
            if checkpoint:
                restore_optimizer(trained, optimizer, checkpoint.optimizer)
                checkpoint = None
            set_mode(model, config, stage)
            stepper = StageForward(model, config, stage, training)
            loss_of = StageLoss(config, stage, variance_L, device, model.controller)
            stepper, optimizer = accelerator.prepare(stepper, optimizer)
            bar = tqdm(
                total=epochs,
                initial=at.epoch,
                unit="epoch",
                desc=stage,
                disable=quiet or not main or not sys.stderr.isatty(),
            )

            # ---------------------------------------------------------------------------------------------- loop
            sums: dict[str, Tensor] = {
                k: torch.tensor(v, dtype=torch.float64, device=device) for k, v in at.sums.items()
            }
            first_epoch = at.epoch
            for epoch in range(first_epoch, epochs + 1):
                at.epoch = epoch
                # evaluate: every process does, to the same numbers; a resumed run has done so for its first epoch
                due_to_evaluate = at.epoch == epochs or at.epoch % config.eval_every == 0
                improved = False
                if not resumed:
                    refuse_nan({name: float(value) for name, value in sums.items()}, config, stage, at.epoch)
                if due_to_evaluate and not resumed:
                    losses = {f"loss_{name}": float(value) / at.count for name, value in sums.items()}
                    at.metrics = evaluate(model, config, operations, seen_N, stage)
                    refuse_nan(at.metrics, config, stage, at.epoch)
                    sums, at.count = {}, 0
                    improved = judge_evaluation(at, config, stage, last_stage)
                    at.ended = at.ended or at.epoch == epochs
                    row = {"step": at.step, "stage": stage, "epoch": at.epoch, **losses, **at.metrics}
                    at.rows += 1
                    if run is not None:
                        run.metrics.append(row)
                        accelerator.log({k: v for k, v in row.items() if not isinstance(v, str)}, step=at.step)
                        if not quiet and (at.ended or time.monotonic() - told > 10):
                            told = time.monotonic()
                            left = (told - stage_started) / max(1, at.epoch - first_epoch) * (epochs - at.epoch)
                            tqdm.write(console(row, epochs, left))

                # stop: every process learns of a signal that one of them got
                stopping = bool(stop)
                if world > 1:
                    heard = accelerator.reduce(torch.tensor(float(stopping), device=device), "sum")
                    stopping = float(heard) > 0
                finished = at.ended and last_stage

                # save
                due = stopping or finished or (at.epoch > 0 and at.epoch % config.checkpoint_every == 0)
                if run is not None and not resumed and (improved or due):
                    if not due_to_evaluate:
                        at.metrics = evaluate(model, config, operations, seen_N, stage)
                        refuse_nan(at.metrics, config, stage, at.epoch)
                    at.sums = {name: float(value) for name, value in sums.items()}
                    now = Snapshot(
                        at.step,
                        copied(model.state_dict()),
                        copied(optimizer_tensors(trained, optimizer)),
                        dataclasses.asdict(at),
                    )
                    best = now if improved else best
                    if due:
                        for snapshot in [now] if best is None or best.step == now.step else [best, now]:
                            save_checkpoint(
                                folder / "checkpoints", snapshot.step, config, snapshot.model, snapshot.optimizer,
                                snapshot.state, best=best is not None and snapshot.step == best.step,
                            )  # fmt: skip
                        best = None
                        run.metrics.write_part()
                resumed = False
                if stopping and not finished:
                    outcome = f"stopped by {stop.name or 'a signal'} in epoch {at.epoch} of the {stage} stage"
                if at.ended or stopping:
                    break

                # step
                for positions in batches.epoch(at.epoch):
                    noises = {
                        v: noise(config, stage, v, at.stage_step, len(positions))
                        for v in "ab"
                        if samples(config, stage, v)
                    }
                    if config.encoder_dropout or config.projection_dropout:
                        torch.manual_seed(derive_seed(config.seed, "dropout", stage, at.stage_step, rank))
                    own = positions[rank::world].to(device)
                    rows = stepper(training[own], own, {v: n[rank::world].to(device) for v, n in noises.items()})
                    rows = {name: gather_rows(x_N, len(positions), accelerator) for name, x_N in rows.items()}
                    parts = loss_of(rows, training[positions.to(device)], at.stage_step, at.epoch)
                    lr = learning_rate(config, stage, at.stage_step, batches.steps_per_epoch)
                    for group in optimizer.param_groups:
                        group["lr"] = lr * group["factor"]
                    optimizer.zero_grad()
                    # Each process's gradient is of its own rows; DDP takes the mean over processes, the batch's is the sum.
                    accelerator.backward(total(parts) * world)
                    if world > 1:
                        # But the controller sees the whole batch in every process.
                        for name, parameter in trained.items():
                            if name.startswith("controller.") and parameter.grad is not None:
                                parameter.grad /= world
                    if config.grad_clip is not None:
                        accelerator.clip_grad_norm_(list(trained.values()), config.grad_clip)
                    optimizer.step()
                    sums = {name: sums.get(name, 0.0) + value.detach().double() for name, value in parts.items()}
                    at.count, at.step, at.stage_step = at.count + 1, at.step + 1, at.stage_step + 1

                # log
                bar.update(1)
            bar.close()
            if outcome:
                break
            if not last_stage:
                at = Progress(stage=at.stage, step=at.step, rows=at.rows)

        # ---------------------------------------------------------------------------------------------------- record
        if run is not None:
            if outcome:
                run.finish("stopped", outcome)
            else:
                run.metrics.compact()
                run.update()
                if quiet:
                    write_run_results(folder, config, run_metrics(config, model.eval(), run.metrics.rows))
                else:
                    write_run_report(folder, config, model.eval())
                # In KiB on Linux, in bytes on a Mac.
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
                    2**20 if sys.platform == "darwin" else 2**10
                )
                run.update(peak_memory_mib=round(peak))
                run.finish("done", f"reached epoch {at.epoch} of {names[-1]}")
                if not quiet:
                    print(f"done in {run.manifest['times']['seconds']:.0f} s, at most {peak:.0f} MiB of memory")
        if tracker or world > 1:
            # Ends trackers and the process group; a process that leaves while others still work would abort.
            accelerator.wait_for_everyone()
            accelerator.end_training()
        if outcome:
            raise Stopped(f"{outcome} and saved; `ternary-vae resume {folder}` continues")
    return folder


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def console(row: Mapping[str, Any], epochs: int, left: float) -> str:
    """An evaluation as a line."""
    shown = [f"coverage {row['coverage']:.5f}"]
    if "hierarchy" in row:
        shown += [f"hierarchy {row['hierarchy']:.6f}", f"Somers' D {row['somers_d']:.6f}"]
        shown += [f"{row['positive_gaps']} of {row['gaps']} gaps open", f"richness {row['richness']:.5f}"]
    return f"  {row['stage']} {row['epoch']} of {epochs}: {', '.join(shown)}; about {left:.0f} s left"
