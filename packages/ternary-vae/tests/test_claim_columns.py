"""Each claim's quantity and threshold, each target at its very edge, each column that claims read, and conditions."""

import numpy as np
import pandas as pd
import pytest
from fabricated import peak, run, scratch, table, whole

from ternary_vae.claims import (
    ANY_RIM,
    BALL_TARGETS,
    CURVATURE_BUYS,
    FINDINGS,
    LEAST_SHARE,
    PLATEAUS,
    RULE_LEARNT,
    SAME_RIM,
    UNSEEN_TARGETS,
    WHOLE_TARGETS,
    claims,
)  # fmt: skip
from ternary_vae.columns import DRAWS, SETTINGS, TARGETS, WEIGHTS, columns_of, passes
from ternary_vae.config import SweepConfig, TrainConfig
from ternary_vae.measures import BEST_ARMS, COMPARABLE, largest_coverage

LONG = "9 trits and 10 epochs or more in every phase"
SEEDS = ", 3 seeds or more"
TWINS = (
    "ball has decode ball, geometry hyperbolic, kl_weight 0.015; flat_twin has decode ball, geometry euclidean, "
    "kl_weight 0.005, all else but [] alike and at_least(coverage, 0.9999, 'ball') and at_least(coverage, 0.9999, 'flat_twin')"
)
PLATEAU = (
    "has stages coverage, trits 9, train_fraction 1.0, start None, coverage_code mean, coverage_lr 0.001, batch_size 512, "
    "deep_share 0.0, coverage_frozen"
)
REST = ", all else but ['checkpoint_every', 'coverage_epochs', 'projection_seed', 'seed'] by default"
PAIRED = ", all else but [] alike"
OPEN = "seed, projection_seed, start, start_projections, radius, epochs, checkpoint_every, forward"
OF_PHASES = (
    ", all else as in the phases (stages hierarchy, hierarchy_frozen ['encoder_A', 'encoder_B', 'decoder_A', 'controller'], "
    f"loss rich_hierarchy, view a, code sample, batch_size 512, deep_share 0.0, lr 0.0005, scheduler constant, the rest by default; open: {OPEN}"
)
WEIGHTINGS = "".join(f", sweep2_* in {name}_weight" for name in ("hierarchy", "coverage", "richness", "separation"))
EARLY = "sweep3_early_stop_p5 has early_stopping_patience 5"
BALANCED, BASELINE = "sweep2_balanced has richness_weight 5.0", "sweep2_baseline has nothing of its own"
OF_DRAWS = (
    "sweep5 has start_projections drawn, lr 0.0003, early_stopping_patience 5; sweep6 has start_projections drawn"
)
MEASURED = {
    "plateau_frozen_decoder": ("mean(largest_coverage, 'frozen_decoder'), at least where coverage_epochs < 50", "<", 0.30, f"frozen_decoder {PLATEAU} ['decoder_A'], coverage_patience None{REST}"),
    "plateau_mended": ("mean(largest_coverage, 'mended'), at least where coverage_epochs < 50", "<", 0.30, f"mended {PLATEAU} [], coverage_patience 3{REST}"),
    "curvature_2_vs_1": ("paired_difference(best_hierarchy, 'sweep_curv_2.0' - 'sweep_curv_1.0')", "<", 0, f"{LONG} and sweep_curv_2.0 has curvature 2.0; sweep_curv_1.0 has curvature 1.0{PAIRED}"),
    "curvature_2_vs_1_same_rim": ("paired_difference(best_hierarchy, 'sweep_rim_2.0' - 'sweep_rim_1.0')", "<", 0, f"{LONG} and sweep_rim_2.0 has curvature 2.0, max_radius 0.67175; sweep_rim_1.0 has curvature 1.0, max_radius 0.95{PAIRED}"),
    "curvature_kl": ("paired_difference(kl, 'ball' - 'flat_twin')", "<", 0, TWINS),
    "curvature_coverage_sampled": ("paired_difference(coverage_sampled, 'ball' - 'flat_twin')", ">", 0, TWINS),
    "curvature_prior_coverage": ("paired_difference(prior_coverage, 'ball' - 'flat_twin')", ">", 0, TWINS),
    "rule_learnt": ("mean(size_of_order, 'shuffled'), of those with fewer than 0.001 tied, and coverage 0.9999 or more or size_of_order 0.5 or more", "<", 0.5, "ball has valuations true; shuffled has valuations shuffled, all else but [] alike and at_least(order, 0.9, 'ball')"),
    "decay_balanced": ("mean over seeds of the end minus the best epoch of the other seeds (hierarchy, 'sweep2_balanced'), not of a start", ">", 0.16, f"{LONG} and at_least(epochs, 21, 'sweep2_balanced') and {BALANCED}"),
    "decay_baseline": ("mean over seeds of the end minus the best epoch of the other seeds (hierarchy, 'sweep2_baseline'), not of a start", ">", 0.19, f"{LONG} and at_least(epochs, 21, 'sweep2_baseline') and {BASELINE}"),
    "peak_weights": ("mean over seeds of the largest best_epoch of group = 'sweep2_*', not of a start", "<", 20.5, f"{LONG} and at_least(epochs, 21, group = 'sweep2_*') and {BALANCED}; {BASELINE}"),
    "early_stop_vs_step": ("paired_difference(best_hierarchy of common epochs, 'sweep3_early_stop_p5' - 'sweep3_step_decay')", "<", 0, f"{LONG} and {EARLY}; sweep3_step_decay has scheduler step{PAIRED}"),
    "early_stop_vs_cosine": ("paired_difference(best_hierarchy of common epochs, 'sweep3_early_stop_p5' - 'sweep3_cosine')", "<", 0, f"{LONG} and {EARLY}; sweep3_cosine has scheduler cosine, all else but ['epochs'] alike"),
    "early_stop_peak": ("mean over seeds of the largest best_epoch of arm = 'sweep3_early_stop_p5', not of a start", "<", 10.5, f"{LONG} and at_least(epochs, 11, 'sweep3_early_stop_p5') and {EARLY}"),
    "lr_1e3_vs_1e4": ("paired_difference(best_hierarchy, 'sweep4_lr_1e3' - 'sweep4_lr_1e4')", "<", 0, f"{LONG} and sweep4_lr_1e3 has lr 0.001; sweep4_lr_1e4 has lr 0.0001{PAIRED}"),
    "lr_1e3_vs_3e4": ("paired_difference(best_hierarchy, 'sweep4_lr_1e3' - 'sweep4_lr_3e4')", "<", 0, f"{LONG} and sweep4_lr_1e3 has lr 0.001; sweep4_lr_3e4 has lr 0.0003{PAIRED}"),
    "lr_1e3_peak": ("mean over seeds of the largest best_epoch of arm = 'sweep4_lr_1e3', not of a start", "<", 2.5, f"{LONG} and at_least(epochs, 3, 'sweep4_lr_1e3') and sweep4_lr_1e3 has lr 0.001"),
    "stability": (f"spread(best_hierarchy, group = '{DRAWS}', within phase and seed, 4 different ones or more, over c4)", "<", 0.030, f"{LONG} and {OF_DRAWS}"),
    "init_best_correlation": (f"correlation(initial_hierarchy, best_hierarchy, group = '{DRAWS}', within phase and seed, 4 different ones or more, z less its bias)", ">", 0.92, f"{LONG} and {OF_DRAWS}"),
    "best_achieved": ("mean over seeds of the least best_hierarchy of sweep2_baseline, sweep3_early_stop_p5, sweep4_lr_1e3", "<", -0.792, f"{LONG} and sweep2_baseline has start_projections drawn; sweep3_early_stop_p5 has start_projections drawn, early_stopping_patience 5; sweep4_lr_1e3 has start_projections drawn, lr 0.001{PAIRED}"),
    "ordered_no_decay": ("mean(decay, 'sweep7_ordered')", "<", 0.001, f"{LONG} and sweep7_ordered has loss ordered"),
    "ordered_vs_level_means": ("mean over seeds of final_hierarchy, 'sweep7_ordered' - the arm of the loss rich_hierarchy that ends best in the other seeds", "<", 0, f"{LONG} and sweep7_ordered has loss ordered; {BASELINE}{PAIRED}"),
}  # fmt: skip
"""What stands in README and reports of each finding: quantity, side, threshold, precondition."""


