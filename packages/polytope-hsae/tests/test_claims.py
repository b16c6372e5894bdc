"""Each claim can come out both ways, feeds on the column and the arms that it names, and is not run without them."""

import pandas as pd
import pytest

from polytope_hsae.claims import CROSS_ENTROPY, IN_PROMPTS, STEERED, TRAINED, claims, of_the_geometry
from polytope_hsae.config import StudyConfig
from polytope_hsae.report import answer
from studycore.claims import as_stored, judge_all
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
    "median_angle": ("nested_angle", 91.0, 60.0),
    "own_parent": ("projection_on_own_parent", 0.6, 0.0),
    "ratio_invariance": ("ratio_invariance_kl", 0.01, 0.5),
    "ratio_invariance_null": ("ratio_invariance_kl_minus_random", -0.01, 0.01),
}
ARMS = ("teacher", "random", "random_staged", "random_teacher", "frozen_random", "euclidean")
COMPARED = [claim for _, claim in (*TRAINED, *IN_PROMPTS, *STEERED)] + [CROSS_ENTROPY]


def trained(column, other, factor, seeds=5):
    """All arms alike, but for the one column in which the teacher is `factor` times the other arm."""
    rows = []
    for arm in ARMS:
        for seed in range(seeds):
            row = {name: 0.4 + 0.001 * seed for name, *_ in BESIDE.values()}
            row[column] = (0.4 + 0.001 * seed) * (factor if arm == "teacher" else 1.0 if arm == other else 7.0)
            row |= {"purity_reference": 0.9, "purity_prompts_reference": 0.9}
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
                }
            ]
        )

    assert verdict(claim, table(good)) == "supported"
    assert verdict(claim, table(bad)) == "refuted"
    assert verdict(claim, table(good, wide=1000.0)) == "inconclusive"
    assert verdict(claim, table(good).drop(columns=f"{column}_n")) == "not run"


@pytest.mark.parametrize("name", ["purity", "purity_prompts"])
def test_a_target_out_of_reach_is_not_run(name):
    """Ten points above 0.4 cannot be refuted where the directions of phase 1 reach 0.45 themselves; but the teacher may show otherwise."""
    claim = next(c for c in COMPARED if c.id == name)
    poor = {f"{name}_reference": 0.45}
    assert verdict(claim, trained(name, "random", 1.0).assign(**poor)) == "not run"
    assert verdict(claim, trained(name, "random", 1.0)) == "refuted"
    assert verdict(claim, trained(name, "random", 2.0).assign(**poor)) == "supported"
    found = judge_all([claim], trained(name, "random", 1.0).assign(**poor), [as_stored(claim)])[0]["why"]
    assert "above what phase 1's own directions reach untrained, 0.45" in found
    assert verdict(claim, trained(name, "random", 1.0).drop(columns=f"{name}_reference")) == "not run"


@pytest.mark.parametrize("arm", ["random_staged", "random_teacher"])
def test_soft_absorption_is_judged_where_there_is_some(arm):
    claim = next(c for c in COMPARED if c.id == f"soft_absorption_beside_{arm}")
    table = trained("soft_absorption", arm, 0.3)
    assert verdict(claim, table) == "supported"
    table.loc[table["arm"] == arm, "soft_absorption"] -= 0.5
    assert verdict(claim, table) == "not run"


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
    ids = ("own_parent", "purity", "steering_leakage")
    answers = [answer(claims) for claims in every_verdict(*ids)]
    assert all(len(text.split()) <= 45 and "None" not in text for text in answers)
    assert answers[0] == (
        "Concepts do form a hierarchy: a child's words, unseen before, point along its parent too. An autoencoder that starts "
        "from it keeps it better, by 10 points of purity or more; steering with it disturbs other words a fifth less."
    )
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
        "Whether concepts form a hierarchy stays open. Whether an autoencoder that starts from it keeps it 10 points better could "
        "not be judged."
    )
    assert answer([]) == "No phase has been judged yet."
