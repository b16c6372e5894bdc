"""What must hold of the harness before anything is trained. A run whose check fails makes no figures."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from latentwire_adapter.config import Reading, SelfcheckConfig
from latentwire_adapter.data import Prompt, Prompts, ask, build_prompts
from latentwire_adapter.model import codecs
from latentwire_adapter.model.adapter import Adapter
from latentwire_adapter.model.compressor import EmbeddingCompressor
from latentwire_adapter.model.language_model import LanguageModel
from latentwire_adapter.model.reader import Reader, batches
from studycore.errors import UserError
from studycore.run import Run

TIE = {torch.float32: 0.0, torch.bfloat16: 0.03, torch.float16: 0.005}
"""How far, of the largest logit's size, two tokens may be apart that a half-precision model takes one for the other: its
sums are rounded to 8 or 11 bits at each layer, in an order that follows the shapes, so that close logits change places.
Single precision gives the same tokens."""
CLOSE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
"""Largest difference of logits over their largest size that rounding may make, by precision: sums of other shapes are
added in another order."""


class Harness:
    """The model, some prompts, and how they are read; what the checks look at, and what tests break."""

    def __init__(self, lm: LanguageModel, prompts: Prompts, config: Reading, heed: Callable[[], None] = lambda: None):
        """`heed` is called for each batch that is answered."""
        self.lm, self.prompts, self.config, self.heed = lm, prompts, config, heed
        self.raw = codecs.raw(lm.table_VD)
        self.uncompressed: list[list[int]] | None = None
        self.kept: tuple[codecs.Rows, Reader] | None = None

    def together(self) -> list[list[int]]:
        """What several checks compare with: the answers to the uncompressed rows in batches, read once."""
        if self.uncompressed is None:
            self.uncompressed = self.answers(self.raw, self.config.eval_batch_size)
        return self.uncompressed

    def reader(self, rows: codecs.Rows | None, prompts: Prompts | None = None) -> Reader:
        """A reader of these rows; None: of token ids. That of the model's own rows is made once: it reads the examples."""
        chosen = prompts or self.prompts
        if rows is not self.raw or set(chosen.prompts) != set(self.prompts.prompts):
            return self._reader(rows, chosen)
        if self.kept is None or self.kept[0] is not rows:
            self.kept = (rows, self._reader(rows, chosen))
        return self.kept[1]

    def _reader(self, rows: codecs.Rows | None, chosen: Prompts) -> Reader:
        if rows is None:
            return Reader(self.lm, chosen.prefix_T, None)
        ids = torch.tensor(
            sorted({*chosen.prefix_T, *(t for p in chosen.prompts for t in p.asked_T)}), device=self.lm.device
        )
        return Reader(self.lm, chosen.prefix_T, codecs.Table(ids, lambda i: rows(i).to(self.lm.table_VD.dtype)))

    def answers(self, rows: codecs.Rows | None, size: int, prompts: Prompts | None = None) -> list[list[int]]:
        """New tokens of every prompt, in batches of `size`."""
        chosen = prompts or self.prompts
        answers: dict[int, list[int]] = {}
        reader = self.reader(rows, chosen)
        for part in batches(chosen, size):
            self.heed()
            new = reader.answer([chosen.prompts[i] for i in part], self.config.max_new_tokens)
            answers.update(zip(part, new, strict=True))
        return [answers[i] for i in range(len(chosen.prompts))]

    def generated(self, prompt: Prompt) -> list[int]:
        """By transformers' own `generate`, from plain ids of the whole prompt: another way to the same tokens."""
        ids_1T = torch.tensor([self.prompts.prefix_T + prompt.asked_T], device=self.lm.device)
        ends = sorted(self.lm.ends)
        out = self.lm.model.generate(
            input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=self.config.max_new_tokens, do_sample=False, num_beams=1,
            temperature=None, top_p=None, top_k=None, eos_token_id=ends, pad_token_id=ends[0],
        )  # fmt: skip
        new = out[0, ids_1T.shape[1] :].tolist()
        return new[: next((i for i, token in enumerate(new) if token in self.lm.ends), len(new))]

    def gap(self, number: int, answer: list[int], one: int | None, other: int | None) -> float:
        """How far apart the two tokens' logits are after this prompt and the begun answer, of the largest logit's size, in a
        plain pass over ids. None is the best of the tokens that end an answer."""
        ids_1T = torch.tensor(
            [[*self.prompts.prefix_T, *self.prompts.prompts[number].asked_T, *answer]], device=self.lm.device
        )
        with torch.no_grad():
            logits_V = self.lm.model(input_ids=ids_1T, use_cache=False, logits_to_keep=1).logits[0, -1].float()
        ends = torch.tensor(sorted(self.lm.ends), device=self.lm.device)
        first, second = (logits_V[ends].max() if token is None else logits_V[token] for token in (one, other))
        return float((first - second).abs() / logits_V.abs().max())

    def same(self, one: list[list[int]], other: list[list[int]], this: str, that: str) -> str:
        """What is wrong where answers differ; "" where they don't, or go apart at logits that are closer than TIE."""
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            if a == b:
                continue
            place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            tokens = (a[place] if place < len(a) else None, b[place] if place < len(b) else None)
            limit = TIE[self.lm.table_VD.dtype]
            if limit == 0 or (gap := self.gap(number, a[:place], *tokens)) > limit:
                apart = "" if limit == 0 else f", at logits {gap:.2g} of the largest apart"
                return f"question {number} is answered {a} {this} and {b} {that}{apart}"
        return ""


