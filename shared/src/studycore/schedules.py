"""Shares of a learning rate, or of a loss's weight, as functions of the step. No torch."""

import math


def warm_up(step: int, steps: int) -> float:
    """Linear: 1 / steps at step 0, 1 from the last of them on; 1 throughout where there are none."""
    return min(1.0, (step + 1) / steps) if steps else 1.0


def cosine(progress: float, floor: float = 0.0) -> float:
    """From 1 at progress 0 to the floor at 1 (Loshchilov and Hutter 2017, equation 5, without restarts)."""
    return floor + (1 - floor) / 2 * (1 + math.cos(math.pi * min(1.0, progress)))
