"""Answer scoring against cases worked out by hand from the definition of SQuAD 1.1."""

import pytest

from studycore.squad import exact_match, f1, normalize_answer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat.", "cat"),
        ("twentieth-century", "twentiethcentury"),
        ("1,000", "1000"),
        ("U.S.", "us"),
        ("a.n.", ""),
        ("“quoted”", "“quoted”"),
        ("another", "another"),
        ("An apple a day", "apple day"),
    ],
)
def test_normalising(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answers", "score", "exact"),
    [
        ("the cat", ["cat"], 1.0, 1.0),
        ("black cat", ["cat"], 2 / 3, 0.0),
        ("cat cat", ["cat"], 2 / 3, 0.0),
        ("cat cat dog", ["cat cat"], 4 / 5, 0.0),
        ("dog", ["cat", "dog"], 1.0, 1.0),
        ("", ["cat"], 0.0, 0.0),
        ("the", ["a"], 0.0, 1.0),
    ],
)
def test_scores(prediction, answers, score, exact):
    assert f1(prediction, answers) == pytest.approx(score)
    assert exact_match(prediction, answers) == exact
