"""What an arm can do to a model while it trains. A new idea is one file here: a subclass of Arm, made as `ARM`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from retrofit.blocks import FeedForward
from retrofit.config import RunConfig


@dataclass(frozen=True)
class StepState:
    """What an arm is given at one step."""

    model: Any
    blocks: Sequence[FeedForward]
    optimizer: Any
    """torch's own, whose state holds the moments."""
    config: RunConfig
    step: int
    """Updates made so far."""
    reference: Mapping[int, Sequence[float]] | None = None
    """norm_matched: Frobenius norms of the up projections of another run, by updates made."""


class Arm:
    """Does nothing at all: the control."""

    summary = ""
    """What it does, in a few words."""
    transports = False
    """Whether it has a transport, every glt_interval updates."""

    def penalty(self, state: StepState) -> tuple[Tensor, list[tuple[nn.Parameter, Tensor]]] | None:
        """The penalty's value and what it adds to gradients, once per update; None: no penalty."""
        return None

    def transport(self, state: StepState) -> None:
        """Changes the weights between two updates."""

    def after_update(self, state: StepState) -> None:
        """Called right after each update."""
