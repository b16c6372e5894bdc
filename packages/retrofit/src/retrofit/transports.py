"""Gradient-less transports (GLT): changes of weights between updates.

The original study's normalises rows and columns and changes the function; folds and permutations leave the function as it
is, exactly, and take the optimizer's moments along. Each is a plain function for a training loop of one's own.

Shapes: D the model's width, F the feed-forward width.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retrofit.blocks import FeedForward, Part, experts_of, weights_by_role
from retrofit.config import ROLES

FIRST_MOMENTS = ("exp_avg", "momentum_buffer")
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq")


@dataclass(frozen=True)
class Move:
    """A linear change of coordinates: a part's values times `factor`, or reordered by `index` along `dim`, as it lies [O, I].

    Gradients go by the inverse factor, so first moments are divided by it, second moments by its square.
    """

    part: Part
    factor: Tensor | None = None
    index: Tensor | None = None
    dim: int = 0


@torch.no_grad()
def apply_moves(moves: Sequence[Move], optimizer: Any = None) -> None:
    """Changes the parameters and, where there is an optimizer, its moments with the same map."""
    for move in moves:
        state = optimizer.state.get(move.part.parameter, {}) if optimizer is not None else {}
        powers = {**dict.fromkeys(FIRST_MOMENTS, -1), **dict.fromkeys(SECOND_MOMENTS, -2)}
        moments = {name: move.part.of(state[name]) for name in powers if state.get(name) is not None}
        if move.index is not None:
            for tensor in (move.part.values, *moments.values()):
                tensor.copy_(tensor.index_select(move.dim, move.index))
        if move.factor is not None:
            _scale(move.part.values, move.factor)
            for name, tensor in moments.items():
                _scale(tensor, move.factor ** powers[name])


def _scale(tensor: Tensor, factor: Tensor) -> None:
    """In float64, rounded once (mps: in float32)."""
    wide = torch.float32 if tensor.device.type == "mps" else torch.float64
    tensor.copy_((tensor.to(wide) * factor.to(wide)).to(tensor.dtype))


@torch.no_grad()
def glt_matrix(w: Tensor, eps: float = 1e-8) -> Tensor:
    """The original study's step on one matrix: each row to norm 1, then each column, then its Frobenius norm as before."""
    norm = w.norm()
    out = w / (w.norm(dim=1, keepdim=True) + eps)
    out = out / (out.norm(dim=0, keepdim=True) + eps)
    return out * (norm / (out.norm() + eps))


@torch.no_grad()
def gradient_less_transport(model: Any, roles: Collection[str] | None = None) -> None:
    """The original study's GLT on every 2-D weight: embeddings, attention, feed-forward. The optimizer is left alone.

    A tied weight is visited once per module that uses it, twice in a model with tied embeddings. The experts of a mixture
    are matrices of their own. With `roles` (those of blocks.weights_by_role) only the weights of these; gate and up
    projections that are stored as one matrix are one, of role up.
    """
    role_of: dict[int, str] = {}
    for role in ROLES:
        for known in weights_by_role(model).get(role, []):
            role_of.setdefault(id(known.parameter), role)
    parts = [
        Part(module.weight, transposed=type(module).__name__ == "Conv1D")
        for module in model.modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.ndim == 2
    ]
    experts = [block for name, module in model.named_modules() for block in experts_of(name, module)]
    for part in (*parts, *(p.weight for block in experts for p in block.projections)):
        if roles is None or role_of.get(id(part.parameter), "other") in roles:
            part.values.copy_(glt_matrix(part.values))


@torch.no_grad()
def glt_ffn(blocks: Sequence[FeedForward]) -> None:
    """The same step on the up projections alone."""
    for block in blocks:
        block.up.weight_OI.copy_(glt_matrix(block.up.weight_OI))


def fold_moves(block: FeedForward) -> list[Move]:
    """Equal column norms of the up projection (and gate, together), the scales folded into the norm before it.

    up(g x + b) = (up / s)(s g x + s b). In a gated block down(act(gate) * up) the rows of up get equal norms too, and the
    columns of down take their scales. Frobenius norms of what is normalised stay.
    """
    if block.norm is None:
        raise ValueError(f"{block.name}: no norm feeds this block alone, so nothing can be folded")
    readers = [block.up, *([block.gate] if block.gate else [])]
    s_D = _relative_norms(torch.cat([_wide(p.weight_OI) for p in readers]), dim=0)
    moves = [Move(p.weight, 1 / s_D[None, :]) for p in readers]
    moves.append(Move(Part(block.norm.weight), s_D))  # type: ignore[arg-type]
    bias = getattr(block.norm, "bias", None)
    if bias is not None:
        moves.append(Move(Part(bias), s_D))
    if block.gate is not None:
        r_F = _relative_norms(_wide(block.up.weight_OI) / s_D, dim=1)
        moves.append(Move(block.up.weight, 1 / r_F[:, None]))
        if block.up.bias is not None:
            moves.append(Move(block.up.bias, 1 / r_F))
        moves.append(Move(block.down.weight, r_F[None, :]))
    return moves


def _wide(x: Tensor) -> Tensor:
    return x.detach().to(torch.float32 if x.device.type == "mps" else torch.float64)


def _relative_norms(w: Tensor, dim: int) -> Tensor:
    """Norms along `dim` over their root mean square; 1 where a row or column is zero."""
    norms = w.norm(dim=dim)
    scale = norms / norms.square().mean().sqrt().clamp_min(1e-300 if norms.dtype == torch.float64 else 1e-30)
    return torch.where(norms > 0, scale, torch.ones_like(scale))


def glt_fold(blocks: Sequence[FeedForward], optimizer: Any = None) -> None:
    """The function-preserving transport of every block."""
    for block in blocks:
        apply_moves(fold_moves(block), optimizer)


def permutation_moves(block: FeedForward, order_F: Tensor) -> list[Move]:
    """Hidden units in another order: rows of up (and gate), columns of down, by the same index."""
    moves = []
    for projection in [block.up, *([block.gate] if block.gate else [])]:
        moves.append(Move(projection.weight, index=order_F, dim=0))
        if projection.bias is not None:
            moves.append(Move(projection.bias, index=order_F))
    moves.append(Move(block.down.weight, index=order_F, dim=1))
    return moves


def glt_permute(blocks: Sequence[FeedForward], draw: Callable[[int, int], Tensor], optimizer: Any = None) -> None:
    """The null transport: function, spectra and Adam's trajectory stay. `draw(layer, F)` gives the order."""
    for layer, block in enumerate(blocks):
        order_F = draw(layer, block.up.weight_OI.shape[0]).to(block.up.weight.parameter.device)
        apply_moves(permutation_moves(block, order_F), optimizer)
