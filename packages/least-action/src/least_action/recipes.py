"""Optimiser, learning rate and acceleration recipes.

Recipes (`TrainerConfig.recipe`), each with its source:
- bounded_sphere: residual stream of unit length, cosine logits (Yildirim 2026, arXiv:2603.05228); in model/networks.py.
- constrained_norm: after every update all weights are scaled back to `constrained_norm_alpha` times their initial
  norm, without weight decay (Liu et al. 2023, Omnigrok, arXiv:2210.01117).
- orthograd: each tensor's gradient loses its component along the tensor and keeps its length;
- orthograd_stablemax: the same, and the softmax in the loss becomes StableMax, which is in losses.py (both Prieto et
  al. 2025, arXiv:2501.04697).
- grokfast: a moving average of the gradient is added to it (Lee et al. 2024, arXiv:2405.20233, Algorithm EMA).
- muon: orthogonalised momentum for weight matrices, AdamW for the rest (Jordan et al. 2024; Tveit et al. 2025,
  arXiv:2504.16041, for grokking).

Gradient and weight transforms are pure functions of tensors.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from least_action.config import TrainerConfig
from least_action.model import trainable_parameters
from least_action.model.parameter_roles import decayed_parameters, parameter_roles
from studycore.schedules import warm_up


def learning_rate(epoch: int, config: TrainerConfig, touched_99: bool = False) -> float:
    """Linear warm-up from 0 to lr over warmup_epochs, then lr; lr_after_99 once 0.99 test accuracy has been touched.

    Weight decay shrinks the weights of a network that does not see their scale until steps are too long for the loss,
    which then leaps, again and again, at a pace set by the rate times the decay (Lobacheva et al. 2021,
    arXiv:2106.15739). A lower rate ends that, and before 0.99 is touched it changes nothing.
    """
    rate = config.lr_after_99 if touched_99 and config.lr_after_99 is not None else config.lr
    return rate * warm_up(epoch, config.warmup_epochs)


def muon_parameters(model: nn.Module, config: TrainerConfig) -> set[str]:
    """Names of what Muon updates: weight matrices, under its recipe."""
    return {n for n, role in parameter_roles(model).items() if role == "matrix"} if config.recipe == "muon" else set()


def create_optimizers(model: nn.Module, config: TrainerConfig) -> list[torch.optim.Optimizer]:
    """AdamW with a decayed and an undecayed group; under the muon recipe Muon for the matrices as well."""
    decayed, by_muon = (
        decayed_parameters(model, config.weight_decay_rule, config.decay_gates),
        muon_parameters(model, config),
    )
    trained = trainable_parameters(model)
    groups = [
        {"params": [q for n, q in trained.items() if n in decayed - by_muon], "weight_decay": config.weight_decay},
        {"params": [q for n, q in trained.items() if n not in decayed | by_muon], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps
    )
    if not by_muon:
        return [adamw]
    matrices = [q for n, q in trained.items() if n in by_muon]
    # match_rms_adamw: Muon's update has the size of AdamW's, so that one learning rate serves both.
    muon = torch.optim.Muon(matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [adamw, muon]


def orthogonal_gradient(weight: Tensor, gradient: Tensor) -> Tensor:
    """g - (w.g / w.w) w, scaled back to g's length (Prieto et al. 2025, section 5, OrthoGrad), per tensor."""
    tiny = torch.finfo(weight.dtype).tiny
    along = (weight * gradient).sum() / (weight * weight).sum().clamp_min(tiny)
    orthogonal = gradient - along * weight
    return orthogonal * (gradient.norm() / orthogonal.norm().clamp_min(tiny))


def grokfast_average(average: Tensor, gradient: Tensor, alpha: float) -> Tensor:
    """alpha m + (1 - alpha) g; the first average is g itself (Lee et al. 2024, Algorithm EMA)."""
    return alpha * average + (1 - alpha) * gradient


def transform_gradients(
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    averages: Mapping[str, Tensor],
    config: TrainerConfig,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The recipe's gradients and, for grokfast, the new averages (empty `averages`: none yet)."""
    if config.recipe.startswith("orthograd"):
        return {name: orthogonal_gradient(weights[name], g) for name, g in gradients.items()}, {}
    if config.recipe == "grokfast":
        new = {n: grokfast_average(averages.get(n, g), g, config.grokfast_alpha) for n, g in gradients.items()}
        return {name: g + config.grokfast_lambda * new[name] for name, g in gradients.items()}, new
    return dict(gradients), {}
