"""Metrics of a code's radii and points, on the mean code of every operation.

`v` are valuations (levels), `r` radii. Outward levels are shallow ones: right is a radius that falls with the valuation,
so a hierarchy or Somers' D of -1 is perfect order where nothing is tied.

Shapes: N operations, L levels.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studycore.streams import generator
from ternary_vae.data import tree_distance
from ternary_vae.history import without_none
from ternary_vae.hyperbolic import distance

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
GEODESIC_PAIRS, LEVEL_POINTS = 20_000, 1_000
"""Random pairs of the one distance correlation, and random points (all their pairs) of the other."""


def right(logits_NM3: Tensor, target_NM: Tensor) -> Tensor:
    """Which operations [N] have every trit right; coverage is their share."""
    return (logits_NM3.argmax(-1) == target_NM).all(-1)


def mid_ranks(x_N: Floats | Ints) -> Floats:
    """Ranks from 1, ties averaged. Small integers, such as valuations, are counted instead of sorted."""
    if x_N.dtype.kind == "i":
        count_K = np.bincount(x_N - x_N.min())
        of_value_K: Floats = count_K.cumsum() - (count_K - 1) / 2
        return of_value_K[x_N - x_N.min()]
    from scipy.stats import rankdata

    ranks: Floats = rankdata(x_N)
    return ranks


def pearson(x_N: Floats, y_N: Floats) -> float | None:
    """Pearson's correlation; None when one of them is constant."""
    x, y = x_N - x_N.mean(), y_N - y_N.mean()
    norm = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / norm if norm > 0 else None


def hierarchy(v_N: Ints, r_N: Floats) -> float | None:
    """Spearman's correlation of valuation and radius, ties averaged; None when all radii are equal."""
    return pearson(mid_ranks(v_N), mid_ranks(r_N))


def hierarchy_ceiling(v_N: Ints) -> float | None:
    """The largest |hierarchy| that radii without ties can have, given how the levels are tied.

    sqrt((N^3 - N - sum_k (t_k^3 - t_k)) / (N^3 - N)) for levels of t_k operations: 0.83205 for all 19,683. Ties between
    radii can exceed it. None for one level.
    """
    n = len(v_N)
    # Python's integers: N^3 of 531,441 does not fit 64 bits.
    tied = sum(t**3 - t for t in np.bincount(v_N).tolist())
    return math.sqrt((n**3 - n - tied) / (n**3 - n)) if tied < n**3 - n else None


def somers_d(v_N: Ints, r_N: Floats) -> float | None:
    """Somers' D of radius given valuation: (concordant - discordant) / pairs of different valuation (Somers 1962).

    -1: every radius lies inside those of all lower valuations, whatever the spread; a pair tied in the radius counts 0.
    Exact, by sorting and counting: O(L N log N). None for one level.
    """
    levels = [np.sort(r_N[v_N == k]) for k in np.unique(v_N)]
    score, pairs, below = 0, 0, levels[0]
    for level in levels[1:]:
        smaller = int(np.searchsorted(below, level, "left").sum())
        larger = len(below) * len(level) - int(np.searchsorted(below, level, "right").sum())
        score += smaller - larger
        pairs += len(below) * len(level)
        below = np.sort(np.concatenate([below, level]), kind="stable")
    return score / pairs if pairs else None


def depth_order(v_N: Ints, r_N: Floats) -> dict[int, float]:
    """k -> Somers' D among the operations of valuation k and more, for every k with two levels or more. The one over all
    operations (k = 0) is nearly blind to the deep levels, which hold few of them."""
    by_depth = {int(k): somers_d(v_N[v_N >= k], r_N[v_N >= k]) for k in np.unique(v_N)}
    return {k: d for k, d in by_depth.items() if d is not None}


def mean_of(by_depth: Mapping[int, float]) -> float | None:
    """Mean over the depths; None where there is none."""
    return sum(by_depth.values()) / len(by_depth) if by_depth else None


