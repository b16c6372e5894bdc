"""Comparisons: the unit is the seed, marks carry Bonferroni's correction, inert means bit for bit."""

import dataclasses

import numpy as np
import pytest
from fabricated import peak, run, scratch, table
from scipy import stats

from ternary_vae import comparisons


def arm_statistics(runs):
    return comparisons.arm_statistics(table(runs))


def inert_factors(runs):
    return comparisons.inert_factors(table(runs))


def test_draws_are_averaged_within_a_seed_first():
    runs = [run("a_draw_0", 0, [-0.1, -0.5]), run("a_draw_1", 0, [-0.1, -0.7]), run("a_draw_0", 1, [-0.1, -0.9])]
    (arm,) = arm_statistics(runs)
    assert (arm.phase, arm.arm, arm.n, arm.runs) == ("phase", "a", 2, 3)
    assert arm.best == pytest.approx(-0.75)
    assert arm.best_std == pytest.approx(0.3 / 2**0.5)


def test_arm_statistics_against_the_definitions():
    ends = [-0.70, -0.72, -0.77, -0.69]
    (arm,) = arm_statistics([run("a", s, peak(end - 0.02 * s, 3 + s, end, 10)) for s, end in enumerate(ends)])
    best = [end - 0.02 * s for s, end in enumerate(ends)]
    low, high = stats.t.interval(0.95, 3, np.mean(best), stats.sem(best))
    assert (arm.best, arm.best_interval.low, arm.best_interval.high) == pytest.approx((np.mean(best), low, high))
    assert arm.best_std == pytest.approx(stats.tstd(best))
    assert arm.final == pytest.approx(np.mean(ends))
    assert arm.best_epoch == 4.5 - 0  # the mean of 3, 4, 5, 6
    assert arm.is_best and arm.against_best is None and arm.indistinguishable is None


def test_one_seed_has_no_interval():
    (first, second) = arm_statistics([run("a", 0, [0.1, -0.5]), run("b", 0, [0.1, -0.6])])
    assert first.best_interval is None and first.best_std is None and first.against_best is None and not first.is_best
    assert second.is_best


def test_differences_pair_the_seeds_that_both_have():
    one = [run("a", s, [0, -0.5 - 0.1 * s]) for s in (0, 1, 2)]
    other = [run("b", s, [0, -0.3 - 0.1 * s]) for s in (2, 1, 3)]
    best, against = arm_statistics([*one, *other])
    assert best.is_best and against.against_best.n == 2
    assert (against.against_best.estimate, against.against_best.low) == pytest.approx((0.2, 0.2))


def test_runs_without_an_order_are_no_arm():
    assert arm_statistics([scratch("mended", s, [0.0, 1.0]) for s in range(2)]) == []
    (arm,) = arm_statistics([scratch("mended", 0, [0.0, 1.0]), run("a", 0, [0, -0.5])])
    assert arm.arm == "a"


def test_marks_are_corrected_for_the_other_arms_of_the_phase():
    noise = [0.0, 0.010, 0.020, 0.030, 0.0]
    best = [run("best", s, [0, -0.8]) for s in range(5)]

    def others(k):
        return [run(f"other_{i}", s, [0, -0.785 + noise[(s + i) % 5]]) for i in range(k) for s in range(5)]

    alone = {a.arm: a for a in arm_statistics([*best, *others(1)])}["other_0"]
    among = {a.arm: a for a in arm_statistics([*best, *others(30)])}["other_0"]
    differences = np.array([0.015 + x for x in noise])
    for arm, m in ((alone, 1), (among, 30)):
        half = stats.t.ppf(1 - 0.025 / m, 4) * stats.sem(differences)
        assert (arm.against_best.low, arm.against_best.high) == pytest.approx((0.027 - half, 0.027 + half))
    assert alone.indistinguishable is False and among.indistinguishable is True
    # Another phase has another best arm and other comparisons.
    elsewhere = [run("best", s, [0, -0.1], phase="elsewhere") for s in range(5)]
    assert [a.is_best for a in arm_statistics([*best, *elsewhere])] == [True, True]


