"""Measures on made-up tables: a planted truth is found, its opposite refuted, noise left open, and missing inputs said."""

import numpy as np
import pandas as pd
import pytest

from studycore.claims import Claim, NotRun, as_stored, judge_all
from studycore.measures import (
    at_least,
    by_seed,
    geometric_mean,
    mean,
    paired_difference,
    paired_ratio,
    rows,
    share,
)
from studycore.statistics import share_interval

SEEDS, EACH = 8, 6


def table(effect=0.0, seed=0, **columns):
    """Runs of arms "a" and "b", several of each seed. x is positive and, in arm a, larger by `effect`, which also
    makes `good` more likely."""
    random = np.random.default_rng(seed)
    runs = [(arm, s) for arm in "ab" for s in range(SEEDS) for _ in range(EACH)]
    of_seed = {s: random.normal() for s in range(SEEDS)}
    made = pd.DataFrame(
        {"run": [f"{i}" for i in range(len(runs))], "arm": [a for a, _ in runs], "seed": [s for _, s in runs]}
    )
    noise = random.normal(size=len(runs))
    made["y"] = random.normal(size=len(runs))
    made["x"] = 10 + made["seed"].map(of_seed) + noise + effect * (made["arm"] == "a")
    made["log"] = np.exp(0.2 * noise + effect * (made["arm"] == "a"))
    made["good"] = random.random(len(runs)) < 1 / (1 + np.exp(-effect))
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
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_planted_truth_is_supported_its_opposite_refuted_and_noise_left_open(name):
    """Of noise at the threshold each wrong verdict has a probability of 0.025: of 60 draws, 6 are 3 standard errors more."""
    measure, threshold = MEASURES[name]
    assert verdict(measure, table(3.0), above=threshold)["verdict"] == "supported"
    assert verdict(measure, table(3.0), below=threshold)["verdict"] == "refuted"
    assert verdict(measure, table(-3.0), above=threshold)["verdict"] == "refuted"
    assert verdict(measure, table(-3.0), below=threshold)["verdict"] == "supported"
    noise = [verdict(measure, table(seed=seed), above=threshold)["verdict"] for seed in range(60)]
    assert noise.count("inconclusive") >= 60 - 2 * 6
    assert max(noise.count("supported"), noise.count("refuted")) <= 6


@pytest.mark.parametrize("name", MEASURES)
def test_missing_inputs_are_said(name):
    measure, threshold = MEASURES[name]
    full = table(3.0)
    metric = "good" if name == "share" else "x" if name in ("mean", "paired_difference") else "log"
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


def test_a_condition_says_what_is_not_met():
    made = table()
    smallest = made["x"].min()
    assert at_least("x", smallest).unmet(made) == ""
    assert at_least("x", 50, "a").unmet(made).startswith("Needs runs of a with x 50 or more; the smallest is ")


def test_a_condition_is_not_left_to_the_runs_that_are_done_and_have_the_metric():
    one_has_it = table().assign(x=lambda t: t["x"].where(t["run"] == "0"))
    lacking = at_least("x", 5, "a").unmet(one_has_it)
    assert lacking == f"Needs x of all {SEEDS * EACH} runs of a; {SEEDS * EACH - 1} are done and lack it."
    for which in ("failed", "unfinished"):
        gone = lost(table(), **{which: [("s8", "a")]})
        with pytest.raises(NotRun, match="1 are missing"):
            at_least("x", 5, "a").unmet(gone)
        assert at_least("x", 5, "b").unmet(gone) == ""


