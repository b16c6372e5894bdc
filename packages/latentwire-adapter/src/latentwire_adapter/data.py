"""Questions on paragraphs, the prompts that ask them, and how often each token type stands in the training text.

Prompts are tokenised as a whole and then cut at their parts, so that no part has tokens that the text would not have. A
prompt is: worked examples, the same for all and computed once; the paragraph; the question with its cue.

Shapes: V token types, T tokens.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from latentwire_adapter.config import EMBEDDED_DATASET, FIT_TEXT, FitConfig, Reading
from latentwire_adapter.texts import life_sketches
from studycore.devices import check_memory
from studycore.errors import UserError
from studycore.files import check_local, read_json
from studycore.foreign import reading
from studycore.hashes import share_of
from studycore.language.documents import as_read, read_documents
from studycore.language.pretrained import check_tokens, hub_rows
from studycore.streams import derive_seed

CUE = "Answer:"
EXAMPLE_QUESTIONS = 3
"""Questions of a worked example: that they are of one paragraph shows that each asks for something else."""
TOGETHER = 1024
"""Texts that are made into tokens between two looks at whether to stop."""
QUESTION_BYTES = 4096
"""Memory that a question takes at least: its words, the tokens of its prompt, and what is scored of it."""
NO_ANSWER = "unanswerable"
"""What a worked example answers where SQuAD 2.0 has no answer; as a prediction it counts as none."""


@dataclass(frozen=True)
class Question:
    """One question."""

    id: str
    paragraph: str
    """Identifier of its paragraph: questions of one are not independent."""
    context: str
    question: str
    answers: tuple[str, ...]
    """All that count as right; empty where SQuAD 2.0 has no answer."""

    @property
    def same(self) -> str:
        """The paragraph as it is compared with others: spacing, marks and how accents are composed make no other one."""
        return as_read(self.context)

    @property
    def answer(self) -> str:
        """The first, or what an example says for none."""
        return self.answers[0] if self.answers else NO_ANSWER


@dataclass(frozen=True)
class Prompt:
    """A question as tokens; the worked examples before it are the same for all."""

    question: Question
    context_T: tuple[int, ...]
    question_T: tuple[int, ...]
    """Question and cue."""
    cut: int = 0
    """Tokens that the paragraph lost to `max_length`."""

    @property
    def asked_T(self) -> tuple[int, ...]:
        """What a compressor sends for this question: all but the worked examples."""
        return self.context_T + self.question_T


@dataclass(frozen=True)
class Prompts:
    """The scored questions, as tokens."""

    prefix_T: tuple[int, ...]
    """Worked examples, and what the tokenizer or the chat template puts first."""
    prompts: tuple[Prompt, ...]
    fingerprint: str
    """SHA-256 of all tokens and answers."""


# -------------------------------------------------------------------------------------------------------- questions
def nothing() -> None:
    """What heeds no signal."""


def check_number(config: Reading, count: int, field: str) -> None:
    """UserError for more life sketches, which have no end, than memory holds; of other datasets no more than there are are read."""
    if config.dataset == EMBEDDED_DATASET:
        check_memory(QUESTION_BYTES * count, f"{field}: {count:,} questions", "lower it")


def read_questions(config: Reading, split: str, limit: int, per_paragraph: int | None, seed: int) -> list[Question]:
    """`limit` questions of the split. UserError for what cannot be read, or holds no question.

    Of life sketches the first; of other datasets paragraphs in an order drawn from the seed, as the original study's.
    """
    if config.dataset == EMBEDDED_DATASET:
        if split not in life_sketches.SPLITS:
            raise UserError(f"split: '{split}' is none of {', '.join(life_sketches.SPLITS)}; give one of these")
        questions: list[Question] = []
        first = 0
        while len(questions) < limit:
            questions += from_squad(life_sketches.squad(split, 64, per_paragraph, first), first)  # type: ignore[arg-type]
            first += 64
        return questions[:limit]
    if Path(config.dataset).is_file():
        questions = from_squad(_read_file(config.dataset))
    else:
        questions = _read_hub(config, split)
    if not questions:
        raise UserError(f"--dataset: '{config.dataset}' ({split}) holds no questions; name another")
    if twice := next((id_ for id_, count in Counter(q.id for q in questions).items() if count > 1), None):
        raise UserError(
            f"--dataset: '{config.dataset}' has the question id '{twice}' more than once; give each its own"
        )
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.paragraph, []).append(question)
    order, draw = sorted(groups), Random(derive_seed(seed, "questions", split))
    draw.shuffle(order)
    chosen = [question for name in order for question in draw.sample(groups[name], len(groups[name]))[:per_paragraph]]
    return chosen[:limit]


def from_squad(content: Mapping[str, Any], first: int = 0) -> list[Question]:
    """The questions of a SQuAD file. KeyError, TypeError where it is none; UserError for what should be text and is not."""
    questions = []
    for number, entry in enumerate(entry for article in content["data"] for entry in article["paragraphs"]):
        name = f"paragraph {first + number}"
        context = as_text(entry["context"], "context", name)
        for place, asked in enumerate(entry["qas"]):
            where = f"{name}, question {place}"
            answers = [] if asked.get("is_impossible") else [answer["text"] for answer in asked["answers"]]
            questions.append(question_of(asked["id"], name, context, asked["question"], answers, where))
    return questions


def question_of(name: Any, paragraph: str, context: Any, question: Any, answers: Any, where: str) -> Question:
    """Checked: UserError for what should be text and is not."""
    if not isinstance(answers, list | tuple):
        raise UserError(f"--dataset: the answers of {where} are no list: {_shown(answers)}; give a list of texts")
    checked = tuple(as_text(answer, "answer", where) for answer in answers)
    asked = as_text(question, "question", where).strip()
    return Question(str(name), paragraph, as_text(context, "context", where), asked, checked)


def as_text(value: Any, part: str, where: str) -> str:
    """UserError for what is no text."""
    if not isinstance(value, str):
        raise UserError(f"--dataset: the {part} of {where} is no text: {_shown(value)}; give text, in quotes")
    return value


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:40]


def _read_file(path: str) -> Any:
    check_local("--dataset", path)
    content = read_json(Path(path))
    try:
        from_squad(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--dataset: {path} is no file in SQuAD's JSON format (lacks {error}); see its data, paragraphs, qas"
        ) from None
    return content


def _read_hub(config: Reading, split: str) -> list[Question]:
    """A hub dataset of SQuAD's form: id, context, question, answers{text}."""
    check_local("--dataset", config.dataset)
    columns = ("id", "context", "question", "answers")
    rows = hub_rows(config.dataset, split, columns, revision=config.dataset_revision)
    paragraphs: dict[str, str] = {}
    questions = []
    for number, row in enumerate(rows):
        paragraph = paragraphs.setdefault(as_read(str(row["context"])), f"paragraph {len(paragraphs)}")
        # Of what has no "text" all is shown, as no list of texts.
        answers = row["answers"].get("text", row["answers"]) if isinstance(row["answers"], dict) else row["answers"]
        where = f"row {number} of {split}"
        questions.append(question_of(row["id"], paragraph, row["context"], row["question"], answers, where))
    return questions


