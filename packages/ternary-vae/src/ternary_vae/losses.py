"""The losses: reconstruction, KL divergence, and three ways to order radii by valuation.

ordered         the default: every level has a band of radii, bands do not touch, and every sample counts
rich_hierarchy  the original study's sweeps: the mean radius of each level, so that samples may overlap unpunished
geodesic        V5.11's training: pairwise geodesic distances, radii and ranks

Radii are hyperbolic distances from the origin (with radius "euclidean": norms). Everything here is written without
data-dependent shapes, so that torch.func.vmap can run many at once, and `Weights` may hold a run's numbers as tensors.

Shapes: N operations of a batch, L = M + 1 levels, D latent dimensions, P pairs.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studycore.schedules import warm_up
from studycore.streams import generator
from ternary_vae.bands import Targets, target_radius
from ternary_vae.config import ArchitectureConfig, TrainConfig
from ternary_vae.data import Operations, tree_distance
from ternary_vae.hyperbolic import distance
from ternary_vae.stages import ENCODER, Stage

RICH_MARGIN, RICH_FLOOR = 0.01, 0.5
"""rich_hierarchy: least distance between means of neighbouring levels; least share of the first variance."""
RANK_MARGIN = 0.01
"""geodesic: least difference of radii of different levels."""
TAU_RAMP = 0.7
"""geodesic: share of the epochs over which tau rises from 0 to 1."""
Rows = dict[str, Tensor]
"""What a forward pass says of each operation of a batch: ce, kl_<view>, rho_<view>, norm_<view>, z_<view>."""


class Weights(NamedTuple):
    """Weights of the terms: numbers, or tensors of one value per run."""

    hierarchy: Tensor | float
    richness: Tensor | float
    separation: Tensor | float

    @classmethod
    def of(cls, config: TrainConfig) -> "Weights":
        return cls(config.hierarchy_weight, config.richness_weight, config.separation_weight)


def reconstruction(logits_NM3: Tensor, target_NM: Tensor) -> Tensor:
    """Cross-entropy of every operation, mean over its trits [N], nats."""
    return F.cross_entropy(logits_NM3.transpose(-1, -2), target_NM, reduction="none").mean(-1)


def kl_divergence(parts_NK: Tensor, free_bits: float) -> Tensor:
    """Sum over dimensions of the batch's mean, each at least `free_bits` (Kingma et al. 2016, arXiv:1606.04934); or the
    mean of the whole, where it does not fall into dimensions (K = 1)."""
    return parts_NK.mean(0).clamp_min(free_bits).sum()


def level_matrix(v_N: Tensor, levels: int) -> Tensor:
    """One-hot levels [N, L], float64."""
    # Not F.one_hot: its check of the values is no function that vmap can map.
    return (v_N[:, None] == torch.arange(levels, device=v_N.device)).double()


def level_moments(r_N: Tensor, v_N: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and population variance of the radius in each level of the batch, each [L]; 0 for an absent level."""
    one_NL = level_matrix(v_N, levels)
    count_L = one_NL.sum(0)
    least_L = count_L.clamp_min(1)
    mean_L = (one_NL * r_N[:, None]).sum(0) / least_L
    variance_L = (one_NL * (r_N - mean_L[v_N])[:, None].square()).sum(0) / least_L
    return count_L, mean_L, variance_L


def ordered(r_N: Tensor, v_N: Tensor, place_N: Tensor, targets: Targets, weights: Weights) -> dict[str, Tensor]:
    """Bands for single samples.

    hierarchy   squared distance from the level's band, mean over the level's samples, then over levels
    richness    squared distance from the operation's own place in the band, the same means
    separation  squared shortfall of the distance between the extreme samples of neighbouring levels, below the bands'
    All three are 0 for the closed form, so nothing pulls a trained model away from it.
    """
    levels = len(targets.low_L)
    one_NL = level_matrix(v_N, levels)
    present_L = one_NL.sum(0) > 0
    weight_N = (one_NL / one_NL.sum(0).clamp_min(1)).sum(1) / present_L.sum()
    outside_N = F.relu(targets.low_L[v_N] - r_N) + F.relu(r_N - targets.high_L[v_N])
    apart_N = r_N - target_radius(v_N, place_N, targets)
    far = torch.full_like(one_NL, torch.inf)
    largest_L = torch.where(one_NL > 0, r_N[:, None], -far).amax(0)
    smallest_L = torch.where(one_NL > 0, r_N[:, None], far).amin(0)
    both = present_L[:-1] & present_L[1:]
    wanted_L = targets.low_L[:-1] - targets.high_L[1:]
    gap_L = torch.where(both, smallest_L[:-1], wanted_L) - torch.where(both, largest_L[1:], 0)
    return {
        "hierarchy": weights.hierarchy * (weight_N * outside_N.square()).sum(),
        "richness": weights.richness * (weight_N * apart_N.square()).sum(),
        "separation": weights.separation * F.relu(wanted_L - gap_L).square().sum() / (levels - 1),
    }


def rich_hierarchy(r_N: Tensor, v_N: Tensor, place_N: Tensor, targets: Targets, weights: Weights) -> dict[str, Tensor]:
    """The sweeps' loss: means over the levels in the batch of (mean radius - target)^2 and relu(0.5 - variance over its
    first value)^2, and the sum over neighbouring levels of relu(mean of the deeper + 0.01 - mean of the shallower)."""
    del place_N
    count_L, mean_L, variance_L = level_moments(r_N, v_N, len(targets.mean_L))
    present_L, several_L = count_L > 0, (count_L > 1) & (targets.variance_L > 0)
    first_L = torch.where(several_L, targets.variance_L, 1.0)
    lacking_L = torch.where(several_L, F.relu(RICH_FLOOR - variance_L / first_L), 0.0).square()
    both = present_L[:-1] & present_L[1:]
    overlap = torch.where(both, F.relu(mean_L[1:] - mean_L[:-1] + RICH_MARGIN), 0.0)
    apart_L = torch.where(present_L, mean_L - targets.mean_L, 0.0).square()
    return {
        "hierarchy": weights.hierarchy * apart_L.sum() / present_L.sum(),
        "richness": weights.richness * lacking_L.sum() / several_L.sum().clamp_min(1),
        "separation": weights.separation * overlap.sum(),
    }