def level_gaps(v_N: Ints, r_N: Floats) -> list[float]:
    """From each level's smallest radius to the next deeper level's largest; all positive: the levels are separate."""
    present = np.unique(v_N)
    return [float(r_N[v_N == a].min() - r_N[v_N == b].max()) for a, b in pairwise(present)]


def tied_radius_share(r_N: Floats) -> float:
    """Share of operations whose radius another one has too."""
    _, counts = np.unique(r_N, return_counts=True)
    return float(counts[counts > 1].sum() / len(r_N))


def richness(v_N: Ints, r_N: Floats) -> float:
    """A tenth of the sum over levels of the population variance of the radius, in the radius's unit squared."""
    return float(sum(r_N[v_N == k].var() for k in np.unique(v_N)) / 10)


def richness_largest_share(v_N: Ints, r_N: Floats) -> float | None:
    """The part of the richness that the level with the most of it has: 1/9 when nine levels share it evenly. None for 0."""
    variances = [float(r_N[v_N == k].var()) for k in np.unique(v_N)]
    return max(variances) / sum(variances) if sum(variances) > 0 else None


def dist_corr_geodesic(points_ND: Tensor, index_N: Tensor, trits: int, c: float, seed: int = 0) -> float | None:
    """Pearson's correlation of geodesic distances with 3 exp(-v(i - j) / 3), on random pairs (V5.11's training)."""
    n = len(index_N)
    i, j = torch.randint(n, (2, GEODESIC_PAIRS), generator=generator(seed, "geodesic pairs")).unbind()
    apart = i != j
    i, j = i[apart], j[apart]
    target = tree_distance(index_N[i], index_N[j], trits)
    return pearson(distance(points_ND[i], points_ND[j], c).numpy(), target.numpy())


def dist_corr_levels(z_ND: Tensor, v_N: Tensor, seed: int = 0) -> float | None:
    """Spearman's correlation of Euclidean latent distances with |v_i - v_j|, over the pairs of random points (sweeps)."""
    n = min(LEVEL_POINTS, len(v_N))
    chosen = torch.randperm(len(v_N), generator=generator(seed, "level points"))[:n]
    d = torch.pdist(z_ND[chosen].double()).numpy()
    i, j = torch.triu_indices(n, n, 1).unbind()
    apart = (v_N[chosen][i] - v_N[chosen][j]).abs().numpy()
    return pearson(mid_ranks(d), mid_ranks(apart))


def q(dist_corr: float, hierarchy: float) -> float:
    """Q = dist_corr - 1.5 hierarchy: an inverted model loses by it."""
    return dist_corr - 1.5 * hierarchy


def q_original(dist_corr: float, hierarchy: float) -> float:
    """The original study's Q = dist_corr + 1.5 |hierarchy|: an inverted model scores as well."""
    return dist_corr + 1.5 * abs(hierarchy)


def radius_metrics(v_N: Ints, norm_N: Floats, rho_N: Floats) -> dict[str, Any]:
    """What the radii of operations say. Values that do not exist, such as a hierarchy of equal radii, are left out."""
    gaps = level_gaps(v_N, norm_N)
    ceiling, rank, by_depth = hierarchy_ceiling(v_N), hierarchy(v_N, rho_N), depth_order(v_N, rho_N)
    metrics = {
        "hierarchy": rank,
        "hierarchy_ceiling": ceiling,
        "hierarchy_of_ceiling": None if rank is None or ceiling is None else -rank / ceiling,
        "somers_d": by_depth.get(int(v_N.min())),
        "somers_d_depths": mean_of(by_depth),
        "min_level_gap": min(gaps) if gaps else None,
        "positive_gaps": sum(gap > 0 for gap in gaps),
        "gaps": len(gaps),
        "tied_radius_share": tied_radius_share(rho_N),
        "richness": richness(v_N, norm_N),
        "richness_largest_share": richness_largest_share(v_N, norm_N),
        "richness_hyperbolic": richness(v_N, rho_N),
    }
    return without_none(metrics)
