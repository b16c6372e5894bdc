"""This study's own measures of a table of runs, and the conditions under which claims are tested; studycore.measures has
those that every study uses. Several draws of the projections are averaged within a seed first.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from studycore.claims import Condition, Measure, NotRun
from studycore.measures import all_done, at_least, mean, missing_runs, of_arms, pairs, rows, share
from studycore.statistics import Interval, fisher_interval, mean_interval, unbiased_z
from ternary_vae.columns import AT_CEILING, COVERS, DRAWS, LARGEST_PART, TARGETS, TARGETS_ARE_OF, TIES
from ternary_vae.config import SCRATCH

if TYPE_CHECKING:
    from pandas import DataFrame

PLATEAU_EPOCHS = 50
"""Epochs of the original study's runs from scratch."""
LEAST_EPOCHS = 10
"""Epochs below which nothing is said about what the original study found over dozens."""
LEAST_SEEDS = 3
"""Below it an interval over seeds says nothing: two that agree by chance make it a point."""
LEAST_DRAWS = 4
"""Draws of the projections in a phase of a seed, below which it has no spread and no correlation."""


def every_seed(target: str) -> Measure:
    """Share of the seeds of which every whole run passes, saying how long they were and whose code is measured.

    Of seeds and not of runs: arms of one seed may be the same training under two names, and begin with the same weights.
    """
    passing = share(f"passes_{target}", True, of="whole", by="seed")

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        table = from_scratch(table)
        interval, how = passing.compute(table)
        own = whole_runs(table)
        budgets = sorted({_budget(run) for run in own})
        one_code = all(run["view"] == "a" and run["stages"] == "joint" for run in own)
        whose = (
            "Both are of encoder A's one code." if one_code else "Coverage is of encoder A's code, order of the view's."
        )
        length = f"Trained for at most {' or '.join(budgets)}."
        return interval, f"{how} If every seed passes, the claim is supported from six seeds on. {length} {whose}"

    return replace(passing, compute=compute).given(target=TARGETS[target])


def from_scratch(table: "DataFrame") -> "DataFrame":
    """The runs but for a sweep's phases, and the checkpoints that these start from: no target is asked of those."""
    own = table[table["phase"].eq(SCRATCH)] if "phase" in table else table.copy()
    own.attrs["missing"] = [run for run in table.attrs.get("missing", []) if run.get("phase", SCRATCH) == SCRATCH]
    return own


def whole_runs(table: "DataFrame") -> list[Mapping[str, Any]]:
    """The whole runs that were planned: those that are done, and those that failed or are not finished."""
    done = table[table["whole"].eq(True)].to_dict("records") if "whole" in table else []
    return [*done, *(run for run in missing_runs(table, True, of="whole") if "settings" in run)]


def _budget(run: Mapping[str, Any]) -> str:
    """How long a run from scratch may train."""
    if run["stages"] == "joint":
        return f"{run['epochs']} epochs (coverage and hierarchy at once)"
    return f"{run['coverage_epochs']} + {run['epochs']} epochs (coverage + hierarchy)"


def largest_coverage(arm: str) -> Measure:
    """Mean of a run's largest coverage; only a lower bound of it where runs ended sooner than the original study's."""
    plain = mean("largest_coverage", arm)

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        interval, how = plain.compute(table)
        epochs = int(table[table["arm"] == arm]["coverage_epochs"].min())
        if epochs >= PLATEAU_EPOCHS:
            return interval, how
        why = f"Only {PLATEAU_EPOCHS} epochs, as in the original study, can show that coverage stays below; these had {epochs}."
        return replace(interval, at_least=True), f"{how} {why}"

    text = f"{plain.text}, at least where coverage_epochs < {PLATEAU_EPOCHS}"
    return replace(plain, text=text, compute=compute)


BEST_ARMS = ("sweep2_baseline", "sweep3_early_stop_p5", "sweep4_lr_1e3")
"""Arms among which the best hierarchy is looked for: as many in a small sweep as in a large one, since more runs have a
better best by chance alone. Among them is the original study's own best."""


