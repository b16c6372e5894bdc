"""The study's claims; thresholds stand here, before the run.

Targets of training from scratch ask that every seed reaches them: one that does not refutes, all that do support once
there are enough of them (see `every_seed`). The seed study's findings are asked of arms over seeds, paired where two
arms are compared: Student's t over seeds, draws of the projections averaged within a seed first.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from studycore.claims import Statement, judge, not_run
from studycore.statistics import Interval, mean_interval, share_interval
from ternary_vae.comparisons import (
    Value,
    arm_name,
    best_epoch,
    best_hierarchy,
    by_arm,
    by_seed,
    decay,
    final_hierarchy,
    paired_differences,
)
from ternary_vae.config import TrainConfig
from ternary_vae.metrics import pearson
from ternary_vae.summary import RunSummary

OWN, SEED = "this study's target", "the seed study's sweep summary"
SPEARMAN = "Spearman"
PEAKED, PLATEAU_EPOCHS = 20, 50
"""Epoch by which the seed study's runs had peaked, and how long those from scratch were."""
HALF = 0.5
"""Share of seeds that must lie below the interval of those that pass: reached by 6 of 6."""


def _target(name: str, statement: str, predicted: str) -> Statement:
    return Statement(name, f"From scratch, in every seed: {statement}", OWN, predicted, "share of seeds", HALF, "above")


Passes = Callable[[dict[str, Any]], bool]
TARGETS: list[tuple[Statement, tuple[str, ...], Passes]] = [
    (
        _target("scratch_coverage", "all 19,683 operations come back right from their mean code", "19,683 of 19,683"),
        ("covered", "operations"), lambda m: m["covered"] == m["operations"] == 19_683,
    ),
    (
        _target("scratch_gaps", "every level lies apart from the next", "smallest gap above 0"),
        ("min_level_gap", "positive_gaps"), lambda m: m["min_level_gap"] > 0 and m["positive_gaps"] == 9,
    ),
    (
        _target("scratch_hierarchy", "the hierarchy is at least 99.99 % of its ceiling", "99.99 %"),
        ("hierarchy_of_ceiling",), lambda m: m["hierarchy_of_ceiling"] >= 0.9999,
    ),
    (
        _target("scratch_ties", "fewer than 0.1 % of the radii are tied, so that ties do not make the hierarchy", "0.1 %"),
        ("tied_radius_share",), lambda m: m["tied_radius_share"] < 0.001,
    ),
    (
        _target("scratch_richness", "the Euclidean richness is at least 0.003", "0.003 (the best at the ceiling before: 0.000048)"),
        ("richness",), lambda m: m["richness"] >= 0.003,
    ),
]  # fmt: skip
"""What is claimed, the metrics that it needs, and when a seed passes."""

UNSEEN_TARGETS: list[tuple[Statement, tuple[str, ...], Passes]] = [
    (
        _target("unseen_coverage", "more than 95 % of the operations that training did not see come back right", "86 % by a plain model"),
        ("coverage_unseen",), lambda m: m["coverage_unseen"] > 0.95,
    ),
    (
        _target("unseen_hierarchy", "the hierarchy of the unseen is at least 99 % of their own ceiling", "99 %"),
        ("hierarchy_unseen", "hierarchy_ceiling_unseen"),
        lambda m: -m["hierarchy_unseen"] >= 0.99 * m["hierarchy_ceiling_unseen"],
    ),
]  # fmt: skip
"""The same where training sees a tenth of the operations or less."""

