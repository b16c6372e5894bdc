"""Learning rates as functions of the update: no scheduler object, so no state to save."""

import math

from ternary_vae.config import TrainConfig

COVERAGE_WARMUP_STEPS = 100
"""Updates over which the coverage stage's learning rate rises."""


def schedule_factor(config: TrainConfig, epoch: float) -> float:
    """Factor on lr at a (fractional) epoch of the hierarchy stage or of joint training."""
    warm = min(1.0, (epoch + 1 / 16) / config.warmup_epochs) if config.warmup_epochs else 1.0
    if config.scheduler == "step":
        return float(warm * config.step_gamma ** math.floor(epoch / config.step_epochs))
    if config.scheduler == "cosine":
        return float(warm * (1 + math.cos(math.pi * min(1.0, epoch / config.epochs))) / 2)
    return float(warm)


def learning_rate(config: TrainConfig, update: int, updates_per_epoch: int) -> float:
    """The rate of an update of the hierarchy stage or of joint training, before the factors of encoders.

    Cosine and warm-up change with every update, steps with every epoch.
    """
    return config.lr * schedule_factor(config, update / updates_per_epoch)


def coverage_rate(config: TrainConfig, update: int, updates_per_epoch: int) -> float:
    """The rate of an update of the coverage stage."""
    warm = min(1.0, (update + 1) / COVERAGE_WARMUP_STEPS)
    share = min(1.0, update / updates_per_epoch / config.coverage_epochs)
    fall = (1 + math.cos(math.pi * share)) / 2 if config.coverage_scheduler == "cosine" else 1.0
    return config.coverage_lr * warm * fall
