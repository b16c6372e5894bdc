"""Intervals for means, differences, shares and censored times. Resampling uses its own seeded stream."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

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
    unknown: int = 0
    """Of a share: units that failed or are not finished, of which nobody knows whether they would have passed."""

    @property
    def bound(self) -> str | None:
        """ "at least", "at most", "unknown" where it is both, None for a plain value."""
        return {(0, 0): None, (1, 0): "at least", (0, 1): "at most"}.get((self.at_least, self.at_most), "unknown")

    def exponential(self) -> "Interval":
        """The logarithms of a ratio as the ratio."""
        low, middle, high = (math.exp(x) for x in (self.low, self.estimate, self.high))
        return replace(self, estimate=middle, low=low, high=high)

    def as_percent(self) -> "Interval":
        """A ratio as a change in percent."""
        low, middle, high = (100 * (x - 1) for x in (self.low, self.estimate, self.high))
        return replace(self, estimate=middle, low=low, high=high)

    def logs_as_percent(self) -> "Interval":
        """The logarithms of a ratio as a change in percent."""
        low, middle, high = (100 * math.expm1(x) for x in (self.low, self.estimate, self.high))
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
    drawn = [statistic(rows[chosen]) for chosen in _draws(len(rows), resamples, seed)]
    return _percentiles(float(statistic(rows)), drawn, len(rows))


def _draws(units: int, resamples: int, seed: int = 0) -> Iterator[NDArray[np.int64]]:
    """Indices of the units of each resample, drawn with replacement; the same at every call."""
    random = np.random.default_rng(seed)
    return (random.integers(0, units, units) for _ in range(resamples))


def _percentiles(estimate: float, drawn: Sequence[float] | Floats, units: int, confidence: float = 0.95) -> Interval:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high), units)


@lru_cache(maxsize=4)
def resample_counts(units: int, resamples: int) -> Floats:
    """[resamples, units]: how often each unit is in each of `bootstrap`'s resamples."""
    counts = [np.bincount(chosen, minlength=units) for chosen in _draws(units, resamples)]
    return np.array(counts, dtype=np.float64)


def resampled_ratios(numerator: Floats, denominator: Floats, resamples: int) -> Floats:
    """[resamples] sum of the numerators over the sum of the denominators, both of `bootstrap`'s resamples of the units.

    The counts of one resample are held at a time: units may be tens of thousands.
    """
    both = np.stack([numerator, denominator], axis=1)
    sums = np.array([np.bincount(chosen, minlength=len(both)) @ both for chosen in _draws(len(both), resamples)])
    return np.asarray(sums[:, 0] / sums[:, 1])


def ratio_of_sums(numerator: Floats, denominator: Floats, resamples: int = 4000) -> Interval:
    """Sum of the numerators over the sum of the denominators, with the percentile bootstrap over units. See `bootstrap`."""
    if len(numerator) < 2:
        raise ValueError(f"numerator: {len(numerator)} unit has no bootstrap interval; give at least 2")
    drawn = resampled_ratios(numerator, denominator, resamples)
    return _percentiles(float(numerator.sum() / denominator.sum()), drawn, len(numerator))


def joined_interval(
    estimate: float, drawn: Sequence[float] | Floats, units: int, of_seeds: Sequence[float], confidence: float = 0.95
) -> Interval:
    """A mean over units (documents, say) that every seed shares and over seeds: both make it uncertain.

    `drawn`: the estimate of each resample of the units; `of_seeds`: the estimate of each seed. One seed: the percentiles of
    `drawn`, and n is the number of units. Several: the variance of `drawn` plus that of the seeds' mean, and Student's t with
    the degrees of freedom of Satterthwaite (1946); n is the number of seeds. (Drawing 3 seeds with replacement instead
    misses the truth in a quarter of trials, since an interval can't reach beyond the seeds seen.)
    """
    from scipy import stats

    seeds = len(of_seeds)
    if seeds == 1:
        return _percentiles(estimate, drawn, units, confidence)
    of_units = float(np.var(drawn))
    between = float(np.var(of_seeds, ddof=1)) / seeds
    total = of_units + between
    freedom = total**2 / (of_units**2 / (units - 1) + between**2 / (seeds - 1)) if total > 0 else 1.0
    half = float(stats.t.ppf((1 + confidence) / 2, freedom) * math.sqrt(total))
    return Interval(estimate, estimate - half, estimate + half, seeds)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean with Student's t interval: for few, roughly normal values, where the bootstrap is too narrow."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        raise ValueError(f"values: {len(x)} unit has no interval; give at least 2")
    half = float(x.std(ddof=1)) * t_factor(len(x), confidence)
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, len(x))


