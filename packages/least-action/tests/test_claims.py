"""Claims: every one of every shipped configuration can be supported and refuted, noise decides none, and what is missing or
whose precondition does not hold is not run. The runs are fabricated, within the budgets and seeds that the files give."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from least_action import claims as claims_module, events
from least_action.claims import CLAIMS, claims
from least_action.cli import STUDY
from least_action.config import SweepConfig, TrainerConfig
from least_action.plan import plan, sweep_of_seeds
from least_action.report import sweep_answer
from studycore.claims import as_stored, judge_all
from studycore.configuration import check_types, read_yaml
from studycore.files import read_text
from studycore.record import read_record
from studycore.report import claims_text
from studycore.study import load
from studycore.testing.fabricated import Outcome, every_verdict, fabricate, judged_as

SWEEPS = (
    "quick", "full", "operations", "routing", "recipes", "atlas", "transformer_sweep", "new_year_validation_sweep",
)  # fmt: skip
EXPLORE = ("routing", "atlas", "transformer_sweep", "new_year_validation_sweep")
"""A grid of regularisers, a phase diagram, and the original study's grids of one seed: tables and figures, no claims."""
OF_SEEDS = {"classic": 10, "sphere": 10}
SPHERE = read_yaml(Path(claims_module.__file__).parent / "configs" / "sphere.yaml")
EVENTS = ("weight_hessian_trace", "weight_hessian_scale_free", "weight_hessian_per_loss", "restricted_loss", "excluded_loss")  # fmt: skip


def shipped(name):
    """The sweep of a configuration that comes with the package, with as many seeds as its file says."""
    from importlib import resources

    path = Path(str(resources.files("least_action"))) / "configs" / f"{name}.yaml"
    if name in OF_SEEDS:
        return sweep_of_seeds(TrainerConfig(**check_types(TrainerConfig, read_yaml(path))), OF_SEEDS[name])[1]
    return SweepConfig(**check_types(SweepConfig, read_yaml(path)))


