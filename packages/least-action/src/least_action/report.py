"""The reports of a run and of a sweep, from what their folders hold."""

from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from least_action.claims import DENSE, LEAST_EVALUATIONS, STABLE, TRAINING
from least_action.config import OPERATIONS, QUESTION, SPECTRA_LEFT_OUT, TrainerConfig
from least_action.events import PLATEAU, find_events, has_plateau, held_from_first_touch
from least_action.figures import plot_arm_curves, plot_atlas, plot_survival, save_all_visualizations, title_of
from least_action.plan import plan
from least_action.survival import Survival, kaplan_meier
from studycore.claims import Wording, listed, said, said_of, sentences
from studycore.figures import plot_arms
from studycore.metrics_log import read_rows
from studycore.record import Record
from studycore.report import NOT_APPLICABLE, Picture, Report, Table
from studycore.statistics import Interval, share_interval

if TYPE_CHECKING:
    import pandas as pd

EVENTS = ("memorised", "onset", "grokked_95", "crossed_99", "grokked_99", "sustained_99")


def report(record: Record) -> Report:
    """Of a run or of a sweep."""
    return report_sweep(record) if record.verb == "sweep" else report_run(record)


def report_run(record: Record) -> Report:
    """Of one run, which may not have ended but has been evaluated."""
    config, rows = record.config, record.rows
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
    held = held_from_first_touch(rows)
    stays = {"held_from_touch": sum(held) / len(held) if held else None}
    event_rows = [{"run": record.folder.name, "test_acc": rows[-1]["test_acc"], **events.as_dict(), **stays}]
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
    """One sentence on one run: whether it came to generalise, and whether that was after a plateau (then it grokked)."""
    if events["grokked_99"] is not None:
        held = f"0.99 test accuracy held from epoch {events['grokked_99']} on"
        stays = "" if events["held_99"] is None else f", and in {events['held_99']:.0%} of the evaluations after that"
        if events["memorised"] is None:
            return f"This run generalised without having memorised first: {held}{stays}."
        if events["delay"] < 0:
            return f"This run generalised before it had memorised, which took {-events['delay']} epochs more: {held}{stays}."
        when = f"{events['delay']} epochs before" if events["delay"] else "at the same evaluation"
        then = f"{events['test_at_memorised']:.2f} when it memorised, {when}"
        if events["new_at_memorised"] is not None:
            then += f", and {events['new_at_memorised']:.2f} on pairs whose mirror image was new too"
        if has_plateau(events):
            return f"This run grokked: {held}{stays}; test accuracy was {then}."
        return f"This run generalised without a plateau: {held}{stays}; test accuracy was {then}."
    state = "memorised" if events["memorised"] is not None else "did not memorise"
    if not has_ended:
        return f"This run has not ended; up to epoch {events['last_epoch']} it {state} and has not generalised."
    return f"This run {state} and had not generalised when it ended at epoch {events['last_epoch']}: censored there."


def notes(config: TrainerConfig) -> list[str]:
    """Decisions that a reader of the numbers should know."""
    rule = (
        "matrices only (embeddings, biases, norms and gates spared)"
        if config.weight_decay_rule == "matrices"
        else "every parameter"
        if config.decay_gates
        else "every parameter but routing gates"
    )
    return [
        f"Weight decay {config.weight_decay} applies to {rule}.",
        f"An event is the first of {config.event_window} consecutive evaluations ({config.eval_every} epochs apart) at which the accuracy holds.",
        f"A run groks when 0.99 test accuracy comes after a plateau: accuracy below {PLATEAU:g} on new pairs, held-out pairs whose mirror image is held out too, for {config.event_window} consecutive evaluations from memorisation on. Else it generalises without a plateau, however long it took. Stability is the share of evaluations at 0.99 after the first one there; {STABLE:g} counts as stable.",
        "Curvature and progress measures are also measured at the evaluations at which the run memorises and reaches 0.99; claims read them there.",
        f"Input sensitivity on {config.metric_samples} held-out pairs, Fisher trace on {config.metric_samples} training pairs, all else on all pairs.",
        f"Acceleration recipe: {config.recipe}; loss in {config.loss_dtype}, weights in {config.dtype}.",
        *([SPECTRA_LEFT_OUT] if config.operation == "compose" else []),
    ]


