"""Each claim can come out both ways, feeds on the column and the arms that it names, and is not run without them."""

from importlib import resources
from pathlib import Path

import pandas as pd
import pytest

from polytope_hsae.claims import CROSS_ENTROPY, IN_PROMPTS, STEERED, TRAINED, claims, of_the_geometry
from polytope_hsae.cli import STUDY
from polytope_hsae.config import StudyConfig
from polytope_hsae.report import answer
from studycore.claims import as_stored, judge_all
from studycore.configuration import read_yaml
from studycore.testing.fabricated import every_verdict, judged_as

# Claim -> (column, arm beside the teacher, what the teacher's value must do for the claim to hold).
BESIDE = {
    "purity": ("purity", "random", "rise"),
    "leakage": ("leakage", "random", "fall"),
    "reconstruction_parity": ("explained_variance", "random", "rise"),
    "purity_beside_random_teacher": ("purity", "random_teacher", "rise"),
    "leakage_beside_random_teacher": ("leakage", "random_teacher", "fall"),
    "purity_beside_frozen_random": ("purity", "frozen_random", "rise"),
    "purity_beside_euclidean": ("purity", "euclidean", "rise"),
    "purity_beside_tied": ("purity", "tied", "rise"),
    "causal_cosine_beside_no_causal_ortho": ("causal_cosine_squared", "no_causal_ortho", "fall"),
    "purity_beside_no_causal_ortho": ("purity", "no_causal_ortho", "rise"),
    "purity_beside_top2": ("purity", "top2", "rise"),
    "purity_beside_random_projectors": ("purity", "random_projectors", "rise"),
    "absorption": ("absorption", "random", "fall"),
    "soft_absorption_beside_random_staged": ("soft_absorption", "random_staged", "fall"),
    "soft_absorption_beside_random_teacher": ("soft_absorption", "random_teacher", "fall"),
    "explained_variance_beside_random_staged": ("explained_variance", "random_staged", "rise"),
    "explained_variance_beside_random_teacher": ("explained_variance", "random_teacher", "rise"),
    "purity_prompts": ("purity_prompts", "random", "rise"),
    "leakage_prompts": ("leakage_prompts", "random", "fall"),
    "purity_prompts_beside_random_teacher": ("purity_prompts", "random_teacher", "rise"),
    "steering_leakage": ("steering_leakage", "random", "fall"),
    "steering_leakage_beside_random_staged": ("steering_leakage", "random_staged", "fall"),
    "steering_leakage_beside_random_teacher": ("steering_leakage", "random_teacher", "fall"),
    "ce_parity": ("ce_recovered", "random", "rise"),
}
# Claim -> (column, a median that supports it, one that refutes it), at 80 degrees and 0.1 nats.
OF_GEOMETRY = {
    "held_out_projection": ("held_out_projection", 0.8, 0.1),
    "disjoint_angle_null": ("disjoint_angle_minus_shuffled", -9.0, 9.0),
    "disjoint_angle_random_part": ("disjoint_angle_farther_than_random_part", -1.0, 5.0),
    "held_out_projection_euclidean": ("held_out_projection_minus_euclidean", 0.1, -0.1),
    "disjoint_angle_euclidean": ("disjoint_angle_farther_than_euclidean", -1.0, 5.0),
    "median_angle": ("nested_angle", 91.0, 60.0),
    "own_parent": ("projection_on_own_parent", 0.6, 0.0),
    "ratio_invariance": ("ratio_invariance_kl", 0.01, 0.5),
    "ratio_invariance_null": ("ratio_invariance_kl_minus_random", -0.01, 0.01),
}
ARMS = tuple(dict.fromkeys(["teacher", *(other for _, other, _ in BESIDE.values())]))
COMPARED = [claim for _, claim in (*TRAINED, *IN_PROMPTS, *STEERED)] + [CROSS_ENTROPY]


def trained(column, other, factor, seeds=5):
    """All arms alike, but for the one column in which the teacher is `factor` times the other arm."""
    rows = []
    for arm in ARMS:
        for seed in range(seeds):
            row = {name: 0.4 + 0.001 * seed for name, *_ in BESIDE.values()}
            row[column] = (0.4 + 0.001 * seed) * (factor if arm == "teacher" else 1.0 if arm == other else 7.0)
            rows.append({"run": f"{arm}_s{seed}", "arm": arm, "seed": seed, **row})
    return pd.DataFrame(rows)


def verdict(claim, table):
    return judge_all([claim], table, [as_stored(claim)])[0]["verdict"]


def test_the_tables_here_name_every_claim():
    assert [claim.id for claim in COMPARED] == list(BESIDE)
    assert [claim.id for claim in of_the_geometry(80, 0.1)] == list(OF_GEOMETRY)


