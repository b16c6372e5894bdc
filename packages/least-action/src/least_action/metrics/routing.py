"""How routed networks use their heads. Shapes: N samples, R heads; a weight vector of a sample sums to 1."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PathSignatures:
    """The paths, one dominant head per layer, that samples take through a routed network."""

    distinct: int
    """Number of distinct paths."""
    entropy: float
    """Entropy of the distribution of samples over paths, in nats."""


def mean_entropy(weights_NR: Tensor) -> Tensor:
    """Mean over samples of the entropy of their weights, in nats: 0 for one head, log R for a uniform mixture.

    Differentiable, also where a weight has underflowed to 0: the logarithm ends at that of 1e-8.
    """
    return -(weights_NR * weights_NR.clamp_min(1e-8).log()).sum(dim=-1).mean()


def routing_entropy(weights_NR: Tensor) -> float:
    """`mean_entropy` as a number."""
    return float(mean_entropy(weights_NR))


def head_utilization(weights_NR: Tensor) -> Tensor:
    """Mean weight of each head over samples, [R]; it sums to 1."""
    return weights_NR.mean(dim=0)


def dominant_head(weights_NR: Tensor) -> Tensor:
    """Each sample's heaviest head, [N] int64; the first one of equals, so uniform gates all point to head 0."""
    return weights_NR.argmax(dim=-1)


def path_signatures(routing: Sequence[Tensor]) -> PathSignatures:
    """Distinct paths through the layers' weights, each [N, R]. Raises ValueError without any layer."""
    if not routing:
        raise ValueError("routing: no layer given; the model has no routing")
    paths_NL = torch.stack([dominant_head(weights_NR) for weights_NR in routing], dim=-1)
    counts = torch.unique(paths_NL, dim=0, return_counts=True)[1]
    shares = counts.double() / counts.sum()
    return PathSignatures(len(counts), float(-torch.xlogy(shares, shares).sum()))
