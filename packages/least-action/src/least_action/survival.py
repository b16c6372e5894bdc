"""Kaplan-Meier curves of times of which some are censored."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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
    with np.errstate(all="ignore"), warnings.catch_warnings():  # log(-log(S)) has no value at S = 0 or 1; filled below
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = curve.confidence_interval(0.95, method="log-log")
    event_times = np.unique(t[seen])
    s = np.asarray(curve.evaluate(event_times))
    low = np.nan_to_num(np.asarray(interval.low.evaluate(event_times)), nan=0.0)
    # Past the last event of an uncensored sample S = 0 has no log-log limit: the last finite one is carried on.
    high_raw = np.asarray(interval.high.evaluate(event_times))
    high = np.where(np.isnan(high_raw), np.minimum.accumulate(np.nan_to_num(high_raw, nan=1.0)), high_raw)
    return Survival(event_times.tolist(), s.tolist(), low.tolist(), high.tolist(), len(t), int(seen.sum()))


def _first_at_most(times: list[float], values: list[float], level: float) -> float | None:
    return next((t for t, value in zip(times, values, strict=True) if value <= level + 1e-12), None)
