"""What claims measure on a table of runs (pandas, one row per finished run; columns run, arm, seed and the study's own).

Rows are chosen by the value of a column, `arm` unless `of` names another, and averaged within a seed first: the seed is
the independent unit. Every measure needs two of them.

`table.attrs["missing"]` lists the runs that are not done, as studycore.record gives them. A share counts those of its rows
that failed as not passed; a mean, a difference or a ratio is not run without any of its own, because runs that fail are
often those that would have decided it.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
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
        means = by_seed(table, metric, arm, of)
        if infinite := sum(map(math.isinf, means)):
            raise NotRun(f"{metric} is infinite for {infinite} of {len(means)} seeds{_of(arm)}, which have no mean.")
        return mean_interval(list(means)), f"Mean over seeds{_of(arm)}, Student's t.{_lacking(table, metric, arm, of)}"

    return Measure(f"mean({metric}{_args(arm, of)})", compute, "seeds", metric, of_arms(of, arm))


def share(metric: str, arm: Hashable = None, of: str = "arm", by: str = "run") -> Measure:
    """Share of the runs (or of another unit, `by`) for which a true-or-false metric is true throughout; exact interval.

    A planned run of the same arms that failed has not passed. The interval reaches as far as if it had, and runs that are
    not finished could come out either way.
    """

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        missing = missing_runs(table, arm, of)
        failed, unfinished = ([run for run in missing if run["failed"] == which] for which in (True, False))
        try:
            chosen = rows(table, metric, arm, of)
        except NotRun as none:
            if missing and not failed:
                raise NotRun(f"{none} Not finished: {_names(unfinished)}.") from None
            if not failed:
                raise
            chosen = table.reindex(columns=[*{*table.columns, by, metric}])[:0]
        passed = chosen.groupby(by)[metric].all()
        fail = set(passed.index[~passed.astype(bool)])
        # One of which the record does not say the unit, as of an older folder, is a unit of its own.
        lost, still_open = ({run.get(by, ("run", run["run"])) for run in runs} - fail for runs in (failed, unfinished))
        still_open -= lost
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
        return Interval(k / n, low, high, n, unknown=len(lost) + len(still_open)), how

    return Measure(f"share({metric}{_args(arm, of)}, by {by})", compute, f"{by}s", metric, of_arms(of, arm))


def geometric_mean(
    metric: str, arm: Hashable = None, of: str = "arm", censored: str = "", by: str = "run", capped: str = "", over: str = "",
    grid: str = "", percent: bool = False,
) -> Measure:  # fmt: skip
    """Geometric mean over runs (or over another unit, `by`) of a positive metric, or of its ratio to the positive one in the column
    `over`; `censored` names the column that is true where the value is only a lower bound, `capped` the one that is true where
    it is only an upper bound. `grid` is that of paired_ratio, for a ratio of two times; `percent`: a ratio as a change.
    """

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        all_done(table, arm, of)
        measured = rows(table, metric, arm, of)
        _has_columns(measured, over or metric)
        positive = (measured[[metric, over] if over else [metric]] > 0).all(axis=1)
        chosen, lost = measured[positive], _lacking(table, metric, arm, of)
        if len(measured) > len(chosen):
            lost += f" Left out: {len(measured) - len(chosen)} of {len(measured)} runs without a positive {metric}."
        enough(len(chosen), f"runs{_of(arm)} with a positive {metric}")
        count, above = (int(chosen[column].sum()) if column else 0 for column in (censored, capped))
        parts = chosen.assign(one=1.0)[[metric, over or "one"]].astype(float).map(math.log)
        units = parts.groupby(chosen[by]).mean().map(math.exp)
        enough(len(units), f"{by}s{_of(arm)} with a positive {metric}")
        steps = [(step, step) for step in chosen.groupby(by)[grid].max()] if grid else []
        interval = ratio_interval(
            list(units.itertuples(index=False)), at_least=count > 0, at_most=above > 0, steps=steps
        )
        interval = interval.as_percent() if percent else interval
        bounds = _censored(count, len(chosen))
        if above:
            bounds += f" Of {above} of {len(chosen)} the value is only an upper bound ({capped})."
        return interval, f"Geometric mean over {by}s{_of(arm)}, Student's t on logarithms.{bounds}{lost}"

    more = f"{f', censored by {censored}' if censored else ''}{f', over {over}' if over else ''}"
    more += f"{f', on a grid of {grid}' if grid else ''}{f', capped by {capped}' if capped else ''}{'' if by == 'run' else f', by {by}'}"
    more += ", percent" if percent else ""
    return Measure(f"geometric_mean({metric}{_args(arm, of)}{more})", compute, f"{by}s", metric, of_arms(of, arm))


def paired_difference(
    metric: str, treated: Hashable, control: Hashable, of: str = "arm", by: str = "seed", may_lack: str = ""
) -> Measure:
    """Treated minus control, paired, with Student's t interval over the pairs.

    A pair whose runs are done and lacks the metric leaves the measure not run, since it may be the one that would have
    decided. `may_lack` says of a metric that has no value in some runs by its definition when that is: such pairs are then
    left out and counted.
    """

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        both = pairs(table, metric, treated, control, of, by, may_lack=may_lack)
        interval = mean_interval(list(both["treated"] - both["control"]))
        return interval, f"{treated} minus {control}, paired by {by}, Student's t.{both.attrs['left_out']}"

    text = f"paired_difference({metric}, {treated!r} - {control!r}{_by(of, by)})"
    return Measure(text, compute, "pairs", metric, of_arms(of, treated, control))


def paired_ratio(
    metric: str, treated: Hashable, control: Hashable, of: str = "arm", by: str = "seed", percent: bool = False,
    censored: str = "", alike: str = "", grid: str = "", may_lack: str = "",
) -> Measure:  # fmt: skip
    """Treated over control, paired: geometric mean with Student's t interval on logarithms; `percent`: as a change. Of pairs
    without the metric see paired_difference.

    `censored` names the column that is true where the metric, a time, was not reached and is the run's length: a
    censored treated run makes the ratio a lower bound, a censored control an upper bound. `alike` says in words what the
    runs of a pair have in common, where the name of the column `by` does not. `grid` names the column with the number
    of steps between evaluations: the metric, a time, may have come up to that many steps before it was seen, in all runs
    alike, and the interval reaches as far (see studycore.statistics.ratio_interval).
    """

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        both = pairs(table, metric, treated, control, of, by, alike, may_lack)
        positive = both[(both["treated"] > 0) & (both["control"] > 0)]
        enough(len(positive), f"pairs of {treated} and {control} with positive {metric}")
        counts = [0, 0]
        if censored:
            ends = pairs(table, censored, treated, control, of, by, alike).loc[positive.index]
            counts = [int((ends[side] > 0).sum()) for side in ("treated", "control")]
        values = list(zip(positive["treated"], positive["control"], strict=True))
        steps = []
        if grid:
            of_grid = pairs(table, grid, treated, control, of, by, alike).loc[positive.index]
            steps = list(zip(of_grid["treated"], of_grid["control"], strict=True))
        interval = ratio_interval(values, at_least=counts[0] > 0, at_most=counts[1] > 0, steps=steps)
        left_out = (
            f" {len(both) - len(positive)} pairs without a positive value are left out."
            if len(both) > len(positive)
            else ""
        )
        left_out += both.attrs["left_out"]
        how = f"{treated} over {control}, geometric mean over pairs {alike or f'by {by}'}, Student's t on logarithms.{left_out}"
        how += _censored(counts[0], len(positive), f" of {treated}") + _censored(
            counts[1], len(positive), f" of {control}"
        )
        return interval.as_percent() if percent else interval, how

    more = f"{', percent' if percent else ''}{f', censored by {censored}' if censored else ''}"
    more += f", on a grid of {grid}" if grid else ""
    text = f"paired_ratio({metric}, {treated!r} / {control!r}{_by(of, by)}{more})"
    return Measure(text, compute, "pairs", metric, of_arms(of, treated, control))


def at_least(metric: str, value: float, arm: Hashable = None, of: str = "arm") -> Condition:
    """That every run, of the arm if one is named, has a metric of `value` or more; unmet while one is missing or lacks it."""

    def unmet(table: "DataFrame") -> str:
        all_done(table, arm, of)
        have, own = rows(table, metric, arm, of)[metric], table if arm is None else table[table[of] == arm]
        if len(have) < len(own):
            return f"Needs {metric} of all {len(own)} runs{_of(arm)}; {len(own) - len(have)} are done and lack it."
        smallest = have.min()
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


def of_arms(of: str, *arms: Hashable) -> Callable[["DataFrame"], "DataFrame"]:
    """Those of a table's rows that are of one of the arms; all of them where the only arm is None."""
    return lambda table: table if arms == (None,) else table[table[of].isin(arms)] if of in table else table[:0]


