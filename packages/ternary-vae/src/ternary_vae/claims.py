"""The study's claims, as data.

Targets of training from scratch ask that every seed reaches them: a single one that fails refutes, and seeds that all pass
support once there are enough of them. The original study's findings are asked of arms over seeds, paired where two arms
are compared; several draws of the projections are averaged within a seed first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from studycore.claims import Claim, Condition
from studycore.configuration import to_dict
from studycore.measures import at_least, mean, paired_difference
from ternary_vae.columns import COVERS, WEIGHTS, fits_targets, fits_unseen_targets, is_control, setting
from ternary_vae.config import TrainConfig
from ternary_vae.measures import (
    COMPARABLE,
    FOLLOWED,
    all_of,
    best_in_common_epochs,
    best_of_three_arms,
    beyond,
    correlation_of_draws,
    every_seed,
    every_whole_run,
    largest_coverage,
    latest_peak,
    of_seeds,
    order_of_controls,
    ordered_minus_best_arm,
    settings_are,
    spread_of_draws,
    untied,
    worsening,
)  # fmt: skip

if TYPE_CHECKING:
    from pandas import DataFrame

OWN, ORIGINAL = "this study's target", "the original study's sweep summary"
SPEARMAN = "Spearman"
LEAST_SHARE = 0.5
"""What the interval of the share of passing seeds must lie above: it does when 6 of 6 pass (0.541), not when 5 of 5 do."""


NEEDS = "Needs runs from scratch that order radii, with 9 trits, curvature 1 and max_radius 0.95 (`ternary-vae train`)."
NEEDS_UNSEEN = "Needs runs from scratch that see a tenth of the operations of 9 trits or less (`ternary-vae train --config generalise`)."


def _target(name: str, statement: str, predicted: str) -> Claim:
    passes = f"passes_{name}"
    unseen = name.startswith("unseen")
    condition = every_whole_run(
        *(("fits_unseen_targets", passes, NEEDS_UNSEEN) if unseen else ("fits_targets", passes, NEEDS))
    )
    return Claim(
        name, f"From scratch, in all seeds tried: {statement}", OWN, predicted, "share of seeds", every_seed(name), above=LEAST_SHARE,
        when=condition, of_every_unit=True, decided_by="train --config generalise --seeds 10" if unseen else "",
    )  # fmt: skip


WHOLE_TARGETS = (
    _target("scratch_coverage", "all 19,683 operations come back right from their mean code", "19,683 of 19,683"),
    _target("scratch_gaps", "the radii of no two neighbouring levels of the valuation overlap", "smallest gap above 0"),
    _target("scratch_hierarchy",
        "radii fall with the valuation. Their rank correlation is at least 99.99 % of what radii without ties can reach and not "
        "beyond it, Somers' D is -0.85 or lower in the mean over depths, and fewer than 0.1 % of the radii are tied", "99.99 %"),
    _target("scratch_ties", "fewer than 0.1 % of the radii are tied, so that ties cannot feign an order", "0.1 %"),
    _target("scratch_richness",
        "radii differ within a level. The richness, a tenth of the sum over levels of the variance of the Euclidean norm, is at "
        "least 0.003", "0.003 (the best at the ceiling before: 0.000048)"),
)  # fmt: skip
BALL_TARGETS = (
    *(target for target in WHOLE_TARGETS if target.id != "scratch_richness"),
    _target("scratch_rate",
        "the KL divergence of the posterior from the prior lies between 9.9 nats (log 19,683, the least that tells all operations "
        "apart) and twice that, and 99.99 % or more of the operations come back right from their mean code", "below 2 (54 nats, 5.5 times, in two codes)"),
    _target("scratch_prior", "samples of the prior, ten times as many as there are operations, decode to 99 % of all operations or more, and 99.99 % or more of them come back right from their mean code", "99 % (88.5 % in two codes)"),
)  # fmt: skip
"""Of the model that is decoded and ordered in one point of the ball. Nothing asks it for a place within a level's band, so
its richness is shown and not judged."""
BALL, TWIN, SHUFFLED = "ball", "flat_twin", "shuffled"
"""Arms from scratch: the model, and what stands beside it."""
KL_WEIGHTS = {BALL: 0.015, TWIN: 0.005}
"""Weight of the KL divergence by arm: each its own, so that the arms are two places on a trade and not one."""
ORDERED_BY_RULE = 0.9
"""Share of the ceiling that the model itself must reach before the control says anything."""
TWINS = all_of(
    settings_are(
        {
            BALL: {"decode": "ball", "geometry": "hyperbolic", "kl_weight": KL_WEIGHTS[BALL]},
            TWIN: {"decode": "ball", "geometry": "euclidean", "kl_weight": KL_WEIGHTS[TWIN]},
        },
        alike=True,
    ),
    *(at_least("coverage", COVERS, arm) for arm in (BALL, TWIN)),
)


def _against_twin(metric: str, statement: str, better: str, unit: str) -> Claim:
    weights = (
        f"the KL divergence has the weights {KL_WEIGHTS[BALL]:g} and {KL_WEIGHTS[TWIN]:g}: two places on one trade-off"
    )
    return Claim(
        f"curvature_{metric}", f"The model in the ball {statement} than its flat twin of equal parameters ({weights})",
        "this study: a trade-off, not what the curvature alone buys",
        "better", unit, of_seeds(paired_difference(metric, BALL, TWIN)),
        above=0.0 if better == "above" else None, below=0.0 if better == "below" else None, when=TWINS,
    )  # fmt: skip


CURVATURE_BUYS = (
    _against_twin("kl", "needs a smaller KL divergence", "below", "nats, difference"),
    _against_twin("coverage_sampled", "rebuilds more operations from a sample of the posterior", "above", "share, difference"),
    _against_twin("prior_coverage", "meets more operations by samples of its prior", "above", "share, difference"),
)  # fmt: skip


RULE_LEARNT = Claim(
    "rule_learnt",
    "Radii that are trained on valuations dealt out at random do not follow these: their rank correlation, in either direction, "
    "stays below half of what radii without ties can reach",
    "this study: radii are memorised otherwise, and no rule is learnt", "0.11", "share of the ceiling, without sign",
    of_seeds(order_of_controls(SHUFFLED)), below=FOLLOWED,
    when=all_of(
        settings_are({BALL: {"valuations": "true"}, SHUFFLED: {"valuations": "shuffled"}}, alike=True),
        at_least("order", ORDERED_BY_RULE, BALL),
    ),
)  # fmt: skip
UNSEEN_TARGETS = (
    _target("unseen_coverage", "more than 95 % of the operations that training did not see come back right", "86 % by a plain model"),
    _target("unseen_hierarchy",
        "the radii of operations that training did not see fall with the valuation. Their rank correlation is at least 99 % of what "
        "radii without ties can reach and not beyond it, their Somers' D is -0.7 or lower in the mean over depths, and fewer than "
        "0.1 % of all radii are tied", "99 %"),
)  # fmt: skip
"""Where training sees a tenth of the operations or less."""

PLATEAU_OF: dict[str, Any] = {
    "stages": "coverage", "trits": 9, "train_fraction": 1.0, "start": None, "coverage_code": "mean", "coverage_lr": 1e-3,
    "batch_size": 512, "deep_share": 0.0,
}  # fmt: skip
PLATEAU_FREE = ("seed", "projection_seed", "coverage_epochs", "checkpoint_every")
"""Settings that the plateaus leave open: by any other a run may stay at the start and have shown nothing of this training."""


def _plateau(name: str, frozen: Sequence[str], patience: int | None, which: str) -> Claim:
    own = {**PLATEAU_OF, "coverage_frozen": list(frozen), "coverage_patience": patience}
    every = {name: value for name, value in to_dict(TrainConfig(**own)).items() if name not in PLATEAU_FREE}
    text = f"{settings_are({name: own}).text}, all else but {sorted(PLATEAU_FREE)} by default"
    return Claim(
        f"plateau_{name}",
        f"From scratch by the original study's training, {which}, no more than 30 % of the operations are ever rebuilt", ORIGINAL, "20 to 30 %",
        "share, largest of the run", of_seeds(largest_coverage(name)), below=0.30,
        when=Condition(text, settings_are({name: every}).unmet),
    )  # fmt: skip


PLATEAUS = {
    "frozen_decoder": _plateau("frozen_decoder", ["decoder_A"], None, "its decoder frozen as it was drawn"),
    "mended": _plateau("mended", [], TrainConfig.coverage_patience, "but with the decoder trained as well"),
}
"""By the arm from scratch that they are about."""


def _better(
    name: str, statement: str, predicted: str, treated: str, control: str, note: str = "", source: str = ORIGINAL
) -> Claim:
    """That the best hierarchies of one arm are lower than those of another."""
    measure = paired_difference("best_hierarchy", treated, control)
    unit = f"{SPEARMAN}, difference of the best"
    measure = measure.noted(note) if note else measure
    return Claim(name, statement, source, predicted, unit, measure, below=0.0, when=COMPARABLE)


ONE_NORM = (
    "Both have one largest norm R, so that sqrt(c) R, how near the rim points can come, grows with the curvature c."
)
SAME_TRAJECTORY = (
    "Stopping early cannot better the best of the same trajectory: a difference would come from the schedules."
)


STOPPING = "Runs that stop after five evaluations without a better hierarchy"


def _sooner(name: str, schedule: str, predicted: str) -> Claim:
    """That a run that stops early has a better best than a schedule has had by then."""
    early, other = "sweep3_early_stop_p5", f"sweep3_{schedule}"
    statement = f"{STOPPING} reach a better one than runs with the {schedule.removesuffix('_decay')} schedule do in the same epochs"
    measure = best_in_common_epochs(early, other).noted(SAME_TRAJECTORY)
    return Claim(
        name, statement, ORIGINAL, predicted, f"{SPEARMAN}, difference of the best", measure, below=0.0, when=COMPARABLE
    )


ANY_RIM = _better(
    "curvature_2_vs_1", "At curvature 2 runs reach a better hierarchy than at curvature 1 with the same largest norm", "-0.014 (-0.702 against -0.688)",
    "sweep_curv_2.0", "sweep_curv_1.0", ONE_NORM,
)  # fmt: skip
SAME_RIM = _better(
    "curvature_2_vs_1_same_rim",
    "At curvature 2 runs reach a better hierarchy than at curvature 1 with the same share of the ball's radius", "none",
    "sweep_rim_2.0", "sweep_rim_1.0", source="this study: whether more than sqrt(c) R is behind it",
)  # fmt: skip

_FINDINGS = (
    Claim(
        "decay_balanced",
        "With the loss on level means (weights 5 of the hierarchy and 5 of the richness) a run's hierarchy worsens by 0.16 or "
        "more from the epoch at which the other seeds are best on average to its end", ORIGINAL,
        "0.16 (-0.758 to -0.598)", f"{SPEARMAN}, end minus peak",
        worsening("sweep2_balanced"), above=0.16, when=beyond(20, "sweep2_balanced"),
    ),
    Claim(
        "decay_baseline",
        "With the loss on level means (weights 5 of the hierarchy and 2 of the richness) a run's hierarchy worsens by 0.19 or "
        "more from the epoch at which the other seeds are best on average to its end", ORIGINAL,
        "0.19 (-0.752 to -0.559)", f"{SPEARMAN}, end minus peak",
        worsening("sweep2_baseline"), above=0.19, when=beyond(20, "sweep2_baseline"),
    ),
    Claim(
        "peak_weights",
        "With every weighting of the loss on level means that was tried, a run's best hierarchy comes at epoch 20 or earlier",
        ORIGINAL,
        "10 to 20", "epochs", latest_peak(WEIGHTS, "group"), below=20.5,
        when=beyond(20, WEIGHTS, of="group"),
    ),
    _sooner("early_stop_vs_step", "step_decay", "-0.025 (-0.792 against -0.767, all epochs of both)"),
    _sooner("early_stop_vs_cosine", "cosine", "-0.097 (-0.792 against -0.695, all epochs of both)"),
    Claim(
        "early_stop_peak",
        f"{STOPPING}, which itself makes an early best likely, have their best at epoch 10 or earlier", ORIGINAL,
        "3", "epochs",
        latest_peak("sweep3_early_stop_p5"), below=10.5, when=beyond(10, "sweep3_early_stop_p5"),
    ),
    _better(
        "lr_1e3_vs_1e4", "At learning rate 1e-3 runs reach a better hierarchy than at 1e-4", "-0.055 (-0.790 against -0.735)",
        "sweep4_lr_1e3", "sweep4_lr_1e4",
    ),
    _better(
        "lr_1e3_vs_3e4", "At learning rate 1e-3 runs reach a better hierarchy than at 3e-4", "-0.001 (-0.790 against -0.789)",
        "sweep4_lr_1e3", "sweep4_lr_3e4",
    ),
    Claim(
        "lr_1e3_peak", "At learning rate 1e-3 a run's best hierarchy comes at epoch 2 or earlier", ORIGINAL, "0", "epochs",
        latest_peak("sweep4_lr_1e3"), below=2.5, when=beyond(2, "sweep4_lr_1e3"),
    ),
    Claim(
        "stability",
        "Runs that differ only in how their projections were drawn have best hierarchies with a standard deviation of 0.030 or less",
        ORIGINAL,
        "0.030 (0.019 once the architecture matched)", f"{SPEARMAN}, standard deviation",
        spread_of_draws(), below=0.030, when=COMPARABLE,
    ),
    Claim(
        "init_best_correlation",
        "The hierarchy before training predicts the best one of a run: over draws of the projections they correlate by 0.92 or more",
        ORIGINAL, "0.92",
        "Pearson", correlation_of_draws(), above=0.92, when=COMPARABLE,
    ),
    Claim(
        "best_achieved",
        "With the loss on level means the best hierarchy that any of a seed's three runs (baseline, stopping after five evaluations "
        "without a better one, learning rate 1e-3) reaches is -0.792 or lower", ORIGINAL, "-0.792",
        f"{SPEARMAN}, best of a seed", best_of_three_arms(), below=-0.792, when=COMPARABLE,
    ),
    Claim(
        "ordered_no_decay", "With the loss on single samples a run's hierarchy ends within 0.001 of its best",
        "this study: nothing in it pulls levels together again", "0", f"{SPEARMAN}, end minus best",
        mean("decay", "sweep7_ordered"), below=0.001, when=COMPARABLE,
    ),
    Claim(
        "ordered_vs_level_means",
        "With the loss on single samples runs end at a better hierarchy than in the arm of the loss on level means that ends best "
        "in the other seeds",
        "this study", "better", f"{SPEARMAN}, difference at the end", ordered_minus_best_arm(), below=0.0,
        when=COMPARABLE,
    ),
)  # fmt: skip


PHASES: dict[str, Any] = {
    "stages": "hierarchy", "start": "", "hierarchy_frozen": ["encoder_A", "encoder_B", "decoder_A", "controller"],
    "loss": "rich_hierarchy", "view": "a", "code": "sample", "batch_size": 512, "deep_share": 0.0, "lr": 5e-4, "scheduler": "constant",
}  # fmt: skip
"""The settings of the original study's phases, beside defaults; one evaluation an epoch is one of these."""
PHASES_FREE = (
    "seed",
    "projection_seed",
    "start",
    "start_projections",
    "radius",
    "epochs",
    "checkpoint_every",
    "forward",
)
"""Settings that the findings leave open: which start and radius a verdict is of, it says; the others reach no figure, or have
conditions of their own."""
OF_PHASES = {k: v for k, v in to_dict(TrainConfig(**PHASES)).items() if k not in PHASES_FREE}
WEIGHTINGS = ("hierarchy_weight", "coverage_weight", "richness_weight", "separation_weight")
"""What one weighting may differ in from another."""