def load_squad_subset(
    split: str = "train", samples: int | None = None, seed: int = 0, v2: bool = False, dataset: str = EMBEDDED_DATASET
) -> list[dict[str, str]]:
    """Items with `source` (the prompt) and `answer` (the first right one, "" for none), as the original study has them.

    The default dataset is the embedded one, which needs no hub; `v2` without a dataset means rajpurkar/squad_v2.
    """
    name = "rajpurkar/squad_v2" if v2 and dataset == EMBEDDED_DATASET else dataset
    check_number(Reading(dataset=name), samples or 0, "samples")
    questions = (
        read_questions(Reading(dataset=name), split, samples or 10**9, None, seed)
        if samples or name != EMBEDDED_DATASET
        else []
    )
    if not questions:
        raise UserError("samples: null does not fit; the embedded paragraphs have no end, so give a number")
    return [{"source": ask(q.context, q.question), "answer": q.answers[0] if q.answers else ""} for q in questions]


# ---------------------------------------------------------------------------------------------------------- prompts
def ask(context: str, question: str) -> str:
    """The prompt without examples. Its cue ends without a space: words begin with theirs."""
    return f"Context: {context}\nQuestion: {question}\n{CUE}"


def worked_examples(config: Reading, scored: Sequence[Question]) -> list[list[Question]]:
    """Paragraphs of the training split with up to EXAMPLE_QUESTIONS questions each, whose answers no scored one has."""
    if config.examples == 0:
        return []
    right = {as_read(answer).lower() for question in scored for answer in question.answers}
    paragraphs = {question.same for question in scored}
    by_context: dict[str, list[Question]] = {}
    split = "train" if not Path(config.dataset).is_file() else config.split
    for question in read_questions(config, split, 400 * EXAMPLE_QUESTIONS, EXAMPLE_QUESTIONS, config.data_seed + 1):
        short_enough = len(question.context) < 700 and len(question.answer) < 40
        answers = {as_read(answer).lower() for answer in question.answers}
        if short_enough and question.same not in paragraphs and not right & answers:
            by_context.setdefault(question.same, []).append(question)
        if len(by_context) > config.examples:
            break
    if len(by_context) < config.examples:
        raise UserError(
            f"examples: {config.examples}, but '{config.dataset}' has no more than {len(by_context)} paragraphs besides the scored ones; give that many"
        )
    return list(by_context.values())[: config.examples]