def event_table(runs: Sequence[dict[str, Any]], folded: bool = False) -> Table:
    """Events per run; what did not happen is censored at the run's end."""
    rows = []
    for run in runs:
        times = [f"> {run['last_epoch']:.0f}" if _missing(run.get(name)) else int(run[name]) for name in EVENTS]
        delay, plateau, new, highest, held = (
            "none" if _missing(run.get(name)) else run[name]
            for name in ("delay", "test_at_memorised", "new_at_memorised", "highest_new_accuracy", "held_from_touch")
        )
        shown = delay if isinstance(delay, str) else int(delay)
        rows.append((run["run"], *times, shown, plateau, new, highest, held, run["test_acc"]))
    columns = (
        "run", "memorised", "onset", "0.95 held", "0.99 first", "0.99 held", "0.99 to the end", "delay",
        "test accuracy at memorisation", "on new pairs", "highest of the window", "stability", "last test accuracy",
    )  # fmt: skip
    note = '"> n": not within the n epochs that the run lasted (censored). Onset: accuracy on new pairs leaves the plateau. Held: in the evaluations of a window. Highest of the window: on new pairs, from memorisation on; below 0.1 it is a plateau. Stability: share of the evaluations after the first at 0.99 that are there too.'
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
    routed = "gate_entropy_share" in table
    arm_rows = [
        (
            arm, curve.n, curve.events, median_text(curve), crossed_text(arms[arm]),
            _mean_text(arms[arm], "test_at_memorised"), _mean_text(arms[arm], "new_at_memorised"),
            _mean_text(arms[arm], "highest_new_accuracy"), stable_text(arms[arm]),
            *((_mean_text(arms[arm], "gate_entropy_share"), _mean_text(arms[arm], "gate_max_use")) if routed else ()),
        )
        for arm, curve in curves.items()
    ]  # fmt: skip
    by_arm = Table("Time to 0.99 test accuracy by arm (epochs)", ("arm", "runs", "reached it", "held: median [95 % interval]", "first touch: median", "test accuracy at memorisation", "on new pairs", "highest of the window", "stable", *(("gate entropy over log heads", "largest use of a head") if routed else ())), arm_rows,
              f"Held: in the evaluations of a window. Highest of the window: on new pairs, from memorisation on; below {PLATEAU:g} it is a plateau. Stable: runs with 0.99 in {STABLE:.0%} of the evaluations after the first touch, of those with {LEAST_EVALUATIONS} of them beyond a window. Kaplan-Meier median with the interval of Brookmeyer and Crowley; runs that did not reach it are censored at their end. An upper bound \"not reached\": the curve's upper band stays above one half.", folded=True)  # fmt: skip
    events = event_table(table.to_dict("records"), folded=len(table) > 8)
    if is_atlas(table):
        pictures, tables = (
            atlas_pictures(table, record.folder / "figures"),
            [*smallest_fractions(table), by_arm, events],
        )
    else:
        pictures, tables = arm_pictures(record, arms, curves, by_arm), [events]
    shared = notes(record.first_config)[1:5]
    counts = {"runs": len(table), "failed": len(record.missing), "arms": metrics}
    missing = {job.config.operation for job in plan(record.config) if job.name in record.missing}
    answer = atlas_answer(table, missing) if is_atlas(table) else sweep_answer(record.claims, table)
    said_more = [counts_of(table), *([SPECTRA_LEFT_OUT] if "compose" in set(table["operation"]) else [])]
    return Report("least-action sweep", QUESTION, answer, tables, pictures, [*said_more, *shared], counts)


