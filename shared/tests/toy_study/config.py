"""Settings of one fit, and of many: each field is a flag that says its bounds."""

from dataclasses import dataclass, field
from typing import Any

from studycore.bounds import BelowOne, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, check_bounds


@dataclass(frozen=True)
class Config:
    lr: PositiveFloat = 0.05
    momentum: BelowOne = 0.5
    steps: PositiveInt = 60
    checkpoint_every: PositiveInt = 20
    pause: NonNegativeFloat = 0.0  # seconds after each update, for tests that kill
    seed: NonNegativeInt = 1
    __post_init__ = check_bounds


@dataclass(frozen=True)
class Sweep:
    base: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: PositiveInt = 1
    __post_init__ = check_bounds