def test_an_arm_that_is_better_on_the_shared_seeds_is_not_called_the_same():
    lucky = [run("lucky", s, [0, end]) for s, end in enumerate((-0.50, -0.51, -0.52, -0.83, -0.83, -0.83))]
    steady = [run("steady", s, [0, -0.55 - 0.01 * s]) for s in range(3)]
    statistics_of = {a.arm: a for a in arm_statistics([*lucky, *steady])}
    assert statistics_of["lucky"].is_best and statistics_of["steady"].against_best.high < 0
    assert statistics_of["steady"].indistinguishable is False


# ---------------------------------------------------------------------------------------------------- inert factors
def pair(change=None, seeds=(0, 1), **other):
    """Two arms that differ in `other`; `change` edits the second one's rows."""
    runs = []
    for seed in seeds:
        curve = peak(-0.7 - 0.01 * seed, 3, -0.6, 6)
        second = run("b", seed, curve, **other)
        if change:
            change(second.rows)
        runs += [run("a", seed, curve), second]
    return runs


def test_a_factor_that_moves_no_bit_is_inert():
    def rescaled(rows):
        for r in rows:
            r["loss_hierarchy"] *= 3
            r["richness_hyperbolic"] *= 2

    (factor,) = inert_factors(pair(rescaled, coverage_weight=5.0))
    assert (factor.field, factor.values, factor.arms, factor.seeds) == ("coverage_weight", (1.0, 5.0), ("a", "b"), 2)
    assert factor.evaluations == 14


@pytest.mark.parametrize("name", ["hierarchy", "richness", "somers_d", "coverage", "min_level_gap"])
def test_a_difference_of_1e9th_in_one_evaluation_of_one_seed_is_none(name):
    calls = []

    def nudge(rows):
        calls.append(rows)
        if len(calls) == 2:
            rows[4][name] += 1e-9

    assert inert_factors(pair(nudge, coverage_weight=5.0)) == []


def test_a_metric_that_one_arm_lacks_is_a_difference():
    def drop(rows):
        del rows[2]["somers_d"]

    assert inert_factors(pair(drop, coverage_weight=5.0)) == []


def test_another_length_is_an_effect():
    assert inert_factors(pair(lambda rows: rows.pop(), coverage_weight=5.0)) == []


def test_what_acts_from_some_epoch_on_is_never_called_inert():
    # The histories end at epoch 6: before the first step of the schedule, and before patience could run out.
    assert inert_factors(pair(early_stopping_patience=7)) == []
    assert inert_factors(pair(scheduler="step")) == []


def test_two_changed_fields_or_none_name_no_factor():
    assert inert_factors(pair(coverage_weight=5.0, kl_weight=1.0)) == []
    assert inert_factors(pair()) == []


def test_arms_without_a_seed_in_common_are_not_compared():
    runs = pair(coverage_weight=5.0)
    assert inert_factors([r for r in runs if (r.arm == "a") == (r.config.seed == 0)]) == []


def test_draws_are_compared_one_by_one():
    runs = pair(coverage_weight=5.0)
    drawn = [
        dataclasses.replace(r, config=dataclasses.replace(r.config, projection_seed=5)) for r in runs if r.arm == "b"
    ]
    # The same curve from other draws says nothing about the weight.
    assert inert_factors([*[r for r in runs if r.arm == "a"], *drawn]) == []


def test_a_factor_is_shown_once_by_the_first_pair():
    runs = pair(coverage_weight=5.0)
    again = [dataclasses.replace(r, arm="c") for r in runs if r.arm == "a"]
    (factor,) = inert_factors([*runs, *again])
    assert factor.arms == ("a", "b")


def test_histories_are_the_same_up_to_rounding_and_no_further():
    one = [{"hierarchy": 0.0}]
    assert comparisons.same_history(one, [{"hierarchy": comparisons.ROUNDING}])
    assert not comparisons.same_history(one, [{"hierarchy": 1.01 * comparisons.ROUNDING}])
    assert not comparisons.same_history(one, [{"hierarchy": 0.0}, {"hierarchy": 0.0}])