_EARLY: dict[str, Any] = {"early_stopping_patience": 5}
_DRAWS: dict[str, dict[str, Any]] = {
    "sweep5": {"start_projections": "drawn", "lr": 3e-4, **_EARLY},
    "sweep6": {"start_projections": "drawn"},
}


PAIRS: dict[str, dict[str, dict[str, Any]]] = {
    "curvature_2_vs_1": {"sweep_curv_2.0": {"curvature": 2.0}, "sweep_curv_1.0": {"curvature": 1.0}},
    "curvature_2_vs_1_same_rim": {
        "sweep_rim_2.0": {"curvature": 2.0, "max_radius": 0.67175}, "sweep_rim_1.0": {"curvature": 1.0, "max_radius": 0.95},
    },
    "early_stop_vs_step": {"sweep3_early_stop_p5": _EARLY, "sweep3_step_decay": {"scheduler": "step"}},
    "early_stop_vs_cosine": {"sweep3_early_stop_p5": _EARLY, "sweep3_cosine": {"scheduler": "cosine"}},
    "lr_1e3_vs_1e4": {"sweep4_lr_1e3": {"lr": 1e-3}, "sweep4_lr_1e4": {"lr": 1e-4}},
    "lr_1e3_vs_3e4": {"sweep4_lr_1e3": {"lr": 1e-3}, "sweep4_lr_3e4": {"lr": 3e-4}},
    "best_achieved": {
        "sweep2_baseline": {"start_projections": "drawn"}, "sweep3_early_stop_p5": {"start_projections": "drawn", **_EARLY},
        "sweep4_lr_1e3": {"start_projections": "drawn", "lr": 1e-3},
    },
    "ordered_vs_level_means": {"sweep7_ordered": {"loss": "ordered"}, "sweep2_baseline": {}},
}  # fmt: skip
"""Of the findings that take several arms together: each arm with the settings in which it is none of PHASES. What these leave
open is alike in all of them, and within a seed so are the projections that they begin with."""
UNPINNED = {"curvature_2_vs_1": "max_radius"}
"""A setting of PHASES that the sentence leaves open: alike in both arms, at whatever value."""
LENGTHS = {"early_stop_vs_cosine": ["epochs"]}
"""What need not be alike."""
ABOUT: dict[str, dict[str, dict[str, Any]]] = {
    **PAIRS,
    "decay_balanced": {"sweep2_balanced": {"richness_weight": 5.0}},
    "decay_baseline": {"sweep2_baseline": {}},
    "peak_weights": {"sweep2_balanced": {"richness_weight": 5.0}, "sweep2_baseline": {}},
    "early_stop_peak": {"sweep3_early_stop_p5": _EARLY},
    "lr_1e3_peak": {"sweep4_lr_1e3": {"lr": 1e-3}},
    "stability": _DRAWS,
    "init_best_correlation": _DRAWS,
    "ordered_no_decay": {"sweep7_ordered": {"loss": "ordered"}},
}
"""Finding -> the arms without which a sweep cannot judge it, and so does not register it, with those settings."""
OF_ALL_ARMS = ("ordered_vs_level_means",)
"""Findings that look for the best among all arms of the loss on level means."""
OF_THE_END = ("decay_balanced", "decay_baseline", "ordered_no_decay", *OF_ALL_ARMS)
"""Findings that read where runs end."""


