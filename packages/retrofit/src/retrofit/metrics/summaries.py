"""Numbers of several layers as one, and how far a number of tokens can be trusted. No torch: reports import this."""

import math
from collections.abc import Mapping, Sequence
from statistics import geometric_mean, median
from typing import Any

RELATIVE_RIDGE = 1e-6
"""Added to an activation covariance, times its mean eigenvalue; scaling activations leaves kappa as it is."""
ORIGINAL_RIDGE = 1e-5
"""The original study's absolute ridge."""


def by_layer(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Values by layer (null: infinite), their median (infinite ones last) and the geometric mean of the finite ones."""
    finite_ones = [value for value in values if math.isfinite(value)]
    row: dict[str, Any] = {name: [value if math.isfinite(value) else None for value in values]}
    if math.isfinite(middle := median(values)):
        row[f"{name}_median"] = middle
    if finite_ones:
        row[f"{name}_geometric_mean"] = geometric_mean(finite_ones)
    if len(finite_ones) < len(values):
        row[f"{name}_infinite"] = len(values) - len(finite_ones)
    return row


def percent_change(first: float, last: float) -> float:
    """Percent from one value to another."""
    return 100 * (last / first - 1)


def transport_move(row: Mapping[str, Any]) -> float:
    """Percent by which a transport moved perplexity; infinite where a perplexity was, which the row then lacks."""
    before, after = (row.get(f"transport_ppl_{when}") for when in ("before", "after"))
    return math.inf if before is None or after is None else percent_change(before, after)


def update_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Share of updates whose gradient was clipped, and means of gradient norms and the penalty; empty without updates."""
    updates = [row for row in rows if row["kind"] == "update"]
    if not updates:
        return {}
    means = {"clip_rate": sum(row["clipped"] for row in updates) / len(updates)}
    by_role = {name for row in updates for name in row if name.startswith(("grad_norm_", "penalty_grad_norm_"))}
    for name in ("grad_norm", "penalty_grad_norm", "penalty", *sorted(by_role)):
        values = [row[name] for row in updates if name in row]
        if values:
            means[f"mean_{name}"] = sum(values) / len(values)
    return means


def mean_rows(rows_of_seeds: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Evaluation rows averaged over seeds, step by step; perplexities geometrically, as exp of the mean loss."""
    merged = []
    for rows in zip(*rows_of_seeds, strict=True):
        assert len({row["step"] for row in rows}) == 1
        row: dict[str, Any] = {}
        for name, value in rows[0].items():
            values = [other[name] for other in rows if name in other]
            if len(values) < len(rows):
                continue
            if isinstance(value, list):
                columns = zip(*values, strict=True)
                row[name] = [None if None in column else sum(column) / len(column) for column in columns]
            elif isinstance(value, str) or name == "step":
                row[name] = value
            else:
                row[name] = geometric_mean(values) if name.endswith("_ppl") else sum(values) / len(values)
        merged.append(row)
    return merged


def gaussian_kappa(outputs: int, inputs: int) -> float:
    """kappa of a large Gaussian matrix of this shape (Marchenko and Pastur 1967), to compare a trained one with."""
    root = math.sqrt(min(outputs, inputs) / max(outputs, inputs))
    return (1 + root) / (1 - root) if root < 1 else math.inf


def noise_floor(tokens: int, width: int) -> float:
    """Condition number of the covariance of white noise, for which infinitely many tokens would give 1 (Marchenko-Pastur)."""
    return gaussian_kappa(tokens, width) ** 2


def enough_tokens(tokens: int, width: int) -> bool:
    """Whether activations of this width have a conditioning of their own: of fewer tokens it is the ridge's alone."""
    return tokens >= width


def few_tokens(tokens: int, width: int) -> str:
    """A warning where chance alone raises the conditioning of activations, or nothing."""
    few = f"{tokens} tokens are fewer than 4 x the FFN's width {width}: chance alone raises kappa"
    return few if tokens < 4 * width else ""
