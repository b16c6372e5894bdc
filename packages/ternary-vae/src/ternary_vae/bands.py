"""Where radii should lie: the bands of the levels, and the prior's own shells.

wide   the first layout: level 0, two thirds of all operations, takes two thirds of the radii, in two halves with nothing
       between, which makes nearly all of the richness
even   every level has a band of the same width, and so the same part of the richness
prior  a level's band lies where the prior has that level's share of its mass: with the distances of a normal distribution
       of D dimensions, level k lies between the quantiles 3^-(k+1) and 3^-k. Then samples of the prior meet every level as
       often as operations have it. The bands are those of means, which lie nearer the origin than samples do

Shapes: N operations, L = M + 1 levels.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from ternary_vae.config import ArchitectureConfig, TrainConfig
from ternary_vae.hyperbolic import to_euclidean, to_hyperbolic

OUTER_BAND, INNER_BANDS = (0.31, 0.985), (0.02, 0.27)
"""wide: where the bands lie, in shares of the largest norm: level 0, which two thirds of all operations belong to and which
is given the room for richness, and all other levels together."""
BAND_FILL = 0.6
"""wide, even: share of a deeper level's part of the radii that its band fills; the rest is the gap to the next."""
HALF = 0.42
"""wide: share of level 0's band that each of its halves fills (by the trit that ends the leading -1s)."""
EVEN_BANDS = (0.02, 0.985)
"""even: where all bands lie together, in shares of the largest norm."""
PRIOR_TAIL = 1e-4
"""prior: mass of the prior that lies farther out than the largest radius."""
PRIOR_FILL = 0.7
"""prior: share of a level's part that its band fills, in the middle of it."""
MEAN_SHARE = 0.75
"""prior: distance of a posterior's mean over that of its samples. In flat space it is sqrt(1 - s^2) where s is the posterior's
standard deviation over the prior's, 0.6 to 0.7 here. A factor that follows the radii lets the posterior collapse: no band then
holds it against the KL divergence."""


class Targets(NamedTuple):
    """Where radii should be, in the unit of the loss; float64."""

    low_L: Tensor
    high_L: Tensor
    mean_L: Tensor
    """Of the baseline losses."""
    variance_L: Tensor
    """Within each level before training (rich_hierarchy)."""
    half_L: Tensor
    """Share of its band that each half of a level fills; 0.5: there are no halves."""

    @classmethod
    def of(cls, config: TrainConfig, variance_L: Tensor) -> "Targets":
        mean_L = level_targets(config.trits, config.outer_radius, config.inner_radius) / 0.95

        def radius(share_L: Tensor) -> Tensor:
            norm_L = share_L * config.max_radius
            return to_hyperbolic(norm_L, config.curvature) if config.radius == "hyperbolic" else norm_L

        half_L = torch.full((config.trits + 1,), 0.5, dtype=torch.float64)
        if config.bands == "prior":
            low_L, high_L = prior_bands(config.trits, config.latent_dim, largest_distance(config))
            if config.radius == "euclidean":
                low_L, high_L = to_euclidean(low_L, config.curvature), to_euclidean(high_L, config.curvature)
            return cls(low_L, high_L, radius(mean_L), variance_L, half_L)
        low_L, high_L = band_edges(config.trits) if config.bands == "wide" else even_edges(config.trits)
        if config.bands == "wide":
            half_L[0] = HALF
        return cls(radius(low_L), radius(high_L), radius(mean_L), variance_L, half_L)


def largest_distance(config: ArchitectureConfig) -> float:
    """Hyperbolic distance of max_radius from the origin."""
    # On the CPU also where a model is built of shapes alone.
    radius = torch.tensor(config.max_radius, dtype=torch.float64, device="cpu")
    return float(to_hyperbolic(radius, config.curvature))


def prior_std(config: ArchitectureConfig) -> float:
    """Standard deviation of the prior, in distances: PRIOR_TAIL of its mass lies beyond the largest radius."""
    return largest_distance(config) / normal_radius(1 - PRIOR_TAIL, config.latent_dim)


def normal_radius(mass: float, dimensions: int) -> float:
    """Radius that holds that mass of a standard normal distribution (quantile of the chi distribution)."""
    from scipy.special import gammaincinv

    return float((2 * gammaincinv(dimensions / 2, mass)) ** 0.5)


def prior_bands(trits: int, dimensions: int, largest: float) -> tuple[Tensor, Tensor]:
    """Lower and upper edge [L] of every level's band, in distances, float64."""
    std = largest / normal_radius(1 - PRIOR_TAIL, dimensions)
    bounds = [largest, *(std * normal_radius(3.0**-k, dimensions) for k in range(1, trits + 1)), 0.0]
    low, high = [], []
    for outer, inner in itertools.pairwise(bounds):
        margin = (1 - PRIOR_FILL) / 2 * (outer - inner)
        # The deepest level has one operation, at the centre.
        low.append(MEAN_SHARE * (inner + margin) if inner > 0 else 0.0)
        high.append(MEAN_SHARE * (outer - margin))
    return torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)


def band_edges(trits: int) -> tuple[Tensor, Tensor]:
    """wide: lower and upper edge [L] of every level's band, in shares of the largest norm, float64."""
    inner, outer = INNER_BANDS
    part = (outer - inner) / trits
    high = [OUTER_BAND[1], *(outer - k * part for k in range(trits))]
    low = [OUTER_BAND[0], *(top - BAND_FILL * part for top in high[1:])]
    return torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)


def even_edges(trits: int) -> tuple[Tensor, Tensor]:
    """even: the same, with one width for all levels."""
    inner, outer = EVEN_BANDS
    part = (outer - inner) / (trits + 1)
    high_L = outer - part * torch.arange(trits + 1, dtype=torch.float64)
    return high_L - BAND_FILL * part, high_L


def level_targets(trits: int, outer: float, inner: float) -> Tensor:
    """The original study's radii t_v = outer - v/m (outer - inner) [L], float64."""
    return outer - torch.arange(trits + 1, dtype=torch.float64) / trits * (outer - inner)


def target_radius(v_N: Tensor, place_N: Tensor, targets: Targets) -> Tensor:
    """A radius of its own for every operation, inside its level's band: the closed form of what `ordered` asks for."""
    # Two halves make no band wider and give more variance than an even spread.
    half_N = targets.half_L[v_N]
    share_N = torch.where(place_N < 0.5, 2 * half_N * place_N, 1 - 2 * half_N * (1 - place_N))
    return targets.low_L[v_N] + share_N * (targets.high_L - targets.low_L)[v_N]
