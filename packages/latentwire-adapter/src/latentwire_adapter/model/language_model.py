"""A causal language model that reads embeddings: loading it, its table, and greedy answers to prompts.

Answers are decoded with explicit masks and positions, so that padding and grouping don't matter: left padding, new tokens
only, at most `max_new_tokens`, until the end of the line. Keys and values of the worked examples are computed once, those
of a paragraph once for all its questions.

Shapes: B questions, G paragraphs, P tokens of the prefix, T tokens, V token types, D dimensions.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentwire_adapter.config import Reading
from latentwire_adapter.data import Prompt, Prompts
from studycore.errors import UserError
from studycore.language.pretrained import context_of, load_model, load_tokenizer

Embed = Callable[[Tensor], Tensor]
"""ids of any shape -> rows of that shape and D more."""


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


# ---------------------------------------------------------------------------------------------------------- answers
def embed_with(lm: LanguageModel, embed: Embed, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Rows for the model, padding at zero. TypeError for rows of another precision than the model's: nothing is cast in
    silence, since float32 rows would make a half-precision model fail, or compute something else."""
    rows_BTD = embed(ids_BT)
    if rows_BTD.dtype != lm.table_VD.dtype:
        raise TypeError(f"embeddings are {rows_BTD.dtype} and the model is {lm.table_VD.dtype}")
    return rows_BTD * mask_BT[..., None].to(rows_BTD.dtype)


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids_BT, mask_BT), each row at the right end."""
    length = max(map(len, rows))
    ids_BT = torch.tensor([[0] * (length - len(row)) + list(row) for row in rows], dtype=torch.int64, device=device)
    mask_BT = torch.tensor(
        [[0] * (length - len(row)) + [1] * len(row) for row in rows], dtype=torch.int64, device=device
    )
    return ids_BT, mask_BT


class Reader:
    """Reads tokens through one embedding; `past` of the prefix is kept."""

    @torch.no_grad()
    def __init__(self, lm: LanguageModel, prefix_T: Sequence[int], embed: Embed | None, other: Embed | None = None):
        """`embed` None: plain token ids. `other`: the embedding of all but paragraphs, where it is another."""
        self.lm, self.embed, self.other = lm, embed, other or embed
        self.prefix: tuple[Any, Tensor] | None = None
        if prefix_T:
            ids_1P, mask_1P = left_padded([prefix_T], lm.device)
            past, _ = self._forward(
                None, torch.zeros(1, 0, dtype=torch.int64, device=lm.device), ids_1P, mask_1P, self.other
            )
            self.prefix = past, mask_1P

    def _forward(
        self, past: Any, seen_BP: Tensor, ids_BT: Tensor, mask_BT: Tensor, embed: Embed | None
    ) -> tuple[Any, Tensor]:
        """(keys and values, logits_BV of the last position) of tokens after `past`, which the mask `seen_BP` covers."""
        all_B = torch.cat([seen_BP, mask_BT], 1)
        position_BT = (all_B.cumsum(1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        given = (
            {"input_ids": ids_BT} if embed is None else {"inputs_embeds": embed_with(self.lm, embed, ids_BT, mask_BT)}
        )
        out = self.lm.model(
            **given, attention_mask=all_B, position_ids=position_BT, past_key_values=past, use_cache=True, logits_to_keep=1
        )  # fmt: skip
        return out.past_key_values, out.logits[:, -1].float()

    def _start(self, n: int) -> tuple[Any, Tensor]:
        """The prefix's keys and values for n rows, and its mask."""
        if self.prefix is None:
            return None, torch.zeros(n, 0, dtype=torch.int64, device=self.lm.device)
        past = copy.deepcopy(self.prefix[0])
        past.batch_repeat_interleave(n)
        return past, self.prefix[1].expand(n, -1)

    @torch.no_grad()
    def first_logits(self, prompts: Sequence[Prompt]) -> tuple[Any, Tensor, Tensor]:
        """(keys and values, mask, logits_BV of the first new token). The prompts' paragraphs are read once each."""
        contexts = list(dict.fromkeys(p.context_T for p in prompts))
        past, seen = self._start(len(contexts))
        if any(contexts):
            ids, mask = left_padded(contexts, self.lm.device)
            past, _ = self._forward(past, seen, ids, mask, self.embed)
            seen = torch.cat([seen, mask], 1)
        owner_B = torch.tensor([contexts.index(p.context_T) for p in prompts], device=self.lm.device)
        if past is not None:
            past.batch_select_indices(owner_B)
        ids, mask = left_padded([p.question_T for p in prompts], self.lm.device)
        seen_BP = seen[owner_B]
        past, logits_BV = self._forward(past, seen_BP, ids, mask, self.other)
        return past, torch.cat([seen_BP, mask], 1), logits_BV

    @torch.no_grad()
    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[list[int]]:
        """The new tokens of each prompt, greedily, up to and without what ends it. Their rows are the model's own."""
        past, seen_BP, logits_BV = self.first_logits(prompts)
        found: list[list[int]] = [[] for _ in prompts]
        running = torch.ones(len(prompts), dtype=torch.bool, device=self.lm.device)
        ends = torch.tensor(sorted(self.lm.ends), device=self.lm.device)
        for step in range(max_new_tokens):
            token_B = logits_BV.argmax(1)
            running &= ~torch.isin(token_B, ends)
            for row, (token, goes_on) in enumerate(zip(token_B.tolist(), running.tolist(), strict=True)):
                if goes_on:
                    found[row].append(token)
            if step == max_new_tokens - 1 or not running.any():
                break
            one_B1 = torch.ones(len(prompts), 1, dtype=torch.int64, device=self.lm.device)
            past, logits_BV = self._forward(past, seen_BP, token_B[:, None], one_B1, None)
            seen_BP = torch.cat([seen_BP, one_B1], 1)
        return found


def text_of(lm: LanguageModel, tokens: Sequence[int]) -> str:
    """The first line of an answer."""
    return str(lm.tokenizer.decode(tokens, skip_special_tokens=True)).strip().partition("\n")[0].strip()


def batches(prompts: Prompts, size: int) -> Iterator[list[int]]:
    """Indices of prompts that are answered together: whole paragraphs, of like length, about `size` questions."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts.prompts):
        groups.setdefault(prompt.context_T, []).append(index)
    together: list[int] = []
    for _, members in sorted(groups.items(), key=lambda item: (len(item[0]), item[1][0])):
        for start in range(0, len(members), size):
            part = members[start : start + size]
            if together and len(together) + len(part) > size:
                yield together
                together = []
            together = together + part
    if together:
        yield together
