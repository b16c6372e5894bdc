"""Columns derived from a history, statistics over it, and metrics of different intervals side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from least_action.analysis.phases import detect_phases
from studycore.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def compute_derived_metrics(history: "pd.DataFrame") -> "pd.DataFrame":
    """The history with further columns; a ratio whose denominator is 0 or was not measured is missing.

    generalization_gap (train_acc - test_acc), loss_ratio (test_loss / train_loss), accuracy_delta (change of test_acc
    since the evaluation before), weight_norm_rate (change of weight_norm per step between its measurements),
    gradient_over_weight_norm.
    """
    derived = history.copy()
    derived["generalization_gap"] = history["train_acc"] - history["test_acc"]
    derived["loss_ratio"] = history["test_loss"] / history["train_loss"].where(history["train_loss"] > 0)
    derived["accuracy_delta"] = history["test_acc"].diff()
    if "weight_norm" in history:
        measured = history[["step", "weight_norm"]].dropna()
        derived["weight_norm_rate"] = measured["weight_norm"].diff() / measured["step"].diff()
        if "gradient_norm" in history:
            derived["gradient_over_weight_norm"] = history["gradient_norm"] / history["weight_norm"]
    return derived


def compute_aggregates_over_history(
    history: "pd.DataFrame", metrics: Sequence[str] | None = None, after_grok: bool = False
) -> "pd.DataFrame":
    """A row per metric: n, mean, std, var (n - 1), min, max, first and last of what was measured.

    `after_grok` leaves out what came before grokking; UserError for a run that did not grok.
    """
    import pandas as pd

    if after_grok:
        start = detect_phases(history).grokking_start
        if start is None:
            raise UserError("after_grok: the run did not grok, so there is nothing after it; leave it out")
        history = history[history["step"] >= start]
    numbers = history.select_dtypes("number").drop(columns=["step", "epoch"], errors="ignore")
    columns = list(numbers.columns) if metrics is None else list(metrics)
    if missing := [name for name in columns if name not in numbers]:
        raise UserError(f"metrics: '{missing[0]}' is no number of this history; it has {', '.join(numbers.columns)}")
    rows = {}
    for name in columns:
        x = numbers[name].dropna()
        ends = {"first": x.iloc[0], "last": x.iloc[-1]} if len(x) else {}
        rows[name] = {
            "n": len(x),
            "mean": x.mean(),
            "std": x.std(),
            "var": x.var(),
            "min": x.min(),
            "max": x.max(),
        } | ends
    return pd.DataFrame.from_dict(rows, orient="index")


def align_metrics(history: "pd.DataFrame", metrics: Sequence[str], to: str | None = None) -> "pd.DataFrame":
    """Metrics that were logged at different intervals, side by side: each as last measured at or before the epoch.

    The epochs are those at which `to`, by default the first of `metrics`, was measured (an ASOF join).
    """
    import pandas as pd

    aligned = history[["step", "epoch"]][history[to or metrics[0]].notna()]
    for name in metrics:
        aligned = pd.merge_asof(aligned, history[["epoch", name]].dropna(), on="epoch")
    return aligned
