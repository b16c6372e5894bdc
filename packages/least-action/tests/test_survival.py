"""Kaplan-Meier curves against an independent slow product-limit estimate and simulation."""

from math import exp, log, sqrt

import numpy as np
import pytest

from least_action.survival import kaplan_meier

Z = 1.959963984540054


def product_limit(times, observed):
    """S after each event time, one subject at a time, with the log-log limits of Greenwood's variance."""
    survival, variance, rows = 1.0, 0.0, []
    for time in sorted({t for t, seen in zip(times, observed, strict=True) if seen}):
        at_risk = sum(t >= time for t in times)
        died = sum(t == time and seen for t, seen in zip(times, observed, strict=True))
        survival *= 1 - died / at_risk
        if survival > 0:
            variance += died / (at_risk * (at_risk - died))
            spread = Z * sqrt(variance) / log(survival)
            rows.append((time, survival, survival ** exp(-spread), survival ** exp(spread)))
        else:
            rows.append((time, 0.0, 0.0, rows[-1][3] if rows else 1.0))
    return rows


@pytest.mark.parametrize("seed", range(12))
def test_kaplan_meier_equals_the_slow_product_with_ties_and_censoring(seed):
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 30))
    times = random.integers(1, 8, n).astype(float)
    observed = random.random(n) < (0.3, 0.7, 1.0)[seed % 3]
    observed[0] = True
    curve = kaplan_meier(times.tolist(), observed.tolist())
    expected = product_limit(times.tolist(), observed.tolist())
    found = list(zip(curve.times, curve.survival, curve.low, curve.high, strict=True))
    assert np.array(found) == pytest.approx(np.array(expected), rel=1e-9, abs=1e-12)
    assert (curve.n, curve.events) == (n, observed.sum())
    assert all(low <= s <= high for _, s, low, high in found)


def test_kaplan_meier_by_hand():
    """Times 1, 2+, 3, 3, 4+, 5 (+ censored): S = 5/6, 5/12, 0."""
    curve = kaplan_meier([1, 2, 3, 3, 4, 5], [True, False, True, True, False, True])
    assert curve.times == [1, 3, 5]
    assert curve.survival == pytest.approx([5 / 6, 5 / 12, 0])
    assert (curve.n, curve.events) == (6, 4)
    assert curve.quantile() == 3
    assert curve.quantile(0.1) == 1
    assert curve.quantile(1.0) == 5


def test_an_event_counts_before_a_censoring_at_the_same_time():
    assert kaplan_meier([2, 2], [True, False]).survival == [0.5]


def test_all_censored_and_none_censored():
    curve = kaplan_meier([3, 4, 5], [False] * 3)
    assert (curve.times, curve.n, curve.events) == ([], 3, 0)
    assert curve.quantile() is None
    assert curve.median_interval() == (None, None)
    times = [5.0, 1.0, 4.0, 2.0, 3.0]
    curve = kaplan_meier(times, [True] * 5)
    assert curve.survival == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    assert curve.quantile() == 3
    with pytest.raises(ValueError, match="times, observed"):
        kaplan_meier([], [])
    with pytest.raises(ValueError, match="times, observed"):
        kaplan_meier([1.0], [])


def test_a_median_beyond_what_was_seen_is_none():
    curve = kaplan_meier([1, 9, 9, 9], [True, False, False, False])
    assert curve.quantile() is None
    assert curve.median_interval()[1] is None


def test_the_interval_of_the_median_by_hand_and_its_coverage():
    curve = kaplan_meier(list(range(1, 21)), [True] * 20)
    rows = product_limit(list(range(1, 21)), [True] * 20)
    low = next(t for t, _, limit, _ in rows if limit <= 0.5)
    high = next(t for t, _, _, limit in rows if limit <= 0.5)
    assert curve.median_interval() == (low, high)
    assert low < 10 < high
    random = np.random.default_rng(2)
    hits, draws = 0, 200
    for _ in range(draws):
        times, ends = random.exponential(1.0, 30), random.uniform(0.5, 3.0, 30)
        curve = kaplan_meier(np.minimum(times, ends).tolist(), (times <= ends).tolist())
        low, high = curve.median_interval()
        hits += low <= log(2) and (high is None or log(2) <= high)
    assert 0.90 < hits / draws <= 1.0
