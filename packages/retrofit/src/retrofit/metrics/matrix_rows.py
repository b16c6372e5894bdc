"""The rows of `measure`: matrices, activations, and their summary; as CSV files, as JSON. No torch."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any, TypeVar, get_type_hints

from retrofit.config import ROLES
from retrofit.legacy.names import with_todays_names
from retrofit.metrics.summaries import (
    enough_tokens,
    few_tokens,
    noise_floor,
)
from studycore.files import read_text, write_atomic

ACTIVATION_METRICS = ("act_kappa_centred", "act_kappa_uncentred", "ff_gram_original", "act_kappa_without_largest")
LEFT_OUT = 3
"""Number of leading directions left out of the second conditioning figure; massive activations occupy about that many."""
MASSIVE = 10.0
"""Times the median over layers of the largest activation: from here on a layer's is called massive."""


@dataclass(frozen=True)
class MatrixRow:
    """One weight matrix; shape is [outputs, inputs]. The kappas and omega of a matrix of lower rank are infinite."""

    name: str
    role: str
    shape: str
    kappa: float
    gram_kappa: float
    omega: float
    effective_rank: float
    stable_rank: float
    spectral_norm: float
    rank: int | None = None
    """None in a folder of an earlier version."""


@dataclass(frozen=True)
class ActivationRow:
    """What enters one block's down projection; None where there are fewer tokens than the block is wide."""

    name: str
    width: int
    tokens: int
    act_kappa_centred: float | None
    act_kappa_uncentred: float | None
    ff_gram_original: float | None
    act_kappa_without_largest: float | None = None
    largest: float | None = None
    """The largest absolute activation, with its unit and token; None in folders of earlier versions."""
    unit: int | None = None
    token: str = ""


@dataclass(frozen=True)
class SummaryRow:
    """One number over matrices of a role, or over layers; None where it was not run.

    The median takes infinite values last and may be one; the geometric mean is of the finite ones.
    """

    what: str
    count: int
    singular: int
    median: float | None
    geometric_mean: float | None


Row = TypeVar("Row", MatrixRow, ActivationRow)


def summarise(weights: Sequence[MatrixRow], activations: Sequence[ActivationRow]) -> list[SummaryRow]:
    """kappa by role of matrix, and what was measured of activations over layers."""
    rows = []
    for role in ROLES:
        if kappas := [row.kappa for row in weights if row.role == role]:
            rows.append(_summary(f"kappa, {role}", kappas))
    for name in ACTIVATION_METRICS:
        rows.append(_summary(name, [getattr(row, name) for row in activations]))
    return rows


def _summary(what: str, values: Sequence[float | None]) -> SummaryRow:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return SummaryRow(what, len(known), 0, None, None)
    finite = [value for value in known if not math.isinf(value)]
    mean = geometric_mean(finite) if finite else math.inf
    return SummaryRow(what, len(known), len(known) - len(finite), median(known), mean)


def plain(row: Any) -> dict[str, Any]:
    """As JSON has it: null for infinity too, which `singular` or a null kappa tells."""
    return {
        name: None if isinstance(value, float) and math.isinf(value) else value for name, value in asdict(row).items()
    }


def token_note(activations: Sequence[ActivationRow]) -> tuple[str, str]:
    """(what the number of tokens means, a warning or nothing)."""
    widest = max(row.width for row in activations)
    tokens = activations[0].tokens
    if not enough_tokens(tokens, widest):
        why = f"{tokens} tokens are fewer than the FFN's width {widest}, where only the ridge would be measured"
        return f"Not run: {why}; give --activation-tokens {4 * widest} or more.", why
    floor = f"White noise would have {noise_floor(tokens, widest):.3g} on {tokens} tokens of width {widest} (Marchenko-Pastur)."
    return floor, few_tokens(tokens, widest)


def massive_note(activations: Sequence[ActivationRow]) -> str:
    """Which layers' largest activation stands out, with unit and token (Sun et al. 2024, "Massive Activations")."""
    known = [(row.largest, row) for row in activations if row.largest is not None]
    if not known:
        return ""
    middle = median([value for value, _ in known])
    massive = [
        f"{row.name} {value:.4g} (unit {row.unit}, token '{row.token}')"
        for value, row in sorted(known, key=lambda pair: -pair[0])
        if value >= MASSIVE * middle > 0
    ]
    listed = "; ".join(massive) if massive else "none"
    return f"Massive activations, {MASSIVE:g} or more times {middle:.3g}, the median layer's largest: {listed}."


# ------------------------------------------------------------------------------------------------------------ as CSV
def write_csv(path: Path, rows: Sequence[Any]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_atomic(path, buffer.getvalue())


def read_csv(path: Path, kind: type[Row]) -> list[Row]:
    """What write_csv wrote, bit by bit; empty where there is no such file."""
    if not path.exists():
        return []
    hints = get_type_hints(kind)

    def value(name: str, text: str) -> Any:
        if hints[name] is str:
            return text
        return (int if hints[name] in (int, int | None) else float)(text) if text else None

    rows = [with_todays_names(row) for row in csv.DictReader(io.StringIO(read_text(path), newline=""))]
    # Folders of earlier versions lack columns, whose fields say so by their defaults.
    names = [field.name for field in fields(kind)]
    return [kind(**{name: value(name, row[name]) for name in names if name in row}) for row in rows]
