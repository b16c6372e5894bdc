"""The losses against PyTorch's distributions, slow loops written from their docstrings, and finite differences."""

import math

import geoopt
import pytest
import torch
from torch.func import grad, vmap

from ternary_vae.bands import (
    BAND_FILL,
    EVEN_BANDS,
    HALF,
    INNER_BANDS,
    MEAN_SHARE,
    OUTER_BAND,
    PRIOR_TAIL,
    Targets,
    band_edges,
    even_edges,
    largest_distance,
    level_targets,
    normal_radius,
    prior_std,
    target_radius,
)
from ternary_vae.config import TrainConfig
from ternary_vae.data import Operations
from ternary_vae.hyperbolic import to_euclidean
from ternary_vae.losses import (
    RADIAL,
    Weights,
    geodesic,
    kl_divergence,
    level_moments,
    ordered,
    reconstruction,
    rich_hierarchy,
    total,
)
from ternary_vae.metrics.radii import richness, richness_largest_share
from ternary_vae.model import Code, kl_parts

OPERATIONS = Operations.all(3)
WEIGHTS = Weights(5.0, 2.0, 3.0)


def random_radii(seed: int = 0, n: int = 27, top: float = 3.5) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * top


@pytest.fixture
def targets(small):
    return Targets.of(small(), torch.tensor([0.02, 0.01, 0.03, 0.0], dtype=torch.float64))


def halves(trits: int) -> torch.Tensor:
    """half_L of the wide bands."""
    return torch.tensor([HALF] + [0.5] * trits, dtype=torch.float64)


def by_level(v_N):
    return {k: [i for i, v in enumerate(v_N.tolist()) if v == k] for k in sorted(set(v_N.tolist()))}


def slow_ordered(r_N, v_N, place_N, targets, weights):
    groups = by_level(v_N)
    low, high, own = targets.low_L.tolist(), targets.high_L.tolist(), target_radius(v_N, place_N, targets).tolist()
    r = r_N.tolist()
    outside = [sum(max(low[k] - r[i], r[i] - high[k], 0) ** 2 for i in g) / len(g) for k, g in groups.items()]
    place = [sum((r[i] - own[i]) ** 2 for i in g) / len(g) for g in groups.values()]
    order = 0.0
    for k in range(len(low) - 1):
        if k in groups and k + 1 in groups:
            gap = min(r[i] for i in groups[k]) - max(r[i] for i in groups[k + 1])
            order += max(0, low[k] - high[k + 1] - gap) ** 2
    return {
        "hierarchy": weights.hierarchy * sum(outside) / len(groups),
        "richness": weights.richness * sum(place) / len(groups),
        "separation": weights.separation * order / (len(low) - 1),
    }


def slow_rich_hierarchy(r_N, v_N, place_N, targets, weights):
    groups, r = by_level(v_N), r_N.tolist()
    mean = {k: sum(r[i] for i in g) / len(g) for k, g in groups.items()}
    shortfalls = []
    for k, g in groups.items():
        first = float(targets.variance_L[k])
        if len(g) > 1 and first > 0:
            shortfalls.append(max(0, 0.5 - sum((r[i] - mean[k]) ** 2 for i in g) / len(g) / first) ** 2)
    overlap = sum(max(0, mean[k + 1] - mean[k] + 0.01) for k in mean if k + 1 in mean)
    return {
        "hierarchy": weights.hierarchy * sum((mean[k] - float(targets.mean_L[k])) ** 2 for k in mean) / len(mean),
        "richness": weights.richness * (sum(shortfalls) / len(shortfalls) if shortfalls else 0),
        "separation": weights.separation * overlap,
    }


SLOW = {"ordered": slow_ordered, "rich_hierarchy": slow_rich_hierarchy}
SUBSETS = {
    "all": range(27),
    "a level alone": [1, 2, 4, 5],
    "no level 1": [0, 1, 2, 4, 9, 18],
    "one of each": [0, 9, 3, 1],
    "a single operation": [3],
}


@pytest.mark.parametrize("loss", RADIAL)
@pytest.mark.parametrize("subset", SUBSETS)
def test_losses_of_radii_are_those_of_slow_loops(loss, subset, targets):
    part = OPERATIONS[torch.tensor(list(SUBSETS[subset]))]
    for seed in range(5):
        r_N = random_radii(seed, len(part), 0.8 if seed % 2 else 3.5)
        terms = RADIAL[loss](r_N, part.v_N, part.place_N, targets, WEIGHTS)
        expected = SLOW[loss](r_N, part.v_N, part.place_N, targets, WEIGHTS)
        assert {k: float(v) for k, v in terms.items()} == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("radius", ["hyperbolic", "euclidean"])
