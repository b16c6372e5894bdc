"""The study's claims, as data, and what they read of a finished run.

Targets of training from scratch ask that every seed reaches them: a single run that fails refutes, runs that all pass
support once there are enough of them. The original study's findings are asked of arms over seeds, paired where two arms
are compared; several draws of the projections are averaged within a seed first.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studycore.claims import Claim, Condition, Measure, NotRun
from studycore.configuration import to_dict
from studycore.measures import all_done, at_least, mean, missing_runs, paired_difference, pairs, rows, share
from studycore.metrics_log import read_evaluations
from studycore.run_folder import read_manifest, read_results
from studycore.statistics import Interval, fisher_interval, mean_interval, unbiased_z
from ternary_vae.config import TrainConfig
from ternary_vae.history import after_start, best_row, ordering_metrics, ordering_rows

if TYPE_CHECKING:
    from pandas import DataFrame

OWN, ORIGINAL = "this study's target", "the original study's sweep summary"
SPEARMAN = "Spearman"
PLATEAU_EPOCHS = 50
"""Epochs of the original study's runs from scratch."""
LEAST_EPOCHS = 10
"""Epochs below which nothing is said about what the original study found over dozens."""
LEAST_SHARE = 0.5
"""What the interval of the share of passing runs must lie above: it does when 6 of 6 pass (0.541), not when 5 of 5 do."""
LEAST_SEEDS = 3
"""Below it an interval over seeds says nothing: two that agree by chance make it a point."""
LEAST_DRAWS = 4
"""Draws of the projections in a phase of a seed, below which it has no spread and no correlation."""
TIES = 0.001
"""Share of tied radii from which on an order is not read: ties fake one, even beyond the ceiling of radii without them."""
COVERS = 0.9999
"""Share of the operations that a model must cover before its KL divergence, or its samples, say anything."""
AT_CEILING = 1 + 1e-9
"""Largest share of the ceiling of an order without ties: the fewer than TIES that are let pass, all on one value, lift it by
less, and so does rounding."""
DEPTHS = -0.85
"""Largest mean over the depths of Somers' D: the hierarchy of all operations is blind to the deep levels, which hold few. One
exchange between the two deepest, of two operations and of one, leaves -0.877, and their inversion -0.753: a single pair of
neighbours may lie the wrong way round (that levels lie apart is a target of its own), and not a level."""
DEPTHS_UNSEEN = -0.7
"""The same of the unseen. Where one operation is left of each of their two deepest levels, the exchange leaves -0.76."""
WEIGHTS, DRAWS = "sweep2_*", "sweep5 and sweep6"
"""Groups of arms, as the column `group` names them."""


# ---------------------------------------------------------------------------------------------- of one finished run
Term = tuple[str, str, float | tuple[float, str]]
"""A metric, how it compares, and with what: a number, or a factor and the metric that it is of."""
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip
TARGETS: dict[str, tuple[Term, ...]] = {
    "scratch_coverage": (("covered", "==", 19_683), ("operations", "==", 19_683)),
    "scratch_gaps": (("min_level_gap", ">", 0), ("positive_gaps", "==", 9)),
    "scratch_hierarchy": (
        ("hierarchy_of_ceiling", ">=", 0.9999), ("hierarchy_of_ceiling", "<=", AT_CEILING),
        ("somers_d_depths", "<=", DEPTHS), ("tied_radius_share", "<", TIES),
    ),
    "scratch_ties": (("tied_radius_share", "<", TIES),),
    "scratch_richness": (("richness", ">=", 0.003),),
    "scratch_rate": (("kl_of_least", "<=", 2.0), ("kl_of_least", ">=", 1.0), ("coverage", ">=", COVERS)),
    "scratch_prior": (("prior_coverage", ">=", 0.99),),
    "unseen_coverage": (("coverage_unseen", ">", 0.95),),
    "unseen_hierarchy": (
        ("hierarchy_unseen", "<=", (-0.99, "hierarchy_ceiling_unseen")),
        ("hierarchy_unseen", ">=", (-AT_CEILING, "hierarchy_ceiling_unseen")),
        ("somers_d_depths_unseen", "<=", DEPTHS_UNSEEN), ("tied_radius_share", "<", TIES),
    ),
}  # fmt: skip
"""When a run passes a target, by its metrics: all of the terms. They stand in the claim's measure, and so in the folder."""
OF_UNEQUAL_RADII = {"hierarchy_of_ceiling", "hierarchy_unseen"}
"""Metrics that do not exist where all radii are equal: then a run that was to order them has failed."""


def passes(target: str, metrics: Mapping[str, Any]) -> bool:
    """Whether a run of these metrics passes. KeyError for one that is missing."""
    sides = [
        (metrics[name], how, bound if isinstance(bound, int | float) else bound[0] * metrics[bound[1]])
        for name, how, bound in TARGETS[target]
    ]
    return all(COMPARE[how](value, bound) for value, how, bound in sides)


