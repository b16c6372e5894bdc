"""Claims: supported or refuted only when the whole interval lies on one side of a threshold fixed before."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from studycore.claims import (
    Claim,
    Condition,
    Measure,
    NotRun,
    Wording,
    as_stored,
    judge,
    judge_all,
    said,
    said_of,
    sentences,
)
from studycore.execution import judged
from studycore.statistics import Interval, mean_interval
from studycore.testing.fabricated import every_verdict, judged_as


def x_of(table):
    if "x" not in table.columns:
        raise NotRun("No finished run has x.")
    return mean_interval(list(table["x"])), f"{len(table)} runs."


MEAN = Measure("mean(x)", x_of)
CLAIM = Claim("a", "it is larger", "somebody", "about 2", "bits", MEAN, above=1.0)
ABOVE = as_stored(CLAIM) | {"registered": True}
BELOW = as_stored(Claim("b", "it is smaller", "somebody", "about 0", "bits", MEAN, below=1.0)) | {"registered": True}
TABLE = pd.DataFrame({"x": [1.9, 2.0, 2.1]})


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
        "threshold": 1.0, "direction": "above", "measure": "mean(x)", "registered": True, "measured": 1.5, "interval95": [1.2, 1.8], "n": 7,
        "bound": None, "verdict": "supported",
        "why": "supported: the whole interval lies above 1. seven seeds",
    }  # fmt: skip


def test_a_claim_has_one_threshold():
    for given in ({}, {"above": 1.0, "below": 2.0}):
        with pytest.raises(AssertionError):
            Claim("a", "", "", "", "", MEAN, **given)


def test_a_bound_speaks_for_one_side_alone():
    """A lower bound shows that the quantity is large and never that it is small; an upper bound the other way round."""

    def found(low, high, **bound):
        interval = Interval((low + high) / 2, low, high, 4, **bound)
        return [judge(claim, interval, "")["verdict"] for claim in (ABOVE, BELOW)]

    nothing = ["inconclusive", "inconclusive"]
    assert found(2.0, 3.0, at_least=True) == ["supported", "refuted"]
    assert found(2.0, 3.0, at_most=True) == nothing
    assert found(0.2, 0.5, at_least=True) == nothing
    assert found(0.2, 0.5, at_most=True) == ["refuted", "supported"]
    for low, high in ((2.0, 3.0), (0.2, 0.5)):
        assert found(low, high, at_least=True, at_most=True) == nothing
    bounds = [Interval(2, 1, 3, 4, *flags) for flags in ((True, False), (False, True), (True, True))]
    assert [judge(ABOVE, bound, "")["bound"] for bound in bounds] == ["at least", "at most", "unknown"]


def test_a_share_of_every_unit_is_refuted_by_one():
    facts = ABOVE | {"threshold": 0.5, "of_every_unit": True}
    assert judge(facts, Interval(1.0, 0.9, 1.0, 40), "")["verdict"] == "supported"
    assert judge(facts, Interval(1.0, 0.4, 1.0, 3), "")["verdict"] == "inconclusive"
    refuted = judge(facts, Interval(0.99, 0.94, 0.999, 100), "")
    assert (refuted["verdict"], refuted["why"]) == (
        "refuted",
        "refuted: the claim is of all 100, and a single one that fails refutes it.",
    )


def test_a_share_of_every_unit_is_left_open_by_one_that_did_not_finish():
    """A disk that was full says nothing of what the run would have shown, however many others pass."""
    facts = ABOVE | {"threshold": 0.45, "of_every_unit": True}
    for passed, n in ((5, 6), (39, 40)):
        found = judge(facts, Interval(passed / n, passed / n - 0.4, 1.0, n, unknown=1), "")
        assert found["verdict"] == "inconclusive"
    assert found["why"] == "inconclusive: the claim is of all, and 1 did not finish, which shows neither."
    assert judge(facts, Interval(4 / 6, 0.2, 0.99, 6, unknown=1), "")["verdict"] == "refuted"


def verdicts(claims, table, registered):
    judged = judge_all(claims, table, registered)
    json.dumps(judged, allow_nan=False)
    return {claim["id"]: claim for claim in judged}


def test_the_registered_threshold_wins_over_the_codes():
    stored = as_stored(CLAIM)
    for threshold, verdict in ((1.0, "supported"), (3.0, "refuted"), (2.0, "inconclusive")):
        found = verdicts([CLAIM], TABLE, [stored | {"threshold": threshold, "statement": "as it was"}])["a"]
        assert (found["threshold"], found["verdict"], found["registered"]) == (threshold, verdict, True)
        assert found["statement"] == "as it was"
    found = verdicts([CLAIM], TABLE, [stored | {"direction": "below", "threshold": 3.0}])["a"]
    assert found["verdict"] == "supported"
    assert found["why"].startswith("supported: the whole interval lies below 3. 3 runs.")
    assert found["why"].endswith("Judged by the threshold that was registered; in this version it is 1.")


def test_a_claim_that_was_not_registered_is_marked():
    found = verdicts([CLAIM], TABLE, [])["a"]
    assert (found["registered"], found["verdict"], found["threshold"]) == (False, "supported", 1.0)


def test_a_claim_that_is_measured_otherwise_is_not_run():
    found = verdicts([CLAIM], TABLE, [as_stored(CLAIM) | {"measure": "median(x)"}])["a"]
    assert (found["verdict"], found["measured"], found["registered"]) == ("not run", None, True)
    assert found["why"] == ("When the run started it was to be measured as median(x); this version measures otherwise.")


def test_a_constant_that_was_changed_after_the_run_is_another_measure():
    """The columns of the table are made by it, so that nothing else would show."""
    stored = as_stored(dataclasses.replace(CLAIM, measure=MEAN.given(STABLE=0.99, levels=("a", "b"))))
    assert stored["measure"] == "mean(x), given STABLE 0.99, levels ('a', 'b')"
    for stable, verdict in ((0.99, "supported"), (0.0, "not run")):
        now = dataclasses.replace(CLAIM, measure=MEAN.given(STABLE=stable, levels=("a", "b")))
        found = verdicts([now], TABLE, [stored])["a"]
        assert (found["verdict"], found["registered"]) == (verdict, True)
    assert "STABLE 0.99" in found["why"]


def test_a_claim_whose_precondition_is_another_is_not_run():
    """The condition is part of what was registered, as the measure is."""
    stored = as_stored(dataclasses.replace(CLAIM, when=Condition("of 9 runs", lambda table: "")))
    found = verdicts([CLAIM], TABLE, [stored])["a"]
    assert (found["verdict"], found["measured"]) == ("not run", None)
    assert "of 9 runs" in found["why"]


def test_a_claim_that_the_code_has_lost_is_not_run():
    found = verdicts([], TABLE, [as_stored(CLAIM)])["a"]
    assert (found["verdict"], found["measured"], found["n"], found["registered"]) == ("not run", None, 0, True)
    assert found["why"] == "This version no longer has the claim; the version that made the run judges it."


def test_an_unmet_precondition_is_said():
    claim = dataclasses.replace(
        CLAIM, when=Condition("of 9 runs", lambda table: "" if len(table) >= 9 else "Needs 9 runs.")
    )
    found = verdicts([claim], TABLE, [as_stored(claim)])["a"]
    assert (found["verdict"], found["measured"], found["why"]) == ("not run", None, "Needs 9 runs.")
    assert verdicts([claim], pd.concat([TABLE] * 3), [as_stored(claim)])["a"]["verdict"] == "supported"


def test_a_condition_that_does_not_hold_names_a_command_only_where_the_claim_does():
    """What runs are like, the study's own command would find again."""
    claim = dataclasses.replace(CLAIM, when=Condition("never", lambda table: "Noise passes too."))
    for decided_by, command in (("", None), (None, None), ("all --config large", "toy all --config large")):
        asked = dataclasses.replace(claim, decided_by=decided_by)
        (judged,) = judge_all([asked], TABLE, [as_stored(claim)], lambda claim: f"toy {claim.decided_by}")
        assert (judged["verdict"], judged["why"], judged.get("command")) == ("not run", "Noise passes too.", command)


