"""A causal language model: its unembedding, and what the unembedding reads.

The residual stream is taken where the head reads it, after the final norm: so the logits of a changed activation are its
product with the unembedding, exactly, and need no run of the model.

Shapes: B sequences, T tokens, D width, V words.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from studycore.errors import UserError
from studycore.language import pretrained

FLAG = "model.name"


def load_model(name: str, revision: str | None = None, dtype: str = "fp32") -> Any:
    """The model, for evaluation. UserError when there is none, or its head is not a plain product."""
    model, _ = pretrained.load_model(name, revision, torch.float32 if dtype == "fp32" else torch.bfloat16, FLAG)
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise UserError(f"model.name: '{name}' has no unembedding without a bias, whose geometry this study reads; take another")  # fmt: skip
    return model


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """UserError when the model has none."""
    return pretrained.load_tokenizer(name, revision, FLAG)


def check_known(tokens: Iterable[int], model: Any, tokenizer: Any, where: str, name: str) -> None:
    """UserError for a token that the model does not know."""
    vocabulary = pretrained.vocabulary_of(model)
    pretrained.check_tokens(tokens, tokenizer, vocabulary, where, f"{FLAG}: '{name}'")


def unembedding(model: Any) -> Tensor:
    """[V, D] rows that logits are products with, float32."""
    return model.get_output_embeddings().weight.detach().float()


@torch.no_grad()
def final_activations(model: Any, ids_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """[B, T, D] what the head reads, without the product with the head, which costs more than all layers of a small model."""
    output = model.base_model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
    return output.last_hidden_state.float()


@torch.no_grad()
def check_capture(model: Any, ids_BT: Tensor) -> None:
    """UserError where the head reads something else than `final_activations` gives, found with a forward hook."""
    read: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    try:
        model(input_ids=ids_BT, use_cache=False)
    finally:
        hook.remove()
    ours = final_activations(model, ids_BT)
    if not torch.allclose(read[0].float(), ours, rtol=1e-3, atol=1e-3 * float(ours.abs().max())):
        raise UserError(
            f"model.name: the head of a {model.config.model_type} reads something else than its base model's last state; take another model"
        )


def pad(rows: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """([B, T] tokens, [B, T] mask), padded on the right."""
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), fill)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask
