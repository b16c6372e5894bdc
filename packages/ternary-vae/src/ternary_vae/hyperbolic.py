"""The Poincare ball of curvature -c: radii, geodesic distances and wrapped normal distributions.

Convention as in geoopt: c > 0 stands for the curvature -c, the ball has the radius 1/sqrt(c), and
d(0, x) = 2/sqrt(c) artanh(sqrt(c) |x|). Points are made from a hyperbolic radius and a direction (the Euclidean
parametrisation of Mishne et al. 2023, arXiv:2211.00181), so that no optimiser step can leave the ball and no clip ties
radii at the boundary.

The formulas stand here because geoopt's clips would tie radii: its artanh clamps at 1 - 1e-7 and its projection at
1 - 1e-5 (float64), so that everything farther out than 16.8 or 12.2 (c = 1) would have the same radius.

Shapes: N points, D latent dimensions.
"""

import math

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


def displace(rho_N: Tensor, direction_ND: Tensor, v_ND: Tensor, c: float) -> Tensor:
    """log_0 of exp_mu(v) [N, D], where mu lies at the distance rho from the origin in a unit direction.

    v [N, D] is a tangent vector at mu in the orthonormal frame that parallel transport along the geodesic brings from the
    origin (Nagano et al. 2019, arXiv:1902.02992, section 3.1). The transport leaves the direction and what is orthogonal
    to it as they are, so that the point is, on the hyperboloid, cosh and sinh of both lengths; nothing is clamped.
    """
    root = c**0.5
    a_N, b_N = root * rho_N, root * v_ND.norm(dim=-1)
    along_N = root * (v_ND * direction_ND).sum(-1)
    across_ND = root * v_ND - along_N[:, None] * direction_ND
    ratio_N = torch.exp(log_sinhc(b_N))
    far_N = torch.sinh(a_N) * torch.cosh(b_N) + torch.cosh(a_N) * along_N * ratio_N
    space_ND = far_N[:, None] * direction_ND + ratio_N[:, None] * across_ND
    norm_N = space_ND.norm(dim=-1).clamp_min(1e-12)
    return space_ND * (torch.asinh(norm_N) / (norm_N * root))[:, None]


def log_sinhc(x: Tensor) -> Tensor:
    """log(sinh(x) / x) for x >= 0: by its series below 0.01, where the next term is smaller than 1e-15."""
    large = x.clamp_min(1e-2)
    far = large - math.log(2) + torch.log1p(-torch.exp(-2 * large)) - large.log()
    return torch.where(x < 1e-2, x.square() / 6 - x.pow(4) / 180 + x.pow(6) / 2835, far)


def wrapped_kl(v_ND: Tensor, std_ND: Tensor, log_ND: Tensor, prior_std: float, c: float) -> Tensor:
    """log q(z) - log p(z) [N] of one sample each, nats: its mean is the KL divergence of two wrapped normal distributions.

    q is centred at mu with standard deviations std, and z = exp_mu(v); p is centred at the origin with prior_std, and
    log_ND = log_0(z). Both densities are of the volume of the ball, which gives each the term
    -(D - 1) log(sinh(sqrt(c) r) / (sqrt(c) r)) (Nagano et al. 2019, equation 9). c = 0: flat space, where that term is 0.
    """
    own_N = -((v_ND / std_ND).square() / 2 + std_ND.log()).sum(-1)
    prior_N = -((log_ND / prior_std).square() / 2).sum(-1) - log_ND.shape[-1] * math.log(prior_std)
    if c == 0:
        return own_N - prior_N
    volumes_N = log_sinhc(c**0.5 * log_ND.norm(dim=-1)) - log_sinhc(c**0.5 * v_ND.norm(dim=-1))
    return own_N - prior_N + (v_ND.shape[-1] - 1) * volumes_N


def distance(x_ND: Tensor, y_ND: Tensor, c: float) -> Tensor:
    """Geodesic distances [N] between points of the ball, float64.

    2/sqrt(c) arsinh(sqrt(c) |x - y| / sqrt((1 - c |x|^2) (1 - c |y|^2))), which is acosh's formula (Nickel and Kiela 2017,
    arXiv:1705.08039, equation 1) by the half-angle, and exact for points close together.
    """
    x_ND, y_ND = x_ND.double(), y_ND.double()
    # The clamp keeps points that rounding puts on the boundary itself at a finite distance.
    inside_N, also_N = ((1 - c * point_ND.square().sum(-1)).clamp_min(1e-15).sqrt() for point_ND in (x_ND, y_ND))
    return 2 / c**0.5 * torch.asinh(c**0.5 * (x_ND - y_ND).norm(dim=-1) / (inside_N * also_N))
