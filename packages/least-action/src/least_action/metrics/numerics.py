"""Numerical health of training: precision loss in the softmax, the scale of the logits, slingshots.

Shapes: N samples, P classes, S recorded steps.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def softmax_collapse(logits_NP: Tensor, dtype: torch.dtype) -> float:
    """Share of samples whose sum of exp(z - max z) is exactly 1 in `dtype`.

    There every class but the largest has vanished from the sum, so a correctly classified sample's cross entropy
    computed in `dtype` is exactly 0 and no gradient pushes its logits apart, although the true one is positive.
    Prieto et al. 2025 (arXiv:2501.04697), "softmax collapse". Labels aren't looked at: a misclassified sample that
    collapses still has a gradient.
    """
    z_NP = logits_NP.detach().to(dtype)
    sums_N = (z_NP - z_NP.amax(dim=-1, keepdim=True)).exp().sum(dim=-1)
    return float((sums_N == 1).double().mean())


def logit_scale(logits_NP: Tensor) -> float:
    """Root mean square of the logits after removal of each sample's mean over classes, which the softmax ignores."""
    z_NP = logits_NP.detach().double()
    return float((z_NP - z_NP.mean(dim=-1, keepdim=True)).square().mean().sqrt())


def find_slingshots(
    loss_series: Sequence[float] | np.ndarray | Tensor, window: int, factor: float = 10.0, floor: float = 1e-8
) -> list[int]:
    """Indices at which the training loss starts to stand at least `factor` above its recent minimum.

    The reference of step s is the smallest of the `window` recorded losses before it. One event per excursion: after
    an event, the next one can only come once the loss has been below sqrt(factor) times its reference, so a loss
    that trembles around the threshold counts once. Losses below `floor` count as `floor`: a saturated loss flickers
    between 0 and rounding errors. Slingshots: Thilak et al. 2022 (arXiv:2206.04817). A loss that isn't a number is
    an error (ValueError), and so are window < 1, factor <= 1 and floor <= 0.
    """
    if window < 1 or factor <= 1 or floor <= 0:
        raise ValueError(f"window {window} must be >= 1, factor {factor} > 1 and floor {floor} > 0")
    losses_S = np.maximum(np.asarray(loss_series, dtype=np.float64), floor)
    if np.isnan(losses_S).any():
        raise ValueError(f"loss_series: not a number at index {int(np.isnan(losses_S).argmax())}")
    padded = np.concatenate([np.full(window, np.inf), losses_S])
    minimum_S = np.lib.stride_tricks.sliding_window_view(padded, window)[: len(losses_S)].min(axis=1)
    events, in_excursion = [], False
    for step, (loss, minimum) in enumerate(zip(losses_S, minimum_S, strict=True)):
        if in_excursion:
            in_excursion = loss >= math.sqrt(factor) * minimum
        elif loss >= factor * minimum:
            events.append(step)
            in_excursion = True
    return events