def test_without_inputs_there_is_no_number():
    claim = verdicts([CLAIM], pd.DataFrame({"y": [1.0]}), [as_stored(CLAIM)])["a"]
    assert (claim["measured"], claim["interval95"], claim["n"], claim["bound"], claim["verdict"], claim["why"]) == (
        None, None, 0, None, "not run", "No finished run has x.",
    )  # fmt: skip
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


def test_what_is_not_run_carries_the_command_that_would_run_it():
    lacking = pd.DataFrame({"y": [1.0]})
    known = judge_all([CLAIM], lacking, [as_stored(CLAIM)], lambda claim: f"toy {claim.id}")
    assert known[0]["command"] == "toy a"
    assert judge_all([CLAIM], TABLE, [as_stored(CLAIM)], lambda claim: "toy")[0].get("command") is None
    otherwise = judge_all([CLAIM], TABLE, [as_stored(CLAIM) | {"measure": "median(x)"}], lambda claim: "toy")
    assert otherwise[0]["command"] == "toy"


@pytest.mark.parametrize(
    ("argv", "missing", "decided_by", "command"),
    [
        ("sweep --config quick", {}, "", "toy sweep --config full"), ("sweep --config quick", {}, None, ""),
        ("sweep --config quick", {}, "sweep --config long", "toy sweep --config long"),
        ("train --config a --seeds 3", {}, "train --config a --seeds 3", ""),
        ("sweep --config=full.yaml --output-dir x", {}, "", ""), ("train", {}, "", "toy sweep --config full"),
        ("sweep --config full --steps 3", {}, "", "toy sweep --config full"), ("sweep", {"a": "failed"}, "", "toy resume here"),
    ],
)  # fmt: skip
def test_the_command_is_the_studys_or_the_claims_and_never_the_runs_own(
    argv, missing, decided_by, command, monkeypatch
):
    claim = dataclasses.replace(CLAIM, decided_by=decided_by)
    monkeypatch.setattr("studycore.execution.load", lambda name: lambda verb, config: [claim])
    study = SimpleNamespace(name="toy", claims="x:y", decided_by="sweep --config full")
    manifest = {"argv": ["toy", *argv.split()]}
    record = SimpleNamespace(
        manifest=manifest, missing=missing, folder="here", verb=argv.split()[0], config=None,
        table=pd.DataFrame({"y": [1.0]}), registered=[as_stored(claim)], unregistered="",
    )  # fmt: skip
    assert judged(study, record)[0].get("command", "") == command