CURVATURE = Statement(
    "curvature_2_vs_1", "Curvature 2 reaches a better hierarchy than curvature 1", SEED, "-0.014 (-0.702 against -0.688)",
    f"{SPEARMAN}, difference of the best", 0.0, "below",
)  # fmt: skip
EUCLIDEAN = Statement(
    "curvature_inert_euclidean", "With the radius as a Euclidean norm, as the seed study had it, the curvature changes no hierarchy",
    "this study: it enters neither loss nor metric", "0", f"{SPEARMAN}, largest difference over evaluations", 1e-6, "below",
)  # fmt: skip
DECAY_BALANCED = Statement(
    "decay_balanced", "The loss on level means peaks and then loses 0.16 or more (weights 5, 5)", SEED, "0.16 (-0.758 to -0.598)",
    f"{SPEARMAN}, end minus best", 0.16, "above",
)  # fmt: skip
DECAY_BASELINE = Statement(
    "decay_baseline", "The loss on level means peaks and then loses 0.19 or more (weights 5, 2)", SEED, "0.19 (-0.752 to -0.559)",
    f"{SPEARMAN}, end minus best", 0.19, "above",
)  # fmt: skip
PEAK_WEIGHTS = Statement(
    "peak_weights",
    "All weightings of the loss on level means peak at epoch 20 or earlier",
    SEED,
    "10 to 20",
    "epochs",
    20.5,
    "below",
)
EARLY_STEP = Statement(
    "early_stop_vs_step", "Stopping early (patience 5) has a better best than the step schedule", SEED,
    "-0.025 (-0.792 against -0.767)", f"{SPEARMAN}, difference of the best", 0.0, "below",
)  # fmt: skip
EARLY_COSINE = Statement(
    "early_stop_vs_cosine", "Stopping early (patience 5) has a better best than the cosine schedule", SEED,
    "-0.097 (-0.792 against -0.695)", f"{SPEARMAN}, difference of the best", 0.0, "below",
)  # fmt: skip
EARLY_PEAK = Statement(
    "early_stop_peak", "With patience 5 the best is at epoch 10 or earlier", SEED, "3", "epochs", 10.5, "below"
)
LR_LOW = Statement(
    "lr_1e3_vs_1e4", "Learning rate 1e-3 reaches a better hierarchy than 1e-4", SEED, "-0.055 (-0.790 against -0.735)",
    f"{SPEARMAN}, difference of the best", 0.0, "below",
)  # fmt: skip
LR_MIDDLE = Statement(
    "lr_1e3_vs_3e4", "Learning rate 1e-3 reaches a better hierarchy than 3e-4", SEED, "-0.001 (-0.790 against -0.789)",
    f"{SPEARMAN}, difference of the best", 0.0, "below",
)  # fmt: skip
LR_PEAK = Statement(
    "lr_1e3_peak", "Learning rate 1e-3 has its best at epoch 2 or earlier", SEED, "0", "epochs", 2.5, "below"
)
STABILITY = Statement(
    "stability", "Best hierarchies from different draws of the projections have a standard deviation of 0.030 or less", SEED,
    "0.030 (0.019 once the architecture matched)", f"{SPEARMAN}, standard deviation", 0.030, "below",
)  # fmt: skip
CORRELATION = Statement(
    "init_best_correlation", "The hierarchy before training tells the best one: correlation 0.92 or more", SEED, "0.92",
    "Pearson", 0.92, "above",
)  # fmt: skip
BEST = Statement(
    "best_achieved",
    "The loss on level means reaches -0.792 or better",
    SEED,
    "-0.792",
    f"{SPEARMAN}, best of a seed",
    -0.792,
    "below",
)
PLATEAU_FROZEN = Statement(
    "plateau_frozen_decoder", "From scratch coverage stays at 30 % or below (decoder frozen as it was drawn)", SEED, "20 to 30 %",
    "share, largest of the run", 0.30, "below",
)  # fmt: skip
PLATEAU_MENDED = Statement(
    "plateau_mended", "From scratch coverage stays at 30 % or below (decoder trained as well)", SEED, "20 to 30 %",
    "share, largest of the run", 0.30, "below",
)  # fmt: skip
ORDERED_DECAY = Statement(
    "ordered_no_decay", "The loss on single samples ends within 0.001 of its best", "this study: nothing in it pulls levels together again",
    "0", f"{SPEARMAN}, end minus best", 0.001, "below",
)  # fmt: skip
ORDERED_BETTER = Statement(
    "ordered_vs_level_means", "The loss on single samples ends at a better hierarchy than the best arm of the loss on level means",
    "this study", "better", f"{SPEARMAN}, difference at the end", 0.0, "below",
)  # fmt: skip