def test_the_text_names_whatever_changes_the_figure():
    """claims.json keeps it, and another text is another measure."""
    texts = [
        mean("x").text, mean("x", "a").text, mean("x", "a", of="b").text, mean("y").text, share("x").text,
        share("x", by="seed").text, geometric_mean("x").text, geometric_mean("x", censored="c").text,
        paired_difference("x", "a", "b").text, paired_difference("x", "b", "a").text,
        paired_difference("x", "a", "b", by="pair").text, paired_difference("x", "a", "b", of="y").text,
        paired_ratio("x", "a", "b").text, paired_ratio("x", "a", "b", percent=True).text,
        paired_ratio("x", "a", "b", censored="c").text,
        mean("x", True).text, mean("x", "True").text,
    ]  # fmt: skip
    assert len(set(texts)) == len(texts)


def test_rows_and_seeds():
    made = pd.DataFrame({"arm": ["a", "a", "b"], "seed": [0, 1, 0], "x": [1.0, np.nan, 2.0]})
    assert list(rows(made, "x")["x"]) == [1.0, 2.0]
    assert list(by_seed(table(), "x", "a")) == pytest.approx(
        list(table().query("arm == 'a'").groupby("seed")["x"].mean())
    )


def lost(made, failed=(), unfinished=()):
    """The table of a sweep of which these runs, as (run, arm), failed or are not finished."""
    made = made.copy()
    made.attrs["missing"] = [
        {"run": run, "arm": arm, "seed": int(run[1:]), "failed": runs is failed}
        for runs in (failed, unfinished)
        for run, arm in runs
    ]
    return made


def runs_that_pass(n, arm="a", good=True):
    return pd.DataFrame({"run": [f"s{i}" for i in range(n)], "arm": arm, "seed": range(n), "good": good})


def test_runs_that_failed_have_not_passed():
    claim = Claim("a", "in every seed", "", "", "", share("good", "a"), above=0.45, of_every_unit=True)

    def judged(made):
        return judge_all([claim], made, [as_stored(claim)])[0]

    five = runs_that_pass(5)
    assert judged(five)["verdict"] == "supported"
    diverged = judged(lost(five, failed=[(f"s{i}", "a") for i in range(5, 10)]))
    assert (diverged["verdict"], diverged["measured"], diverged["n"]) == ("inconclusive", 0.5, 10)
    assert "5 of 10" in diverged["why"] and "not passed: s5, s6, s7, s8, s9." in diverged["why"]
    # Of runs that have not ended nothing is known: they neither refute nor let the others support.
    running = judged(lost(five, unfinished=[(f"s{i}", "a") for i in range(5, 10)]))
    assert (running["verdict"], running["measured"], running["n"]) == ("inconclusive", 1.0, 5)
    assert "s5, s6, s7, s8, s9" in running["why"]
    # One that finished and did not pass refutes, whatever the others would have shown.
    one_fails = runs_that_pass(6).assign(good=lambda t: t["seed"] > 0)
    assert judged(lost(one_fails, failed=[("s6", "a")]))["verdict"] == "refuted"
    # However many pass, the claim is of all.
    assert judged(lost(runs_that_pass(20), unfinished=[("s20", "a")]))["verdict"] == "inconclusive"
    # Those of another arm are none of its business.
    assert judged(lost(five, failed=[("s9", "b")]))["verdict"] == "supported"
    # Runs without a named arm are of one.
    nameless = five.assign(arm=five["run"])
    for failed, found in ([], "supported"), ([("s5", "")], "inconclusive"):
        assert verdict_of_all(lost(nameless, failed=failed)) == found


def verdict_of_all(made):
    claim = Claim("a", "in every seed", "", "", "", share("good"), above=0.45, of_every_unit=True)
    return judge_all([claim], made, [as_stored(claim)])[0]["verdict"]


