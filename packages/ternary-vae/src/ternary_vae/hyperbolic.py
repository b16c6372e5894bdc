"""The Poincare ball of curvature -c: radii, the exponential map at the origin, geodesic distances.

Convention as in geoopt: c > 0 stands for the curvature -c, the ball has the radius 1/sqrt(c), and
d(0, x) = 2/sqrt(c) artanh(sqrt(c) |x|). Points are made from a hyperbolic radius and a direction (the Euclidean
parametrisation of Mishne et al. 2023, arXiv:2211.00181), so that no optimiser step can leave the ball and no clip ties
radii at the boundary.

geoopt does the geodesic distances. It is not used for radii: its artanh clamps at 1 - 1e-7 and its projection at
1 - 1e-5 (float64), so that everything farther out than 16.8 or 12.2 (c = 1) would have the same radius.

Shapes: N points, D latent dimensions.
"""

import warnings
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import geoopt


def to_hyperbolic(norm: Tensor, c: Tensor | float) -> Tensor:
    """Euclidean norm in the ball to the distance from the origin."""
    root = torch.as_tensor(c, dtype=norm.dtype, device=norm.device).sqrt()
    return 2 / root * torch.atanh(root * norm)


def to_euclidean(rho: Tensor, c: Tensor | float) -> Tensor:
    """Distance from the origin to the Euclidean norm in the ball."""
    root = torch.as_tensor(c, dtype=rho.dtype, device=rho.device).sqrt()
    return torch.tanh(root * rho / 2) / root


def exp0(rho_N: Tensor, direction_ND: Tensor, c: Tensor | float) -> Tensor:
    """The point at distance rho from the origin in a unit direction: exp_0 of the tangent vector rho/2 * direction."""
    return to_euclidean(rho_N, c)[..., None] * direction_ND


@cache
def ball(c: float) -> "geoopt.PoincareBall":
    """geoopt's ball, in float64."""
    with warnings.catch_warnings():
        # Its import uses torch.jit.script, which PyTorch deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        import geoopt

    return geoopt.PoincareBall(c=torch.tensor(c, dtype=torch.float64))


def distance(x_ND: Tensor, y_ND: Tensor, c: float) -> Tensor:
    """Geodesic distances [N] between points of the ball, by geoopt in float64.

    Exact below 16.8/sqrt(c), where geoopt's artanh begins to clamp; two points at norm 0.95 are at most 7.4 apart (c = 1).
    """
    # geoopt's scripted functions would round otherwise once PyTorch has seen them run twice: resuming would not be bitwise.
    with torch.jit.optimized_execution(False):
        distances_N: Tensor = ball(c).dist(x_ND.double(), y_ND.double())
    return distances_N
