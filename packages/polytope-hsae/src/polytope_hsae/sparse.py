"""Products of a batch with the few rows of a matrix that each sample selects. Nothing of size batch x rows is built.

Two native kernels do all: embedding_bag (a weighted sum of rows) and its gradient by weights (dot products with rows). The
gradient of the matrix is an embedding_bag too, over samples instead of rows, with the selections sorted by row: Order does
that once a step.

Shapes: B samples, K selected rows of each, F rows, D width, S dimensions of a subspace.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class Order:
    """Selections [B, K] of F rows sorted by row; `spread` gives those of S consecutive rows for each selected one."""

    def __init__(self, index_BK: Tensor, count: int):
        self.index_BK, self.count = index_BK, count
        flat = index_BK.flatten()
        self.position = torch.argsort(flat, stable=True)
        self.sample = self.position // index_BK.shape[1]
        ends = torch.bincount(flat, minlength=count).cumsum(0)
        self.starts = torch.cat([ends.new_zeros(1), ends[:-1]])

    def spread(self, size: int) -> "Order":
        """The order of row * size + 0 .. size - 1, without sorting again."""
        other = object.__new__(Order)
        index = self.index_BK[..., None] * size + torch.arange(size, device=self.index_BK.device)
        other.index_BK, other.count = index.flatten(1), self.count * size
        # Selections of one row follow each other; each of its `size` rows has as many.
        expert = self.index_BK.flatten()[self.position]
        counts = torch.bincount(expert, minlength=self.count)
        rank = torch.arange(len(expert), device=expert.device) - self.starts[expert]
        start = size * self.starts[expert] + rank
        steps = torch.arange(size, device=expert.device)
        place = (start[:, None] + steps * counts[expert][:, None]).flatten()
        other.position = torch.empty_like(place)
        other.position[place] = (self.position[:, None] * size + steps).flatten()
        other.sample = torch.empty_like(place)
        other.sample[place] = self.sample.repeat_interleave(size)
        other.starts = (size * self.starts[:, None] + counts[:, None] * steps).flatten()
        return other


def dots(x_BD: Tensor, rows_FD: Tensor, index_BK: Tensor) -> Tensor:
    """[B, K] products of each sample with its selected rows, without a gradient."""
    batch, k = index_BK.shape
    offsets = torch.arange(0, batch * k, k, device=x_BD.device)
    bag = torch.arange(batch, device=x_BD.device).repeat_interleave(k)
    products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x_BD.contiguous(), rows_FD.detach(), index_BK.flatten(), offsets, bag, 0, -1
    )
    return products.view(batch, k)


def sums(weight_BK: Tensor, rows_FD: Tensor, index_BK: Tensor) -> Tensor:
    """[B, D] sums of each sample's selected rows, without a gradient."""
    return functional.embedding_bag(index_BK, rows_FD.detach(), per_sample_weights=weight_BK.contiguous(), mode="sum")


def _transposed(weight_BK: Tensor, x_BD: Tensor, order: Order) -> Tensor:
    """[F, D] sums over the samples that selected each row."""
    weights = weight_BK.flatten()[order.position]
    return functional.embedding_bag(order.sample, x_BD, order.starts, per_sample_weights=weights, mode="sum")


class _SparseEncode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, rows_FD: Tensor, order: Order) -> Tensor:
        ctx.save_for_backward(x_BD)
        ctx.order = order
        return dots(x_BD, rows_FD, order.index_BK)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        (x_BD,) = ctx.saved_tensors
        return None, _transposed(grads[0].contiguous(), x_BD, ctx.order), None


class _SparseDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_BK: Tensor, rows_FD: Tensor, order: Order) -> Tensor:
        ctx.save_for_backward(weight_BK, rows_FD)
        ctx.order = order
        return sums(weight_BK, rows_FD, order.index_BK)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        weight_BK, rows_FD = ctx.saved_tensors
        grad_BD = grads[0].contiguous()
        by_rows = _transposed(weight_BK, grad_BD, ctx.order) if ctx.needs_input_grad[1] else None
        return dots(grad_BD, rows_FD, ctx.order.index_BK), by_rows, None


def sparse_encode(x_BD: Tensor, rows_FD: Tensor, order: Order) -> Tensor:
    """[B, K] x . row of each selection; differentiable by the rows, not by x."""
    return _SparseEncode.apply(x_BD, rows_FD, order)


def sparse_decode(weight_BK: Tensor, rows_FD: Tensor, order: Order) -> Tensor:
    """[B, D] sum of weight * row over the selections; differentiable by both."""
    return _SparseDecode.apply(weight_BK, rows_FD, order)