def test_a_share_holds_whatever_runs_that_failed_would_have_shown():
    """They count as not passed, and the interval reaches as far as if all had."""
    three_lost = [("s7", "a"), ("s8", "a"), ("s9", "a")]
    found = verdict(share("good", "a"), lost(runs_that_pass(7), failed=three_lost), above=0.5)
    assert (found["verdict"], found["measured"], found["n"]) == ("inconclusive", 0.7, 10)
    assert found["interval95"] == [share_interval(7, 10).low, 1.0]
    none = verdict(share("good", "a"), lost(runs_that_pass(3, good=False), failed=three_lost), above=0.5)
    assert (none["verdict"], none["measured"]) == ("inconclusive", 0.0)  # three of six may have passed
    assert none["interval95"] == [0.0, share_interval(3, 6).high]
    by_name = runs_that_pass(6).assign(
        training=lambda t: t["run"]
    )  # which the record gives of runs that are done alone
    for which, n in (("failed", 12), ("unfinished", 6)):
        six_lost = lost(by_name, **{which: [(f"s{i}", "a") for i in range(6, 12)]})
        unknown = verdict(share("good", "a", by="training"), six_lost, above=0.5)
        assert (unknown["verdict"], unknown["n"], unknown["interval95"][0]) == (
            "inconclusive",
            n,
            share_interval(6, 12).low,
        )
    by_seed_ = verdict(share("good", "a", by="seed"), lost(runs_that_pass(7), failed=[("s6", "a")]), above=0.5)
    assert (by_seed_["measured"], by_seed_["n"]) == (6 / 7, 7)


@pytest.mark.parametrize("state", ["failed", "unfinished"])
@pytest.mark.parametrize("name", ["mean", "geometric_mean", "paired_difference", "paired_ratio"])
def test_means_and_pairs_are_not_left_to_the_runs_that_are_done(name, state):
    measure = MEASURES[name][0]
    of_another_arm = verdict(measure, lost(table(3.0), **{state: [("s8", "c")]}), above=0.5)
    assert of_another_arm["verdict"] == "supported" and "s8" not in of_another_arm["why"]
    made = table(3.0)
    made = made[(made["arm"] == "b") | (made["seed"] < 2)]
    whose = "a" if "mean" in name else "a and b"
    missing = [(f"s{s}", "a") for s in range(2, SEEDS)]
    found = verdict(measure, lost(made, **{state: missing}), above=0.5)
    assert (found["verdict"], found["measured"]) == ("not run", None)
    word = "failed" if state == "failed" else "not finished"
    assert f"runs of {whose}; 6 are missing ({word}: s2, s3, s4, s5, s6, s7)." in found["why"], found["why"]


def test_a_run_that_is_missing_counts_where_the_plan_puts_it():
    """Of another column than the arm: whatever the arm is called, and when none of its runs is there."""
    made = table(3.0).assign(kind=lambda t: t["arm"].map({"a": "fast", "b": "slow"}), x_of=lambda t: t["seed"])
    gone = {"run": "s3", "arm": "third", "seed": 3, "failed": True}
    for kind, found in (("fast", "not run"), ("other", "supported")):
        made.attrs["missing"] = [gone | {"kind": kind}]
        assert verdict(mean("x", "fast", of="kind"), made, above=0.5)["verdict"] == found
        assert verdict(paired_difference("x", "fast", "slow", of="kind"), made, above=0.5)["verdict"] == found
    # A run that has no partner by plan is in no pair.
    made.attrs["missing"] = [gone | {"kind": "fast", "seed": 99}]
    assert verdict(paired_difference("x", "fast", "slow", of="kind"), made, above=0.5)["verdict"] == "supported"
    all_gone = made[made["kind"] == "slow"].assign(good=True)
    all_gone.attrs["missing"] = [
        {"run": f"s{s}", "arm": "a", "seed": s, "failed": True, "kind": "fast"} for s in range(6)
    ]
    none = verdict(share("good", "fast", of="kind"), all_gone, above=0.5)
    assert (none["verdict"], none["measured"], none["n"]) == ("inconclusive", 0.0, 6)
    assert "0 of 6" in none["why"] and none["interval95"] == [0.0, 1.0]
    every = Claim("a", "", "", "", "", share("good", "fast", of="kind"), above=0.5, of_every_unit=True)
    assert judge_all([every], all_gone, [as_stored(every)])[0]["verdict"] == "inconclusive"
    all_gone.attrs["missing"] = [run | {"failed": False} for run in all_gone.attrs["missing"]]
    none = verdict(share("good", "fast", of="kind"), all_gone, above=0.5)
    assert none["verdict"] == "not run" and "Not finished: s0, s1, s2, s3, s4, s5." in none["why"]


