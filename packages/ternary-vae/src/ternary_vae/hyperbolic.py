"""The Poincare ball of curvature -c: radii and geodesic distances.

Convention as in geoopt: c > 0 stands for the curvature -c, the ball has the radius 1/sqrt(c), and
d(0, x) = 2/sqrt(c) artanh(sqrt(c) |x|). Points are made from a hyperbolic radius and a direction (the Euclidean
parametrisation of Mishne et al. 2023, arXiv:2211.00181), so that no optimiser step can leave the ball and no clip ties
radii at the boundary.

The formulas stand here because geoopt's clips would tie radii: its artanh clamps at 1 - 1e-7 and its projection at
1 - 1e-5 (float64), so that everything farther out than 16.8 or 12.2 (c = 1) would have the same radius.

Shapes: N points, D latent dimensions.
"""

import torch
from torch import Tensor


def to_hyperbolic(norm: Tensor, c: Tensor | float) -> Tensor:
    """Euclidean norm in the ball to the distance from the origin."""
    root = torch.as_tensor(c, dtype=norm.dtype, device=norm.device).sqrt()
    return 2 / root * torch.atanh(root * norm)


def to_euclidean(rho: Tensor, c: Tensor | float) -> Tensor:
    """Distance from the origin to the Euclidean norm in the ball."""
    root = torch.as_tensor(c, dtype=rho.dtype, device=rho.device).sqrt()
    return torch.tanh(root * rho / 2) / root


def distance(x_ND: Tensor, y_ND: Tensor, c: float) -> Tensor:
    """Geodesic distances [N] between points of the ball, float64.

    2/sqrt(c) arsinh(sqrt(c) |x - y| / sqrt((1 - c |x|^2) (1 - c |y|^2))), which is acosh's formula (Nickel and Kiela 2017,
    arXiv:1705.08039, equation 1) by the half-angle, and exact for points close together.
    """
    x_ND, y_ND = x_ND.double(), y_ND.double()
    # The clamp keeps points that rounding puts on the boundary itself at a finite distance.
    inside_N, also_N = ((1 - c * point_ND.square().sum(-1)).clamp_min(1e-15).sqrt() for point_ND in (x_ND, y_ND))
    return 2 / c**0.5 * torch.asinh(c**0.5 * (x_ND - y_ND).norm(dim=-1) / (inside_N * also_N))
