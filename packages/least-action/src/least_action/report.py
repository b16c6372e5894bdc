"""The reports of a run and of a sweep, from what their folders hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from least_action.config import TrainerConfig
from least_action.events import find_events
from least_action.figures import plot_arm_curves, plot_survival, save_all_visualizations
from least_action.survival import Survival, kaplan_meier
from studycore.errors import UserError
from studycore.metrics_log import read_rows
from studycore.record import Record
from studycore.report import Picture, Report, Table

if TYPE_CHECKING:
    import pandas as pd

QUESTION = "When does a network that has memorised modular arithmetic come to generalise, and what speeds it up?"
EVENTS = ("memorised", "onset", "grokked_95", "grokked_99")


def report(record: Record) -> Report:
    """Of a run or of a sweep."""
    return report_sweep(record) if record.verb == "sweep" else report_run(record)


def report_run(record: Record) -> Report:
    """Of one run, which may still be running. UserError when it has no evaluation yet."""
    config, rows = record.config, record.rows
    if not rows:
        raise UserError(f"{record.folder}/metrics.jsonl: holds no evaluation yet; resume the run first")
    events = find_events(rows, config.p, config.event_window)
    measured = {name: value for row in rows for name, value in row.items() if name not in ("epoch", "step")}
    epochs = {name: row["epoch"] for row in rows for name in row}
    values = Table(
        "Metrics at their last measurement",
        ("metric", "value", "epoch"),
        [(name, value, epochs[name]) for name, value in measured.items()],
        "Names that end in _original (in older runs: _seed) follow the original study's formulas, for comparison.",
        folded=True,
    )
    event_rows = [{"run": record.folder.name, "test_acc": rows[-1]["test_acc"], **events.as_dict()}]
    pictures = save_all_visualizations(record.arrays, rows, record.folder / "figures", config)
    return Report(
        f"least-action train: {config.operation} mod {config.p}, {config.model_type}",
        QUESTION,
        answer(events.as_dict(), record.manifest["state"] == "done"),
        [event_table(event_rows), values],
        [Picture(path, caption) for path, caption in pictures],
        notes(config),
    )


def answer(events: dict[str, Any], has_ended: bool) -> str:
    """One sentence on one run."""
    if events["grokked_99"] is not None:
        late = (
            "without having memorised first" if events["memorised"] is None else f"{events['delay']} after memorising"
        )
        return f"This run grokked at epoch {events['grokked_99']} (test accuracy 0.99 held), {late}."
    state = "memorised" if events["memorised"] is not None else "did not memorise"
    if not has_ended:
        return f"This run has not ended; up to epoch {events['last_epoch']} it {state} and has not grokked."
    return f"This run {state} and had not grokked when it ended at epoch {events['last_epoch']}: censored there."


def notes(config: TrainerConfig) -> list[str]:
    """Decisions that a reader of the numbers should know."""
    rule = (
        "matrices only (embeddings, biases, norms and gates spared)"
        if config.weight_decay_rule == "matrices"
        else "every parameter"
    )
    return [
        f"Weight decay {config.weight_decay} applies to {rule}.",
        f"An event is the first of {config.event_window} consecutive evaluations ({config.eval_every} epochs apart) at which the accuracy holds.",
        f"Input sensitivity on {config.metric_samples} held-out pairs, Fisher trace on {config.metric_samples} training pairs, all else on all pairs.",
        f"Acceleration recipe: {config.recipe}; loss in {config.loss_dtype}, weights in {config.dtype}.",
    ]


def event_table(runs: Sequence[dict[str, Any]], folded: bool = False) -> Table:
    """Events per run; what did not happen is censored at the run's end."""
    rows = []
    for run in runs:
        times = [f"> {run['last_epoch']:.0f}" if _missing(run.get(name)) else int(run[name]) for name in EVENTS]
        delay = "none" if _missing(run.get("delay")) else int(run["delay"])
        rows.append((run["run"], *times, delay, run["test_acc"]))
    columns = ("run", "memorised", "onset", "grokked 0.95", "grokked 0.99", "delay", "last test accuracy")
    note = '"> n": not within the n epochs that the run lasted (censored).'
    return Table("Events (epochs)", columns, rows, note, folded=folded)


def _missing(value: Any) -> bool:
    return value is None or value != value


# ------------------------------------------------------------------------------------------------------------- sweep
def report_sweep(record: Record) -> Report:
    """Of all runs of a sweep that are done."""
    table = record.table
    arms = {str(arm): runs for arm, runs in table.groupby("arm", sort=False)}
    curves = {arm: arm_survival(runs) for arm, runs in arms.items()}
    metrics = {
        arm: {"n": curve.n, "grokked": curve.events, "censored": curve.n - curve.events}
        | ({} if curve.quantile() is None else {"median_epochs_to_grok": curve.quantile()})
        for arm, curve in curves.items()
    }
    arm_rows = [
        (
            arm, curve.n, curve.events, curve.n - curve.events, median_text(curve),
            f"{arms[arm]['test_acc'].min():.3f} to {arms[arm]['test_acc'].max():.3f}",
        )
        for arm, curve in curves.items()
    ]  # fmt: skip
    tables = [
        Table("Time to grok by arm (epochs)", ("arm", "runs", "grokked", "censored", "median [95 % interval]", "last test accuracy"), arm_rows,
              "Kaplan-Meier median with the interval of Brookmeyer and Crowley; runs that never grokked are censored at their end. An upper bound \"not reached\": the curve's upper band stays above one half."),
        event_table(table.to_dict("records"), folded=len(table) > 8),
    ]  # fmt: skip
    if record.missing:
        tables.append(Table("Runs that did not finish", ("run", "reason"), list(record.missing.items())))
    rows_of = {
        arm: [read_rows(Path(folder) / "metrics.jsonl") for folder in runs["folder"]] for arm, runs in arms.items()
    }
    censored = {arm: runs[runs["censored"]]["time"].tolist() for arm, runs in arms.items()}
    ends = {arm: float(runs["time"].max()) for arm, runs in arms.items()}
    pictures = [
        Picture(
            plot_survival(curves, censored, ends, record.folder / "figures" / "survival.svg"),
            "Share of runs that have not grokked over training (Kaplan-Meier, 95 % band); ticks: runs that ended without having grokked.",
        ),
        Picture(
            plot_arm_curves(rows_of, record.folder / "figures" / "accuracy_by_arm.svg"),
            "Accuracy over training, every run of each arm.",
        ),
    ]
    held = int((table["grokked"] & (table["test_acc"] >= 0.99)).sum())
    grokked = int(table["grokked"].sum())
    text = f"{grokked} of {len(table)} runs grokked" + (
        f"; {held} of these held 0.99 at their last evaluation." if grokked else "."
    )
    shared = notes(record.first_config)[1:3]
    counts = {"runs": len(table), "failed": len(record.missing), "arms": metrics}
    return Report("least-action sweep", QUESTION, text, tables, pictures, shared, counts)


def arm_survival(runs: "pd.DataFrame") -> Survival:
    """Kaplan-Meier curve of the time to grok at 0.99."""
    return kaplan_meier(runs["time"].tolist(), runs["grokked"].tolist())


def median_text(curve: Survival) -> str:
    """Median with its interval; bounds beyond what was seen are open."""
    median, (low, high) = curve.quantile(), curve.median_interval()
    shown = ["not reached" if x is None else f"{x:.0f}" for x in (median, low, high)]
    return shown[0] if curve.events == 0 else f"{shown[0]} [{shown[1]}, {shown[2]}]"