def best_of_three_arms() -> Measure:
    """The best hierarchy of any evaluation of these arms, picked after the fact."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        for arm in BEST_ARMS:
            all_done(table, arm)
        own = rows(table[table["arm"].isin(BEST_ARMS)], "best_hierarchy")
        arms = own.groupby("seed")["arm"].nunique()
        best = own.groupby("seed")["best_hierarchy"].min()[arms == len(BEST_ARMS)]
        _enough_seeds(len(best))
        how = "The best of all evaluations of these arms in a seed, picked after the fact as the original study did; mean over seeds, Student's t."
        return mean_interval(list(best)), how

    text = f"mean over seeds of the least best_hierarchy of {', '.join(BEST_ARMS)}"
    return Measure(text, compute, "seeds", "best_hierarchy", of_arms("arm", *BEST_ARMS))


def _curves(table: "DataFrame", arm: str) -> "DataFrame":
    """Hierarchy by epoch [epochs, seeds] of an arm, of what its runs reached. NotRun when some are missing."""
    import pandas as pd

    all_done(table, arm)
    own = rows(table, "hierarchy_by_epoch", arm)
    return pd.DataFrame(
        {seed: pd.DataFrame(list(of)).mean() for seed, of in own.groupby("seed")["hierarchy_by_epoch"]}
    ).sort_index()


def worsening(arm: str) -> Measure:
    """From the best epoch to the end, the epoch being that of the other seeds.

    The end minus a run's own best is never negative, and the larger the more the evaluations vary: of noise about a constant
    it would show a decay. What the other seeds choose is independent of a seed's noise.
    """

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        curves = _curves(table, arm)
        _enough_seeds(curves.shape[1])
        if curves.isna().any(axis=None):
            raise NotRun(f"Needs runs of {arm} with the same evaluations; those of some seeds lack epochs.")
        others = {seed: curves.drop(columns=seed).mean(axis=1).idxmin() for seed in curves}
        _after_the_start(arm, others.values())
        how = f"End minus the epoch that is best in the mean of the other seeds ({min(others.values())} to {max(others.values())}); mean over seeds, Student's t."
        return mean_interval([curves[seed].iloc[-1] - curves[seed][best] for seed, best in others.items()]), how

    return Measure(
        f"mean over seeds of the end minus the best epoch of the other seeds (hierarchy, {arm!r}), not of a start",
        compute, "seeds", "final_hierarchy", of_arms("arm", arm),
    )  # fmt: skip


def best_in_common_epochs(treated: str, control: str) -> Measure:
    """Of the runs of a seed, over the epochs that both have: of more evaluations the best is better by chance alone."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        pairs(table, "best_hierarchy", treated, control)
        first, second = _curves(table, treated), _curves(table, control)
        apart = []
        for seed in sorted(set(first) & set(second)):
            both = first[seed].dropna().index.intersection(second[seed].dropna().index)
            apart.append(first[seed][both].min() - second[seed][both].min())
        how = (
            f"Best of the epochs that both runs of a seed have; {treated} minus {control}, paired by seed, Student's t."
        )
        return mean_interval(apart), how

    text = f"paired_difference(best_hierarchy of common epochs, {treated!r} - {control!r})"
    return Measure(text, compute, "pairs", "best_hierarchy", of_arms("arm", treated, control))