def measured_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are numbers. What is NaN or infinite was not measured."""
    return {k: v for k, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}


def _passed(metrics: Mapping[str, Any], orders_radii: bool) -> dict[str, bool]:
    """Target -> whether the run passes, for the targets whose metrics it has or, all radii being equal, cannot have."""
    passed, numbers = {}, measured_of(metrics)
    for target, terms in TARGETS.items():
        needed = {name for name, _, _ in terms} | {bound[1] for _, _, bound in terms if isinstance(bound, tuple)}
        lacking = needed - set(numbers)
        if not lacking:
            passed[target] = passes(target, numbers)
        elif orders_radii and "tied_radius_share" in numbers and lacking <= OF_UNEQUAL_RADII - set(metrics):
            passed[target] = False
    return passed


def columns(folder: Path, config: TrainConfig) -> dict[str, Any]:
    """What claims and tables read of one finished run. UserError when it holds no evaluation."""
    evaluations = read_evaluations(folder)
    seconds = float(read_manifest(folder)["times"].get("seconds", 0.0))
    return columns_of(folder.name, config, evaluations, read_results(folder)["metrics"], seconds)


SETTINGS = (
    "stages", "trits", "curvature", "view", "train_fraction", "coverage_epochs", "epochs", "loss", "radius",
    "start_projections", "decode",
)  # fmt: skip
"""Settings that are columns."""


def planned(name: str, config: TrainConfig) -> dict[str, Any]:
    """The columns that the configuration gives, of a run that has not been made as well."""
    arm = re.sub(r"(_draw_\d+)?_s\d+$", "", name)
    settings = to_dict(config)
    row = {
        **{key: getattr(config, key) for key in SETTINGS},
        "arm_without_draw": arm,
        "group": _group(arm, config),
        "phase_loss": config.loss if config.stages == "hierarchy" else None,
        "settings": settings,
        # A finetuned run, or one of a sweep's phases, is asked for no target; nor is a checkpoint that others start from,
        # nor what stands beside the model: controls, the flat twin, other bands.
        "whole": config.stages != "hierarchy"
        and (config.orders_radii or config.train_fraction < 1)
        and not is_control(settings),
        "fits_targets": fits_targets(settings),
        "fits_unseen_targets": fits_unseen_targets(settings),
    }
    return {key: value for key, value in row.items() if value is not None}


def columns_of(
    name: str, config: TrainConfig, evaluations: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """Columns of the run `name` from its rows of metrics.jsonl and its metrics of results.json."""
    row: dict[str, Any] = {
        **measured_of(metrics),
        **planned(name, config),
        "largest_coverage": max(float(row["coverage"]) for row in evaluations),
        "seconds": seconds,
    }
    if ordering := ordering_rows(evaluations):
        starts_ordered = config.stages == "hierarchy" and config.start_projections == "loaded"
        best = best_row(evaluations, starts_ordered) or {}
        reached = after_start(ordering, starts_ordered)
        row |= {
            **ordering_metrics(evaluations, starts_ordered),
            "best_tied_share": best.get("tied_radius_share"),
            # Radii that are all equal at the end are in no order: their Somers' D is 0.
            "final_hierarchy": evaluations[-1].get("hierarchy", 0.0),
            "ordering_rows": ordering,
            "hierarchy_by_epoch": {int(of["epoch"]): float(of["hierarchy"]) for of in reached},
            "best_is_start": best.get("epoch") == ordering[0]["epoch"],
        }
        row["decay"] = row["final_hierarchy"] - row["best_hierarchy"]
    if config.orders_radii and "tied_radius_share" in metrics:
        row["order"] = metrics.get("hierarchy_of_ceiling", 0.0)
        row["size_of_order"] = abs(row["order"])
    row |= {f"passes_{target}": passed for target, passed in _passed(metrics, config.orders_radii).items()}
    return {key: value for key, value in row.items() if value is not None}


def is_control(settings: Mapping[str, Any]) -> bool:
    """Whether the run is a control: shuffled valuations, flat geometry or other bands. `settings` may leave out defaults."""
    return (
        settings.get("valuations", "true") == "shuffled"
        or settings.get("geometry", "hyperbolic") == "euclidean"
        or settings.get("bands", "wide") == "even"
    )


TARGETS_ARE_OF = {"trits": 9, "curvature": 1.0, "max_radius": 0.95, "train_fraction": 1.0}
"""Settings that a run must have for the targets to be judged on it. Where training saw a part of the operations, only the
trits must be these."""
LARGEST_PART = 0.1
"""Share of the operations that training may see where the unseen are judged."""


def _setting(settings: Mapping[str, Any], name: str) -> Any:
    return settings.get(name, getattr(TrainConfig, name))


def fits_targets(settings: Mapping[str, Any]) -> bool:
    """Whether the targets are judged on a run of these settings; defaults may be left out."""
    from_scratch = _setting(settings, "start") is None and _setting(settings, "stages") in ORDER_FROM_SCRATCH
    return from_scratch and all(_setting(settings, name) == value for name, value in TARGETS_ARE_OF.items())


ORDER_FROM_SCRATCH = ("coverage_hierarchy", "joint")


def fits_unseen_targets(settings: Mapping[str, Any]) -> bool:
    """The same for the targets of operations that training did not see."""
    part, trits = _setting(settings, "train_fraction") <= LARGEST_PART, _setting(settings, "trits")
    return _setting(settings, "start") is None and part and trits == TARGETS_ARE_OF["trits"]


def _group(arm: str, config: TrainConfig) -> str | None:
    """The arms that a claim takes together."""
    if config.stages != "hierarchy":
        return None
    if config.loss != "rich_hierarchy":
        return None
    return WEIGHTS if arm.startswith("sweep2_") else DRAWS if arm in ("sweep5", "sweep6") else None


# ------------------------------------------------------------------------------------------- this study's own measures
def with_note(measure: Measure, note: str) -> Measure:
    """The same measure, saying more of how the figure was made."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        interval, how = measure.compute(table)
        return interval, f"{how} {note}"

    return Measure(measure.text, compute)