def test_each_finding_is_judged_by_the_quantity_and_threshold_that_are_published():
    untied = " and fewer than 0.001 of the radii tied, and none beyond the ceiling, at the best"
    findings = {claim.id for claim in (ANY_RIM, SAME_RIM, *FINDINGS)}
    ends = {name: f"{OF_PHASES}){untied}" if name in findings else "" for name in MEASURED}
    ends["peak_weights"] = f"{OF_PHASES}{WEIGHTINGS}){untied}"
    for name in ("decay_balanced", "decay_baseline", "ordered_no_decay", "ordered_vs_level_means"):
        ends[name] += " and at the end"
    ends["ordered_vs_level_means"] += " of every phase"
    expected = {name: (of + SEEDS, *rest, when + ends[name]) for name, (of, *rest, when) in MEASURED.items()}
    published = {
        claim.id: (
            claim.measure.text, "<" if claim.above is None else ">", claim.below if claim.above is None else claim.above,
            claim.when.text if claim.when else "",
        )
        for claim in (*PLATEAUS.values(), ANY_RIM, SAME_RIM, *FINDINGS, *CURVATURE_BUYS, RULE_LEARNT)
    }  # fmt: skip
    assert published == expected
    assert not any(claim.of_every_unit for claim in (*PLATEAUS.values(), ANY_RIM, *FINDINGS))


