"""Sweep runs of one shape as one batched model.

Where encoders and decoder are frozen, a run trains the radius net of one projection, on codes that never change: they
are computed once for all operations, and the nets of many runs are trained together, every weight with a leading run
dimension. A step is vmap of the single run's loss; batches, samples and learning rates are each run's own, so
that a run in a stack is the run alone, but for rounding. Each keeps its own folder, rows and checkpoints, in the same
form, and may go on alone.

Shapes: S stacked runs, U distinct (start, seed), N all operations, B a batch, D latent dimensions, L levels.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from tqdm import tqdm

from studycore.devices import choose_device, describe, set_threads
from studycore.errors import Stopped, UserError
from studycore.runs import Run, recording
from studycore.stacking import adamw_update, per_run
from studycore.stopping import stop_on_signals
from studycore.streams import derive_seed
from ternary_vae.config import RunOptions, TrainConfig
from ternary_vae.evaluate import distance_metrics, reconstruct
from ternary_vae.losses import RADIAL, Targets, Weights, total
from ternary_vae.metrics import radius_metrics
from ternary_vae.model import Code, TernaryVAEV5_11_PartialFreeze, architecture_of, count_parameters, radii_of_share
from ternary_vae.operations import Batches, Operations
from ternary_vae.record import Loaded, load_model, load_run_checkpoint, open_or_create, save_checkpoint, start_of
from ternary_vae.report import history_metrics, write_run_results
from ternary_vae.schedules import learning_rate
from ternary_vae.stages import ENCODER, first_variances, noise, samples
from ternary_vae.train import Progress, Snapshot, judge_evaluation, start_model

STAGE = "hierarchy"
BETAS, EPS = (0.9, 0.999), 1e-8
"""AdamW's, as torch.optim has them by default."""
VECTOR = 32
"""Most numbers at the end of a tensor that a vectorised CPU kernel computes otherwise, which rounds otherwise."""
PER_RUN = ("seed", "projection_seed", "start", "curvature", "max_radius", "lr", "scheduler", "step_epochs", "step_gamma",
           "warmup_epochs", "weight_decay", "early_stopping_patience", "epochs", "hierarchy_weight", "richness_weight",
           "separation_weight", "outer_radius", "inner_radius",
           # These reach nothing that such a run trains.
           "coverage_weight", "coverage_epochs", "coverage_patience", "coverage_lr", "coverage_scheduler", "coverage_frozen", "encoder_a_lr",
           "encoder_b_lr", "kl_weight", "kl_warmup_epochs", "free_bits", "n_pairs", "rank_loss_weight",
           "radial_weight")  # fmt: skip
"""Fields in which the runs of a stack may differ."""


def not_stackable(config: TrainConfig) -> str | None:
    """Why a run can't be part of a stack; None when it can."""
    if config.stages != "hierarchy":
        return "it has other stages than hierarchy"
    if not {*ENCODER.values(), "decoder_A"} <= set(config.hierarchy_frozen):
        return "its encoders or decoder are not frozen"
    if config.loss not in RADIAL:
        return f"the loss {config.loss} looks at more than radii"
    if config.view == "both":
        return "it orders both views"
    if config.projection_dropout:
        return "dropout in the projections"
    if config.train_fraction < 1:
        return "it trains on a part of the operations"
    return "forward: plain was asked for" if config.forward == "plain" else None


def shape_of(config: TrainConfig) -> tuple[Any, ...]:
    """What runs of a stack have in common."""
    return tuple(
        (f.name, str(getattr(config, f.name))) for f in dataclasses.fields(TrainConfig) if f.name not in PER_RUN
    )


@dataclasses.dataclass
class Lane:
    """One run of a stack."""

    run: Run
    config: TrainConfig
    at: Progress
    model: TernaryVAEV5_11_PartialFreeze
    best: Snapshot | None = None