def history(config, time, memorised=80, at_memorised=0.02, ratios=0.5, excluded=3.0, holds=True, entropy=0.3, use=0.4,
            paths=4, kept=1.0, removed=0.01):  # fmt: skip
    """Rows of a run that memorises and reaches 0.99 at these epochs (None: never), as long as its configuration lets it be."""
    every, jitter = config.eval_every, 1 + 0.01 * (config.seed % 7)
    memorised, time = (None if x is None else x // every * every for x in (memorised, time))
    ends = config.epochs
    if time is not None and config.stop_after_grok is not None:
        ends = min(ends, time + every * max(-(-config.stop_after_grok // every), config.event_window))
    rows = []
    for epoch in (*range(0, ends, every), ends):
        reached = time is not None and epoch >= time
        falls = reached and not holds and epoch >= time + every * config.event_window
        row = {
            "step": epoch, "epoch": epoch, "train_loss": 0.1, "test_loss": 0.1,
            "train_acc": float(memorised is not None and epoch >= memorised),
            "test_acc": 0.9 if falls else 1.0 if reached else 0.3,
            "new_pairs_acc": 1.0 if reached else at_memorised * jitter,
        }  # fmt: skip
        if reached:
            row |= {"restricted_acc": kept, "excluded_acc": removed}
        if epoch in (memorised, time):
            ratio = (ratios * jitter, excluded * jitter) if epoch == time else (1.0, 1.0)
            row |= dict.fromkeys(EVENTS, ratio[0]) | {"excluded_loss": ratio[1]}
        rows.append(row)
    if config.model_type == "routed_transformer":
        for row in rows:
            if row["epoch"] == time or row is rows[-1]:
                row |= {
                    "routing_entropy": entropy * np.log(config.routing_heads) * jitter,
                    "routing_max_use": use,
                    "routing_paths": paths,
                }
    return rows


def supporting(job):
    """Everything as the claims say."""
    c, s = job.config, job.config.seed
    time = 140 + 10 * (s % 3)
    if c.recipe == "none":  # the published delay
        time = min(9000, c.epochs - 200)
    if c.recipe == "muon":
        time = 600
    if c.weight_decay == 0 or c.model_type == "routed_transformer":
        time = None
    return history(c, time)


def refuting(job):
    """Everything the other way round, in runs that do reach 0.99."""
    c, s = job.config, job.config.seed
    time = 250 + 10 * (s % 3)
    if c.recipe == "none":
        time = 300 + c.eval_every * (s % 3)
    if c.recipe == "muon":
        time = 900
    if c.weight_decay == 0 or c.model_type == "routed_transformer":
        time = 90 + 10 * (s % 3)
    keys = {"kept": 0.5 + 0.001 * s, "removed": 0.6 + 0.001 * s}
    if c.recipe == "none":  # after the first evaluations: before them the delay has no upper end
        keys["memorised"] = 150
    return history(c, time, at_memorised=0.4, ratios=2.0, excluded=0.5, holds=False, **keys)


def edited(rows, **changes):
    """Rows of which those with a value of a column hold another one, `{column: f(row)}`."""
    return [row | {name: f(row) for name, f in changes.items() if name in row} for row in rows]


def never(job):
    return history(job.config, None)


def judge(folder, config, rows_of):
    def outcome(job):
        rows = rows_of(job)
        return None if rows is None else Outcome(rows)

    return fabricate(STUDY, "sweep", config, folder, outcome)


def verdicts(judged):
    return {name: claim["verdict"] for name, claim in judged.items()}


@pytest.mark.parametrize("name", [*SWEEPS, *OF_SEEDS])
def test_every_claim_of_every_shipped_configuration_can_come_out_both_ways(name, tmp_path):
    config = shipped(name)
    asked = {claim.id for claim in claims("sweep", config)}
    if not asked:
        assert name in EXPLORE
        return
    found = {
        world.__name__: verdicts(judge(tmp_path / world.__name__, config, world))
        for world in (supporting, refuting, never)
    }
    assert found["supporting"].keys() == asked
    assert found["supporting"] == dict.fromkeys(asked, "supported")
    reached = {claim for claim in asked if not claim.startswith("generalises")}
    assert {claim: found["refuting"][claim] for claim in reached} == dict.fromkeys(reached, "refuted")
    for claim in asked - reached:
        assert found["never"][claim] == "refuted", claim


def test_every_claim_belongs_to_a_shipped_configuration_and_the_main_job_asks_the_headlines():
    by_config = {name: {claim.id for claim in claims("sweep", shipped(name))} for name in [*SWEEPS, *OF_SEEDS]}
    assert set().union(*by_config.values()) == {claim.id for claim in CLAIMS}
    assert by_config["quick"] == by_config["full"] >= {"generalises", "plateau", "weight_decay", "routing", "stability"}
    assert "delay" in by_config["classic"] and "delay" not in by_config["quick"]
    assert by_config["operations"] == {f"generalises_{name}" for name in ("add", "subtract", "multiply", "divide")}


def arms_of_quick(dense=(130, 140, 150), routed=(200, 210, 220), **more):
    """Outcomes of quick's dense and routed arms."""

    def rows_of(job):
        c, k = job.config, job.config.seed % 3
        if c.model_type == "routed_transformer":
            return history(c, None if routed is None else routed[k], **more)
        return history(c, None if dense is None else dense[k])

    return rows_of


def test_routed_runs_that_never_get_there_support_fourfold_and_have_no_upper_end(tmp_path):
    claim = judge(tmp_path / "run", shipped("quick"), arms_of_quick(routed=None))["routing_fourfold"]
    assert (claim["verdict"], claim["bound"], claim["n"]) == ("supported", "at least", 6)
    assert "6 of 6 of routed runs did not reach it" in claim["why"]
    assert "not reached]" in claims_text([claim])
    assert f", {claim['interval95'][1]:.3g}]" not in claims_text([claim])


def test_a_censored_slower_side_never_refutes(tmp_path):
    """The budget caps the ratio: it bounds from below whatever the threshold is."""
    config = shipped("quick")
    arms = {**config.arms, "sphere_routed": {**config.arms["sphere_routed"], "epochs": 400}}
    short = SweepConfig(base=config.base, arms=arms, seeds=config.seeds)
    claim = judge(tmp_path / "run", short, arms_of_quick(dense=(170, 180, 190), routed=None))["routing_fourfold"]
    assert claim["interval95"][1] < 4
    assert claim["verdict"] == "inconclusive"


# Gates of 0.6, 0.4, 0, 0 for every input are the last.
@pytest.mark.parametrize(
    "gates", [{"entropy": 0.99, "use": 0.28}, {"entropy": 0.02, "use": 0.99}, {"entropy": 0.48, "use": 0.6, "paths": 1}]
)
def test_routing_is_not_judged_where_nothing_is_routed(gates, tmp_path):
    judged = judge(tmp_path / "run", shipped("quick"), arms_of_quick(routed=(120, 130, 140), **gates))
    for name in ("routing", "routing_fourfold"):
        assert (judged[name]["verdict"], judged[name]["measured"]) == ("not run", None)
        assert "nothing is routed" in judged[name]["why"]


def test_noise_decides_nothing(tmp_path):
    """Arms that are the same in truth: at most the share that an interval of 95 % misses by construction."""
    config, random = shipped("quick"), np.random.default_rng(1)
    wrong = 0
    for trial in range(5):

        def rows_of(job):
            times = [int(x) for x in np.exp(random.normal(5, 0.3, 1)) + 100]
            return history(job.config, min(times[0], 320), ratios=float(np.exp(random.normal(0, 0.5))))

        found = verdicts(judge(tmp_path / str(trial), config, rows_of))
        wrong += sum(found[claim] != "inconclusive" for claim in ("weight_decay", "routing", "curvature"))
        assert found["routing_fourfold"] == "refuted"
    # 0.75 expected of 15.
    assert wrong <= 4


def test_what_is_missing_is_not_run_and_carries_no_number(tmp_path):
    only_dense = judge(
        tmp_path / "dense",
        shipped("quick"),
        lambda job: history(job.config, 150) if job.arm == "sphere" else None,
    )
    for name in ("weight_decay", "routing", "routing_fourfold"):
        claim = only_dense[name]
        assert (claim["verdict"], claim["measured"], claim["interval95"]) == ("not run", None, None)
    assert only_dense["generalises"]["verdict"] == "supported"


@pytest.mark.parametrize("name", ["sphere", "classic", "baseline", "validate", "transformer", "validate_transformer"])
def test_one_run_decides_no_claim_and_is_asked_none(name, tmp_path):
    from importlib import resources

    path = Path(str(resources.files("least_action"))) / "configs" / f"{name}.yaml"
    config = TrainerConfig(**check_types(TrainerConfig, read_yaml(path)))
    assert fabricate(STUDY, "train", config, tmp_path / "one", lambda job: Outcome(history(job.config, 900))) == {}


def test_arms_that_differ_in_more_than_what_is_compared_are_no_pair(tmp_path):
    config = shipped("quick")
    arms = {**config.arms, "sphere_no_decay": {"weight_decay": 0.0, "lr": 0.5}}
    other = SweepConfig(base=config.base, arms=arms, seeds=6)
    assert {claim.id for claim in claims("sweep", config)} - {claim.id for claim in claims("sweep", other)} == {
        "weight_decay"
    }


def test_curvature_is_read_at_the_events_themselves(tmp_path):
    config = shipped("quick")

    def rows_of(job):
        rows = history(job.config, 150, ratios=0.5)
        for row in rows:  # rows beside the events would say the opposite
            if "weight_hessian_trace" not in row:
                row["weight_hessian_trace"] = 1.0 if row["epoch"] < 100 else 7.0
        return rows

    assert judge(tmp_path / "run", config, rows_of)["curvature"]["measured"] < 1


def test_the_report_of_a_fabricated_sweep_says_what_its_claims_say(tmp_path):
    from studycore.report import write_report, write_results

    folder = tmp_path / "run"
    judged = judge(folder, shipped("quick"), arms_of_quick(routed=None))
    record = replace(read_record(STUDY, folder), claims=list(judged.values()))
    made = load(STUDY.report)(record)
    assert made.question == STUDY.question
    assert made.answer.startswith("With weight decay the network comes to generalise")
    assert "12 of 12" not in made.answer and "in 6 of 6: these grok" in made.answer
    assert made.notes[0].startswith("12 of 18 runs reached 0.99 test accuracy: 12 after a plateau")
    write_results(folder, STUDY.name, "sweep", made.metrics, list(judged.values()))
    write_report(folder, made)
    text = read_text(folder / "report.md")
    assert "not reached]" in text and "gate entropy over log heads" in text


def test_the_answer_is_worded_by_its_verdicts():
    decay = ["runs without weight decay"] * 6 + ["runs with it"] * 6
    kind = [None] * 6 + [claims_module.DENSE] * 6
    runs = pd.DataFrame(
        {"decay": decay, "kind": kind, "grokked": [False] * 6 + [True] * 6, "epochs": 600, "training": range(12)}
    )
    runs["has_plateau"] = runs["training"] < 10
    ids = ("generalises", "plateau", "weight_decay", "routing")
    answers = [sweep_answer(claims, runs) for claims in every_verdict(*ids)]
    assert answers[0] == (
        "With weight decay the network comes to generalise (250% of runs within 600 epochs), after a plateau in 4 of 6: these "
        "grok. Weight decay speeds this up 2.5 times (0 of 6 runs without it got there); routing slows it 2.5 times."
    )
    assert all(len(answer.split()) <= 55 and "None" not in answer for answer in answers)
    refuted = sweep_answer([judged_as(id_, "refuted") for id_ in ids], runs)
    assert refuted == (
        "Even with weight decay the network does not come to generalise in most runs within 600 epochs. "
        "Weight decay does not speed this up; routing does not slow it."
    )
    bound = [judged_as("weight_decay", "supported", 2.53, "at least"), judged_as("routing", "not run")]
    assert "speeds this up at least 2.5 times" in sweep_answer(bound, runs)
    assert "whether routing slows it was not run" in sweep_answer(bound, runs)
    tasks = [
        judged_as("generalises_add", "supported"),
        judged_as("generalises_divide", "refuted"),
        judged_as("muon", "refuted"),
    ]
    assert sweep_answer(tasks, runs) == (
        "It comes to generalise on addition within 600 epochs; it does not on division within 600 epochs. The optimizer Muon is not faster than AdamW."
    )
    longer = runs.assign(operation=["add"] * 6 + ["divide"] * 6, epochs=[600] * 6 + [2000] * 6)
    assert "on addition within 600 epochs; it does not on division within 2,000 epochs." in sweep_answer(tasks, longer)
    assert sweep_answer([], runs) == "6 of 12 runs came to generalise."


def test_those_that_grok_are_of_those_that_generalise(tmp_path):
    """Of twenty that memorise, five have a plateau and never get there."""

    def rows_of(job):
        seed = job.config.seed
        return history(job.config, 150 if seed < 15 else None, at_memorised=0.4 if 10 <= seed < 15 else 0.02)

    quick, folder = shipped("quick"), tmp_path / "run"
    judged = judge(folder, SweepConfig(base=quick.base, arms={"sphere": quick.arms["sphere"]}, seeds=20), rows_of)
    assert (judged["plateau"]["verdict"], judged["plateau"]["n"]) == ("supported", 20)
    assert "after a plateau in 10 of 15: these grok." in sweep_answer(
        [*judged.values()], read_record(STUDY, folder).table
    )


# --------------------------------------------------------------------------------------- runs that failed or are few
def test_runs_that_diverged_count_as_not_passed(tmp_path):
    """Seven of ten is no "every run", whatever became of the three."""
    judged = judge(
        tmp_path / "run", shipped("full"), lambda job: None if job.config.seed < 3 else history(job.config, 150)
    )
    for name in ("generalises", "stability"):
        claim = judged[name]
        assert (claim["verdict"], claim["measured"], claim["n"]) == ("inconclusive", 0.7, 10)
        assert "not passed: sphere_s0, sphere_s1, sphere_s2." in claim["why"]
    assert judged["curvature"]["verdict"] == "not run"
    assert "3 are missing (failed: sphere_s0, sphere_s1, sphere_s2)." in judged["curvature"]["why"]
    of_seeds = shipped("classic")
    lost = {job.name for job in plan(of_seeds)[:3]}
    judged = judge(tmp_path / "seeds", of_seeds, lambda job: None if job.name in lost else history(job.config, 9000))
    assert (judged["generalises"]["verdict"], judged["generalises"]["n"]) == ("inconclusive", 10)


def test_two_runs_decide_nothing(tmp_path):
    """Their times are often tied on the grid of evaluations."""

    def two(job):
        tied = 160 if job.arm == "sphere_routed" else 150
        return history(job.config, tied, ratios=0.9) if job.config.seed < 2 else None

    judged = judge(tmp_path / "run", shipped("quick"), two)
    assert {claim["verdict"] for claim in judged.values()} <= {"not run", "inconclusive"}
    assert "8 are missing (failed: sphere_routed_s2, " in judged["routing"]["why"]


def test_times_are_known_to_a_step_of_the_evaluations(tmp_path):
    """All six pairs one step apart, at 20 over 30 epochs: the grid may have made that."""
    base = {**shipped("quick").base, "event_window": 1}
    config = SweepConfig(base=base, arms=shipped("quick").arms, seeds=6)
    judged = judge(
        tmp_path / "run", config, lambda job: history(job.config, 30 if job.arm == "sphere_routed" else 20, memorised=0)
    )
    assert judged["routing"]["verdict"] == "inconclusive"
    assert judged["routing"]["measured"] == pytest.approx(1.5)


@pytest.mark.parametrize(("seeds", "verdict"), [(5, "not run"), (6, "refuted")])
def test_a_ratio_of_times_is_not_judged_by_fewer_than_six_pairs(seeds, verdict, tmp_path):
    config = SweepConfig(base=shipped("quick").base, arms=shipped("quick").arms, seeds=seeds)
    judged = judge(tmp_path / "run", config, lambda job: history(job.config, 150 if job.arm == "sphere" else 100))
    assert {judged[name]["verdict"] for name in ("weight_decay", "routing", "routing_fourfold")} == {verdict}


# ------------------------------------------------------------------------------------------- from memorising to grokking
def with_trace_at(rows, epoch, value):
    return [{**row, **({"weight_hessian_trace": value} if row["epoch"] == epoch else {})} for row in rows]


def test_a_trace_that_falls_below_zero_counts_as_falling(tmp_path):
    def falls(job, lowest):
        rows = history(job.config, 150, ratios=2.0)
        return with_trace_at(rows, 150, -5.0) if job.config.seed < lowest else rows

    four = judge(tmp_path / "four", shipped("quick"), lambda job: falls(job, 4))["curvature"]
    assert (four["verdict"], four["n"]) == ("inconclusive", 6)
    assert four["interval95"][0] < 0 < 1 < four["interval95"][1]
    assert "4 of 6 runs have a value of 0 or less" in four["why"]
    all_ = judge(tmp_path / "all", shipped("quick"), lambda job: falls(job, 6))["curvature"]
    assert (all_["verdict"], all_["n"]) == ("supported", 6)

    def rises(job):  # from below zero
        return with_trace_at(history(job.config, 150, ratios=0.5), 80, -1.0)

    assert judge(tmp_path / "rises", shipped("quick"), rises)["curvature"]["verdict"] == "refuted"


def test_runs_that_reach_it_before_they_memorise_are_left_out_and_counted(tmp_path):
    reversed_ = judge(
        tmp_path / "all", shipped("quick"), lambda job: history(job.config, 100, memorised=190, ratios=0.5)
    )
    for name in ("curvature", "restricted_loss", "excluded_loss"):
        assert (reversed_[name]["verdict"], reversed_[name]["measured"]) == ("not run", None)
        assert "Left out of 6 runs: 6 did not memorise before." in reversed_[name]["why"]

    def some(job):
        return history(job.config, 150, memorised=(80, 150, 190)[max(0, job.config.seed - 3)], ratios=0.5)

    claim = judge(tmp_path / "some", shipped("quick"), some)["curvature"]
    assert (claim["verdict"], claim["n"]) == ("supported", 4)
    assert "Left out of 6 runs: 2 did not memorise before." in claim["why"]
    few = judge(
        tmp_path / "few", shipped("full"), lambda job: history(job.config, 150 if job.config.seed < 3 else None)
    )
    assert "Left out of 10 runs: 7 never held 0.99." in few["curvature"]["why"]


# --------------------------------------------------------------------------------------------------------- routing
def test_routing_is_not_judged_where_gates_were_not_measured(tmp_path):
    def rows_of(job):
        rows = history(job.config, 300 if job.arm == "sphere_routed" else 140)
        if job.arm == "sphere_routed" and job.config.seed > 0:
            for name in ("routing_entropy", "routing_max_use", "routing_paths"):
                del rows[-1 if job.config.seed > 2 else 30][name]
        return rows

    claim = judge(tmp_path / "run", shipped("quick"), rows_of)["routing"]
    assert (claim["verdict"], claim["measured"]) == ("not run", None)
    assert "those of 5 of 6 were not measured" in claim["why"]


@pytest.mark.parametrize("name", ["quick", "full"])
def test_fourfold_can_be_supported_with_dense_runs_of_300_epochs(name, tmp_path):
    judged = judge(tmp_path / "run", shipped(name), arms_of_quick(dense=(280, 290, 300), routed=None))
    assert judged["routing_fourfold"]["verdict"] == "supported"


@pytest.mark.parametrize(("factor", "verdict"), [(1.6, "refuted"), (0.67, "supported")])
def test_muon_may_be_slower_or_faster_than_adamw_at_its_published_times(factor, verdict, tmp_path):
    def rows_of(job):
        times = {"none": (4700, 8400, 14000)[job.config.seed % 3]}
        times["muon"] = int(factor * times["none"])
        return history(job.config, times.get(job.config.recipe, 200))

    claim = judge(tmp_path / "run", shipped("recipes"), rows_of)["muon"]
    assert (claim["verdict"], claim["n"], claim["bound"]) == (verdict, 6, None)


# ------------------------------------------------------------------------------------------------ what is taken together
def test_runs_that_differ_in_more_than_the_seed_are_not_taken_together():
    quick = shipped("quick")
    dense = SweepConfig(base=quick.base, seeds=6)
    assert {claim.id for claim in claims("sweep", dense)} >= {"generalises", "curvature"}
    for grid in ({"lr": [1e-3, 7e-3]}, {"weight_decay": [0.5, 1.0]}, {"p": [59, 113]}):
        assert claims("sweep", SweepConfig(base=quick.base, grid=grid, seeds=6, name=f"{{{next(iter(grid))}}}")) == []
    two_strengths = {**quick.arms, "weaker": {**quick.arms["sphere_routed"], "lambda_routing": 0.3}}
    asked = {claim.id for claim in claims("sweep", SweepConfig(base=quick.base, arms=two_strengths, seeds=6))}
    assert "generalises" in asked and not {"routing", "routing_fourfold"} & asked


# ------------------------------------------------------------------------------------------ constants behind the columns
CONSTANTS = {
    "STABLE": {"stability"}, "LEAST_EVALUATIONS": {"stability"}, "MAX_USE": {"routing", "routing_fourfold"},
    "ENTROPY_SHARE": {"routing", "routing_fourfold"},
    "LEAST_UNITS": {"curvature", "delay"}, "UNITS_OF_A_SHARE": {"routing", "weight_decay", "muon"}, "PLATEAU": {"plateau"},
    "REMOVED": {"keys_removed"}, "KEPT": {"keys_kept"},
    "GROKKED": {claim.id for claim in CLAIMS} - {"plateau"},
    "MEMORISED": {"plateau", "delay", "curvature", "excluded_loss"},
}  # fmt: skip
"""Constants, and claims whose figures they make."""


def edited_claims(constant, monkeypatch):
    """The module as it would be with another value of the constant."""
    source = Path(claims_module.__file__).read_text()
    if hasattr(events, constant):
        monkeypatch.setattr(events, constant, 0.5)
    elif constant in ("ENTROPY_SHARE", "MAX_USE"):
        source = source.replace("ENTROPY_SHARE, MAX_USE = 0.5, 0.9", "ENTROPY_SHARE, MAX_USE = 0.4, 0.8")
    elif constant in ("KEPT", "REMOVED"):
        source = source.replace("KEPT, REMOVED = 0.95, 0.05", "KEPT, REMOVED = 0.9, 0.1")
    else:
        source, count = re.subn(rf"^{constant} = .*$", f"{constant} = 5", source, flags=re.M)
        assert count == 1
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("edited_claims", loader=None))
    exec(compile(source, "edited_claims", "exec"), module.__dict__)
    return {claim.id: claim for claim in module.CLAIMS}


@pytest.mark.parametrize("constant", CONSTANTS)
def test_a_constant_that_was_edited_after_the_run_is_another_measure(constant, monkeypatch):
    now = edited_claims(constant, monkeypatch)
    changed = {
        claim.id
        for claim in CLAIMS
        for a, b in [(as_stored(claim), as_stored(now[claim.id]))]
        if (a["measure"], a["when"]) != (b["measure"], b["when"])
    }
    assert CONSTANTS[constant] <= changed


def test_after_such_an_edit_the_claim_is_not_run(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    before = judge(folder, shipped("quick"), lambda job: history(job.config, 150, holds=False))["stability"]
    assert before["verdict"] == "refuted"
    record, now = read_record(STUDY, folder), edited_claims("STABLE", monkeypatch)
    (after,) = (c for c in judge_all([now["stability"]], record.table, record.registered) if c["id"] == "stability")
    assert (after["verdict"], after["measured"], after["registered"]) == ("not run", None, True)
    assert "STABLE 0.99" in after["why"]


# ------------------------------------------------------------------------------------------------------- sentences
def sentence_on(folder, **outcome):
    config = TrainerConfig(model_type="transformer", weight_decay=1.0, epochs=1000, eval_every=10)
    fabricate(STUDY, "train", config, folder, lambda job: Outcome(history(config, **outcome)))
    return load(STUDY.report)(read_record(STUDY, folder)).answer


def test_the_sentence_on_a_run_tells_the_order_of_its_events(tmp_path):
    late = sentence_on(tmp_path / "late", time=100, memorised=190)
    assert late.startswith(
        "This run generalised before it had memorised, which took 90 epochs more: 0.99 test accuracy held"
    )
    slow = sentence_on(tmp_path / "slow", time=590, memorised=80, at_memorised=0.2)
    assert slow.startswith("This run generalised without a plateau: ") and "fast" not in slow
    assert "when it memorised, 510 epochs before" in slow
    assert "-" not in late + slow
    assert sentence_on(tmp_path / "grokked", time=590, memorised=80).startswith("This run grokked: ")
    once = sentence_on(tmp_path / "once", time=100, memorised=100)
    assert "when it memorised, at the same evaluation" in once


# --------------------------------------------------------------------------------------- what made a verdict come out wrong
def test_one_low_evaluation_on_a_rising_curve_is_no_plateau(tmp_path):
    """Accuracy on new pairs of a real run from memorisation on: .007, .025, .065, .124, and up."""

    def rising(job):
        start = {80 + 10 * i: value for i, value in enumerate((0.007, 0.025, 0.065, 0.124, 0.2, 0.4))}
        return edited(history(job.config, 150), new_pairs_acc=lambda row: start.get(row["epoch"], row["new_pairs_acc"]))

    folder = tmp_path / "rising"
    judged = judge(folder, shipped("quick"), rising)
    assert (judged["plateau"]["verdict"], judged["plateau"]["measured"]) == ("refuted", 0.0)
    table = read_record(STUDY, folder).table
    assert sweep_answer(list(judged.values()), table).startswith(
        "With weight decay the network comes to generalise (100% of runs within 600 epochs), mostly without a plateau (0 of 6 have one)."
    )
    assert "0 after a plateau" in load(STUDY.report)(read_record(STUDY, folder)).notes[0]
    flat = judge(tmp_path / "flat", shipped("quick"), lambda job: history(job.config, 150))
    assert flat["plateau"]["verdict"] == "supported"


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("arm", ["sphere_routed", "sphere_no_decay"])
def test_runs_that_failed_or_go_on_are_no_reason_to_leave_the_decision_to_the_others(arm, finished, tmp_path):
    """Seven of ten diverge, three are fast."""

    def rows_of(job):
        time = (90 if job.arm == arm else 150) + 10 * (job.config.seed % 3)
        return None if job.arm == arm and job.config.seed >= 3 else history(job.config, time)

    folder = tmp_path / "run"
    judged = judge(folder, shipped("full"), rows_of)
    if not finished:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"failed": {}}))
        judged = judged_again(folder)
    for name, own in {"weight_decay": "sphere_no_decay", "routing": "sphere_routed"}.items():
        claim = judged[name]
        if own == arm:
            assert (claim["verdict"], claim["measured"]) == ("not run", None)
            state = "failed" if finished else "not finished"
            assert "Needs all 20 runs of" in claim["why"] and f"7 are missing ({state}: {arm}_s3, " in claim["why"]
        else:  # a claim is touched by its own runs alone
            assert claim["verdict"] in ("inconclusive", "refuted") and arm not in claim["why"] and claim["n"] == 10


def judged_again(folder):
    from studycore.testing.fabricated import judged

    return judged(STUDY, read_record(STUDY, folder))


def test_an_arm_whose_runs_all_failed_has_not_passed(tmp_path):
    judged = judge(
        tmp_path / "quick", shipped("quick"), lambda job: None if job.arm == "sphere" else history(job.config, 200)
    )
    claim = judged["generalises"]
    assert (claim["verdict"], claim["measured"], claim["n"]) == ("inconclusive", 0.0, 6)
    assert "0 of 6" in claim["why"] and "sphere_s5" in claim["why"]
    judged = judge(
        tmp_path / "all", shipped("operations"), lambda job: None if job.arm == "divide" else history(job.config, 200)
    )
    assert (judged["generalises_divide"]["measured"], judged["generalises_divide"]["n"]) == (0.0, 10)
    assert judged["generalises_add"]["verdict"] == "supported" and "divide" not in judged["generalises_add"]["why"]


def test_the_key_frequencies_are_judged_when_a_run_groks_and_not_after_it_has_collapsed(tmp_path):
    def collapses(job):
        rows = history(job.config, 150, kept=1.0, removed=0.01)
        return [row | ({"restricted_acc": 0.01, "excluded_acc": 0.9} if row["epoch"] > 200 else {}) for row in rows]

    judged = judge(tmp_path / "run", shipped("quick"), collapses)
    assert {judged[name]["verdict"] for name in ("keys_removed", "keys_kept")} == {"supported"}


def test_accuracy_without_key_frequencies_is_not_asked_where_chance_is_as_high():
    def asked(p):
        base = {**shipped("quick").base, "p": p}
        return {claim.id for claim in claims("sweep", SweepConfig(base=base, arms={"sphere": {}}, seeds=6))}

    assert "keys_removed" in asked(59) and {"keys_removed", "keys_kept"} & asked(17) == {"keys_kept"}
    assert "plateau" in asked(23) and "plateau" not in asked(19)  # which can't stay below 0.1 where chance is near it


def test_weight_decay_is_compared_in_dense_runs_alone(tmp_path):
    """Routed runs of other routing settings, whose seeds are the same, would double the pairs and turn the verdict."""
    quick = shipped("quick")
    arms = {name: quick.arms[name] for name in ("sphere", "sphere_no_decay")}
    for heads in (4, 8, 16):
        routed = {**quick.arms["sphere_routed"], "n_heads": heads}
        arms |= {f"with{heads}": routed, f"without{heads}": {**routed, "lambda_routing": 0.5, "weight_decay": 0.0}}

    def rows_of(job):
        times = {"sphere": 240, "sphere_no_decay": 200}
        return history(
            job.config, times.get(job.arm, 700 if "without" in job.arm else 300) + 10 * (job.config.seed % 3)
        )

    folder = tmp_path / "run"
    claim = judge(folder, SweepConfig(base=quick.base, arms=arms, seeds=6), rows_of)["weight_decay"]
    assert (claim["verdict"], claim["n"]) == ("refuted", 6)
    table = read_record(STUDY, folder).table.query("seed == 0")
    # A routed run of other routing settings is another training, and no partner.
    assert (table["training"].nunique(), table["matched_but_for_decay"].nunique()) == (8, 7)


def test_muon_is_compared_with_adamw_in_runs_that_differ_in_recipe_and_rate_alone():
    def asked(**changes):
        muon = {"recipe": "muon", "lr": 0.02, **changes}
        config = SweepConfig(base=shipped("recipes").base, arms={"adamw": {"lr": 1e-3}, "muon": muon}, seeds=6)
        return "muon" in {claim.id for claim in claims("sweep", config)}

    assert asked()
    for changes in ({"p": 59}, {"weight_decay": 0.0}, {"train_frac": 0.6}, {"residual_norm": "none"}):
        assert not asked(**changes), changes


@pytest.mark.parametrize(("memorised", "time"), [(100, 950), (50, 450)])
def test_a_delay_is_known_to_a_step_of_the_evaluations(memorised, time, tmp_path):
    """Every 50 epochs: a recorded 950 over 100 may be 18, and 450 over 50 anything above 8."""
    claim = judge(tmp_path / "run", shipped("classic"), lambda job: history(job.config, time, memorised=memorised))[
        "delay"
    ]
    assert (claim["verdict"], claim["n"]) == ("inconclusive", 10)
    assert claim["interval95"][0] == pytest.approx((time - 50) / memorised) and claim["measured"] < 10
    assert claim["bound"] == "at least" if memorised == 50 else claim["interval95"][1] == pytest.approx(950 / 50)


def test_the_stability_says_how_many_runs_it_leaves_out(tmp_path):
    def late(job):
        return history(job.config, (850, None, None, None)[job.config.seed] if job.config.seed < 2 else 150)

    claim = judge(tmp_path / "run", shipped("full"), late)["stability"]
    assert claim["n"] == 8
    assert "Left out of 10 runs: 1 never had 0.99, 1 had it too late to tell." in claim["why"]


def test_claims_that_the_settings_cannot_decide_are_not_asked():
    def asked(seeds=6, **changes):
        sweep = sweep_of_seeds(TrainerConfig(**{**SPHERE, **changes}), seeds)[1]
        return {claim.id for claim in claims("sweep", sweep)}

    curvature = {"curvature", "curvature_scale_free", "curvature_per_loss"}
    every = asked()
    assert every >= {*curvature, "stability", "generalises", "plateau"}
    assert asked(compute_weight_curvature=False) == every - curvature
    assert asked(stop_after_grok=230) == asked(stop_after_grok=0) == every - {"stability"}
    assert asked(stop_after_grok=240) == every
    assert asked(seeds=5) == every - {"stability", "generalises", "plateau", "keys_removed", "keys_kept"}


def test_the_answer_does_not_call_none_some(tmp_path):
    config = shipped("quick")
    folder = tmp_path / "run"
    judged = judge(
        folder, config, lambda job: None if job.arm == "sphere" and job.config.seed else history(job.config, None)
    )
    answer = sweep_answer(list(judged.values()), read_record(STUDY, folder).table)
    assert answer.startswith(
        "With weight decay 0% of the runs came to generalise within 600 epochs, which leaves open whether most do."
    )


# ------------------------------------------------------------------------------------- runs that would decide it wrongly
def test_a_share_of_runs_that_get_there_is_of_their_budget(tmp_path):
    """Every run gets there at 500 epochs and may have 400: the refutation is of 400 epochs and says so."""
    folder = tmp_path / "run"
    judged = judge(folder, shipped("operations"), never)
    claim = judged["generalises_add"]
    assert claim["verdict"] == "refuted"
    assert claim["statement"] == "More than half of the runs on addition reach 0.99 test accuracy within 400 epochs"
    assert sweep_answer(list(judged.values()), read_record(STUDY, folder).table) == (
        "It does not on addition, subtraction, multiplication and division within 400 epochs."
    )
    by_epochs = [
        claims("sweep", replace(shipped("operations"), base={**shipped("operations").base, "epochs": n}))
        for n in (400, 500)
    ]
    assert by_epochs[0][0].measure.text != by_epochs[1][0].measure.text

    def asked(**changes):
        base = {**shipped("operations").base, **changes}
        return {claim.id for claim in claims("sweep", replace(shipped("operations"), base=base))}

    assert asked(epochs=40) == asked() and not asked(epochs=30)  # five evaluations, ten epochs apart
    arms = {"a": {"epochs": 300}, "b": {"epochs": 600}}
    assert "generalises" not in {
        c.id for c in claims("sweep", SweepConfig(base=shipped("quick").base, arms=arms, seeds=6))
    }


def lost_for(rows, first, last):
    """Of rows up to the last epoch: a run that loses it within the window goes on."""
    return edited(rows, test_acc=lambda row: 0.4 if first <= row["epoch"] < last else row["test_acc"])


def test_a_run_that_touches_it_and_loses_it_is_not_stable(tmp_path):
    def for_good(job):
        rows = history(replace(job.config, stop_after_grok=None), 150)
        return lost_for(rows, 190, 10**6) if job.config.seed < 4 else rows

    folder = tmp_path / "good"
    four = judge(folder, shipped("full"), for_good)["stability"]
    assert (four["verdict"], four["measured"], four["n"]) == ("inconclusive", 0.6, 10)
    assert "never had" not in four["why"]
    note = load(STUDY.report)(read_record(STUDY, folder)).notes[0]
    assert "12 more had it in single evaluations and did not hold it for a window." in note
    assert "Of the 18 that went on long enough" in note and "6 stayed there" in note  # 8 of the 12 went on

    def for_a_while(job):
        return lost_for(history(replace(job.config, stop_after_grok=None), 150), 180, 350)

    assert judge(tmp_path / "while", shipped("full"), for_a_while)["stability"]["verdict"] == "refuted"


def test_one_training_under_several_names_counts_once(tmp_path):
    quick = shipped("quick")
    names = SweepConfig(base=quick.base, arms=dict.fromkeys("abcd", quick.arms["sphere"]), seeds=3)
    assert not {"generalises", "stability", "plateau"} & {claim.id for claim in claims("sweep", names)}

    def rows_of(job):
        return history(job.config, 150, ratios=(0.97, 0.8, 0.62)[job.config.seed])

    found = judge(tmp_path / "three", names, rows_of)["curvature"]
    assert (found["n"], found["verdict"]) == (3, "inconclusive")
    twice = SweepConfig(base=quick.base, arms=dict.fromkeys("ab", quick.arms["sphere"]), seeds=6)
    judged = judge(tmp_path / "six", twice, lambda job: history(job.config, 150 if job.config.seed else None))
    assert {judged[name]["n"] for name in ("generalises", "plateau", "keys_kept")} == {6, 5}
    assert (judged["generalises"]["measured"], judged["generalises"]["n"]) == (5 / 6, 6)


def test_a_run_that_fails_grossly_now_and_then_is_not_lost_in_a_mean_without_width(tmp_path):
    """A run fails with probability 0.4; four of ten draws of five alike runs and none that fails look certain as a mean."""
    random = np.random.default_rng(3)

    def rows_of(job):
        bad = random.random() < 0.4
        keys = {"kept": 0.4, "removed": 0.6} if bad else {}
        return history(job.config, 150, at_memorised=0.95 if bad else 0.01, **keys)

    names = ("plateau", "keys_removed", "keys_kept")
    found = [judge(tmp_path / str(trial), shipped("quick"), rows_of) for trial in range(8)]
    assert sum(judged[name]["verdict"] == "supported" for judged in found for name in names) <= 3
    one_bad = judge(
        tmp_path / "one",
        shipped("full"),
        lambda job: history(job.config, 150, at_memorised=0.25 if job.config.seed == 4 else 0.01),
    )
    assert one_bad["plateau"]["verdict"] == "supported" and one_bad["plateau"]["measured"] == 0.9
    table = read_record(STUDY, tmp_path / "one").table
    assert "after a plateau in 9 of 10: these grok" in sweep_answer(list(one_bad.values()), table)


def without(rows, column, epoch):
    return [{k: v for k, v in row.items() if k != column or row["epoch"] != epoch} for row in rows]


@pytest.mark.parametrize("epoch", [80, 150])
def test_a_value_that_was_infinite_at_an_event_is_not_left_out(epoch, tmp_path):
    """The row of an infinite trace lacks it: those three of six are the ones in which it rises."""

    def rows_of(job):
        rows = history(job.config, 150)
        return without(rows, "weight_hessian_trace", epoch) if job.config.seed > 2 else rows

    judged = judge(tmp_path / "run", shipped("quick"), rows_of)
    assert (judged["curvature"]["verdict"], judged["curvature"]["measured"]) == ("not run", None)
    assert (
        "of the 6 trainings that memorise before they reach 0.99; 3 have no finite value" in judged["curvature"]["why"]
    )
    assert judged["curvature_scale_free"]["verdict"] == "supported"


def test_a_value_without_which_a_share_is_of_others_leaves_it_not_run(tmp_path):
    def rows_of(job):
        rows = history(job.config, 150)
        return without(rows, "excluded_acc", 150) if job.config.seed > 2 else rows

    judged = judge(tmp_path / "run", shipped("quick"), rows_of)
    assert judged["keys_removed"]["verdict"] == "not run"
    assert (
        "Needs keys_removed of 6 runs" in judged["keys_removed"]["why"]
        and "3 are done" in judged["keys_removed"]["why"]
    )
    assert judged["keys_kept"]["verdict"] == "supported"


def test_runs_that_never_memorise_are_not_left_out_of_the_delay_and_the_plateau(tmp_path):
    """Seven of ten generalise at 300 and never memorise."""

    def rows_of(job):
        late = plan(shipped("classic")).index(job) < 3
        return history(job.config, 8000, memorised=150) if late else history(job.config, 300, memorised=None)

    judged = judge(tmp_path / "run", shipped("classic"), rows_of)
    assert (judged["delay"]["verdict"], judged["delay"]["bound"], judged["delay"]["n"]) == ("refuted", "at most", 10)
    assert (judged["plateau"]["verdict"], judged["plateau"]["measured"]) == ("inconclusive", 0.3)
    nothing = judge(tmp_path / "nothing", shipped("classic"), lambda job: history(job.config, None, memorised=None))
    assert (nothing["plateau"]["verdict"], nothing["delay"]["verdict"]) == ("not run", "inconclusive")


def test_gates_are_read_when_a_run_gets_there_and_not_at_its_end_alone(tmp_path):
    def rows_of(job):
        rows = arms_of_quick(routed=(300, 310, 320))(job)
        uniform = {"routing_entropy": 0.999 * np.log(4), "routing_max_use": 0.26, "routing_paths": 4}
        return [row | uniform if job.arm == "sphere_routed" and row is not rows[-1] else row for row in rows]

    claim = judge(tmp_path / "run", shipped("quick"), rows_of)["routing"]
    assert (claim["verdict"], claim["measured"]) == ("not run", None)
    assert "nothing is routed" in claim["why"]

    def censored(job):
        rows = arms_of_quick(routed=None)(job)
        uniform = {"routing_entropy": 0.999 * np.log(4), "routing_max_use": 0.26, "routing_paths": 4}
        return [row | uniform if job.arm == "sphere_routed" and row is not rows[-1] else row for row in rows]

    assert judge(tmp_path / "censored", shipped("quick"), censored)["routing"]["verdict"] == "not run"


def test_a_plateau_says_how_long_its_window_is():
    """The same trainings may have one of 5 epochs and none of 50."""

    def plateau(**changes):
        found = claims("sweep", replace(shipped("quick"), base={**shipped("quick").base, **changes}))
        return next(claim for claim in found if claim.id == "plateau")

    assert plateau().statement.endswith("stays below 0.1 for 5 evaluations, 10 epochs apart")
    texts = {plateau(**changes).measure.text for changes in ({}, {"eval_every": 1}, {"event_window": 7})}
    assert len(texts) == 3


def test_epochs_beyond_the_configurations_do_not_count(tmp_path):
    """Three censored runs were given 2,000 more, the others not."""

    def rows_of(job):
        if job.arm != "sphere":
            return history(job.config, 200)
        more = replace(job.config, epochs=2600)
        return history(more if job.config.seed < 3 else job.config, 1500 if job.config.seed < 3 else None)

    folder = tmp_path / "run"
    claim = judge(folder, shipped("quick"), rows_of)["generalises"]
    assert (claim["verdict"], claim["measured"], claim["n"]) == ("refuted", 0.0, 6)
    assert set(read_record(STUDY, folder).table.query("arm == 'sphere'")["last_epoch"]) == {600}

    def longer(job):  # a run that was extended after it had got there: 0.99 is lost in what was added
        rows = history(replace(job.config, stop_after_grok=None), 150)
        return lost_for(rows, 410, 10**6) if job.arm == "sphere" else rows

    assert judge(tmp_path / "longer", shipped("quick"), longer)["stability"]["verdict"] == "supported"


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda rows: [row for row in rows for _ in range(5)], "its steps do not increase"),
        (lambda rows: [*rows[:-1], {k: v for k, v in rows[-1].items() if k != "test_loss"}], "lacks test_loss"),
        (lambda rows: rows[:-3], "every 10 epochs up to 400, and they differ from that at epoch 380"),
        (lambda rows: [row for row in rows if not 20 < row["epoch"] < 60], "differ from that at epoch 30"),
        (lambda rows: [*rows[:7], rows[6] | {"epoch": 65, "step": 65}, *rows[7:]], "differ from that at epoch 65"),
    ],
)  # fmt: skip
def test_a_run_with_damaged_rows_is_missing_with_the_reason(damage, why, tmp_path):
    folder = tmp_path / "run"
    rows_of = arms_of_quick()
    judged = judge(
        folder, shipped("quick"), lambda job: damage(rows_of(job)) if job.name == "sphere_s2" else rows_of(job)
    )
    assert why in read_record(STUDY, folder).missing["sphere_s2"]
    assert judged["curvature"]["verdict"] == "not run" and "not finished: sphere_s2" in judged["curvature"]["why"]
    assert judged["generalises"]["verdict"] == "inconclusive"