def check_plain_generation(h: Harness) -> str:
    """Answers from embeddings are token for token those that transformers generates from ids."""
    return h.same(h.together()[:4], [h.generated(p) for p in h.prompts.prompts[:4]], "from embeddings", "by generate")


def check_identity_adapter(h: Harness) -> str:
    """A compressor that keeps every dimension and an adapter that begins as its inverse give the text of plain ids."""
    width, spread = h.lm.table_VD.shape[1], float(h.lm.table_VD.float().std())
    compressor = _leading_dimensions(h, width)
    adapter = Adapter(width, width, 1, 0.0).to(h.lm.device)
    adapter.start_at_inverse(compressor, spread, spread)
    adapter.eval()
    rows = codecs.adapted(h.lm.table_VD, compressor, adapter, None)
    size = h.config.eval_batch_size
    return h.same(h.answers(rows, size), h.answers(None, size), "through the identity", "from ids")


def check_grouping(h: Harness) -> str:
    """Neither batch size nor order of the prompts changes an answer."""
    together = h.together()
    turned = replace(h.prompts, prompts=h.prompts.prompts[::-1])
    return h.same(together, h.answers(h.raw, 1), "together", "one by one") or h.same(
        together, h.answers(h.raw, 3, turned)[::-1], "in order", "in reverse order"
    )