def every_run(target: str) -> Measure:
    """Share of the whole runs that pass, saying how long they were and whose code is measured."""
    passing = share(f"passes_{target}", True, of="whole")

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        interval, how = passing.compute(table)
        own = _whole_runs(table)
        budgets = sorted({_budget(run) for run in own})
        one_code = all(run["view"] == "a" and run["stages"] == "joint" for run in own)
        whose = (
            "Both are of encoder A's one code." if one_code else "Coverage is of encoder A's code, order of the view's."
        )
        length = f"Trained for at most {' or '.join(budgets)}."
        return interval, f"{how} If every run passes, the claim is supported from six runs on. {length} {whose}"

    return Measure(passing.text, compute).given(target=TARGETS[target])


def _whole_runs(table: "DataFrame") -> list[Mapping[str, Any]]:
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

    return Measure(f"{plain.text}, at least where coverage_epochs < {PLATEAU_EPOCHS}", compute)


def _level_means(table: "DataFrame") -> "DataFrame":
    """Runs of a sweep's phases with the loss on level means. NotRun when there are none, or when some are missing."""
    all_done(table, "rich_hierarchy", of="phase_loss")
    return rows(table, "best_hierarchy", "rich_hierarchy", of="phase_loss")


BEST_ARMS = ("sweep2_baseline", "sweep3_early_stop_p5", "sweep4_lr_1e3")
"""Arms among which the best hierarchy is looked for: as many in a small sweep as in a large one, since more runs have a
better best by chance alone. Among them is the original study's own best."""


def _best_of_three_arms() -> Measure:
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

    return Measure(f"mean over seeds of the least best_hierarchy of {', '.join(BEST_ARMS)}", compute)


def _curves(table: "DataFrame", arm: str) -> "DataFrame":
    """Hierarchy by epoch [epochs, seeds] of an arm, of what its runs reached. NotRun when some are missing."""
    import pandas as pd

    all_done(table, arm)
    own = rows(table, "hierarchy_by_epoch", arm)
    return pd.DataFrame(
        {seed: pd.DataFrame(list(of)).mean() for seed, of in own.groupby("seed")["hierarchy_by_epoch"]}
    ).sort_index()


def _worsening(arm: str) -> Measure:
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
        how = f"End minus the epoch that is best in the mean of the other seeds ({min(others.values())} to {max(others.values())}); mean over seeds, Student's t."
        return mean_interval([curves[seed].iloc[-1] - curves[seed][best] for seed, best in others.items()]), how

    return Measure(f"mean over seeds of the end minus the best epoch of the other seeds (hierarchy, {arm!r})", compute)


def _best_in_common_epochs(treated: str, control: str) -> Measure:
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

    return Measure(f"paired_difference(best_hierarchy of common epochs, {treated!r} - {control!r})", compute)


def _latest_peak() -> Measure:
    """The latest best epoch of any weighting of a seed: "with every weighting" is about that one, and not about the mean."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        all_done(table, WEIGHTS, of="group")
        own = rows(table, "best_epoch", WEIGHTS, of="group")
        arms = own.groupby("seed")["arm"].agg(set)
        if lacking := sorted({arm for of_seed in arms for arm in set(own["arm"]) - of_seed}):
            raise NotRun(f"Needs every weighting in every seed; {', '.join(lacking)} is not finished in all.")
        latest = own.groupby("seed")["best_epoch"].max()
        _enough_seeds(len(latest))
        return mean_interval(list(latest)), "The latest of the arms within a seed; mean over seeds, Student's t."

    return Measure(f"mean over seeds of the largest best_epoch of group = {WEIGHTS!r}", compute)


def _of_draws(table: "DataFrame", *metrics: str) -> dict[Any, list["DataFrame"]]:
    """Seed -> its draws of the projections, phase by phase: phases differ in rate, stopping and length, so that runs of two
    phases are no draws of one quantity."""
    all_done(table, DRAWS, of="group")
    own = rows(table, metrics[0], DRAWS, of="group").dropna(subset=list(metrics))
    phases = dict(iter(own.groupby(["seed", "arm_without_draw"])))
    if (fewest := min(map(len, phases.values()), default=0)) < LEAST_DRAWS:
        raise NotRun(f"Needs {LEAST_DRAWS} or more draws in every phase of a seed; there are {fewest}.")
    _enough_seeds(len({seed for seed, _ in phases}))
    return {seed: [draws for (of, _), draws in phases.items() if of == seed] for seed, _ in phases}


def _spread_of_draws() -> Measure:
    def compute(table: "DataFrame") -> tuple[Interval, str]:
        seeds = _of_draws(table, "best_hierarchy").values()
        # The mean of variances, and not of deviations, has no bias with few draws.
        spreads = [math.sqrt(sum(draws["best_hierarchy"].var(ddof=1) for draws in of) / len(of)) for of in seeds]
        how = "Within a phase of a seed; root of the mean variance over its phases, mean over seeds, Student's t."
        return mean_interval(spreads), how

    return Measure(f"spread(best_hierarchy, group = {DRAWS!r}, within phase and seed, {LEAST_DRAWS} or more)", compute)


def _correlation_of_draws() -> Measure:
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
        return fisher_interval([_mean_correlation(of) for of in seeds]), how

    return Measure(
        f"correlation(initial_hierarchy, best_hierarchy, group = {DRAWS!r}, within phase and seed, {LEAST_DRAWS} or more, z less its bias)",
        compute,
    )


def _mean_correlation(correlations: Sequence[tuple[float, int]]) -> float:
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

    return Measure(f"{measure.text}, {LEAST_SEEDS} seeds or more", compute)


def _ordered_minus_best_arm() -> Measure:
    """The loss on single samples minus whichever arm of the loss on level means ends best, paired by seed."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        of_seeds = _level_means(table).groupby(["arm_without_draw", "seed"])["final_hierarchy"].mean()
        best = of_seeds.groupby("arm_without_draw").mean().idxmin()
        return paired_difference("final_hierarchy", "sweep7_ordered", best, of="arm_without_draw").compute(table)

    return Measure(
        "paired_difference(final_hierarchy, 'sweep7_ordered' - the arm of the loss rich_hierarchy that ends best)",
        compute,
    )