RADIAL = {"ordered": ordered, "rich_hierarchy": rich_hierarchy}
"""Losses of the radii alone; they may be stacked."""


def geodesic(
    points_ND: Tensor,
    r_N: Tensor,
    v_N: Tensor,
    index_N: Tensor,
    pairs_2P: Tensor,
    targets: Targets,
    config: ArchitectureConfig,
    tau: Tensor | float,
    weights: tuple[Tensor | float, Tensor | float, float],
) -> dict[str, Tensor]:
    """V5.11: tau * geodesic + radial + rank, with their weights.

    geodesic  smooth L1 of d(z_i, z_j) against 3 exp(-v(i - j) / 3) over random pairs
    radial    (r - t_v)^2 (1 + exp(0.4 v)), mean over samples
    rank      relu(r_j - r_i + 0.01) over the pairs with v_i < v_j
    """
    i, j = pairs_2P
    target = tree_distance(index_N[i], index_N[j], config.trits)
    distances = distance(points_ND[i], points_ND[j], config.curvature)
    radial_N = (r_N - targets.mean_L[v_N]).square() * (1 + torch.exp(0.4 * v_N))
    sign = (v_N[i] - v_N[j]).sign()
    rank = torch.where(sign == 0, 0.0, F.relu(RANK_MARGIN - sign * (r_N[j] - r_N[i])))
    of_geodesic, of_radial, of_rank = weights
    return {
        "geodesic": tau * of_geodesic * F.smooth_l1_loss(distances, target),
        "hierarchy": of_radial * radial_N.mean(),
        "separation": of_rank * rank.sum() / (sign != 0).sum().clamp_min(1),
    }


def total(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([part.double() for part in parts.values()]).sum()


def first_variances(r_N: Tensor, v_N: Tensor, trits: int) -> Tensor:
    """Population variance of the radius within each level [L], float64, over all operations."""
    return level_moments(r_N.double(), v_N, trits + 1)[2]


class StageLoss:
    """The loss of a stage from the gathered rows of a batch."""

    def __init__(
        self, config: TrainConfig, stage: Stage, variance_L: Tensor, device: str, controller: nn.Module | None
    ):
        self.config, self.stage = config, stage
        self.targets = Targets(*(t.to(device) for t in Targets.of(config, variance_L)))
        self.weights = Weights.of(config)
        self.controller = controller if stage.controlled else None

    def __call__(self, rows: Rows, batch: Operations, step: int, epoch: int) -> Rows:
        """The terms, weighted; their sum is the loss."""
        config, parts = self.config, {}
        scales = self._controlled(rows)
        if self.stage.decodes:
            parts["coverage"] = config.coverage_weight * rows["ce"].mean()
        kl_weight = config.kl_weight * warm_up(epoch, config.kl_warmup_epochs)
        for view, encoder in ENCODER.items():
            if f"kl_{view}" in rows and encoder in self.stage.trained:
                kl = kl_divergence(rows[f"kl_{view}"], config.free_bits)
                parts[f"kl_{view}"] = kl_weight * scales.get(f"beta_{view.upper()}", 1.0) * kl
        for view in self.stage.views:
            r_N = rows[f"rho_{view}" if config.radius == "hyperbolic" else f"norm_{view}"]
            if config.loss == "geodesic":
                terms = geodesic(
                    rows[f"z_{view}"], r_N, batch.v_N, batch.index_N, self._pairs(step, len(r_N)).to(r_N.device),
                    self.targets, config, scales.get("tau", min(1.0, (epoch + 1) / (TAU_RAMP * config.epochs))),
                    (scales.get("weight_geodesic", 1.0), config.radial_weight * scales.get("weight_radial", 1.0),
                     config.rank_loss_weight),
                )  # fmt: skip
            else:
                terms = RADIAL[config.loss](r_N, batch.v_N, batch.place_N, self.targets, self.weights)
            parts |= {f"{name}_{view}" if config.view == "both" else name: value for name, value in terms.items()}
        return parts

    def _pairs(self, step: int, rows: int) -> Tensor:
        return torch.randint(rows, (2, self.config.n_pairs), generator=generator(self.config.seed, "pairs", step))

    def _controlled(self, rows: Rows) -> dict[str, Tensor]:
        """The controller's weights from the batch's statistics: mean and spread of radii, means of what else there is."""
        if self.controller is None:
            return {}
        statistics = []
        for view in ("a", "b"):
            # By the stage, not by what is there: the plain forward pass gives more rows.
            r_N = rows[f"rho_{view}"] if view in self.stage.views else None
            statistics += [torch.tensor(0.0), torch.tensor(0.0)] if r_N is None else [r_N.mean(), r_N.std()]
            statistics.append(rows[f"kl_{view}"].sum(1).mean() if f"kl_{view}" in rows else torch.tensor(0.0))
        statistics += [rows["ce"].mean() if self.stage.decodes else torch.tensor(0.0), torch.tensor(1.0)]
        like = next(self.controller.parameters())
        stacked = torch.stack([value.detach().to(like) for value in statistics])
        weights: dict[str, Tensor] = self.controller(stacked)
        return weights
