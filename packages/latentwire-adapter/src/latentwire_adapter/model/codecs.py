"""What arrives of a token's embedding: functions from token types to rows, one per arm.

Shapes: U token types that are asked for, V of the table, K dimensions of a code, D of an embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentwire_adapter.model.adapter import Adapter
from latentwire_adapter.model.compressor import EmbeddingCompressor

Rows = Callable[[Tensor], Tensor]
"""ids_U -> rows_UD, float32."""
HALF = 16
"""Bits a dimension of a code that is not quantised: the ledger counts them, so the receiver has no more."""


@dataclass(frozen=True)
class Codec:
    """What is sent for token types, and what the receiver makes of it: two steps, so that each can be timed."""

    encode: Callable[[Tensor], Any]
    """ids_U -> what arrives."""
    decode: Callable[[Any], Tensor]
    """What arrived -> rows_UD, float32."""

    @torch.no_grad()
    def __call__(self, ids_U: Tensor) -> Tensor:
        """rows_UD."""
        return self.decode(self.encode(ids_U))


def raw(table_VD: Tensor) -> Codec:
    """The rows themselves."""
    return Codec(lambda ids_U: table_VD[ids_U], lambda rows_UD: rows_UD.float())


def received(compressor: EmbeddingCompressor, rows_UD: Tensor, bits: int | None) -> Tensor:
    """z_UK of the rows as it arrives in `bits` bits a dimension: 16 are a half-precision number, fewer are steps of each
    code's own size; None: not rounded at all."""
    z_UK = compressor.compress(rows_UD.float())
    if bits is None:
        return z_UK
    return z_UK.half().float() if bits == HALF else dequantise(*quantise(z_UK, bits))


def linear(table_VD: Tensor, compressor: EmbeddingCompressor) -> Codec:
    """The linear inverse of the code."""
    return Codec(lambda ids_U: received(compressor, table_VD[ids_U], HALF), compressor.decompress)


@torch.no_grad()
def nearest_types(codes_VK: Tensor, z_UK: Tensor, block: int = 4096) -> Tensor:
    """ids_U of the nearest of the codes; of equal ones the first. In float64: two rows may have the same whole numbers and
    scales that differ in the last of their 16 bits, and float32 would not tell such codes apart."""
    z_UK = z_UK.double()
    best_U = torch.full((len(z_UK),), torch.inf, dtype=torch.float64, device=z_UK.device)
    ids_U = torch.zeros(len(z_UK), dtype=torch.int64, device=z_UK.device)
    for start in range(0, len(codes_VK), block):
        codes_BK = codes_VK[start : start + block].double()
        # |z - c|^2 without |z|^2, which is the same for all rows
        distance_UB = (codes_BK * codes_BK).sum(1) - 2 * z_UK @ codes_BK.T
        found_U, index_U = distance_UB.min(1)
        closer_U = found_U < best_U
        best_U = torch.where(closer_U, found_U, best_U)
        ids_U = torch.where(closer_U, index_U + start, ids_U)
    return ids_U


def nearest(table_VD: Tensor, compressor: EmbeddingCompressor, bits: int = HALF) -> Codec:
    """The row of the receiver's own table whose code is nearest to the one that arrived in `bits` bits a dimension.

    The receiver rounds the codes of its table as the sender rounds what it sends: a code that arrives undamaged is its own
    row's, and only rows that share one code are confused.
    """
    held: list[Tensor] = []

    def decode(z_UK: Tensor) -> Tensor:
        if not held:  # the coded table is what the receiver keeps: it is made once
            held.append(torch.cat([received(compressor, rows_BD, bits) for rows_BD in table_VD.split(8192)]))
        return table_VD[nearest_types(held[0], z_UK)].float()

    return Codec(lambda ids_U: received(compressor, table_VD[ids_U], bits), decode)


def adapted(table_VD: Tensor, compressor: EmbeddingCompressor, adapter: Adapter, bits: int | None = HALF) -> Codec:
    """What the adapter makes of the code that arrived in `bits` bits a dimension; None: of the code itself."""
    return Codec(lambda ids_U: received(compressor, table_VD[ids_U], bits), adapter)


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
