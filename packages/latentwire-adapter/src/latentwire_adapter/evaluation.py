"""One harness for every arm: the same prompts, the same decoding, the same scores; what differs is which rows arrive.

Shapes: V token types, U of them in the prompts, T tokens, D dimensions.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentwire_adapter.config import UNCOMPRESSED, Reading
from latentwire_adapter.core_utils import log_diagnostics
from latentwire_adapter.data import (
    NO_ANSWER,
    Prompt,
    Prompts,
    fewer_tokens,
    scored_prompts,
    shuffled_contexts,
    tokens_of,
    without_contexts,
)
from latentwire_adapter.evaluation_files import PREDICTIONS, read_predictions
from latentwire_adapter.fitting import Fit
from latentwire_adapter.metrics.ledger import ledger
from latentwire_adapter.metrics.squad import exact_match, f1, normalize_answer
from latentwire_adapter.model import codecs
from latentwire_adapter.model.adapter import Adapter
from latentwire_adapter.model.codecs import Codec, Rows, Table
from latentwire_adapter.model.language_model import LanguageModel, load_language_model
from latentwire_adapter.model.reader import Reader, batches, text_of
from studycore.devices import clock
from studycore.files import write_json
from studycore.language.pretrained import check_tokens, vocabulary_of
from studycore.run import Run


@dataclass(frozen=True)
class Arm:
    """What is scored."""

    name: str
    prompts: Prompts
    rows: Rows | None
    """None: the model reads token ids."""
    seen_V: Tensor | None = None
    """Token types that the fits saw; None where nothing is fitted."""
    paragraph_alone: bool = False
    """Whether the question and the worked examples are the model's own rows, whatever `scope` says."""


# --------------------------------------------------------------------------------------------------- opening a run
def read(config: Reading, run: Run) -> tuple[LanguageModel, Prompts]:
    """The model and the scored prompts."""
    lm = load_language_model(config, run.device)
    prompts = scored_prompts(config, lm.tokenizer, lm.context, run.check_stop)
    check_known(tokens_of(prompts), lm, "scored questions", config)
    return lm, prompts


def check_known(tokens: Iterable[int], lm: LanguageModel, where: str, config: Reading) -> None:
    """UserError for a token that the model does not know."""
    check_tokens(tokens, lm.tokenizer, vocabulary_of(lm.model), where, f"--model: '{config.model}'")


def begin(run: Run, lm: LanguageModel, data: Mapping[str, str], **about: Any) -> None:
    """Opens the run's folder, which says by what model and data it was made."""
    run.begin(data={"model": lm.fingerprint, **data}, hub_commit=lm.commit, **about)


# ---------------------------------------------------------------------------------------------------------- answers
def reader_of(arm: Arm, lm: LanguageModel, config: Reading, raw: Rows) -> Reader:
    """The reader of the arm's prompts."""
    if arm.rows is None:
        return Reader(lm, arm.prompts.prefix_T, None)
    ids = token_types(arm, lm)
    arrived, sent = Table(ids, in_precision(lm, arm.rows)), Table(ids, in_precision(lm, raw))
    whole = config.scope == "prompt" and not arm.paragraph_alone
    return Reader(lm, arm.prompts.prefix_T, arrived, None if whole else sent)


def looked_up(arm: Arm, lm: LanguageModel) -> tuple[Arm, float]:
    """(the arm with the rows of its prompts' token types made once, seconds that it took)."""
    began = time.perf_counter()
    if arm.rows is None:
        return arm, 0.0
    return replace(arm, rows=Table(token_types(arm, lm), arm.rows)), time.perf_counter() - began


def token_types(arm: Arm, lm: LanguageModel) -> Tensor:
    """ids_U of the prompts, worked examples and all."""
    tokens = {*arm.prompts.prefix_T, *(token for prompt in arm.prompts.prompts for token in prompt.asked_T)}
    return torch.tensor(sorted(tokens), device=lm.device)