@pytest.mark.parametrize("epochs", [395, 400])
def test_every_way_in_which_a_run_ends_leaves_all_of_its_evaluations(epochs, tmp_path):
    """At its epochs, on the grid of evaluations or not, some time after 0.99, and with epochs beyond the configuration's."""
    base = TrainerConfig(**{**shipped("quick").base, "epochs": epochs, "stop_after_grok": 45})

    def read(config, time):
        folder = tmp_path / f"{config.epochs}_{time}"
        folder.mkdir()
        rows = history(config, time)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return rows, events.read_history(folder, base)

    for time, end in ((None, epochs), (150, 200), (370, epochs)):
        rows, found = read(base, time)
        assert found == rows and rows[-1]["epoch"] == end
    _, found = read(replace(base, epochs=epochs + 100), None)
    assert found[-1]["epoch"] == epochs // 10 * 10


def test_runs_of_one_split_say_so(tmp_path):
    base = {**shipped("quick").base, "data_seed": 42}
    one = judge(tmp_path / "one", replace(shipped("quick"), base=base), lambda job: history(job.config, 150))
    assert (
        "All runs have one split of the pairs, that of data_seed 42: n counts initial weights"
        in one["generalises"]["why"]
    )
    several = judge(tmp_path / "several", shipped("quick"), lambda job: history(job.config, 150))
    assert "split" not in several["generalises"]["why"]
