"""Exact match and F1 as SQuAD's official scorers define them (Rajpurkar et al. 2016 and 2018, evaluate-v1.1 and v2.0)."""

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
    return max(
        _f1(normalize_answer(prediction).split(), normalize_answer(answer).split(), v2=not answers)
        for answer in _gold(answers)
    )


def _gold(answers: Sequence[str]) -> Sequence[str]:
    """v2.0 drops answers that normalise to nothing where others remain; with none left the empty one is right."""
    return [answer for answer in answers if normalize_answer(answer)] or [""]


def _f1(predicted: list[str], expected: list[str], v2: bool) -> float:
    if not predicted or not expected:
        # v2.0: right when both are empty. v1.1 has no empty answers, and gives 0.
        return float(v2 and predicted == expected)
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
    golds = [[] if gold == [""] else gold for gold in golds]
    n = len(predictions)
    pairs = list(zip(predictions, golds, strict=True))
    return sum(exact_match(*pair) for pair in pairs) / n, sum(f1(*pair) for pair in pairs) / n