def test_each_target_is_the_share_of_whole_runs_that_pass_it():
    assert LEAST_SHARE == 0.5
    for claim in (*WHOLE_TARGETS, *BALL_TARGETS, *UNSEEN_TARGETS):
        fits = (
            "fits_unseen_targets (train_fraction 0.1, trits 9)" if claim.id.startswith("unseen") else
            "fits_targets (trits 9, curvature 1.0, max_radius 0.95, train_fraction 1.0)"
        )  # fmt: skip
        given = f"given target {TARGETS[claim.id]!r}"
        assert claim.measure.text == f"share(passes_{claim.id}, whole = True, by seed), {given}"
        assert (claim.above, claim.of_every_unit) == (LEAST_SHARE, True)
        assert claim.when.text == f"every whole run {fits} and has passes_{claim.id}"
    assert {claim.id for claim in (*WHOLE_TARGETS, *BALL_TARGETS, *UNSEEN_TARGETS)} == set(TARGETS)


CEILING = 0.8
PASSES = {
    "scratch_coverage": {"covered": 19_683, "operations": 19_683},
    "scratch_gaps": {"min_level_gap": 1e-12, "positive_gaps": 9},
    "scratch_hierarchy": {"hierarchy_of_ceiling": 0.9999, "somers_d_depths": -0.85, "tied_radius_share": 0.00099999},
    "scratch_ties": {"tied_radius_share": 0.00099999},
    "scratch_richness": {"richness": 0.003},
    "scratch_rate": {"kl_of_least": 2.0, "coverage": 0.9999},
    "scratch_prior": {"prior_coverage": 0.99, "coverage": 0.9999},
    "unseen_coverage": {"coverage_unseen": 0.9500001},
    "unseen_hierarchy": {
        "hierarchy_unseen": -0.99 * CEILING, "hierarchy_ceiling_unseen": CEILING, "somers_d_depths_unseen": -0.7,
        "tied_radius_share": 0.00099999,
    },
}  # fmt: skip
MISSES = [
    ("scratch_coverage", {"covered": 6561, "operations": 6561}), ("scratch_coverage", {"covered": 19_682}),
    ("scratch_gaps", {"min_level_gap": 0.0}), ("scratch_gaps", {"positive_gaps": 8}),
    ("scratch_hierarchy", {"hierarchy_of_ceiling": 0.99989999}), ("scratch_ties", {"tied_radius_share": 0.001}),
    ("scratch_hierarchy", {"hierarchy_of_ceiling": 1.000001}), ("scratch_hierarchy", {"somers_d_depths": -0.8499}),
    ("scratch_hierarchy", {"tied_radius_share": 0.001}), ("unseen_hierarchy", {"hierarchy_unseen": -1.000001 * CEILING}),
    ("unseen_hierarchy", {"somers_d_depths_unseen": -0.6999}), ("unseen_hierarchy", {"tied_radius_share": 0.001}),
    ("scratch_rate", {"kl_of_least": 0.9999}), ("scratch_rate", {"coverage": 0.9998}),
    ("scratch_rate", {"kl_of_least": 2.0001}), ("scratch_prior", {"prior_coverage": 0.98999}),
    ("scratch_prior", {"coverage": 0.9998}),
    ("scratch_richness", {"richness": 0.0029999}), ("unseen_coverage", {"coverage_unseen": 0.95}),
    ("unseen_hierarchy", {"hierarchy_unseen": -0.98999 * CEILING}), ("unseen_hierarchy", {"hierarchy_unseen": 0.99 * CEILING}),
    ("unseen_hierarchy", {"hierarchy_ceiling_unseen": 0.81}),
]  # fmt: skip