def in_precision(lm: LanguageModel, rows: Rows) -> Rows:
    """The rows in the model's precision: the one place where they are cast."""
    return lambda ids_U: rows(ids_U).to(lm.table_VD.dtype)


def error_by_type(lm: LanguageModel, rows: Rows, raw: Rows, ids_U: Tensor) -> tuple[Tensor, Tensor]:
    """(squared error_U, squared norm of the row_U) of token types."""
    sent_UD, arrived_UD = raw(ids_U), in_precision(lm, rows)(ids_U).float()
    return (arrived_UD - sent_UD).square().sum(1), sent_UD.square().sum(1)


Answer = tuple[str, float | None]
"""(text, seconds; None where another run made it)."""


def known_answers(arm: Arm, lm: LanguageModel, raw: Rows, folder: Path | None) -> dict[int, Answer]:
    """Of the run in `folder`, which scored `raw`: its answers, where the arm's rows are bit for bit the same; else none."""
    if folder is None or arm.rows is None:
        return {}
    ids = token_types(arm, lm)
    if not torch.equal(in_precision(lm, arm.rows)(ids), in_precision(lm, raw)(ids)):
        return {}
    rows = {row["id"]: row for row in read_predictions(folder)["questions"]}
    chosen = [rows.get(prompt.question.id) for prompt in arm.prompts.prompts]
    return {i: (row["prediction"], None) for i, row in enumerate(chosen) if row is not None}


def score(
    arm: Arm, lm: LanguageModel, config: Reading, raw: Rows, run: Run, same_rows: Path | None = None
) -> list[dict[str, Any]]:
    """Answers every question and writes predictions.json; the same in each process. A row a question, in their order.

    Batches are those of one process, dealt out to all: with two processes the scores are exactly the same. `same_rows`: a
    run of the same questions through the model's own rows, whose answers are taken where the arm's rows are these.
    """
    arm, seconds = looked_up(arm, lm)
    known = known_answers(arm, lm, raw, same_rows)
    work = [] if len(known) == len(arm.prompts.prompts) else list(batches(arm.prompts, config.eval_batch_size))
    reader = reader_of(arm, lm, config, raw) if work else None
    mine: dict[int, Answer] = {} if work else known
    for number in run.steps(len(work), loop="answers", unit="batch", updates=0):
        if run.ended():
            break
        if number % run.world == run.rank:
            began = time.perf_counter()
            assert reader is not None
            answers = reader.answer([arm.prompts.prompts[i] for i in work[number]], config.max_new_tokens)
            spent = (time.perf_counter() - began) / len(work[number])
            mine |= {i: (text_of(lm, tokens), spent) for i, tokens in zip(work[number], answers, strict=True)}
    all_answers = gathered(mine, run)
    if not work:
        run.say(f"{arm.name}: its rows are the model's own, bit for bit, so its answers are those of {same_rows}")
    errors = []
    for prompt in arm.prompts.prompts:
        run.check_stop()
        errors.append(reconstruction_of(arm, lm, raw, prompt))
    rows = [
        {**scored(prompt, all_answers[i][0]), "seconds": all_answers[i][1], **errors[i]}
        for i, prompt in enumerate(arm.prompts.prompts)
    ]
    if run.is_main and not run.dry:
        write_json(run.folder / PREDICTIONS, {"arm": arm.name, "decode_seconds": seconds, "questions": rows})
    return rows


def gathered(mine: Mapping[int, Answer], run: Run) -> dict[int, Answer]:
    """All processes' answers."""
    if run.world == 1:
        return dict(mine)
    from accelerate.utils import gather_object

    return dict(gather_object(list(mine.items())))


