"""Exact perplexity: the summed negative log-likelihood of a fixed set of blocks over its tokens.

Shapes: N blocks, T targets of a block, V vocabulary, D documents.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from retrofit.data import Blocks
from studycore.models import evaluating

Sum = Callable[[Tensor], Tensor]
"""Sums a tensor over processes."""
LARGEST_LOSS = 709.0
"""exp of more than 709.78 is beyond float64."""
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
        """See perplexity_of."""
        return perplexity_of(self.loss)


def perplexity_of(loss: float) -> float:
    """exp of a mean loss in nats; infinite beyond what float64 holds."""
    return math.exp(loss) if loss < LARGEST_LOSS else math.inf


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
    sum_processes: Sum = lambda x: x,
    heed: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Every target of `blocks` once, shared out over processes and summed with `sum_processes`; `heed` is called for each
    batch."""
    nll_D, tokens_D = (torch.zeros(blocks.documents, dtype=torch.float64) for _ in range(2))
    with evaluating(model) as device:
        for rows in torch.arange(rank, len(blocks.ids_NT), world).split(batch):
            heed()
            ids_NT, owner = blocks.ids_NT[rows].to(device), blocks.document_NT[rows].flatten()
            logits = logits_of(model, ids_NT, precision)
            nll = F.cross_entropy(logits.flatten(0, 1), ids_NT[:, 1:].flatten(), reduction="none").double().cpu()
            counted = owner >= 0
            nll_D.index_add_(0, owner[counted], nll[counted])
            tokens_D.index_add_(0, owner[counted], torch.ones(int(counted.sum()), dtype=torch.float64))
    nll_D, tokens_D = sum_processes(torch.stack([nll_D, tokens_D])).unbind()
    return Evaluation(blocks.name, nll_D, tokens_D)
