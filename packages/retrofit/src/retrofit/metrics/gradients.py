"""Norms of gradients on the weights of each role: the cross-entropy's beside the penalty's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retrofit.blocks import Part


def norms_by_role(
    by_role: Mapping[str, Sequence[Part]], clipped: Mapping[str, Any], limit: float | None
) -> dict[str, float]:
    """grad_norm_<role>: norm of the cross-entropy's gradient, before clipping, on the weights of each role.

    The gradients that are there are those after clipping, by torch's factor limit / (norm + 1e-6).
    """
    if clipped["grad_norm"] is None:
        return {}
    factor = (clipped["grad_norm"] + 1e-6) / limit if limit is not None and clipped["clipped"] else 1.0
    return {f"grad_norm_{role}": factor * norm for role, norm in role_norms(by_role, lambda p: p.grad).items()}


def role_norms(
    by_role: Mapping[str, Sequence[Part]], gradient_of: Callable[[nn.Parameter], Tensor | None]
) -> dict[str, float]:
    """Norm over the weights of each role that have a gradient other than zero."""
    norms = {}
    for role, weights in by_role.items():
        pairs = [(weight, gradient_of(weight.parameter)) for weight in weights]
        if gradients := [weight.of(gradient) for weight, gradient in pairs if gradient is not None]:
            norms[role] = float(torch.stack(torch._foreach_norm(gradients)).norm())
    return {role: norm for role, norm in norms.items() if norm > 0}
