"""The finite input set, exploited: activations with one row per distinct input that they depend on.

A sequence [a, op, b, =] has p^2 values, but before any attention each position has only p (a, b) or one (op, =),
and under the causal mask positions 0 and 1 never depend on b. Computing those rows once and looking them up per
pair leaves the function unchanged and removes most of the arithmetic: a step of L blocks on N pairs costs
(2L - 1) N rows instead of 4 L N (and position-0 and -1 tables of p rows).

Kinds of dependence: "const" (one row), "a" and "b" (p rows each), "pair" (N rows).
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


def join(*kinds: str) -> str:
    """What a function of inputs of these kinds depends on."""
    distinct = set(kinds) - {"const"}
    if not distinct:
        return "const"
    return distinct.pop() if len(distinct) == 1 else "pair"


@dataclass(frozen=True)
class Rows:
    """`x` [rows, ...] with one row per value of what `kind` names."""

    x: Tensor
    kind: str


class PairIndex:
    """Looks up rows of tables for N pairs (a, b). Each lookup is kept for the life of the object (one forward pass)."""

    def __init__(self, a_N: Tensor, b_N: Tensor):
        self.index = {"a": a_N, "b": b_N}
        self._kept: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def lift(self, rows: Rows, kind: str) -> Tensor:
        """The rows of `rows` for each value of `kind`; "const" broadcasts and stays one row."""
        if rows.kind in (kind, "const"):
            return rows.x
        if kind != "pair":
            raise ValueError(f"rows that depend on '{rows.kind}' can't be a function of '{kind}'")
        key = (id(rows.x), rows.kind)
        if key not in self._kept:
            flat = rows.x.reshape(rows.x.shape[0], -1)
            lifted = F.embedding(self.index[rows.kind], flat)
            # The source tensor is kept too, so that its id can't be given to another one.
            self._kept[key] = (rows.x, lifted.reshape(-1, *rows.x.shape[1:]))
        return self._kept[key][1]