# -------------------------------------------------------------------------------------------------------- conditions
def all_of(*conditions: Condition) -> Condition:
    """That every one of the conditions holds."""
    return Condition(
        " and ".join(condition.text for condition in conditions),
        lambda table: next((why for condition in conditions if (why := condition.unmet(table))), ""),
    )


def settings_are(wanted: Mapping[str, Mapping[str, Any]], alike: bool = False, free: Sequence[str] = ()) -> Condition:
    """That the runs of arms have the settings that a claim speaks of: names of arms are only names.

    `alike`: in all other settings, but for seeds, starts and those in `free`, the arms are the same.
    """
    own_fields = {name for settings in wanted.values() for name in settings}
    ignored = {"seed", "projection_seed", "start", *own_fields, *free}

    def unmet(table: "DataFrame") -> str:
        if "settings" not in table:
            return ""
        first: tuple[str, Mapping[str, Any]] | None = None
        for arm, settings in wanted.items():
            own = table[table["arm_without_draw"] == arm]
            for run, of_run in zip(own["run"], own["settings"], strict=True):
                for name, value in settings.items():
                    if of_run[name] != value:
                        return f"The claim is about runs of {arm} with {name} {value}; {run} has {of_run[name]}."
                first = first or (run, of_run)
                other = [name for name, value in of_run.items() if name not in ignored and value != first[1][name]]
                if alike and other:
                    return f"The claim compares runs that are alike otherwise; {first[0]} and {run} differ in {', '.join(other)}."
        return ""

    text = "; ".join(f"{arm} has {', '.join(f'{k} {v}' for k, v in of.items())}" for arm, of in wanted.items())
    return Condition(f"{text}{f', all else but {sorted(free)} alike' if alike else ''}", unmet)


def _every_whole_run(fits: str, passes: str, needs: str) -> Condition:
    """That there are whole runs, that all of them are of the kind the target is meant for, and have its metrics."""

    def unmet(table: "DataFrame") -> str:
        planned_runs = _whole_runs(table)
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


def _untied(arms: Sequence[str], group: str = "", end: bool = False) -> Condition:
    """That few radii are tied where runs of these arms and of a group are best; `end`: also where any run of a phase ends."""

    def unmet(table: "DataFrame") -> str:
        if "arm_without_draw" not in table:
            return ""
        of_group = table["group"].eq(group) if "group" in table else False
        own = table[table["arm_without_draw"].isin(arms) | of_group]
        own = table[table["stages"] == "hierarchy"] if end else own
        for column in ("best_tied_share", *(("tied_radius_share",) if end else ())):
            tied = own[own[column].ge(TIES)] if column in own else own[:0]
            if len(tied):
                where = "the best evaluation" if column == "best_tied_share" else "the end"
                return f"Ties fake a hierarchy, even beyond its ceiling: {tied[column].iloc[0]:.2g} of the radii are tied at {where} of {tied['run'].iloc[0]}."
        return ""

    return Condition(f"fewer than {TIES:g} of the radii tied at the best{' and at the end' if end else ''}", unmet)


def _beyond(epoch: int, arm: str, of: str = "arm") -> Condition:
    """That the arm's runs were meant to go on beyond an epoch that the claim is about."""
    return all_of(COMPARABLE, at_least("epochs", epoch + 1, arm, of=of))


# ------------------------------------------------------------------------------------------------------------ claims
NEEDS = "Needs runs from scratch that order radii, with 9 trits, curvature 1 and max_radius 0.95 (`ternary-vae train`)."
NEEDS_UNSEEN = "Needs runs from scratch that see a tenth of the operations of 9 trits or less (`ternary-vae train --config generalise`)."


def _target(name: str, statement: str, predicted: str) -> Claim:
    passes = f"passes_{name}"
    unseen = name.startswith("unseen")
    condition = _every_whole_run(
        *(("fits_unseen_targets", passes, NEEDS_UNSEEN) if unseen else ("fits_targets", passes, NEEDS))
    )
    return Claim(
        name, f"From scratch, in all seeds tried: {statement}", OWN, predicted, "share of seeds", every_run(name), above=LEAST_SHARE,
        when=condition, of_every_unit=True, decided_by="train --config generalise --seeds 10" if unseen else "",
    )  # fmt: skip