def latest_peak(arm: str, of: str = "arm") -> Measure:
    """The latest best epoch of a seed's runs, such as of any weighting: "with every weighting" is about that one, and not about
    the mean. A best before the first update is no peak of a training."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        all_done(table, arm, of)
        own = rows(table, "best_epoch", arm, of)
        arms = own.groupby("seed")["arm"].agg(set)
        if lacking := sorted({one for of_seed in arms for one in set(own["arm"]) - of_seed}):
            raise NotRun(f"Needs every weighting in every seed; {', '.join(lacking)} is not finished in all.")
        latest = own.groupby("seed")["best_epoch"].max()
        _enough_seeds(len(latest))
        _after_the_start(arm, latest)
        return mean_interval(list(latest)), f"The latest of {arm} within a seed; mean over seeds, Student's t."

    text = f"mean over seeds of the largest best_epoch of {of} = {arm!r}, not of a start"
    return Measure(text, compute, "seeds", "best_epoch", of_arms(of, arm))


def _after_the_start(arm: str, epochs: Iterable[int]) -> None:
    if any(epoch == 0 for epoch in epochs):
        raise NotRun(f"A run of {arm} is best before its first update, so that its training has no peak.")


def _of_draws(table: "DataFrame", *metrics: str) -> dict[Any, list["DataFrame"]]:
    """Seed -> its draws of the projections, phase by phase: phases differ in rate, stopping and length, so that runs of two
    phases are no draws of one quantity. Runs that begin with the same projections are one draw, and averaged."""
    all_done(table, DRAWS, of="group")
    own = rows(table, metrics[0], DRAWS, of="group").dropna(subset=list(metrics))
    means = own.groupby(["seed", "arm_without_draw", "draw"])[list(metrics)].mean()
    phases = dict(iter(means.groupby(["seed", "arm_without_draw"])))
    if (fewest := min(map(len, phases.values()), default=0)) < LEAST_DRAWS:
        raise NotRun(f"Needs {LEAST_DRAWS} or more different draws in every phase of a seed; there are {fewest}.")
    _enough_seeds(len({seed for seed, _ in phases}))
    return {seed: [draws for (of, _), draws in phases.items() if of == seed] for seed, _ in phases}


def spread_of_draws() -> Measure:
    def compute(table: "DataFrame") -> tuple[Interval, str]:
        seeds = _of_draws(table, "best_hierarchy").values()
        # The mean of variances has no bias with few draws; its root has one, which c4 takes away (of normal values).
        spreads = [
            math.sqrt(sum(draws["best_hierarchy"].var(ddof=1) for draws in of) / len(of))
            / c4(sum(map(len, of)) - len(of))
            for of in seeds
        ]
        how = "Within a phase of a seed; root of the mean variance over its phases, over c4, mean over seeds, Student's t."
        return mean_interval(spreads), how

    return Measure(
        f"spread(best_hierarchy, group = {DRAWS!r}, within phase and seed, {LEAST_DRAWS} different ones or more, over c4)",
        compute, "seeds", "best_hierarchy", of_arms("group", DRAWS),
    )  # fmt: skip


def c4(freedom: int) -> float:
    """What the root of an unbiased variance with these degrees of freedom is on average, of normal values with deviation 1."""
    return math.sqrt(2 / freedom) * math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))


def correlation_of_draws() -> Measure:
    def compute(table: "DataFrame") -> tuple[Interval, str]:
        first, best = "initial_hierarchy", "best_hierarchy"
        of_group = table[table["group"].eq(DRAWS)] if "group" in table else table[:0]
        if len(own := of_group[of_group["best_is_start"].eq(True)] if len(of_group) else of_group):
            which = f"{len(own)} of {len(of_group)} runs, such as {own['run'].iloc[0]}"
            raise NotRun(f"In {which}, the best hierarchy is the one before training, which then predicts itself.")
        seeds = [
            [(float(draws[first].corr(draws[best])), len(draws)) for draws in of]
            for of in _of_draws(table, first, best).values()
        ]
        if any(math.isnan(r) for of in seeds for r, _ in of):
            raise NotRun(f"In a phase of a seed all runs have the same {first} or {best}: there is no correlation.")
        how = "Within a phase of a seed; Fisher's z without its bias of few draws, mean over its phases, then over seeds, Student's t."
        return fisher_interval([mean_correlation(of) for of in seeds]), how

    return Measure(
        f"correlation(initial_hierarchy, best_hierarchy, group = {DRAWS!r}, within phase and seed, {LEAST_DRAWS} different ones or more, z less its bias)",
        compute, "seeds", "best_hierarchy", of_arms("group", DRAWS),
    )  # fmt: skip


def mean_correlation(correlations: Sequence[tuple[float, int]]) -> float:
    """By Fisher's z, of correlations and how many draws each is of."""
    return math.tanh(sum(unbiased_z(r, draws) for r, draws in correlations) / len(correlations))


def _enough_seeds(count: int) -> None:
    if count < LEAST_SEEDS:
        raise NotRun(f"Needs {LEAST_SEEDS} or more finished seeds; there are {count}.")


