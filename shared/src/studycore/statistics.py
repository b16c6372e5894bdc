"""Intervals for means, differences, shares and censored times. Resampling uses its own seeded stream."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean with Student's t interval: for few, roughly normal values, where the bootstrap is too narrow."""
    from scipy import stats

    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        raise ValueError(f"values: {len(x)} unit has no interval; give at least 2")
    half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, len(x))


def share_interval(successes: int, n: int) -> Interval:
    """Share with the exact interval of Clopper and Pearson (1934)."""
    from scipy import stats

    interval = stats.binomtest(successes, n).proportion_ci(0.95, method="exact")
    return Interval(successes / n, float(interval.low), float(interval.high), n)


@dataclass(frozen=True)
class Survival:
    """Kaplan-Meier curve: S(t) just after each event time, with log-log intervals."""

    times: list[float]
    survival: list[float]
    low: list[float]
    high: list[float]
    n: int
    events: int

    def quantile(self, share: float = 0.5) -> float | None:
        """First time at which at least `share` have had the event; None when it lies beyond what was seen."""
        return _first_at_most(self.times, self.survival, 1 - share)

    def median_interval(self) -> tuple[float | None, float | None]:
        """95 % interval of the median by inverting the curve's interval (Brookmeyer and Crowley 1982)."""
        return _first_at_most(self.times, self.low, 0.5), _first_at_most(self.times, self.high, 0.5)


def kaplan_meier(times: Sequence[float], observed: Sequence[bool]) -> Survival:
    """Kaplan and Meier (1958) for times of which some are censored (`observed` False: not yet by that time)."""
    from scipy import stats

    t, seen = np.asarray(times, dtype=np.float64), np.asarray(observed, dtype=bool)
    if len(t) == 0 or len(t) != len(seen):
        raise ValueError(f"times, observed: {len(t)} and {len(seen)} values; give as many of each, at least 1")
    if not seen.any():
        return Survival([], [], [], [], len(t), 0)
    curve = stats.ecdf(stats.CensoredData(uncensored=t[seen], right=t[~seen])).sf
    with np.errstate(all="ignore"):  # log(-log(S)) has no value at S = 0 or 1; filled below
        interval = _quiet(lambda: curve.confidence_interval(0.95, method="log-log"))
    at = np.unique(t[seen])
    s = np.asarray(curve.evaluate(at))
    low = np.nan_to_num(np.asarray(interval.low.evaluate(at)), nan=0.0)
    # Past the last event of an uncensored sample S = 0 has no log-log limit: the last finite one is carried on.
    high_raw = np.asarray(interval.high.evaluate(at))
    high = np.where(np.isnan(high_raw), np.minimum.accumulate(np.nan_to_num(high_raw, nan=1.0)), high_raw)
    return Survival(at.tolist(), s.tolist(), low.tolist(), high.tolist(), len(t), int(seen.sum()))


def _first_at_most(times: list[float], values: list[float], level: float) -> float | None:
    return next((t for t, value in zip(times, values, strict=True) if value <= level + 1e-12), None)


def _quiet(compute: Callable[[], Any]) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return compute()
