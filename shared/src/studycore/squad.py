"""Scores of answers to reading questions, as SQuAD 1.1 defines them (Rajpurkar et al. 2016, evaluate-v1.1)."""

import re
import string
from collections import Counter
from collections.abc import Sequence


def normalize_answer(text: str) -> str:
    """Lower case; ASCII punctuation deleted; the words a, an, the removed; white space collapsed. In this order."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 when the prediction is one of the answers after normalising, else 0."""
    return float(any(normalize_answer(prediction) == normalize_answer(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The best F1 (0 to 1) over the answers, of the multisets of normalised words."""
    return max(_f1(normalize_answer(prediction).split(), normalize_answer(answer).split()) for answer in answers)


def _f1(predicted: list[str], expected: list[str]) -> float:
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected)) if common else 0.0