@pytest.mark.parametrize("claim", COMPARED, ids=lambda claim: claim.id)
def test_a_comparison_is_supported_refuted_and_not_run(claim):
    column, other, direction = BESIDE[claim.id]
    good, bad = (2.0, 0.3) if direction == "rise" else (0.3, 2.0)
    assert verdict(claim, trained(column, other, good)) == "supported"
    assert verdict(claim, trained(column, other, bad)) == "refuted"
    table = trained(column, other, good)
    assert verdict(claim, table[table["arm"] != other]) == "not run"
    assert verdict(claim, table[table["arm"] != "teacher"]) == "not run"
    assert verdict(claim, table.drop(columns=column)) == "not run"
    assert verdict(claim, trained(column, other, good, seeds=1)) == "not run"


def test_an_angle_that_noise_reaches_too_shows_nothing():
    (claim,) = (c for c in of_the_geometry(80, 0.1) if c.id == "median_angle")
    row = {f"nested_angle_{part}": 91.0 for part in ("median", "low", "high")} | {"nested_angle_n": 9}
    for noise, expected in ((79.9, "supported"), (80.0, "not run"), (90.5, "not run")):
        table = pd.DataFrame([row | {"nested_angle_shuffled_median": noise}])
        assert verdict(claim, table) == expected, noise
    assert verdict(claim, pd.DataFrame([row])) == "not run"


@pytest.mark.parametrize("claim", of_the_geometry(80, 0.1), ids=lambda claim: claim.id)
def test_a_claim_on_the_geometry_is_supported_refuted_open_and_not_run(claim):
    column, good, bad = OF_GEOMETRY[claim.id]

    def table(middle, wide=0.0):
        return pd.DataFrame(
            [
                {
                    f"{column}_median": middle,
                    f"{column}_low": middle - wide,
                    f"{column}_high": middle + wide,
                    f"{column}_n": 9,
                    "p_ratio_invariance": 0.05,
                    "nested_angle_shuffled_median": 70.0,
                }
            ]
        )

    assert verdict(claim, table(good)) == "supported"
    assert verdict(claim, table(bad)) == "refuted"
    assert verdict(claim, table(good, wide=1000.0)) == "inconclusive"
    assert verdict(claim, table(good).drop(columns=f"{column}_n")) == "not run"


def reason(claim, table):
    return judge_all([claim], table, [as_stored(claim)])[0]["why"]


@pytest.mark.parametrize("name", ["purity", "purity_prompts"])
def test_a_target_is_judged_whatever_the_room_and_the_reason_says_what_there_is(name):
    """A verdict that only a reachable target can get could be supported without room, and never refuted."""
    claim = next(c for c in COMPARED if c.id == name)
    for reference, said in (
        (0.45, "reach 0.45, which is short of it."),
        (0.9, "reach 0.9."),
    ):
        for factor, expected in ((1.0, "refuted"), (2.0, "supported")):
            table = trained(name, "random", factor).assign(**{f"{name}_reference": reference})
            assert verdict(claim, table) == expected
            why = reason(claim, table)
            assert why.endswith(said)
            assert "The target is 0.502" in why
    assert verdict(claim, trained(name, "random", 1.0)) == "refuted"
    assert reason(claim, trained(name, "random", 1.0)).endswith("untrained was not measured.")


@pytest.mark.parametrize("arm", ["random_staged", "random_teacher"])
def test_soft_absorption_is_judged_whether_or_not_there_is_some(arm):
    claim = next(c for c in COMPARED if c.id == f"soft_absorption_beside_{arm}")
    table = trained("soft_absorption", arm, 0.3)
    assert verdict(claim, table) == "supported"
    assert reason(claim, table).endswith(f"The arm {arm} itself has 0.402.")
    table["soft_absorption"] -= 0.5
    assert verdict(claim, table) == "supported"
    assert "itself has -0.098, below 0: its parents rise with their children" in reason(claim, table)
    table.loc[table["arm"] == "teacher", "soft_absorption"] = 0.1
    assert verdict(claim, table) == "refuted"


@pytest.mark.parametrize("name", ["leakage", "leakage_prompts", "leakage_beside_random_teacher"])
def test_a_teacher_that_leaks_nothing_is_judged(name):
    """A ratio leaves pairs with 0 out; the best that there is would not be run."""
    claim = next(c for c in COMPARED if c.id == name)
    table = trained(BESIDE[name][0], BESIDE[name][1], 0.0)
    assert verdict(claim, table) == "supported"
    assert "5 values below 0.001 count as that" in reason(claim, table)
    assert "count as that" not in reason(claim, trained(BESIDE[name][0], BESIDE[name][1], 0.3))


