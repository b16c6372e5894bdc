"""What a transport does to the function and to the weights: measured right before and right after it.

Shapes: N blocks, T targets of a block, V vocabulary, n targets of a batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from retrofit.arms.base import StepState
from retrofit.arms.geometry_ffn import LEFT_ALONE
from retrofit.blocks import FeedForward, weights_by_role
from retrofit.config import ROLES, RunConfig
from retrofit.data import Blocks, Data
from retrofit.metrics.perplexity import logits_of, perplexity_of
from retrofit.metrics.spectra import up_kappas
from retrofit.transports import gradient_less_transport
from studycore.models import evaluating


def transport_row(transport: Callable[[StepState], None], state: StepState, data: Data) -> dict[str, Any]:
    """Transports, with perplexity, KL divergence and the median kappa of the up projections right before and after.

    What is not finite has no place in a row of numbers, and is left out.
    """
    kappa_before = median(up_kappas(state.blocks))
    blocks = data.validation.first(state.config.transport_blocks)
    moved = drift(state.model, blocks, state.config.batch_size, lambda: transport(state))
    row = {
        "transport_ppl_before": moved.ppl_before, "transport_ppl_after": moved.ppl_after, "transport_kl": moved.kl,
        "transport_kappa_before": kappa_before, "transport_kappa_after": median(up_kappas(state.blocks)),
    }  # fmt: skip
    return {"kind": "transport", **{name: value for name, value in row.items() if math.isfinite(value)}}


def ablation_rows(model: Any, blocks: Sequence[FeedForward], data: Data, config: RunConfig) -> Iterator[dict[str, Any]]:
    """What the original study's transport does to the start when the matrices of one role alone are transported.

    One row for each role that the model has, for all but LEFT_ALONE (the arm geometry_ffn) and for every matrix (the arm
    geometry). The weights are put back after each.
    """
    there = [role for role in ROLES if role in weights_by_role(model)]
    rest = [role for role in there if role not in LEFT_ALONE]
    cases = {role: [role] for role in there} | {f"all but {' and '.join(LEFT_ALONE)}": rest, "every matrix": there}
    state = StepState(model, blocks, None, config, 0)
    for name, roles in cases.items():
        saved = {name: p.detach().clone() for name, p in model.named_parameters() if p.ndim > 1}
        moved = transport_row(lambda state, roles=roles: gradient_less_transport(state.model, roles), state, data)  # type: ignore[misc]
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if key in saved:
                    parameter.copy_(saved[key])
        yield {**moved, "kind": "ablation", "matrices": name}


@dataclass(frozen=True)
class Drift:
    """The function right before and after a transport, on fixed blocks, in the weights' own precision."""

    ppl_before: float
    ppl_after: float
    kl: float
    """Mean KL(before || after) of next-token distributions, nats per token."""


def drift(model: Any, blocks: Blocks, batch: int, change: Callable[[], None]) -> Drift:
    """Calls `change()` and measures what it did. Holds the log-probabilities of all blocks: keep these few."""
    before = list(_log_probabilities(model, blocks, batch))
    change()
    kl, sums, tokens = 0.0, [0.0, 0.0], 0
    for log_p, (log_q, targets, counted) in zip(before, _log_probabilities(model, blocks, batch), strict=True):
        for i, each in enumerate((log_p[0], log_q)):
            sums[i] -= float(each.gather(1, targets[:, None])[:, 0].double()[counted].sum())
        divergence = F.kl_div(log_q, log_p[0], reduction="none", log_target=True).sum(1).double()
        kl += float(divergence[counted].sum())
        tokens += int(counted.sum())
    first, second = (perplexity_of(total / tokens) for total in sums)
    return Drift(first, second, max(kl / tokens, 0.0))


def _log_probabilities(model: Any, blocks: Blocks, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(log-probabilities [n, V], targets [n], which of them count [n]) of each batch of blocks."""
    with evaluating(model) as device:
        for ids_NT, owner in zip(blocks.ids_NT.split(batch), blocks.document_NT.split(batch), strict=True):
            ids_NT = ids_NT.to(device)
            log_p = logits_of(model, ids_NT, "fp32").flatten(0, 1).log_softmax(-1)
            yield log_p, ids_NT[:, 1:].flatten(), owner.flatten().to(device) >= 0