def test_targets_pass_at_their_edge_and_miss_beyond_it():
    assert all(passes(name, metrics) for name, metrics in PASSES.items())
    assert passes("scratch_rate", {"kl_of_least": 1.0, "coverage": 1.0})
    for name, changes in MISSES:
        assert not passes(name, {**PASSES[name], **changes}), (name, changes)


def row(**config):
    """Columns of a run with a peak in its hierarchy and another one in its coverage."""
    rows = [
        {"step": 10, "stage": "coverage", "epoch": 0, "coverage": 0.1, "hierarchy": -0.9},
        {"step": 20, "stage": "coverage", "epoch": 1, "coverage": 0.7},
        {"step": 20, "stage": "hierarchy", "epoch": 0, "coverage": 0.4, "hierarchy": 0.3},
        {"step": 30, "stage": "hierarchy", "epoch": 1, "coverage": 0.4, "hierarchy": -0.7},
        {"step": 40, "stage": "hierarchy", "epoch": 2, "coverage": 0.4, "hierarchy": -0.6},
    ]
    metrics = {"richness": 0.5, "coverage": 0.4, "coverage_epoch_stage": "coverage", "baselines": {}}
    return columns_of("some_s3", TrainConfig(seed=3, **config), rows, metrics, 12.5)


def test_columns_of_a_run_are_of_its_first_best_and_last_evaluation():
    of_run = row(lr=0.5)
    assert (of_run["initial_hierarchy"], of_run["best_hierarchy"], of_run["final_hierarchy"]) == (0.3, -0.7, -0.6)
    assert (of_run["best_epoch"], of_run["decay"]) == (1, pytest.approx(0.1))
    assert of_run["largest_coverage"] == 0.7, "of the whole run, not of its end"
    assert [line["epoch"] for line in of_run["ordering_rows"]] == [0, 1, 2]
    assert (of_run["seconds"], of_run["richness"], of_run["arm_without_draw"]) == (12.5, 0.5, "some")
    assert of_run["settings"]["lr"] == 0.5 and not {"baselines", "coverage_epoch_stage"} & set(of_run)
    config = TrainConfig(seed=3, lr=0.5)
    assert all(of_run[name] == getattr(config, name) for name in SETTINGS)
    # The targets whose metrics are there: a KeyError of the others leaves no column.
    assert {name for name in of_run if name.startswith("passes_")} == {"passes_scratch_richness"}
    alone = columns_of("c_s0", TrainConfig(stages="coverage"), [{"stage": "coverage", "coverage": 0.2}], {}, 0.0)
    assert not {"decay", "best_hierarchy", "ordering_rows", "group"} & set(alone)


def test_radii_that_end_all_equal_are_in_no_order():
    rows = [{"stage": "hierarchy", "epoch": e, "coverage": 1.0, "hierarchy": -0.7 - e / 100} for e in range(3)]
    config = TrainConfig(stages="hierarchy", start="x")
    of_run = columns_of("a_s0", config, [*rows, {"stage": "hierarchy", "epoch": 3, "coverage": 1.0}], {}, 0.0)
    assert (of_run["final_hierarchy"], of_run["decay"]) == (0.0, pytest.approx(0.72))