def test_only_what_noise_does_too_leaves_a_claim_open_by_a_condition():
    """A precondition on the figure itself would let a claim be supported and not refuted; these read the null alone."""
    conditional = {claim.id for claim in (*COMPARED, *of_the_geometry(80, 0.1)) if claim.when}
    assert conditional == {"median_angle", "ratio_invariance", "ratio_invariance_null"}


def test_what_decides_a_claim_has_its_arms():
    """The command that a report gives for a claim that is not run trains what the claim compares."""
    configs = Path(str(resources.files("polytope_hsae"))) / "configs"
    for needed, claim in (*TRAINED, *IN_PROMPTS, *STEERED):
        name = (claim.decided_by or STUDY.decided_by).split()[-1]
        assert needed <= set(StudyConfig(**read_yaml(configs / f"{name}.yaml")).arms), claim.id


@pytest.mark.parametrize("claim", of_the_geometry(80, 0.1)[-2:], ids=lambda claim: claim.id)
def test_odds_that_stay_count_only_with_a_shift(claim):
    column, good, _ = OF_GEOMETRY[claim.id]
    row = {f"{column}_median": good, f"{column}_low": good, f"{column}_high": good, f"{column}_n": 9}
    assert verdict(claim, pd.DataFrame([row | {"p_ratio_invariance": 0.05}])) == "supported"
    assert verdict(claim, pd.DataFrame([row | {"p_ratio_invariance": 0.06}])) == "not run"
    assert verdict(claim, pd.DataFrame([row])) == "not run"


def test_thresholds_are_those_of_the_configuration():
    config = StudyConfig(eval={"validation": {"angle_threshold_deg": 85, "kl_threshold": 0.2}})
    found = {claim.id: claim for claim in claims("phase1", config)}
    assert (found["median_angle"].above, found["ratio_invariance"].below) == (85.0, 0.2)
    assert "85 degrees" in found["median_angle"].statement
    plain = {claim.id: claim for claim in claims("phase1", StudyConfig())}
    assert (plain["median_angle"].above, plain["ratio_invariance"].below) == (80.0, 0.1)


def test_a_phase_is_judged_by_what_it_has_reached():
    counts = [len(claims(verb, StudyConfig())) for verb in ("phase1", "phase2", "phase3", "phase4", "all")]
    assert counts[0] == counts[1] == len(OF_GEOMETRY)
    assert counts[2] < counts[3] == counts[4]
    planted = claims("all", StudyConfig(model={"name": "synthetic-tree"}))
    assert {c.id for c in claims("all", StudyConfig())} - {c.id for c in planted} == {
        "ce_parity",
        "purity_prompts",
        "leakage_prompts",
    }


def test_the_answer_is_worded_by_its_verdicts():
    ids = ("own_parent", "held_out_projection", "disjoint_angle_null", "purity", "leakage", "steering_leakage")
    answers = [answer(claims) for claims in every_verdict(*ids)]
    assert all(len(text.split()) <= 95 and "None" not in text for text in answers)
    assert all(text.count(". ") <= 1 for text in answers), "two sentences"
    found = [
        judged_as(id_, "supported", figure)
        for id_, figure in zip(ids, (0.5, 0.66, -7.9, 0.2, -30.0, -40.0), strict=True)
    ]
    assert answer(found) == (
        "Concepts do form a hierarchy: a child's words, unseen before, point along its parent too; held-out words project on "
        "their concept's vector with 0.66 of its length; the angle of child minus parent with the parent, each from words of "
        "its own, is 7.9 degrees smaller than with shuffled rows. An autoencoder that "
        "starts from it keeps it better, by 10 points of purity or more; its latents fire a fifth less often on other concepts' "
        "words; steering with it disturbs other words a fifth less."
    )


def test_the_answer_tells_a_refuted_leakage_beside_a_supported_steering():
    text = answer([judged_as("purity", "refuted", 0.003), judged_as("leakage", "refuted", 65.0), judged_as("steering_leakage", "supported", -37.0)])  # fmt: skip
    assert text == (
        "An autoencoder that starts from it does not keep it 10 points better than a random start; its latents do not fire a "
        "fifth less often on other concepts' words (+65 %); steering with it disturbs other words a fifth less."
    )


def test_the_answer_without_a_verdict():
    assert answer(
        [
            judged_as("own_parent", "refuted"),
            judged_as("purity", "refuted"),
            judged_as("steering_leakage", "refuted", -3.0),
        ]
    ) == (
        "Concepts form no hierarchy: a child's words do not point along its parent. An autoencoder that starts from it does "
        "not keep it 10 points better than a random start; steering with it does not disturb other words a fifth less."
    )
    assert answer([judged_as("own_parent", "inconclusive"), judged_as("purity", "not run")]) == (
        "Whether concepts form a hierarchy stays open. Whether an autoencoder that starts from it keeps it 10 points better was "
        "not run."
    )
    assert answer([]) == "No phase has been judged yet."