def missing_runs(table: "DataFrame", arm: Hashable = None, of: str = "arm") -> list[Mapping[str, Any]]:
    """The runs of an arm that failed or are not finished; for None those of all arms of which a run is in the table.

    Where the record does not say what `of` is of a missing run, those of the arms of the arm's own rows count.
    """
    missing = table.attrs.get("missing", [])
    if not missing:
        return []
    if arm is not None and any(of in run for run in missing):
        return [run for run in missing if run.get(of) == arm]
    chosen = table if arm is None else table[table[of] == arm] if of in table else table[:0]
    arms = set(chosen["arm"]) if "arm" in chosen else set()
    if arms and (chosen["arm"] == chosen["run"]).any():  # runs without a named arm are of one
        arms.add("")
    return [run for run in missing if run["arm"] in arms]


def all_done(table: "DataFrame", arm: Hashable = None, of: str = "arm") -> None:
    """NotRun when runs of an arm failed or are not finished: those that are done would decide alone."""
    missing = missing_runs(table, arm, of)
    done = len(table) if arm is None else int((table[of] == arm).sum()) if of in table else 0
    _none_missing(missing, len(missing) + done, _of(arm))


def _none_missing(missing: Sequence[Mapping[str, Any]], planned: int, whose: str) -> None:
    if missing:
        words = (("failed", True), ("not finished", False))
        kinds = [(word, [run for run in missing if run["failed"] == which]) for word, which in words]
        which = "; ".join(f"{word}: {_names(runs)}" for word, runs in kinds if runs)
        raise NotRun(f"Needs all {planned} runs{whose}; {len(missing)} are missing ({which}).")