def check_mask_and_positions(h: Harness) -> str:
    """A prompt sees nothing of others in its row, and positions count its own tokens alone: logits of the first new token
    beside another prompt, and by a plain pass of the model."""
    longest = max(h.prompts.prompts, key=lambda p: len(p.context_T))
    shortest = min(h.prompts.prompts, key=lambda p: len(p.context_T))
    half = replace(shortest, context_T=shortest.context_T[: len(shortest.context_T) // 2])
    beside = h.reader(h.raw).first_logits([longest, half])[-1][1]
    ids_1T = torch.tensor([h.prompts.prefix_T + half.asked_T], device=h.lm.device)
    with torch.no_grad():
        alone = h.lm.model(input_ids=ids_1T, use_cache=False).logits[0, -1].float()
    difference = float((beside - alone).abs().max() / alone.abs().max())
    limit = CLOSE[h.lm.table_VD.dtype]
    return (
        ""
        if difference < limit
        else f"logits beside another prompt differ from those alone by {difference:.2g} of their size"
    )


def check_dtype(h: Harness) -> str:
    """Rows of another precision than the model's are refused."""
    ids = torch.tensor(sorted(set(h.prompts.prefix_T + h.prompts.prompts[0].asked_T)), device=h.lm.device)
    other = torch.float64 if h.lm.table_VD.dtype == torch.float32 else torch.float32
    try:
        Reader(h.lm, h.prompts.prefix_T, codecs.Table(ids, lambda i: h.raw(i).to(other))).answer(
            h.prompts.prompts[:1], 1
        )
    except TypeError:
        return ""
    return f"{other} rows were taken by a model in {h.lm.table_VD.dtype}"


def check_truncation(h: Harness) -> str:
    """A paragraph that is too long loses its end; the question and the cue stay."""
    question = replace(h.prompts.prompts[0].question, context=h.prompts.prompts[0].question.context * 40)
    plain = replace(h.config, chat_template=False, examples=0)
    (cut,) = build_prompts(plain, h.lm.tokenizer, [question], [], h.lm.context).prompts
    text = h.lm.tokenizer.decode(cut.question_T)
    whole = ask("", question.question).partition("\n")[2]
    if cut.cut == 0 or len(cut.asked_T) > h.config.max_length:
        return f"a paragraph of {len(cut.context_T)} tokens was not cut to {h.config.max_length}"
    return "" if text.split() == whole.split() else f"of the question only '{text.strip()[:60]}' is left"


def check_empty_answers(h: Harness) -> str:
    """Not more than half of the answers to uncompressed prompts are empty."""
    answers = h.together()
    rate = sum(not answer for answer in answers) / len(answers)
    return "" if rate <= 0.5 else f"{rate:.0%} of the answers to uncompressed prompts are empty"


def check_leak(h: Harness, rows: Callable[[Tensor], Tensor] | None = None) -> str:
    """Another token t + 1 does not move the reconstruction at or before t."""
    width = h.lm.table_VD.shape[1]
    ids_T = torch.tensor(h.prompts.prompts[0].asked_T, device=h.lm.device)
    if rows is None:
        compressor = _leading_dimensions(h, max(width // 4, 1))
        rows = codecs.adapted(h.lm.table_VD, compressor, Adapter(compressor.output_dim, width).to(h.lm.device).eval())
    changed_T = ids_T.clone()
    changed_T[-1] = (changed_T[-1] + 1) % len(h.lm.table_VD)
    moved = float((rows(ids_T)[:-1] - rows(changed_T)[:-1]).abs().max())
    return "" if moved == 0 else f"earlier reconstructions moved by {moved:.2g}"


def check_table(h: Harness) -> str:
    """The table holds what the embedding module gives."""
    ids = torch.tensor(h.prompts.prompts[0].asked_T, device=h.lm.device)
    with torch.no_grad():
        same = torch.equal(h.lm.model.get_input_embeddings()(ids), h.lm.table_VD[ids])
    return "" if same else "the embedding module gives other rows than the table"


def _leading_dimensions(h: Harness, n: int) -> EmbeddingCompressor:
    """A compressor that keeps the first n dimensions as they are: no fit is needed for it."""
    width = h.lm.table_VD.shape[1]
    compressor = EmbeddingCompressor(width, n)
    compressor.projection.copy_(torch.eye(width)[:, :n])
    compressor.inverse.copy_(torch.eye(width)[:n])
    return compressor.to(h.lm.device)


CHECKS: dict[str, Callable[[Harness], str]] = {
    "table": check_table,
    "plain_generation": check_plain_generation,
    "identity_adapter": check_identity_adapter,
    "grouping": check_grouping,
    "mask_and_positions": check_mask_and_positions,
    "dtype": check_dtype,
    "truncation": check_truncation,
    "empty_answers": check_empty_answers,
    "leak": check_leak,
}


def run_checks(
    lm: LanguageModel, prompts: Prompts, config: Reading, heed: Callable[[], None] = lambda: None
) -> dict[str, str]:
    """Check -> what is wrong, "" for nothing. `heed` is called for each check and for each batch that is answered."""
    harness, outcomes = Harness(lm, prompts, config, heed), {}
    for name, check in CHECKS.items():
        heed()
        outcomes[name] = check(harness)
    return outcomes


def demand(outcomes: dict[str, str]) -> None:
    """UserError that names the first failing check."""
    for name, wrong in outcomes.items():
        if wrong:
            raise UserError(
                f"selfcheck {name}: {wrong}; nothing is measured with this model and setting until it holds"
            )


def check_first(config: Reading, lm: LanguageModel, prompts: Prompts, run: Run) -> None:
    """The checks, unless a run that did them is among those that this one needs."""
    if "selfcheck" not in run.needs and not run.dry and run.checkpoint is None:
        few = replace(prompts, prompts=prompts.prompts[: SelfcheckConfig.eval_samples])
        demand(run_checks(lm, few, config, run.check_stop))