def arm_pictures(
    record: Record, arms: Mapping[str, "pd.DataFrame"], curves: Mapping[str, Survival], by_arm: Table
) -> list[Picture]:
    """Times to 0.99 and accuracies, by arm; `by_arm` has the numbers of the times."""
    rows_of = {
        arm: [read_rows(Path(folder) / "metrics.jsonl") for folder in runs["folder"]] for arm, runs in arms.items()
    }
    censored = {arm: runs[runs["censored"]]["time"].tolist() for arm, runs in arms.items()}
    ends = {arm: float(runs["time"].max()) for arm, runs in arms.items()}
    return [
        Picture(
            plot_survival(curves, censored, ends, record.folder / "figures" / "survival.svg"),
            "Share of runs that have not reached 0.99 test accuracy over training (Kaplan-Meier, 95 % band); ticks: runs that ended without it.",
        ),
        Picture(
            plot_arms(
                list(arms),
                {
                    "epochs to 0.99, median": {"": [median_of(curve, ends[arm]) for arm, curve in curves.items()]},
                    "share of runs that reach it": {"": [share_interval(c.events, c.n) for c in curves.values()]},
                },
                record.folder / "figures" / "arms.svg",
            ),
            "Kaplan-Meier median of the epochs to 0.99 (none where fewer than half of the runs reach it; an interval that is open ends at the last epoch) and share of the runs that reach it, with 95 % intervals.",
            by_arm,
        ),
        Picture(
            plot_arm_curves(rows_of, record.folder / "figures" / "accuracy_by_arm.svg"),
            "Accuracy over training, every run of each arm.",
        ),
    ]


def arm_survival(runs: "pd.DataFrame") -> Survival:
    """Kaplan-Meier curve of the time to grok at 0.99."""
    return kaplan_meier(runs["time"].tolist(), runs["grokked"].tolist())


def median_of(curve: Survival, end: float) -> Interval | None:
    """The median with its interval, which ends at `end` where it is open; None where it was not reached."""
    median, (low, high) = curve.quantile(), curve.median_interval()
    return None if median is None else Interval(median, low or 0.0, end if high is None else high, curve.n)


def median_text(curve: Survival) -> str:
    """Median with its interval; bounds beyond what was seen are open."""
    median, (low, high) = curve.quantile(), curve.median_interval()
    shown = ["not reached" if x is None else f"{x:.0f}" for x in (median, low, high)]
    return shown[0] if curve.events == 0 else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def crossed_text(runs: "pd.DataFrame") -> str:
    """Median of the first touch of 0.99, held or not."""
    seen = [not _missing(x) for x in runs.get("crossed_99", [None] * len(runs))]
    times = [float(x) if there else float(end) for x, there, end in zip(
        runs.get("crossed_99", [None] * len(runs)), seen, runs["last_epoch"], strict=True)]  # fmt: skip
    median = kaplan_meier(times, seen).quantile()
    return "not reached" if median is None else f"{median:.0f}"


def stable_text(runs: "pd.DataFrame") -> str:
    """How many are stable, of the runs that went on long enough to tell."""
    known = [bool(x) for x in runs.get("stable", []) if not _missing(x)]
    return f"{sum(known)} of {len(known)}" if known else NOT_APPLICABLE


def _mean_text(runs: "pd.DataFrame", column: str) -> str:
    known = [float(x) for x in runs.get(column, []) if not _missing(x)]
    return f"{sum(known) / len(known):.2f}" if known else NOT_APPLICABLE


WITH_DECAY = Wording(
    "With weight decay the network comes to generalise ({x:.0%} of runs{{within}})",
    "Even with weight decay the network does not come to generalise in most runs{{within}}",
    "With weight decay {x:.0%} of the runs came to generalise{{within}}, which leaves open whether most do",
    "Whether it generalises was not run",
)
"""`{within}`, which is filled in afterwards, is the budget: what longer runs would have done is not said."""
AFTER = Wording(
    ", after a plateau in {{k}} of {{n}}: these grok",
    ", mostly without a plateau ({{k}} of {{n}} have one)",
    "; whether most do so after a plateau stays open ({{k}} of {{n}})",
    "",
)
"""`{k}` of `{n}`: of the trainings that came to generalise, where the claim is also of those that memorised and did not."""
BY_DECAY = Wording(
    "Weight decay speeds this up {at}{x:.1f} times",
    "Weight decay does not speed this up",
    "Whether weight decay speeds it up stays open",
    "Whether weight decay speeds it up was not run",
)
BY_ROUTING = Wording(
    "routing slows it {at}{x:.1f} times",
    "routing does not slow it",
    "whether routing slows it stays open",
    "whether routing slows it was not run",
)
BY_MUON = Wording(
    "The optimizer Muon is faster than AdamW ({at}{x:.2f} times the epochs)",
    "The optimizer Muon is not faster than AdamW",
    "Whether the optimizer Muon is faster than AdamW stays open",
    "Whether the optimizer Muon is faster than AdamW was not run",
)
ON_OPERATIONS = Wording(
    "It comes to generalise on {which}{{within}}", "it does not on {which}{{within}}",
    "whether it does on {which}{{within}} stays open", "{which} was not run",
)  # fmt: skip


