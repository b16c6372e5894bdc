"""What claims measure on a table of runs (pandas, one row per finished run; columns run, arm, seed and the study's own).

Rows are chosen by the value of a column, `arm` unless `of` names another, and averaged within a seed first: the seed is
the independent unit. Every measure needs two of them.

`table.attrs["missing"]` lists the runs that are not done, as studycore.record gives them. Those that belong to the arms of
the rows that a measure takes are named, and a share counts those that failed as not passed.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from studycore.claims import Condition, Measure, NotRun
from studycore.statistics import Interval, mean_interval, ratio_interval, share_interval

if TYPE_CHECKING:
    from pandas import DataFrame, Series

NAMED = 10
"""Failed runs that a sentence gives by name."""


def mean(metric: str, arm: Hashable = None, of: str = "arm") -> Measure:
    """Mean over seeds with Student's t interval."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        means, lost = by_seed(table, metric, arm, of), lost_runs(table, rows(table, metric, arm, of))
        if infinite := sum(map(math.isinf, means)):
            raise NotRun(f"{metric} is infinite for {infinite} of {len(means)} seeds{_of(arm)}, which have no mean.")
        return mean_interval(list(means)), f"Mean over seeds{_of(arm)}, Student's t.{lost}"

    return Measure(f"mean({metric}{_args(arm, of)})", compute)


def share(metric: str, arm: Hashable = None, of: str = "arm", by: str = "run") -> Measure:
    """Share of the runs (or of another unit, `by`) for which a true-or-false metric is true throughout; exact interval.

    A run of the same arms that failed has not passed. The interval reaches as far as if it had, and runs that are not
    finished could come out either way.
    """

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        chosen = rows(table, metric, arm, of)
        passed = chosen.groupby(by)[metric].all()
        failed, unfinished = (_missing(table, chosen, failed) for failed in (True, False))
        fail = set(passed.index[~passed.astype(bool)])
        lost = {run[by] for run in failed if by in run} - fail
        still_open = {run[by] for run in unfinished if by in run} - fail - lost
        passing = set(passed.index) - fail - lost - still_open
        k, n = len(passing), len(passing) + len(fail) + len(lost)
        if not n:
            raise NotRun(f"All runs of a {by} must finish first{_of(arm)}.")
        # What the others would have shown is not known: the interval holds every answer.
        total = n + len(still_open)
        low, high = share_interval(k, total).low, share_interval(k + len(lost) + len(still_open), total).high
        how = f"{k} of {n}; exact binomial interval."
        if failed:
            how += f" Failed, which counts as not passed: {_names(failed)}."
        if unfinished:
            how += f" Not finished, which counts either way: {_names(unfinished)}."
        return Interval(k / n, low, high, n), how

    return Measure(f"share({metric}{_args(arm, of)}, by {by})", compute)


def geometric_mean(metric: str, arm: Hashable = None, of: str = "arm", censored: str = "") -> Measure:
    """Geometric mean over runs of a positive metric, such as a ratio; `censored` names the column that is true where the
    value is only a lower bound."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        found = rows(table, metric, arm, of)
        chosen, lost = found[found[metric] > 0], lost_runs(table, found)
        if len(found) > len(chosen):
            lost += f" Left out: {len(found) - len(chosen)} of {len(found)} runs without a positive {metric}."
        enough(len(chosen), f"runs{_of(arm)} with a positive {metric}")
        count = int(chosen[censored].sum()) if censored else 0
        interval = ratio_interval([(float(value), 1.0) for value in chosen[metric]], at_least=count > 0)
        return (
            interval,
            f"Geometric mean over runs{_of(arm)}, Student's t on logarithms.{_censored(count, len(chosen))}{lost}",
        )

    return Measure(
        f"geometric_mean({metric}{_args(arm, of)}{f', censored by {censored}' if censored else ''})", compute
    )


def paired_difference(metric: str, treated: Hashable, control: Hashable, of: str = "arm", by: str = "seed") -> Measure:
    """Treated minus control, paired, with Student's t interval over the pairs."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        both = pairs(table, metric, treated, control, of, by)
        interval = mean_interval(list(both["treated"] - both["control"]))
        lost = lost_runs(table, table[table[of].isin([treated, control])])
        return interval, f"{treated} minus {control}, paired by {by}, Student's t.{lost}"

    return Measure(f"paired_difference({metric}, {treated!r} - {control!r}{_by(of, by)})", compute)


