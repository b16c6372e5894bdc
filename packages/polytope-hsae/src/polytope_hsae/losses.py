"""The terms of the loss, and their sum. All on scaled inputs, whose mean squared distance from their mean is 1.

Shapes: B batch, D width, M parents, L children, K active.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polytope_hsae.config import TrainConfig
from polytope_hsae.models import HierarchicalSAE, Output, SparseAutoencoder


@dataclass(frozen=True)
class Weights:
    """Of one step."""

    beta: float
    l1: float
    """Share of its full weight that sparsity has."""
    causal_ortho: float


def reconstruction(x_BD: Tensor, x_hat_BD: Tensor) -> Tensor:
    """Mean over the batch of the squared error."""
    return (x_BD - x_hat_BD).square().sum(1).mean()


def off_diagonal_biorthogonality(encoder_MD: Tensor, decoder_MD: Tensor, chosen: Tensor) -> Tensor:
    """Mean square of the off-diagonal cosines of encoder and decoder rows, on chosen latents (arXiv:2506.01197, eq. 3.4).

    The paper's code subtracts the diagonal as a vector from each row and divides a norm by m^2 - m; the mean square does
    what its text says.
    """
    e, d = encoder_MD[chosen], decoder_MD[chosen]
    cosines = (e / e.norm(dim=1, keepdim=True)) @ (d / d.norm(dim=1, keepdim=True)).T
    count = len(chosen)
    return (cosines.square().sum() - cosines.diagonal().square().sum()) / max(count**2 - count, 1)


def biorthogonality_original(encoder_MD: Tensor, decoder_MD: Tensor) -> Tensor:
    """||E D - I||_F^2, the original study's."""
    product = encoder_MD @ decoder_MD.T
    return (product - torch.eye(len(product), device=product.device, dtype=product.dtype)).square().sum()


def causal_orthogonality(parents_PD: Tensor, children_PLD: Tensor, metric_DD: Tensor) -> Tensor:
    """Sum over parents and children of the squared causal cosine of a parent and what its child adds to it.

    A sum, as in the original study, whose weight of 2e-4 is one of a sum. `metric_DD` is Sigma^+1/2, which takes residuals to the unified space (the identity: Euclidean).
    """
    parents, children = parents_PD @ metric_DD, children_PLD @ metric_DD
    dots = (children * parents[:, None]).sum(-1)
    square = parents.square().sum(-1)[:, None] * children.square().sum(-1)
    return (dots.square() / square.clamp_min(1e-12)).sum()


def causal_orthogonality_original(parents_PD: Tensor, children_PLD: Tensor, metric_DD: Tensor) -> Tensor:
    """Sum of <D_p, child - D_p>^2, the original study's: it takes what a child adds for the child itself."""
    parents, children = parents_PD @ metric_DD, children_PLD @ metric_DD
    return ((children - parents[:, None]) * parents[:, None]).sum(-1).square().sum()


def total_loss(
    model: SparseAutoencoder, x_BD: Tensor, output: Output, config: TrainConfig, weights: Weights, chosen: Tensor,
    metric_DD: Tensor | None, taught: int, share: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """(the loss, its parts). `taught` parents have causal orthogonality.

    `share` takes the mean of a number over the processes that share a batch: all terms are means over samples, but for one
    that is divided by such a mean.
    """
    parts = {"reconstruction": reconstruction(x_BD, output.x_hat)}
    if output.x_hat_top is not None:
        parts["top_level"] = weights.beta * reconstruction(x_BD, output.x_hat_top)
    if output.prefixes:
        # Matryoshka: the mean over all nested dictionaries, of which the whole is one.
        inner = torch.stack([reconstruction(x_BD, prefix) for prefix in output.prefixes])
        parts["prefixes"] = (inner.sum() + parts["reconstruction"]) / (1 + len(inner)) - parts["reconstruction"]
    if isinstance(model, HierarchicalSAE):
        assert output.codes.child_value is not None
        parts["l1_parent"] = weights.l1 * config.l1_parent * output.codes.value.abs().sum(1).mean()
        parts["l1_child"] = weights.l1 * config.l1_child * output.codes.child_value.abs().sum(1).mean()
        parts["biorthogonality"] = config.biorth_lambda * off_diagonal_biorthogonality(
            model.encoder, model.decoder, chosen
        )
        if weights.causal_ortho > 0 and metric_DD is not None and taught:
            atoms = model.low_decoder[:taught] @ model.up[:taught]
            parts["causal_orthogonality"] = weights.causal_ortho * causal_orthogonality(model.decoder[:taught], atoms, metric_DD)  # fmt: skip
    if output.aux:
        error_BD = (x_BD - output.x_hat).detach()
        scale = error_BD.square().sum(1).mean()
        scale = (scale if share is None else share(scale)).clamp_min(1e-12)
        aux = torch.stack([reconstruction(error_BD, x) for x in output.aux]).mean()
        parts["aux"] = config.aux_lambda * aux / scale
    return torch.stack(list(parts.values())).sum(), parts
