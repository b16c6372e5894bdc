"""Several runs of one shape as one batched model: every weight, gradient and moment carries a leading run dimension.

Runs may differ in seed, split, learning rate and weight decay. The step is vmap(grad) of the single run's loss, the
recipe's transforms under vmap, and AdamW written over stacked tensors; on a GPU the whole step is one CUDA graph.
Each run keeps its own folder, rows and checkpoints, in the same form as trained alone, and may go on alone.

Shapes: S stacked runs, N training pairs, P classes; W stands for a weight's own dimensions.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from least_action.config import RunOptions, SweepOptions, TrainerConfig
from least_action.events import grokked_epoch
from least_action.losses import LeastActionLoss, data_loss
from least_action.metrics.training import Probe, measure
from least_action.models import Output, PairModel, count_parameters, create_model
from least_action.recipes import clip_factor, learning_rate, total_norm, transform_gradients
from least_action.record import checkpoint_tensors, load_run_checkpoint, open_or_create
from least_action.report import write_run_report
from least_action.roles import decayed_parameters
from least_action.train import PairForward, create_dataset
from studycore.checkpoints import load_latest, save_checkpoint
from studycore.configuration import to_dict
from studycore.devices import choose_device, describe, set_threads
from studycore.errors import Stopped, UserError
from studycore.runs import Run, recording
from studycore.stacking import adamw_update, per_run
from studycore.stopping import stop_on_signals

PER_RUN = ("seed", "data_seed", "lr", "weight_decay")
"""Fields in which the runs of a stack may differ."""
Stacked = dict[str, Tensor]


def not_stackable(config: TrainerConfig) -> str | None:
    """Why a run can't be part of a stack; None when it can."""
    if config.batch_size is not None:
        return "mini-batches"
    if config.recipe == "muon":
        return "Muon"
    if config.lambda_spectral or config.lambda_jacobian or config.routing_regularizer == "consistency":
        return "a regulariser with passes of its own"
    return "frozen gates" if config.freeze_gates else None


