"""The language model that comes along, `studycore/wordnet-lm`: where it is, and what is measured of it.

    from studycore.language.reference_lm import locate
    model = AutoModelForCausalLM.from_pretrained(locate("studycore/wordnet-lm"))

training.py made it.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from studycore.claims import Claim, Measure, NotRun, judge_all
from studycore.errors import UserError
from studycore.files import write_json
from studycore.language import wordnet
from studycore.record import read_arrays
from studycore.statistics import Interval, ratio_of_sums

if TYPE_CHECKING:
    from pandas import DataFrame

NAME = "studycore/wordnet-lm"
FOLDER = Path(__file__).parent / "models" / "wordnet-lm"

ROUNDING = 1e-4
"""Relative difference of a perplexity when the same model is measured on another machine."""
RETRAINED = 0.05
"""The same when the same recipe ran on another device: other rounding from the first step on, so another model."""


def locate(name: str) -> str:
    """What `from_pretrained` takes for a model's name: the packaged folder for `studycore/wordnet-lm`, else the name.

    UserError when this installation lacks the folder.
    """
    if name != NAME:
        return name
    if not (FOLDER / "model.safetensors").is_file():
        raise UserError(f"{NAME}: {FOLDER} holds no model.safetensors; install studycore again")
    return str(FOLDER)


# ------------------------------------------------------------------------------------------------- what is measured
def document_nll(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[tuple[float, int]]:
    """(summed negative log-likelihood in nats, tokens) of each text with the end-of-text token after it.

    Each text stands alone after an end-of-text token; float32; nothing is cut off.
    """
    import torch

    from studycore.models import evaluating

    end = tokenizer.eos_token_id
    rows = [[end, *ids, end] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    sums: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        length = max(len(rows[index]) for index in part)
        ids = torch.full((len(part), length), end)
        for row, index in enumerate(part):
            ids[row, : len(rows[index])] = torch.tensor(rows[index])
        with evaluating(model) as device:
            logits = model(ids.to(device), use_cache=False).logits[:, :-1].float()
            nll = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), ids[:, 1:].flatten().to(device), reduction="none"
            )
        nll = nll.view(len(part), length - 1).double().cpu()
        for row, index in enumerate(part):
            tokens = len(rows[index]) - 1
            sums[index] = (float(nll[row, :tokens].sum()), tokens)
    return sums


def perplexity(nll: Sequence[tuple[float, int]]) -> float:
    """exp of the mean over all tokens, from what `document_nll` gives."""
    return math.exp(sum(total for total, _ in nll) / sum(tokens for _, tokens in nll))


def ngram_nll(tokenizer: Any, training: Sequence[str], texts: Sequence[str]) -> tuple[list[float], list[float]]:
    """Summed nll of each text under a unigram model (add one) and an interpolated Kneser-Ney bigram model (discount 0.75).

    Both of the same tokens as the language model: end-of-text before each text as context, after it as a target.
    Kneser and Ney (1995); Chen and Goodman (1999), section 2.7, with the unigram back-off smoothed by adding one.
    """
    end, vocabulary, discount = tokenizer.eos_token_id, len(tokenizer), 0.75

    def tokens_of(given: Sequence[str]) -> list[list[int]]:
        return [[end, *ids, end] for ids in tokenizer(list(given), add_special_tokens=False)["input_ids"]]

    unigrams: Counter[int] = Counter()
    bigrams: Counter[tuple[int, int]] = Counter()
    for row in tokens_of(training):
        unigrams.update(row[1:])
        bigrams.update(pairwise(row))
    contexts: Counter[int] = Counter()
    followers: defaultdict[int, int] = defaultdict(int)
    preceders: defaultdict[int, int] = defaultdict(int)
    for (first, second), count in bigrams.items():
        contexts[first] += count
        followers[first] += 1
        preceders[second] += 1
    total, pairs = sum(unigrams.values()), len(bigrams)

    def bigram(first: int, second: int) -> float:
        continuation = (preceders.get(second, 0) + 1) / (pairs + vocabulary)
        if first not in contexts:
            return continuation
        kept = max(bigrams.get((first, second), 0) - discount, 0) / contexts[first]
        return kept + discount * followers[first] / contexts[first] * continuation

    rows = tokens_of(texts)
    by_unigram = [-sum(math.log((unigrams[t] + 1) / (total + vocabulary)) for t in row[1:]) for row in rows]
    by_bigram = [-sum(math.log(bigram(a, b)) for a, b in pairwise(row)) for row in rows]
    return by_unigram, by_bigram


def measure(folder: str | Path) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """(metrics, [D, 3]) of the model in a Hugging Face folder, on all D held-out glosses, on a CPU.

    Of each gloss: its negative log-likelihood (nats) under the model and under the bigram model, and its tokens.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from studycore.models import count_parameters

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held_out = wordnet.texts("validation")
    own, tokens = zip(*document_nll(model, tokenizer, held_out), strict=True)
    unigram, bigram = ngram_nll(tokenizer, wordnet.texts("train"), held_out)
    words = [len(text.split()) + 1 for text in held_out]
    metrics = {
        "perplexity": perplexity(list(zip(own, tokens, strict=True))),
        "perplexity_unigram": perplexity(list(zip(unigram, tokens, strict=True))),
        "perplexity_bigram": perplexity(list(zip(bigram, tokens, strict=True))),
        "perplexity_per_word": perplexity(list(zip(own, words, strict=True))),
        "validation_documents": len(tokens),
        "validation_tokens": sum(tokens),
        "parameters": count_parameters(model),
        "vocabulary": len(tokenizer),
    }
    return metrics, np.array([own, bigram, tokens], dtype=np.float64).T


