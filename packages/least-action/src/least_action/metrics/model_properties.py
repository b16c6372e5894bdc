"""Norms of representations and weights. Shapes: N samples, D width.

All norms are Euclidean; norms of weights cover frozen parameters too.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from least_action.model import PairModel, total_norm


def compute_representation_norm(model: PairModel, a_N: Tensor, b_N: Tensor) -> float:
    """Mean over pairs of the norm of what the output layer reads, [N, D]."""
    with torch.no_grad():
        return representation_norm(model.forward_pairs(a_N, b_N).representation_ND)


def representation_norm(representation_ND: Tensor) -> float:
    """Mean norm of representations [N, D]."""
    return float(torch.linalg.vector_norm(representation_ND, dim=-1).double().mean())


def compute_layer_weight_norms(model: nn.Module) -> dict[str, float]:
    """Norm of each layer's own parameters together, by the name of the module that owns them.

    A shared parameter counts for the first module that owns it, so the squares add up to `total_weight_norm`^2.
    """
    norms: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        norms.setdefault(name.rpartition(".")[0], []).append(parameter)
    return {layer: float(total_norm(parameters, torch.float64)) for layer, parameters in norms.items()}


def total_weight_norm(model: nn.Module) -> float:
    """Norm of all parameters as one vector."""
    return float(total_norm(model.parameters(), torch.float64))


def decayed_weight_norm(model: nn.Module, names: Collection[str]) -> float:
    """Norm of the named parameters as one vector (those that weight decay acts on). KeyError for unknown names."""
    parameters = dict(model.named_parameters())
    return float(total_norm([parameters[name] for name in sorted(names)], torch.float64))
