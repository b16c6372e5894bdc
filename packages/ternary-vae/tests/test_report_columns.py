"""Which value stands in each cell of each table, and at each point of each figure."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from fabricated import CEILING, peak, row, run, scratch, table, whole

import studycore.figures
from studycore.statistics import Interval
from studycore.testing.fabricated import every_verdict, judged_as
from ternary_vae import figures, report
from ternary_vae.comparisons import ArmStatistics, InertFactor, arm_statistics
from ternary_vae.config import TrainConfig
from ternary_vae.history import COVERAGE_METRICS
from ternary_vae.metric_table import MEANINGS, metric_table

ARM = ArmStatistics(
    phase="2_weights", arm="heavy", n=3, runs=6, best=-0.71, best_std=0.011, best_interval=Interval(-0.71, -0.72, -0.70, 3),
    final=-0.61, final_std=0.022, final_interval=Interval(-0.61, -0.63, -0.59, 3), best_epoch=4.5, somers_d=-0.81,
    richness=0.0041, coverage=0.97, min_level_gap=-0.055, against_best=Interval(0.04, 0.01, 0.07, 3), is_best=False,
)  # fmt: skip
"""Every number another one."""


# ------------------------------------------------------------------------------------------------------------- tables
def test_the_table_of_arms_has_each_statistic_under_its_head():
    closed = {"3^9": {"hierarchy": -0.83, "somers_d": -1.0, "richness": 0.004, "coverage": 0.5, "min_level_gap": 0.01}}
    untrained = {"hierarchy": 0.31, "somers_d": 0.42, "richness": 0.0001, "coverage": 0.25, "min_level_gap": -0.3}
    rendered = report.arm_table([ARM], closed, untrained)
    assert dict(zip(rendered.columns, rendered.rows[0], strict=True)) == {
        "phase": "2_weights", "arm": "heavy", "n": 3, "best hierarchy [95 %]": "-0.710 [-0.720, -0.700]",
        "at the end [95 %]": "-0.610 [-0.630, -0.590]",
        "Somers' D": "-0.8100", "richness": "0.00410", "coverage": "0.97000", "min gap": "-0.0550",
        "cannot be told from the phase's best": "no: 0.040 [0.010, 0.070]",
    }  # fmt: skip
    alone = report.arm_table([dataclasses.replace(ARM, best_interval=None)], {}, {})
    assert alone.rows[0][3] == "-0.7100 (n = 1)"
    for line, label, values, why in (
        (rendered.rows[1], "closed form (3^9)", ("-0.8300", "-1.0000", "0.00400", "0.50000", "0.0100"), "no learning"),
        (rendered.rows[2], "untrained projections", ("0.3100", "0.4200", "0.00010", "0.25000", "-0.3000"), "epoch 0, mean of runs"),
    ):  # fmt: skip
        assert (line[0], line[1], line[-1]) == ("baseline", label, why)
        cells = dict(zip(rendered.columns, line, strict=True))
        names = ("at the end [95 %]", "Somers' D", "richness", "coverage", "min gap")
        assert tuple(cells[name] for name in names) == values and set(line[2:4]) == {""}


def test_what_is_said_of_an_arm_beside_its_phases_best():
    best, alone = (dataclasses.replace(ARM, against_best=None, is_best=best) for best in (True, False))
    assert (report.against_text(best), report.against_text(alone)) == ("is the best", "too few seeds")
    for low, high, mark in ((-0.01, 0.02, "yes"), (0.0, 0.02, "yes"), (-0.02, 0.0, "yes"), (0.001, 0.02, "no"), (-0.02, -0.001, "no")):  # fmt: skip
        arm = dataclasses.replace(ARM, against_best=Interval(0.0, low, high, 3))
        assert report.against_text(arm).startswith(f"{mark}: ")
    flat = report.flat_statistics(best)
    assert "against_best_low" not in flat and "indistinguishable" not in flat
    assert report.flat_statistics(ARM) == {
        "phase": "2_weights", "arm": "heavy", "n": 3, "runs": 6, "best": -0.71, "best_std": 0.011, "best_interval_estimate": -0.71,
        "best_interval_low": -0.72, "best_interval_high": -0.70, "final": -0.61, "final_std": 0.022, "final_interval_estimate": -0.61,
        "final_interval_low": -0.63, "final_interval_high": -0.59, "best_epoch": 4.5, "somers_d": -0.81, "richness": 0.0041,
        "coverage": 0.97, "min_level_gap": -0.055, "against_best_estimate": 0.04, "against_best_low": 0.01,
        "against_best_high": 0.07, "is_best": False, "indistinguishable": False,
    }  # fmt: skip


def test_statistics_of_an_arm_are_of_their_columns():
    def one(seed, end, **metrics):
        made = run("a", seed, [0.1, -0.9 - 0.01 * seed, end])
        return dataclasses.replace(made, metrics={**made.metrics, **metrics})

    runs = [
        one(0, -0.5, somers_d=-0.2, richness=0.01, coverage=0.5, min_level_gap=-0.3),
        one(1, -0.7, somers_d=-0.4, richness=0.03, coverage=0.7, min_level_gap=-0.1),
    ]
    (arm,) = arm_statistics(table(runs))
    assert (arm.best, arm.final, arm.best_epoch) == pytest.approx((-0.905, -0.6, 1))
    assert (arm.best_std, arm.final_std) == pytest.approx((0.01 / 2**0.5, 0.2 / 2**0.5))
    assert (arm.somers_d, arm.richness, arm.coverage) == pytest.approx((-0.3, 0.02, 0.6))
    assert arm.min_level_gap == -0.3, "the worst of the runs"
    assert (arm.best_interval.estimate, arm.final_interval.estimate) == pytest.approx((-0.905, -0.6))


def test_the_table_of_metrics_has_every_value_in_its_column():
    own = {name: 1 + i / 1000 for i, name in enumerate(MEANINGS)}
    beside = {
        "closed_form": {name: 2 + i / 1000 for i, name in enumerate(MEANINGS)},
        "untrained": {"hierarchy": 0.1, "coverage": 0.2},
    }
    rendered = metric_table(own, beside)
    assert rendered.columns == ("metric", "trained", "closed form (no learning)", "untrained", "unit", "meaning")
    assert [line[0] for line in rendered.rows] == list(MEANINGS)
    for i, line in enumerate(rendered.rows):
        name = line[0]
        fine = name.startswith(("hierarchy", "somers_d", "coverage"))
        values = (1 + i / 1000, 2 + i / 1000)
        assert line[1:3] == (tuple(f"{value:.6f}" for value in values) if fine else values), name
        assert line[3] == {"hierarchy": "0.100000", "coverage": "0.200000"}.get(name, "none")
        assert line[4:] == MEANINGS[name]
    untrained = {line[0]: line[1] for line in metric_table(own, {}, trained=False).rows}
    assert {name for name, cell in untrained.items() if cell != "untrained"} == set(COVERAGE_METRICS)
    assert set(COVERAGE_METRICS) == {
        "coverage", "covered", "operations", "coverage_sampled", "coverage_seen", "coverage_unseen", "unseen", "kl",
        "kl_of_least", "prior_coverage", "linear_coverage_unseen",
    }  # fmt: skip
    assert [line[0] for line in metric_table({"q": 1.0}, {"untrained": {"richness": 2.0}}).rows] == ["richness", "q"]


def test_the_table_of_evaluations_has_every_value_in_its_column():
    rows = [row(3, -0.5, coverage=0.9, min_level_gap=-0.2, tied_radius_share=0.1), {"step": 9, "stage": "coverage", "epoch": 1, "coverage": 0.3}]  # fmt: skip
    rendered = report.curves_table(rows)
    assert rendered.columns == (
        "stage", "epoch", "update", "coverage", "hierarchy", "somers_d", "min_level_gap", "tied_radius_share", "richness",
    )  # fmt: skip
    assert rendered.rows[0] == (
        "hierarchy", 3, 30, "0.900000", "-0.500000", f"{-0.5 / CEILING:.6f}", -0.2, 0.1, pytest.approx(0.0015),
    )  # fmt: skip
    assert rendered.rows[1] == ("coverage", 1, 9, "0.300000", "", "", "", "", "")


def test_runs_from_scratch_are_summed_up_over_seeds():
    runs = [scratch("mended", s, [0.0, 1.0, end]) for s, end in enumerate((0.9, 1.0, 0.95))]
    runs += [scratch("frozen", 0, [0.0, 0.2])]
    statistics = report.scratch_statistics(table(runs))
    mended = statistics["mended"]
    assert (mended["n"], mended["runs"], mended["full"]) == (3, 3, 3)
    assert (mended["coverage"], mended["smallest"], mended["largest"]) == pytest.approx((0.95, 0.9, 1.0))
    assert mended["coverage_std"] == pytest.approx(0.05) and mended["full_coverage_epoch"] == 1
    assert mended["coverage_low"] < 0.9 < 1.0 < mended["coverage_high"]
    assert (
        statistics["frozen"]["full"],
        statistics["frozen"]["full_coverage_epoch"],
        statistics["frozen"]["coverage_low"],
    ) == (
        0,
        None,
        None,
    )
    lines = report.scratch_table(statistics).rows
    assert lines[0] == (
        "mended",
        3,
        "0.95 [0.83, 1.07]",
        "0.90000 to 1.00000",
        "3 of 3",
        "1.0",
    )
    assert lines[1] == ("frozen", 1, "0.20000 (n = 1)", "0.20000 to 0.20000", "0 of 1", "never")
    own = table(runs).assign(coverage_unseen=[0.5, 0.7, 0.9, np.nan])
    partly = report.scratch_statistics(own)
    assert (partly["mended"]["coverage_unseen"], partly["mended"]["smallest_unseen"]) == pytest.approx((0.7, 0.5))
    assert [line[-1] for line in report.scratch_table(partly).rows] == ["0.70000 (0.50000)", "all seen"]


TINY = {"trits": 3, "encoder_sizes": [4], "decoder_sizes": [4], "latent_dim": 2, "hidden_dim": 4}


def test_the_table_of_seeds_has_every_metric_in_its_column():
    def changed(seed):
        return {
            "coverage": 0.9, "covered": 24 + seed, "hierarchy": -0.7 - 0.01 * seed, "hierarchy_of_ceiling": 0.95,
            "somers_d": -0.8, "somers_d_depths": -0.75, "min_level_gap": 0.01 * seed, "tied_radius_share": 0.25, "richness": 0.0125, "kl": 15.5,
            "prior_coverage": 0.9925,
        }  # fmt: skip

    runs = [dataclasses.replace(whole(seed, changed(seed), **TINY), seconds=60.0 + seed) for seed in (1, 0)]
    rendered = report.seed_table(table(runs))
    assert rendered.columns == (
        "arm", "seed", "coverage", "covered", "of samples", "KL, nats", "met by the prior", "hierarchy", "of its ceiling",
        "Somers' D", "by depth", "min gap", "tied radii", "richness", "seconds",
    )  # fmt: skip
    cells = dict(zip(rendered.columns, rendered.rows[0], strict=True))
    assert cells == {
        "arm": "train", "seed": 0, "coverage": "0.900000", "covered": 24, "of samples": None, "KL, nats": 15.5,
        "met by the prior": 0.9925, "hierarchy": "-0.700000", "of its ceiling": "0.950000", "Somers' D": "-0.800000",
        "by depth": "-0.750000", "min gap": 0.0, "tied radii": 0.25, "richness": 0.0125, "seconds": "60",
    }  # fmt: skip
    assert (rendered.rows[1][1], rendered.rows[1][3], rendered.rows[1][-1]) == (1, 25, "61")
    assert [line[:2] for line in rendered.rows[2:]] == [("closed form", "")], "stages measure no untrained model"
    assert (rendered.rows[2][9], rendered.rows[2][2], rendered.rows[2][-1]) == ("-1.000000", report.NOT_APPLICABLE, "")
    joint = report.seed_table(table([whole(0, changed(0), stages="joint", **TINY)]))
    assert [line[0] for line in joint.rows[1:]] == ["closed form", "train, untrained"]
    assert joint.rows[2][7] == "0.200000", "the first evaluation of its history"
    metrics = report.seed_metrics(table(runs))
    assert metrics["seeds"]["train/1"]["covered"] == 25 and metrics["seeds"]["train/0"]["seconds"] == 60
    assert (metrics["min"]["covered"], metrics["max"]["covered"]) == (24, 25)
    assert (metrics["min"]["hierarchy"], metrics["max"]["hierarchy"]) == pytest.approx((-0.71, -0.70))
    unseen = [dataclasses.replace(one, metrics={**one.metrics, "coverage_unseen": 0.5, "hierarchy_unseen": -0.4, "hierarchy_ceiling_unseen": 0.8, "somers_d_unseen": -0.3}, config=dataclasses.replace(one.config, train_fraction=0.5)) for one in runs]  # fmt: skip
    heads = dict(zip(report.seed_table(table(unseen)).columns, report.seed_table(table(unseen)).rows[0], strict=True))
    assert [heads[name] for name in ("coverage, unseen", "hierarchy, unseen", "its ceiling", "Somers' D, unseen")] == [
        "0.500000", "-0.400000", "0.800000", "-0.300000",
    ]  # fmt: skip


def test_the_table_of_inert_factors_has_every_value_in_its_column():
    rendered = report.inert_table([InertFactor("lr", (0.1, 0.2), ("a", "b"), 3, 33)])
    assert dict(zip(rendered.columns, rendered.rows[0], strict=True)) == {
        "field": "lr", "value": "0.1", "other value": "0.2", "arm": "a", "other arm": "b", "seeds": 3, "evaluations": 33,
    }  # fmt: skip
    assert report.inert_table([]).note.startswith("None was found.")


def test_baselines_of_a_sweep_are_of_its_geometries_and_first_evaluations():
    runs = [run("a", 0, [0.4, -0.5], trits=3), run("b", 0, [0.2, -0.6], trits=3, curvature=0.5), run("c", 0, [0.3, -0.5], trits=3, radius="euclidean")]  # fmt: skip
    forms = report.closed_forms(table(runs))
    assert list(forms) == [
        "3^3, curvature 1, max radius 0.95, hyperbolic", "3^3, curvature 0.5, max radius 0.95, hyperbolic",
        "3^3, curvature 1, max radius 0.95, euclidean",
    ]  # fmt: skip
    assert len({values["richness"] for values in forms.values()}) == 3
    means = report.untrained_mean(table(runs))
    assert means["hierarchy"] == pytest.approx(0.3) and means["somers_d"] == pytest.approx(0.3 / CEILING)
    assert report.untrained_mean(table([scratch("mended", 0, [0.1])])) == {}


# ------------------------------------------------------------------------------------------------------------- answers
def test_the_answer_of_a_run_says_its_own_numbers():
    metrics = {
        "covered": 19_000, "operations": 19_683, "hierarchy": -0.8, "hierarchy_of_ceiling": 0.9615, "positive_gaps": 4, "gaps": 9,
    }  # fmt: skip
    covered = "19,000 of 19,683 operations come back with every trit right"
    assert report.answer(metrics, True) == (
        f"{covered}; hierarchy -0.800000, 96.1500 % of what radii without ties can reach, with 4 of 9 neighbouring levels apart."
    )
    inverted = {**metrics, "hierarchy": 0.8, "hierarchy_of_ceiling": -0.96}
    assert "hierarchy 0.800000, the wrong way round, with 4 of 9" in report.answer(inverted, True)
    assert report.answer(metrics, False) == f"{covered}; this run trained no radii."
    equal = {name: value for name, value in metrics.items() if not name.startswith("hierarchy")}
    assert report.answer(equal, True) == f"{covered}; all radii are equal, so there is no hierarchy."
    assert "has not ended; at its last evaluation its coverage was 0.250000" in report.answer({"coverage": 0.25}, True)


def test_the_notes_of_a_sweep_name_the_arm_that_ends_best():
    peaks = dataclasses.replace(ARM, arm="peaks", best=-0.9, final=-0.5)
    # The fourth is a control, which covers and orders as well: it is no part of what the model reaches.
    beside = [{}, {}, {}, {"valuations": "shuffled"}]
    runs = pd.DataFrame({"coverage": [1.0, 1.0, 0.99, 1.0], "min_level_gap": [0.1, 0.0, 0.2, 0.1], "settings": beside})
    assert report.figures_in_words([ARM, peaks], runs) == (
        "The hierarchy at the end is best in heavy (-0.6100, n = 3 seeds). "
        "From scratch, 2 of 3 runs cover all operations and 2 have all levels apart."
    )
    assert report.figures_in_words([], runs.iloc[:0]) == "No run that orders radii has finished."


def of_six(claim, passed=4):
    """A judged share of six seeds: all of them where it is supported."""
    if not claim["id"].startswith(("scratch", "unseen")) or claim["measured"] is None:
        return claim
    every = claim["verdict"] == "supported"
    return claim | {"measured": 1.0 if every else passed / 6, "n": 6, "interval95": [0.541 if every else 0.2, 1.0]}


def test_the_answer_of_a_sweep_is_worded_by_its_verdicts():
    ids = ("scratch_coverage", "scratch_hierarchy", "scratch_gaps", "rule_learnt")
    texts = [report.sweep_answer([of_six(claim) for claim in claims]) for claims in every_verdict(*ids)]
    assert max(len(text.split()) for text in texts) <= 62 and len(set(texts)) == len(texts)
    assert texts[0] == (
        "Yes: from scratch, all 6 seeds tried rebuild all 19,683 operations; in all 6 the radii follow the hierarchy to "
        "99.99 %; all 6 have all levels apart. Where all pass, at least 54% of all seeds do (95 % interval). "
        "Shuffled valuations reach 250% of the ceiling: a rule is learnt."
    )
    assert report.sweep_answer(
        [of_six(judged_as("scratch_coverage", "refuted")), of_six(judged_as("scratch_gaps", "refuted"), 0)]
    ) == (
        "Only 4 of the 6 seeds tried rebuild all 19,683 operations from scratch; none of the 6 have all levels apart."
    )
    unseen = [of_six(judged_as("unseen_coverage", "supported")), of_six(judged_as("unseen_hierarchy", "inconclusive"))]
    assert report.sweep_answer(unseen) == (
        "Of the operations that training never saw, more than 95 % are rebuilt in all 6 seeds tried; whether their radii follow "
        "the hierarchy stays open. Where all pass, at least 54% of all seeds do (95 % interval)."
    )
    findings = [
        judged_as("decay_balanced", "refuted"),
        judged_as("stability", "supported"),
        judged_as("lr_1e3_peak", "not run"),
    ]
    assert report.sweep_answer(findings) == (
        "Of 3 claims on what helps or harms the hierarchy, 1 hold, 1 do not, 0 stay open, and 1 were not run."
    )
    assert report.sweep_answer([]) == "No claim is asked of these runs."


# ------------------------------------------------------------------------------------------------------------- figures
@pytest.fixture
def drawn(monkeypatch):
    """Keeps the figure that would be saved."""
    kept = []
    for module in (figures, studycore.figures):
        monkeypatch.setattr(module, "save_figure", lambda figure, path: kept.append(figure) or path)
    return kept


def lines(axis):
    """Label or colour -> (x, y) of the lines with more than one point, and the single points."""
    return [(line.get_label(), line.get_xdata(), line.get_ydata()) for line in axis.lines]


def test_curves_of_a_run_are_coverage_by_update_and_order_by_epoch(drawn, tmp_path):
    rows = [{"step": 5 * e, "stage": "coverage", "epoch": e, "coverage": 0.2 * e} for e in range(3)]
    rows += [
        {"step": 10 + 5 * (e - 1), "stage": "hierarchy", "epoch": e, "coverage": 0.4 + 0.01 * e, "hierarchy": -0.3 * e, "somers_d": -0.4 * e}
        for e in range(1, 3)
    ]  # fmt: skip
    figures.plot_run_curves(rows, CEILING, tmp_path / "x.svg")
    left, right = drawn[0].axes
    assert list(left.lines[0].get_xdata()) == [0, 5, 10, 10, 15]
    assert list(left.lines[0].get_ydata()) == pytest.approx([0, 0.2, 0.4, 0.41, 0.42])
    assert list(left.lines[1].get_xdata()) == [10, 10], "where the stage changes"
    assert left.texts[0].get_text() == "hierarchy stage" and right.get_xlabel() == "epoch of the hierarchy stage"
    named = {label: (list(x), list(y)) for label, x, y in lines(right)}
    assert named["hierarchy"] == ([1, 2], pytest.approx([-0.3, -0.6]))
    assert named["Somers' D"] == ([1, 2], pytest.approx([-0.4, -0.8]))
    assert named["best hierarchy without ties"][1] == [-CEILING, -CEILING]
    assert list(right.lines[3].get_ydata()) == [-1, -1]
    figures.plot_run_curves(rows[:3], None, tmp_path / "x.svg")
    assert len(drawn[1].axes) == 1


def test_radii_by_level_show_every_operation_at_its_radius(drawn, tmp_path):
    v_N, norm_N = np.array([0, 0, 0, 1, 1, 2]), np.array([0.9, 0.5, 0.7, 0.3, 0.4, 0.1])
    figures.plot_radius_by_level(v_N, norm_N, 0.95, tmp_path / "x.svg")
    (axis,) = drawn[0].axes
    for k, cloud in enumerate(axis.collections):
        x, y = np.asarray(cloud.get_offsets()).T
        assert y.tolist() == norm_N[v_N == k].tolist() and bool((np.abs(x - k) < 0.3).all())
        box = axis.lines[k].get_ydata()
        assert (min(box), max(box)) == (norm_N[v_N == k].min(), norm_N[v_N == k].max())
    assert axis.lines[3].get_ydata() == [0.95, 0.95]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0\n3", "1\n2", "2\n1"]


def test_the_ball_shows_every_point_in_its_place_and_its_middle_all_but_level_0(drawn, tmp_path):
    v_N = np.array([0, 0, 1, 1, 2])
    xy_N2 = np.array([[0.9, 0], [-0.2, 0.8], [0.3, 0], [0, -0.2], [0.05, 0.05]])
    figures.plot_ball(xy_N2, v_N, 0.25, tmp_path / "x.svg")
    whole_ball, middle = drawn[0].axes
    assert whole_ball.patches[0].get_radius() == 2.0
    points = [np.asarray(cloud.get_offsets()).tolist() for cloud in whole_ball.collections]
    assert points == [xy_N2[v_N == k].tolist() for k in range(3)]
    assert middle.get_xlim() == pytest.approx((-1.15 * 0.3, 1.15 * 0.3))
    assert [len(cloud.get_offsets()) for cloud in middle.collections] == [0, 2, 1]


def test_curves_of_a_phase_are_means_and_ranges_of_its_arms(drawn, tmp_path):
    runs = [run("p_a", 0, [0.2, -0.4], phase="1"), run("p_a", 1, [0.0, -0.6], phase="1"), run("p_b", 0, [0.1, -0.5], phase="1")]  # fmt: skip
    runs.append(run("q", 0, [0.1, -0.3], phase="2"))
    figures.plot_phase_curves(table(runs), CEILING, tmp_path / "x.svg")
    first, second = (axis for axis in drawn[0].axes if axis.get_visible())
    assert (first.get_title(), second.get_title()) == ("1", "2")
    named = {label: (list(x), list(y)) for label, x, y in lines(first)}
    assert named["a"] == ([0, 1], pytest.approx([0.1, -0.5])) and named["b"] == ([0, 1], pytest.approx([0.1, -0.5]))
    ends = first.collections[0].get_paths()[0].vertices
    assert (ends[ends[:, 0] == 1][:, 1].min(), ends[ends[:, 0] == 1][:, 1].max()) == (-0.6, -0.4)
    assert first.lines[-1].get_ydata() == [-CEILING, -CEILING]


def test_effects_are_the_best_and_the_end_of_each_arm_beside_the_original_study_s(drawn, tmp_path):
    known = dataclasses.replace(ARM, arm="sweep4_lr_1e3", best_interval=None)
    figures.plot_effects([ARM, known], CEILING, tmp_path / "x.svg")
    (axis,) = drawn[0].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["2_weights", "heavy", "sweep4_lr_1e3"]
    plotted = {label: (list(map(float, x)), [round(float(value), 2) for value in y]) for label, x, y in lines(axis)}
    assert plotted["ceiling without ties"][0] == [-CEILING, -CEILING]
    assert plotted["best of the run"] == ([-0.71], [0.76]) and plotted["end of the run"] == ([-0.61, -0.61], [1.0, 2.0])
    assert plotted["original study's best"] == ([-0.79], [2.24])
    bars = [
        (sorted(map(float, line.get_xdata())), round(float(line.get_ydata()[0]), 2))
        for line in axis.lines
        if line.get_linewidth() == 1.2
    ]
    assert bars == [([-0.72, -0.70], 0.76), ([-0.63, -0.59], 1.0), ([-0.63, -0.59], 2.0)]


def test_the_front_is_drawn_of_the_ends_of_runs(drawn, tmp_path):
    runs = [run("a", 0, [0, -0.9, -0.7], richness=0.01), run("b", 0, [0, -0.8, -0.6], phase="q", richness=0.02)]
    figures.plot_pareto(table(runs), {"hierarchy": -0.83, "richness": 0.004}, CEILING, tmp_path / "x.svg")
    (axis,) = drawn[0].axes
    clouds = [np.asarray(cloud.get_offsets()).tolist() for cloud in axis.collections]
    assert clouds == [[[-0.7, 0.01]], [[-0.6, 0.02]]]
    named = {label: (list(x), list(y)) for label, x, y in lines(axis)}
    assert named["front"] == ([-0.7, -0.6], [0.01, 0.02]) and named["closed form"] == ([-0.83], [0.004])


def test_the_best_run_of_a_sweep_is_the_one_that_ends_best(tmp_path, monkeypatch):
    """Not the one with the best evaluation, whose end is worse."""
    runs = table([run("peaks", 0, peak(-0.82, 3, -0.4, 6), trits=3), run("ends", 0, peak(-0.7, 3, -0.69, 6), trits=3)])
    read = []
    monkeypatch.setattr(report, "read_arrays", lambda folder: read.append(folder.name) or {})
    closed = {"poor": {"hierarchy": -0.8, "richness": 0.001}, "rich": {"hierarchy": -0.83, "richness": 0.02}}
    shown = []
    monkeypatch.setattr(report, "plot_pareto", lambda runs, form, ceiling, path: shown.append((form, ceiling)) or path)
    _, notes = report.sweep_pictures(tmp_path, runs, [], closed)
    assert read == ["ends_s0"] and notes[0].startswith("ends_s0, the run with the best hierarchy at its end.")
    assert shown == [(closed["rich"], CEILING)]


def test_a_picture_of_one_run_says_whose_code_and_geometry(tmp_path):
    config = TrainConfig(trits=3, curvature=0.5, max_radius=0.8)
    pictures, lacking = report.radius_pictures({}, tmp_path, config)
    assert pictures == [] and lacking[0].startswith("No figures of its radii")
    norm = np.linspace(0.1, 0.7, 27)
    arrays = {"norm_N": norm, "flat_N2": np.stack([norm, 0 * norm], axis=1)}
    pictures, lacking = report.radius_pictures(arrays, tmp_path, config, "best. ")
    assert lacking == [] and all(picture.caption.startswith("best. ") for picture in pictures)
    assert [picture.path.name for picture in pictures] == ["radius_by_level.svg", "ball.svg"]
