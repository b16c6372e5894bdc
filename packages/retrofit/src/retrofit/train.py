"""One run, from top to bottom: set-up, data, model, resume, loop (evaluate, save, stop, step, log), record.

The batch of an update, permutations and dropout are functions of (seed, step, rank); nothing else is drawn. A
checkpoint needs no random states and resuming is bitwise on a CPU.

At step s, s updates have been made. A transport comes before update s (s > 0 and a multiple of glt_interval), after the
evaluation at s, so that an evaluation never sees the moment right after it.
"""

import dataclasses
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from retrofit.arms import get_arm
from retrofit.arms.base import Moment
from retrofit.blocks import FeedForward, find_blocks, up_norms
from retrofit.config import RunConfig, RunOptions
from retrofit.data import Data, load_data, micro_batches
from retrofit.evaluate import Drift, Evaluation, drift, evaluate
from retrofit.models import check_local, context_of, load_model, load_tokenizer, save_model, weights_fingerprint
from retrofit.record import (
    checkpoint_config,
    checkpoint_tensors,
    load_run_checkpoint,
    open_or_create,
    restore_optimizer,
    write_evaluation,
)
from retrofit.spectra import (
    activation_kappa,
    activation_moments,
    enough_tokens,
    geometric_mean,
    median,
    seed_ff_gram_layer,
    singular_values,
    weight_spectrum,
)
from studycore.checkpoints import save_checkpoint
from studycore.configuration import differences
from studycore.devices import choose_device, describe, set_threads
from studycore.errors import Stopped, UserError
from studycore.metrics import read_rows
from studycore.runs import read_manifest, recording
from studycore.stopping import stop_on_signals
from studycore.streams import derive_seed


class NextTokenLoss(nn.Module):
    """The model as the training step calls it: mean negative log-likelihood of windows [N, T + 1]."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids_NT: Tensor) -> Tensor:
        logits = self.model(input_ids=ids_NT[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), ids_NT[:, 1:].flatten())


def geometry_row(model: Any, blocks: Sequence[FeedForward], data: Data, config: RunConfig, end: bool) -> dict[str, Any]:
    """Conditioning of weights, and of activations on the fixed tokens; lists go by layer. At both ends in full."""
    row: dict[str, Any] = {}
    for name in ("up", "down"):
        spectra = [weight_spectrum(singular_values(p.weight_OI, p.name)) for p in (getattr(b, name) for b in blocks)]
        for key in ("kappa", "omega"):
            row |= summary(f"{name}_{key}", [getattr(s, key) for s in spectra])
    ids_NB = activation_ids(data, config)
    # With fewer tokens than the width only the ridge would be measured: then it is not run.
    if enough_tokens(ids_NB.numel(), max(b.down.weight_OI.shape[1] for b in blocks)):
        moments = activation_moments(model, blocks, ids_NB, dtype=torch.float32)
        layers = [seed_ff_gram_layer(m) for m in moments]
        row |= {"seed_ff_gram_layers": layers, "seed_ff_gram": sum(layers) / len(layers)}
        row["activation_tokens"] = moments[0].tokens
        if end:
            moments = activation_moments(model, blocks, ids_NB)
            for key, centred in (("act_kappa_centred", True), ("act_kappa_uncentred", False)):
                row |= summary(key, [activation_kappa(m, centred) for m in moments])
    return row


def summary(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Values by layer (null: infinite), their median (infinite ones last) and the geometric mean of the finite ones."""
    finite_ones = [value for value in values if math.isfinite(value)]
    row: dict[str, Any] = {name: [value if math.isfinite(value) else None for value in values]}
    if math.isfinite(middle := median(values)):
        row[f"{name}_median"] = middle
    if finite_ones:
        row[f"{name}_geometric_mean"] = geometric_mean(finite_ones)
    if len(finite_ones) < len(values):
        row[f"{name}_infinite"] = len(values) - len(finite_ones)
    return row


