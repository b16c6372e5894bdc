"""What arrives of a token's embedding: functions from token types to rows, one per arm.

Shapes: U token types that are asked for, V of the table, K dimensions of a code, D of an embedding.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from latentwire_adapter.model.adapter import Adapter
from latentwire_adapter.model.compressor import EmbeddingCompressor

Rows = Callable[[Tensor], Tensor]
"""ids_U -> rows_UD, float32."""
HALF = 16
"""Bits a dimension of a code that is not quantised: the ledger counts them, so the receiver has no more."""


def raw(table_VD: Tensor) -> Rows:
    """The rows themselves."""
    return lambda ids_U: table_VD[ids_U].float()


def received(compressor: EmbeddingCompressor, rows_UD: Tensor, bits: int | None) -> Tensor:
    """z_UK of the rows as it arrives in `bits` bits a dimension: 16 are a half-precision number, fewer are steps of each
    code's own size; None: not rounded at all."""
    z_UK = compressor.compress(rows_UD.float())
    if bits is None:
        return z_UK
    return z_UK.half().float() if bits == HALF else dequantise(*quantise(z_UK, bits))


def linear(table_VD: Tensor, compressor: EmbeddingCompressor) -> Rows:
    """The linear inverse of the code."""
    return lambda ids_U: compressor.decompress(received(compressor, table_VD[ids_U], HALF))


@torch.no_grad()
def nearest_types(table_VD: Tensor, compressor: EmbeddingCompressor, z_UK: Tensor, block: int = 4096) -> Tensor:
    """ids_U of the table's rows whose codes are nearest; of equal ones the first."""
    best_U = torch.full((len(z_UK),), torch.inf, device=z_UK.device)
    ids_U = torch.zeros(len(z_UK), dtype=torch.int64, device=z_UK.device)
    for start in range(0, len(table_VD), block):
        codes_BK = compressor.compress(table_VD[start : start + block].float())
        # |z - c|^2 without |z|^2, which is the same for all rows
        distance_UB = (codes_BK * codes_BK).sum(1) - 2 * z_UK @ codes_BK.T
        found_U, index_U = distance_UB.min(1)
        closer_U = found_U < best_U
        best_U = torch.where(closer_U, found_U, best_U)
        ids_U = torch.where(closer_U, index_U + start, ids_U)
    return ids_U


def nearest(table_VD: Tensor, compressor: EmbeddingCompressor, bits: int = HALF) -> Rows:
    """The row of the receiver's own table whose code is nearest to the one that arrived in `bits` bits a dimension."""

    def rows(ids_U: Tensor) -> Tensor:
        nearest_U = nearest_types(table_VD, compressor, received(compressor, table_VD[ids_U], bits))
        return table_VD[nearest_U].float()

    return rows


def adapted(table_VD: Tensor, compressor: EmbeddingCompressor, adapter: Adapter, bits: int | None = HALF) -> Rows:
    """What the adapter makes of the code that arrived in `bits` bits a dimension; None: of the code itself."""

    @torch.no_grad()
    def rows(ids_U: Tensor) -> Tensor:
        return adapter(received(compressor, table_VD[ids_U], bits))

    return rows


def quantise(z_UK: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(codes_UK as whole numbers, scale_U): each token's code in steps of its largest entry over 2^(bits-1) - 1.

    The scale is a side channel of its own, 16 bits a token.
    """
    top = 2 ** (bits - 1) - 1
    scale_U = (z_UK.abs().amax(1) / top).clamp(min=torch.finfo(torch.float32).tiny).half().float()
    scale_U = scale_U.clamp(min=2.0**-24)  # the smallest that 16 bits hold
    return (z_UK / scale_U[:, None]).round().clamp(-top, top).to(torch.int8), scale_U


def dequantise(codes_UK: Tensor, scale_U: Tensor) -> Tensor:
    """z_UK as the receiver has it."""
    return codes_UK.float() * scale_U[:, None]


class Table:
    """Rows of the token types of some prompts, made once: rows are then only looked up."""

    def __init__(self, ids: Tensor, rows: Rows):
        self.ids_U = torch.unique(ids)
        self.rows_UD = rows(self.ids_U)

    def __call__(self, ids: Tensor) -> Tensor:
        """Rows of ids of any shape, all of them among those that the table was made of."""
        place = torch.searchsorted(self.ids_U, ids)
        return self.rows_UD[place]