def test_a_mean_counts_the_finished_runs_that_it_leaves_out():
    negative = table(3.0).assign(log=lambda t: t["log"].where(t["seed"] > 0, -1.0))
    assert f"Left out: {EACH} of {SEEDS * EACH} runs" in verdict(geometric_mean("log", "a"), negative, above=1.0)["why"]
    unmeasured = table(3.0).assign(x=lambda t: t["x"].where(t["seed"] > 0))
    assert (
        f"Left out: {EACH} of {SEEDS * EACH} runs without x." in verdict(mean("x", "a"), unmeasured, above=1.0)["why"]
    )


@pytest.mark.parametrize("kind", [paired_difference, paired_ratio])
def test_a_pair_that_is_done_and_lacks_the_metric_leaves_the_measure_not_run(kind):
    """Three of eight seeds have no value, of one side: those may be the ones that would have decided."""
    made = table(3.0)
    made["log"] = made["log"].where((made["arm"] == "b") | (made["seed"] > 2))
    found = verdict(kind("log", "a", "b"), made, above=0.0)
    assert (found["verdict"], found["measured"]) == ("not run", None)
    assert found["why"].startswith("Needs log of all 8 pairs by seed of a and b; 3 are done and lack it (seed 0, 1, 2)")
    # A metric that has no value in some runs by its definition says so.
    by_design = verdict(kind("log", "a", "b", may_lack="where nothing fires"), made, above=0.0)
    assert (by_design["verdict"], by_design["n"]) == ("supported", SEEDS - 3)
    assert "Left out: 3 of 8 pairs without log, where nothing fires." in by_design["why"]
    # One of a seed's runs has it: that is the seed's value.
    one_run = table(3.0)
    one_run.loc[0, "log"] = np.nan
    assert verdict(kind("log", "a", "b"), one_run, above=0.0)["n"] == SEEDS


def test_a_geometric_mean_counts_units_and_not_runs_and_knows_upper_bounds():
    made = pd.DataFrame(
        {"run": list("uvwxyz"), "arm": "a", "training": [0, 0, 0, 0, 1, 2], "x": [8.0] * 4 + [2.0, 4.0]}
    )
    found = verdict(geometric_mean("x", "a", by="training"), made, above=1.0)
    assert (found["n"], found["measured"]) == (3, pytest.approx(4.0))
    assert verdict(geometric_mean("x", "a", by="training"), made[:4], above=1.0)["verdict"] == "not run"
    capped = geometric_mean("x", "a", capped="late")
    for late, above, below in ((False, "supported", "refuted"), (True, "inconclusive", "inconclusive")):
        assert verdict(capped, made.assign(late=late), above=1.0)["verdict"] == above
        assert verdict(capped, made.assign(late=late), below=1.0)["verdict"] == below
    assert verdict(capped, made.assign(late=True), above=100.0)["verdict"] == "refuted"
    assert len({capped.text, geometric_mean("x", "a").text, geometric_mean("x", "a", by="training").text}) == 3