def t_factor(n: int, confidence: float = 0.95) -> float:
    """Half the width of Student's t interval of a mean of n values, as a multiple of their standard deviation."""
    from scipy import stats

    return float(stats.t.ppf((1 + confidence) / 2, n - 1) / math.sqrt(n))


def ratio_interval(
    pairs: Sequence[tuple[float, float]], at_least: bool = False, at_most: bool = False, steps: Sequence[tuple[float, float]] = ()
) -> Interval:  # fmt: skip
    """Geometric mean of x / y over pairs of positive numbers, with Student's t interval on the logarithms.

    `steps`: that x and y are times which were looked for every so often, so that each is up to a step less than was seen. All
    are late alike, which no averaging removes: the interval reaches from that of (x - step) / y to that of x / (y - step).
    Where one of these is not positive, the ratio is a bound.
    """
    interval = mean_interval([math.log(x / y) for x, y in pairs]).exponential()
    if steps:
        seen = [(x, y, by_x, by_y) for (x, y), (by_x, by_y) in zip(pairs, steps, strict=True)]
        least = ratio_interval([(max(x - by_x, 0) or x, y) for x, y, by_x, _ in seen])
        most = ratio_interval([(x, max(y - by_y, 0) or y) for x, y, _, by_y in seen])
        interval = replace(interval, low=min(interval.low, least.low), high=max(interval.high, most.high))
        at_least = at_least or any(y <= by_y for _, y, _, by_y in seen)
        at_most = at_most or any(x <= by_x for x, _, by_x, _ in seen)
    return replace(interval, at_least=at_least, at_most=at_most)


def median_interval(values: Sequence[float], least: float, most: float) -> Interval:
    """Median with the interval of order statistics that inverts the sign test (Conover 1999, section 3.2).

    Fewer than 6 values have no such interval of 95 %: then it is all that a value can be, from `least` to `most`.
    """
    from scipy import stats

    x, n = sorted(values), len(values)
    k = int(stats.binom.ppf(0.025, n, 0.5))  # the k smallest values lie below the interval
    if stats.binom.cdf(k, n, 0.5) > 0.025:
        k -= 1
    low, high = (least, most) if k < 0 else (x[k], x[n - 1 - k])
    return Interval(float(np.median(x)), float(low), float(high), n)


def fisher_interval(correlations: Sequence[float]) -> Interval:
    """Mean correlation with Student's t interval on atanh(r), which is nearly normal (Fisher 1915)."""
    z = mean_interval([fisher_z(r) for r in correlations])
    return Interval(math.tanh(z.estimate), math.tanh(z.low), math.tanh(z.high), z.n)


def fisher_z(correlation: float) -> float:
    """atanh(r); a correlation of 1 is taken for one just below it."""
    return math.atanh(min(max(correlation, -1 + 1e-12), 1 - 1e-12))


def unbiased_z(correlation: float, draws: int) -> float:
    """Fisher's z less that by which n draws make it too large on average, to the third order in 1 / (n - 1).

    r / (2 (n - 1)) is the first order (Fisher 1921), which is little more than half of it for 4 draws; the next two are
    Hotelling's (1953).
    """
    m, r2 = draws - 1, correlation**2
    further = (5 + r2) / (4 * m) + (11 + 2 * r2 + 3 * r2**2) / (8 * m**2)
    return fisher_z(correlation) - correlation / (2 * m) * (1 + further)


def share_interval(successes: int, n: int) -> Interval:
    """Share with the exact interval of Clopper and Pearson (1934)."""
    from scipy import stats

    interval = stats.binomtest(successes, n).proportion_ci(0.95, method="exact")
    return Interval(successes / n, float(interval.low), float(interval.high), n)
