"""Intervals against simulation, exact sums and closed forms."""

import math
from math import atanh, comb, sqrt, tanh

import numpy as np
import pytest

from studycore.statistics import (
    Interval,
    bootstrap,
    fisher_interval,
    joined_interval,
    mean_interval,
    median_interval,
    ratio_interval,
    ratio_of_sums,
    resample_counts,
    resampled_ratios,
    share_interval,
    t_factor,
    unbiased_z,
)

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


def test_a_ratio_is_the_mean_of_logarithms():
    """Of 2, 4 and 8: log 2 times 1, 2, 3, so 4 to the power of the t interval of 2, and scale-free."""
    interval = ratio_interval([(2, 1), (12, 3), (8, 1)])
    by_hand = mean_interval([1, 2, 3])
    assert interval.estimate == pytest.approx(4)
    assert (interval.low, interval.high) == pytest.approx((2**by_hand.low, 2**by_hand.high))
    inverse = ratio_interval([(1, 2), (3, 12), (1, 8)])
    assert (1 / inverse.high, 1 / inverse.low) == pytest.approx((interval.low, interval.high))
    percent = interval.as_percent()
    assert (percent.estimate, percent.n, percent.bound) == (pytest.approx(300), 3, None)
    assert (percent.low, percent.high) == pytest.approx((100 * interval.low - 100, 100 * interval.high - 100))


@pytest.mark.parametrize(
    ("at_least", "at_most", "bound"),
    [(False, False, None), (True, False, "at least"), (False, True, "at most"), (True, True, "unknown")],
)
def test_censored_units_make_a_bound(at_least, at_most, bound):
    interval = ratio_interval([(2, 1), (3, 1)], at_least, at_most)
    assert interval.bound == interval.as_percent().bound == bound


def test_fishers_z_of_few_draws_is_less_its_bias():
    assert unbiased_z(0.8, 10**6) == pytest.approx(atanh(0.8) - 0.8 / 2e6, abs=1e-11)
    assert unbiased_z(0.0, 4) == 0
    random = np.random.default_rng(2)
    x, noise = random.normal(size=(2, 20_000, 10))
    y = 0.6 * x + 0.8 * noise
    found = [np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)]
    assert np.mean([atanh(r) for r in found]) - atanh(0.6) > 0.025
    assert np.mean([unbiased_z(r, 10) for r in found]) == pytest.approx(atanh(0.6), abs=0.01)


def test_correlations_are_averaged_on_fishers_scale():
    interval = fisher_interval([0.2, 0.5, 0.8])
    z = mean_interval([atanh(r) for r in (0.2, 0.5, 0.8)])
    assert (interval.estimate, interval.low, interval.high) == pytest.approx(
        (tanh(z.estimate), tanh(z.low), tanh(z.high))
    )
    assert -1 < fisher_interval([1.0, 1.0]).low <= 1  # a perfect correlation has no infinite score


def test_units_and_seeds_are_joined():
    """Where one of the two does not vary, the other's own interval is left; and both together reach further than either."""
    drawn = np.random.default_rng(0).normal(0, 0.1, 20000)
    one = joined_interval(0.0, drawn, 50, [0.0])
    assert (one.low, one.high, one.n) == (pytest.approx(-0.196, rel=0.03), pytest.approx(0.196, rel=0.03), 50)
    units = joined_interval(0.0, drawn, 50, [0.0, 0.0, 0.0])
    assert (units.high, units.n) == (pytest.approx(2.0096 * 0.1, rel=0.02), 3)  # Student's t of 49 degrees of freedom
    seeds = joined_interval(2.0, [2.0] * 10, 50, [1.0, 2.0, 3.0])
    own = mean_interval([1.0, 2.0, 3.0])
    assert (seeds.low, seeds.high) == (pytest.approx(own.low), pytest.approx(own.high))
    both = joined_interval(2.0, 2.0 + drawn, 50, [1.9, 2.0, 2.1])
    assert both.high - 2 > max(units.high, mean_interval([1.9, 2.0, 2.1]).high - 2) * 0.9
    assert joined_interval(1.0, [1.0] * 9, 5, [1.0, 1.0]).high == 1.0


def test_logarithms_become_percent():
    percent = Interval(math.log(1.5), math.log(0.5), math.log(3), 4).logs_as_percent()
    assert (percent.estimate, percent.low, percent.high, percent.n) == (
        pytest.approx(50),
        pytest.approx(-50),
        pytest.approx(200),
        4,
    )


def test_the_interval_of_a_median_inverts_the_sign_test():
    values = [5.0, 1.0, 4.0, 2.0, 3.0, 6.0]
    assert median_interval(values, -1.0, 9.0) == Interval(3.5, 1.0, 6.0, 6)  # covers but with 2 / 64
    assert median_interval(values[:5], -1.0, 9.0) == Interval(3.0, -1.0, 9.0, 5)  # 2 / 32 is more than 0.05
    ten = median_interval(range(10), -1.0, 99.0)  # misses with 2 (1 + 10) / 1024; one further in with 2 * 56 / 1024
    assert (ten.low, ten.high) == (1.0, 8.0)
    random = np.random.default_rng(0)
    missed = sum(
        not (i.low <= 0 <= i.high) for i in (median_interval(random.normal(size=9), -9, 9) for _ in range(400))
    )
    assert missed / 400 <= 0.068  # 0.039, and 3 standard errors


def test_resamples_draw_as_many_units_as_there_are_and_always_the_same():
    counts_RU = resample_counts(5, 4000)
    assert counts_RU.shape == (4000, 5)
    assert (counts_RU.sum(1) == 5).all()
    # Multinomial: mean 1, variance 1 - 1/5.
    assert counts_RU.mean(0) == pytest.approx(1, abs=0.06)
    assert counts_RU.var(0) == pytest.approx(0.8, abs=0.08)
    resample_counts.cache_clear()
    assert (resample_counts(5, 4000) == counts_RU).all()


def test_a_ratio_of_sums_is_the_bootstrap_of_that_statistic():
    random = np.random.default_rng(2)
    numerator, denominator = random.normal(3, 1, 40), random.uniform(1, 2, 40)
    rows = np.stack([numerator, denominator], axis=1)
    plain = bootstrap(rows, lambda drawn: float(drawn[:, 0].sum() / drawn[:, 1].sum()), 300)
    ours = ratio_of_sums(numerator, denominator, 300)
    assert (ours.estimate, ours.low, ours.high) == pytest.approx((plain.estimate, plain.low, plain.high), rel=1e-12)
    assert ours.n == 40
    counts_RU = resample_counts(40, 300)
    assert resampled_ratios(numerator, denominator, 300) == pytest.approx(
        counts_RU @ numerator / (counts_RU @ denominator)
    )


def test_the_t_factor_is_of_tables():
    assert t_factor(5) * sqrt(5) == pytest.approx(2.776, abs=5e-4)
    assert t_factor(5, 0.9) * sqrt(5) == pytest.approx(2.132, abs=5e-4)


def test_logarithms_become_ratios():
    ratio = Interval(0.0, -math.log(2), math.log(2), 3, at_least=True).exponential()
    assert (ratio.low, ratio.estimate, ratio.high) == pytest.approx((0.5, 1, 2))
    assert ratio.at_least and ratio.n == 3
