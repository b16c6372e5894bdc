"""The head of a language model: the logits of what it reads, capped where the model caps them (Gemma 2).

Shapes: N activations, D width, V words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytope_hsae.config import AGAIN
from studycore.errors import UserError
from studycore.files import write_tensors
from studycore.foreign import reading


@dataclass(frozen=True)
class Head:
    """Logits are products of an activation with the rows; with a cap c they are c tanh(product / c)."""

    unembedding_VD: Tensor
    softcap: float | None = None

    def logits(self, x_ND: Tensor, words: Sequence[int] | None = None) -> Tensor:
        """[N, V] logits, or [N, words] of some words, in the precision of the activations."""
        return self.capped(self.product(x_ND, words))

    def product(self, x_ND: Tensor, words: Sequence[int] | None = None) -> Tensor:
        """What the cap is put on. It is linear: a step v adds the product with v, whatever the context."""
        rows_VD = self.unembedding_VD if words is None else self.unembedding_VD[list(words)]
        return x_ND @ rows_VD.to(x_ND.dtype).T

    def capped(self, product: Tensor) -> Tensor:
        """What the model makes of the product."""
        return product if self.softcap is None else self.softcap * torch.tanh(product / self.softcap)

    def save(self, path: Path) -> None:
        """unembedding.safetensors. OSError when it cannot be written."""
        cap = {} if self.softcap is None else {"softcap": torch.tensor(self.softcap, dtype=torch.float64)}
        write_tensors(path, {"unembedding": self.unembedding_VD} | cap)


def load_head(path: Path) -> Head:
    """What `save` wrote. UserError for another file."""
    from safetensors.torch import load_file

    with reading(path, "the head of a model", AGAIN):
        tensors = load_file(path)
        return Head(tensors["unembedding"], float(tensors["softcap"]) if "softcap" in tensors else None)


@torch.no_grad()
def head_of(model: Any, ids_BT: Tensor) -> Head:
    """The head of a model in float32, whose logits on some tokens are the model's own. UserError where they are not."""
    from polytope_hsae.language import final_activations, unembedding

    head = Head(unembedding(model), getattr(model.config, "final_logit_softcapping", None))
    theirs = model(input_ids=ids_BT, use_cache=False).logits.float()
    ours = head.logits(final_activations(model, ids_BT).flatten(0, 1)).view_as(theirs)
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max())):
        raise UserError(
            f"model.name: the logits of a {model.config.model_type} are more than a product with its unembedding, capped or not; take another model"
        )
    return head
