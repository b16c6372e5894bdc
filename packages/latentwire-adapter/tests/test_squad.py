"""The scorer on cases worked out by hand."""

import pytest

from latentwire_adapter.metrics.squad import batch_metrics, exact_match, f1, normalize_answer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The twentieth-century", "twentiethcentury"),  # punctuation is deleted, not replaced
        ("1,000", "1000"),
        ("U.S.", "us"),
        ("a.n.", ""),  # becomes the article "an": punctuation goes first
        ("\u201cthe\u201d cat", "\u201c \u201d cat"),  # curly quotes stay; the word between them goes
        ("10\u201320 \u00b0C", "10\u201320 \u00b0c"),
        ("theatre an the a", "theatre"),
        ("  A\tquick\n fox ", "quick fox"),
    ],
)
def test_normalisation(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answers", "em", "score"),
    [
        ("the Eiffel Tower", ["Eiffel Tower!"], 1, 1),
        ("tower", ["Eiffel Tower"], 0, 2 / 3),
        ("one one two", ["one two two"], 0, 2 / 3),  # multisets: one and two are each shared once, of 3 and 3
        ("in 1953", ["1953", "in the year 1953"], 0, 4 / 5),  # the best answer: 2 of 2 and 2 of 3
        ("blue", ["red"], 0, 0),
        ("", ["red"], 0, 0),
        ("the", ["a"], 1, 1),  # all answers normalise to nothing: then the empty one is right
        ("an", ["an the"], 1, 1),
        ("", ["an The", "cat"], 0, 0),  # an answer that normalises to nothing is dropped
        ("", [], 1, 1),  # v2.0: no answer
        ("something", [], 0, 0),
        ("a", [], 1, 1),
        ("", ["", "x"], 0, 0),  # v2.0 drops the empty answer where another is left
    ],
)
def test_scores(prediction, answers, em, score):
    assert exact_match(prediction, answers) == em
    assert f1(prediction, answers) == pytest.approx(score)


def test_batch_metrics_is_the_mean_of_the_best():
    assert batch_metrics(["Paris", "two cats"], ["paris", ["cats", "dogs"]]) == (0.5, pytest.approx((1 + 2 / 3) / 2))
    assert batch_metrics(["", "x"], ["", ""]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="1 for 2 references"):
        batch_metrics(["x"], ["x", "y"])
