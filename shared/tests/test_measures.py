"""Measures on made-up tables: a planted truth is found, its opposite refuted, noise left open, and missing inputs said."""

import numpy as np
import pandas as pd
import pytest

from studycore.claims import Claim, as_stored, judge_all
from studycore.measures import (
    at_least,
    by_seed,
    correlation,
    geometric_mean,
    mean,
    paired_difference,
    paired_ratio,
    rows,
    share,
    spread,
)
from studycore.statistics import share_interval

SEEDS, EACH = 8, 6


def table(effect=0.0, seed=0, **columns):
    """Runs of arms "a" and "b", several of each seed. x is positive and, in arm a, larger by `effect`, which also ties x
    to y and makes `good` more likely."""
    random = np.random.default_rng(seed)
    runs = [(arm, s) for arm in "ab" for s in range(SEEDS) for _ in range(EACH)]
    of_seed = {s: random.normal() for s in range(SEEDS)}
    made = pd.DataFrame(
        {"run": [f"{i}" for i in range(len(runs))], "arm": [a for a, _ in runs], "seed": [s for _, s in runs]}
    )
    noise = random.normal(size=len(runs))
    made["y"] = random.normal(size=len(runs))
    made["x"] = 10 + made["seed"].map(of_seed) + noise + effect * (made["arm"] == "a")
    made["tied"] = effect * made["y"] + random.normal(size=len(runs))
    made["log"] = np.exp(0.2 * noise + effect * (made["arm"] == "a"))
    made["good"] = random.random(len(runs)) < 1 / (1 + np.exp(-effect))
    made["loose"] = random.normal(size=len(runs)) * np.exp(effect)
    return made.assign(**columns)


def verdict(measure, made, **threshold):
    claim = Claim("a", "", "", "", "", measure, **threshold)
    (found,) = judge_all([claim], made, [as_stored(claim)])
    return found