# ------------------------------------------------------------------------------------------------------- the claim
def _perplexity_ratio(table: "DataFrame") -> tuple[Interval, str]:
    """Of the one model in the table: its perplexity over the bigram model's."""
    if "documents" not in table.columns or len(table) != 1:
        raise NotRun(f"Needs one model that was measured on the held-out glosses; there are {len(table)}.")
    (documents,) = table["documents"]
    own, bigram, tokens = documents.T
    return ratio_of_sums(own - bigram, tokens).exponential(), "Bootstrap over held-out documents."


CLAIMS = (
    Claim(
        id="lm_perplexity",
        statement="Perplexity of held-out glosses is at most two thirds that of a bigram model of the same text",
        source="requirement on the reference model",
        predicted="at most 0.667",
        unit="ratio",
        measure=Measure(
            "perplexity_ratio(model / bigram model), bootstrap over held-out documents", _perplexity_ratio, "documents"
        ),
        below=2 / 3,
    ),
)


def claims(verb: str, config: Any) -> Sequence[Claim]:
    """What a training is judged by."""
    return CLAIMS


def columns(folder: Path, config: Any) -> dict[str, Any]:
    """What the claim reads of a finished training: `measure`'s figures of each held-out gloss."""
    return {"documents": read_arrays(folder)["documents"]}


def judge(documents: NDArray[np.float64], registered: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The claims on one model, from what `measure` gives of its documents."""
    import pandas as pd

    return judge_all(CLAIMS, pd.DataFrame([{"documents": documents}]), registered)


def record(folder: Path, registered: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """`measure` of the model in `folder`, written to metrics.json beside it with the verdicts on the claims."""
    metrics, documents = measure(folder)
    write_json(folder / "metrics.json", {"metrics": metrics, "claims": judge(documents, registered)})
    return metrics, documents


def compare(metrics: Mapping[str, Any], recorded: Mapping[str, Any], tolerance: float) -> list[str]:
    """Prints both side by side; sentences on perplexities further apart than the tolerance and counts not equal."""
    for name, value in metrics.items():
        print(f"  {name:<24}{figure(value):<12} recorded {figure(recorded.get(name))}")
    apart = []
    for name, value in recorded.items():
        got = metrics.get(name, math.nan)
        allowed = tolerance * abs(value) if name.startswith("perplexity") else 0
        if not abs(got - value) <= allowed:
            apart.append(f"{name} is {figure(got)}, recorded {figure(value)}")
    return apart


def figure(value: Any) -> str:
    """A metric as a terminal shows it."""
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
