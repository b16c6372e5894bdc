"""What a run's evaluations, the rows of metrics.jsonl, say beyond its last model; without torch."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
COVERAGE_METRICS = (
    "coverage", "covered", "operations", "coverage_sampled", "coverage_seen", "coverage_unseen", "unseen",
    "linear_coverage_unseen", "kl", "kl_of_least", "prior_coverage",
)  # fmt: skip
"""What a run that only learns to reconstruct has learned something about."""


HISTORY = ("coverage_epoch", "coverage_epoch_stage", "initial_hierarchy", "best_hierarchy", "best_epoch", "last_epoch")
"""What results say of the evaluations, among other things."""


def history_metrics(rows: Sequence[Row]) -> dict[str, Any]:
    """When coverage was complete and how the hierarchy went; what never happened is left out."""
    metrics: dict[str, Any] = {}
    full = next((row for row in rows if row["coverage"] == 1.0), None)
    if full is not None:
        metrics |= {"coverage_epoch": full["epoch"], "coverage_epoch_stage": full["stage"]}
    metrics |= ordering_metrics(rows)
    if stage := ordering_rows(rows) or rows:
        metrics["last_epoch"] = stage[-1]["epoch"]
    return metrics


def ordering_rows(rows: Sequence[Row]) -> list[Row]:
    """Evaluations of the stage that orders radii, from before its first update on; empty where there was none.

    Radii that are all equal have a Somers' D of 0 and no correlation: they are in no order, so that their hierarchy is 0.
    """
    return [
        {"hierarchy": 0.0, **row} for row in rows if row["stage"] != "coverage" and {"hierarchy", "somers_d"} & set(row)
    ]


def after_start(ordering: Sequence[Row], starts_ordered: bool) -> Sequence[Row]:
    """The evaluations that count for what was reached: what a run found in order when it began is none, where there are
    later ones."""
    return ordering[1:] if starts_ordered and len(ordering) > 1 else ordering


def best_row(rows: Sequence[Row], starts_ordered: bool = False) -> Row | None:
    """That stage's evaluation with the best hierarchy, the first of equal ones; None where there was none."""
    return min(after_start(ordering_rows(rows), starts_ordered), key=lambda row: float(row["hierarchy"]), default=None)


def ordering_metrics(rows: Sequence[Row], starts_ordered: bool = False) -> dict[str, Any]:
    """The first and the best hierarchy of that stage, and the epoch of the best; empty where there was none."""
    ordering, best = ordering_rows(rows), best_row(rows, starts_ordered)
    if best is None:
        return {}
    first = float(ordering[0]["hierarchy"])
    return {
        "initial_hierarchy": first, "starts_inverted": first > 0, "best_hierarchy": best["hierarchy"],
        "best_epoch": best["epoch"],
    }  # fmt: skip


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that have a value."""
    return {name: value for name, value in values.items() if value is not None}