WHOLE_TARGETS = (
    _target("scratch_coverage", "all 19,683 operations come back right from their mean code", "19,683 of 19,683"),
    _target("scratch_gaps", "every level lies apart from the next", "smallest gap above 0"),
    _target("scratch_hierarchy",
        "the hierarchy is at least 99.99 % of its ceiling and not beyond it, Somers' D is -0.85 or lower in the mean over depths, "
        "and fewer than 0.1 % of the radii are tied", "99.99 %"),
    _target("scratch_ties", "fewer than 0.1 % of the radii are tied, so that ties do not make the hierarchy", "0.1 %"),
    _target("scratch_richness", "the Euclidean richness is at least 0.003", "0.003 (the best at the ceiling before: 0.000048)"),
)  # fmt: skip
BALL_TARGETS = (
    *(target for target in WHOLE_TARGETS if target.id != "scratch_richness"),
    _target("scratch_rate",
        "the KL divergence lies between log 19,683 = 9.9 nats, the least that tells the operations apart, and twice that, and 99.99 % "
        "or more of them come back right from their mean code", "below 2 (54 nats, 5.5 times, in two codes)"),
    _target("scratch_prior", "samples of the prior, ten for each operation, decode to 99 % of the operations or more", "99 % (88.5 % in two codes)"),
)  # fmt: skip
"""Of the model that is decoded and ordered in one point of the ball. Nothing asks it for a place within a level's band, so
its richness is shown and not judged."""
BALL, TWIN, SHUFFLED = "ball", "flat_twin", "shuffled"
"""Arms from scratch: the model, and what stands beside it."""
KL_WEIGHTS = {BALL: 0.015, TWIN: 0.005}
"""Weight of the KL divergence by arm: each its own, so that the arms are two places on a trade and not one."""
ORDERED_BY_RULE = 0.9
"""Share of the ceiling that the model itself must reach before the control says anything."""
TWINS = all_of(
    settings_are(
        {
            BALL: {"decode": "ball", "geometry": "hyperbolic", "kl_weight": KL_WEIGHTS[BALL]},
            TWIN: {"decode": "ball", "geometry": "euclidean", "kl_weight": KL_WEIGHTS[TWIN]},
        },
        alike=True,
    ),
    *(at_least("coverage", COVERS, arm) for arm in (BALL, TWIN)),
)


def _against_twin(metric: str, statement: str, better: str, unit: str) -> Claim:
    weights = f"weights of the KL divergence {KL_WEIGHTS[BALL]:g} and {KL_WEIGHTS[TWIN]:g}: two places on one trade-off"
    return Claim(
        f"curvature_{metric}", f"{statement} than of its flat twin of equal parameters ({weights})",
        "this study: a trade-off, not what the curvature alone buys",
        "better", unit, of_seeds(paired_difference(metric, BALL, TWIN)),
        above=0.0 if better == "above" else None, below=0.0 if better == "below" else None, when=TWINS,
    )  # fmt: skip


CURVATURE_BUYS = (
    _against_twin("kl", "The KL divergence of the model in the ball is smaller", "below", "nats, difference"),
    _against_twin("coverage_sampled", "More operations come back right from a sample of the model in the ball", "above", "share, difference"),
    _against_twin("prior_coverage", "The prior of the model in the ball meets more operations", "above", "share, difference"),
)  # fmt: skip


FOLLOWED = 0.5
"""Share of the ceiling from which on a control has followed its valuations."""


def _order_of_controls() -> Measure:
    """Mean size of the order over the shuffled runs, but for those that have learnt nothing: such a run is in no order either.

    A run that lacks operations and has followed its valuations all the same contradicts the claim, and counts.
    """

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        all_done(table, SHUFFLED)
        own = table[table["arm"] == SHUFFLED]
        if own.empty:
            raise NotRun("No control is there.")
        for metric in ("coverage", "tied_radius_share", "size_of_order"):
            if lacking := list(own["run"] if metric not in own else own[own[metric].isna()]["run"]):
                raise NotRun(f"{', '.join(lacking)} lacks {metric}, without which it cannot be left out or judged.")
        tied, follows = own["tied_radius_share"].ge(TIES), own["size_of_order"].ge(FOLLOWED)
        if (tied & follows).any():
            raise NotRun(f"Ties fake an order: {', '.join(own[tied & follows]['run'])} has many, and a large order.")
        alive = own[~tied & (own["coverage"].ge(COVERS) | follows)]
        interval, how = mean("size_of_order", SHUFFLED).compute(alive)
        which = f"cover {COVERS:.2%} of the operations, few radii tied, or are in an order of {FOLLOWED:g} or more"
        return interval, f"{how} Controls that {which}: {len(alive)} of {len(own)}."

    return Measure(
        f"mean(size_of_order, {SHUFFLED!r}), of those with fewer than {TIES:g} tied, and coverage {COVERS:g} or more or "
        f"size_of_order {FOLLOWED:g} or more",
        compute,
    )


RULE_LEARNT = Claim(
    "rule_learnt",
    "With valuations dealt out at random, the order of the radii, in either direction, stays below half of its ceiling",
    "this study: radii are memorised otherwise, and no rule is learnt", "0.11", "share of the ceiling, without sign",
    of_seeds(_order_of_controls()), below=FOLLOWED,
    when=all_of(
        settings_are({BALL: {"valuations": "true"}, SHUFFLED: {"valuations": "shuffled"}}, alike=True),
        at_least("order", ORDERED_BY_RULE, BALL),
    ),
)  # fmt: skip
UNSEEN_TARGETS = (
    _target("unseen_coverage", "more than 95 % of the operations that training did not see come back right", "86 % by a plain model"),
    _target("unseen_hierarchy",
        "the hierarchy of the unseen is at least 99 % of their own ceiling and not beyond it, their Somers' D is -0.7 or lower in "
        "the mean over depths, and fewer than 0.1 % of all radii are tied", "99 %"),
)  # fmt: skip
"""Where training sees a tenth of the operations or less."""

