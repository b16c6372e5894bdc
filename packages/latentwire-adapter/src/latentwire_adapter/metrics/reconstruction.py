"""How well rows come back: normalised error, cosine and norm ratio, weighted by counts, for seen and for held-out types.

Shapes: U token types, D dimensions.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studycore.metrics_log import read_rows


def reconstruction_metrics(y_UD: Tensor, x_UD: Tensor, weights_U: Tensor, mean_D: Tensor) -> dict[str, float]:
    """Of rows y that stand for x, each as often as its weight says.

    recon_mse: per number; recon_cosine_sim: mean; recon_rel_error: root of squared error over squared norm, as the original
    study has it; nmse: squared error over squared distance from the mean (unexplained variance); norm_ratio: mean of |y|/|x|.
    """
    w_U = weights_U.double() / weights_U.double().sum()
    y_UD, x_UD = y_UD.double(), x_UD.double()
    error_U, size_U = (y_UD - x_UD).square().sum(1), x_UD.square().sum(1)
    spread_U = (x_UD - mean_D.double()).square().sum(1)
    cosine_U = torch.nn.functional.cosine_similarity(y_UD, x_UD, dim=-1)
    return {
        "recon_mse": float(w_U @ error_U) / x_UD.shape[1],
        "recon_cosine_sim": float(w_U @ cosine_U),
        "recon_rel_error": float((w_U @ error_U / (w_U @ size_U)).sqrt()),
        "nmse": float(w_U @ error_U / (w_U @ spread_U)),
        "norm_ratio": float(w_U @ (y_UD.norm(dim=1) / x_UD.norm(dim=1).clamp(min=1e-30))),
    }


def rows_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl of one type."""
    return [row for row in read_rows(folder / "metrics.jsonl") if row.get("type") == kind]
