"""Claims: supported or refuted only when the whole interval lies on one side of a threshold fixed before."""

import numpy as np
import pytest

from studycore.claims import Statement, judge, not_run
from studycore.statistics import Interval, mean_interval

ABOVE = Statement("a", "it is larger", "somebody", "about 2", "bits", 1.0, "above")
BELOW = Statement("b", "it is smaller", "somebody", "about 0", "bits", 1.0, "below")


@pytest.mark.parametrize(
    ("low", "high", "above"),
    [
        (1.1, 2.0, "supported"), (0.0, 0.9, "refuted"), (0.9, 1.1, "inconclusive"),
        (1.0, 2.0, "inconclusive"), (0.0, 1.0, "inconclusive"), (1.0, 1.0, "inconclusive"),
    ],
)  # fmt: skip
def test_verdicts(low, high, above):
    mirrored = {"supported": "refuted", "refuted": "supported", "inconclusive": "inconclusive"}
    interval = Interval((low + high) / 2, low, high, 7)
    assert judge(ABOVE, interval, "")["verdict"] == above
    assert judge(BELOW, interval, "")["verdict"] == mirrored[above]


def test_a_claim_holds_what_the_contract_names():
    claim = judge(ABOVE, Interval(1.5, 1.2, 1.8, 7), "seven seeds")
    assert claim == {
        "id": "a", "statement": "it is larger", "source": "somebody", "predicted": "about 2", "unit": "bits",
        "threshold": 1.0, "direction": "above", "measured": 1.5, "interval95": [1.2, 1.8], "n": 7,
        "verdict": "supported", "why": "supported: supported if the interval lies above 1. seven seeds",
    }  # fmt: skip


def test_without_inputs_there_is_no_number():
    claim = not_run(ABOVE, "no seeds")
    assert (claim["measured"], claim["interval95"], claim["n"], claim["verdict"], claim["why"]) == (
        None,
        None,
        0,
        "not run",
        "no seeds",
    )
    assert set(claim) == set(judge(ABOVE, Interval(1.5, 1.2, 1.8, 7), ""))


@pytest.mark.parametrize(
    ("mean", "verdict", "least", "most"),
    [(3.0, "supported", 0.95, 1), (-1.0, "refuted", 0.95, 1), (1.0, "supported", 0, 0.045), (1.0, "refuted", 0, 0.045)],
)
def test_planted_truths_are_found_and_noise_is_not(mean, verdict, least, most):
    """At the threshold each wrong verdict has probability 0.025; of 600 draws, 0.045 is 3 standard errors above."""
    random = np.random.default_rng(0)
    found = [judge(ABOVE, mean_interval(random.normal(mean, 1.0, 8)), "")["verdict"] for _ in range(600)]
    assert least <= found.count(verdict) / 600 <= most
