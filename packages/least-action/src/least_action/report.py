"""The reports of a run and of a sweep: results.json, figures, report.html and report.md."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from least_action.claims import RunSummary, make_claims
from least_action.config import TrainerConfig
from least_action.events import find_events
from least_action.metrics.numerics import find_slingshots
from least_action.models import PairModel, count_parameters
from least_action.record import load_run_checkpoint, read_config
from least_action.visualize import save_all_visualizations
from studycore.errors import UserError
from studycore.figures import COLOURS, new_figure, save_figure
from studycore.files import read_json
from studycore.metrics import read_rows
from studycore.report import Picture, Report, Table, claims_text, write_report, write_results
from studycore.runs import read_manifest
from studycore.statistics import Survival, kaplan_meier

SLINGSHOT_WINDOW = 10
"""Evaluations over which a tenfold rise of the training loss counts as a slingshot."""
QUESTION = "When does a network that has memorised modular arithmetic come to generalise, and what speeds it up?"


def summarise(folder: Path) -> RunSummary:
    """What a train run's folder says. UserError when it holds no evaluation."""
    config, rows = read_config(folder), read_rows(folder / "metrics.jsonl")
    if not rows:
        raise UserError(f"{folder}/metrics.jsonl: holds no evaluation yet; resume the run first")
    return RunSummary(folder.name, config, find_events(rows, config.p, config.event_window), rows)


def write_run_report(folder: Path, config: TrainerConfig, model: PairModel) -> None:
    """Results, figures and report of a train run, from its rows and its model."""
    run = summarise(folder)
    last = run.rows[-1]
    metrics = {
        **{k: last[k] for k in ("epoch", "step", "train_loss", "test_loss", "train_acc", "test_acc")},
        "best_test_acc": max(row["test_acc"] for row in run.rows),
        **{name: value for name, value in run.events.as_dict().items() if value is not None},
        "slingshots": len(find_slingshots([row["train_loss"] for row in run.rows], SLINGSHOT_WINDOW)),
        "parameters": count_parameters(model),
    }
    write_results(folder, "least-action", "train", metrics, make_claims([run]))
    pictures = save_all_visualizations(model, run.rows, folder / "figures", config)
    measured = {name: value for row in run.rows for name, value in row.items() if name not in ("epoch", "step")}
    at = {name: row["epoch"] for row in run.rows for name in row}
    table = Table(
        "Metrics at their last measurement",
        ("metric", "value", "epoch"),
        [(name, value, at[name]) for name, value in measured.items()],
        "Names that end in _seed follow the seed study's formulas, for comparison.",
        folded=True,
    )
    report = Report(
        f"least-action train: {config.operation} mod {config.p}, {config.model_type}",
        QUESTION,
        answer(run),
        [event_table([run]), table],
        [Picture(path, caption) for path, caption in pictures],
        notes(config),
    )
    write_report(folder, report)


def answer(run: RunSummary) -> str:
    """One sentence on one run."""
    e = run.events
    if e.grokked_99 is not None:
        memorised = "without having memorised first" if e.memorised is None else f"{e.delay} after memorising"
        return f"This run grokked at epoch {e.grokked_99} (test accuracy 0.99 held), {memorised}."
    state = "memorised" if e.memorised is not None else "did not memorise"
    return f"This run {state} and had not grokked when it ended at epoch {e.last_epoch}: censored there."


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


def event_table(runs: Sequence[RunSummary]) -> Table:
    """Events per run; what did not happen is censored at the run's end."""
    rows = []
    for run in runs:
        e = run.events
        times = (e.memorised, e.onset, e.grokked_95, e.grokked_99)
        rows.append(
            (
                run.name,
                *(f"> {e.last_epoch}" if t is None else t for t in times),
                "none" if e.delay is None else e.delay,
                run.rows[-1]["test_acc"],
            )
        )
    columns = ("run", "memorised", "onset", "grokked 0.95", "grokked 0.99", "delay", "last test accuracy")
    return Table("Events (epochs)", columns, rows, '"> n": not within the n epochs that the run lasted (censored).')


def arm_survival(runs: Sequence[RunSummary]) -> Survival:
    """Kaplan-Meier curve of the time to grok at 0.99."""
    return kaplan_meier([run.time for run in runs], [run.events.grokked_99 is not None for run in runs])


def median_text(curve: Survival) -> str:
    """Median with its interval; bounds beyond what was seen are open."""
    median, (low, high) = curve.quantile(), curve.median_interval()
    shown = ["not reached" if x is None else f"{x:.0f}" for x in (median, low, high)]
    return shown[0] if curve.events == 0 else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def plot_survival(arms: dict[str, list[RunSummary]], path: Path) -> Path:
    """Kaplan-Meier curves of not having grokked, one per arm, with ticks where runs are censored."""
    figure, axis = new_figure(7.5, 3.6)
    for i, (name, runs) in enumerate(arms.items()):
        curve, colour = arm_survival(runs), COLOURS[i % len(COLOURS)]
        end = max(run.time for run in runs)
        xs, ys = [0.0, *curve.times, end], [1.0, *curve.survival, (curve.survival or [1.0])[-1]]
        axis.step(xs, ys, where="post", color=colour, label=f"{name} (n = {curve.n}, {curve.events} grokked)")
        if curve.times:
            axis.fill_between(
                [0.0, *curve.times, end],
                [1.0, *curve.low, curve.low[-1]],
                [1.0, *curve.high, curve.high[-1]],
                step="post",
                color=colour,
                alpha=0.12,
                linewidth=0,
            )
        censored = [run.time for run in runs if run.events.grokked_99 is None]
        axis.plot(censored, [_height(curve, t) for t in censored], "|", color=colour, markersize=9)
    axis.set(xlabel="epoch", ylabel="share that has not grokked (0.99)", ylim=(-0.03, 1.05), xlim=(0, None))
    axis.legend(fontsize=7.5)
    return save_figure(figure, path)