def scored(prompt: Prompt, text: str) -> dict[str, Any]:
    """One question's scores. What an example says for no answer counts as none."""
    prediction = "" if not prompt.question.answers and normalize_answer(text) == NO_ANSWER else text
    gold = prompt.question.answers
    return {
        "id": prompt.question.id, "paragraph": prompt.question.paragraph, "question": prompt.question.question,
        "answers": list(gold), "prediction": prediction, "em": exact_match(prediction, gold), "f1": f1(prediction, gold),
        "tokens": len(prompt.asked_T), "paragraph_tokens": len(prompt.context_T), "cut": prompt.cut,
    }  # fmt: skip


def reconstruction_of(arm: Arm, lm: LanguageModel, raw: Rows, prompt: Prompt) -> dict[str, Any]:
    """Of one question's paragraph: the squared error over the squared norm of its rows, and of the answer's tokens alone;
    whether the fits saw all of the answer's token types. Empty where nothing is reconstructed."""
    if arm.rows is None or arm.seen_V is None or not prompt.context_T:
        return {}
    ids_T = torch.tensor(prompt.context_T, device=lm.device)
    error_T, norm_T = error_by_type(lm, arm.rows, raw, ids_T)
    result: dict[str, Any] = {"error": float(error_T.sum() / norm_T.sum())}
    inside = answer_positions(lm, prompt)
    if inside:
        place = torch.tensor(inside, device=lm.device)
        result |= {
            "answer_error": float(error_T[place].sum() / norm_T[place].sum()),
            "answer_seen": bool(arm.seen_V.to(lm.device)[ids_T[place]].all()),
        }
    return result


