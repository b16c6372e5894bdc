"""The Poincare ball against geoopt and closed formulas, and where it is finer than geoopt."""

import math

import geoopt
import pytest
import torch

from ternary_vae.config import ArchitectureConfig, largest_max_radius
from ternary_vae.hyperbolic import displace, distance, log_sinhc, to_euclidean, to_hyperbolic, wrapped_kl

CURVATURES = [0.05, 0.5, 1.0, 2.0, 7.3]


def directions(n: int, d: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, d, generator=draw, dtype=torch.float64), dim=-1)


def points(rho_N: torch.Tensor, direction_ND: torch.Tensor, c: float) -> torch.Tensor:
    """At these distances from the origin, in these directions."""
    return to_euclidean(rho_N, c)[:, None] * direction_ND


@pytest.mark.parametrize("c", CURVATURES)
def test_the_two_radii_are_inverse(c):
    norm_N = torch.linspace(0, 0.999, 50, dtype=torch.float64) / c**0.5
    rho_N = to_hyperbolic(norm_N, c)
    torch.testing.assert_close(to_euclidean(rho_N, c), norm_N, rtol=1e-12, atol=1e-14)
    assert bool((rho_N.diff() > 0).all())
    # d(0, x) is the integral of 2 / (1 - c t^2) from 0 to |x|.
    t = torch.linspace(0, float(norm_N[40]), 200_001, dtype=torch.float64)
    assert float(torch.trapezoid(2 / (1 - c * t.square()), t)) == pytest.approx(float(rho_N[40]), rel=1e-8)
    # c as a tensor, for each point its own.
    torch.testing.assert_close(
        to_hyperbolic(norm_N, torch.full((50,), c, dtype=torch.float64)), rho_N, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("c", CURVATURES)
def test_points_and_radii_are_those_of_geoopt(c):
    manifold = geoopt.PoincareBall(c=torch.tensor(c, dtype=torch.float64))
    rho_N, direction_ND = torch.linspace(0.01, 8, 40, dtype=torch.float64) / c**0.5, directions(40, 5)
    points_ND = points(rho_N, direction_ND, c)
    torch.testing.assert_close(points_ND, manifold.expmap0(rho_N[:, None] / 2 * direction_ND), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(manifold.dist0(points_ND), rho_N, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(to_hyperbolic(points_ND.norm(dim=-1), c), rho_N, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("c", CURVATURES)
def test_distances_are_those_of_geoopt_and_of_the_closed_formula(c):
    x_ND = points(torch.linspace(0.1, 5, 60, dtype=torch.float64) / c**0.5, directions(60, 4, 1), c)
    y_ND = points(torch.linspace(4, 0.2, 60, dtype=torch.float64) / c**0.5, directions(60, 4, 2), c)
    apart = (x_ND - y_ND).square().sum(-1)
    inside = (1 - c * x_ND.square().sum(-1)) * (1 - c * y_ND.square().sum(-1))
    expected = torch.acosh(1 + 2 * c * apart / inside) / c**0.5
    torch.testing.assert_close(distance(x_ND, y_ND, c), expected, rtol=1e-8, atol=1e-9)
    manifold = geoopt.PoincareBall(c=torch.tensor(c, dtype=torch.float64))
    torch.testing.assert_close(distance(x_ND, y_ND, c), manifold.dist(x_ND, y_ND), rtol=1e-8, atol=1e-9)
    assert torch.equal(distance(x_ND, y_ND, c), distance(y_ND, x_ND, c))
    assert not distance(x_ND, x_ND, c).any()
    assert distance(x_ND.float(), y_ND.float(), c).dtype == torch.float64
    torch.testing.assert_close(
        distance(x_ND, torch.zeros_like(x_ND), c), to_hyperbolic(x_ND.norm(dim=-1), c), rtol=1e-10, atol=0
    )


def test_distances_hold_where_points_nearly_meet_and_far_out():
    """Near 0 the distance is 2 / (1 - r^2) of the Euclidean one; geoopt's artanh clamps beyond 16.8."""
    x_ND = torch.tensor([[0.5, 0.0], [0.5, 0.0]], dtype=torch.float64)
    shift_ND = torch.tensor([[1e-12, 0.0], [0.0, 1e-12]], dtype=torch.float64)
    torch.testing.assert_close(
        distance(x_ND, x_ND + shift_ND, 1.0), torch.full((2,), 1e-12 * 2 / 0.75).double(), rtol=1e-3, atol=0
    )
    out_N = torch.tensor([10.0, 12.0, 14.0], dtype=torch.float64)
    x_ND = points(out_N, torch.tensor([[1.0, 0.0]]).double().expand(3, 2), 1.0)
    torch.testing.assert_close(distance(x_ND, -x_ND, 1.0), 2 * out_N, rtol=1e-6, atol=0)
    boundary_ND = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(distance(boundary_ND, -boundary_ND, 1.0).sum(), boundary_ND)
    assert bool(distance(boundary_ND, -boundary_ND, 1.0).isfinite().all())
    assert bool(gradient.isfinite().all())


def test_radii_stay_apart_where_geoopt_ties_them():
    """geoopt's projection clips at 1 - 1e-5 (12.206) and its artanh at 1 - 1e-7 (16.8)."""
    rho_N, direction_ND = torch.linspace(13, 30, 18, dtype=torch.float64), directions(18, 3)
    manifold = geoopt.PoincareBall(c=torch.tensor(1.0, dtype=torch.float64))
    clipped = manifold.dist0(manifold.projx(points(rho_N, direction_ND, 1.0)))
    torch.testing.assert_close(clipped, torch.full_like(clipped, 12.2061), rtol=1e-4, atol=0)
    assert len(manifold.dist0(points(rho_N[5:], direction_ND[5:], 1.0)).round(decimals=6).unique()) == 1
    norm_N = to_euclidean(rho_N, 1.0)
    assert len(norm_N.unique()) == 18
    torch.testing.assert_close(to_hyperbolic(norm_N, 1.0), rho_N, rtol=1e-3, atol=0)


def test_float64_resolves_radii_near_the_boundary():
    norm_N = 0.99999 + torch.arange(5, dtype=torch.float64) * 1e-12
    rho_N = to_hyperbolic(norm_N, 1.0)
    # The slope is 2 / (1 - r^2), about 1e5 there.
    torch.testing.assert_close(rho_N.diff(), torch.full((4,), 1e-12 * 2 / (1 - 0.99999**2)).double(), rtol=1e-2, atol=0)
    torch.testing.assert_close(to_euclidean(rho_N, 1.0), norm_N, rtol=1e-14, atol=0)
    assert len(norm_N.float().unique()) == 1, "float32 ties all five"


@pytest.mark.parametrize("c", CURVATURES)
def test_a_maximum_radius_lies_inside_the_ball(c):
    limit = largest_max_radius(c)
    assert limit < c**-0.5
    largest = ArchitectureConfig(curvature=c, max_radius=limit * (1 - 1e-9)).max_radius
    assert bool(to_hyperbolic(torch.tensor(largest, dtype=torch.float64), c).isfinite())
    for outside in (limit, c**-0.5, 0.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="max_radius"):
            ArchitectureConfig(curvature=c, max_radius=outside)


def test_the_original_study_s_radius_at_curvature_2_is_refused():
    with pytest.raises(ValueError, match=r"max_radius: 0\.95 does not lie inside the ball of curvature 2.*0\.7071"):
        ArchitectureConfig(curvature=2.0, max_radius=0.95)
    with pytest.raises(ValueError, match="curvature: 0"):
        ArchitectureConfig(curvature=0.0)


# ------------------------------------------------------------------------------------------- wrapped normal distributions
@pytest.mark.parametrize("c", CURVATURES)
def test_a_displaced_point_is_that_of_geoopts_transport_and_exponential(c):
    manifold = geoopt.PoincareBall(c=torch.tensor(c, dtype=torch.float64))
    direction_ND, v_ND = (
        directions(50, 4),
        directions(50, 4, seed=1) * torch.linspace(0, 2, 50).double()[:, None] / c**0.5,
    )
    rho_N = torch.linspace(0.01, 3, 50, dtype=torch.float64) / c**0.5
    mu_ND = points(rho_N, direction_ND, c)
    # A vector of length 1 in coordinates at the origin has the length 2 in the ball's metric.
    z_ND = manifold.expmap(mu_ND, manifold.transp0(mu_ND, v_ND / 2))
    torch.testing.assert_close(displace(rho_N, direction_ND, v_ND, c), 2 * manifold.logmap0(z_ND), rtol=1e-9, atol=1e-9)
    still = displace(rho_N, direction_ND, 0 * v_ND, c)
    torch.testing.assert_close(still, rho_N[:, None] * direction_ND, rtol=1e-12, atol=1e-12)


def test_the_flat_limit_of_a_displaced_point_is_a_sum():
    direction_ND, v_ND = directions(20, 3), directions(20, 3, seed=1)
    rho_N = torch.linspace(0, 2, 20, dtype=torch.float64)
    torch.testing.assert_close(
        displace(rho_N, direction_ND, v_ND, 1e-10), rho_N[:, None] * direction_ND + v_ND, rtol=1e-8, atol=1e-8
    )


def test_the_logarithm_of_sinh_over_its_argument_is_smooth():
    x = torch.cat([torch.logspace(-8, 1.5, 500, dtype=torch.float64), torch.tensor([0.0099999, 0.0100001]).double()])
    assert float((log_sinhc(x) - (x.sinh() / x).log()).abs().max()) < 1e-14
    assert float(log_sinhc(torch.tensor(800.0, dtype=torch.float64))) == pytest.approx(800 - math.log(1600))


@pytest.mark.parametrize("c", [0.0, 0.5, 2.0])
def test_the_divergence_of_wrapped_normals(c):
    """At the origin it has a closed form; elsewhere both densities integrate to 1 over one volume: E_q[p / q] = 1."""
    draw = torch.Generator().manual_seed(0)
    prior_std, n, d = 0.8, 400_000, 3
    noise_ND = torch.randn(n, d, generator=draw, dtype=torch.float64)
    std_ND = torch.tensor([0.5, 0.6, 0.7], dtype=torch.float64).expand(n, d)

    def kl(rho, std_ND):
        direction_ND, v_ND = directions(1, d).expand(n, d), noise_ND * std_ND
        rho_N = torch.full((n,), rho, dtype=torch.float64)
        log_ND = displace(rho_N, direction_ND, v_ND, c) if c else rho_N[:, None] * direction_ND + v_ND
        return wrapped_kl(v_ND, std_ND, log_ND, prior_std, c)

    share_ND = std_ND[0] / prior_std
    closed = float((share_ND.square() / 2 - 0.5 - share_ND.log()).sum())
    assert float(kl(0.0, std_ND).mean()) == pytest.approx(closed, abs=0.01)
    wide_ND = torch.full((n, d), 0.9, dtype=torch.float64)
    apart_N = kl(0.7, wide_ND)
    assert float((-apart_N).exp().mean()) == pytest.approx(1, abs=0.01) and float(apart_N.mean()) > 0.1