def shown(examples: Sequence[Sequence[Question]]) -> str:
    """The worked examples as they stand before a question."""
    text = ""
    for asked in examples:
        text += f"Context: {asked[0].context}\n"
        text += "".join(f"Question: {q.question}\n{CUE} {q.answer}\n" for q in asked) + "\n"
    return text


def encode(text: str, boundaries: Sequence[int], tokenizer: Any, special: bool) -> list[list[int]]:
    """The text's tokens in parts that begin at the given characters; a token belongs to the part it begins in."""
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    parts: list[list[int]] = [[] for _ in range(len(boundaries) + 1)]
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        # Special tokens are of no characters; white space that belongs to the next word is where the word is.
        place = 0 if end == 0 else sum(start >= boundary for boundary in boundaries)
        parts[place].append(token)
    return parts


def in_template(asked: str, tokenizer: Any, config: Reading) -> str:
    """What is asked in the model's chat template. UserError without one, for one that fails, and for one that alters it."""
    whose = f"chat_template: that of '{config.model}'"
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"chat_template: '{config.model}' has none; give --chat_template false, or a model that was taught to chat"
        )
    with reading(whose, "a template of one question", "give --chat_template false"):
        text = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True
            )
        )
    if asked not in text:
        raise UserError(
            f"{whose} alters what is asked, so that its parts cannot be told apart; give --chat_template false"
        )
    return text


def build_prompts(
    config: Reading,
    tokenizer: Any,
    questions: Sequence[Question],
    examples: Sequence[Sequence[Question]],
    context: int,
    heed: Callable[[], None] = nothing,
) -> Prompts:
    """Prompts of the questions. UserError when the worked examples and a question don't fit into `context` tokens.

    `heed` is called for each question.
    """
    before_all = shown(examples)
    prefix: list[int] | None = None
    prompts = []
    for question in questions:
        heed()
        asked = before_all + ask(question.context, question.question)
        text = in_template(asked, tokenizer, config) if config.chat_template else asked
        start = text.index(asked) + len(before_all)
        middle = start + len(
            f"Context: {question.context}"
        )  # the line's end is the question's: cutting the paragraph leaves it
        before, paragraph, rest = encode(text, [start, middle], tokenizer, not config.chat_template)
        prefix = before if prefix is None else prefix
        if before != prefix:
            raise UserError(
                f"--model: the tokenizer joins the worked examples with paragraph '{question.paragraph}'; give --examples 0"
            )
        room = min(config.max_length, context - len(prefix) - config.max_new_tokens) - len(rest)
        if room < 0:
            raise UserError(
                f"examples: {config.examples} worked examples of {len(prefix)} tokens, a question of {len(rest)} and an answer "
                f"exceed {context} tokens (max_length {config.max_length}); give fewer, or a longer max_length"
            )
        prompts.append(Prompt(question, tuple(paragraph[:room]), tuple(rest), max(len(paragraph) - room, 0)))
    assert prefix is not None
    material = [prefix, *((p.context_T, p.question_T, p.question.answers) for p in prompts)]
    return Prompts(tuple(prefix), tuple(prompts), hashlib.sha256(repr(material).encode()).hexdigest())


def scored_prompts(config: Reading, tokenizer: Any, context: int, heed: Callable[[], None] = nothing) -> Prompts:
    """What an arm is scored on: a function of the configuration. UserError for more than memory holds."""
    check_number(config, config.eval_samples, "eval_samples")
    questions = read_questions(
        config, config.split, config.eval_samples, config.questions_per_paragraph, config.data_seed
    )
    return build_prompts(config, tokenizer, questions, worked_examples(config, questions), context, heed)


def training_prompts(
    config: FitConfig, tokenizer: Any, context: int, limit: int, heed: Callable[[], None] = nothing
) -> Prompts:
    """Prompts of training questions without worked examples. The scored paragraphs are not among them.

    UserError for more than memory holds.
    """
    check_number(config, config.eval_samples, "eval_samples")
    check_number(config, limit, "samples")
    split = "train" if not Path(config.dataset).is_file() else config.split
    scored = {
        q.same
        for q in read_questions(
            config, config.split, config.eval_samples, config.questions_per_paragraph, config.data_seed
        )
    }
    unscored = [
        q for q in read_questions(config, split, limit + 4 * len(scored), None, config.seed) if q.same not in scored
    ]
    if not unscored:
        raise UserError(f"--dataset: '{config.dataset}' has no training questions besides the scored; score fewer")
    plain = replace(config, examples=0)
    return build_prompts(plain, tokenizer, unscored[:limit], [], context, heed)


# ----------------------------------------------------------------------------------------------------------- counts
def tokens_of(prompts: Prompts) -> set[int]:
    """The token types that stand in prompts."""
    return set(prompts.prefix_T).union(*(p.asked_T for p in prompts.prompts))