PLATEAU_OF: dict[str, Any] = {
    "stages": "coverage", "trits": 9, "train_fraction": 1.0, "start": None, "coverage_code": "mean", "coverage_lr": 1e-3,
    "batch_size": 512, "deep_share": 0.0,
}  # fmt: skip
PLATEAU_FREE = ("seed", "projection_seed", "coverage_epochs", "checkpoint_every")
"""Settings that the plateaus leave open: by any other a run may stay at the start and have shown nothing of this training."""


def _plateau(name: str, frozen: Sequence[str], patience: int | None, which: str) -> Claim:
    own = {**PLATEAU_OF, "coverage_frozen": list(frozen), "coverage_patience": patience}
    every = {name: value for name, value in to_dict(TrainConfig(**own)).items() if name not in PLATEAU_FREE}
    text = f"{settings_are({name: own}).text}, all else but {sorted(PLATEAU_FREE)} by default"
    return Claim(
        f"plateau_{name}", f"From scratch coverage stays at 30 % or below ({which})", ORIGINAL, "20 to 30 %",
        "share, largest of the run", of_seeds(largest_coverage(name)), below=0.30,
        when=Condition(text, settings_are({name: every}).unmet),
    )  # fmt: skip


PLATEAUS = {
    "frozen_decoder": _plateau("frozen_decoder", ["decoder_A"], None, "decoder frozen as it was drawn"),
    "mended": _plateau("mended", [], TrainConfig.coverage_patience, "decoder trained as well"),
}
"""By the arm from scratch that they are about."""


def _better(
    name: str, statement: str, predicted: str, treated: str, control: str, note: str = "", source: str = ORIGINAL
) -> Claim:
    """That the best hierarchies of one arm are lower than those of another."""
    measure = paired_difference("best_hierarchy", treated, control)
    unit = f"{SPEARMAN}, difference of the best"
    measure = with_note(measure, note) if note else measure
    return Claim(name, statement, source, predicted, unit, measure, below=0.0, when=COMPARABLE)


ONE_NORM = (
    "Both have one largest norm R, so that sqrt(c) R, how near the rim points can come, grows with the curvature c."
)
SAME_TRAJECTORY = (
    "Stopping early cannot better the best of the same trajectory: a difference would come from the schedules."
)


def _sooner(name: str, schedule: str, predicted: str) -> Claim:
    """That a run that stops early has a better best than a schedule has had by then."""
    early, other = "sweep3_early_stop_p5", f"sweep3_{schedule}"
    statement = f"Stopping early (patience 5) reaches a better best hierarchy than the {schedule.removesuffix('_decay')} schedule does in the same epochs"
    measure = with_note(_best_in_common_epochs(early, other), SAME_TRAJECTORY)
    return Claim(
        name, statement, ORIGINAL, predicted, f"{SPEARMAN}, difference of the best", measure, below=0.0, when=COMPARABLE
    )


ANY_RIM = _better(
    "curvature_2_vs_1", "Curvature 2 reaches a better hierarchy than curvature 1", "-0.014 (-0.702 against -0.688)",
    "sweep_curv_2.0", "sweep_curv_1.0", ONE_NORM,
)  # fmt: skip
SAME_RIM = _better(
    "curvature_2_vs_1_same_rim",
    "Curvature 2 reaches a better hierarchy than curvature 1 at the same share of the ball's radius", "none",
    "sweep_rim_2.0", "sweep_rim_1.0", source="this study: whether more than sqrt(c) R is behind it",
)  # fmt: skip

_FINDINGS = (
    Claim(
        "decay_balanced",
        "With the loss on level means (weights 5, 5) the hierarchy peaks and then worsens by 0.16 or more, "
        "the peak being the epoch that is best in the mean of the other seeds", ORIGINAL,
        "0.16 (-0.758 to -0.598)", f"{SPEARMAN}, end minus peak",
        _worsening("sweep2_balanced"), above=0.16, when=_beyond(20, "sweep2_balanced"),
    ),
    Claim(
        "decay_baseline",
        "With the loss on level means (weights 5, 2) the hierarchy peaks and then worsens by 0.19 or more, "
        "the peak being the epoch that is best in the mean of the other seeds", ORIGINAL,
        "0.19 (-0.752 to -0.559)", f"{SPEARMAN}, end minus peak",
        _worsening("sweep2_baseline"), above=0.19, when=_beyond(20, "sweep2_baseline"),
    ),
    Claim(
        "peak_weights",
        "With each weighting tried of the loss on level means the best hierarchy comes at epoch 20 or earlier", ORIGINAL,
        "10 to 20", "epochs", _latest_peak(), below=20.5,
        when=_beyond(20, WEIGHTS, of="group"),
    ),
    _sooner("early_stop_vs_step", "step_decay", "-0.025 (-0.792 against -0.767, all epochs of both)"),
    _sooner("early_stop_vs_cosine", "cosine", "-0.097 (-0.792 against -0.695, all epochs of both)"),
    Claim(
        "early_stop_peak",
        "With patience 5, which itself makes an early best likely, the best hierarchy comes at epoch 10 or earlier", ORIGINAL,
        "3", "epochs",
        mean("best_epoch", "sweep3_early_stop_p5"), below=10.5, when=_beyond(10, "sweep3_early_stop_p5"),
    ),
    _better(
        "lr_1e3_vs_1e4", "Learning rate 1e-3 reaches a better hierarchy than 1e-4", "-0.055 (-0.790 against -0.735)",
        "sweep4_lr_1e3", "sweep4_lr_1e4",
    ),
    _better(
        "lr_1e3_vs_3e4", "Learning rate 1e-3 reaches a better hierarchy than 3e-4", "-0.001 (-0.790 against -0.789)",
        "sweep4_lr_1e3", "sweep4_lr_3e4",
    ),
    Claim(
        "lr_1e3_peak", "At learning rate 1e-3 the best hierarchy comes at epoch 2 or earlier", ORIGINAL, "0", "epochs",
        mean("best_epoch", "sweep4_lr_1e3"), below=2.5, when=_beyond(2, "sweep4_lr_1e3"),
    ),
    Claim(
        "stability",
        "Best hierarchies from different draws of the projections have a standard deviation of 0.030 or less", ORIGINAL,
        "0.030 (0.019 once the architecture matched)", f"{SPEARMAN}, standard deviation",
        _spread_of_draws(), below=0.030, when=COMPARABLE,
    ),
    Claim(
        "init_best_correlation",
        "The hierarchy before training predicts the best one: their correlation is 0.92 or more", ORIGINAL, "0.92",
        "Pearson", _correlation_of_draws(), above=0.92, when=COMPARABLE,
    ),
    Claim(
        "best_achieved",
        "With the loss on level means the best hierarchy of a seed's runs of three arms (baseline, patience 5, rate 1e-3) is "
        "-0.792 or lower", ORIGINAL, "-0.792",
        f"{SPEARMAN}, best of a seed", _best_of_three_arms(), below=-0.792, when=COMPARABLE,
    ),
    Claim(
        "ordered_no_decay", "With the loss on single samples the hierarchy ends within 0.001 of its best",
        "this study: nothing in it pulls levels together again", "0", f"{SPEARMAN}, end minus best",
        mean("decay", "sweep7_ordered"), below=0.001, when=COMPARABLE,
    ),
    Claim(
        "ordered_vs_level_means",
        "The loss on single samples ends at a better hierarchy than the best arm of the loss on level means",
        "this study", "better", f"{SPEARMAN}, difference at the end", _ordered_minus_best_arm(), below=0.0,
        when=COMPARABLE,
    ),
)  # fmt: skip