def _lacking(table: "DataFrame", metric: str, arm: Hashable, of: str) -> str:
    """ "" or a sentence that counts the finished runs of a named arm without the metric."""
    own = table[:0] if arm is None else table[table[of] == arm]
    count = int(own[metric].isna().sum())
    return f" Left out: {count} of {len(own)} runs without {metric}." if count else ""


def _names(runs: Sequence[Mapping[str, Any]]) -> str:
    more = f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
    return ", ".join(str(run["run"]) for run in runs[:NAMED]) + more


def _has_columns(table: "DataFrame", metric: str, *others: str) -> None:
    if table.empty:
        raise NotRun("No run has finished yet.")
    if not {metric, *others} <= set(table.columns):
        raise NotRun(f"The value of {metric} exists for no finished run.")


def by_seed(table: "DataFrame", metric: str, arm: Hashable = None, of: str = "arm") -> "Series[float]":
    """The metric by seed, averaged over a seed's runs. NotRun with fewer than two seeds, or when a run is missing."""
    all_done(table, arm, of)
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
    may_lack: str = "",
) -> "DataFrame":
    """Columns treated and control of every value of `by` that both have, averaged within it. NotRun with fewer than two, or
    when a run that a pair needs is missing, or when a pair lacks the metric and `may_lack` does not say why it may; else
    attrs["left_out"] is the sentence that counts such pairs."""
    import pandas as pd

    _all_pairs_done(table, treated, control, of, by)
    _has_columns(table, metric, of, by)
    sides = []
    for arm in (treated, control):
        own = table[table[of] == arm].dropna(subset=[by])
        known = own.dropna(subset=[metric]).groupby(by)[metric].mean()
        sides.append(known.reindex(sorted(set(own[by]))))  # with a gap for what is done and has no value
    planned = pd.concat(sides, axis=1, join="inner", keys=["treated", "control"]).astype(float)
    lacking = planned[planned.isna().any(axis=1)]
    whose = f"pairs of {treated} and {control} {alike}" if alike else f"pairs by {by} of {treated} and {control}"
    if len(lacking) and not may_lack:
        named = ", ".join(map(str, lacking.index[:NAMED])) + (" and more" if len(lacking) > NAMED else "")
        raise NotRun(
            f"Needs {metric} of all {len(planned)} {whose}; {len(lacking)} are done and lack it ({by} {named}), and what "
            "they would have shown is not known."
        )
    both = planned.dropna()
    enough(len(both), whose)
    lost = f" Left out: {len(lacking)} of {len(planned)} pairs without {metric}, {may_lack}." if len(lacking) else ""
    both.attrs["left_out"] = lost
    return both


def _all_pairs_done(table: "DataFrame", treated: Hashable, control: Hashable, of: str, by: str) -> None:
    missing = [missing_runs(table, arm, of) for arm in (treated, control)]
    if not any(missing):
        return
    done = [list(table[table[of] == arm][by]) if {of, by} <= set(table) else [] for arm in (treated, control)]
    sides = [[*keys, *(run.get(by) for run in runs)] for keys, runs in zip(done, missing, strict=True)]
    both = set(sides[0]) & set(sides[1])
    lost = [run for runs in missing for run in runs if run.get(by) in both]
    planned = sum(key in both for side in sides for key in side)
    _none_missing(lost, planned, f" of {treated} and {control}")


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