class StackedTraining:
    """S runs in step: `weights` and moments [S, W], and `step()`, which updates them all once."""

    def __init__(self, configs: Sequence[TrainerConfig], models: Sequence[PairModel], device: str):
        first = configs[0]
        self.configs, self.device = list(configs), device
        # One module without data gives the function; the stacked tensors are its weights.
        self.function = PairForward(create_model(first), first.forward == "restructured").to("meta")
        stacked, _ = stack_module_state(list(models))
        self.weights: Stacked = {name: w.detach().to(device) for name, w in stacked.items()}
        self.exp_avg = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        self.exp_avg_sq = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        self.averages: Stacked = {}
        self.updates = torch.zeros((), dtype=torch.float64, device=device)
        self.initial_norm_S = self._norms()
        pairs = [create_dataset(config).train for config in configs]
        self.a_SN, self.b_SN, self.y_SN = (
            torch.stack([getattr(p, name) for p in pairs]).to(device) for name in ("a_N", "b_N", "y_N")
        )
        self.lr_S = torch.tensor([c.lr for c in configs], dtype=torch.float64, device=device)
        self.decay_S = torch.tensor([c.weight_decay for c in configs], dtype=torch.float64, device=device)
        self.warm_up = torch.ones((), dtype=torch.float64, device=device)
        self.decayed = decayed_parameters(models[0], first.weight_decay_rule)
        loss = LeastActionLoss(first)

        def total(weights: Stacked, a_N: Tensor, b_N: Tensor, y_N: Tensor) -> Tensor:
            return loss(self.call(weights, a_N, b_N), y_N).total

        self._gradients: Callable[..., Stacked] = vmap(grad(total))
        self._replay: Callable[[], None] | None = None

    def call(self, weights: Mapping[str, Tensor], a_N: Tensor, b_N: Tensor) -> Output:
        """One run's output from its weights [W]."""
        output: Output = functional_call(self.function, {f"model.{name}": w for name, w in weights.items()}, (a_N, b_N))
        return output

    def step(self, epoch: int) -> None:
        """One update of every run."""
        self.warm_up.fill_(learning_rate(epoch, self.configs[0]) / self.configs[0].lr)
        if self.device.startswith("cuda"):
            if self._replay is None:
                self._replay = self._capture()
            self._replay()
        else:
            self._update()

    def _update(self) -> None:
        config = self.configs[0]
        gradients = self._gradients(self.weights, self.a_SN, self.b_SN, self.y_SN)
        with torch.no_grad():
            if config.grad_clip is not None:
                largest = config.grad_clip
                factor_S: Tensor = vmap(lambda g: clip_factor(g, largest))(gradients)
                gradients = {name: g * per_run(factor_S, g) for name, g in gradients.items()}
            if config.recipe in ("orthograd", "orthograd_stablemax", "grokfast"):
                transform = vmap(lambda w, g, m: transform_gradients(w, g, m, config))
                gradients, new = transform(self.weights, gradients, self.averages or gradients)
                for name, average in new.items():
                    # Kept in place, as a CUDA graph needs.
                    self.averages.setdefault(name, torch.empty_like(average)).copy_(average)
            self._adamw(gradients)
            if config.recipe == "constrained_norm":
                scale_S = config.constrained_norm_alpha * self.initial_norm_S / self._norms()
                for w in self.weights.values():
                    w.mul_(per_run(scale_S, w))

    def _adamw(self, gradients: Stacked) -> None:
        """AdamW with lr and decay per run."""
        config = self.configs[0]
        self.updates += 1
        adamw_update(
            self.weights,
            gradients,
            self.exp_avg,
            self.exp_avg_sq,
            self.updates,
            self.lr_S * self.warm_up,
            self.decay_S,
            (config.beta1, config.beta2),
            config.eps,
            self.decayed,
        )

    def _norms(self) -> Tensor:
        with torch.no_grad():
            norms_S: Tensor = vmap(total_norm)(self.weights)
        return norms_S

    def _capture(self) -> Callable[[], None]:
        """The whole update as one CUDA graph; the warm-up it needs leaves no trace in the state."""
        kept = [*self.weights.values(), *self.exp_avg.values(), *self.exp_avg_sq.values(), self.updates]
        before, averages_before = [tensor.clone() for tensor in kept], {k: v.clone() for k, v in self.averages.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # The first update makes grokfast's averages from the gradient itself, so it can't be part of a graph.
            for _ in range(3):
                self._update()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._update()
        for tensor, value in zip(kept, before, strict=True):
            tensor.copy_(value)
        if self.averages and not averages_before:
            first = self._gradients(self.weights, self.a_SN, self.b_SN, self.y_SN)
            averages_before = {name: first[name] for name in self.averages}
        for name, value in averages_before.items():
            self.averages[name].copy_(value)
        return graph.replay

    def basics(self, probes: Sequence[Probe]) -> list[dict[str, float]]:
        """Loss and accuracy on both splits of every run, with one transfer from the device."""
        loss, values = data_loss(self.configs[0]), []
        with torch.no_grad():
            for s, probe in enumerate(probes):
                output = self.call({name: w[s] for name, w in self.weights.items()}, probe.all.a_N, probe.all.b_N)
                logits_NP = output.logits_NP
                right_N = (logits_NP.argmax(dim=-1) == probe.all.y_N).double()
                for mask_N in (probe.train_mask_N, ~probe.train_mask_N):
                    values += [loss(logits_NP[mask_N], probe.all.y_N[mask_N]).double(), right_N[mask_N].mean()]
        names = ("train_loss", "train_acc", "test_loss", "test_acc")
        return [dict(zip(names, four, strict=True)) for four in torch.stack(values).reshape(-1, 4).tolist()]

    def model(self, s: int) -> PairModel:
        """Run s as a model of its own."""
        model = create_model(self.configs[s]).to(self.device)
        model.load_state_dict({name: w[s] for name, w in self.weights.items()})
        return model

    def optimizer_tensors(self, s: int) -> Stacked:
        """Run s's optimiser state by name, as recipes.optimizer_tensors gives it; empty before the first update."""
        if self.updates == 0:
            return {}
        state = {f"{name}/step": self.updates.float().cpu() for name in self.weights}
        for key, stacked in (("exp_avg", self.exp_avg), ("exp_avg_sq", self.exp_avg_sq), ("grokfast", self.averages)):
            state |= {f"{name}/{key}": tensor[s] for name, tensor in stacked.items()}
        return state

    def restore(self, s: int, tensors: Mapping[str, Tensor], initial_norm: float) -> None:
        """Puts run s's optimiser state back."""
        for full, tensor in tensors.items():
            name, _, key = full.rpartition("/")
            if key == "step":
                self.updates.fill_(float(tensor))
                continue
            into = {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq, "grokfast": self.averages}[key]
            into.setdefault(name, torch.zeros_like(self.weights[name]))[s].copy_(tensor)
        self.initial_norm_S[s] = initial_norm

    def keep(self, lanes: Sequence[int]) -> None:
        """Repacks: only these runs go on."""
        index = torch.tensor(list(lanes), device=self.device)
        for stacked in (self.weights, self.exp_avg, self.exp_avg_sq, self.averages):
            for name in stacked:
                stacked[name] = stacked[name][index].contiguous()
        for name in ("a_SN", "b_SN", "y_SN", "lr_S", "decay_S", "initial_norm_S"):
            setattr(self, name, getattr(self, name)[index])
        self.configs = [self.configs[s] for s in lanes]
        self._replay = None


@dataclasses.dataclass
class Lane:
    """One run of a stack."""

    run: Run
    config: TrainerConfig
    probe: Probe
    best: float
    ended: bool = False


def train_stack(
    configs: Sequence[TrainerConfig], folders: Sequence[Path], options: RunOptions, argv: Sequence[str] = ()
) -> None:
    """Trains runs of one shape together, from their common epoch on; each ends, is written and drops out by itself."""
    device = choose_device(options.device)[0]
    set_threads(options.threads)
    first = configs[0]

    # -------------------------------------------------------------------------------------------------- the runs
    resumed = [(folder / "manifest.json").exists() for folder in folders]
    loaded = [
        load_run_checkpoint(folder, config) if existing else (None, None)
        for folder, config, existing in zip(folders, configs, resumed, strict=True)
    ]
    checkpoints = [checkpoint for checkpoint, _ in loaded]
    starts = {int(checkpoint.state["epoch"]) if checkpoint else 0 for checkpoint in checkpoints}
    if len(starts) > 1:
        raise UserError(f"stack: its runs stand at epochs {sorted(starts)}; runs of a stack go on from one epoch")
    models = [model or create_model(config) for (_, model), config in zip(loaded, configs, strict=True)]
    lanes = []
    for config, folder, existing, checkpoint, model in zip(configs, folders, resumed, checkpoints, models, strict=True):
        data = create_dataset(config)
        run = open_or_create(folder, config, data, argv, describe(device), existing)
        best = float(checkpoint.state["best_test_acc"]) if checkpoint else -1.0
        lanes.append(Lane(run, config, Probe.draw(data, config, device), best))
        run.metrics.rewind((int(checkpoint.state["step"]) if checkpoint else 0) - 1)
        run.update(parameters=count_parameters(model), weight_decay_rule=config.weight_decay_rule, stack=len(configs))
    training = StackedTraining(configs, models, device)
    for s, checkpoint in enumerate(checkpoints):
        if checkpoint:
            training.restore(s, checkpoint.optimizer, float(checkpoint.state["initial_norm"]))

    # ------------------------------------------------------------------------------------------------------ loop
    start = starts.pop()
    with stop_on_signals() as stop, recording(*[lane.run for lane in lanes]):
        for epoch in range(start, first.epochs + 1):
            # evaluate
            at_end = epoch == first.epochs
            if at_end or epoch % first.eval_every == 0:
                basics = training.basics([lane.probe for lane in lanes])
                for s, lane in enumerate(lanes):
                    if first.stop_after_grok is not None:
                        grokked = grokked_epoch(lane.run.metrics.rows, first)
                        lane.ended = grokked is not None and epoch >= grokked + first.stop_after_grok
                    lane.ended = lane.ended or at_end
                    detailed = (
                        lane.ended or epoch % first.log_every == 0 or epoch % first.weight_curvature_interval == 0
                    )
                    state = training.optimizer_tensors(s) if detailed else {}
                    row = measure(
                        training.model(s) if detailed else None,
                        state,
                        lane.probe,
                        lane.config,
                        epoch,
                        epoch,
                        at_end,
                        basics[s],
                    )
                    lane.run.metrics.append(row.row())

            # save
            due = epoch > start and epoch % first.checkpoint_every == 0
            for s, lane in enumerate(lanes):
                if due or lane.ended or stop:
                    _save(training, s, lane, epoch)
                if lane.ended:
                    _finish(training.model(s), lane, epoch)
            going_on = [s for s, lane in enumerate(lanes) if not lane.ended]
            if stop:
                for s in going_on:
                    lanes[s].run.finish("stopped", f"stopped by {stop.name} at epoch {epoch}")
                raise Stopped(f"stopped by {stop.name} at epoch {epoch} and saved")
            if not going_on:
                return
            if len(going_on) < len(lanes):
                training.keep(going_on)
                lanes = [lanes[s] for s in going_on]

            # step
            training.step(epoch)


def _save(training: StackedTraining, s: int, lane: Lane, epoch: int) -> None:
    accuracy = lane.run.metrics.rows[-1]["test_acc"]
    save_checkpoint(
        lane.run.folder / "checkpoints",
        epoch,
        config=to_dict(lane.config),
        state={
            "epoch": epoch,
            "step": epoch,
            "best_test_acc": max(lane.best, accuracy),
            "initial_norm": float(training.initial_norm_S[s]),
        },
        best=accuracy > lane.best,
        **checkpoint_tensors(training.model(s), training.optimizer_tensors(s), lane.config),
    )
    lane.run.metrics.write_part()
    lane.best = max(lane.best, accuracy)


def _finish(model: PairModel, lane: Lane, epoch: int) -> None:
    lane.run.metrics.compact()
    lane.run.update()
    write_run_report(lane.run.folder, lane.config, model)
    lane.run.finish("done", f"reached epoch {epoch}")


def make_stacks(
    configs: Mapping[str, TrainerConfig], device: str, options: SweepOptions, processes: int, folder: Path
) -> tuple[list[tuple[str, ...]], str]:
    """Which runs are trained together, and a sentence on why.

    Runs of one shape that stand at the same epoch can be; whether they are is decided by `options.stack`: "auto"
    times both ways on this device, with the threads that a worker has.
    """
    groups: dict[str, list[str]] = {}
    for name, config in configs.items():
        shared = {k: v for k, v in to_dict(config).items() if k not in PER_RUN}
        own = name if not_stackable(config) else ""
        groups.setdefault(f"{shared} {_epoch_of(folder / name)} {own}", []).append(name)
    alone_stacks: list[tuple[str, ...]] = [(name,) for name in configs]
    largest = max(groups.values(), key=len, default=[])
    if options.stack == "never" or len(largest) < 2:
        why = "--stack never" if options.stack == "never" else "no two of one shape"
        return alone_stacks, f"Runs are trained one by one in each process ({why})."
    said = "Runs of one shape are trained as one batched model (--stack always)."
    if options.stack == "auto":
        one_by_one, together = time_both([configs[name] for name in largest[:4]], device)
        ratio = one_by_one / together
        if ratio < 1.1:
            return (
                alone_stacks,
                f"Runs are trained one by one in each process: stacking {len(largest[:4])} is {ratio:.2f} times as fast here.",
            )
        said = f"Runs of one shape are trained as one batched model: {ratio:.1f} times as fast as one by one here."
    size = options.max_stack
    stacks: list[tuple[str, ...]] = []
    for names in groups.values():
        # At least as many stacks as processes, so that none idles.
        each = min(size, -(-len(names) // processes))
        stacks += [tuple(names[i : i + each]) for i in range(0, len(names), each)]
    return stacks, said


def time_both(configs: Sequence[TrainerConfig], device: str, steps: int = 3) -> tuple[float, float]:
    """Median seconds per run and update: (one by one, stacked), on one process."""
    from least_action.recipes import create_optimizers

    models = [create_model(config) for config in configs]
    model = create_model(configs[0]).to(device)
    pairs, loss = create_dataset(configs[0]).train.to(device), LeastActionLoss(configs[0])
    (optimizer,) = create_optimizers(model, configs[0])
    forward = PairForward(model, configs[0].forward == "restructured")

    def alone() -> None:
        loss(forward(pairs.a_N, pairs.b_N), pairs.y_N).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    training = StackedTraining(configs, models, device)
    return _median(alone, steps, device), _median(lambda: training.step(0), steps, device) / len(configs)


def _median(step: Callable[[], None], steps: int, device: str) -> float:
    taken = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        step()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return sorted(taken[1:])[steps // 2]


def _epoch_of(folder: Path) -> int:
    """Where a run stands: its newest checkpoint's epoch."""
    checkpoint = load_latest(folder / "checkpoints")
    return int(checkpoint.state["epoch"]) if checkpoint else 0
