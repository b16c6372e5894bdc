"""Greedy answers of a causal language model to prompts whose rows are looked up, as ids or through a reconstruction.

All questions of a batch stand in one row without padding, paragraphs first, each token with its own position and an
explicit mask: it sees what its own prompt has before it and nothing else. So grouping cannot matter, a paragraph is read
once for all its questions, the worked examples once for all batches, and an answer that has ended costs nothing more.
New tokens only, at most `max_new_tokens`, until the end of the line.

Shapes: B questions, A of them still being answered, T new tokens of the row, S all of it, V token types, D dimensions.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentwire_adapter.data import Prompt, Prompts
from latentwire_adapter.model.language_model import LanguageModel

Embed = Callable[[Tensor], Tensor]
"""ids of any shape -> rows of that shape and D more."""
ALL = -1
"""Whose a token is when all have it: the worked examples are every paragraph's, a paragraph every one of its questions'."""


@dataclass(frozen=True)
class Owners:
    """Of each token of a row: the number of its paragraph, of its question (or ALL), and its position in its prompt."""

    paragraph_T: Tensor
    question_T: Tensor
    position_T: Tensor

    def __add__(self, other: "Owners") -> "Owners":
        return Owners(*(torch.cat([getattr(self, name), getattr(other, name)]) for name in vars(self)))

    def __getitem__(self, place: Tensor) -> "Owners":
        return Owners(*(getattr(self, name)[place] for name in vars(self)))


def visible(new: Owners, row: Owners) -> Tensor:
    """mask_TS: whether the new token's prompt holds the row's token, at or before it."""
    same_paragraph_TS = (row.paragraph_T == ALL) | (row.paragraph_T == new.paragraph_T[:, None])
    same_question_TS = (row.question_T == ALL) | (row.question_T == new.question_T[:, None])
    return same_paragraph_TS & same_question_TS & (row.position_T <= new.position_T[:, None])


def in_precision_of(lm: LanguageModel, rows: Tensor) -> Tensor:
    """The rows. TypeError where they are of another precision than the model's: nothing is cast in silence, since float32
    rows would make a half-precision model fail, or compute something else."""
    if rows.dtype != lm.table_VD.dtype:
        raise TypeError(f"embeddings are {rows.dtype} and the model is {lm.table_VD.dtype}")
    return rows


class Reader:
    """Reads tokens through one embedding; keys and values of the prefix are kept."""

    @torch.no_grad()
    def __init__(self, lm: LanguageModel, prefix_T: Sequence[int], embed: Embed | None, other: Embed | None = None):
        """`embed` None: plain token ids. `other`: the embedding of all but paragraphs, where it is another."""
        from transformers import DynamicCache

        self.lm, self.embed, self.other = lm, embed, other or embed
        self.past, self.length = DynamicCache(), len(prefix_T)
        self.owners = self._owners([(ALL, ALL, 0, prefix_T)])
        if prefix_T:
            nothing = self._owners([])
            self._forward(self.past, nothing, self.owners, self._given(prefix_T, self.other), self.length - 1)

    def _owners(self, parts: Sequence[tuple[int, int, int, Sequence[int]]]) -> Owners:
        """Of parts (paragraph, question, first position, tokens)."""
        rows = [(p, q, start + i) for p, q, start, tokens in parts for i in range(len(tokens))]
        made = torch.tensor(rows, dtype=torch.int64, device=self.lm.device).reshape(-1, 3)
        return Owners(made[:, 0], made[:, 1], made[:, 2])

    def _given(self, ids: Sequence[int], embed: Embed | None) -> Tensor:
        """ids_T, or rows_TD of them."""
        ids_T = torch.tensor(ids, dtype=torch.int64, device=self.lm.device)
        return ids_T if embed is None else in_precision_of(self.lm, embed(ids_T))

    def _masks(self, seen_TS: Tensor, new: Owners, row: Owners) -> Any:
        """What is added to the attention's scores; by kind of layer where the model has sliding windows."""
        config = self.lm.model.config.get_text_config()
        kinds, window = getattr(config, "layer_types", None) or (), getattr(config, "sliding_window", None)
        lowest = torch.finfo(self.lm.table_VD.dtype).min

        def added(mask_TS: Tensor) -> Tensor:
            zero_TS = torch.zeros(mask_TS.shape, dtype=self.lm.table_VD.dtype, device=mask_TS.device)
            return zero_TS.masked_fill(~mask_TS, lowest)[None, None]

        if window is None or (kinds and "sliding_attention" not in kinds):
            return added(seen_TS)
        near = added(seen_TS & (row.position_T > new.position_T[:, None] - window))
        return {"full_attention": added(seen_TS), "sliding_attention": near} if kinds else near

    def _forward(self, past: Any, row: Owners, new: Owners, given: Tensor, last: int | Tensor) -> tuple[Owners, Tensor]:
        """(owners of the row with the new tokens, logits_BV at the new tokens of index `last`); `past` grows by them."""
        whole = row + new
        name = "input_ids" if given.dim() == 1 else "inputs_embeds"
        out = self.lm.model(
            **{name: given[None]}, attention_mask=self._masks(visible(new, whole), new, whole),
            position_ids=new.position_T[None], past_key_values=past, use_cache=True,
            logits_to_keep=torch.as_tensor(last, device=self.lm.device).reshape(-1),
        )  # fmt: skip
        return whole, out.logits[0].float()

    @torch.no_grad()
    def first_logits(self, prompts: Sequence[Prompt]) -> tuple[Any, Owners, Owners, Tensor]:
        """(keys and values, owners of the row, those of each question's last token, logits_BV of the first new token)."""
        contexts = list(dict.fromkeys(p.context_T for p in prompts))
        home_B = [contexts.index(p.context_T) for p in prompts]
        start = self.length
        paragraphs = [(number, ALL, start, tokens) for number, tokens in enumerate(contexts)]
        questions = [
            (home, number, start + len(p.context_T), p.question_T)
            for number, (home, p) in enumerate(zip(home_B, prompts, strict=True))
        ]
        read, asked = ([token for part in parts for token in part[3]] for parts in (paragraphs, questions))
        given = torch.cat([self._given(read, self.embed), self._given(asked, self.other)])
        lengths_B = torch.tensor([len(p.question_T) for p in prompts], device=self.lm.device)
        last_B = len(read) + lengths_B.cumsum(0) - 1
        new, past = self._owners([*paragraphs, *questions]), copy.deepcopy(self.past)
        row, logits_BV = self._forward(past, self.owners, new, given, last_B)
        return past, row, new[last_B], logits_BV

    @torch.no_grad()
    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[list[int]]:
        """The new tokens of each prompt, greedily, up to and without what ends it. Their rows are the model's own."""
        past, row, new, logits_AV = self.first_logits(prompts)
        answers: list[list[int]] = [[] for _ in prompts]
        ends = torch.tensor(sorted(self.lm.ends), device=self.lm.device)
        for step in range(max_new_tokens):
            token_A = logits_AV.argmax(1)
            goes_on_A = ~torch.isin(token_A, ends)
            token_A, new = token_A[goes_on_A], new[goes_on_A]
            for number, token in zip(new.question_T.tolist(), token_A.tolist(), strict=True):
                answers[number].append(token)
            if step == max_new_tokens - 1 or not len(token_A):
                break
            new = Owners(new.paragraph_T, new.question_T, new.position_T + 1)
            row, logits_AV = self._forward(past, row, new, token_A, torch.arange(len(token_A)))
        return answers


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