def sweep_answer(claims: Sequence[Mapping[str, Any]], table: "pd.DataFrame") -> str:
    """When networks generalise and what speeds it up, by the verdicts; where no claim asks it, how many runs did."""
    generalises = said(claims, "generalises", WITH_DECAY)
    reached = any(claim["id"] == "generalises" and claim["verdict"] == "supported" for claim in claims)
    without = table[table["decay"] == "runs without weight decay"] if "decay" in table else table[:0]
    decay = said(claims, "weight_decay", BY_DECAY)
    if decay and len(without) and decay.startswith("Weight decay speeds"):
        decay += f" ({int(without['grokked'].sum())} of {len(without)} runs without it got there)"
    dense = table[table["kind"] == DENSE] if "kind" in table else table[:0]
    grok = dense[dense["grokked"].astype(bool)].groupby(TRAINING)["has_plateau"].all() if reached else []
    after = said(claims, "plateau", AFTER).format(k=int(sum(grok)), n=len(grok)) if reached else ""
    answer = sentences(
        [f"{generalises.format(within=within(dense))}{after}"] if generalises else [],
        on_operations(claims, table),
        [decay, said(claims, "routing", BY_ROUTING)],
        [said(claims, "muon", BY_MUON)],
    )
    return answer or f"{int(table['grokked'].sum())} of {len(table)} runs came to generalise."


def on_operations(claims: Sequence[Mapping[str, Any]], table: "pd.DataFrame") -> list[str]:
    """A clause a verdict on the operations, each with the epochs of its own runs where these differ."""
    own = dict(list(table.groupby("operation"))) if "operation" in table else {}
    differ = len({epochs_of(runs) for runs in own.values()}) > 1
    names = {
        f"generalises_{name}": f"{noun}{within(own[name])}" if differ and name in own else noun
        for name, noun in OPERATIONS.items()
    }
    return [clause.format(within="" if differ else within(table)) for clause in said_of(claims, names, ON_OPERATIONS)]


def within(runs: "pd.DataFrame") -> str:
    """The epochs that the runs had, as they stand in an answer; "" where none has finished."""
    return "" if runs.empty else f" within {epochs_of(runs):,} epochs"


def counts_of(table: "pd.DataFrame") -> str:
    """How many runs generalised, in what way, and whether it lasted."""
    runs = table.to_dict("records")
    reached = [run for run in runs if run["grokked"]]
    lost = sum(not run["grokked"] and not _missing(run.get("crossed_99")) for run in runs)
    touched = f" {lost} more had it in single evaluations and did not hold it for a window." if lost else ""
    if not reached:
        return f"None of {len(table)} runs reached 0.99 test accuracy.{touched}"
    plateau = sum(has_plateau(run) for run in reached)
    known = [bool(run["stable"]) for run in runs if not _missing(run.get("stable"))]
    stable = (
        f" Of the {len(known)} that went on long enough after their first evaluation at 0.99 to tell, {sum(known)} stayed there."
        if known
        else ""
    )
    return (
        f"{len(reached)} of {len(table)} runs reached 0.99 test accuracy: {plateau} after a plateau (they grokked), "
        f"{len(reached) - plateau} without one.{touched}{stable}"
    )


