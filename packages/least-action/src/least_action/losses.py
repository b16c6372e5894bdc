"""The training loss: cross-entropy (or StableMax) plus optional regularisers.

Shapes: N samples, P classes, R routing heads, L routed layers, n group order.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from least_action.config import TrainerConfig
from least_action.data import Pairs
from least_action.metrics.fourier import gini_coefficient, grid_logits, low_frequency_share
from least_action.metrics.routing import head_utilization, mean_entropy
from least_action.model import Output, PairModel
from studycore.streams import generator

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits_NP: Tensor, y_N: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Mean cross-entropy, computed in `dtype`."""
    return F.cross_entropy(logits_NP.to(dtype), y_N)


def log_stablemax(logits_NP: Tensor) -> Tensor:
    """log(s(x) / sum s(x)) with s(x) = x + 1 for x >= 0 and 1 / (1 - x) below (Prieto et al. 2025, eq. 3-4)."""
    s_NP = torch.where(logits_NP >= 0, logits_NP + 1, 1 / (1 - logits_NP.clamp(max=0)))
    return s_NP.log() - s_NP.sum(dim=-1, keepdim=True).log()


def stablemax_cross_entropy(logits_NP: Tensor, y_N: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Mean cross-entropy under StableMax, computed in `dtype`."""
    return F.nll_loss(log_stablemax(logits_NP.to(dtype)), y_N)


def data_loss(config: TrainerConfig) -> Loss:
    """The loss on the data alone: (logits [N, P], classes [N]) -> scalar."""
    dtype = getattr(torch, config.loss_dtype)
    function = stablemax_cross_entropy if config.recipe == "orthograd_stablemax" else cross_entropy
    return lambda logits_NP, y_N: function(logits_NP, y_N, dtype)


def sparsity_regularizer(weights_NR: Tensor) -> Tensor:
    """Mean of 1 - max weight."""
    return (1 - weights_NR.amax(dim=-1)).mean()


def gini_regularizer(weights_NR: Tensor) -> Tensor:
    """Mean of 1 - G over samples, G the Gini coefficient of a sample's weights."""
    return (1 - gini_coefficient(weights_NR)).mean()


def information_regularizer(weights_NR: Tensor) -> Tensor:
    """Minus the mutual information, nats, of sample and head: mean entropy of the weights minus entropy of their mean.

    Least, -log R, when each sample uses one head and all heads are used alike; the entropy alone is also least when
    all samples use the same head, and then nothing is routed.
    """
    return mean_entropy(weights_NR) - mean_entropy(head_utilization(weights_NR))


def consistency_regularizer(weights_NR: Tensor, inputs_NE: Tensor) -> Tensor:
    """Mean KL(w_i || m_i), m_i the mean weights of all samples, weighted by softmax of the inputs' cosine similarity."""
    unit_NE = F.normalize(inputs_NE, dim=-1)
    mean_NR = (unit_NE @ unit_NE.T).softmax(dim=-1) @ weights_NR
    log_ratio_NR = weights_NR.clamp_min(1e-8).log() - mean_NR.clamp_min(1e-8).log()
    return (weights_NR * log_ratio_NR).sum(dim=-1).mean()


REGULARIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "entropy": mean_entropy,
    "sparsity": sparsity_regularizer,
    "gini": gini_regularizer,
    "information": information_regularizer,
}


def routing_loss(name: str, routing: Sequence[Tensor], inputs_NE: Tensor | None = None) -> Tensor:
    """The named regulariser, mean over routed layers. ValueError for "consistency" without inputs [N, E]."""
    if name == "consistency":
        if inputs_NE is None:
            raise ValueError("routing_regularizer: consistency compares inputs; give them")
        return torch.stack([consistency_regularizer(weights_NR, inputs_NE) for weights_NR in routing]).mean()
    return torch.stack([REGULARIZERS[name](weights_NR) for weights_NR in routing]).mean()


def spectral_smoothness_loss(grid_IJK: Tensor) -> Tensor:
    """1 - spectral smoothness of the logits of all pairs in group coordinates (metrics/fourier.py); in [0, 1]."""
    return 1 - low_frequency_share(grid_IJK)


def jacobian_regularizer(model: PairModel, x: Tensor, stream: torch.Generator) -> Tensor:
    """P E||J^T v||^2 = E||J||_F^2 for the Jacobian of the logits in the continuous input, v uniform on the unit sphere.

    One random direction per sample from `stream`; differentiable.
    """
    embeddings = model.get_embeddings(x)
    embeddings = embeddings if embeddings.requires_grad else embeddings.requires_grad_()
    # The plain pass with the fused attention has no second derivative.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        logits_NP = model.forward_from_embeddings(embeddings)
        draw_NP = torch.randn(logits_NP.shape, generator=stream, device=stream.device, dtype=logits_NP.dtype)
        v_NP = F.normalize(draw_NP.to(logits_NP.device), dim=-1)
        (product,) = torch.autograd.grad((logits_NP * v_NP).sum(), embeddings, create_graph=True)
    return logits_NP.shape[-1] * product.flatten(1).pow(2).sum(dim=-1).mean()


class LossParts(NamedTuple):
    """`total` is what is minimised; the others are its unweighted parts, zero where unused."""

    total: Tensor
    data: Tensor
    routing: Tensor


class LeastActionLoss:
    """Cross-entropy + lambda_routing R + lambda_spectral S + lambda_jacobian J, each part as configured."""

    def __init__(self, config: TrainerConfig):
        self.config, self.data = config, data_loss(config)

    def __call__(self, output: Output, y_N: Tensor, inputs_NE: Tensor | None = None) -> LossParts:
        """The parts that one pass yields. `inputs_NE`: what "consistency" compares; ValueError where it is missing."""
        data, config = self.data(output.logits_NP, y_N), self.config
        routing = data.new_zeros(())
        if config.routing_regularizer and config.lambda_routing and output.routing:
            routing = routing_loss(config.routing_regularizer, output.routing, inputs_NE)
        return LossParts(data + config.lambda_routing * routing, data, routing)

    def extra(
        self, model: PairModel, a_N: Tensor, b_N: Tensor, grid: tuple[Tensor, Tensor], step: int, rank: int = 0
    ) -> Tensor | None:
        """The weighted parts with passes of their own: S over `grid`, all pairs, every spectral_interval updates; J over
        the batch at each, with directions from the stream of (seed, step, rank). None without either."""
        config, parts = self.config, []
        if config.lambda_spectral and step % config.spectral_interval == 0:
            logits_NP = model.forward_pairs(*grid).logits_NP
            # The labels are not read: a table is laid out by its pairs, so that anything of their shape stands in.
            table_IJK = grid_logits(logits_NP, Pairs(*grid, grid[0]), config.p, config.operation)
            parts.append(config.lambda_spectral * spectral_smoothness_loss(table_IJK))
        if config.lambda_jacobian:
            stream = generator(config.seed, "jacobian", step, rank)
            parts.append(config.lambda_jacobian * jacobian_regularizer(model, model.plain_inputs(a_N, b_N), stream))
        return torch.stack(parts).sum() if parts else None
