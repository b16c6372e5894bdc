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
from typing import Any

from studycore.claims import Statement, judge
from studycore.errors import UserError
from studycore.files import read_json

NAME = "studycore/wordnet-lm"
FOLDER = Path(__file__).parent / "models" / "wordnet-lm"

PERPLEXITY = Statement(
    id="lm_perplexity",
    statement="Perplexity of held-out glosses is at most two thirds that of a bigram model of the same text",
    source="requirement on the reference model",
    predicted="at most 0.667",
    unit="ratio",
    threshold=2 / 3,
    direction="below",
)

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

    end = tokenizer.eos_token_id
    rows = [[end, *ids, end] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    found: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    model.eval()
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        length = max(len(rows[index]) for index in part)
        ids = torch.full((len(part), length), end)
        for row, index in enumerate(part):
            ids[row, : len(rows[index])] = torch.tensor(rows[index])
        with torch.no_grad():
            logits = model(ids.to(model.device), use_cache=False).logits[:, :-1].float()
            nll = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), ids[:, 1:].flatten().to(model.device), reduction="none"
            )
        nll = nll.view(len(part), length - 1).double().cpu()
        for row, index in enumerate(part):
            tokens = len(rows[index]) - 1
            found[index] = (float(nll[row, :tokens].sum()), tokens)
    return found


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


def measure(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metrics, judged claim) of the model in a Hugging Face folder, on all held-out glosses, on a CPU."""
    import numpy as np
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from studycore.language import wordnet
    from studycore.statistics import bootstrap

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
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
    }
    rows = np.array([own, bigram, tokens]).T
    ratio = bootstrap(rows, lambda drawn: math.exp((drawn[:, 0].sum() - drawn[:, 1].sum()) / drawn[:, 2].sum()))
    return metrics, judge(PERPLEXITY, ratio, "Bootstrap over held-out documents.")


def compare(metrics: Mapping[str, Any], recorded: Mapping[str, Any], tolerance: float) -> list[str]:
    """Prints both side by side; sentences on perplexities further apart than the tolerance and counts not equal."""
    for name, value in metrics.items():
        print(f"  {name:<24}{_figure(value):<12} recorded {_figure(recorded.get(name))}")
    apart = []
    for name, value in recorded.items():
        got = metrics.get(name, math.nan)
        allowed = tolerance * abs(value) if name.startswith("perplexity") else 0
        if not abs(got - value) <= allowed:
            apart.append(f"{name} is {_figure(got)}, recorded {_figure(value)}")
    return apart


# ------------------------------------------------------------------------------------------------------- commands
def info() -> None:
    """`studycore reference-lm info`: where it is and what is recorded of it."""
    folder = Path(locate(NAME))
    print(f"{NAME} is in {folder}")
    files = sorted(folder.iterdir())
    print(f"{sum(path.stat().st_size for path in files) / 1e6:.1f} MB in all; {', '.join(path.name for path in files)}")
    for name, value in read_json(folder / "metrics.json")["metrics"].items():
        print(f"  {name:<24}{_figure(value)}")
    print("studycore reference-lm verify measures it again; train makes one again from the recipe")


def verify() -> None:
    """`studycore reference-lm verify`: measures the shipped model again. UserError when it is not as recorded."""
    from studycore.language import wordnet
    from studycore.report import claims_text

    folder = Path(locate(NAME))
    if wordnet.fingerprint() != read_json(folder / "data.json")["sha256"]["wordnet"]:
        raise UserError(f"WordNet: {wordnet.find()} is not the 3.0 that the figures were measured on; put that there")
    print("measuring on all held-out glosses; a minute or two", flush=True)
    metrics, claim = measure(folder)
    apart = compare(metrics, read_json(folder / "metrics.json")["metrics"], ROUNDING)
    print(claims_text([claim]))
    if apart:
        raise UserError(f"{NAME}: not as recorded: {'; '.join(apart)}; install studycore again, or report this")
    print("equal to what is recorded")


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
