"""What Adam does to the weights: effective learning rates, update sizes, and updates against weight decay.

Symbols: m and v are the optimiser's moving averages of the gradient and of its square after step t,
m_hat = m / (1 - beta1^t), v_hat = v / (1 - beta2^t). One step subtracts lr m_hat / (sqrt(v_hat) + eps) from a weight
(Kingma & Ba 2015, arXiv:1412.6980, algorithm 1) and, if it is decayed, lr weight_decay w with w its value before the
step (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from least_action.model import total_norm


@dataclass(frozen=True)
class AdamMetrics:
    """Means and maxima run over all single weights of all given parameters."""

    effective_lr_mean: float
    """lr / (sqrt(v_hat) + eps): what a unit of m_hat moves a weight by."""
    effective_lr_max: float
    adam_ratio_mean: float
    """|m_hat| / (sqrt(v_hat) + eps): the step of a weight in units of lr."""
    adam_ratio_max: float
    update_decay_ratio: float | None
    """Norm of the step's gradient part over the norm of its decay part, both over the decayed parameters only; None
    without decay."""
    effective_lr_mean_original: float
    """sqrt(v + 1e-8): no learning rate (it grows where steps shrink), never below 1e-4, no bias correction."""
    effective_lr_max_original: float
    adam_ratio_mean_original: float
    """|m| / sqrt(v + eps): eps under the root acts as sqrt(eps)."""
    adam_ratio_max_original: float
    update_decay_ratio_original: float | None
    """||m / sqrt(v + eps)|| over all parameters, over sqrt(sum of weight_decay w^2) over the decayed ones."""


def compute_adam_metrics(
    named_params: Mapping[str, Tensor],
    exp_avg: Mapping[str, Tensor],
    exp_avg_sq: Mapping[str, Tensor],
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decayed: Collection[str],
) -> AdamMetrics:
    """Adam's dynamics in the step that led to the given state.

    `exp_avg` and `exp_avg_sq` are m and v after step number `step` (1 for the first), under the names of
    `named_params`. The decay part is computed from the given weights: those from before the step make
    `update_decay_ratio` exact, those from after it change it by about the relative size of one step. Names in
    `decayed` that are no key of `named_params` (frozen parameters) are left out. Raises ValueError if the names of
    the three mappings differ, if there are none, or if `step` < 1.
    """
    if not named_params or named_params.keys() != exp_avg.keys() or named_params.keys() != exp_avg_sq.keys():
        raise ValueError(
            f"the optimiser's state must have the parameters' names, at least one: {sorted(named_params)} against "
            f"{sorted(exp_avg)} and {sorted(exp_avg_sq)}"
        )
    if step < 1:
        raise ValueError(f"step: {step} given, but the state before the first step says nothing about a step")
    names = list(named_params)
    is_decayed = torch.cat([torch.full((named_params[name].numel(),), name in decayed) for name in names])
    w, m, v = (
        torch.cat([tensors[name].detach().reshape(-1) for name in names])
        for tensors in (named_params, exp_avg, exp_avg_sq)
    )
    is_decayed = is_decayed.to(w.device)
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    denominator = v_hat.sqrt() + eps
    ratio = m_hat / denominator
    ratio_original = m / (v + eps).sqrt()
    root_original = (v + 1e-8).sqrt()
    decayed_norm = total_norm([w[is_decayed]], torch.float64)
    has_decay = weight_decay > 0 and bool(is_decayed.any())
    values = torch.stack(  # one transfer from the device for all of them
        [
            *_mean_and_max(lr / denominator),
            *_mean_and_max(ratio.abs()),
            total_norm([ratio[is_decayed]], torch.float64) / (weight_decay * decayed_norm),
            *_mean_and_max(root_original),
            *_mean_and_max(ratio_original.abs()),
            total_norm([ratio_original], torch.float64) / (weight_decay**0.5 * decayed_norm),
        ]
    ).tolist()
    return AdamMetrics(
        effective_lr_mean=values[0],
        effective_lr_max=values[1],
        adam_ratio_mean=values[2],
        adam_ratio_max=values[3],
        update_decay_ratio=values[4] if has_decay else None,
        effective_lr_mean_original=values[5],
        effective_lr_max_original=values[6],
        adam_ratio_mean_original=values[7],
        adam_ratio_max_original=values[8],
        update_decay_ratio_original=values[9] if has_decay else None,
    )


def _mean_and_max(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(dtype=torch.float64), x.max().double()
