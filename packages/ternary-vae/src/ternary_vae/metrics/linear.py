"""The linear baseline of held-out operations: principal components of the operations that training sees.

Trits are a vector of M numbers, so that M + 1 operations in general position span all of them: with M dimensions or more
the baseline restores every unseen operation, and coverage of the unseen says nothing of a network. With fewer it cannot.

Shapes: N operations, M trits, K dimensions.
"""

import torch
from torch import Tensor


def linear_right(x_NM: Tensor, seen_N: Tensor, dimensions: int) -> Tensor:
    """Which operations [N] come back right from the first K principal components of the seen ones, rounded to trits."""
    x_NM = x_NM.double()
    mean_M = x_NM[seen_N].mean(0)
    axes_MM = torch.linalg.svd(x_NM[seen_N] - mean_M, full_matrices=False)[2]
    axes_KM = axes_MM[: min(dimensions, x_NM.shape[1])]
    restored_NM = (x_NM - mean_M) @ axes_KM.T @ axes_KM + mean_M
    return (restored_NM.round().clamp(-1, 1) == x_NM).all(-1)