def activation_ids(data: Data, config: RunConfig) -> Tensor:
    """The fixed validation tokens [blocks, block_size] on which activations are measured."""
    whole = data.validation.document_NT.ge(0).all(dim=1)
    return data.validation.ids_NT[whole][: -(-config.activation_tokens // config.block_size), :-1]


def evaluation_row(
    config: RunConfig, data: Data, run_one: Callable[[Any], Evaluation], end: bool
) -> tuple[dict[str, Any], Evaluation | None]:
    """Perplexities: on the trajectory's validation and training blocks, and at both ends on the whole named set."""
    part = data.validation.first(config.trajectory_blocks)
    whole = data.validation.first(config.validation_blocks)
    on_part = run_one(part)
    on_train = run_one(data.train.first(config.trajectory_blocks))
    row = {
        "trajectory_loss": on_part.loss,
        "trajectory_ppl": on_part.perplexity,
        "train_loss": on_train.loss,
        "train_ppl": on_train.perplexity,
    }
    on_whole = None
    if end:
        on_whole = on_part if whole.name == part.name else run_one(whole)
        row |= {"val_loss": on_whole.loss, "val_ppl": on_whole.perplexity, "val_tokens": on_whole.tokens}
    if not all(math.isfinite(value) for value in row.values()):
        raise UserError(f"lr: {config.lr} made a perplexity infinite; lower it, or gram_weight {config.gram_weight}")
    return row, on_whole


def train(
    config: RunConfig,
    folder: Path,
    options: RunOptions | None = None,
    argv: Sequence[str] = (),
    resume: bool = False,
    quiet: bool = False,
    start: Path | None = None,
    keep_checkpoints: bool = True,
) -> Path:
    """Trains a run in the new `folder`, or goes on with the one there (`resume`), and returns the folder.

    `start` is a finished run with the same model and data, whose evaluation at step 0 is taken over; `quiet` leaves out
    console lines; without `keep_checkpoints` they are removed at the end. UserError for what can't be run; Stopped when
    a signal came, after saving.
    """
    options = options or RunOptions()
    # ---------------------------------------------------------------------------------------------------- set-up
    device, reason = choose_device(options.device)
    set_threads(options.threads)
    if config.mixed_precision == "fp16" and device == "cpu":
        raise UserError("mixed_precision: fp16 needs a GPU; give bf16 or fp32")
    tracker = None if options.tracker == "none" else options.tracker
    if tracker and find_spec(tracker) is None:
        raise UserError(f"--tracker: {tracker} is not installed; `pip install {tracker}`, or leave --tracker out")
    precision = "no" if config.mixed_precision == "fp32" else config.mixed_precision
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision, log_with=tracker, project_dir=folder)
    main, rank, world = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
    device = str(accelerator.device)
    if main and not quiet:
        print(f"retrofit trains on {device} ({reason}), {torch.get_num_threads()} threads, {world} processes")
    arm = get_arm(config.method)
    last_step = 0 if config.method == "none" else config.num_steps

    # ------------------------------------------------------------------------------------- model, data and optimizer
    check_local("--dataset", config.dataset)
    check_local("--validation-dataset", config.validation_dataset or config.dataset)
    model, commit = load_model(config.model, config.model_revision, config.dropout)
    own_dropout = model.own_dropout
    tokenizer = load_tokenizer(config.model, config.model_revision)
    blocks = find_blocks(model)
    if config.method == "glt_fold" and any(block.norm is None for block in blocks):
        raise UserError(
            f"method: glt_fold does not know which norm feeds only the FFN of {model.config.model_type}; take another method"
        )
    data = load_data(config, tokenizer, context_of(model))
    reference = norm_reference(config, folder, len(blocks), last_step)
    fingerprints = {**data.fingerprints, "model": weights_fingerprint(model)}
    if start is not None and (changed := differences(read_manifest(start)["data_fingerprints"], fingerprints)):
        raise UserError(
            f"{start}: the comparison began with another model or text: {'; '.join(changed)}; start a new one"
        )
    checkpoint, resumed = load_run_checkpoint(folder, config) if resume else (None, None)
    run = open_or_create(folder, config, fingerprints, argv, describe(device), resume) if main else None
    if resumed is not None:
        model, blocks = resumed, find_blocks(resumed)
    model.to(device).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, weight_decay=config.weight_decay
    )
    if checkpoint is not None:
        restore_optimizer(model, optimizer, checkpoint.optimizer)
    stepper, prepared = accelerator.prepare(NextTokenLoss(model), optimizer)

    # ---------------------------------------------------------------------------------------------------- resume
    first_step = checkpoint.step if checkpoint else 0
    if run is not None:
        # The rows at the checkpoint's own step are made again, to the same bits.
        run.metrics.rewind(first_step - 1)
        about = {**data.about, "hub_commit": commit, "parameters": sum(p.numel() for p in parameters)}
        about |= {"ffn_width": max(block.down.weight_OI.shape[1] for block in blocks)}
        about |= {"training_tokens": last_step * config.batch_size * config.block_size}
        about |= {"validation_set": data.validation.first(config.validation_blocks).name}
        about |= {"trajectory_set": data.validation.first(config.trajectory_blocks).name}
        run.update(about=about)
    if tracker:
        accelerator.init_trackers("retrofit", config=dataclasses.asdict(config))

    def add_up(x: Tensor) -> Tensor:
        if world == 1:
            return x
        total: Any = accelerator.reduce(x.to(device), "sum")
        return total.cpu()  # type: ignore[no-any-return]

    def evaluate_on(which: Any) -> Evaluation:
        return evaluate(model, which, config.batch_size, config.mixed_precision, rank, world, add_up)

    # ------------------------------------------------------------------------------------------------------ loop
    loader = micro_batches(data.train, dataclasses.replace(config, num_steps=last_step), first_step, rank, world)
    bar = tqdm(total=last_step, initial=first_step, unit="step", disable=quiet or not main or not sys.stderr.isatty())
    outcome, told, started = "", time.monotonic(), time.monotonic()
    with stop_on_signals() as stop, recording(*[run] if run else []):
        for step in range(first_step, last_step + 1):
            # evaluate
            last = step == last_step
            if last or step % config.eval_interval == 0:
                shared = read_start(start) if step == 0 else None
                if shared is None:
                    row, by_document = evaluation_row(config, data, evaluate_on, end=last or step == 0)
                    row = {"step": step, "kind": "evaluation", **row}
                    if run is not None:
                        row |= geometry_row(model, blocks, data, config, end=last or step == 0)
                        if by_document is not None:
                            write_evaluation(folder, step, by_document)
                else:
                    row = shared
                    if run is not None and start is not None:
                        (folder / "evaluations").mkdir(exist_ok=True)
                        shutil.copyfile(start / "evaluations/step-0.parquet", folder / "evaluations/step-0.parquet")
                if run is not None:
                    run.metrics.append(row)
                    accelerator.log({k: v for k, v in row.items() if isinstance(v, int | float)}, step=step)
                    if not quiet:
                        tqdm.write(console_line(row, last_step))

            # stop: every process learns of a signal that any of them got
            stopping = bool(stop)
            if world > 1:
                flag = accelerator.reduce(torch.tensor(float(stopping), device=device), "sum")
                stopping = bool(flag > 0)  # type: ignore[operator]

            # save
            if run is not None and (last or stopping or (step > first_step and step % config.checkpoint_every == 0)):
                if keep_checkpoints or not last:
                    save_checkpoint(
                        folder / "checkpoints",
                        step,
                        config=checkpoint_config(model, config),
                        state={"step": step},
                        **checkpoint_tensors(model, optimizer),
                    )
                run.metrics.write_part()
            if last or stopping:
                outcome = "done" if last else f"stopped by {stop.name or 'a signal'} at step {step}"
                break

            # transport
            now = Moment(model, blocks, optimizer, config, step, reference)
            if arm.transports and step > 0 and step % config.glt_interval == 0:
                row = transport_row(arm.transport, now, data)
                if run is not None:
                    run.metrics.append(row)

            # step
            torch.manual_seed(derive_seed(config.seed, "dropout", step, rank))
            parts = next(loader)
            loss = torch.zeros((), device=device)
            for i, ids_NT in enumerate(parts):
                ids_NT = ids_NT.to(device)
                if i + 1 < len(parts):
                    with accelerator.no_sync(stepper):
                        part = stepper(ids_NT) / len(parts)
                        accelerator.backward(part)
                else:
                    part = stepper(ids_NT) / len(parts)
                    accelerator.backward(part)
                loss += part.detach()
            mean_loss = float(add_up(loss)) / world
            if not math.isfinite(mean_loss):
                raise UserError(f"lr: {config.lr} made the loss {mean_loss} at step {step}; lower it or set grad_clip")
            row = {"step": step, "kind": "update", "loss": mean_loss}
            # The cross-entropy's gradient is clipped alone; the penalty's comes on top, once per update.
            row |= clip(accelerator, optimizer, parameters, config.grad_clip)
            penalty = arm.penalty(now)
            if penalty is not None:
                value, gradients = penalty
                for parameter, gradient in gradients:
                    assert parameter.grad is not None
                    parameter.grad += gradient
                norm = torch.stack([g.norm() for _, g in gradients]).norm()
                row |= {"penalty": finite(value, "gram_weight", config, step), "penalty_grad_norm": float(norm)}
            prepared.step()
            prepared.zero_grad()
            arm.after_update(dataclasses.replace(now, step=step + 1))
            norms = up_norms(blocks)
            if not all(map(math.isfinite, norms)):
                raise UserError(f"lr: {config.lr} made weights infinite at step {step}; lower it")

            # log
            if run is not None:
                run.metrics.append({**row, "up_norms": norms})
                accelerator.log({k: v for k, v in row.items() if isinstance(v, int | float)}, step=step)
            bar.update(1)
            if main and not quiet and bar.disable and time.monotonic() - told > 30:
                told = time.monotonic()
                left = (told - started) / (step + 1 - first_step) * (last_step - step - 1)
                print(f"step {step + 1} of {last_step}, about {left:.0f} s left", flush=True)
        bar.close()

        # ---------------------------------------------------------------------------------------------------- record
        if run is not None:
            if outcome == "done":
                if config.save_model:
                    save_model(model, tokenizer, folder / "model", own_dropout)
                run.metrics.compact()
                run.update()
                from retrofit.report import write_run_report

                write_run_report(folder, model)
                run.finish("done", f"reached step {step}")
                if not keep_checkpoints:
                    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            else:
                run.finish("stopped", outcome)
        if tracker or world > 1:
            # Ends trackers and the process group; a process that leaves while others still work would abort.
            accelerator.wait_for_everyone()
            accelerator.end_training()
        if outcome != "done":
            raise Stopped(f"{outcome} and saved; `retrofit resume {folder}` continues")
    return folder