def _height(curve: Survival, time: float) -> float:
    """S at a time."""
    return next((s for t, s in reversed(list(zip(curve.times, curve.survival, strict=True))) if t <= time), 1.0)


def plot_arm_curves(arms: dict[str, list[RunSummary]], path: Path) -> Path:
    """Test accuracy of every run, one panel per arm."""
    columns = min(3, len(arms))
    rows = -(-len(arms) // columns)
    figure, axes = new_figure(
        3.2 * columns, 2.4 * rows, ncols=columns, nrows=rows, sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(arms) :]:
        axis.set_visible(False)
    for axis, (name, runs) in zip(axes.flat, arms.items(), strict=False):
        for run in runs:
            epochs = [row["epoch"] for row in run.rows]
            axis.plot(epochs, [row["train_acc"] for row in run.rows], color=COLOURS[0], alpha=0.5, linewidth=0.8)
            axis.plot(epochs, [row["test_acc"] for row in run.rows], color=COLOURS[1], alpha=0.8, linewidth=1)
        axis.set_title(name, fontsize=8.5)
    axes[0, 0].plot([], [], color=COLOURS[0], label="training pairs")
    axes[0, 0].plot([], [], color=COLOURS[1], label="held-out pairs")
    axes[0, 0].legend(fontsize=7)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("accuracy", fontsize=9)
    return save_figure(figure, path)


def write_sweep_report(
    folder: Path, arms: dict[str, list[RunSummary]], failed: dict[str, str], extra: Sequence[str]
) -> None:
    """Results, figures and report of a sweep. `failed`: runs that did not finish, with the reason."""
    runs = [run for arm in arms.values() for run in arm]
    table_rows, metrics = [], {}
    for name, arm in arms.items():
        curve = arm_survival(arm)
        median = curve.quantile()
        metrics[name] = {"n": curve.n, "grokked": curve.events, "censored": curve.n - curve.events} | (
            {} if median is None else {"median_epochs_to_grok": median}
        )
        accuracy = [run.rows[-1]["test_acc"] for run in arm]
        table_rows.append(
            (
                name,
                curve.n,
                curve.events,
                curve.n - curve.events,
                median_text(curve),
                f"{min(accuracy):.3f} to {max(accuracy):.3f}",
            )
        )
    claims = make_claims(runs)
    write_results(folder, "least-action", "sweep", {"runs": len(runs), "failed": len(failed), "arms": metrics}, claims)
    tables = [
        Table("Time to grok by arm (epochs)", ("arm", "runs", "grokked", "censored", "median [95 % interval]", "last test accuracy"), table_rows,
              "Kaplan-Meier median with the interval of Brookmeyer and Crowley; runs that never grokked are censored at their end. An upper bound \"not reached\": the curve's upper band stays above one half."),
        dataclasses.replace(event_table(runs), folded=len(runs) > 8),
    ]  # fmt: skip
    if failed:
        tables.append(Table("Runs that did not finish", ("run", "reason"), list(failed.items())))
    pictures = [
        Picture(
            plot_survival(arms, folder / "figures" / "survival.svg"),
            "Share of runs that have not grokked over training (Kaplan-Meier, 95 % band); ticks: runs that ended without having grokked.",
        ),
        Picture(
            plot_arm_curves(arms, folder / "figures" / "accuracy_by_arm.svg"),
            "Accuracy over training, every run of each arm.",
        ),
    ]
    grokked = sum(run.events.grokked_99 is not None for run in runs)
    held = sum(run.events.grokked_99 is not None and run.rows[-1]["test_acc"] >= 0.99 for run in runs)
    verdicts = [claim["verdict"] for claim in claims]
    text = f"{grokked} of {len(runs)} runs grokked, and {held} of these held 0.99 at their last evaluation; of {len(claims)} claims {verdicts.count('supported')} are supported, {verdicts.count('refuted')} refuted, {verdicts.count('inconclusive')} inconclusive, {verdicts.count('not run')} not run."
    shared = notes(runs[0].config)[1:3] if runs else []
    write_report(folder, Report("least-action sweep", QUESTION, text, tables, pictures, [*shared, *extra]))


def report_command(folder: Path) -> None:
    """`report RUN`: writes the report again from what the folder holds, and prints it."""
    manifest = read_manifest(folder)
    if manifest["verb"] == "sweep":
        from least_action.sweep import report_sweep

        report_sweep(folder)
    else:
        _, model = load_run_checkpoint(folder, config := read_config(folder))
        if model is None:
            raise UserError(f"{folder}: holds no checkpoint yet; resume the run first")
        write_run_report(folder, config, model)
    print_report(folder)


def print_report(folder: Path) -> None:
    """The answer, the events and the claims on the terminal, and where the report is."""
    claims: list[dict[str, Any]] = read_json(folder / "results.json")["claims"]
    text = (folder / "report.md").read_text().splitlines()
    print("\n".join(line.strip("*") for line in text[:5] if line))
    print(claims_text(claims))
    print(f"report: {folder / 'report.html'}")
