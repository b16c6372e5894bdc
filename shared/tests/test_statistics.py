"""Intervals against simulation, exact sums and an independent slow product-limit estimate."""

from math import comb, exp, log, sqrt

import numpy as np
import pytest

from studycore.statistics import Interval, bootstrap, kaplan_meier, mean_interval, share_interval

Z = 1.959963984540054


def coverage(make, truth, draws):
    random = np.random.default_rng(1)
    intervals = [make(random) for _ in range(draws)]
    return np.mean([i.low <= truth <= i.high for i in intervals])


def test_the_t_interval_covers_at_its_level():
    """1000 samples of 5 normal values: 0.95 within 3 standard errors of 0.0069."""
    assert 0.93 < coverage(lambda random: mean_interval(random.normal(2.0, 3.0, 5)), 2.0, 1000) < 0.97


def test_the_bootstrap_covers_near_its_level():
    """A percentile bootstrap of n normal values is narrower by about sqrt((n - 1) / n): 0.94 at n = 40."""
    found = coverage(lambda random: bootstrap(random.normal(2.0, 3.0, 40), resamples=250), 2.0, 250)
    assert 0.89 < found < 0.985


def test_the_bootstrap_draws_rows_together():
    """Differences of paired columns: the shared part of each pair must cancel."""
    random = np.random.default_rng(0)
    shared = random.normal(0, 100, 30)
    pairs = np.stack([shared + 1.0 + random.normal(0, 0.1, 30), shared], axis=1)
    interval = bootstrap(pairs, lambda rows: float((rows[:, 0] - rows[:, 1]).mean()))
    assert interval.estimate == pytest.approx(1.0, abs=0.1)
    assert 0 < interval.high - interval.low < 0.2
    assert interval.n == 30


def test_the_bootstrap_is_a_function_of_its_seed_and_matches_the_normal_limit():
    x = np.random.default_rng(0).normal(0, 1, 400)
    one = bootstrap(x)
    assert one == bootstrap(x)
    assert one != bootstrap(x, seed=1)
    half = Z * x.std() / 20
    assert (one.low, one.high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.006)


def test_the_t_interval_by_hand():
    """Of 1, 2, 3: 2 +- t(0.975, 2 degrees of freedom) sqrt(1 / 3), t = 4.30265."""
    interval = mean_interval([1, 2, 3])
    assert (interval.estimate, interval.n) == (2.0, 3)
    assert interval.high - 2 == 2 - interval.low == pytest.approx(4.302653 / sqrt(3), rel=1e-6)
    assert mean_interval([4, 4]) == Interval(4.0, 4.0, 4.0, 2)


@pytest.mark.parametrize("make", [bootstrap, mean_interval])
def test_one_unit_has_no_interval(make):
    for values in ([], [1.0]):
        with pytest.raises(ValueError, match=f"{len(values)} unit"):
            make(values)


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (1, 5), (3, 7), (12, 20), (20, 20)])
def test_the_share_interval_has_exact_tails(successes, n):
    """Clopper and Pearson: at each limit the tail beyond what was seen has probability 0.025."""
    interval = share_interval(successes, n)

    def probability(counts, p):
        return sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in counts)

    assert interval.estimate == successes / n
    assert interval.n == n
    if successes == 0:
        assert interval.low == 0
    else:
        assert probability(range(successes, n + 1), interval.low) == pytest.approx(0.025, rel=1e-6)
    if successes == n:
        assert interval.high == 1
    else:
        assert probability(range(successes + 1), interval.high) == pytest.approx(0.025, rel=1e-6)


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