_LEVEL_MEANS = {"loss": "rich_hierarchy", "early_stopping_patience": None}
_EARLY = {"loss": "rich_hierarchy", "early_stopping_patience": 5, "scheduler": "constant"}
_DRAWN = {"loss": "rich_hierarchy", "start_projections": "drawn"}


def _weights(hierarchy: float, richness: float) -> dict[str, Any]:
    return {**_LEVEL_MEANS, "hierarchy_weight": hierarchy, "richness_weight": richness}


def _pair(treated: str, control: str, *fields: Mapping[str, Any], free: Sequence[str] = ()) -> Condition:
    both = {"loss": "rich_hierarchy"}
    return settings_are({arm: {**both, **own} for arm, own in zip((treated, control), fields, strict=True)}, True, free)


ABOUT = {
    "curvature_2_vs_1": _pair("sweep_curv_2.0", "sweep_curv_1.0", {"curvature": 2.0}, {"curvature": 1.0}),
    "curvature_2_vs_1_same_rim": _pair(
        "sweep_rim_2.0", "sweep_rim_1.0", {"curvature": 2.0, "max_radius": 0.67175}, {"curvature": 1.0, "max_radius": 0.95}
    ),
    "decay_balanced": settings_are({"sweep2_balanced": _weights(5.0, 5.0)}),
    "decay_baseline": settings_are({"sweep2_baseline": _weights(5.0, 2.0)}),
    "peak_weights": settings_are({"sweep2_balanced": _weights(5.0, 5.0), "sweep2_baseline": _weights(5.0, 2.0)}),
    "early_stop_vs_step": _pair(
        "sweep3_early_stop_p5", "sweep3_step_decay", _EARLY, {"scheduler": "step", "early_stopping_patience": None}
    ),
    "early_stop_vs_cosine": _pair(
        "sweep3_early_stop_p5", "sweep3_cosine", _EARLY, {"scheduler": "cosine", "early_stopping_patience": None},
        free=["epochs"],
    ),
    "early_stop_peak": settings_are({"sweep3_early_stop_p5": _EARLY}),
    "lr_1e3_vs_1e4": _pair("sweep4_lr_1e3", "sweep4_lr_1e4", {"lr": 1e-3}, {"lr": 1e-4}),
    "lr_1e3_vs_3e4": _pair("sweep4_lr_1e3", "sweep4_lr_3e4", {"lr": 1e-3}, {"lr": 3e-4}),
    "lr_1e3_peak": settings_are({"sweep4_lr_1e3": {**_LEVEL_MEANS, "lr": 1e-3}}),
    "stability": settings_are({"sweep5": _DRAWN, "sweep6": _DRAWN}),
    "init_best_correlation": settings_are({"sweep5": _DRAWN, "sweep6": _DRAWN}),
    "best_achieved": settings_are(dict.fromkeys(BEST_ARMS, _DRAWN)),
    "ordered_no_decay": settings_are({"sweep7_ordered": {"loss": "ordered", "early_stopping_patience": None}}),
    "ordered_vs_level_means": settings_are(
        {"sweep7_ordered": {"loss": "ordered"}, "sweep2_baseline": {"loss": "rich_hierarchy"}}
    ),
}  # fmt: skip
"""Finding -> the settings that its sentence speaks of."""


OF_ALL_ARMS = ("ordered_vs_level_means",)
"""Findings that look for the best among all arms of the loss on level means."""


