"""What is measured once, at the end of a run: its results, the baselines beside them, and the arrays that figures show.

Shapes: N all operations, D latent dimensions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studycore.models import count_parameters
from ternary_vae.config import TrainConfig
from ternary_vae.data import Operations
from ternary_vae.history import COVERAGE_METRICS, Row, history_metrics
from ternary_vae.metrics.closed_form import closed_form
from ternary_vae.metrics.evaluate import Codes, all_metrics, headline, points, radii, untrained
from ternary_vae.model import TernaryVAE


def run_metrics(
    config: TrainConfig,
    model: TernaryVAE,
    operations: Operations,
    seen_N: Tensor,
    rows: Sequence[Row],
    codes: Codes | None = None,
) -> dict[str, Any]:
    """Everything that results.json says of a run's last model, without the baselines; `seen_N`: what training saw."""
    # A sweep's phases leave encoders and decoder as their checkpoint has them.
    generative = config.stages != "hierarchy"
    metrics = all_metrics(model, operations, config.view, config.seed, seen_N, codes, generative)
    if not config.orders_radii:
        metrics = {name: value for name, value in metrics.items() if name in COVERAGE_METRICS}
    return {**metrics, **history_metrics(rows), "parameters": count_parameters(model)}


def baselines(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Metrics of the closed form and of the untrained model."""
    operations = Operations.all(config.trits, config.shuffle_seed)
    return {"closed_form": closed_form(config), "untrained": untrained(config, operations)}


def figure_arrays(
    config: TrainConfig, model: TernaryVAE, operations: Operations, codes: Codes | None = None
) -> dict[str, Tensor]:
    """norm_N, the Euclidean radius of every operation, and flat_N2, its point as the figure of the ball shows it; float32.

    Empty where radii were not trained.
    """
    if not config.orders_radii:
        return {}
    view = headline(config.view)
    norm_N, points_ND = radii(model, operations, view, codes)[1], points(model, operations, view, codes)
    flat_N2 = torch.from_numpy(flat_view(points_ND.numpy(), norm_N.numpy()))
    return {"norm_N": norm_N.float(), "flat_N2": flat_N2.float()}


def flat_view(points_ND: NDArray[np.float64], norm_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """A view [N, 2] of points of the ball: the true norm, at the angle of the direction's first two principal components."""
    direction_ND = points_ND / np.maximum(np.linalg.norm(points_ND, axis=1, keepdims=True), 1e-300)
    if direction_ND.shape[1] == 1:
        return np.stack([norm_N * np.sign(direction_ND[:, 0]), np.zeros_like(norm_N)], axis=1)
    centred_ND = direction_ND - direction_ND.mean(0)
    _, _, axes_DD = np.linalg.svd(centred_ND, full_matrices=False)
    plane_N2 = centred_ND @ axes_DD[:2].T
    angle_N = np.arctan2(plane_N2[:, 1], plane_N2[:, 0])
    return norm_N[:, None] * np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1)