RIM = Statement(
    "curvature_2_vs_1_same_rim", "Curvature 2 reaches a better hierarchy than curvature 1 at the same share of the ball's radius",
    "this study: whether more than sqrt(c) R is behind it", "none", f"{SPEARMAN}, difference of the best", 0.0, "below",
)  # fmt: skip
LEAST_EPOCHS = 10
"""Epochs below which nothing is said about what the seed study found over dozens."""
FINDINGS = (
    CURVATURE, EUCLIDEAN, DECAY_BALANCED, DECAY_BASELINE, PEAK_WEIGHTS, EARLY_STEP, EARLY_COSINE, EARLY_PEAK, LR_LOW,
    LR_MIDDLE, LR_PEAK, STABILITY, CORRELATION, BEST, ORDERED_DECAY, ORDERED_BETTER,
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------ from scratch
def every_seed(statement: Statement, passed: Sequence[bool], note: str = "") -> dict[str, Any]:
    """A claim about every seed: refuted by one that does not pass; supported by passes alone, if so many that the exact
    interval of their share lies above the threshold; inconclusive while they are fewer."""
    share = share_interval(sum(passed), len(passed))
    rule = f"One failing seed refutes; passes alone support from 6 seeds on (exact binomial interval above one half). {note}"
    claim = judge(statement, share, f"{sum(passed)} of {len(passed)} seeds pass. {rule}")
    if not all(passed):
        why = f"refuted: {sum(passed)} of {len(passed)} seeds pass. {rule}"
        claim |= {"verdict": "refuted", "why": why}
    return claim


def is_default_geometry(config: TrainConfig) -> bool:
    """Whether the targets' numbers are meant for this configuration."""
    return (config.trits, config.curvature, config.max_radius) == (9, 1.0, 0.95)


def target_claims(found: Sequence[tuple[TrainConfig, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The targets, on (configuration, metrics of the last model) of each seed's run from scratch."""
    partly = bool(found) and all(config.train_fraction < 1 for config, _ in found)
    if partly:
        own = [m for config, m in found if config.train_fraction <= 0.1 and config.trits == 9 and config.start is None]
        needs = "Needs runs from scratch that see a tenth of the operations of 9 trits or less (`ternary-vae train --config generalise`)."
    else:
        own = [metrics for config, metrics in found if is_default_geometry(config) and is_from_scratch(config)]
        needs = "Needs runs from scratch that order radii, with 9 trits, curvature 1 and max_radius 0.95 (`ternary-vae train`)."
    claims = []
    for statement, needed, passes in UNSEEN_TARGETS if partly else TARGETS:
        if len(own) < len(found) or not own:
            claims.append(not_run(statement, needs))
        elif lacking := [name for name in needed if any(name not in metrics for metrics in own)]:
            claims.append(not_run(statement, f"The results lack {', '.join(lacking)}."))
        else:
            budgets = sorted({f"{config.coverage_epochs} + {config.epochs}" for config, _ in found})
            one_code = all(config.view == "a" and config.stages == "joint" for config, _ in found)
            whose = (
                "Both of encoder A's one code." if one_code else "Coverage is of encoder A's code, order of the view's."
            )
            why = f"Trained for at most {' or '.join(budgets)} epochs (coverage + hierarchy). {whose}"
            claims.append(every_seed(statement, [passes(metrics) for metrics in own], why))
    return claims


def is_from_scratch(config: TrainConfig) -> bool:
    """Whether a run learns both coverage and radii, and from nothing."""
    return config.start is None and config.stages in ("coverage_hierarchy", "joint") and config.train_fraction == 1.0


def run_claims(metrics: dict[str, Any], config: TrainConfig) -> list[dict[str, Any]]:
    """A single run's claims: the targets, with n = 1."""
    return target_claims([(config, metrics)])


# ------------------------------------------------------------------------------------------------------------- sweep
def sweep_claims(runs: Sequence[RunSummary], from_scratch: Sequence[RunSummary]) -> list[dict[str, Any]]:
    """Every claim on a sweep's finished runs; "not run" where the arms or seeds that it needs are missing.

    A sweep without phases is asked for the targets alone, and for what its arms from scratch can say.
    """
    arms: dict[str, list[RunSummary]] = {}
    for run in runs:
        if run.ordering_rows:
            arms.setdefault(arm_name(run), []).append(run)
    scratch: dict[str, list[RunSummary]] = {}
    for run in from_scratch:
        scratch.setdefault(run.arm, []).append(run)
    whole = [run for run in from_scratch if run.ordering_rows or run.config.train_fraction < 1]
    claims = target_claims([(run.config, run.metrics) for run in whole])
    if runs or "frozen_decoder" in scratch:
        claims.append(_plateau_claim(PLATEAU_FROZEN, scratch, "frozen_decoder"))
    if runs or "mended" in scratch:
        claims.append(_plateau_claim(PLATEAU_MENDED, scratch, "mended"))
    if not runs:
        return claims
    # The seed study's findings are about 9 trits and dozens of epochs.
    if any(run.config.trits != 9 or run.config.epochs < LEAST_EPOCHS for run in runs):
        why = f"The seed study's findings are asked of runs with 9 trits and {LEAST_EPOCHS} epochs or more."
        return [*claims, *(not_run(statement, why) for statement in FINDINGS)]
    level_means = [run for run in runs if run.ordering_rows and run.config.loss == "rich_hierarchy"]
    weights = [run for run in level_means if run.arm.startswith("sweep2_")]
    repeats = [run for run in level_means if arm_name(run) in ("sweep5", "sweep6")]
    not_zero = "Not negative by construction, so that 0 would be no threshold."
    over_arms = "Averaged over the arms within a seed."
    same = "Stopping early cannot better the best of the same trajectory: a difference would come from the schedules."
    return [
        *claims,
        _paired_claim(
            CURVATURE,
            arms,
            "sweep_curv_2.0",
            "sweep_curv_1.0",
            best_hierarchy,
            "At one largest norm, so that sqrt(c) R, how near the rim comes, grows with c.",
        ),
        *(
            [_paired_claim(RIM, arms, "sweep_rim_2.0", "sweep_rim_1.0", best_hierarchy)]
            if "sweep_rim_2.0" in arms
            else []
        ),
        _euclidean_claim(arms),
        _mean_claim(DECAY_BALANCED, arms, "sweep2_balanced", decay, not_zero, PEAKED),
        _mean_claim(DECAY_BASELINE, arms, "sweep2_baseline", decay, not_zero, PEAKED),
        _mean_claim(PEAK_WEIGHTS, {"sweep2_*": weights}, "sweep2_*", best_epoch, over_arms, PEAK_WEIGHTS.threshold),
        _paired_claim(EARLY_STEP, arms, "sweep3_early_stop_p5", "sweep3_step_decay", best_hierarchy, same),
        _paired_claim(EARLY_COSINE, arms, "sweep3_early_stop_p5", "sweep3_cosine", best_hierarchy, same),
        _mean_claim(EARLY_PEAK, arms, "sweep3_early_stop_p5", best_epoch, "", EARLY_PEAK.threshold),
        _paired_claim(LR_LOW, arms, "sweep4_lr_1e3", "sweep4_lr_1e4", best_hierarchy),
        _paired_claim(LR_MIDDLE, arms, "sweep4_lr_1e3", "sweep4_lr_3e4", best_hierarchy),
        _mean_claim(LR_PEAK, arms, "sweep4_lr_1e3", best_epoch, "", LR_PEAK.threshold),
        _stability_claim(repeats),
        _correlation_claim(repeats),
        _best_claim(level_means),
        _mean_claim(ORDERED_DECAY, arms, "sweep7_ordered", decay),
        _ordered_claim(arms.get("sweep7_ordered", []), level_means),
    ]


def largest_coverage(run: RunSummary) -> float:
    """The largest coverage of a run's evaluations."""
    return max(float(row["coverage"]) for row in run.rows)


def _needs(what: str, there: int) -> str:
    return f"Needs 2 or more finished seeds of {what}; there are {there}."


def _mean_claim(
    statement: Statement,
    arms: dict[str, list[RunSummary]],
    arm: str,
    value: Value,
    note: str = "",
    beyond: float = 0,
) -> dict[str, Any]:
    """The mean over seeds; "not run" where the runs were not meant to go on beyond an epoch that the claim is about."""
    own = arms.get(arm, [])
    values = list(by_seed(own, value).values())
    if len(values) < 2:
        return not_run(statement, _needs(arm, len(values)))
    epochs = min(run.config.epochs for run in own)
    if epochs <= beyond:
        return not_run(statement, f"Needs runs beyond epoch {beyond:.0f}; those of {arm} have {epochs}.")
    return judge(statement, mean_interval(values), f"Mean over seeds of {arm}, Student's t. {note}")


def _plateau_claim(statement: Statement, scratch: dict[str, list[RunSummary]], arm: str) -> dict[str, Any]:
    """Leaving the plateau refutes it at any time; staying there supports it only in runs as long as the seed study's."""
    claim = _mean_claim(statement, scratch, arm, largest_coverage)
    if claim["verdict"] == "supported":
        epochs = min(run.config.coverage_epochs for run in scratch[arm])
        if epochs < PLATEAU_EPOCHS:
            why = f"inconclusive: below it for {epochs} epochs; only {PLATEAU_EPOCHS}, as in the seed study, can support it."
            claim |= {"verdict": "inconclusive", "why": why}
    return claim


def _paired_claim(
    statement: Statement, arms: dict[str, list[RunSummary]], treated: str, control: str, value: Value, note: str = ""
) -> dict[str, Any]:
    values = paired_differences(arms.get(treated, []), arms.get(control, []), value)
    if len(values) < 2:
        return not_run(statement, _needs(f"both {treated} and {control}", len(values)))
    return judge(statement, mean_interval(values), f"{treated} minus {control}, paired over seeds, Student's t. {note}")


def _euclidean_claim(arms: dict[str, list[RunSummary]]) -> dict[str, Any]:
    """Largest difference between the histories of any two arms with a Euclidean radius, by seed."""
    own = [
        run
        for name, runs in arms.items()
        if name.startswith("sweep_curv_") and name.endswith("_euclidean")
        for run in runs
    ]
    by_one: dict[int, list[list[float]]] = {}
    for run in own:
        by_one.setdefault(run.seed, []).append([row["hierarchy"] for row in run.ordering_rows])
    several = [histories for histories in by_one.values() if len(histories) > 1]
    if len(several) < 2 or len({run.config.curvature for run in own}) < 2:
        return not_run(EUCLIDEAN, _needs("two arms sweep_curv_<c>_euclidean", len(several)))
    # A history that is longer than another differs from it by more than any correlation could.
    apart = [float(np.ptp(np.array(h), axis=0).max()) if len({len(one) for one in h}) == 1 else 2.0 for h in several]
    return judge(EUCLIDEAN, mean_interval(apart), "Mean over seeds, Student's t.")


def _draws(runs: Sequence[RunSummary], least: int) -> list[list[RunSummary]]:
    """The runs seed by seed, where each has that many; else none."""
    seeds: dict[int, list[RunSummary]] = {}
    for run in runs:
        seeds.setdefault(run.seed, []).append(run)
    return list(seeds.values()) if seeds and min(map(len, seeds.values())) >= least else []


def _stability_claim(repeats: Sequence[RunSummary]) -> dict[str, Any]:
    draws = _draws(repeats, 2)
    if len(draws) < 2:
        return not_run(STABILITY, _needs("phases 5 and 6, with 2 or more draws each", len(draws)))
    stds = [float(np.std([best_hierarchy(run) for run in own], ddof=1)) for own in draws]
    return judge(
        STABILITY,
        mean_interval(stds),
        "Over the draws of a seed in phases 5 and 6 together, mean over seeds, Student's t.",
    )


def _correlation_claim(repeats: Sequence[RunSummary]) -> dict[str, Any]:
    draws = _draws(repeats, 4)
    if len(draws) < 2:
        return not_run(CORRELATION, _needs("phases 5 and 6, with 4 or more draws each", len(draws)))
    found = [
        pearson(
            np.array([float(run.initial["hierarchy"]) for run in own]), np.array([best_hierarchy(run) for run in own])
        )
        for own in draws
    ]
    if any(r is None for r in found):
        return not_run(
            CORRELATION, "In a seed all draws begin, or all end, at the same hierarchy: there is no correlation."
        )
    # Fisher (1915): atanh(r) is nearly normal. Resampling a few seeds would give too narrow an interval.
    z = mean_interval([math.atanh(min(max(r, -1 + 1e-12), 1 - 1e-12)) for r in found if r is not None])
    interval = Interval(math.tanh(z.estimate), math.tanh(z.low), math.tanh(z.high), z.n)
    return judge(
        CORRELATION,
        interval,
        "Over the draws of a seed in phases 5 and 6 together; Fisher's z, mean over seeds, Student's t.",
    )


def _best_claim(level_means: Sequence[RunSummary]) -> dict[str, Any]:
    seeds: dict[int, float] = {}
    for run in level_means:
        seeds[run.seed] = min(seeds.get(run.seed, math.inf), best_hierarchy(run))
    if len(seeds) < 2:
        return not_run(BEST, _needs("arms of the loss on level means", len(seeds)))
    note = f"The best of all evaluations of all {len(level_means) / len(seeds):.0f} runs of a seed, picked after the fact as the seed study did; mean over seeds, Student's t."
    return judge(BEST, mean_interval(list(seeds.values())), note)


def _ordered_claim(ordered: Sequence[RunSummary], level_means: Sequence[RunSummary]) -> dict[str, Any]:
    arms = {arm: own for (_, arm), own in by_arm(level_means).items()}
    if not ordered or not arms:
        return not_run(ORDERED_BETTER, _needs("both sweep7_ordered and an arm of the loss on level means", 0))
    best = min(arms, key=lambda arm: float(np.mean(list(by_seed(arms[arm], final_hierarchy).values()))))
    return _paired_claim(
        ORDERED_BETTER, {"sweep7_ordered": list(ordered), best: arms[best]}, "sweep7_ordered", best, final_hierarchy
    )