def paired_ratio(
    metric: str, treated: Hashable, control: Hashable, of: str = "arm", by: str = "seed", percent: bool = False,
    censored: str = "", alike: str = "", grid: str = "",
) -> Measure:  # fmt: skip
    """Treated over control, paired: geometric mean with Student's t interval on logarithms; `percent`: as a change.

    `censored` names the column that is true where the metric, a time, was not reached and is the run's length: a
    censored treated run makes the ratio a lower bound, a censored control an upper bound. `alike` says in words what the
    runs of a pair have in common, where the name of the column `by` does not. `grid` names the column with the step at
    which the metric, a time, was looked for: it is known to a step, whose standard deviation, step / sqrt(12), is the
    smallest that a time is taken to have, so that ties do not pass for certainty.
    """

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        both = pairs(table, metric, treated, control, of, by, alike)
        positive = both[(both["treated"] > 0) & (both["control"] > 0)]
        enough(len(positive), f"pairs of {treated} and {control} with positive {metric}")
        counts = [0, 0]
        if censored:
            ends = pairs(table, censored, treated, control, of, by, alike).loc[positive.index]
            counts = [int((ends[side] > 0).sum()) for side in ("treated", "control")]
        values = list(zip(positive["treated"], positive["control"], strict=True))
        least_sd = 0.0
        if grid:
            steps = pairs(table, grid, treated, control, of, by, alike).loc[positive.index]
            relative = (steps["treated"] / positive["treated"]) ** 2 + (steps["control"] / positive["control"]) ** 2
            least_sd = math.sqrt(float(relative.mean()) / 12)
        interval = ratio_interval(values, at_least=counts[0] > 0, at_most=counts[1] > 0, least_sd=least_sd)
        left_out = (
            f" {len(both) - len(positive)} pairs without a positive value are left out."
            if len(both) > len(positive)
            else ""
        )
        how = f"{treated} over {control}, geometric mean over pairs {alike or f'by {by}'}, Student's t on logarithms.{left_out}"
        how += _censored(counts[0], len(positive), f" of {treated}") + _censored(
            counts[1], len(positive), f" of {control}"
        )
        how += lost_runs(table, table[table[of].isin([treated, control])])
        return interval.as_percent() if percent else interval, how

    more = f"{', percent' if percent else ''}{f', censored by {censored}' if censored else ''}"
    more += f", on a grid of {grid}" if grid else ""
    return Measure(f"paired_ratio({metric}, {treated!r} / {control!r}{_by(of, by)}{more})", compute)


def at_least(metric: str, value: float, arm: Hashable = None, of: str = "arm") -> Condition:
    """That every run, of the arm if one is named, has a metric of `value` or more."""

    def unmet(table: "DataFrame") -> str:
        smallest = rows(table, metric, arm, of)[metric].min()
        return (
            ""
            if smallest >= value
            else f"Needs runs{_of(arm)} with {metric} {value:g} or more; the smallest is {smallest:g}."
        )

    return Condition(f"at_least({metric}, {value:g}{_args(arm, of)})", unmet)


# --------------------------------------------------------------------------------------------------------- the table
def rows(table: "DataFrame", metric: str, arm: Hashable = None, of: str = "arm") -> "DataFrame":
    """The runs of an arm (all of them for None) that have the metric. NotRun when there are none."""
    _has_columns(table, metric, of)
    chosen = (table if arm is None else table[table[of] == arm]).dropna(subset=[metric])
    if chosen.empty:
        raise NotRun(f"The value of {metric} exists for no finished run{_of(arm)}.")
    return chosen


def _missing(table: "DataFrame", chosen: "DataFrame", failed: bool) -> list[Mapping[str, Any]]:
    """The runs of the arms of the chosen rows that failed, or that are not finished yet."""
    missing = table.attrs.get("missing", [])
    if not missing:
        return []
    arms = set(chosen["arm"])
    if (chosen["arm"] == chosen["run"]).any():  # runs without a named arm are of one
        arms.add("")
    return [run for run in missing if run["arm"] in arms and run["failed"] == failed]


def lost_runs(table: "DataFrame", chosen: "DataFrame") -> str:
    """ "" or a sentence that names the runs which failed in the arms of the chosen rows."""
    failed = _missing(table, chosen, True)
    return f" Failed and left out: {_names(failed)}." if failed else ""


def _names(runs: Sequence[Mapping[str, Any]]) -> str:
    more = f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
    return ", ".join(str(run["run"]) for run in runs[:NAMED]) + more


def _has_columns(table: "DataFrame", metric: str, *others: str) -> None:
    if table.empty:
        raise NotRun("No run has finished yet.")
    if not {metric, *others} <= set(table.columns):
        raise NotRun(f"The value of {metric} exists for no finished run.")


def by_seed(table: "DataFrame", metric: str, arm: Hashable = None, of: str = "arm") -> "Series[float]":
    """The metric by seed, averaged over a seed's runs. NotRun with fewer than two seeds."""
    means = rows(table, metric, arm, of).groupby("seed")[metric].mean()
    enough(len(means), f"seeds{_of(arm)}")
    return means


def pairs(
    table: "DataFrame",
    metric: str,
    treated: Hashable,
    control: Hashable,
    of: str = "arm",
    by: str = "seed",
    alike: str = "",
) -> "DataFrame":
    """Columns treated and control of every value of `by` that both have, averaged within it. NotRun with fewer than two."""
    import pandas as pd

    _has_columns(table, metric, of, by)
    sides = [
        table[table[of] == arm].dropna(subset=[metric, by]).groupby(by)[metric].mean() for arm in (treated, control)
    ]
    both = pd.concat(sides, axis=1, join="inner", keys=["treated", "control"]).astype(float)
    enough(
        len(both), f"pairs of {treated} and {control} {alike}" if alike else f"pairs by {by} of {treated} and {control}"
    )
    return both


def enough(count: int, what: str) -> None:
    """NotRun for less than two of something."""
    if count < 2:
        raise NotRun(f"Needs 2 or more finished {what}; there are {count}.")


def _censored(count: int, n: int, whose: str = "") -> str:
    return f" {count} of {n}{whose} did not reach it and are counted as their full length." if count else ""


def _of(arm: Any) -> str:
    return "" if arm is None else f" of {arm}"


def _args(arm: Any, of: str) -> str:
    return "" if arm is None else f", {'' if of == 'arm' else f'{of} = '}{arm!r}"


def _by(of: str, by: str) -> str:
    return f"{'' if of == 'arm' else f' of {of}'}{'' if by == 'seed' else f', by {by}'}"
