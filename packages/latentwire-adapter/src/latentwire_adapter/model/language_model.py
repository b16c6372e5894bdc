"""A causal language model that reads embeddings: loading it, and its table.

Shapes: V token types, D dimensions.
"""

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from latentwire_adapter.config import Reading
from studycore.errors import UserError
from studycore.language.pretrained import context_of, load_model, load_tokenizer, weights_fingerprint

NEEDED = ("inputs_embeds", "attention_mask", "position_ids", "past_key_values")
"""What a model's forward pass must take: models with a recurrent state, or with biases for positions, lack some of it."""


@dataclass(frozen=True)
class LanguageModel:
    """A frozen causal model with its tokenizer."""

    model: Any
    tokenizer: Any
    table_VD: Tensor
    """What the model's embedding module gives for each token type, in the model's precision."""
    ends: frozenset[int]
    """Token types that end an answer: end of text, and all that hold a line's end."""
    commit: str | None = None
    """The hub's commit."""

    @property
    def device(self) -> torch.device:
        return self.table_VD.device

    @property
    def context(self) -> int:
        """Positions that the model knows."""
        return context_of(self.model)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights."""
        return weights_fingerprint(self.model)


_loaded: dict[tuple[str, str | None, str, str], LanguageModel] = {}


def load_language_model(config: Reading, device: str) -> LanguageModel:
    """The model, kept for the next run of this process. UserError for what cannot be loaded or read by embeddings."""
    key = (config.model, config.model_revision, config.dtype, device)
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = _load(config, device)
    return _loaded[key]


def _load(config: Reading, device: str) -> LanguageModel:
    model, commit = load_model(config.model, config.model_revision, getattr(torch, config.dtype))
    return wrap(model.to(device), load_tokenizer(config.model, config.model_revision), config.model, commit)


def wrap(model: Any, tokenizer: Any, name: str = "the model", commit: str | None = None) -> LanguageModel:
    """A loaded model, made ready: frozen, its table read. UserError for one whose embeddings are no look-up."""
    if any(getattr(part, "hidden_size_per_layer_input", 0) for part in (model.config, model.config.get_text_config())):
        raise UserError(
            f"--model: '{name}' feeds embeddings into every layer; a code at the input cannot stand for them, so give another"
        )
    lacks = [word for word in NEEDED if word not in inspect.signature(model.forward).parameters]
    if lacks:
        raise UserError(
            f"--model: '{name}' takes no {' nor '.join(lacks)}, with which questions are read in one row; give a model that does"
        )
    if not tokenizer.is_fast:
        raise UserError(f"--model: the tokenizer of '{name}' gives no character offsets; give a model with a fast one")
    model.eval().requires_grad_(False)
    module = model.get_input_embeddings()
    device = next(model.parameters()).device
    with torch.no_grad():
        # By calling the module: some scale inside it, and what stands in `.weight` is then not what the layers see.
        table_VD = torch.cat([module(part) for part in torch.arange(module.weight.shape[0], device=device).split(8192)])
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    ends = {token for token, text in enumerate(names) if text and ("\n" in text or "Ċ" in text or text == "<0x0A>")}
    stops = getattr(model.generation_config, "eos_token_id", None)
    ends |= {tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])} - {None}
    return LanguageModel(model, tokenizer, table_VD, frozenset(ends), commit)
