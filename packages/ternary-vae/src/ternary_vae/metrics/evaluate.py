"""What a model does on operations, by its mean codes; and the same model before training."""

import math
from typing import Any

import torch
from torch import Tensor

from studycore.streams import generator
from ternary_vae.config import TrainConfig
from ternary_vae.data import Operations
from ternary_vae.history import without_none
from ternary_vae.metrics.linear import linear_right
from ternary_vae.metrics.radii import (
    depth_order,
    dist_corr_geodesic,
    dist_corr_levels,
    hierarchy,
    hierarchy_ceiling,
    mean_of,
    q,
    q_original,
    radius_metrics,
    right,
    somers_d,
)
from ternary_vae.model import Code, TernaryVAE, create_model

PRIOR_SAMPLES = 10
"""Samples of the prior for every operation there is."""
CHUNK = 65_536
"""Operations per forward pass: bounds the memory at 3^12 operations."""
Codes = dict[str, Code]
"""Codes of the same operations by the same model, by encoder: most of an evaluation's time goes into them."""


def headline(view: str) -> str:
    """The encoder that the headline metrics of a run with this `view` look at."""
    return "a" if view == "a" else "b"


@torch.no_grad()
def encode(model: TernaryVAE, operations: Operations, view: str, codes: Codes | None = None) -> Code:
    """The code of operations by one encoder; taken from `codes` where it is there, and put there."""
    if codes is not None and view in codes:
        return codes[view]
    parts = [model.encode(x_NM, view) for x_NM in operations.x_NM.split(CHUNK)]
    code = Code(*(torch.cat(both) for both in zip(*parts, strict=True)))
    if codes is not None:
        codes[view] = code
    return code


@torch.no_grad()
def reconstruct(
    model: TernaryVAE, operations: Operations, sample_seed: int | None = None, codes: Codes | None = None
) -> Tensor:
    """Which operations [N] have every trit right, decoded from encoder A's mean code, or from one sample of it."""
    code, parts = encode(model, operations, "a", codes), []
    for part in torch.arange(len(operations)).split(CHUNK):
        latent = model.latent(Code(code.mu_ND[part], code.logvar_ND[part]), _noise(code.mu_ND[part], part, sample_seed))
        parts.append(right(model.logits(latent.decoded_ND), operations.target_NM[part]))
    return torch.cat(parts).cpu()


def _noise(like_ND: Tensor, part_N: Tensor, seed: int | None) -> Tensor | None:
    """Standard normal noise for these operations, a function of (seed, first of them); none for the mean code."""
    if seed is None:
        return None
    draw = generator(seed, "evaluation sample", int(part_N[0]))
    return torch.randn(like_ND.shape, generator=draw, dtype=torch.float64).to(like_ND)


@torch.no_grad()
def rate(model: TernaryVAE, operations: Operations, seed: int, codes: Codes | None = None) -> float:
    """Mean over operations of the KL divergence of encoder A's posterior from the prior, nats; log N is the least that
    tells N operations apart (the rate is at least the mutual information). Of wrapped normals: from one sample each."""
    code, parts = encode(model, operations, "a", codes), []
    for part in torch.arange(len(operations)).split(CHUNK):
        own = Code(code.mu_ND[part], code.logvar_ND[part])
        parts.append(model.latent(own, _noise(own.mu_ND, part, seed)).kl_NK.double().sum(1))
    return float(torch.cat(parts).mean())


@torch.no_grad()
def prior_coverage(model: TernaryVAE, operations: Operations, seed: int) -> float:
    """Share of all operations among what PRIOR_SAMPLES N samples of the prior decode to. Uniform draws would reach
    1 - exp(-PRIOR_SAMPLES), 0.99995."""
    powers_M = 3 ** torch.arange(operations.trits)
    draw = generator(seed, "prior samples")
    met_N = torch.zeros(3**operations.trits, dtype=torch.bool)
    device = operations.x_NM.device
    for part in torch.arange(PRIOR_SAMPLES * len(met_N)).split(CHUNK):
        drawn_ND = torch.randn(len(part), model.config.latent_dim, generator=draw, dtype=torch.float64)
        trits_NM = model.logits(drawn_ND.to(device)).argmax(-1).cpu()
        met_N[(trits_NM * powers_M).sum(-1)] = True
    return float(met_N.double().mean())


@torch.no_grad()
def radii(model: TernaryVAE, operations: Operations, view: str, codes: Codes | None = None) -> tuple[Tensor, Tensor]:
    """Hyperbolic distances from the origin and Euclidean norms [N] of the mean code, float64."""
    projection, mu_ND = model.projection.of(view), encode(model, operations, view, codes).mu_ND
    parts = [projection.radius(part_ND) for part_ND in mu_ND.split(CHUNK)]
    return tuple(torch.cat(both).double().cpu() for both in zip(*parts, strict=True))  # type: ignore[return-value]


@torch.no_grad()
def points(model: TernaryVAE, operations: Operations, view: str, codes: Codes | None = None) -> Tensor:
    """Points of the ball [N, D] of the mean code, float64."""
    projection, mu_ND = model.projection.of(view), encode(model, operations, view, codes).mu_ND
    return torch.cat([projection(part_ND).z_hyp_ND for part_ND in mu_ND.split(CHUNK)]).double().cpu()


def generative_metrics(model: TernaryVAE, operations: Operations, seed: int, codes: Codes | None) -> dict[str, Any]:
    """What the posterior costs and what the prior gives."""
    nats = rate(model, operations, seed, codes)
    least = math.log(len(operations))
    return {"kl": nats, "kl_of_least": nats / least, "prior_coverage": prior_coverage(model, operations, seed)}


def order_metrics(model: TernaryVAE, operations: Operations, view: str, codes: Codes | None = None) -> dict[str, Any]:
    """The radius metrics of a view."""
    rho_N, norm_N = radii(model, operations, view, codes)
    return radius_metrics(operations.v_N.cpu().numpy(), norm_N.numpy(), rho_N.numpy())


def all_metrics(
    model: TernaryVAE,
    operations: Operations,
    view: str,
    seed: int,
    seen_N: Tensor | None = None,
    codes: Codes | None = None,
    generative: bool = True,
) -> dict[str, Any]:
    """Every metric of the README's table, by the mean code; `seen_N` are the operations that training saw, where not all,
    and `generative` asks for the rate and for samples of the prior, which take longest.

    `hierarchy` and what belongs to it are of the headline view; hierarchy_A and hierarchy_B name theirs.
    """
    codes, c, view = {} if codes is None else codes, model.config.curvature, headline(view)
    right_N, v_N = reconstruct(model, operations, codes=codes), operations.v_N.cpu().numpy()
    metrics: dict[str, Any] = {
        "coverage": float(right_N.double().mean()),
        "covered": int(right_N.sum()),
        "operations": len(operations),
        "coverage_sampled": float(reconstruct(model, operations, seed, codes).double().mean()),
        **(generative_metrics(model, operations, seed, codes) if generative else {}),
        **order_metrics(model, operations, view, codes),
    }
    for other in model.views:
        rank = hierarchy(v_N, radii(model, operations, other, codes)[0].numpy())
        metrics |= {} if rank is None else {f"hierarchy_{other.upper()}": rank}
    z_ND = points(model, operations, view, codes)
    metrics |= distance_metrics(z_ND, operations, c, metrics.get("hierarchy"))
    if seen_N is not None and not bool(seen_N.all()):
        linear = linear_right(operations.x_NM.cpu(), seen_N, model.config.latent_dim)
        unseen = operations[(~seen_N).nonzero().squeeze(1)]
        metrics |= {
            "coverage_seen": float(right_N[seen_N].double().mean()),
            "coverage_unseen": float(right_N[~seen_N].double().mean()),
            "unseen": int((~seen_N).sum()),
            "linear_coverage_unseen": float(linear[~seen_N].double().mean()),
        }
        rho_N = radii(model, unseen, view)[0].numpy()
        own_v_N = unseen.v_N.cpu().numpy()
        order = {"hierarchy": hierarchy(own_v_N, rho_N), "hierarchy_ceiling": hierarchy_ceiling(own_v_N)}
        by_depth = depth_order(own_v_N, rho_N)
        order |= {"somers_d": somers_d(own_v_N, rho_N), "somers_d_depths": mean_of(by_depth)}
        order |= {f"somers_d_from_{k}": d for k, d in by_depth.items() if k}
        metrics |= {f"{name}_unseen": value for name, value in order.items() if value is not None}
    return metrics


def distance_metrics(z_ND: Tensor, operations: Operations, c: float, rank: float | None) -> dict[str, Any]:
    """Both distance correlations of points of the ball, and Q, which the sweeps make from the one over levels."""
    by_geodesic = dist_corr_geodesic(z_ND, operations.index_N.cpu(), operations.trits, c)
    by_levels = dist_corr_levels(z_ND, operations.v_N.cpu())
    metrics = {"dist_corr_geodesic": by_geodesic, "dist_corr_levels": by_levels}
    if by_levels is not None and rank is not None:
        metrics |= {"q": q(by_levels, rank), "q_original": q_original(by_levels, rank)}
    return without_none(metrics)


def untrained(config: TrainConfig, operations: Operations) -> dict[str, Any]:
    """Metrics of the model before any training."""
    model = create_model(config, config.seed, config.projection_seed)
    return all_metrics(model, operations, config.view, config.seed)