NEEDED = {
    "curvature_2_vs_1": ("sweep_curv_1.0", "sweep_curv_2.0"),
    "curvature_2_vs_1_same_rim": ("sweep_rim_1.0", "sweep_rim_2.0"),
    "decay_balanced": ("sweep2_balanced",),
    "decay_baseline": ("sweep2_baseline",),
    "peak_weights": ("sweep2_baseline", "sweep2_balanced"),
    "early_stop_vs_step": ("sweep3_early_stop_p5", "sweep3_step_decay"),
    "early_stop_vs_cosine": ("sweep3_early_stop_p5", "sweep3_cosine"),
    "early_stop_peak": ("sweep3_early_stop_p5",),
    "lr_1e3_vs_1e4": ("sweep4_lr_1e3", "sweep4_lr_1e4"),
    "lr_1e3_vs_3e4": ("sweep4_lr_1e3", "sweep4_lr_3e4"),
    "lr_1e3_peak": ("sweep4_lr_1e3",),
    "stability": ("sweep5", "sweep6"),
    "init_best_correlation": ("sweep5", "sweep6"),
    "best_achieved": BEST_ARMS,
    "ordered_no_decay": ("sweep7_ordered",),
    "ordered_vs_level_means": ("sweep7_ordered", "sweep2_baseline"),
}
"""Finding -> arms without which a sweep cannot judge it, and so does not register it."""


def _of_its_runs(claim: Claim) -> Claim:
    """The claim of runs with its settings and of enough seeds, saying which start and which radii its verdict is of."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        interval, how = claim.measure.compute(table)
        own = table[table["stages"] == "hierarchy"]
        if claim.id not in OF_ALL_ARMS:
            own = own[own["arm_without_draw"].isin(NEEDED[claim.id])]
        start = {"drawn": "projections drawn anew", "loaded": "those of a checkpoint that is ordered already"}
        starts = " or ".join(start[name] for name in sorted(own["start_projections"].unique()))
        kinds = {"hyperbolic": "hyperbolic distances", "euclidean": "Euclidean norms"}
        radii = " or ".join(kinds[name] for name in sorted(own["radius"].unique()))
        return interval, f"{how} Of this start and radius: {starts}; {radii}."

    assert claim.when is not None
    when = all_of(
        claim.when,
        ABOUT[claim.id],
        _untied(NEEDED[claim.id], WEIGHTS if claim.id == "peak_weights" else "", claim.id in OF_ALL_ARMS),
    )
    return replace(claim, measure=of_seeds(Measure(claim.measure.text, compute)), when=when)


ANY_RIM, SAME_RIM = _of_its_runs(ANY_RIM), _of_its_runs(SAME_RIM)
FINDINGS = tuple(_of_its_runs(claim) for claim in _FINDINGS)
"""The original study's findings."""


def claims(verb: str, config: Any) -> Sequence[Claim]:
    """The claims that a run or a sweep is judged by.

    A single run is asked for the targets. A sweep without phases is asked for them as well, and for what its arms from
    scratch can say; one with phases for the original study's findings first, as far as its budget can show either outcome.
    """
    if isinstance(config, TrainConfig):
        return _targets([to_dict(config)])
    arms = {arm: {**config.coverage, **changes} for arm, changes in config.from_scratch.items()}
    starts = [{**config.coverage, "stages": "coverage"}] if config.phases else []
    targets = _targets([*arms.values(), *starts])
    plateaus = [claim for arm, claim in PLATEAUS.items() if arm in arms]
    beside = [
        *(CURVATURE_BUYS if {BALL, TWIN} <= set(arms) else ()),
        *([RULE_LEARNT] if {BALL, SHUFFLED} <= set(arms) else ()),
    ]
    arms_without_draw = {
        arm.partition("_draw_")[0]
        for phase in config.phases.values()
        for arm in (*phase.get("arms", {}), *([phase["name"]] if "name" in phase else []))
    }
    findings = [claim for claim in (ANY_RIM, SAME_RIM, *FINDINGS) if set(NEEDED[claim.id]) <= arms_without_draw]
    # Where radii are Euclidean norms the curvature reaches nothing, and runs that start in order need reach nothing: they
    # could not tell.
    untold = set() if config.base.get("radius", TrainConfig.radius) == "hyperbolic" else {ANY_RIM.id, SAME_RIM.id}
    untold |= {"best_achieved"} if config.base.get("start_projections") == "loaded" else set()
    weightings = sorted(arm for arm in arms_without_draw if arm.startswith(WEIGHTS.removesuffix("*")))
    named = [
        replace(claim, statement=f"{claim.statement} ({', '.join(weightings)})")
        if claim.id == "peak_weights"
        else claim
        for claim in findings
        if claim.id not in untold
    ]
    return [*targets, *beside, *plateaus, *named]


def _targets(runs: Sequence[Mapping[str, Any]]) -> Sequence[Claim]:
    """What runs of these settings are asked for: nothing where one of those that would be asked is of another kind."""
    whole = [
        of
        for of in runs
        if not is_control(of)
        and _setting(of, "stages") != "hierarchy"
        and (_setting(of, "stages") != "coverage" or _setting(of, "train_fraction") < 1)
    ]
    if whole and all(map(fits_unseen_targets, whole)):
        ordered = all(_setting(of, "stages") != "coverage" for of in whole)
        return UNSEEN_TARGETS if ordered else UNSEEN_TARGETS[:1]
    if whole and all(map(fits_targets, whole)):
        return BALL_TARGETS if all(_setting(of, "decode") == "ball" for of in whole) else WHOLE_TARGETS
    return ()