def test_an_order_against_the_rule_is_of_the_same_size():
    """The control claims that there is none, in either direction."""
    metrics = {"tied_radius_share": 0.0, "hierarchy_of_ceiling": -0.3}
    rows = [{"stage": "hierarchy", "epoch": 0, "coverage": 1.0, "hierarchy": 0.2}]
    of_run = columns_of("shuffled_s0", TrainConfig(valuations="shuffled"), rows, metrics, 0.0)
    assert (of_run["order"], of_run["size_of_order"]) == (-0.3, 0.3)


@pytest.mark.parametrize(
    ("config", "whole_run", "fits", "fits_unseen"),
    [
        ({}, True, True, False),
        ({"stages": "joint"}, True, True, False),
        ({"stages": "hierarchy", "start": "x"}, False, False, False),
        ({"start": "x"}, True, False, False),
        ({"stages": "joint", "start": "x", "train_fraction": 0.1}, True, False, False),
        ({"train_fraction": 0.1}, True, False, True),
        ({"train_fraction": 0.1001}, True, False, False),
        ({"train_fraction": 0.1, "trits": 8}, True, False, False),
        ({"trits": 8}, True, False, False),
        ({"curvature": 0.9}, True, False, False),
        ({"max_radius": 0.9}, True, False, False),
        ({"bands": "even"}, False, True, False),
        ({"valuations": "shuffled"}, False, True, False),
    ],
    ids=str,
)
def test_which_runs_are_asked_for_targets(config, whole_run, fits, fits_unseen):
    of_run = row(**config)
    assert (of_run["whole"], of_run["fits_targets"], of_run["fits_unseen_targets"]) == (whole_run, fits, fits_unseen)


def test_a_run_that_only_covers_is_whole_where_it_sees_a_part():
    def is_whole(**config):
        rows = [{"stage": "coverage", "epoch": 0, "coverage": 0.2}]
        return columns_of("c_s0", TrainConfig(stages="coverage", **config), rows, {}, 0.0)["whole"]

    assert (is_whole(), is_whole(train_fraction=0.5)) == (False, True)


@pytest.mark.parametrize(
    ("name", "config", "group"),
    [
        ("sweep2_balanced_s0", {}, WEIGHTS), ("sweep5_draw_3_s0", {}, DRAWS), ("sweep6_draw_11_s2", {}, DRAWS),
        ("sweep5_s0", {"loss": "ordered"}, None), ("sweep2_x_s0", {"loss": "ordered"}, None), ("sweep7_s0", {}, None),
        ("sweep_curv_2.0_s0", {}, None),
        ("sweep_lat_euclidean_s0", {}, None),
    ],
)  # fmt: skip
def test_arms_are_grouped_by_what_claims_take_together(name, config, group):
    made = TrainConfig(stages="hierarchy", start="x", **{"loss": "rich_hierarchy", **config})
    of_run = columns_of(name, made, [{"stage": "hierarchy", "coverage": 0, "epoch": 0, "hierarchy": 0.0}], {}, 0.0)
    assert of_run.get("group") == group
    from_scratch = columns_of(name, TrainConfig(), [{"stage": "coverage", "coverage": 0, "epoch": 0}], {}, 0.0)
    assert "group" not in from_scratch


def test_findings_are_asked_of_nine_trits_and_ten_epochs_in_every_phase():
    def unmet(*runs):
        return bool(COMPARABLE.unmet(table(runs)))

    long = run("a", 0, peak(-0.7, 2, -0.6, 4), epochs=10)
    assert not unmet(long)
    assert unmet(long, run("b", 0, peak(-0.7, 2, -0.6, 4), epochs=9))
    assert unmet(long, run("b", 0, peak(-0.7, 2, -0.6, 4), epochs=10, trits=8))
    assert not unmet(long, whole(0, trits=8, epochs=2)), "runs from scratch are in no phase"


