"""Exact match and F1 as SQuAD's official scorer of v2.0 defines them (Rajpurkar et al. 2016 and 2018).

That of v1.1 gives the same but where an answer normalises to nothing.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence


def normalize_answer(text: str) -> str:
    """Lower case; ASCII punctuation deleted; the words a, an, the removed; white space collapsed. In this order."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 when the prediction is one of the answers after normalising, else 0; no answers stand for the empty one (v2.0)."""
    return float(any(normalize_answer(prediction) == normalize_answer(answer) for answer in _gold(answers)))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The best F1 (0 to 1) over the answers, of the multisets of normalised words; no answers: whether it is empty."""
    predicted = normalize_answer(prediction).split()
    return max(_f1(predicted, normalize_answer(answer).split()) for answer in _gold(answers))


def _gold(answers: Sequence[str]) -> Sequence[str]:
    """Answers that normalise to nothing are dropped; with none left the empty one is right."""
    return [answer for answer in answers if normalize_answer(answer)] or [""]


def _f1(predicted: list[str], expected: list[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected)) if common else 0.0


def batch_metrics(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> tuple[float, float]:
    """(exact match, F1), means over the questions, 0 to 1; a reference is one answer or several.

    ValueError for lists of different lengths, and for empty ones.
    """
    if len(predictions) != len(references) or not predictions:
        raise ValueError(
            f"predictions: {len(predictions)} for {len(references)} references; give as many, and at least one"
        )
    golds = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
    n = len(predictions)
    pairs = list(zip(predictions, golds, strict=True))
    return sum(exact_match(*pair) for pair in pairs) / n, sum(f1(*pair) for pair in pairs) / n
