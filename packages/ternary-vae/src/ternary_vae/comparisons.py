"""Arms against each other, seed by seed: means, paired differences, what cannot be told apart, what changes nothing.

The unit is the seed. Draws of the projections (arms named <arm>_draw_<k>) are one arm, and their values are averaged
within a seed first: they share the seed's coverage checkpoint, so that they are no independent units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from studycore.statistics import Interval, mean_interval
from ternary_vae.history import Row

if TYPE_CHECKING:
    from pandas import DataFrame, Series

IDENTITY = ("seed", "projection_seed", "start")
"""Settings in which runs of one arm differ; `start` is the seed's own coverage checkpoint."""
UNCOMPARED = ("step", "stage", "epoch", "richness_hyperbolic")
"""Columns left out: the first three do not describe the model; richness_hyperbolic is richness in a unit that the
curvature sets."""
ROUNDING = 1e-10
"""Largest difference between histories that are the same: a run that was cut off may have gone on in another stack."""
TIMED = ("scheduler", "step_epochs", "step_gamma", "early_stopping_patience")
"""Settings that act from some epoch on: equal histories may have ended before it, so they are never called inert."""
OF_THE_END = ("somers_d", "richness", "coverage")
"""Metrics of a run's last model that an arm is described by, as means over seeds."""


@dataclass(frozen=True)
class ArmStatistics:
    """What the sweep's table says of an arm; None where there is no value, or too few seeds for one."""

    phase: str
    arm: str
    n: int
    """Seeds."""
    runs: int
    best: float
    best_std: float | None
    """Over seeds, with n - 1."""
    best_interval: Interval | None
    final: float
    final_std: float | None
    final_interval: Interval | None
    best_epoch: float
    somers_d: float | None
    richness: float | None
    coverage: float | None
    min_level_gap: float | None
    """The smallest over the arm's runs."""
    against_best: Interval | None
    """Best hierarchy, paired over seeds, minus that of the phase's best arm; interval with Bonferroni's correction."""
    is_best: bool
    """Of its phase, by the mean of the best hierarchy."""

    @property
    def indistinguishable(self) -> bool | None:
        """Whether the interval of the difference from the phase's best holds 0; None for that arm, or without pairs."""
        return None if self.against_best is None else self.against_best.low <= 0 <= self.against_best.high


def arm_statistics(table: "DataFrame") -> list[ArmStatistics]:
    """One entry per arm with hierarchies, phase by phase, from the table of runs (see ternary_vae.columns)."""
    if "best_hierarchy" not in table:
        return []
    return [
        arm
        for phase, runs in table.dropna(subset=["best_hierarchy"]).groupby("phase", sort=False)
        for arm in _arms_of_a_phase(str(phase), runs)
    ]


def _arms_of_a_phase(phase: str, runs: "DataFrame") -> list[ArmStatistics]:
    arms = {str(arm): of_arm for arm, of_arm in runs.groupby("arm_without_draw", sort=False)}
    by_seed = {arm: of_arm.groupby("seed").mean(numeric_only=True) for arm, of_arm in arms.items()}
    best_arm = min(arms, key=lambda arm: float(by_seed[arm]["best_hierarchy"].mean()))
    confidence = 1 - 0.05 / max(1, len(arms) - 1)
    statistics = []
    for arm, means in by_seed.items():
        apart = (means["best_hierarchy"] - by_seed[best_arm]["best_hierarchy"]).dropna()
        against = None if arm == best_arm else interval(apart, confidence)
        best, final, gaps = means["best_hierarchy"], means["final_hierarchy"], arms[arm].get("min_level_gap")
        somers_d, richness, coverage = (means[name].mean() if name in means else None for name in OF_THE_END)
        statistics.append(
            ArmStatistics(
                phase, arm, len(means), len(arms[arm]), float(best.mean()), deviation(best), interval(best),
                float(final.mean()), deviation(final), interval(final), float(means["best_epoch"].mean()),
                number_or_none(somers_d), number_or_none(richness), number_or_none(coverage), None if gaps is None else number_or_none(gaps.min()),
                against, arm == best_arm,
            )
        )  # fmt: skip
    return statistics


def interval(values: "Series[float]", confidence: float = 0.95) -> Interval | None:
    """Mean with Student's t interval; None for fewer than two values."""
    return mean_interval(list(values), confidence) if len(values) > 1 else None


def deviation(values: "Series[float]") -> float | None:
    """Standard deviation with n - 1; None for one value."""
    return number_or_none(values.std(ddof=1))


def number_or_none(value: Any) -> float | None:
    """A plain number; None for NaN, which stands in a table where a run has no value."""
    return None if value is None or value != value else float(value)


# ---------------------------------------------------------------------------------------------------- inert factors
@dataclass(frozen=True)
class InertFactor:
    """Two values of one setting between which no metric of any evaluation moves."""

    field: str
    values: tuple[Any, Any]
    arms: tuple[str, str]
    seeds: int
    evaluations: int
    """Compared, over all seeds."""


def inert_factors(table: "DataFrame") -> list[InertFactor]:
    """Pairs of arms that differ in one setting and whose histories are the same for every seed and draw that both have.

    The losses are left out: a weight scales them even where nothing follows. Histories of different lengths are
    different: stopping earlier is an effect.
    """
    if "ordering_rows" not in table:
        return []
    arms: dict[str, dict[Any, tuple[dict[str, Any], list[Row]]]] = {}
    runs = table.dropna(subset=["ordering_rows"])
    for arm, settings, rows in zip(runs["arm"], runs["settings"], runs["ordering_rows"], strict=True):
        arms.setdefault(arm, {})[settings["seed"], settings["projection_seed"]] = settings, _compared(rows)
    inert: dict[Any, InertFactor] = {}
    for (one, first), (other, second) in combinations(arms.items(), 2):
        shared = [(first[key], second[key]) for key in first if key in second]
        changed = {tuple(_changed(a, b)) for (a, _), (b, _) in shared}
        if len(changed) != 1 or len(fields := changed.pop()) != 1 or fields[0] in TIMED:
            continue
        if all(same_history(a, b) for (_, a), (_, b) in shared):
            values = (shared[0][0][0][fields[0]], shared[0][1][0][fields[0]])
            seeds, evaluations = len({a["seed"] for (a, _), _ in shared}), sum(len(a) for (_, a), _ in shared)
            # Arms of several phases may have the same settings: a factor is shown once, by the first pair.
            key = (fields[0], *sorted(map(str, values)))
            inert.setdefault(key, InertFactor(fields[0], values, (one, other), seeds, evaluations))
    return list(inert.values())


def same_history(one: Sequence[Row], other: Sequence[Row]) -> bool:
    """Whether two histories agree in everything, up to the rounding of runs that were stacked otherwise."""
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(abs(a[key] - b[key]) <= ROUNDING for key in a)
        for a, b in zip(one, other, strict=True)
    )


def _compared(rows: Sequence[Row]) -> list[Row]:
    """The evaluations as inert_factors compares them."""
    return [
        {name: value for name, value in row.items() if not name.startswith("loss_") and name not in UNCOMPARED}
        for row in rows
    ]


def _changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in one if name not in IDENTITY and one[name] != other[name]]