def clip(accelerator: Any, optimizer: Any, parameters: list[nn.Parameter], limit: float | None) -> dict[str, Any]:
    """Clips the gradients to `limit` and says what their norm was."""
    if limit is None:
        accelerator.unscale_gradients()
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = float(torch.stack(torch._foreach_norm(grads)).norm())
    else:
        norm = float(accelerator.clip_grad_norm_(parameters, limit))
    # Infinite where fp16 overflowed: the scaler then leaves the update out.
    return {"grad_norm": norm if math.isfinite(norm) else None, "clipped": limit is not None and norm > limit}


def finite(value: Tensor, field: str, config: RunConfig, step: int) -> float:
    if not math.isfinite(float(value)):
        raise UserError(f"{field}: {getattr(config, field)} made the penalty {float(value)} at step {step}; lower it")
    return float(value)


def transport_row(transport: Callable[[Moment], None], now: Moment, data: Data) -> dict[str, Any]:
    """Transports, with perplexity, KL divergence and kappa of the up projections right before and after."""

    def kappa() -> float:
        return median([weight_spectrum(singular_values(b.up.weight_OI)).kappa for b in now.blocks])

    before = kappa()
    blocks = data.validation.first(now.config.transport_blocks)
    found: Drift = drift(now.model, blocks, now.config.batch_size, lambda: transport(now))
    row = {"transport_ppl_before": found.ppl_before, "transport_ppl_after": found.ppl_after, "transport_kl": found.kl}
    row |= {"transport_kappa_before": before, "transport_kappa_after": kappa()}
    return {"step": now.step, "kind": "transport", **{k: v for k, v in row.items() if math.isfinite(v)}}