def count_tokens(rows: Iterable[Sequence[int]], types: int) -> Tensor:
    """How often each token type stands in the rows: counts_V, float64."""
    flat = torch.tensor([token for row in rows for token in row], dtype=torch.int64)
    return torch.bincount(flat, minlength=types).double()


def training_counts(
    config: FitConfig, tokenizer: Any, types: int, context: int, heed: Callable[[], None] = nothing
) -> tuple[Tensor, dict[str, Any]]:
    """(counts_V over prompts and further text, what was counted). UserError for text that is not there."""
    source = f"--model: '{config.model}'"
    prompts = training_prompts(config, tokenizer, context, config.samples, heed)
    check_tokens(tokens_of(prompts), tokenizer, types, "training questions", source)
    counts_V = count_tokens((prompts.prefix_T + p.asked_T for p in prompts.prompts), types)
    tokens = int(counts_V.sum())
    about: dict[str, Any] = {"prompts": len(prompts.prompts), "prompt_tokens": tokens}
    if config.fit_text is not None and config.fit_text_share > 0:
        texts = _texts(config.fit_text)
        rows: list[list[int]] = []
        for start in range(0, len(texts), TOGETHER):
            heed()
            part = texts[start : start + TOGETHER]
            rows += tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
        if not any(rows):
            raise UserError(
                f"fit_text: '{config.fit_text}' has no token of text; give another file, {FIT_TEXT}, or null"
            )
        check_tokens((token for row in rows for token in row), tokenizer, types, f"text of {config.fit_text}", source)
        more_V = count_tokens(rows, types)
        share = config.fit_text_share / (1 - config.fit_text_share)
        tokens += int(more_V.sum())
        counts_V += more_V * (share * counts_V.sum() / more_V.sum())
    about |= {"positions": tokens, "types": int((counts_V > 0).sum())}
    return counts_V, about


def _texts(source: str) -> list[str]:
    """Documents: WordNet's training glosses, or those of a file."""
    if source == FIT_TEXT:
        from studycore.language import wordnet

        return wordnet.texts("train")
    if not Path(source).is_file():
        raise UserError(
            f"fit_text: '{source}' is no file; give a text file, by a path from where the command is called or the run began, {FIT_TEXT}, or null"
        )
    return read_documents(source, flag="fit_text")


def held_out_types(counts_V: Tensor, share: float, always_seen: int) -> Tensor:
    """mask_V of the types that no fit sees: by a hash of their number, so that each fit leaves out the same."""
    rank_V = torch.empty_like(counts_V, dtype=torch.int64)
    rank_V[torch.argsort(counts_V, descending=True, stable=True)] = torch.arange(len(counts_V))
    drawn_V = torch.tensor(
        [share_of(f"type {token}", life_sketches.SPLIT_BITS) < share for token in range(len(counts_V))]
    )
    return drawn_V & (rank_V >= always_seen)


def shuffled_contexts(prompts: Prompts) -> Prompts:
    """Every question with the paragraph of another: paragraphs are moved on by one in their order."""
    names = list(dict.fromkeys(p.question.paragraph for p in prompts.prompts))
    if len(names) < 2:
        raise UserError(
            "eval_samples: the questions are of one paragraph, and none is left to exchange it with; give more"
        )
    first = {p.question.paragraph: p.context_T for p in reversed(prompts.prompts)}
    following = dict(zip(names, names[1:] + names[:1], strict=True))
    moved = [replace(p, context_T=first[following[p.question.paragraph]]) for p in prompts.prompts]
    return replace(prompts, prompts=tuple(moved))


def without_contexts(prompts: Prompts) -> Prompts:
    """The questions alone."""
    return replace(prompts, prompts=tuple(replace(p, context_T=()) for p in prompts.prompts))


def fewer_tokens(prompts: Prompts, ratio: float, counts_V: Tensor) -> Prompts:
    """The paragraphs' bytes in whole tokens: 1/ratio of them, the rarest, in their order (a token's self-information under
    the unigram model of the training text). The question stays whole: without it nothing is asked.

    What a paragraph has left of its share, less than a token, the next one gets: so all together have as many bytes as codes
    of that ratio, and not up to a token less each.
    """
    chosen: dict[tuple[int, ...], tuple[int, ...]] = {}
    share = 0.0
    kept = []
    for p in prompts.prompts:
        if p.context_T not in chosen:
            share += len(p.context_T) / ratio
            n = int(share + 1e-9)
            share -= n
            rarest = sorted(range(len(p.context_T)), key=lambda i: (float(counts_V[p.context_T[i]]), i))[:n]
            chosen[p.context_T] = tuple(p.context_T[i] for i in sorted(rarest))
        kept.append(replace(p, context_T=chosen[p.context_T]))
    return replace(prompts, prompts=tuple(kept))
