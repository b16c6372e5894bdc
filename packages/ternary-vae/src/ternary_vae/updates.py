"""What makes an update in the training loop: `WholeModel` here for one run in any stage, and `StackedRadii` in stacked.py for
many runs that train no more than radius nets.

Shapes: S lanes, N operations, B those of a batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from studycore.run import Run
from studycore.streams import derive_seed
from ternary_vae.config import TrainConfig
from ternary_vae.data import Operations
from ternary_vae.forward import StageForward, noise, set_mode, set_trained
from ternary_vae.losses import StageLoss, first_variances, total
from ternary_vae.metrics.evaluate import Codes, headline, order_metrics, radii, reconstruct
from ternary_vae.model import TernaryVAE
from ternary_vae.stages import Stage


@dataclass
class Lane:
    """One run of a training: alone, or beside others of its shape."""

    run: Run
    config: TrainConfig
    model: TernaryVAE
    stage: Stage = field(init=False)
    """The one that the run is in."""
    optimizer: torch.optim.AdamW = field(init=False)
    variances: list[float] = field(init=False)
    """Of the radius within each level when the stage began."""
    epochs: Iterator[int] = field(init=False)
    """The stage's loop: every epoch's index, and the last for evaluating and saving alone."""

    def begin(self, stage: Stage, updates_per_epoch: int) -> None:
        """Begins the stage, or goes on with it, with the optimiser's state of the checkpoint."""
        self.stage = stage
        trained = set_trained(self.model, self.config, stage)
        self.optimizer = self.run.optimizer(create_optimizer(trained, self.config, stage))
        self.epochs = self.run.steps(stage.epochs, loop=stage.name, unit="epoch", updates=updates_per_epoch)

    def take_variances(self, rho_N: Tensor, norm_N: Tensor, v_N: Tensor) -> Tensor:
        """The variances [L] of these radii of the training operations, or those that the stage began with."""
        r_N = rho_N if self.config.radius == "hyperbolic" else norm_N
        stored = self.run.state.get("variances")
        self.variances = stored or first_variances(r_N, v_N.cpu(), self.config.trits).tolist()
        return torch.tensor(self.variances, dtype=torch.float64)


class Update(Protocol):
    """The lanes' models while they are trained."""

    lanes: list[Lane]

    def step(self, positions: Sequence[Tensor], update: int, epoch: int) -> Mapping[str, Tensor]:
        """One update of every lane, each on the training operations at its positions; the loss's terms [S], float64."""

    def measure(self, s: int) -> dict[str, Any]:
        """Lane s's metrics as it stands; nothing of the training changes."""

    def put_back(self, s: int) -> None:
        """Brings lane s's model and optimiser up to date, for a checkpoint."""

    def keep(self, left: Sequence[int]) -> None:
        """Goes on with the lanes at these places alone."""


class WholeModel:
    """One run's whole model, in any stage, over one process or several.

    The rows of several processes are gathered before the loss is made, so that losses of whole batches (level means,
    extremes) are those of one process.
    """

    def __init__(self, lane: Lane, operations: Operations, seen_N: Tensor, updates_per_epoch: int):
        self.lanes, self.lane, self.operations, self.seen_N = [lane], lane, operations, seen_N
        self.updates_per_epoch = updates_per_epoch
        self.training = operations[seen_N.nonzero().squeeze(1).to(operations.v_N.device)]
        model, config, stage, accelerator = lane.model.eval(), lane.config, lane.stage, lane.run.accelerator
        rho_N, norm_N = radii(model, self.training, headline(config.view))
        variance_L = lane.take_variances(rho_N, norm_N, self.training.v_N)
        set_mode(model, stage)
        self.loss = StageLoss(config, stage, variance_L, lane.run.device, model.controller)
        forward = StageForward(model, config, stage, self.training)
        self.forward, self.optimizer = accelerator.prepare(forward, lane.optimizer)
        self.trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def step(self, positions: Sequence[Tensor], update: int, epoch: int) -> dict[str, Tensor]:
        (positions_B,) = positions
        config, stage, run = self.lane.config, self.lane.stage, self.lane.run
        noises = {view: noise(config, stage.name, view, update, len(positions_B)) for view in stage.sampled}
        if config.encoder_dropout or config.projection_dropout:
            torch.manual_seed(derive_seed(config.seed, "dropout", stage.name, update, run.rank))
        own = positions_B[run.rank :: run.world].to(run.device)
        noises = {view: noise_BD[run.rank :: run.world].to(run.device) for view, noise_BD in noises.items()}
        rows = self.forward(self.training[own], own, noises)
        rows = {name: gather_rows(row_N, len(positions_B), run.accelerator) for name, row_N in rows.items()}
        parts = self.loss(rows, self.training[positions_B.to(run.device)], update, epoch)
        lr = stage.rate(update, self.updates_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        self.optimizer.zero_grad()
        # Each process's gradient is of its own rows; DDP takes the mean over processes, the batch's is the sum.
        run.backward(total(parts) * run.world, stage.rate_field)
        if run.world > 1:
            # But the controller sees the whole batch in every process.
            for name, parameter in self.trained.items():
                if name.startswith("controller.") and parameter.grad is not None:
                    parameter.grad /= run.world
        if config.grad_clip is not None:
            run.accelerator.clip_grad_norm_(list(self.trained.values()), config.grad_clip)
        self.optimizer.step()
        return {name: value.detach().double()[None] for name, value in parts.items()}

    def measure(self, s: int) -> dict[str, Any]:
        """Coverage; the order of the radii only where projections are trained."""
        model, stage = self.lane.model.eval(), self.lane.stage
        codes: Codes = {}
        right_N = reconstruct(model, self.operations, codes=codes)
        found: dict[str, Any] = {"coverage": float(right_N.double().mean())}
        if not bool(self.seen_N.all()):
            found["coverage_seen"] = float(right_N[self.seen_N].double().mean())
            found["coverage_unseen"] = float(right_N[~self.seen_N].double().mean())
        if stage.name != "coverage":
            found |= order_metrics(model, self.operations, headline(self.lane.config.view), codes)
        set_mode(model, stage)
        return found

    def put_back(self, s: int) -> None:
        """They are what is trained."""

    def keep(self, left: Sequence[int]) -> None:
        raise AssertionError("of one lane there is no part")


def gather_rows(row_N: Tensor, rows: int, accelerator: Any) -> Tensor:
    """The whole batch's rows from each process's part, in the batch's order; gradients flow into the own part only."""
    world, rank = accelerator.num_processes, accelerator.process_index
    if world == 1:
        return row_N
    most = -(-rows // world)
    padded = row_N.new_zeros(most, *row_N.shape[1:])
    padded[: len(row_N)] = row_N.detach()
    parts: Tensor = accelerator.gather(padded)
    whole = parts.unflatten(0, (world, most)).transpose(0, 1).flatten(0, 1)[:rows].clone()
    whole[rank::world] = row_N
    return whole


def create_optimizer(trained: Mapping[str, nn.Parameter], config: TrainConfig, stage: Stage) -> torch.optim.AdamW:
    """AdamW with one group per part of the model; `factor` is the part's own on the learning rate."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        groups.setdefault(name.partition(".")[0], []).append(parameter)
    listed = [{"params": group, "factor": stage.rate_factors.get(part, 1.0)} for part, group in groups.items()]
    return torch.optim.AdamW(listed, lr=config.lr, weight_decay=config.weight_decay)
