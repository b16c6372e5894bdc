"""What is minimised: the cross-entropy of the next token, and penalties on a weight's Gram matrix from its smaller side.

||W W^T - I_O||^2 = ||W^T W - I_I||^2 + (O - I), and the gradient 4 (W W^T - I) W is the same matrix either way: for a
1536 x 384 weight the small side costs a quarter of the arithmetic and a sixteenth of the memory.

Shapes: I inputs of a projection, O its outputs; N blocks of T tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retrofit.blocks import FeedForward, find_blocks

PenaltyOf = Callable[[Tensor], tuple[Tensor, Tensor]]
"""weight [O, I] -> (value, gradient [O, I])."""


class NextTokenLoss(nn.Module):
    """The model as the training step calls it: mean negative log-likelihood of windows [N, T + 1]."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids_NT: Tensor) -> Tensor:
        logits = self.model(input_ids=ids_NT[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), ids_NT[:, 1:].flatten())


def small_gram(w_OI: Tensor) -> Tensor:
    """W W^T or W^T W, whichever is smaller."""
    return w_OI @ w_OI.T if w_OI.shape[0] <= w_OI.shape[1] else w_OI.T @ w_OI


def times_weight(gram: Tensor, w_OI: Tensor) -> Tensor:
    """G W or W G, from the side that small_gram took, [O, I]."""
    return gram @ w_OI if w_OI.shape[0] <= w_OI.shape[1] else w_OI @ gram


def from_identity(gram: Tensor) -> Tensor:
    """||G - I||_F^2."""
    return (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).square().sum()


def least_penalty(w_OI: Tensor) -> int:
    """O - I for a weight with more outputs than inputs, whose rows cannot all be orthogonal; else 0."""
    return max(w_OI.shape[0] - w_OI.shape[1], 0)


def gram_penalty(w_OI: Tensor) -> Tensor:
    """The original study's ||W W^T - I||_F^2 (soft orthogonality, Bansal et al. 2018), differentiable."""
    return from_identity(small_gram(w_OI)) + least_penalty(w_OI)


def compute_gram_loss(model: Any) -> Tensor:
    """The original study's loss on a model: gram_penalty, mean over the up projections, differentiable; times gram_weight in use."""
    return torch.stack([gram_penalty(block.up.weight_OI) for block in find_blocks(model)]).mean()


def scale_free_penalty(w_OI: Tensor) -> Tensor:
    """||G / (tr G / k) - I||_F^2 on the smaller side: 0 when all singular values are equal, whatever their size."""
    gram = small_gram(w_OI)
    return from_identity(gram / gram.diagonal().mean())


@torch.no_grad()
def gram_penalty_gradient(w_OI: Tensor) -> tuple[Tensor, Tensor]:
    """(value, gradient) of gram_penalty."""
    gram = small_gram(w_OI)
    gram.diagonal().sub_(1)
    return gram.square().sum() + least_penalty(w_OI), times_weight(gram, w_OI).mul_(4)


@torch.no_grad()
def scale_free_penalty_gradient(w_OI: Tensor) -> tuple[Tensor, Tensor]:
    """(value, gradient) of scale_free_penalty: with t = tr G / k it is ||G||^2 / t^2 - k, whose gradient in W is
    4 W (G / t^2 - ||G||^2 / (k t^3) I)."""
    gram = small_gram(w_OI)
    k, scale = len(gram), gram.diagonal().mean()
    total = gram.square().sum()
    inner = gram / scale**2
    inner.diagonal().sub_(total / (k * scale**3))
    return total / scale**2 - k, times_weight(inner, w_OI).mul_(4)


@torch.no_grad()
def penalty_of_blocks(
    blocks: Sequence[FeedForward], weight: float, of: PenaltyOf
) -> tuple[Tensor, list[tuple[nn.Parameter, Tensor]]]:
    """weight * mean over the up projections (the original study leaves the down projections out).

    Returns the value and what to add to each parameter's gradient, once per update. In a loop of one's own:
    `for parameter, gradient in parts: parameter.grad += gradient`.
    """
    share = weight / len(blocks)
    values, parts = [], {}
    for block in blocks:
        value, gradient_OI = of(block.up.weight_OI.float())
        values.append(value)
        parameter = block.up.weight.parameter
        if parameter not in parts:
            parts[parameter] = torch.zeros_like(parameter)
        # Several experts, or up and gate, may lie in one parameter.
        block.up.weight.of(parts[parameter]).add_(gradient_OI, alpha=share)
    return torch.stack(values).sum() * share, list(parts.items())
