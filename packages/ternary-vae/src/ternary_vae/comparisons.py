"""Arms against each other, seed by seed: means, paired differences, what cannot be told apart, what changes nothing.

The unit is the seed. Draws of the projections (arms named <arm>_draw_<k>) are one arm, and their values are averaged
within a seed first: they share the seed's coverage checkpoint, so that they are no independent units.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from studycore.configuration import to_dict
from studycore.statistics import Interval, mean_interval
from ternary_vae.summary import Row, RunSummary

DRAW = re.compile(r"_draw_\d+$")
"""What an arm's name ends in when it is one of several draws of the projections."""
IDENTITY = ("seed", "projection_seed", "start")
"""Fields in which runs of one arm differ; `start` is the seed's own coverage checkpoint."""
UNCOMPARED = ("step", "stage", "epoch", "richness_hyperbolic")
"""Columns of a row that say nothing of its model, or, the last, say again what `richness` does in another unit, which
the curvature sets even where it reaches nothing else."""
ROUNDING = 1e-10
"""Largest difference between histories that are the same: a run that was cut off may have gone on in another stack."""
TIMED = ("scheduler", "step_epochs", "step_gamma", "early_stopping_patience")
"""Fields that act from some epoch on: equal histories may have ended before it, so they are never called inert."""
Value = Callable[[RunSummary], float | None]


def best_hierarchy(run: RunSummary) -> float:
    """The run's most negative hierarchy over its evaluations."""
    return float(run.best["hierarchy"])


def final_hierarchy(run: RunSummary) -> float:
    """The hierarchy at the run's last evaluation."""
    return float(run.final["hierarchy"])


def decay(run: RunSummary) -> float:
    """Final minus best hierarchy: 0 for a run that ends at its best, never negative."""
    return final_hierarchy(run) - best_hierarchy(run)


def best_epoch(run: RunSummary) -> float:
    """Epoch of the run's best hierarchy; 0 is before its first update."""
    return float(run.best["epoch"])


def arm_name(run: RunSummary) -> str:
    """The arm's name without its draw."""
    return DRAW.sub("", run.arm)


def by_arm(runs: Sequence[RunSummary]) -> dict[tuple[str, str], list[RunSummary]]:
    """(phase, arm) -> its runs, in their order; draws together."""
    arms: dict[tuple[str, str], list[RunSummary]] = {}
    for run in runs:
        arms.setdefault((run.phase, arm_name(run)), []).append(run)
    return arms


def by_seed(runs: Sequence[RunSummary], value: Value) -> dict[int, float]:
    """Seed -> the value, averaged over the seed's runs; runs without one are left out."""
    found: dict[int, list[float]] = {}
    for run in runs:
        if (one := value(run)) is not None:
            found.setdefault(run.seed, []).append(one)
    return {seed: float(np.mean(values)) for seed, values in sorted(found.items())}


def paired_differences(treated: Sequence[RunSummary], control: Sequence[RunSummary], value: Value) -> list[float]:
    """Treated minus control for every seed that both have."""
    one, other = by_seed(treated, value), by_seed(control, value)
    return [one[seed] - other[seed] for seed in sorted(set(one) & set(other))]


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean with Student's t interval of any confidence; ValueError with fewer than 2 values."""
    from scipy import stats

    plain = mean_interval(values)
    factor = stats.t.ppf((1 + confidence) / 2, plain.n - 1) / stats.t.ppf(0.975, plain.n - 1)
    half = float(factor) * (plain.high - plain.estimate)
    return Interval(plain.estimate, plain.estimate - half, plain.estimate + half, plain.n)


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


def arm_statistics(runs: Sequence[RunSummary]) -> list[ArmStatistics]:
    """One entry per arm with hierarchies, phase by phase."""
    arms = by_arm([run for run in runs if run.ordering_rows])
    phases: dict[str, list[str]] = {}
    for phase, arm in arms:
        phases.setdefault(phase, []).append(arm)
    found = []
    for phase, names in phases.items():
        means = {arm: float(np.mean(list(by_seed(arms[phase, arm], best_hierarchy).values()))) for arm in names}
        best_arm = min(means, key=lambda arm: means[arm])
        for arm in names:
            pairs = (
                [] if arm == best_arm else paired_differences(arms[phase, arm], arms[phase, best_arm], best_hierarchy)
            )
            against = t_interval(pairs, 1 - 0.05 / max(1, len(names) - 1)) if len(pairs) > 1 else None
            found.append(_statistics(phase, arm, arms[phase, arm], against, arm == best_arm))
    return found