def test_of_the_plateau_the_largest_coverage_counts_that_any_evaluation_had():
    """One that had all operations right and lost them again was on no plateau."""
    runs = [scratch("mended", seed, [0.0, 0.9 + 0.01 * seed, 0.1], coverage_epochs=50) for seed in range(3)]
    interval, how = largest_coverage("mended").compute(table(runs))
    assert interval.estimate == pytest.approx(0.91) and not interval.at_least and "Only" not in how
    short_runs = [scratch("mended", seed, [0.0, 0.9], coverage_epochs=49) for seed in range(3)]
    interval, how = largest_coverage("mended").compute(table(short_runs))
    assert interval.at_least and "these had 49" in how


def measured(name, runs):
    claim = next(claim for claim in FINDINGS if claim.id == name)
    return claim.measure.compute(table(runs))[0].estimate


def test_the_best_of_three_arms_is_the_best_of_each_seed():
    baseline, early, high = BEST_ARMS
    runs = []
    for s in range(3):
        runs += [run(baseline, s, [0.1, -0.5 - 0.1 * s, -0.4]), run(early, s, [0.1, -0.55, -0.3])]
        runs += [run(high, s, [0.1, -0.2]), run("another", s, [0.1, -0.95])]
    assert measured("best_achieved", runs) == pytest.approx((-0.55 - 0.6 - 0.7) / 3)


def test_the_default_loss_is_set_against_the_arm_that_ends_best():
    """Not the one that has the best evaluation, nor a run from scratch; draws of an arm are averaged."""
    runs = []
    for s in range(3):
        runs += [run("sweep7_ordered", s, [0, -0.80, -0.75], loss="ordered"), run("peaks", s, [0, -0.79, -0.3])]
        runs += [run("sweep5_draw_0", s, [0, -0.7, -0.5]), run("sweep5_draw_1", s, [0, -0.7, -0.6])]
        runs += [whole(s, loss="rich_hierarchy")]
    assert measured("ordered_vs_level_means", runs) == pytest.approx(-0.75 + 0.55)


def test_the_default_loss_is_seldom_worse_than_arms_that_equal_it():
    """Of 30 arms the one that ends best in the same seeds ends lower than its own mean, and would beat an equal."""
    random, refuted = np.random.default_rng(21), 0
    claim = next(claim for claim in FINDINGS if claim.id == "ordered_vs_level_means")
    arms = [("sweep7_ordered", "ordered"), *((f"arm{k}", "rich_hierarchy") for k in range(30))]
    for _ in range(200):
        runs = [
            {"arm": arm, "arm_without_draw": arm, "run": f"{arm}_s{seed}", "phase_loss": loss, "seed": seed, "stages": "hierarchy",
             "start_projections": "drawn", "radius": "hyperbolic", "best_hierarchy": 0.0, "final_hierarchy": random.normal(-0.7, 0.02)}
            for arm, loss in arms
            for seed in range(6)
        ]  # fmt: skip
        refuted += claim.measure.compute(pd.DataFrame(runs))[0].low > 0
    # About 6 % of trials, since the seeds' choices depend on one another; with the best arm of the same seeds 18 %.
    assert refuted <= 24


def test_which_claims_a_sweep_has_depends_on_what_its_runs_see():
    def ids(**parts):
        return [claim.id for claim in claims("sweep", SweepConfig(**parts))]

    unseen, targets = [claim.id for claim in UNSEEN_TARGETS], [claim.id for claim in WHOLE_TARGETS]
    part = {"coverage": {"train_fraction": 0.1}}
    assert ids(**part, from_scratch={"a": {}, "b": {}}) == unseen
    assert ids(**part, from_scratch={"a": {}, "b": {"stages": "coverage"}}) == unseen[:1]
    assert ids(from_scratch={"a": {}}) == targets and ids(from_scratch={"a": {"stages": "coverage"}}) == []
    assert ids(from_scratch={"a": {"decode": "ball", "stages": "joint"}}) == [claim.id for claim in BALL_TARGETS]
    assert ids(from_scratch={"a": {"valuations": "shuffled"}}) == []
    assert ids(from_scratch={"a": {"stages": "coverage", "train_fraction": 0.1}}) == unseen[:1]
    assert ids(**part, phases={"p": {}}) == [], "the coverage runs of phases are checkpoints"
    assert ids(phases={"p": {"arms": {"sweep3_early_stop_p5": {}}}}) == ["early_stop_peak"]
