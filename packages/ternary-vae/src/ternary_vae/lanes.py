"""One run of a training (`Lane`), and its whole model while a stage trains it (`WholeModel`).

Runs that train no more than radius nets have stacked.StackedRadii instead, with the same methods.

Shapes: N operations, B those of a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from studycore.run import Run
from studycore.streams import derive_seed
from ternary_vae.config import TrainConfig
from ternary_vae.data import Operations
from ternary_vae.forward import StageForward, gather_rows, noise, set_mode, set_trained
from ternary_vae.losses import StageLoss, first_variances
from ternary_vae.metrics.evaluate import Codes, headline, radii, reconstruct
from ternary_vae.metrics.radii import radius_metrics
from ternary_vae.model import TernaryVAE
from ternary_vae.optimizers import create_optimizer
from ternary_vae.stages import Stage

CHOSEN_BY = ("hierarchy", "min_level_gap")
"""Of radii, what the best checkpoint is chosen by."""


@dataclass
class Lane:
    """One run of a training: alone, or beside others of its shape."""

    run: Run
    config: TrainConfig
    model: TernaryVAE
    stages: tuple[Stage, ...]
    stage: Stage = field(init=False)
    """The one that the run is in."""
    optimizer: torch.optim.AdamW = field(init=False)
    """With the state of the checkpoint, where the stage goes on from one."""
    epochs: Iterator[int] = field(init=False)
    """The stage's loop: every epoch's index, and the last for evaluating and saving alone."""
    variances: list[float] = field(init=False)
    """Of the radius within each level when the stage began."""

    def enter(self, number: int, per_epoch: int) -> None:
        """Begins or goes on with a stage: its trained parameters, its optimizer, and its loop with `per_epoch` updates an
        epoch."""
        self.stage = stage = self.stages[number]
        trained = set_trained(self.model, self.config, stage)
        self.optimizer = self.run.optimizer(create_optimizer(trained, self.config, stage))
        self.epochs = self.run.steps(
            stage.epochs, loop=stage.name, unit="epoch", updates=per_epoch, more=not stage.is_last
        )

    def take_variances(self, rho_N: Tensor, norm_N: Tensor, v_N: Tensor) -> Tensor:
        """The variances [L] of these radii of the training operations, or those that the stage began with."""
        r_N = rho_N if self.config.radius == "hyperbolic" else norm_N
        stored = self.run.state.get("variances")
        self.variances = stored or first_variances(r_N, v_N.cpu(), self.config.trits).tolist()
        return torch.tensor(self.variances, dtype=torch.float64)


class WholeModel:
    """One run's whole model, in any stage, over one process or several.

    The rows of several processes are gathered before the loss is made, so that losses of whole batches (level means,
    extremes) are those of one process.
    """

    def __init__(self, lane: Lane, operations: Operations, seen_N: Tensor):
        self.lane, self.operations, self.seen_N = lane, operations, seen_N
        self.v_N = operations.v_N.cpu().numpy()
        self.training = operations[seen_N.nonzero().squeeze(1).to(operations.v_N.device)]
        model, config, stage, accelerator = lane.model.eval(), lane.config, lane.stage, lane.run.accelerator
        rho_N, norm_N = radii(model, self.training, headline(config.view))
        variance_L = lane.take_variances(rho_N, norm_N, self.training.v_N)
        set_mode(model, stage)
        self.loss = StageLoss(config, stage, variance_L, lane.run.device, model.controller)
        forward = StageForward(model, config, stage, self.training)
        self.forward, self.optimizer = accelerator.prepare(forward, lane.optimizer)
        self.trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def terms(self, positions: Sequence[Tensor], update: int, epoch: int) -> dict[str, Tensor]:
        """The loss's terms [1] on the training operations at the one batch's positions, the same in every process."""
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
        return {name: part[None] for name, part in parts.items()}

    def backward(self, loss: Tensor) -> None:
        """Adds the loss's gradients. UserError for a loss that is not finite."""
        run = self.lane.run
        # Each process's gradient is of its own rows; DDP takes the mean over processes, the batch's is the sum.
        run.backward(loss * run.world, self.lane.stage.rate_field)
        if run.world > 1:
            # But the controller sees the whole batch in every process.
            for name, parameter in self.trained.items():
                if name.startswith("controller.") and parameter.grad is not None:
                    parameter.grad /= run.world

    def clip_gradients(self, largest: float) -> None:
        """Scales the gradient down to this norm, where it is larger."""
        self.lane.run.accelerator.clip_grad_norm_(list(self.trained.values()), largest)

    def set_rates(self, rates: Sequence[float]) -> None:
        """The one lane's learning rate for the next update."""
        for group in self.optimizer.param_groups:
            group["lr"] = rates[0] * group["factor"]

    def measure(self, s: int) -> dict[str, Any]:
        """Coverage; the order of the radii only where projections are trained. Nothing of the training changes."""
        model, stage = self.lane.model.eval(), self.lane.stage
        codes: Codes = {}
        right_N = reconstruct(model, self.operations, codes=codes)
        metrics: dict[str, Any] = {"coverage": float(right_N.double().mean())}
        if not bool(self.seen_N.all()):
            metrics["coverage_seen"] = float(right_N[self.seen_N].double().mean())
            metrics["coverage_unseen"] = float(right_N[~self.seen_N].double().mean())
        if stage.views:
            view, seen = headline(self.lane.config.view), self.seen_N.numpy()
            rho_N, norm_N = (r_N.numpy() for r_N in radii(model, self.operations, view, codes))
            metrics |= radius_metrics(self.v_N, norm_N, rho_N)
            if not bool(self.seen_N.all()):
                # The best checkpoint is chosen by what training may know.
                own = radius_metrics(self.v_N[seen], norm_N[seen], rho_N[seen])
                metrics |= {f"{name}_seen": own[name] for name in CHOSEN_BY if name in own}
        set_mode(model, stage)
        return metrics

    def write_back(self, s: int) -> None:
        """The one lane's model and optimizer are what is trained: there is nothing to copy."""

    def keep(self, left: Sequence[int]) -> None:
        raise AssertionError("of one lane there is no part")
