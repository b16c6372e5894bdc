"""Settings of one fit, and of many: each field is a flag that says its bounds."""

from dataclasses import dataclass, field
from typing import Any

from studycore.bounds import BelowOne, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, check_bounds


@dataclass(frozen=True)
class Config:
    lr: PositiveFloat = 0.05
    """Learning rate."""
    momentum: BelowOne = 0.5
    """Share of the last update that is kept."""
    steps: PositiveInt = 60
    """Updates."""
    checkpoint_every: PositiveInt = 20
    """Updates between checkpoints."""
    pause: NonNegativeFloat = 0.0
    """Seconds after each update, for tests that kill."""
    seed: NonNegativeInt = 1
    """Seed of the initial weights and of all points."""
    __post_init__ = check_bounds


@dataclass(frozen=True)
class Sweep:
    base: dict[str, Any] = field(default_factory=dict)
    """Settings of every fit."""
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of an arm -> the settings in which it differs."""
    seeds: PositiveInt = 1
    """Fits of each arm."""
    __post_init__ = check_bounds
