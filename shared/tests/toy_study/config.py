"""Settings of one fit, and of many."""

from dataclasses import dataclass, field
from typing import Any

from studycore.bounds import BelowOne, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, check_bounds


@dataclass(frozen=True)
class Config:
    steps: PositiveInt = 60
    stages: PositiveInt = 1
    """Loops over the steps, each with an optimizer of its own."""
    lr: PositiveFloat = 0.02
    momentum: BelowOne = 0.9
    scale: PositiveFloat = 2.0
    """A factor that no tensor shows."""
    width: PositiveInt = 3
    eval_every: PositiveInt = 5
    checkpoint_every: PositiveInt = 20
    pause: NonNegativeFloat = 0.0
    """Seconds between steps."""
    seed: NonNegativeInt = 1
    __post_init__ = check_bounds


@dataclass(frozen=True)
class Sweep:
    base: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    goes_on_from: dict[str, str] = field(default_factory=dict)
    """Arms that begin with the weights of another arm's run of the same seed."""
    together: bool = False
    seeds: PositiveInt = 1
    __post_init__ = check_bounds