def _statistics(
    phase: str, arm: str, runs: Sequence[RunSummary], against: Interval | None, is_best: bool
) -> ArmStatistics:
    best, final = (list(by_seed(runs, value).values()) for value in (best_hierarchy, final_hierarchy))
    gaps = [run.final["min_level_gap"] for run in runs if "min_level_gap" in run.final]
    return ArmStatistics(
        phase, arm, len(best), len(runs),
        float(np.mean(best)), spread(best), mean_interval(best) if len(best) > 1 else None,
        float(np.mean(final)), spread(final), mean_interval(final) if len(final) > 1 else None,
        float(np.mean(list(by_seed(runs, best_epoch).values()))),
        _mean_of(runs, "somers_d"), _mean_of(runs, "richness"), _mean_of(runs, "coverage"),
        min(gaps) if gaps else None, against, is_best,
    )  # fmt: skip


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation with n - 1; None for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _mean_of(runs: Sequence[RunSummary], name: str) -> float | None:
    values = list(by_seed(runs, lambda run: run.final.get(name)).values())
    return float(np.mean(values)) if values else None


# ---------------------------------------------------------------------------------------------------- inert factors
@dataclass(frozen=True)
class InertFactor:
    """Two values of one field between which no metric of any evaluation moves by a single bit."""

    field: str
    values: tuple[Any, Any]
    arms: tuple[str, str]
    seeds: int
    evaluations: int
    """Compared, over all seeds."""


def inert_factors(runs: Sequence[RunSummary]) -> list[InertFactor]:
    """Pairs of arms that differ in one field and whose histories are bitwise the same for every seed that both have.

    The losses are left out: a weight scales them even where nothing follows. Histories of different lengths are
    different: stopping earlier is an effect.
    """
    arms: dict[str, dict[tuple[int, int | None], RunSummary]] = {}
    for run in runs:
        if run.ordering_rows:
            arms.setdefault(run.arm, {})[run.seed, run.config.projection_seed] = run
    found = []
    for (one, first), (other, second) in combinations(arms.items(), 2):
        shared = sorted(set(first) & set(second), key=str)
        if not shared:
            continue
        changed = [_changed_fields(first[key], second[key]) for key in shared]
        if any(fields != changed[0] for fields in changed) or len(changed[0]) != 1:
            continue
        pairs = [(history(first[key]), history(second[key])) for key in shared]
        name = changed[0][0]
        if all(same_history(a, b) for a, b in pairs) and name not in TIMED:
            values = (to_dict(first[shared[0]].config)[name], to_dict(second[shared[0]].config)[name])
            found.append(
                InertFactor(
                    name, values, (one, other), len({seed for seed, _ in shared}), sum(len(a) for a, _ in pairs)
                )
            )
    # Arms of several phases may have the same settings: a factor is shown once, by the first pair.
    return list({(f.field, *sorted(map(str, f.values))): f for f in reversed(found)}.values())[::-1]


def same_history(one: Sequence[Row], other: Sequence[Row]) -> bool:
    """Whether two histories agree in everything, up to the rounding of runs that were stacked otherwise."""
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(abs(a[key] - b[key]) <= ROUNDING for key in a)
        for a, b in zip(one, other, strict=True)
    )


def history(run: RunSummary) -> list[Row]:
    """The run's evaluations as `inert_factors` compares them."""
    return [
        {k: v for k, v in row.items() if not k.startswith("loss_") and k not in UNCOMPARED} for row in run.ordering_rows
    ]


def _changed_fields(one: RunSummary, other: RunSummary) -> list[str]:
    a, b = to_dict(one.config), to_dict(other.config)
    return [name for name in a if name not in IDENTITY and a[name] != b[name]]