def _settings_of(id_: str) -> Condition:
    """That the runs of the finding's arms have every setting of PHASES but for those that its sentence is about."""
    rest = {k: v for k, v in OF_PHASES.items() if k != UNPINNED.get(id_)}
    wanted = {arm: {**rest, **own} for arm, own in ABOUT[id_].items()}
    if id_ == "peak_weights":
        wanted[WEIGHTS] = {k: v for k, v in rest.items() if k not in WEIGHTINGS}
    of_phases = ", ".join(f"{k} {v}" for k, v in PHASES.items() if k in rest)
    free = WEIGHTINGS if id_ == "peak_weights" else LENGTHS.get(id_, ())
    own, held = (settings_are(of, id_ in PAIRS, free) for of in (ABOUT[id_], wanted))
    still_open = ", ".join(
        (*PHASES_FREE, *([f"{WEIGHTS} in {name}" for name in free] if id_ == "peak_weights" else ()))
    )
    text = f"{own.text}, all else as in the phases ({of_phases}, the rest by default; open: {still_open})"
    return Condition(text, held.unmet)


def _of_its_runs(claim: Claim) -> Claim:
    """The claim of runs with its settings and of enough seeds, saying which start and which radii its verdict is of."""

    def start_and_radii(table: "DataFrame") -> str:
        own = table[table["stages"] == "hierarchy"]
        if claim.id not in OF_ALL_ARMS:
            own = own[own["arm_without_draw"].isin(ABOUT[claim.id])]
        start = {"drawn": "projections drawn anew", "loaded": "those of a checkpoint that is ordered already"}
        starts = " or ".join(start[name] for name in sorted(own["start_projections"].unique()))
        kinds = {"hyperbolic": "hyperbolic distances", "euclidean": "Euclidean norms"}
        radii = " or ".join(kinds[name] for name in sorted(own["radius"].unique()))
        return f"Of this start and radius: {starts}; {radii}."

    assert claim.when is not None
    when = all_of(
        claim.when,
        _settings_of(claim.id),
        untied(
            list(ABOUT[claim.id]),
            WEIGHTS if claim.id == "peak_weights" else "",
            claim.id in OF_THE_END,
            claim.id in OF_ALL_ARMS,
        ),
    )
    return replace(claim, measure=of_seeds(claim.measure.noted(start_and_radii)), when=when)


