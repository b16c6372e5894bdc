"""Metrics of radii against SciPy, exact formulas and slow loops; planted hierarchies pass and random ones don't."""

import math

import geoopt
import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, somersd, spearmanr

from ternary_vae.metrics import radii as metrics

RNG = np.random.default_rng


def level_counts(trits: int) -> list[int]:
    """Of all operations, two thirds are not in any deeper level."""
    return [2 * 3 ** (trits - 1 - k) for k in range(trits)] + [1]


def levels(trits: int) -> np.ndarray:
    """The valuations of all operations, by level."""
    return np.repeat(np.arange(trits + 1), level_counts(trits))


def perfect(trits: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Radii without ties, spread within their level, every level inside those of lower valuation."""
    v_N = levels(trits)
    return v_N, (trits - v_N + RNG(seed).uniform(0.05, 0.95, len(v_N))) / (trits + 1)


def slow_somers_d(v_N, r_N):
    score = pairs = 0
    for i in range(len(v_N)):
        for j in range(i):
            if v_N[i] != v_N[j]:
                pairs += 1
                score += np.sign(v_N[i] - v_N[j]) * np.sign(r_N[i] - r_N[j])
    return score / pairs


@pytest.mark.parametrize("ties", [None, 1, 0])
def test_hierarchy_is_scipy_s_spearman(ties):
    rng = RNG(0)
    v_N = rng.integers(0, 5, 300)
    r_N = rng.normal(size=300) - 0.3 * v_N
    r_N = r_N if ties is None else r_N.round(ties)
    assert metrics.hierarchy(v_N, r_N) == pytest.approx(spearmanr(v_N, r_N).statistic, abs=1e-14)
    assert metrics.hierarchy(v_N, np.ones(300)) is None
    assert metrics.hierarchy(np.ones(300, dtype=int), r_N) is None


@pytest.mark.parametrize(
    ("trits", "ceiling"), [(3, 0.832600), (4, 0.832113), (5, 0.832057), (6, 0.832051), (9, 0.832050295411623)]
)
def test_the_ceiling_is_exact_and_attained(trits, ceiling):
    v_N, r_N = perfect(trits)
    tolerance = 1e-14 if trits == 9 else 5e-7
    assert metrics.hierarchy_ceiling(v_N) == pytest.approx(ceiling, abs=tolerance)
    assert metrics.hierarchy(v_N, r_N) == pytest.approx(-metrics.hierarchy_ceiling(v_N), abs=1e-12)
    assert metrics.hierarchy(v_N, -r_N) == pytest.approx(metrics.hierarchy_ceiling(v_N), abs=1e-12)
    assert metrics.somers_d(v_N, r_N) == -1
    assert metrics.somers_d(v_N, -r_N) == 1
    again = RNG(1).permutation(len(v_N))
    assert metrics.hierarchy(v_N[again], r_N[again]) == pytest.approx(metrics.hierarchy(v_N, r_N), abs=1e-12)


def test_no_order_of_a_small_set_without_ties_exceeds_the_ceiling():
    v_N = levels(3)
    ceiling = metrics.hierarchy_ceiling(v_N)
    rng = RNG(0)
    assert max(abs(metrics.hierarchy(v_N, rng.permutation(27).astype(float))) for _ in range(300)) < ceiling
    assert metrics.hierarchy_ceiling(np.zeros(5, dtype=int)) is None
    # N^3 beyond 64 bits: 3^14 operations.
    assert metrics.hierarchy_ceiling(levels(14)) == pytest.approx(3 / math.sqrt(13), abs=1e-9)


def test_ties_exceed_the_ceiling_and_are_reported():
    v_N, r_N = perfect(9)
    v0 = v_N == 0
    only_v0_tied = np.where(v0, 1.0, r_N)
    assert metrics.hierarchy(v_N, only_v0_tied) == pytest.approx(-0.9919, abs=5e-5)
    assert metrics.hierarchy(v_N, (9 - v_N) / 10) == pytest.approx(-1, abs=1e-14)
    assert metrics.hierarchy(v_N, np.where(v0, r_N, (9 - v_N) / 10)) == pytest.approx(-0.8368, abs=5e-5)
    for share, expected in ((0.2, -0.8330), (0.5, -0.8479), (0.8, -0.9034), (0.95, -0.9634)):
        clamped = r_N.copy()
        outer = np.sort(r_N[v0])[-round(share * 13122)]
        clamped[v0 & (r_N >= outer)] = 1.0
        assert metrics.hierarchy(v_N, clamped) == pytest.approx(expected, abs=6e-5)
        assert metrics.tied_radius_share(clamped) == pytest.approx(share * 13122 / 19683, abs=1e-4)
    assert metrics.tied_radius_share(r_N) == 0
    # All but the one operation of the deepest level share their radius with another.
    assert metrics.tied_radius_share((9 - v_N) / 10) == pytest.approx(19682 / 19683, abs=1e-12)
    assert metrics.somers_d(v_N, only_v0_tied) == -1, "ties within a level are no fault of the order"


@pytest.mark.parametrize("ties", [None, 1, 0])
def test_somers_d_is_that_of_all_pairs(ties):
    rng = RNG(3)
    v_N = rng.integers(0, 6, 150)
    r_N = rng.normal(size=150) - 0.4 * v_N
    r_N = r_N if ties is None else r_N.round(ties)
    value = metrics.somers_d(v_N, r_N)
    assert value == pytest.approx(slow_somers_d(v_N, r_N), abs=1e-14)
    assert value == pytest.approx(somersd(v_N, r_N).statistic, abs=1e-12)
    assert metrics.somers_d(v_N, np.ones(150)) == 0
    assert metrics.somers_d(np.ones(5, dtype=int), r_N[:5]) is None


def test_one_swapped_pair_is_seen():
    v_N, r_N = perfect(4)
    shallower, deeper = (
        np.flatnonzero(v_N == 1)[np.argmin(r_N[v_N == 1])],
        np.flatnonzero(v_N == 2)[np.argmax(r_N[v_N == 2])],
    )
    r_N[shallower], r_N[deeper] = r_N[deeper], r_N[shallower]
    different = (81**2 - sum(t**2 for t in level_counts(4))) // 2
    assert metrics.somers_d(v_N, r_N) == pytest.approx(-1 + 2 / different, abs=1e-14)
    gaps = metrics.level_gaps(v_N, r_N)
    assert [gap > 0 for gap in gaps] == [True, False, True, True]


def test_level_gaps_are_from_the_smallest_radius_to_the_deeper_level_s_largest():
    v_N = np.array([0, 0, 1, 1, 3])
    assert metrics.level_gaps(v_N, np.array([0.9, 0.7, 0.5, 0.6, 0.1])) == pytest.approx([0.1, 0.4])
    assert metrics.level_gaps(v_N, np.array([0.9, 0.5, 0.6, 0.2, 0.1])) == pytest.approx([-0.1, 0.1])
    assert metrics.level_gaps(np.zeros(3, dtype=int), np.ones(3)) == []


def test_richness_is_a_tenth_of_the_variances_and_squares_the_unit():
    v_N, r_N = perfect(4)
    variances = [np.mean((r_N[v_N == k] - r_N[v_N == k].mean()) ** 2) for k in range(5)]
    assert metrics.richness(v_N, r_N) == pytest.approx(sum(variances) / 10, rel=1e-12)
    assert metrics.richness(v_N, 3 * r_N + 7) == pytest.approx(9 * metrics.richness(v_N, r_N), rel=1e-12)
    assert metrics.richness(v_N, np.full(81, 0.3)) < 1e-30


def test_richness_is_bounded_by_the_closed_forms():
    """All width R in one level: R^2/120 for an even spread, R^2/40 for two points; nine equal bands share it."""
    width, v_N = 0.95, levels(9)
    r_N = np.zeros(len(v_N))
    r_N[v_N == 0] = np.linspace(0, width, 13122)
    assert metrics.richness(v_N, r_N) == pytest.approx(width**2 / 120, rel=1e-3) == pytest.approx(0.00752, abs=5e-6)
    r_N[v_N == 0] = np.where(np.arange(13122) % 2, width, 0)
    assert metrics.richness(v_N, r_N) == pytest.approx(width**2 / 40, rel=1e-12) == pytest.approx(0.02256, abs=5e-6)
    for k, count in enumerate(level_counts(9)[:9]):
        r_N[v_N == k] = width / 9 * (8 - k + np.where(np.arange(count) % 2, 1, 0))
    assert metrics.richness(v_N, r_N) == pytest.approx(9 * (width / 9) ** 2 / 40, rel=1e-12)
    rho = 2 * math.atanh(width)
    assert rho**2 / 120 == pytest.approx(0.112, abs=5e-4)
    r_N = np.where(v_N == 0, np.where(np.arange(19683) % 2, rho, 0), 0.0)
    assert metrics.richness(v_N, r_N) == pytest.approx(rho**2 / 40, rel=1e-12) == pytest.approx(0.336, abs=5e-4)


def test_an_inverted_model_scores_in_the_original_study_s_q_only():
    v_N, r_N = perfect(4)
    right, inverted = metrics.hierarchy(v_N, r_N), metrics.hierarchy(v_N, -r_N)
    assert metrics.q(0.1, right) == pytest.approx(0.1 + 1.5 * metrics.hierarchy_ceiling(v_N))
    assert metrics.q(0.1, inverted) == pytest.approx(0.1 - 1.5 * metrics.hierarchy_ceiling(v_N))
    assert metrics.q_original(0.1, inverted) == metrics.q_original(0.1, right) == metrics.q(0.1, right)


@pytest.mark.parametrize("seed", range(3))
def test_noise_does_not_pass_and_a_planted_hierarchy_does(seed):
    v_N, r_N = perfect(9, seed)
    planted = metrics.radius_metrics(v_N, r_N, 2 * np.arctanh(r_N))
    noise_N = RNG(seed).uniform(0.05, 0.95, len(v_N))
    noise = metrics.radius_metrics(v_N, noise_N, 2 * np.arctanh(noise_N))
    # The standard deviation without structure is 1/sqrt(N - 1) = .0071.
    assert abs(noise["hierarchy"]) < 5 * 0.0071
    assert abs(noise["somers_d"]) < 0.05
    assert noise["min_level_gap"] < 0
    assert planted["hierarchy_of_ceiling"] == pytest.approx(1, abs=1e-12)
    assert planted["somers_d"] == -1
    assert planted["positive_gaps"] == planted["gaps"] == 9
    assert planted["min_level_gap"] > 0
    assert planted["tied_radius_share"] == noise["tied_radius_share"] == 0
    assert planted["richness_hyperbolic"] > planted["richness"]
    inverted = metrics.radius_metrics(v_N, 1 - r_N, 2 * np.arctanh(1 - r_N))
    assert inverted["hierarchy_of_ceiling"] == pytest.approx(-1, abs=1e-12)


def test_values_that_do_not_exist_are_left_out():
    v_N = levels(3)
    of_equal = metrics.radius_metrics(v_N, np.full(27, 0.5), np.ones(27))
    assert (of_equal["positive_gaps"], of_equal["gaps"], of_equal["min_level_gap"]) == (0, 3, 0)
    assert "hierarchy" not in of_equal
    assert "hierarchy_of_ceiling" not in of_equal
    assert of_equal["somers_d"] == 0
    assert of_equal["tied_radius_share"] == 1
    alone = metrics.radius_metrics(np.zeros(4, dtype=int), np.arange(4) / 9, np.arange(4) / 4)
    assert set(alone) == {
        "positive_gaps",
        "gaps",
        "tied_radius_share",
        "richness",
        "richness_hyperbolic",
        "richness_largest_share",
    }


def test_an_operation_is_right_with_every_trit():
    target_NM = torch.tensor([[0, 1], [2, 0], [1, 1]])
    logits_NM3 = torch.nn.functional.one_hot(target_NM, 3).double()
    assert metrics.right(logits_NM3, target_NM).tolist() == [True, True, True]
    logits_NM3[1, 0] = torch.tensor([5.0, 0, 1])
    assert metrics.right(logits_NM3, target_NM).tolist() == [True, False, True]


def test_distance_correlations_are_the_two_definitions():
    """On a planted code they are SciPy's correlations over the same kind of pairs, all of them."""
    trits, n_N = 3, torch.arange(27)
    v_N = torch.from_numpy(
        np.array([trits if n == 0 else next(k for k in range(3) if n % 3 ** (k + 1)) for n in range(27)])
    )
    z_ND = (
        torch.randn(27, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        * 0.2
        * (4 - v_N)[:, None]
        / 4
    )
    i, j = torch.triu_indices(27, 27, 1)
    apart = (v_N[i] - v_N[j]).abs()
    expected = spearmanr((z_ND[i] - z_ND[j]).norm(dim=-1), apart).statistic
    assert metrics.dist_corr_levels(z_ND, v_N) == pytest.approx(expected, abs=1e-12)
    d = geoopt.PoincareBall(c=torch.tensor(1.0, dtype=torch.float64)).dist(z_ND[i], z_ND[j])
    between = [trits if x == 0 else next(k for k in range(3) if x % 3 ** (k + 1)) for x in (j - i).tolist()]
    expected = pearsonr(d, 3 * np.exp(-np.array(between) / 3)).statistic
    assert metrics.dist_corr_geodesic(z_ND, n_N, trits, 1.0) == pytest.approx(expected, abs=0.03)
    assert metrics.dist_corr_geodesic(z_ND, n_N, trits, 1.0) == metrics.dist_corr_geodesic(z_ND, n_N, trits, 1.0)
    assert metrics.dist_corr_geodesic(torch.zeros(27, 4), n_N, trits, 1.0) is None


def test_the_correlation_over_levels_takes_as_many_points_as_it_says(monkeypatch):
    """All pairs of 243 operations; and of as few as asked for, drawn by the seed."""
    v_N = torch.from_numpy(levels(5))
    z_ND = torch.randn(243, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * (6 - v_N)[:, None]
    i, j = torch.triu_indices(243, 243, 1)
    expected = spearmanr((z_ND[i] - z_ND[j]).norm(dim=-1), (v_N[i] - v_N[j]).abs()).statistic
    assert metrics.LEVEL_POINTS == 1000
    assert metrics.dist_corr_levels(z_ND, v_N) == pytest.approx(expected, abs=1e-12)
    monkeypatch.setattr(metrics, "LEVEL_POINTS", 60)
    drawn = [metrics.dist_corr_levels(z_ND, v_N, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0] == pytest.approx(expected, abs=0.2)