def test_an_answer_says_a_claim_by_its_verdict_and_nothing_of_what_is_not_asked():
    wording = Wording("it helps {at}{x:.1f} times", "it harms", "it stays open", "it was not run")
    assert [said(claims, "a", wording) for claims in every_verdict("a")] == [
        "it helps 2.5 times", "it harms", "it stays open", "it was not run",
    ]  # fmt: skip
    assert said([judged_as("a", "supported", bound="at least")], "a", wording) == "it helps at least 2.5 times"
    assert said([judged_as("b", "supported")], "a", wording) == ""
    added = [{**claims[0], "registered": False} for claims in every_verdict("a")]
    assert [said([claim], "a", wording) for claim in added] == [
        "it helps 2.5 times (exploratory)", "it harms (exploratory)", "it stays open (exploratory)", "it was not run",
    ]  # fmt: skip
    share = Wording("in {k} of {n}", "", "", "")
    assert said([{**judged_as("a", "refuted"), "registered": False}], "a", share) == ""
    assert said([judged_as("a", "supported", 0.6)], "a", share) == "in 3 of 5"
    assert sentences(["", "one thing", "another"], [""], ["a third"]) == "One thing; another. A third."
    several = [judged_as("a", "supported"), judged_as("b", "refuted"), judged_as("c", "supported")]
    wording = Wording("{which} hold", "{which} fail", "{which} are open", "{which} are not run")
    assert said_of(several, {"a": "add", "b": "divide", "c": "subtract", "d": "none"}, wording) == [
        "add and subtract hold", "divide fail",
    ]  # fmt: skip
    several[2]["registered"] = False
    assert said_of(several, {"a": "add", "c": "subtract"}, wording) == ["add and subtract (exploratory) hold"]
