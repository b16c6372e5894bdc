"""Learning rates as functions of the update: no scheduler object, so no state to save."""

import math

from studycore.schedules import cosine, warm_up
from ternary_vae.config import TrainConfig

COVERAGE_WARMUP_STEPS = 100
"""Updates over which the coverage stage's learning rate rises."""


def schedule_factor(config: TrainConfig, epoch: float) -> float:
    """Factor on lr at a (fractional) epoch of the hierarchy stage or of joint training."""
    warm = min(1.0, (epoch + 1 / 16) / config.warmup_epochs) if config.warmup_epochs else 1.0
    if config.scheduler == "step":
        return float(warm * config.step_gamma ** math.floor(epoch / config.step_epochs))
    if config.scheduler == "cosine":
        return warm * cosine(epoch / config.epochs)
    return float(warm)


def learning_rate(config: TrainConfig, update: int, updates_per_epoch: int) -> float:
    """The rate of an update of the hierarchy stage or of joint training, before the factors of encoders.

    Cosine and warm-up change with every update, steps with every epoch.
    """
    return config.lr * schedule_factor(config, update / updates_per_epoch)


def coverage_rate(config: TrainConfig, update: int, updates_per_epoch: int) -> float:
    """The rate of an update of the coverage stage."""
    share = update / updates_per_epoch / config.coverage_epochs
    fall = cosine(share) if config.coverage_scheduler == "cosine" else 1.0
    return config.coverage_lr * warm_up(update, COVERAGE_WARMUP_STEPS) * fall