# ------------------------------------------------------------------------------------------------------------- atlas
def is_atlas(table: "pd.DataFrame") -> bool:
    """Whether the sweep is over fractions and weight decay."""
    return table["train_frac"].nunique() > 1 and table["weight_decay"].nunique() > 1


def atlas_pictures(table: "pd.DataFrame", folder: Path) -> list[Picture]:
    """The phase diagram of a sweep over fractions and weight decay; none for other sweeps."""
    if not is_atlas(table):
        return []
    caption = (
        "What becomes of a run: number and colour give the median epochs to 0.99 test accuracy where half of the seeds or more get there, and how many "
        f"did where not all; framed: half or more of those after a plateau, so that they grok; grey: fewer than half; blank: not run. {tasks_of(table)}"
    )
    return [Picture(plot_atlas(table, folder / "atlas.svg"), caption)]


def tasks_of(table: "pd.DataFrame") -> str:
    """What each operation's runs were given: group, longest run, points of the grid."""
    parts = []
    for operation, runs in table.groupby("operation", sort=False):
        points = runs.groupby(["train_frac", "weight_decay"]).ngroups
        parts.append(
            f"{title_of(operation, runs)}: {points} {'point' if points == 1 else 'points'}, {epochs_of(runs):,} epochs at most"
        )
    return f"{'; '.join(parts)}."


def epochs_of(runs: "pd.DataFrame") -> int:
    """What the longest of the runs was given; runs that generalise end earlier."""
    return int(runs["epochs"].max())


def atlas_answer(table: "pd.DataFrame", missing: Collection[str] = ()) -> str:
    """The smallest fraction at which every seed generalises, by operation and what it was given.

    `missing`: operations of which runs are missing, so that "none" may not be the last word.
    """
    budgets: dict[tuple[str, int], list[str]] = {}
    for operation, runs in table.groupby("operation", sort=False):
        group = "" if operation == "compose" else f"mod {runs['p'].iloc[0]}, "
        least = smallest_fraction(runs) + (" so far" if operation in missing else "")
        least += ", the only one tried" if runs["train_frac"].nunique() == 1 else ""
        budgets.setdefault((group, epochs_of(runs)), []).append(f"{OPERATIONS[str(operation)]} {least}")
    given = [f"{', '.join(operations)} ({group}{epochs:,} epochs)" for (group, epochs), operations in budgets.items()]
    not_run = [noun for name, noun in OPERATIONS.items() if name in missing and name not in set(table["operation"])]
    left_out = f" Not run: {listed(not_run)}." if not_run else ""
    return f"The smallest share of all pairs from which every seed comes to generalise: {'; '.join(given)}.{left_out}"


def smallest_fraction(runs: "pd.DataFrame") -> str:
    """From which on all seeds of an operation reach 0.99 under one of the weight decays, at that fraction and at each larger
    one; "none" of those tried."""
    cells = runs.groupby(["train_frac", "weight_decay"])["grokked"].agg(["size", "all"])
    cells = cells[cells["size"] == cells["size"].max()]  # one of which runs are missing shows nothing of all seeds
    reached = cells["all"].groupby("train_frac").any()
    onwards = list(takewhile(reached.get, reversed(reached.index)))
    return f"{onwards[-1]:g}" if onwards else "none"


def smallest_fractions(table: "pd.DataFrame") -> list[Table]:
    """The smallest fraction of the pairs at which every seed reaches 0.99, by operation; for sweeps over fractions."""
    if table["train_frac"].nunique() < 2:
        return []
    rows = []
    for operation, runs in table.groupby("operation", sort=False):
        fractions = sorted(runs["train_frac"].unique())
        rows.append((title_of(operation, runs), smallest_fraction(runs), " to ".join(f"{x:g}" for x in dict.fromkeys((fractions[0], fractions[-1]))), epochs_of(runs), len(runs)))  # fmt: skip
    columns = ("operation", "smallest fraction", "fractions tried", "epochs at most", "runs")
    note = "From which on, at every larger fraction tried as well, every seed reaches 0.99 test accuracy under one of the weight decays; none: at no fraction tried, in these epochs."
    return [Table("How little of the table is enough", columns, rows, note)]
