"""Intervals for means, differences, shares and censored times. Resampling uses its own seeded stream."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A point estimate with its 95 % interval and the number of independent units behind it."""

    estimate: float
    low: float
    high: float
    n: int
    at_least: bool = False
    """Some units are censored, so that the true value is this or more ..."""
    at_most: bool = False
    """... or this or less."""

    @property
    def bound(self) -> str | None:
        """ "at least", "at most", "unknown" where it is both, None for a plain value."""
        return {(0, 0): None, (1, 0): "at least", (0, 1): "at most"}.get((self.at_least, self.at_most), "unknown")

    def as_percent(self) -> "Interval":
        """A ratio as a change in percent."""
        low, middle, high = (100 * (x - 1) for x in (self.low, self.estimate, self.high))
        return replace(self, estimate=middle, low=low, high=high)


def bootstrap(
    samples: Sequence[Sequence[float]] | Floats,
    statistic: Callable[[Floats], float] = lambda rows: float(np.mean(rows)),
    resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over the first axis (Efron 1979): rows, such as seeds, are drawn together (paired).

    ValueError with fewer than 2 rows: one unit has no interval.
    """
    rows = np.asarray(samples, dtype=np.float64)
    if len(rows) < 2:
        raise ValueError(f"samples: {len(rows)} unit has no bootstrap interval; give at least 2")
    random = np.random.default_rng(seed)
    drawn = [statistic(rows[random.integers(0, len(rows), len(rows))]) for _ in range(resamples)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(statistic(rows)), float(low), float(high), len(rows))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean with Student's t interval: for few, roughly normal values, where the bootstrap is too narrow."""
    from scipy import stats

    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        raise ValueError(f"values: {len(x)} unit has no interval; give at least 2")
    half = float(stats.t.ppf((1 + confidence) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, len(x))


def ratio_interval(pairs: Sequence[tuple[float, float]], at_least: bool = False, at_most: bool = False) -> Interval:
    """Geometric mean of x / y over pairs of positive numbers, with Student's t interval on the logarithms."""
    logs = mean_interval([math.log(x / y) for x, y in pairs])
    return Interval(math.exp(logs.estimate), math.exp(logs.low), math.exp(logs.high), logs.n, at_least, at_most)


def fisher_interval(correlations: Sequence[float]) -> Interval:
    """Mean correlation with Student's t interval on atanh(r), which is nearly normal (Fisher 1915)."""
    z = mean_interval([math.atanh(min(max(r, -1 + 1e-12), 1 - 1e-12)) for r in correlations])
    return Interval(math.tanh(z.estimate), math.tanh(z.low), math.tanh(z.high), z.n)


def share_interval(successes: int, n: int) -> Interval:
    """Share with the exact interval of Clopper and Pearson (1934)."""
    from scipy import stats

    interval = stats.binomtest(successes, n).proportion_ci(0.95, method="exact")
    return Interval(successes / n, float(interval.low), float(interval.high), n)