MEASURES = {
    "mean": (mean("x", "a"), 10.0),
    "share": (share("good"), 0.5),
    "geometric_mean": (geometric_mean("log", "a"), 1.0),
    "paired_difference": (paired_difference("x", "a", "b"), 0.0),
    "paired_ratio": (paired_ratio("log", "a", "b"), 1.0),
    "paired_ratio in percent": (paired_ratio("log", "a", "b", percent=True), 0.0),
    "spread": (spread("loose", "a"), 1.0),
    "correlation": (correlation("tied", "y", "a"), 0.0),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_planted_truth_is_supported_its_opposite_refuted_and_noise_left_open(name):
    """Of noise at the threshold each wrong verdict has a probability of 0.025: of 60 draws, 6 are 3 standard errors more."""
    measure, threshold = MEASURES[name]
    assert verdict(measure, table(3.0), above=threshold)["verdict"] == "supported"
    assert verdict(measure, table(3.0), below=threshold)["verdict"] == "refuted"
    assert verdict(measure, table(-3.0), above=threshold)["verdict"] == "refuted"
    assert verdict(measure, table(-3.0), below=threshold)["verdict"] == "supported"
    if name == "spread":  # a standard deviation of a few values is below the true one
        threshold = 0.951532861  # of 6 normal values: c4(6)
    noise = [verdict(measure, table(seed=seed), above=threshold)["verdict"] for seed in range(60)]
    assert noise.count("inconclusive") >= 60 - 2 * 6
    assert max(noise.count("supported"), noise.count("refuted")) <= 6


@pytest.mark.parametrize("name", MEASURES)
def test_missing_inputs_are_said(name):
    measure, threshold = MEASURES[name]
    full = table(3.0)
    metric = {"share": "good", "spread": "loose", "correlation": "tied"}.get(name.split()[0])
    metric = metric or ("x" if name in ("mean", "paired_difference") else "log")
    for made in (
        pd.DataFrame(columns=["run", "arm", "seed", "folder"]), full.drop(columns=metric), full.assign(**{metric: np.nan}),
        full[full["seed"] == 0].iloc[:1],
    ):  # fmt: skip
        found = verdict(measure, made, above=threshold)
        if name == "share" and len(made) == 1:
            assert found["verdict"] == "inconclusive"  # one unit has an exact interval
            continue
        assert (found["verdict"], found["measured"], found["n"]) == ("not run", None, 0), found
        assert found["why"].endswith(".")
    if "share" not in name:
        none = verdict(measure, full[full["arm"] == "b"], above=threshold)
        assert none["verdict"] == "not run"
        assert " a" in none["why"]


def test_figures_by_hand():
    made = pd.DataFrame(
        {"run": list("uvwxyz"), "arm": list("aaabbb"), "seed": [0, 0, 1, 0, 1, 1], "x": [1.0, 3.0, 4.0, 1.0, 1.0, 3.0]}
    )
    assert verdict(mean("x", "a"), made, above=0.0)["measured"] == 3.0  # of the seeds' means 2 and 4
    assert verdict(paired_difference("x", "a", "b"), made, above=0.0)["measured"] == 1.5  # of 2 - 1 and 4 - 2
    assert verdict(paired_ratio("x", "a", "b"), made, above=0.0)["measured"] == pytest.approx(2.0)
    percent = verdict(paired_ratio("x", "a", "b", percent=True), made, above=0.0)
    assert percent["measured"] == pytest.approx(100.0)
    assert verdict(geometric_mean("x", "b"), made, above=0.0)["measured"] == pytest.approx(3 ** (1 / 3))
    assert verdict(mean("x", 1, of="seed"), made, above=0.0)["verdict"] == "not run"
    infinite = verdict(mean("x", "a"), made.replace({"x": {1.0: np.inf}}), above=0.0)
    assert (infinite["verdict"], infinite["why"]) == (
        "not run",
        "x is infinite for 1 of 2 seeds of a, which have no mean.",
    )
    good = made.assign(good=[True, False, True, True, True, True])
    by_run, by_of_seed = (verdict(share("good", by=by), good, above=0.0) for by in ("run", "seed"))
    for found, passed, n in ((by_run, 5, 6), (by_of_seed, 1, 2)):  # a seed passes when all its runs do
        expected = share_interval(passed, n)
        assert (found["measured"], found["n"]) == (passed / n, n)
        assert found["interval95"] == [expected.low, expected.high]
    line = pd.DataFrame({"arm": "a", "seed": [s for s in range(3) for _ in range(4)], "x": [*range(4)] * 3})
    assert verdict(correlation("x", "y"), line.assign(y=-line["x"]), above=0.0)["measured"] == pytest.approx(-1)
    assert verdict(spread("x"), line, above=0.0)["measured"] == pytest.approx((5 / 3) ** 0.5)


def test_pairs_are_those_that_both_have():
    made = table(3.0)
    one_sided = made[(made["arm"] == "a") | (made["seed"] < 3)]
    assert verdict(paired_difference("x", "a", "b"), one_sided, above=0.0)["n"] == 3
    lost = verdict(paired_difference("x", "a", "b"), made[(made["arm"] == "a") | (made["seed"] < 1)], above=0.0)
    assert lost["why"] == "Needs 2 or more finished pairs by seed of a and b; there are 1."
    alike = paired_ratio("x", "a", "b", alike="that differ in nothing else")
    lost = verdict(alike, made[(made["arm"] == "a") | (made["seed"] < 1)], above=0.0)
    assert lost["why"] == "Needs 2 or more finished pairs of a and b that differ in nothing else; there are 1."
    assert (
        "geometric mean over pairs that differ in nothing else, Student's t" in verdict(alike, made, above=0.0)["why"]
    )
    assert alike.text == paired_ratio("x", "a", "b").text  # words alone: the measure is the same
    zero = made.assign(x=made["x"].where((made["arm"] == "a") | (made["seed"] > 1), 0.0))
    found = verdict(paired_ratio("x", "a", "b"), zero, above=1.0)
    assert found["n"] == SEEDS - 2
    assert "2 pairs without a positive value are left out." in found["why"]


@pytest.mark.parametrize("late", ["a", "b", "ab"])
def test_a_time_that_was_not_reached_is_a_bound(late):
    """The time counts as the run's length: of a treated run the ratio is then a lower bound, of a control an upper one."""
    measure = paired_ratio("log", "a", "b", censored="censored")
    slow = table(3.0)
    marked = [made.assign(censored=made["arm"].isin(list(late))) for made in (slow, table(-3.0))]
    above = [verdict(measure, made, above=1.0) for made in marked]
    below = [verdict(measure, made, below=1.0) for made in marked]
    expected = {"a": ("supported", "inconclusive"), "b": ("inconclusive", "refuted"), "ab": ("inconclusive",) * 2}[late]
    assert tuple(found["verdict"] for found in above) == expected
    mirrored = {"supported": "refuted", "refuted": "supported", "inconclusive": "inconclusive"}
    assert tuple(found["verdict"] for found in below) == tuple(mirrored[word] for word in expected)
    assert above[0]["bound"] == {"a": "at least", "b": "at most", "ab": "unknown"}[late]
    assert f"8 of 8 of {late[0]} did not reach it and are counted as their full length." in above[0]["why"]
    plain = verdict(measure, slow.assign(censored=False), above=1.0)
    assert (plain["bound"], plain["verdict"]) == (None, "supported")


def test_censored_runs_of_a_single_arm_make_a_lower_bound():
    measure = geometric_mean("log", "a", censored="censored")
    found = [verdict(measure, table(effect, censored=True), above=1.0) for effect in (3.0, -3.0)]
    assert [claim["verdict"] for claim in found] == ["supported", "inconclusive"]
    assert found[0]["bound"] == "at least"
    assert verdict(measure, table(-3.0, censored=False), above=1.0)["verdict"] == "refuted"


def test_a_correlation_needs_runs_that_differ():
    same = verdict(correlation("x", "y"), table(x=1.0), above=0.0)
    assert (same["verdict"], "all runs have the same x or y" in same["why"]) == ("not run", True)
    few = verdict(correlation("x", "y", least=13), table(), above=0.0)
    assert few["why"] == "Needs 2 or more values of seed with 13 or more runs each."


def test_a_condition_says_what_is_not_met():
    made = table()
    smallest = made["x"].min()
    assert at_least("x", smallest).unmet(made) == ""
    assert at_least("x", 50, "a").unmet(made).startswith("Needs runs of a with x 50 or more; the smallest is ")


def test_the_text_names_whatever_changes_the_figure():
    """claims.json keeps it, and another text is another measure."""
    texts = [
        mean("x").text, mean("x", "a").text, mean("x", "a", of="b").text, mean("y").text, share("x").text,
        share("x", by="seed").text, geometric_mean("x").text, geometric_mean("x", censored="c").text,
        paired_difference("x", "a", "b").text, paired_difference("x", "b", "a").text,
        paired_difference("x", "a", "b", by="pair").text, paired_difference("x", "a", "b", of="y").text,
        paired_ratio("x", "a", "b").text, paired_ratio("x", "a", "b", percent=True).text,
        paired_ratio("x", "a", "b", censored="c").text, spread("x").text, spread("x", within="y").text,
        correlation("x", "y").text, correlation("x", "y", least=5).text, correlation("x", "y", within="z").text,
        mean("x", True).text, mean("x", "True").text,
    ]  # fmt: skip
    assert len(set(texts)) == len(texts)


def test_rows_and_seeds():
    made = pd.DataFrame({"arm": ["a", "a", "b"], "seed": [0, 1, 0], "x": [1.0, np.nan, 2.0]})
    assert list(rows(made, "x")["x"]) == [1.0, 2.0]
    assert list(by_seed(table(), "x", "a")) == pytest.approx(
        list(table().query("arm == 'a'").groupby("seed")["x"].mean())
    )