def of_seeds(measure: Measure) -> Measure:
    """The same measure, not run on fewer than LEAST_SEEDS seeds."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        interval, how = measure.compute(table)
        _enough_seeds(interval.n)
        return interval, how

    return replace(measure, text=f"{measure.text}, {LEAST_SEEDS} seeds or more", compute=compute)


def ordered_minus_best_arm() -> Measure:
    """The loss on single samples minus whichever arm of the loss on level means ends best in the other seeds, in each seed.

    Of many arms that are equal, the one that ends best in the same seeds ends there below its own mean.
    """

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        all_done(table, "rich_hierarchy", of="phase_loss")
        all_done(table, "sweep7_ordered", of="arm_without_draw")
        runs = rows(table, "best_hierarchy", "rich_hierarchy", of="phase_loss")
        ends = runs.groupby(["seed", "arm_without_draw"])["final_hierarchy"].mean().unstack()
        ordered = rows(table, "final_hierarchy", "sweep7_ordered", of="arm_without_draw")
        ends_of = ordered.groupby("seed")["final_hierarchy"].mean()
        _enough_seeds(min(len(ends), len(ends_of)))
        if ends.isna().any(axis=None) or set(ends.index) != set(ends_of.index):
            raise NotRun(
                "Needs every arm of the loss on level means, and of that on single samples, in the same seeds."
            )
        best = {seed: ends.drop(index=seed).mean().idxmin() for seed in ends.index}
        how = f"sweep7_ordered minus the arm that ends best in the other seeds ({', '.join(sorted(set(best.values())))}), paired by seed, Student's t."
        return mean_interval([ends_of[seed] - ends.loc[seed, arm] for seed, arm in best.items()]), how

    return Measure(
        "mean over seeds of final_hierarchy, 'sweep7_ordered' - the arm of the loss rich_hierarchy that ends best in the other seeds",
        compute, "seeds", "final_hierarchy", lambda table: table[table["phase_loss"].eq("rich_hierarchy") | table["arm_without_draw"].eq("sweep7_ordered")],
    )  # fmt: skip


FOLLOWED = 0.5
"""Share of the ceiling from which on a control has followed its valuations."""


def order_of_controls(shuffled: str) -> Measure:
    """Mean size of the order over the runs of this arm, but for those that have learnt nothing: such a run is in no order either.

    A run that follows its valuations without covering the operations contradicts the claim, so that it counts.
    """

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        all_done(table, shuffled)
        own = table[table["arm"] == shuffled]
        if own.empty:
            raise NotRun("No control is there.")
        for metric in ("coverage", "tied_radius_share", "size_of_order"):
            if lacking := list(own["run"] if metric not in own else own[own[metric].isna()]["run"]):
                raise NotRun(f"{', '.join(lacking)} lacks {metric}, without which it cannot be left out or judged.")
        tied, follows = own["tied_radius_share"].ge(TIES), own["size_of_order"].ge(FOLLOWED)
        if (tied & follows).any():
            raise NotRun(f"Ties fake an order: {', '.join(own[tied & follows]['run'])} has many, and a large order.")
        alive = own[~tied & (own["coverage"].ge(COVERS) | follows)]
        interval, how = mean("size_of_order", shuffled).compute(alive)
        which = f"cover {COVERS:.2%} of the operations, few radii tied, or are in an order of {FOLLOWED:g} or more"
        return interval, f"{how} Controls that {which}: {len(alive)} of {len(own)}."

    return Measure(
        f"mean(size_of_order, {shuffled!r}), of those with fewer than {TIES:g} tied, and coverage {COVERS:g} or more or "
        f"size_of_order {FOLLOWED:g} or more",
        compute, "seeds", "size_of_order", of_arms("arm", shuffled),
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------- conditions
def all_of(*conditions: Condition) -> Condition:
    """That every one of the conditions holds."""
    return Condition(
        " and ".join(condition.text for condition in conditions),
        lambda table: next((why for condition in conditions if (why := condition.unmet(table))), ""),
    )


def settings_are(wanted: Mapping[str, Mapping[str, Any]], alike: bool = False, free: Sequence[str] = ()) -> Condition:
    """That the runs of arms, or of a group of arms, have the settings that a claim speaks of: names of arms are only names.

    Runs of an arm, and with `alike` those of all arms, are the same in all other settings, but for seeds, starts and those in
    `free`; with `alike`, those of a seed also begin with the same projections.
    """
    own_fields = {name for settings in wanted.values() for name in settings}
    ignored = {"seed", "projection_seed", "start", *own_fields, *free}

    def unmet(table: "DataFrame") -> str:
        if "settings" not in table:
            return ""
        first: dict[str, tuple[str, Mapping[str, Any]]] = {}
        drawn: dict[int, tuple[str, int]] = {}
        for arm, settings in wanted.items():
            of_group = table["group"].eq(arm) if "group" in table else False
            own = table[table["arm_without_draw"].eq(arm) | of_group]
            for run, of_run, draw in zip(own["run"], own["settings"], own["draw"], strict=True):
                for name, value in settings.items():
                    if of_run[name] != value:
                        return f"The claim is about runs of {arm} with {name} {value}; {run} has {of_run[name]}."
                one, of_one = first.setdefault("" if alike else arm, (run, of_run))
                if other := [name for name, value in of_run.items() if name not in ignored and value != of_one[name]]:
                    return f"The claim compares runs that are alike otherwise; {one} and {run} differ in {', '.join(other)}."
                one, of_seed = drawn.setdefault(of_run["seed"], (run, draw))
                if alike and draw != of_seed:
                    return f"The claim compares runs that begin alike; the projections of {one} and {run} differ."
        return ""

    text = "; ".join(
        f"{arm} has {', '.join(f'{k} {v}' for k, v in of.items()) or 'nothing of its own'}"
        for arm, of in wanted.items()
    )
    return Condition(f"{text}{f', all else but {sorted(free)} alike' if alike else ''}", unmet)


def every_whole_run(fits: str, passes: str, needs: str) -> Condition:
    """That there are whole runs, that all of them are of the kind the target is meant for, and have its metrics."""

    def unmet(table: "DataFrame") -> str:
        table = from_scratch(table)
        planned_runs = whole_runs(table)
        if not planned_runs or not all(run[fits] for run in planned_runs):
            return needs
        own = table[table["whole"].eq(True)] if "whole" in table else table
        lacking = [] if own.empty else list(own["run"] if passes not in own else own[own[passes].isna()]["run"])
        return f"The results of {', '.join(lacking)} lack a metric that the target needs." if lacking else ""

    of = (
        TARGETS_ARE_OF if fits == "fits_targets" else {"train_fraction": LARGEST_PART, "trits": TARGETS_ARE_OF["trits"]}
    )
    return Condition(f"every whole run {fits} ({', '.join(f'{k} {v}' for k, v in of.items())}) and has {passes}", unmet)


def _long_runs_of_9_trits() -> Condition:
    def unmet(table: "DataFrame") -> str:
        own = table[table["stages"] == "hierarchy"] if "stages" in table else table
        if own.empty or ((own["trits"] == 9).all() and (own["epochs"] >= LEAST_EPOCHS).all()):
            return ""
        return f"The original study's findings are asked of runs with 9 trits and {LEAST_EPOCHS} epochs or more."

    return Condition(f"9 trits and {LEAST_EPOCHS} epochs or more in every phase", unmet)


COMPARABLE = _long_runs_of_9_trits()


def untied(arms: Sequence[str], group: str = "", end: bool = False, every: bool = False) -> Condition:
    """That few radii are tied, and none in a larger order than untied ones can have, where runs of these arms and of a group are
    best; `end`: and where they end; `every`: of all runs of phases."""
    places = [
        ("best_hierarchy", "best_tied_share", "the best evaluation"),
        ("final_hierarchy", "tied_radius_share", "the end"),
    ]

    def unmet(table: "DataFrame") -> str:
        if "arm_without_draw" not in table:
            return ""
        of_group = table["group"].eq(group) if "group" in table else False
        own = table[table["arm_without_draw"].isin(arms) | of_group]
        own = (table[table["stages"] == "hierarchy"] if every else own).reset_index(drop=True)
        for size, share_tied, where in places[: 2 if end else 1]:
            of_run = own.reindex(columns=[size, share_tied, "hierarchy_ceiling"]).astype(float)
            for i, (order, tied, ceiling) in enumerate(of_run.itertuples(index=False)):
                place = f"{where} of {own['run'][i]}"
                if math.isnan(tied) or math.isnan(ceiling):
                    return f"What ties may fake cannot be told: {place} lacks the share of tied radii, or the ceiling of untied ones."
                if tied >= TIES:
                    return (
                        f"Ties fake a hierarchy, even beyond its ceiling: {tied:.2g} of the radii are tied at {place}."
                    )
                if order < -AT_CEILING * ceiling:
                    return f"The hierarchy at {place} is {order:.6g}, beyond the ceiling {ceiling:.6g} of radii without ties."
        return ""

    where = f"at the best{' and at the end' if end else ''}{' of every phase' if every else ''}"
    return Condition(f"fewer than {TIES:g} of the radii tied, and none beyond the ceiling, {where}", unmet)


def beyond(epoch: int, arm: str, of: str = "arm") -> Condition:
    """That the arm's runs were meant to go on beyond an epoch that the claim is about."""
    return all_of(COMPARABLE, at_least("epochs", epoch + 1, arm, of=of))