def test_times_on_a_grid_are_known_to_a_step():
    """Every time is seen late, by up to a step: that is no noise, and shifts a ratio of all pairs alike."""
    made = pd.DataFrame(
        {"arm": list("ab") * 6, "seed": [s for s in range(6) for _ in "ab"], "time": [160.0, 150.0] * 6}
    )
    on_grid = paired_ratio("time", "a", "b", grid="step")
    for step, found in ((1, "supported"), (10, "inconclusive"), (50, "inconclusive")):
        claim = verdict(on_grid, made.assign(step=step), above=1.0)
        assert (claim["verdict"], claim["measured"]) == (found, pytest.approx(160 / 150))
        assert claim["interval95"] == pytest.approx([(160 - step) / 150, 160 / (150 - step)])
    assert on_grid.text != paired_ratio("time", "a", "b").text
    # The interval of the seeds is added to that.
    spread = made.assign(time=[160.0, 100.0, 160.0, 200.0] * 3, step=10)
    low, high = verdict(on_grid, spread, above=1.0)["interval95"]
    ends = [verdict(paired_ratio("time", "a", "b"), spread.assign(time=spread["time"] - [x, y] * 6), above=1.0)["interval95"]
            for x, y in ((10, 0), (0, 10))]  # fmt: skip
    assert (low, high) == pytest.approx((ends[0][0], ends[1][1]))
    # A time that may be 0 leaves no end on its side.
    for times, bound in (([9.0, 5.0], "at least"), ([5.0, 90.0], "at most"), ([5.0, 5.0], "unknown")):
        early = verdict(on_grid, made.assign(time=times * 6, step=5), above=1.5)
        assert (early["bound"], early["verdict"]) == (bound, "refuted" if bound == "at most" else "inconclusive")


def test_a_ratio_of_times_within_runs_is_known_to_a_step():
    made = pd.DataFrame({"run": list("uvwxyz"), "arm": "a", "seed": range(6), "late": 400.0, "early": 50.0, "step": 50})
    plain, on_grid = (geometric_mean("late", "a", over="early", grid=grid) for grid in ("", "step"))
    assert verdict(plain, made, above=10.0)["verdict"] == "refuted" and plain.text != on_grid.text
    found = verdict(on_grid, made, above=10.0)  # 400 over an event at epoch 26, say, is 15
    assert (found["verdict"], found["bound"], found["measured"]) == ("inconclusive", "at least", pytest.approx(8.0))
    found = verdict(on_grid, made.assign(early=80.0), above=10.0)
    assert found["interval95"] == pytest.approx([350 / 80, 400 / 30]) and found["verdict"] == "inconclusive"
    assert verdict(on_grid, made.assign(early=100.0), above=10.0)["verdict"] == "refuted"


def test_a_measure_can_ask_for_more_units():
    measure = mean("x", "a").from_units(3)
    made = pd.DataFrame({"run": list("uvw"), "arm": "a", "seed": [0, 1, 2], "x": 1.0})
    assert verdict(measure, made, above=0.5)["verdict"] == "supported"
    two = verdict(measure, made[:2], above=0.5)
    assert (two["verdict"], two["measured"]) == ("not run", None)
    assert two["why"].startswith("Needs 3 or more units; there are 2.")
    assert measure.text == "mean(x, 'a'), from 3 units"


def test_a_measure_says_which_runs_it_reads_and_what_it_counts():
    made = pd.DataFrame({"run": list("uvw"), "arm": ["a", "b", "c"], "seed": 0, "x": 1.0, "size": [1, 2, 1]})
    read = {
        mean("x"): ("uvw", "seeds"), mean("x", "b"): ("v", "seeds"), share("x", 1, of="size", by="pair"): ("uw", "pairs"),
        geometric_mean("x", "a", by="training"): ("u", "trainings"), paired_ratio("x", "a", "c"): ("uw", "pairs"),
        paired_difference("x", "c", "b"): ("vw", "pairs"), mean("x", 1, of="other"): ("", "seeds"),
    }  # fmt: skip
    for measure, (runs, units) in read.items():
        assert ("".join(measure.read(made)["run"]), measure.units, measure.metric) == (runs, units, "x"), measure.text
        for changed in (measure.given(k=1), measure.from_units(2)):
            assert (changed.read, changed.units, changed.metric) == (measure.read, measure.units, "x")
