"""The order without learning: the radius that the loss `ordered` asks for, which a rule on the leading trits gives."""

from typing import Any

import torch

from ternary_vae.bands import Targets, target_radius
from ternary_vae.config import TrainConfig
from ternary_vae.data import Operations
from ternary_vae.hyperbolic import to_euclidean
from ternary_vae.metrics.radii import radius_metrics


def closed_form(config: TrainConfig) -> dict[str, Any]:
    """Radius metrics of every operation at the place that its valuation and remaining trits give it."""
    operations = Operations.all(config.trits, config.shuffle_seed)
    r_N = target_radius(
        operations.v_N, operations.place_N, Targets.of(config, torch.zeros(config.trits + 1, dtype=torch.float64))
    )
    curved = config.radius == "hyperbolic" and config.geometry == "hyperbolic"
    norm_N = to_euclidean(r_N, config.curvature) if curved else r_N
    return radius_metrics(operations.v_N.numpy(), norm_N.numpy(), r_N.numpy())