ANY_RIM, SAME_RIM = _of_its_runs(ANY_RIM), _of_its_runs(SAME_RIM)
FINDINGS = tuple(_of_its_runs(claim) for claim in _FINDINGS)
"""The original study's findings."""


def claims(verb: str, config: Any) -> Sequence[Claim]:
    """The claims that a run or a sweep is judged by.

    A single run is asked for the targets. A sweep without phases is asked for them as well, and for what its arms from
    scratch can say; one with phases for the original study's findings first, as far as its budget can show either outcome.
    """
    if isinstance(config, TrainConfig):
        return _targets([to_dict(config)])
    arms = {arm: {**config.coverage, **changes} for arm, changes in config.from_scratch.items()}
    targets = _targets(list(arms.values()))
    plateaus = [claim for arm, claim in PLATEAUS.items() if arm in arms]
    beside = [
        *(CURVATURE_BUYS if {BALL, TWIN} <= set(arms) else ()),
        *([RULE_LEARNT] if {BALL, SHUFFLED} <= set(arms) else ()),
    ]
    arms_without_draw = {
        arm.partition("_draw_")[0]
        for phase in config.phases.values()
        for arm in (*phase.get("arms", {}), *([phase["name"]] if "name" in phase else []))
    }
    findings = [claim for claim in (ANY_RIM, SAME_RIM, *FINDINGS) if set(ABOUT[claim.id]) <= arms_without_draw]
    # Two kinds of sweep cannot decide these: where radii are Euclidean norms the curvature does not enter, and runs that start
    # in order have reached their hierarchy before any training.
    untold = set() if config.base.get("radius", TrainConfig.radius) == "hyperbolic" else {ANY_RIM.id, SAME_RIM.id}
    untold |= {"best_achieved"} if config.base.get("start_projections") == "loaded" else set()
    weightings = sorted(arm for arm in arms_without_draw if arm.startswith(WEIGHTS.removesuffix("*")))
    named = [
        replace(claim, statement=f"{claim.statement} ({', '.join(weightings)})")
        if claim.id == "peak_weights"
        else claim
        for claim in findings
        if claim.id not in untold
    ]
    return [*targets, *beside, *plateaus, *named]


def _targets(runs: Sequence[Mapping[str, Any]]) -> Sequence[Claim]:
    """What runs of these settings are asked for: nothing where one of those that would be asked is of another kind."""
    whole = [
        of
        for of in runs
        if not is_control(of)
        and setting(of, "stages") != "hierarchy"
        and (setting(of, "stages") != "coverage" or setting(of, "train_fraction") < 1)
    ]
    if whole and all(map(fits_unseen_targets, whole)):
        ordered = all(setting(of, "stages") != "coverage" for of in whole)
        return UNSEEN_TARGETS if ordered else UNSEEN_TARGETS[:1]
    if whole and all(map(fits_targets, whole)):
        return BALL_TARGETS if all(setting(of, "decode") == "ball" for of in whole) else WHOLE_TARGETS
    return ()
