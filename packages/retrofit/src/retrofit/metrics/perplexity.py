"""Exact perplexity: the summed negative log-likelihood of a fixed set of blocks over its tokens; KL divergence of logits.

Shapes: N blocks, T targets of a block, V vocabulary, D documents.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from retrofit.data import Blocks

Sum = Callable[[Tensor], Tensor]
"""Sums a tensor over processes."""
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Evaluation:
    """Negative log-likelihood in nats, by document."""

    name: str
    nll_D: Tensor
    """float64, summed over a document's targets."""
    tokens_D: Tensor

    @property
    def tokens(self) -> int:
        return int(self.tokens_D.sum())

    @property
    def loss(self) -> float:
        """Mean per token."""
        return float(self.nll_D.sum() / self.tokens_D.sum())

    @property
    def perplexity(self) -> float:
        """exp of the loss; infinite beyond what float64 holds."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@contextmanager
def _evaluating(model: Any) -> Iterator[torch.device]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(was_training)


def logits_of(model: Any, ids_NT: Tensor, precision: str) -> Tensor:
    """float32 logits [N, T, V] of windows [N, T + 1]'s first T tokens."""
    dtype = DTYPES[precision]
    with torch.autocast(ids_NT.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        return model(input_ids=ids_NT[:, :-1], use_cache=False).logits.float()  # type: ignore[no-any-return]


def evaluate(
    model: Any,
    blocks: Blocks,
    batch: int,
    precision: str = "fp32",
    rank: int = 0,
    world: int = 1,
    add_up: Sum = lambda x: x,
) -> Evaluation:
    """Every target of `blocks` once, shared out over processes and summed with `add_up`."""
    nll_D, tokens_D = (torch.zeros(blocks.documents, dtype=torch.float64) for _ in range(2))
    with _evaluating(model) as device:
        for at in torch.arange(rank, len(blocks.ids_NT), world).split(batch):
            ids_NT, owner = blocks.ids_NT[at].to(device), blocks.document_NT[at].flatten()
            logits = logits_of(model, ids_NT, precision)
            nll = F.cross_entropy(logits.flatten(0, 1), ids_NT[:, 1:].flatten(), reduction="none").double().cpu()
            counted = owner >= 0
            nll_D.index_add_(0, owner[counted], nll[counted])
            tokens_D.index_add_(0, owner[counted], torch.ones(int(counted.sum()), dtype=torch.float64))
    nll_D, tokens_D = add_up(torch.stack([nll_D, tokens_D])).unbind()
    return Evaluation(blocks.name, nll_D, tokens_D)


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
    first, second = (math.exp(min(total / tokens, 700)) for total in sums)
    return Drift(first, second, max(kl / tokens, 0.0))


def _log_probabilities(model: Any, blocks: Blocks, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(log-probabilities [n, V], targets [n], which of them count [n]) of each batch of blocks."""
    with _evaluating(model) as device:
        for ids_NT, owner in zip(blocks.ids_NT.split(batch), blocks.document_NT.split(batch), strict=True):
            ids_NT = ids_NT.to(device)
            log_p = logits_of(model, ids_NT, "fp32").flatten(0, 1).log_softmax(-1)
            yield log_p, ids_NT[:, 1:].flatten(), owner.flatten().to(device) >= 0