def norm_reference(config: RunConfig, folder: Path, layers: int, steps: int) -> Mapping[int, Sequence[float]] | None:
    """Norms of the up projections of config.norm_reference by updates made. UserError when they don't fit the run."""
    if config.norm_reference is None:
        return None
    place = next(
        (
            p
            for p in (Path(os.path.normpath(folder / config.norm_reference)), Path(config.norm_reference))
            if p.is_dir()
        ),
        None,
    )
    if place is None:
        raise UserError(f"norm_reference: there is no run folder '{config.norm_reference}'; name one")
    rows = [row for row in read_rows(place / "metrics.jsonl") if "up_norms" in row]
    norms = {row["step"] + 1: row["up_norms"] for row in rows}
    if len(norms) < steps or any(len(values) != layers for values in norms.values()):
        raise UserError(
            f"norm_reference: {place} has norms of {len(norms)} updates, and {steps} of {layers} layers are needed; name another run"
        )
    return norms


def read_start(start: Path | None) -> dict[str, Any] | None:
    """The row at step 0 of another run."""
    if start is None:
        return None
    return dict(next(row for row in read_rows(start / "metrics.jsonl") if row["kind"] == "evaluation"))


def console_line(row: Mapping[str, Any], last_step: int) -> str:
    parts = [f"step {row['step']:>5} of {last_step}", f"perplexity {row.get('val_ppl', row['trajectory_ppl']):.3f}"]
    if "up_kappa_median" in row:
        parts.append(f"kappa of up projections {row['up_kappa_median']:.2f}")
    if "seed_ff_gram" in row:
        parts.append(f"seed_ff_gram {row['seed_ff_gram']:.0f}")
    return "  ".join(parts)