def test_ordered_is_zero_for_the_closed_form_alone(small, radius):
    targets = Targets.of(small(radius=radius), torch.zeros(4, dtype=torch.float64))
    v_N, place_N = OPERATIONS.v_N, OPERATIONS.place_N
    right_N = target_radius(v_N, place_N, targets)

    def terms(r_N):
        return {k: float(v) for k, v in ordered(r_N, v_N, place_N, targets, WEIGHTS).items()}

    assert terms(right_N) == {"hierarchy": 0, "richness": 0, "separation": 0}
    assert len(right_N.unique()) == 27
    # Inside its band but not at its place: richness alone.
    moved = right_N.clone()
    moved[3] = targets.low_L[1] + 0.9 * (targets.high_L - targets.low_L)[1]
    assert {k for k, x in terms(moved).items() if x > 0} == {"richness"}
    # Out of its band, away from its neighbours: no shortfall of the distance.
    outer = right_N.clone()
    outer[1] = targets.high_L[0] * 1.01
    assert {k for k, x in terms(outer).items() if x > 0} == {"hierarchy", "richness"}
    # Out of its band and into the next level's.
    inner = right_N.clone()
    inner[1] = targets.high_L[1] * 0.9
    assert {k for k, x in terms(inner).items() if x > 0} == {"hierarchy", "richness", "separation"}
    for r_N in (moved, outer, inner):
        assert min(terms(r_N).values()) >= 0


@pytest.mark.parametrize("trits", [2, 3, 9])
def test_bands_do_not_touch_and_lie_where_stated(trits):
    low_L, high_L = band_edges(trits)
    assert len(low_L) == len(high_L) == trits + 1
    assert bool((low_L < high_L).all())
    assert bool((high_L[1:] < low_L[:-1]).all())
    assert (float(low_L[0]), float(high_L[0])) == OUTER_BAND
    assert float(high_L[1]) == INNER_BANDS[1]
    assert float(low_L[-1]) > INNER_BANDS[0]
    part = (INNER_BANDS[1] - INNER_BANDS[0]) / trits
    torch.testing.assert_close((high_L - low_L)[1:], torch.full((trits,), BAND_FILL * part, dtype=torch.float64))
    operations = Operations.all(trits)
    bounds = Targets(low_L, high_L, low_L, low_L, halves(trits))
    r_N = target_radius(operations.v_N, operations.place_N, bounds)
    assert bool(((r_N >= low_L[operations.v_N]) & (r_N <= high_L[operations.v_N])).all())


def test_level_0_is_two_halves_that_are_richer_than_an_even_spread():
    operations = Operations.all(6)
    low_L, high_L = band_edges(6)
    r_N = target_radius(operations.v_N, operations.place_N, Targets(low_L, high_L, low_L, low_L, halves(6)))
    level = ((r_N - low_L[0]) / (high_L - low_L)[0])[operations.v_N == 0]
    assert bool(((level <= 0.42) | (level >= 0.58)).all())
    assert float(level.var(unbiased=False)) > 1 / 12
    assert bool(((level < 0.5) == (operations.x_NM[operations.v_N == 0, 0] == 0)).all()), "by the first trit"


def test_even_bands_share_the_richness_evenly(small):
    low_L, high_L = even_edges(9)
    widths = (high_L - low_L).tolist()
    assert widths == pytest.approx([widths[0]] * 10) and float(high_L[0]) == EVEN_BANDS[1] and float(low_L[-1]) > 0.02
    assert bool((high_L[1:] < low_L[:-1]).all())
    operations = Operations.all(9)
    largest = {}
    for bands in ("wide", "even"):
        of_bands = Targets.of(TrainConfig(bands=bands, radius="euclidean"), torch.zeros(10, dtype=torch.float64))
        r_N = target_radius(operations.v_N, operations.place_N, of_bands).numpy()
        largest[bands] = richness_largest_share(operations.v_N.numpy(), r_N), richness(operations.v_N.numpy(), r_N)
    assert largest["even"][0] < 0.2 < 0.99 < largest["wide"][0] and largest["even"][1] < largest["wide"][1]