class StackedRadii:
    """The radius nets of S runs: `weights` and moments [S, ...], their step and their radii of all operations.

    Behind the runs stand copies of the first one, as ballast: a vectorised kernel rounds the last few numbers of a tensor
    otherwise than the rest, and a run's numbers must not depend on its place in the stack by a single bit.
    """

    def __init__(self, lanes: Sequence[Lane], operations: Operations, device: str):
        first = lanes[0].config
        self.codes: dict[str | None, Code] = {}
        self.first, self.device, self.operations = first, device, operations
        self.view, self.hyperbolic, self.radial = first.view, first.radius == "hyperbolic", RADIAL[first.loss]
        size = 3**first.trits
        smallest = min(size, first.batch_size, size % first.batch_size or size)
        self.ballast = -(-VECTOR // smallest)
        nets = [lane.model.projection.of(self.view).radius_net for lane in self._filled(lanes)]
        self.prefix = "projection.proj_B." if nets[0] is _net_b(lanes[0].model) else "projection.proj_A."
        self.dtype = lanes[0].model.projection.of(self.view).dtype
        self.net = (
            TernaryVAEV5_11_PartialFreeze(**architecture_of(first)).projection.of(self.view).radius_net.to("meta")
        )
        stacked, _ = stack_module_state(nets)
        self.weights = {name: w.detach().to(device) for name, w in stacked.items()}
        self.exp_avg = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        self.exp_avg_sq = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        self.sampled = samples(first, STAGE, self.view)
        self._index(lanes)

    def _filled(self, lanes: Sequence[Any]) -> list[Any]:
        return [*lanes, *[lanes[0]] * self.ballast]

    def _index(self, lanes: Sequence[Lane]) -> None:
        """What belongs to the runs that are left, and the codes of the distinct (start, seed) among them."""
        lanes = self._filled(lanes)
        self.configs = [lane.config for lane in lanes]
        keys = [(config.start, config.seed) for config in self.configs]
        self.distinct = list(dict.fromkeys(keys))
        self.of_S = torch.tensor([self.distinct.index(key) for key in keys], device=self.device)
        owners = [lanes[keys.index(key)] for key in self.distinct]
        for owner in owners:
            if owner.config.start not in self.codes:
                with torch.no_grad():
                    code = owner.model.eval().encode(self.operations.x_NM.cpu(), self.view)
                self.codes[owner.config.start] = Code(code.mu_ND.to(self.device), code.logvar_ND.to(self.device))
        codes = [self.codes[owner.config.start] for owner in owners]
        self.mu_UND = torch.stack([code.mu_ND for code in codes])
        self.std_UND = torch.stack([torch.exp(code.logvar_ND / 2) for code in codes])
        self.batches = [
            Batches(self.operations.v_N.cpu(), c.trits, c.batch_size, c.deep_share, derive_seed(c.seed, STAGE))
            for c in (o.config for o in owners)
        ]

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=self.device)

        self.c_S = column([c.curvature for c in self.configs])
        self.max_S = column([c.max_radius for c in self.configs])
        self.decay_S = column([c.weight_decay for c in self.configs])
        self.weights_S = Weights(*(column(list(values)) for values in zip(*map(Weights.of, self.configs), strict=True)))
        self._set_targets(lanes)

    def set_targets(self, lanes: Sequence[Lane]) -> None:
        """What the losses aim at, the first variances of the runs among it."""
        self._set_targets(self._filled(lanes))

    def _set_targets(self, lanes: Sequence[Lane]) -> None:
        targets = [Targets.of(lane.config, torch.tensor(lane.at.variances, dtype=torch.float64)) for lane in lanes]
        self.targets_S = Targets(*(torch.stack(list(values)).to(self.device) for values in zip(*targets, strict=True)))

    def keep(self, lanes: Sequence[Lane], left: Sequence[int]) -> None:
        """Repacks: only these runs go on."""
        index = torch.tensor(self._filled(left), device=self.device)
        for stacked in (self.weights, self.exp_avg, self.exp_avg_sq):
            for name in stacked:
                stacked[name] = stacked[name][index].contiguous()
        self._index(lanes)

    def _loss(
        self,
        weights: dict[str, Tensor],
        z_BD: Tensor,
        v_B: Tensor,
        place_B: Tensor,
        targets: Targets,
        weighing: Weights,
        c: Tensor,
        max_radius: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One run's loss and its terms, from its weights."""
        share_B = torch.sigmoid(functional_call(self.net, weights, z_BD).squeeze(-1))
        rho_B, norm_B = radii_of_share(share_B, c.to(share_B), max_radius.to(share_B), self.hyperbolic)
        parts = self.radial(rho_B if self.hyperbolic else norm_B, v_B, place_B, targets, weighing)
        return total(parts), parts

    def step(self, positions_UB: Tensor, stage_step: int) -> dict[str, Tensor]:
        """One update of every run on its batch; returns the loss's terms [S]."""
        rows = positions_UB.shape[1]
        u = torch.arange(len(self.distinct), device=self.device)[:, None]
        z_UBD = self.mu_UND[u, positions_UB]
        if self.sampled:
            drawn = [noise(self._of(k), STAGE, self.view, stage_step, rows) for k in range(len(self.distinct))]
            noise_UBD = torch.stack(drawn).to(self.device)
            z_UBD = z_UBD + noise_UBD.to(z_UBD) * self.std_UND[u, positions_UB]
        z_SBD = z_UBD.to(self.dtype)[self.of_S]
        v_SB, place_SB = self.operations.v_N[positions_UB][self.of_S], self.operations.place_N[positions_UB][self.of_S]
        # The runs are independent, so the gradient of the sum of their losses is each run's own.
        leaves = {name: w.detach().requires_grad_() for name, w in self.weights.items()}
        total_S, parts = vmap(self._loss)(
            leaves, z_SBD, v_SB, place_SB, self.targets_S, self.weights_S, self.c_S, self.max_S
        )  # fmt: skip
        found = torch.autograd.grad(total_S.sum(), list(leaves.values()))
        gradients = dict(zip(leaves, found, strict=True))
        if self.first.grad_clip is not None:
            # As torch.nn.utils.clip_grad_norm_ does it for a run alone.
            norms = [g.flatten(1).norm(dim=1) for g in gradients.values()]
            factor_S = (self.first.grad_clip / (torch.stack(norms).norm(dim=0) + 1e-6)).clamp_max(1)
            gradients = {name: g * per_run(factor_S, g) for name, g in gradients.items()}
        steps = self.batches[0].steps_per_epoch
        rates = [learning_rate(c, STAGE, stage_step, steps) for c in self.configs]
        updates = torch.tensor(float(stage_step + 1), dtype=torch.float64, device=self.device)
        lr_S = torch.tensor(rates, dtype=torch.float64, device=self.device)
        with torch.no_grad():
            adamw_update(
                self.weights, gradients, self.exp_avg, self.exp_avg_sq, updates, lr_S, self.decay_S, BETAS, EPS
            )  # fmt: skip
        runs = len(self.configs) - self.ballast
        detached: dict[str, Tensor] = {name: part.detach().double()[:runs] for name, part in parts.items()}
        return detached

    def _of(self, k: int) -> TrainConfig:
        return self.configs[int((self.of_S == k).nonzero()[0])]

    @torch.no_grad()
    def radii(self, s: int) -> tuple[Tensor, Tensor]:
        """Run s's hyperbolic distances and Euclidean norms of all operations, by the mean code [N], float64, on the CPU."""
        z_ND = self.mu_UND[self.of_S[s]].to(self.dtype)
        share_N = torch.sigmoid(functional_call(self.net, {k: w[s] for k, w in self.weights.items()}, z_ND).squeeze(-1))
        c, largest = (
            self.configs[s].curvature,
            torch.as_tensor(self.configs[s].max_radius, dtype=share_N.dtype, device=share_N.device),
        )
        rho_N, norm_N = radii_of_share(share_N, c, largest, self.hyperbolic)
        return rho_N.double().cpu(), norm_N.double().cpu()

    def update_model(self, s: int, model: TernaryVAEV5_11_PartialFreeze) -> None:
        """Puts run s's weights into its model."""
        net = model.projection.of(self.view).radius_net
        net.load_state_dict({name: w[s] for name, w in self.weights.items()})

    def optimizer_tensors(self, s: int, updates: int) -> dict[str, Tensor]:
        """Run s's optimiser state by name, as a run alone has it; empty before the first update."""
        if updates == 0:
            return {}
        state: dict[str, Tensor] = {}
        for name in self.weights:
            full = f"{self.prefix}radius_net.{name}"
            state |= {
                f"{full}/step": torch.tensor(float(updates)),
                f"{full}/exp_avg": self.exp_avg[name][s].cpu().clone(),
                f"{full}/exp_avg_sq": self.exp_avg_sq[name][s].cpu().clone(),
            }
        return state

    def restore(self, s: int, tensors: dict[str, Tensor]) -> None:
        """Puts run s's optimiser state back."""
        for full, tensor in tensors.items():
            name, _, key = full.removeprefix(f"{self.prefix}radius_net.").rpartition("/")
            if key != "step":
                {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}[key][name][s].copy_(tensor)


def train_stack(
    configs: Sequence[TrainConfig], folders: Sequence[Path], options: RunOptions, argv: Sequence[str] = ()
) -> dict[str, str]:
    """Trains runs of one shape together, from their common step on; each ends, is written and drops out by itself.

    Returns the runs that failed, by name, with the reason. Stopped when a signal came, after saving.
    """
    device = choose_device(options.device)[0]
    set_threads(options.threads)
    operations = Operations.all(configs[0].trits).to(device)
    v_N = operations.v_N.cpu().numpy()

    # -------------------------------------------------------------------------------------------------- the runs
    lanes, states = _open_lanes(configs, folders, argv, device)
    failed: dict[str, str] = {}
    with stop_on_signals() as stop, recording(*[lane.run for lane in lanes]):
        coverages: dict[str | None, float] = {}
        resumed = lanes[0].at.rows > 0
        for lane in lanes:
            # Encoders and decoder are frozen, so the coverage of each start is measured once.
            if lane.config.start not in coverages:
                coverages[lane.config.start] = _coverage(lane.model, operations, device)
            lane.at.variances = lane.at.variances or [0.0] * (lane.config.trits + 1)
        training = StackedRadii(lanes, operations, device)
        for s, (lane, state) in enumerate(zip(lanes, states, strict=True)):
            training.restore(s, state)
            if not resumed:
                rho_N, norm_N = training.radii(s)
                r_N = rho_N if training.hyperbolic else norm_N
                lane.at.variances = first_variances(r_N, operations.v_N.cpu(), lane.config.trits).tolist()
        training.set_targets(lanes)

        # -------------------------------------------------------------------------------------------------- loop
        every, often = configs[0].eval_every, configs[0].checkpoint_every
        # A run that was saved alone right after an evaluation has no sums, one of a stack has zeros.
        names = {name: None for lane in lanes for name in lane.at.sums}
        sums: dict[str, Tensor] = {
            k: torch.tensor([lane.at.sums.get(k, 0.0) for lane in lanes], dtype=torch.float64, device=device)
            for k in names
        }
        epoch, longest, began = lanes[0].at.epoch, max(config.epochs for config in configs), time.monotonic()
        while lanes:
            stopping = bool(stop)  # once for all runs: a signal may come while they are looked at
            # evaluate
            for s, lane in enumerate(lanes):
                at, config = lane.at, lane.config
                at.epoch = epoch
                due_to_evaluate = epoch % every == 0 or epoch == config.epochs
                due = stopping or (epoch > 0 and epoch % often == 0)
                improved = False
                losses: dict[str, float] = {}
                if (due_to_evaluate or due) and not resumed:
                    losses = {f"loss_{name}": float(value[s]) / at.count for name, value in sums.items() if at.count}
                    finite = all(map(math.isfinite, losses.values()))
                    measured = _measure(training, s, v_N, coverages[config.start]) if finite else None
                    if measured is None:
                        reason = (
                            f"lr: {config.lr} made the loss infinite or NaN in epoch {epoch}; lower it or set grad_clip"
                        )
                        failed[lane.run.folder.name] = reason
                        lane.run.finish("failed", reason)
                        continue
                    at.metrics = measured
                if due_to_evaluate and not resumed:
                    for value in sums.values():
                        value[s] = 0.0
                    at.count = 0
                    improved = judge_evaluation(at, config, STAGE, last_stage=True)
                    at.ended = at.ended or epoch == config.epochs
                    at.rows += 1
                    lane.run.metrics.append({"step": at.step, "stage": STAGE, "epoch": epoch, **losses, **at.metrics})

                # save
                due = due or at.ended
                if not resumed and (improved or due):
                    at.sums = {name: float(value[s]) for name, value in sums.items()}
                    training.update_model(s, lane.model)
                    weights = {name: w.detach().cpu() for name, w in lane.model.state_dict().items()}
                    mine = {name: w.clone() if ".radius_net." in name else w for name, w in weights.items()}
                    now = Snapshot(at.step, mine, training.optimizer_tensors(s, at.stage_step), dataclasses.asdict(at))
                    lane.best = now if improved else lane.best
                    if due:
                        _save(lane, now)
                if at.ended:
                    _finish(lane, training.codes[config.start], operations)
                elif stopping:
                    lane.run.finish("stopped", f"stopped by {stop.name} at epoch {epoch}")
            resumed = False
            left = [s for s, lane in enumerate(lanes) if not lane.run.closed]
            if any(lane.run.manifest["state"] == "stopped" for lane in lanes):
                raise Stopped(f"stopped by {stop.name} at epoch {epoch} and saved")
            if len(left) < len(lanes):
                lanes = [lanes[s] for s in left]
                sums = {name: value[left] for name, value in sums.items()}
                if lanes:
                    training.keep(lanes, left)
            if not lanes:
                break

            # step
            for parts in zip(*(batches.epoch(epoch) for batches in training.batches), strict=True):
                found = training.step(torch.stack(parts).to(device), lanes[0].at.stage_step)
                sums = {name: sums[name] + value if name in sums else value for name, value in found.items()}
                for lane in lanes:
                    lane.at.count, lane.at.step, lane.at.stage_step = (
                        lane.at.count + 1, lane.at.step + 1, lane.at.stage_step + 1,
                    )  # fmt: skip
            epoch += 1

            # log
            if epoch % 10 == 0:
                seconds = (time.monotonic() - began) / epoch * (longest - epoch)
                tqdm.write(f"  stack of {len(lanes)}: epoch {epoch} of {longest}, about {seconds:.0f} s left")
    return failed


def _open_lanes(
    configs: Sequence[TrainConfig], folders: Sequence[Path], argv: Sequence[str], device: str
) -> tuple[list[Lane], list[dict[str, Tensor]]]:
    """The runs with their optimiser states, new or from their checkpoints. UserError unless all go on from one step."""
    starts: dict[str | None, Loaded] = {}
    loaded = []
    for config, folder in zip(configs, folders, strict=True):
        checkpoint, model = load_run_checkpoint(folder, config)
        if model is None:
            # A start that several runs share is loaded and verified once.
            if config.start is not None and config.start not in starts:
                starts[config.start] = load_model(start_of(config.start, folder))
            model = start_model(config, folder, starts.get(config.start))
        loaded.append((checkpoint, model, Progress(**checkpoint.state) if checkpoint else Progress()))
    # At step 0 a run is either not begun or evaluated already.
    steps = {(at.step, at.rows > 0) for *_, at in loaded}
    if len(steps) > 1:
        raise UserError(
            f"stack: its runs stand at steps {sorted(step for step, _ in steps)}; runs of a stack go on from one step"
        )
    lanes: list[Lane] = []
    try:
        for config, folder, (checkpoint, model, at) in zip(configs, folders, loaded, strict=True):
            run = open_or_create(folder, config, argv, describe(device), (folder / "manifest.json").exists())
            lanes.append(Lane(run, config, at, model))
            run.metrics.rows = run.metrics.rows[: at.rows]
            run.metrics.rewind(at.step if checkpoint else -1)
            run.update(parameters=count_parameters(model), stack=len(configs))
    except BaseException:
        for lane in lanes:
            lane.run.close()
        raise
    return lanes, [checkpoint.optimizer if checkpoint else {} for checkpoint, *_ in loaded]


def _measure(training: StackedRadii, s: int, v_N: Any, coverage: float) -> dict[str, Any] | None:
    """Run s's metrics; None when its radii are not finite."""
    rho_N, norm_N = training.radii(s)
    if not bool(rho_N.isfinite().all() and norm_N.isfinite().all()):
        return None
    return {"coverage": coverage, **radius_metrics(v_N, norm_N.numpy(), rho_N.numpy())}


def _coverage(model: TernaryVAEV5_11_PartialFreeze, operations: Operations, device: str) -> float:
    model.to(device)
    coverage = float(reconstruct(model, operations).double().mean())
    model.cpu()
    return coverage


def _save(lane: Lane, now: Snapshot) -> None:
    """The best model since the last save, and this one."""
    for snapshot in [now] if lane.best is None or lane.best.step == now.step else [lane.best, now]:
        is_best = lane.best is not None and snapshot.step == lane.best.step
        save_checkpoint(
            lane.run.folder / "checkpoints", snapshot.step, lane.config, snapshot.model, snapshot.optimizer,
            snapshot.state, best=is_best, build=lane.model,
        )  # fmt: skip
    lane.best = None
    lane.run.metrics.write_part()


@torch.no_grad()
def _finish(lane: Lane, code: Code, operations: Operations) -> None:
    """Results of a run that ended; its report is made when it is asked for."""
    at, metrics = lane.at, dict(lane.at.metrics)
    z_ND = lane.model.projection.of(lane.config.view)(code.mu_ND.cpu()).z_hyp_ND.double()
    metrics |= distance_metrics(z_ND, operations, lane.config.curvature, metrics.get("hierarchy"))
    metrics |= {**history_metrics(lane.run.metrics.rows), "operations": len(operations)}
    lane.run.metrics.compact()
    lane.run.update()
    write_run_results(lane.run.folder, lane.config, metrics)
    lane.run.finish("done", f"reached epoch {at.epoch} of {STAGE}")


def _net_b(model: TernaryVAEV5_11_PartialFreeze) -> Any:
    return None if model.projection.proj_B is None else model.projection.proj_B.radius_net