def answer_positions(lm: LanguageModel, prompt: Prompt) -> list[int]:
    """Where the answer's tokens stand in the paragraph; empty when it is cut off, or none."""
    if not prompt.question.answers:
        return []
    answer = prompt.question.answer
    for text in (f" {answer}", answer):
        answer_tokens = tuple(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
        for start in range(len(prompt.context_T) - len(answer_tokens) + 1):
            if prompt.context_T[start : start + len(answer_tokens)] == answer_tokens:
                return list(range(start, start + len(answer_tokens)))
    return []


def summary(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Means over questions, EM and F1 from 0 to 100; no time where another run made the answers."""
    listed = list(rows)
    n = len(listed)
    seconds = [row["seconds"] for row in listed if row["seconds"] is not None]
    return {
        "f1": 100 * sum(row["f1"] for row in listed) / n, "em": 100 * sum(row["em"] for row in listed) / n,
        "eval_samples": n, "empty_rate": sum(not row["prediction"] for row in listed) / n,
        "cut_rate": sum(row["cut"] > 0 for row in listed) / n, **({"seconds_per_question": sum(seconds) / n} if seconds else {}),
        "paragraphs": len({row["paragraph"] for row in listed}), "tokens_per_question": sum(row["tokens"] for row in listed) / n,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- arms and results
def make_arm(name: str, lm: LanguageModel, prompts: Prompts, fit: Fit | None, adapter: Adapter | None) -> Arm:
    """The arm of that name."""
    table, raw = lm.table_VD, codecs.raw(lm.table_VD)
    if name in UNCOMPRESSED:
        chosen = {"question_only": without_contexts, "shuffled": shuffled_contexts}.get(name, lambda p: p)(prompts)
        return Arm(name, chosen, None if name == "ids" else raw)
    assert fit is not None and adapter is not None
    compressor, seen_V = fit.compressor, fit.seen_V
    if name == "fewer":
        ratio = compressor.input_dim / compressor.output_dim
        return Arm(name, fewer_tokens(prompts, ratio, fit.counts_V), raw)
    if name == "adapter_paragraph":
        return Arm(name, prompts, codecs.adapted(table, compressor, adapter), seen_V, paragraph_alone=True)
    rows = {
        "linear": lambda: codecs.linear(table, compressor), "nearest": lambda: codecs.nearest(table, compressor),
        "nearest_int4": lambda: codecs.nearest(table, compressor, 4),
        "adapter": lambda: codecs.adapted(table, compressor, adapter), "int8": lambda: codecs.adapted(table, compressor, adapter, 8),
        "int4": lambda: codecs.adapted(table, compressor, adapter, 4),
    }[name]()  # fmt: skip
    return Arm(name, prompts, rows, seen_V)


def snap_accuracy(arm: Arm, raw: Rows) -> dict[str, float]:
    """Share of the prompts' tokens, and of their types, that arrive as the model's own row, bit for bit."""
    assert arm.rows is not None
    flat = torch.tensor([token for prompt in arm.prompts.prompts for token in prompt.asked_T])
    ids_U, counts_U = flat.unique(return_counts=True)
    same_U = (arm.rows(ids_U) == raw(ids_U)).all(1).double().cpu()
    return {
        "snap_accuracy": float(same_U @ counts_U.double() / counts_U.sum()), "snap_accuracy_types": float(same_U.mean()),
    }  # fmt: skip


def log(run: Run, row: dict[str, Any], epoch: int) -> None:
    """A row of metrics.jsonl, and of --diagnostic-log in the original study's form."""
    timed = {**row, "epoch": epoch, "timestamp": time.time()}
    run.log(timed)
    target = getattr(run.options, "diagnostic_log", None)
    if target and run.is_main and not run.dry:
        log_diagnostics(target, run.step, epoch, {k: v for k, v in timed.items() if k not in ("epoch", "timestamp")})


def finish(
    run: Run, lm: LanguageModel, arm: Arm, rows: list[dict[str, Any]], fit: Fit | None, parameters: int, more: Mapping[str, Any],
    arrays: Mapping[str, Tensor] | None = None, whole: Prompts | None = None, epoch: int = 0,
) -> None:  # fmt: skip
    """The last row of the log, and the results; `whole`: the prompts before an arm took tokens away; `epoch`: passes that
    were made in training."""
    means = summary(rows)
    code = fit.compressor.output_dim if fit else 0
    kept = share_kept(arm, whole or arm.prompts)
    counted = ledger(arm.name, (lm.table_VD.shape[0], lm.table_VD.shape[1]), code, parameters, kept)
    times = seconds_per_1000(arm.rows, lm) if isinstance(arm.rows, Codec) else {}
    log(run, {"type": "full_eval", **{k: means[k] for k in ("f1", "em", "eval_samples")}}, epoch)
    run.say(f"{arm.name}: F1 {means['f1']:.1f}, EM {means['em']:.1f} on {means['eval_samples']} questions")
    run.results(
        {
            **means,
            **counted,
            **times,
            "dimensions": code or lm.table_VD.shape[1],
            "adapter_parameters": parameters,
            **more,
        },
        arrays,
    )


def share_kept(arm: Arm, whole: Prompts) -> float:
    """Tokens of the arm over those of the whole prompts: of the paragraphs in `fewer`, which takes from them alone."""

    def size(prompts: Prompts) -> int:
        return sum(len(p.context_T if arm.name == "fewer" else p.asked_T) for p in prompts.prompts)

    return size(arm.prompts) / max(size(whole), 1)


@torch.no_grad()
def seconds_per_1000(codec: Codec, lm: LanguageModel, repeats: int = 3, seconds: float = 0.2) -> dict[str, float]:
    """Seconds in which 1,000 token types are coded, and in which their rows are made: the quickest of `repeats` or as many
    as `seconds` hold, since other jobs run beside; after one that makes what is made once (such as the coded table)."""
    ids = torch.arange(min(1000, len(lm.table_VD)), device=lm.device)
    codec(ids)
    taken: dict[str, list[float]] = {"encode": [], "decode": []}
    until = clock(lm.device.type) + seconds
    while len(taken["encode"]) < repeats or clock(lm.device.type) < until:
        began = clock(lm.device.type)
        sent = codec.encode(ids)
        coded = clock(lm.device.type)
        codec.decode(sent)
        taken["encode"].append(coded - began)
        taken["decode"].append(clock(lm.device.type) - coded)
    return {f"{name}_seconds_per_1000_types": min(values) * 1000 / len(ids) for name, values in taken.items()}