@pytest.mark.parametrize("radius", ["hyperbolic", "euclidean"])
def test_the_priors_bands_hold_the_levels_shares_of_its_mass(radius):
    """Counted on draws of the prior, not by the formula that made them."""
    config = TrainConfig(latent_dim=5, bands="prior", radius=radius, trits=4)
    of_bands = Targets.of(config, torch.zeros(5, dtype=torch.float64))
    low_L, high_L = of_bands.low_L, of_bands.high_L
    assert bool((low_L < high_L).all()) and bool((high_L[1:] < low_L[:-1]).all()) and float(low_L[-1]) == 0
    draw_ND = torch.randn(400_000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    r_N = prior_std(config) * draw_ND.norm(dim=1)
    assert float((r_N > largest_distance(config)).double().mean()) == pytest.approx(PRIOR_TAIL, abs=1e-4)
    r_N = MEAN_SHARE * r_N
    r_N = to_euclidean(r_N, 1.0) if radius == "euclidean" else r_N
    for k in range(4):
        middle = (low_L[k] + high_L[k + 1]) / 2
        between = float((r_N < low_L[k]).double().mean()), float((r_N < high_L[k + 1]).double().mean())
        assert between[1] < 3.0 ** -(k + 1) < between[0] and float(middle) > 0
    assert normal_radius(0.5, 2) == pytest.approx((2 * math.log(2)) ** 0.5), "Rayleigh's median"


def test_the_baselines_targets_are_the_original_study_s():
    assert level_targets(9, 0.9, 0.1).tolist() == pytest.approx([0.9 - 0.8 * v / 9 for v in range(10)])


def test_targets_are_in_the_unit_of_the_loss(small):
    variance_L = torch.zeros(4, dtype=torch.float64)
    flat = Targets.of(small(radius="euclidean", max_radius=0.8), variance_L)
    curved = Targets.of(small(max_radius=0.8, curvature=1.3), variance_L)
    assert flat.mean_L.tolist() == pytest.approx([0.8 / 0.95 * (0.9 - 0.8 * v / 3) for v in range(4)])
    for norm_L, rho_L in zip(flat[:3], curved[:3], strict=True):
        torch.testing.assert_close(rho_L, 2 / math.sqrt(1.3) * torch.atanh(math.sqrt(1.3) * norm_L))


def test_a_loss_on_level_means_is_blind_to_overlap_that_ordered_sees(small):
    """The original study's fault: every mean on its target, and single samples anywhere."""
    targets = Targets.of(small(), torch.full((4,), 1e-4, dtype=torch.float64))
    v_N, place_N = OPERATIONS.v_N, OPERATIONS.place_N
    apart_N = targets.mean_L[v_N]
    spread_N = torch.zeros(27, dtype=torch.float64)
    for k in range(3):
        members = (v_N == k).nonzero().squeeze(1)
        spread_N[members] = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(len(members) // 2)
    narrow_N, overlapping_N = apart_N + 0.01 * spread_N, apart_N + 1.5 * spread_N
    assert float(overlapping_N[v_N == 0].min()) < float(overlapping_N[v_N == 2].max())

    def loss(function, r_N):
        return float(total(function(r_N, v_N, place_N, targets, WEIGHTS)))

    assert loss(rich_hierarchy, narrow_N) == pytest.approx(0, abs=1e-12)
    assert loss(rich_hierarchy, overlapping_N) == pytest.approx(0, abs=1e-12)
    assert loss(ordered, overlapping_N) > loss(ordered, narrow_N) + 1
    gradient = grad(lambda r_N: total(rich_hierarchy(r_N, v_N, place_N, targets, WEIGHTS)))(overlapping_N)
    assert float(gradient.abs().max()) < 1e-12, "and nothing pulls the overlap apart"


def test_moments_are_those_of_each_level():
    r_N, v_N = random_radii(), OPERATIONS.v_N
    count_L, mean_L, variance_L = level_moments(r_N, v_N, 4)
    assert count_L.tolist() == [18, 6, 2, 1]
    for k in range(4):
        torch.testing.assert_close(mean_L[k], r_N[v_N == k].mean())
        torch.testing.assert_close(variance_L[k], r_N[v_N == k].var(unbiased=False))
    assert [float(x[2]) for x in level_moments(r_N[:2], v_N[1:3], 4)] == [0, 0, 0]


def test_reconstruction_is_the_mean_cross_entropy_of_the_trits():
    logits_NM3 = torch.randn(27, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probability = logits_NM3.softmax(-1)
    expected = [-sum(math.log(probability[n, m, OPERATIONS.target_NM[n, m]]) for m in range(3)) / 3 for n in range(27)]
    assert reconstruction(logits_NM3, OPERATIONS.target_NM).tolist() == pytest.approx(expected, rel=1e-12)


def test_kl_is_that_of_torch_distributions():
    draw = torch.Generator().manual_seed(0)
    mu_ND, logvar_ND = torch.randn(2, 20, 5, generator=draw, dtype=torch.float64).unbind()
    normal = torch.distributions.Normal(mu_ND, (logvar_ND / 2).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(torch.zeros(()).double(), 1.0))
    parts_ND = kl_parts(Code(mu_ND, logvar_ND))
    torch.testing.assert_close(parts_ND, expected)
    assert float(kl_divergence(parts_ND, 0.0)) == pytest.approx(float(expected.mean(0).sum()))
    assert float(kl_parts(Code(torch.zeros(3, 2), torch.zeros(3, 2))).abs().max()) == 0


def test_free_bits_are_of_each_dimension():
    parts_ND = torch.tensor([[0.1, 2.0, 0.0], [0.3, 4.0, 0.0]], requires_grad=True)
    loss = kl_divergence(parts_ND, 0.5)
    assert loss.item() == pytest.approx(0.5 + 3 + 0.5)
    loss.backward()
    assert parts_ND.grad.tolist() == [[0, 0.5, 0], [0, 0.5, 0]], "no pull below"
    # Of the batch's mean, not of single samples: one below the free bits still counts for the mean.
    assert float(kl_divergence(torch.tensor([[0.1], [1.1]]), 0.5)) == pytest.approx(0.6)


def geodesic_inputs(small, **changes):
    draw = torch.Generator().manual_seed(4)
    direction_ND = torch.nn.functional.normalize(torch.randn(27, 3, generator=draw, dtype=torch.float64), dim=-1)
    r_N = random_radii(5, top=2.5)
    config = small(**changes)
    points_ND = (torch.tanh(config.curvature**0.5 * r_N / 2) / config.curvature**0.5)[:, None] * direction_ND
    pairs = torch.randint(27, (2, 60), generator=draw)
    targets = Targets.of(config, torch.zeros(4, dtype=torch.float64))
    return config, points_ND, r_N, pairs, targets


@pytest.mark.parametrize("curvature", [0.5, 1.0])
def test_geodesic_is_that_of_a_slow_loop(small, curvature):
    config, points_ND, r_N, pairs, targets = geodesic_inputs(small, curvature=curvature)
    v, tau, weights = OPERATIONS.v_N.tolist(), 0.3, (1.5, 2.0, 0.7)
    ball = geoopt.PoincareBall(c=torch.tensor(curvature, dtype=torch.float64))
    smooth, rank, ranked = 0.0, 0.0, 0
    for i, j in pairs.T.tolist():
        between = 3 if i == j else next(k for k in range(3) if (i - j) % 3 ** (k + 1))
        miss = abs(float(ball.dist(points_ND[i], points_ND[j])) - 3 * math.exp(-between / 3))
        smooth += miss**2 / 2 if miss < 1 else miss - 0.5
        if v[i] != v[j]:
            a, b = (i, j) if v[i] < v[j] else (j, i)
            rank += max(0, float(r_N[b] - r_N[a]) + 0.01)
            ranked += 1
    radial = (
        sum((float(r_N[n]) - float(targets.mean_L[v[n]])) ** 2 * (1 + math.exp(0.4 * v[n])) for n in range(27)) / 27
    )
    expected = {"geodesic": 0.3 * 1.5 * smooth / 60, "hierarchy": 2.0 * radial, "separation": 0.7 * rank / ranked}
    terms = geodesic(points_ND, r_N, OPERATIONS.v_N, OPERATIONS.index_N, pairs, targets, config, tau, weights)
    assert {k: float(x) for k, x in terms.items()} == pytest.approx(expected, rel=1e-7)


def test_gradients_are_those_of_finite_differences(small, targets):
    v_N, place_N = OPERATIONS.v_N, OPERATIONS.place_N
    r_N = random_radii(2).requires_grad_()
    for loss in RADIAL.values():
        assert torch.autograd.gradcheck(lambda r, f=loss: total(f(r, v_N, place_N, targets, WEIGHTS)), r_N)
    config, points_ND, r_N, pairs, targets = geodesic_inputs(small)
    apart = pairs[:, pairs[0] != pairs[1]]
    inputs = (points_ND.requires_grad_(), r_N.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda p, r: total(geodesic(p, r, v_N, OPERATIONS.index_N, apart, targets, config, 0.5, (1.0, 1.0, 1.0))),
        inputs,
    )


@pytest.mark.parametrize("radii", [0.0, 1e-12, 3.66, 12.0, 1e4])
def test_losses_and_gradients_are_finite_at_extremes(small, targets, radii):
    v_N, place_N = OPERATIONS.v_N, OPERATIONS.place_N
    r_N = torch.full((27,), radii, dtype=torch.float64, requires_grad=True)
    for loss in RADIAL.values():
        value = total(loss(r_N, v_N, place_N, targets, WEIGHTS))
        (gradient,) = torch.autograd.grad(value, r_N)
        assert bool(value.isfinite())
        assert bool(gradient.isfinite().all())
    points_ND = torch.tanh(r_N / 2)[:, None] * torch.tensor([1.0, 0, 0], dtype=torch.float64)
    pairs = torch.tensor([[0, 1, 2, 3, 3], [0, 5, 9, 3, 4]])  # an operation with itself among them
    parts = geodesic(points_ND, r_N, v_N, OPERATIONS.index_N, pairs, targets, small(), 1.0, (1.0, 1.0, 1.0))
    (gradient,) = torch.autograd.grad(total(parts), r_N)
    assert bool(total(parts).isfinite())
    assert bool(gradient.isfinite().all())


def test_reconstruction_and_kl_are_finite_at_extremes():
    logits = torch.tensor([[[1e4, -1e4, 0.0]] * 3], requires_grad=True)
    (gradient,) = torch.autograd.grad(reconstruction(logits, torch.tensor([[0, 1, 2]])).sum(), logits)
    assert bool(gradient.isfinite().all())
    logvar_ND = torch.tensor([[-10.0, 2.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(kl_parts(Code(torch.full((1, 2), 1e6), logvar_ND)).sum(), logvar_ND)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("loss", RADIAL)
def test_a_batch_without_the_deepest_level_or_with_one_member_gives_no_nan(loss, targets):
    """The unbiased variance of one member is NaN: the likely source of the original study's NaN batches."""
    for positions in ([0], [1], [0, 1], [0, 9, 18], [1, 2]):
        part = OPERATIONS[torch.tensor(positions)]
        r_N = random_radii(0, len(positions)).requires_grad_()
        value = total(RADIAL[loss](r_N, part.v_N, part.place_N, targets, WEIGHTS))
        (gradient,) = torch.autograd.grad(value, r_N)
        assert bool(value.isfinite())
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("loss", RADIAL)
def test_many_runs_at_once_are_those_one_by_one(loss, small):
    """Weights, targets, radii and batches of each run its own, as the sweep stacks them."""
    runs = 4
    r_RN = torch.stack([random_radii(k, 20) for k in range(runs)])
    at_RN = torch.stack([torch.randperm(27, generator=torch.Generator().manual_seed(k))[:20] for k in range(runs)])
    weights = Weights(*(torch.tensor([w, 2 * w, 0.0, w / 3], dtype=torch.float64) for w in WEIGHTS))
    own = [
        Targets.of(
            small(outer_radius=0.9 - 0.1 * k, curvature=0.5 + 0.1 * k), torch.full((4,), 0.3 * k, dtype=torch.float64)
        )
        for k in range(runs)
    ]
    stacked = Targets(*(torch.stack(parts) for parts in zip(*own, strict=True)))

    def value(r_N, v_N, place_N, targets, weights):
        return total(RADIAL[loss](r_N, v_N, place_N, targets, weights))

    v_RN, place_RN = OPERATIONS.v_N[at_RN], OPERATIONS.place_N[at_RN]
    gradients = vmap(grad(value))(r_RN, v_RN, place_RN, stacked, weights)
    values = vmap(value)(r_RN, v_RN, place_RN, stacked, weights)
    for k in range(runs):
        arguments = (r_RN[k], v_RN[k], place_RN[k], own[k], Weights(*(float(w[k]) for w in weights)))
        torch.testing.assert_close(gradients[k], grad(value)(*arguments), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(values[k], value(*arguments), rtol=1e-12, atol=1e-12)
