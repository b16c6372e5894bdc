"""Several experiments: aligned by epoch, grouped by a field of the configuration, summarised, and how long they took to grok."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from least_action.analysis.loader import SEEDS, ExperimentData, arm_of, get_experiment_group
from least_action.config import MEASURING
from least_action.survival import kaplan_meier
from studycore.errors import UserError
from studycore.statistics import mean_interval, t_factor

if TYPE_CHECKING:
    import pandas as pd


TASK = ("operation", "p")
"""Fields that say what is learnt."""
LONGEST_LABEL = 3
"""Fields in the label of a group, beyond which its sweep tells it apart."""


def differing_fields(experiments: Sequence[ExperimentData]) -> list[str]:
    """Fields of the configurations that are not the same in all, seeds left out."""
    names = dict.fromkeys(name for e in experiments for name in e.config)
    return [n for n in names if n not in SEEDS and len({repr(e.config.get(n)) for e in experiments}) > 1]


def telling_fields(experiments: Sequence[ExperimentData], beyond: Sequence[str] = ()) -> list[str]:
    """The fields that it takes to tell settings apart, those of the task first, where `beyond` is known already.

    A field is left out that goes with those before it, such as a routed model's regulariser, and so is bookkeeping.
    """
    names = [name for name in differing_fields(experiments) if name not in (*beyond, *MEASURING)]
    chosen, parts = list(beyond), _parts(experiments, beyond)
    for name in [*(n for n in TASK if n in names), *(n for n in names if n not in TASK)]:
        if (more := _parts(experiments, [*chosen, name])) > parts:
            chosen, parts = [*chosen, name], more
    return chosen[len(beyond) :]


def _parts(experiments: Sequence[ExperimentData], names: Sequence[str]) -> int:
    """Into how many the fields part the experiments."""
    return len({tuple(repr(e.config.get(name)) for name in names) for e in experiments})


def seed_groups(experiments: Sequence[ExperimentData]) -> dict[str, list[ExperimentData]]:
    """Label -> the seeds of one setting, whatever sweep or command made them.

    A run that repeats setting and seeds of another is no further seed of it and belongs to a further group. The label
    is the name that the runs share without their seed; where groups share it too, with the fields that tell them apart
    or else the sweep; for runs of different names those fields alone.
    """
    groups: dict[Any, list[ExperimentData]] = {}
    seen: Counter[Any] = Counter()
    for experiment in experiments:
        again = seen[experiment.setting, experiment.seeds]
        seen[experiment.setting, experiment.seeds] += 1
        groups.setdefault((experiment.setting, again), []).append(experiment)
    return dict(zip(_labels(list(groups.values())), groups.values(), strict=True))


def _labels(groups: Sequence[Sequence[ExperimentData]]) -> list[str]:
    """Of each group its own."""
    firsts = [members[0] for members in groups]
    arms = [{arm_of(e.name) for e in members} for members in groups]
    labels = [min(names) if len(names) == 1 else "" for names in arms]
    for label in [label for label, count in Counter(labels).items() if count > 1 or not label]:
        alike = [i for i, other in enumerate(labels) if other == label]
        fields = telling_fields([firsts[i] for i in alike] if label else firsts)
        for i in alike:
            values = [f"{name} {firsts[i].config.get(name)}" for name in fields]
            if label and not 0 < len(values) <= LONGEST_LABEL:
                labels[i] = f"{get_experiment_group(firsts[i].name)}/{label}"
            else:
                labels[i] = ", ".join([label] * bool(label) + values) or "one setting"
    counts = Counter(labels)
    return [first.name if counts[label] > 1 else label for first, label in zip(firsts, labels, strict=True)]


def align_by_epoch(
    experiments: Sequence[ExperimentData], metric: str = "test_acc", epochs: Sequence[int] | None = None
) -> "pd.DataFrame":
    """A metric of several experiments over the same epochs, a column each: as last measured at or before the epoch.

    `epochs` are by default all at which any of them measured it. After an experiment's last measurement it has no value.
    """
    import pandas as pd

    measured = {e.name: _measured(e, metric) for e in experiments}
    if epochs is None:
        epochs = sorted({epoch for frame in measured.values() for epoch in frame["epoch"]})
    aligned = pd.DataFrame({"epoch": pd.Series(sorted(epochs), dtype="int64")})
    for name, frame in measured.items():
        column = pd.merge_asof(aligned[["epoch"]], frame, on="epoch")[metric]
        aligned[name] = column.where(aligned["epoch"] <= (frame["epoch"].iloc[-1] if len(frame) else -1))
    return aligned.set_index("epoch")


def _measured(experiment: ExperimentData, metric: str) -> "pd.DataFrame":
    import pandas as pd

    history = experiment.history_df
    if metric not in history:
        return pd.DataFrame({"epoch": pd.Series(dtype="int64"), metric: pd.Series(dtype="float64")})
    return history[["epoch", metric]].dropna().drop_duplicates("epoch", keep="last").sort_values("epoch")


def seed_bands(aligned: "pd.DataFrame") -> "pd.DataFrame":
    """mean, low and high (95 %, Student's t), min, max and n over the columns of `align_by_epoch`; no interval for n = 1.

    Only epochs at which as many columns as ever have a value: seeds that have ended would bend the mean.
    """
    import numpy as np
    import pandas as pd

    values = aligned.to_numpy(dtype="float64")
    counts = (~np.isnan(values)).sum(axis=1)
    n = int(counts.max(initial=0))
    kept, values = aligned.index[counts == n], values[counts == n]
    if not n:
        return pd.DataFrame(np.nan, index=kept, columns=["mean", "low", "high", "min", "max"]).assign(n=0)
    mean = np.nansum(values, axis=1) / n
    half = np.full(len(values), np.nan)
    if n > 1:
        half = np.nanstd(values, axis=1, ddof=1) * t_factor(n)
    bands = {"mean": mean, "low": mean - half, "high": mean + half}
    bands |= {"min": np.nanmin(values, axis=1), "max": np.nanmax(values, axis=1), "n": n}
    return pd.DataFrame(bands, index=kept)


def group_by_hyperparameter(
    experiments: Sequence[ExperimentData], parameter: str, metric: str = "test_acc"
) -> "pd.DataFrame":
    """A row per value of a field: n, the mean of the metric's last value with its 95 % interval, lowest and highest."""
    import pandas as pd

    groups: dict[Any, list[float]] = {}
    for experiment in experiments:
        frame = _measured(experiment, metric)
        if len(frame):
            groups.setdefault(_field(experiment, parameter), []).append(float(frame[metric].iloc[-1]))
    if not groups:
        raise UserError(f"metric: '{metric}' was measured by none of the {len(experiments)} experiments")
    rows = []
    for value, values in sorted(groups.items(), key=lambda item: (str(type(item[0])), item[0])):
        interval = mean_interval(values) if len(values) > 1 else None
        bounds = (None, None) if interval is None else (interval.low, interval.high)
        rows.append((value, len(values), sum(values) / len(values), *bounds, min(values), max(values)))
    return pd.DataFrame(rows, columns=[parameter, "n", "mean", "low", "high", "min", "max"])


def create_sweep_summary(
    experiments: Sequence[ExperimentData], parameters: Sequence[str] = (), metrics: Sequence[str] = ("test_acc",)
) -> "pd.DataFrame":
    """A row per experiment: its fields, the last value of each metric, and when it memorised and grokked (censored: not)."""
    import pandas as pd

    rows = []
    for experiment in experiments:
        row: dict[str, Any] = {"experiment_name": experiment.name}
        row |= {name: _field(experiment, name) for name in parameters}
        for metric in metrics:
            frame = _measured(experiment, metric)
            row[metric] = float(frame[metric].iloc[-1]) if len(frame) else None
        events = experiment.events
        row |= {
            "memorised": events and events.memorised,
            "grokked": events and events.grokked_99,
            "censored": None if events is None else not experiment.has_grokked,
            "max_epoch": experiment.max_epoch,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def time_to_grok(experiments: Sequence[ExperimentData], by: Sequence[str]) -> "pd.DataFrame":
    """A row per combination of fields: n runs, how many memorised and how many reached 0.99 (`grokked`, after a plateau
    or not), and the Kaplan-Meier median of epochs to 0.99.

    Runs that did not reach it count as censored at their last epoch; a median that was not reached is missing.
    """
    import pandas as pd

    groups: dict[tuple[Any, ...], list[ExperimentData]] = {}
    for experiment in experiments:
        if experiment.events is not None:
            groups.setdefault(tuple(_field(experiment, name) for name in by), []).append(experiment)
    rows = []
    for values, members in sorted(groups.items(), key=lambda item: tuple((str(type(v)), v) for v in item[0])):
        events = [e.events for e in members if e.events is not None]
        times = [e.last_epoch if e.grokked_99 is None else e.grokked_99 for e in events]
        curve = kaplan_meier(times, [e.grokked_99 is not None for e in events])
        low, high = curve.median_interval() if curve.events else (None, None)
        memorised = sum(e.memorised is not None for e in events)
        rows.append((*values, curve.n, memorised, curve.events, curve.quantile(), low, high, max(times)))
    names = [*by, "n", "memorised", "grokked", "median", "low", "high", "last_epoch"]
    return pd.DataFrame(rows, columns=names)


def _field(experiment: ExperimentData, name: str) -> Any:
    if name not in experiment.config:
        raise UserError(
            f"{name}: is no field of {experiment.name}'s configuration; it has {', '.join(experiment.config)}"
        )
    return experiment.config[name]
