"""One update of an autoencoder: rates, loss, gradients, optimizer, and what keeps decoders and counters as they should be.

The training makes it at each step; a dry run times it. What it draws is a function of (seed, step).

Shapes: B batch, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from polytope_hsae.arms import Stage
from polytope_hsae.config import TrainConfig
from polytope_hsae.losses import Weights, total_loss
from polytope_hsae.teacher import Teacher
from studycore.schedules import cosine, warm_up
from studycore.streams import generator


class Objective(nn.Module):
    """The loss of a batch as a forward pass, so that several processes average its gradients."""

    def __init__(self, model: Any, config: TrainConfig, teacher: Teacher | None, device: str, accelerator: Any = None):
        """`accelerator`: of several processes that share a batch; None for one."""
        super().__init__()
        self.accelerator = accelerator
        self.model, self.config = model, config
        self.metric_DD = None if teacher is None else teacher.metric_DD.to(device)
        self.taught = 0 if teacher is None else len(teacher.parents_PD)  # of random_staged: as many as the teacher has

    def forward(self, x_BD: Tensor, weights: Weights, chosen: Tensor) -> tuple[Tensor, dict[str, Tensor], Any]:
        dead = tuple(counter > self.config.dead_after_tokens for counter in self.model.counters())
        output = self.model.train_forward(x_BD, dead)
        share = None if self.accelerator is None else partial(self.accelerator.reduce, reduction="mean")
        loss, parts = total_loss(
            self.model, x_BD, output, self.config, weights, chosen, self.metric_DD, self.taught, share
        )
        if self.accelerator is not None:
            # A parameter that is not in the loss would stop several processes; its gradient is zero.
            loss = loss + 0.0 * torch.stack([q.flatten()[0] for q in self.model.parameters()]).sum()
        return loss, parts, output.codes


def create_optimizer(model: Any, config: TrainConfig, stage: Stage) -> torch.optim.Optimizer:
    """AdamW; weight decay is for encoders alone, decoders have unit rows."""
    decoders = {id(matrix) for matrix in model.decoders()}
    matrices = [q for q in model.parameters() if q.dim() > 1]
    groups = [
        {"params": [q for q in matrices if id(q) not in decoders], "lr_factor": stage.lr_factor, "weight_decay": config.weight_decay},
        {"params": [q for q in matrices if id(q) in decoders], "lr_factor": stage.lr_factor * stage.decoder_lr_factor, "weight_decay": 0.0},
        {"params": [q for q in model.parameters() if q.dim() <= 1], "lr_factor": stage.lr_factor, "weight_decay": 0.0},
    ]  # fmt: skip
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def schedule(step: int, config: TrainConfig) -> float:
    """Share of the learning rate at a step: warm-up, then constant or cosine to a tenth."""
    warm = warm_up(step, config.lr_warmup_steps)
    if config.lr_schedule == "constant":
        return warm
    return warm * cosine(step / config.total_steps, 0.1)


@dataclass(frozen=True)
class Learner:
    """An autoencoder in training, in one stage."""

    model: Any
    objective: Any
    """Its Objective, as Accelerate has prepared it."""
    optimizer: Any
    """As Accelerate has prepared it."""
    accelerator: Any
    backward: Callable[[Tensor], None]
    """Adds the gradients of a loss."""


def update(learner: Learner, config: TrainConfig, stage: Stage, step: int, x_BD: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """(loss, its parts) of this process's activations, as they are, after one update; `step` is counted over all stages."""
    model, optimizer = learner.model, learner.optimizer
    for group in optimizer.param_groups:
        group["lr"] = config.lr * group["lr_factor"] * schedule(step, config)
    l1 = warm_up(step, config.l1_warmup_steps)
    # The model is of unit-scale activations, so that settings carry over from one language model to another.
    x_BD = x_BD.to(model.bias.device) * model.config.input_scale
    # Biorthogonality compares every latent with every other: a sample of the parents keeps its cost from growing
    # with their square, and is drawn anew at each step, alike in every process.
    chosen = torch.randperm(model.config.m_top, generator=generator(config.seed, "biorthogonality", step))
    chosen = chosen[: config.biorth_sample].to(model.bias.device)
    loss, parts, codes = learner.objective(x_BD, Weights(stage.beta, l1, stage.causal_ortho), chosen)
    learner.backward(loss)
    frozen = {"nothing": [], "parents": [model.decoder], "all": model.decoders()}[stage.frozen]
    # None and not zero: AdamW passes over what has no gradient, and the norm that is clipped is then of what is trained.
    for matrix in frozen:
        matrix.grad = None
    # Rows of a decoder have length 1, so only the part across them can turn them; Adam's moments would otherwise
    # fill with a part along the rows, which `normalise` takes back.
    model.project_gradients()
    if config.grad_clip is not None:
        learner.accelerator.clip_grad_norm_(model.parameters(), config.grad_clip)
    optimizer.step()
    optimizer.zero_grad()
    # A step along the tangent still leaves the sphere a little. A longer row would let its codes, and with them the
    # sparsity penalty, shrink at no loss of reconstruction.
    model.normalise(frozen)
    count_firing(model, codes, config.batch_size_acts, learner.accelerator)
    return loss.detach(), {name: part.detach() for name, part in parts.items()}


@torch.no_grad()
def count_firing(model: Any, codes: Any, batch: int, accelerator: Any) -> None:
    """Counts the tokens since each latent fired, in all processes."""
    pairs = [(codes.index, codes.value)] + ([(codes.child, codes.child_value)] if codes.child is not None else [])
    for counter, (index, value) in zip(model.counters(), pairs, strict=True):
        fired = torch.zeros(len(counter), device=counter.device)
        fired.index_add_(0, index.flatten(), (value.flatten() > 0).to(fired.dtype))
        if accelerator.num_processes > 1:
            fired = accelerator.reduce(fired, "sum")
        counter += batch
        counter *= fired == 0
