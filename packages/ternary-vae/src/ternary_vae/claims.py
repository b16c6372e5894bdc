"""The study's claims, as data, and what they read of a finished run.

Targets of training from scratch ask that every seed reaches them: a single run that fails refutes, runs that all pass
support once there are enough of them. The original study's findings are asked of arms over seeds, paired where two arms
are compared; several draws of the projections are averaged within a seed first.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studycore.claims import Claim, Condition, Measure, NotRun
from studycore.configuration import to_dict
from studycore.files import read_json
from studycore.measures import at_least, correlation, enough, mean, paired_difference, rows, share, spread
from studycore.metrics_log import read_evaluations
from studycore.run_folder import read_manifest
from studycore.statistics import Interval, mean_interval
from ternary_vae.config import SweepConfig, TrainConfig
from ternary_vae.history import ordering_metrics, ordering_rows

if TYPE_CHECKING:
    from pandas import DataFrame

OWN, ORIGINAL = "this study's target", "the original study's sweep summary"
SPEARMAN = "Spearman"
PLATEAU_EPOCHS = 50
"""Epochs of the original study's runs from scratch."""
LEAST_EPOCHS = 10
"""Epochs below which nothing is said about what the original study found over dozens."""
LEAST_SHARE = 0.45
"""What the interval of the share of passing runs must lie above: it does when 5 of 5 pass (0.478), not when 4 of 4 do."""
RATE_FACTOR = 2.0
"""What a small factor of log N is, for the KL divergence."""
WEIGHTS, DRAWS = "sweep2_*", "sweep5 and sweep6"
"""Groups of arms, as the column `group` names them."""


# ---------------------------------------------------------------------------------------------- of one finished run
TARGETS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "scratch_coverage": lambda m: m["covered"] == m["operations"] == 19_683,
    "scratch_gaps": lambda m: m["min_level_gap"] > 0 and m["positive_gaps"] == 9,
    "scratch_hierarchy": lambda m: m["hierarchy_of_ceiling"] >= 0.9999,
    "scratch_ties": lambda m: m["tied_radius_share"] < 0.001,
    "scratch_richness": lambda m: m["richness"] >= 0.003,
    "scratch_rate": lambda m: m["kl_of_least"] <= RATE_FACTOR,
    "scratch_prior": lambda m: m["prior_coverage"] >= 0.99,
    "unseen_coverage": lambda m: m["coverage_unseen"] > 0.95,
    "unseen_hierarchy": lambda m: -m["hierarchy_unseen"] >= 0.99 * m["hierarchy_ceiling_unseen"],
}
"""When a run passes a target, by its metrics."""


def columns(folder: Path, config: TrainConfig) -> dict[str, Any]:
    """What claims and tables read of one finished run. UserError when it holds no evaluation."""
    evaluations = read_evaluations(folder)
    seconds = float(read_manifest(folder)["times"].get("seconds", 0.0))
    return columns_of(folder.name, config, evaluations, read_json(folder / "results.json")["metrics"], seconds)


SETTINGS = (
    "stages", "trits", "curvature", "view", "train_fraction", "coverage_epochs", "epochs", "loss", "radius",
    "start_projections", "decode",
)  # fmt: skip
"""Settings that are columns."""


def columns_of(
    name: str, config: TrainConfig, evaluations: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """Columns of the run `name` from its rows of metrics.jsonl and its metrics of results.json."""
    arm = re.sub(r"(_draw_\d+)?_s\d+$", "", name)
    row: dict[str, Any] = {
        **{key: value for key, value in metrics.items() if isinstance(value, int | float)},
        **{key: getattr(config, key) for key in SETTINGS},
        "arm_without_draw": arm,
        "group": _group(arm, config),
        "settings": to_dict(config),
        "largest_coverage": max(float(row["coverage"]) for row in evaluations),
        "seconds": seconds,
    }
    if ordering := ordering_rows(evaluations):
        row |= {
            **ordering_metrics(evaluations),
            "final_hierarchy": ordering[-1]["hierarchy"],
            "ordering_rows": ordering,
        }
        row["decay"] = row["final_hierarchy"] - row["best_hierarchy"]
    # A finetuned run, or one of a sweep's phases, is asked for no target; nor is a checkpoint that others start from, nor
    # what stands beside the model: controls, the flat twin, other bands.
    row["whole"] = (
        config.stages != "hierarchy"
        and (bool(ordering) or config.train_fraction < 1)
        and not is_control(to_dict(config))
    )
    from_scratch = config.start is None and config.stages in ("coverage_hierarchy", "joint")
    row["fits_targets"] = (
        from_scratch
        and config.train_fraction == 1
        and (config.trits, config.curvature, config.max_radius) == (9, 1.0, 0.95)
    )
    row["fits_unseen_targets"] = config.start is None and config.train_fraction <= 0.1 and config.trits == 9
    for target, passes in TARGETS.items():
        try:
            row[f"passes_{target}"] = bool(passes(metrics))
        except KeyError:
            continue
    return {key: value for key, value in row.items() if value is not None}


def is_control(settings: Mapping[str, Any]) -> bool:
    """Whether a run's settings (those that are not defaults suffice) are of what stands beside the model."""
    return (
        settings.get("valuations", "true") == "shuffled"
        or settings.get("geometry", "hyperbolic") == "euclidean"
        or settings.get("bands", "wide") == "even"
    )


def _group(arm: str, config: TrainConfig) -> str | None:
    """The arms that a claim takes together."""
    if config.stages != "hierarchy":
        return None
    if config.loss != "rich_hierarchy":
        return None
    return WEIGHTS if arm.startswith("sweep2_") else DRAWS if arm in ("sweep5", "sweep6") else None


# ------------------------------------------------------------------------------------------- this study's own measures
def with_note(measure: Measure, note: str) -> Measure:
    """The same measure, saying more of how the figure was made."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        interval, how = measure.compute(table)
        return interval, f"{how} {note}"

    return Measure(measure.text, compute)


def every_run(column: str) -> Measure:
    """Share of the whole runs that pass, saying how long they were and whose code is measured."""
    passing = share(column, True, of="whole")

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        interval, how = passing.compute(table)
        own = table[table["whole"]]
        budgets = sorted({f"{a} + {b}" for a, b in zip(own["coverage_epochs"], own["epochs"], strict=True)})
        one_code = (own["view"].eq("a") & own["stages"].eq("joint")).all()
        whose = (
            "Both are of encoder A's one code." if one_code else "Coverage is of encoder A's code, order of the view's."
        )
        length = f"Trained for at most {' or '.join(budgets)} epochs (coverage + hierarchy)."
        return interval, f"{how} If every run passes, the claim is supported from five runs on. {length} {whose}"

    return Measure(passing.text, compute)


def largest_coverage(arm: str) -> Measure:
    """Mean of a run's largest coverage; only a lower bound of it where runs ended sooner than the original study's."""
    plain = mean("largest_coverage", arm)

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        interval, how = plain.compute(table)
        epochs = int(table[table["arm"] == arm]["coverage_epochs"].min())
        if epochs >= PLATEAU_EPOCHS:
            return interval, how
        why = f"Only {PLATEAU_EPOCHS} epochs, as in the original study, can show that coverage stays below; these had {epochs}."
        return replace(interval, at_least=True), f"{how} {why}"

    return Measure(f"{plain.text}, at least where coverage_epochs < {PLATEAU_EPOCHS}", compute)


def _level_means(table: "DataFrame") -> "DataFrame":
    """Runs of a sweep's phases with the loss on level means. NotRun when there are none."""
    own = rows(table, "best_hierarchy", "rich_hierarchy", of="loss")
    own = own[own["stages"] == "hierarchy"]
    if own.empty:
        raise NotRun("No finished run of a phase has the loss on level means.")
    return own


def _best_of_all_arms() -> Measure:
    """The best hierarchy of any evaluation of any arm with the loss on level means, picked after the fact."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        own = _level_means(table)
        best = own.groupby("seed")["best_hierarchy"].min()
        enough(len(best), "seeds of the loss on level means")
        how = f"The best of all evaluations of all {len(own) / len(best):.0f} runs of a seed, picked after the fact as the original study did; mean over seeds, Student's t."
        return mean_interval(list(best)), how

    return Measure(
        "mean over seeds of the least best_hierarchy of all runs of a phase with the loss rich_hierarchy", compute
    )


def _ordered_minus_best_arm() -> Measure:
    """The loss on single samples minus whichever arm of the loss on level means ends best, paired by seed."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        of_seeds = _level_means(table).groupby(["arm_without_draw", "seed"])["final_hierarchy"].mean()
        best = of_seeds.groupby("arm_without_draw").mean().idxmin()
        return paired_difference("final_hierarchy", "sweep7_ordered", best, of="arm_without_draw").compute(table)

    return Measure(
        "paired_difference(final_hierarchy, 'sweep7_ordered' - the arm of the loss rich_hierarchy that ends best)",
        compute,
    )


# -------------------------------------------------------------------------------------------------------- conditions
def all_of(*conditions: Condition) -> Condition:
    """That every one of the conditions holds."""
    return Condition(
        " and ".join(condition.text for condition in conditions),
        lambda table: next((why for condition in conditions if (why := condition.unmet(table))), ""),
    )


def _every_whole_run(fits: str, passes: str, needs: str) -> Condition:
    """That there are whole runs, that all of them are of the kind the target is meant for, and have its metrics."""

    def unmet(table: "DataFrame") -> str:
        own = table[table["whole"]] if "whole" in table else table
        if own.empty or not own[fits].all():
            return needs
        lacking = list(own["run"] if passes not in own else own[own[passes].isna()]["run"])
        return f"The results of {', '.join(lacking)} lack a metric that the target needs." if lacking else ""

    return Condition(f"every whole run {fits} and has {passes}", unmet)


def _long_runs_of_9_trits() -> Condition:
    def unmet(table: "DataFrame") -> str:
        own = table[table["stages"] == "hierarchy"] if "stages" in table else table
        if own.empty or ((own["trits"] == 9).all() and (own["epochs"] >= LEAST_EPOCHS).all()):
            return ""
        return f"The original study's findings are asked of runs with 9 trits and {LEAST_EPOCHS} epochs or more."

    return Condition(f"9 trits and {LEAST_EPOCHS} epochs or more in every phase", unmet)


COMPARABLE = _long_runs_of_9_trits()


def _beyond(epoch: int, arm: str, of: str = "arm") -> Condition:
    """That the arm's runs were meant to go on beyond an epoch that the claim is about."""
    return all_of(COMPARABLE, at_least("epochs", epoch + 1, arm, of=of))


# ------------------------------------------------------------------------------------------------------------ claims
NEEDS = "Needs runs from scratch that order radii, with 9 trits, curvature 1 and max_radius 0.95 (`ternary-vae train`)."
NEEDS_UNSEEN = "Needs runs from scratch that see a tenth of the operations of 9 trits or less (`ternary-vae train --config generalise`)."


def _target(name: str, statement: str, predicted: str) -> Claim:
    passes = f"passes_{name}"
    unseen = name.startswith("unseen")
    condition = _every_whole_run(
        *(("fits_unseen_targets", passes, NEEDS_UNSEEN) if unseen else ("fits_targets", passes, NEEDS))
    )
    return Claim(
        name, f"From scratch, in every seed: {statement}", OWN, predicted, "share of seeds", every_run(passes), above=LEAST_SHARE,
        when=condition, of_every_unit=True, decided_by="train --config generalise --seeds 10" if unseen else "",
    )  # fmt: skip


WHOLE_TARGETS = (
    _target("scratch_coverage", "all 19,683 operations come back right from their mean code", "19,683 of 19,683"),
    _target("scratch_gaps", "every level lies apart from the next", "smallest gap above 0"),
    _target("scratch_hierarchy", "the hierarchy is at least 99.99 % of its ceiling", "99.99 %"),
    _target("scratch_ties", "fewer than 0.1 % of the radii are tied, so that ties do not make the hierarchy", "0.1 %"),
    _target("scratch_richness", "the Euclidean richness is at least 0.003", "0.003 (the best at the ceiling before: 0.000048)"),
)  # fmt: skip
BALL_TARGETS = (
    *(target for target in WHOLE_TARGETS if target.id != "scratch_richness"),
    _target("scratch_rate", "the KL divergence is at most twice log 19,683 = 9.9 nats", "below 2 (54 nats, 5.5 times, in two codes)"),
    _target("scratch_prior", "samples of the prior, ten for each operation, decode to 99 % of the operations or more", "99 % (88.5 % in two codes)"),
)  # fmt: skip
"""Of the model that is decoded and ordered in one point of the ball. Nothing asks it for a place within a level's band, so
its richness is shown and not judged."""
TWIN, SHUFFLED = "flat_twin", "shuffled"
"""Arms from scratch that stand beside the arm `ball`."""


def _against_twin(metric: str, statement: str, better: str, unit: str) -> Claim:
    return Claim(
        f"curvature_{metric}", f"{statement} than of its flat twin of equal parameters", "this study: what the curvature buys",
        "better", unit, paired_difference(metric, "ball", TWIN),
        above=0.0 if better == "above" else None, below=0.0 if better == "below" else None,
    )  # fmt: skip


CURVATURE_BUYS = (
    _against_twin("kl", "The KL divergence of the model in the ball is smaller", "below", "nats, difference"),
    _against_twin("coverage_sampled", "More operations come back right from a sample of the model in the ball", "above", "share, difference"),
    _against_twin("prior_coverage", "The prior of the model in the ball meets more operations", "above", "share, difference"),
)  # fmt: skip
RULE_LEARNT = Claim(
    "rule_learnt", "With valuations dealt out at random, the order of the radii stays below half of its ceiling",
    "this study: radii are memorised otherwise, and no rule is learnt", "0.11", "share of the ceiling",
    mean("hierarchy_of_ceiling", SHUFFLED), below=0.5,
)  # fmt: skip
UNSEEN_TARGETS = (
    _target("unseen_coverage", "more than 95 % of the operations that training did not see come back right", "86 % by a plain model"),
    _target("unseen_hierarchy", "the hierarchy of the unseen is at least 99 % of their own ceiling", "99 %"),
)  # fmt: skip
"""Where training sees a tenth of the operations or less."""

PLATEAUS = {
    "frozen_decoder": Claim(
        "plateau_frozen_decoder", "From scratch coverage stays at 30 % or below (decoder frozen as it was drawn)", ORIGINAL,
        "20 to 30 %", "share, largest of the run", largest_coverage("frozen_decoder"), below=0.30,
    ),
    "mended": Claim(
        "plateau_mended", "From scratch coverage stays at 30 % or below (decoder trained as well)", ORIGINAL, "20 to 30 %",
        "share, largest of the run", largest_coverage("mended"), below=0.30,
    ),
}  # fmt: skip
"""By the arm from scratch that they are about."""


def _better(
    name: str, statement: str, predicted: str, treated: str, control: str, note: str = "", source: str = ORIGINAL
) -> Claim:
    """That the best hierarchies of one arm are lower than those of another."""
    measure = paired_difference("best_hierarchy", treated, control)
    unit = f"{SPEARMAN}, difference of the best"
    measure = with_note(measure, note) if note else measure
    return Claim(name, statement, source, predicted, unit, measure, below=0.0, when=COMPARABLE)


ONE_NORM = (
    "Both have one largest norm R, so that sqrt(c) R, how near the rim points can come, grows with the curvature c."
)
SAME_TRAJECTORY = (
    "Stopping early cannot better the best of the same trajectory: a difference would come from the schedules."
)
NEVER_NEGATIVE = "This is never negative, so that 0 would be no threshold."
ANY_RIM = _better(
    "curvature_2_vs_1", "Curvature 2 reaches a better hierarchy than curvature 1", "-0.014 (-0.702 against -0.688)",
    "sweep_curv_2.0", "sweep_curv_1.0", ONE_NORM,
)  # fmt: skip
SAME_RIM = _better(
    "curvature_2_vs_1_same_rim",
    "Curvature 2 reaches a better hierarchy than curvature 1 at the same share of the ball's radius", "none",
    "sweep_rim_2.0", "sweep_rim_1.0", source="this study: whether more than sqrt(c) R is behind it",
)  # fmt: skip

_FINDINGS = (
    Claim(
        "decay_balanced",
        "With the loss on level means (weights 5, 5) the hierarchy peaks and then worsens by 0.16 or more", ORIGINAL,
        "0.16 (-0.758 to -0.598)", f"{SPEARMAN}, end minus best",
        with_note(mean("decay", "sweep2_balanced"), NEVER_NEGATIVE), above=0.16, when=_beyond(20, "sweep2_balanced"),
    ),
    Claim(
        "decay_baseline",
        "With the loss on level means (weights 5, 2) the hierarchy peaks and then worsens by 0.19 or more", ORIGINAL,
        "0.19 (-0.752 to -0.559)", f"{SPEARMAN}, end minus best",
        with_note(mean("decay", "sweep2_baseline"), NEVER_NEGATIVE), above=0.19, when=_beyond(20, "sweep2_baseline"),
    ),
    Claim(
        "peak_weights",
        "With every weighting of the loss on level means the best hierarchy comes at epoch 20 or earlier", ORIGINAL,
        "10 to 20", "epochs", with_note(mean("best_epoch", WEIGHTS, of="group"), "Averaged over the arms within a seed."), below=20.5,
        when=_beyond(20, WEIGHTS, of="group"),
    ),
    _better(
        "early_stop_vs_step", "Stopping early (patience 5) reaches a better best hierarchy than the step schedule does",
        "-0.025 (-0.792 against -0.767)", "sweep3_early_stop_p5", "sweep3_step_decay", SAME_TRAJECTORY,
    ),
    _better(
        "early_stop_vs_cosine", "Stopping early (patience 5) reaches a better best hierarchy than the cosine schedule does",
        "-0.097 (-0.792 against -0.695)", "sweep3_early_stop_p5", "sweep3_cosine", SAME_TRAJECTORY,
    ),
    Claim(
        "early_stop_peak", "With patience 5 the best hierarchy comes at epoch 10 or earlier", ORIGINAL, "3", "epochs",
        mean("best_epoch", "sweep3_early_stop_p5"), below=10.5, when=_beyond(10, "sweep3_early_stop_p5"),
    ),
    _better(
        "lr_1e3_vs_1e4", "Learning rate 1e-3 reaches a better hierarchy than 1e-4", "-0.055 (-0.790 against -0.735)",
        "sweep4_lr_1e3", "sweep4_lr_1e4",
    ),
    _better(
        "lr_1e3_vs_3e4", "Learning rate 1e-3 reaches a better hierarchy than 3e-4", "-0.001 (-0.790 against -0.789)",
        "sweep4_lr_1e3", "sweep4_lr_3e4",
    ),
    Claim(
        "lr_1e3_peak", "At learning rate 1e-3 the best hierarchy comes at epoch 2 or earlier", ORIGINAL, "0", "epochs",
        mean("best_epoch", "sweep4_lr_1e3"), below=2.5, when=_beyond(2, "sweep4_lr_1e3"),
    ),
    Claim(
        "stability",
        "Best hierarchies from different draws of the projections have a standard deviation of 0.030 or less", ORIGINAL,
        "0.030 (0.019 once the architecture matched)", f"{SPEARMAN}, standard deviation",
        spread("best_hierarchy", DRAWS, of="group"), below=0.030, when=COMPARABLE,
    ),
    Claim(
        "init_best_correlation",
        "The hierarchy before training predicts the best one: their correlation is 0.92 or more", ORIGINAL, "0.92",
        "Pearson", correlation("initial_hierarchy", "best_hierarchy", DRAWS, of="group"), above=0.92, when=COMPARABLE,
    ),
    Claim(
        "best_achieved", "With the loss on level means the best hierarchy of a seed's runs is -0.792 or lower", ORIGINAL, "-0.792",
        f"{SPEARMAN}, best of a seed", _best_of_all_arms(), below=-0.792, when=COMPARABLE,
    ),
    Claim(
        "ordered_no_decay", "With the loss on single samples the hierarchy ends within 0.001 of its best",
        "this study: nothing in it pulls levels together again", "0", f"{SPEARMAN}, end minus best",
        mean("decay", "sweep7_ordered"), below=0.001, when=COMPARABLE,
    ),
    Claim(
        "ordered_vs_level_means",
        "The loss on single samples ends at a better hierarchy than the best arm of the loss on level means",
        "this study", "better", f"{SPEARMAN}, difference at the end", _ordered_minus_best_arm(), below=0.0,
        when=COMPARABLE,
    ),
)  # fmt: skip


def _of_its_start(claim: Claim) -> Claim:
    """The claim, saying which start and which radii its verdict is of."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        interval, how = claim.measure.compute(table)
        own = table[table["stages"] == "hierarchy"]
        start = {"drawn": "projections drawn anew", "loaded": "those of a checkpoint that is ordered already"}
        starts = " or ".join(start[name] for name in sorted(own["start_projections"].unique()))
        kinds = {"hyperbolic": "hyperbolic distances", "euclidean": "Euclidean norms"}
        radii = " or ".join(kinds[name] for name in sorted(own["radius"].unique()))
        return interval, f"{how} Of this start and radius: {starts}; {radii}."

    return replace(claim, measure=Measure(claim.measure.text, compute))


ANY_RIM, SAME_RIM = _of_its_start(ANY_RIM), _of_its_start(SAME_RIM)
FINDINGS = tuple(_of_its_start(claim) for claim in _FINDINGS)
"""The original study's findings."""


NEEDED = {
    "curvature_2_vs_1": ("sweep_curv_1.0", "sweep_curv_2.0"),
    "curvature_2_vs_1_same_rim": ("sweep_rim_1.0", "sweep_rim_2.0"),
    "decay_balanced": ("sweep2_balanced",),
    "decay_baseline": ("sweep2_baseline",),
    "peak_weights": ("sweep2_baseline", "sweep2_balanced"),
    "early_stop_vs_step": ("sweep3_early_stop_p5", "sweep3_step_decay"),
    "early_stop_vs_cosine": ("sweep3_early_stop_p5", "sweep3_cosine"),
    "early_stop_peak": ("sweep3_early_stop_p5",),
    "lr_1e3_vs_1e4": ("sweep4_lr_1e3", "sweep4_lr_1e4"),
    "lr_1e3_vs_3e4": ("sweep4_lr_1e3", "sweep4_lr_3e4"),
    "lr_1e3_peak": ("sweep4_lr_1e3",),
    "stability": ("sweep5",),
    "init_best_correlation": ("sweep5",),
    "best_achieved": ("sweep2_baseline", "sweep3_early_stop_p5", "sweep4_lr_1e3"),
    "ordered_no_decay": ("sweep7_ordered",),
    "ordered_vs_level_means": ("sweep7_ordered", "sweep2_baseline"),
}
"""Finding -> arms without which a sweep cannot judge it, and so does not register it."""


def claims(verb: str, config: Any) -> Sequence[Claim]:
    """The claims that a run or a sweep is judged by.

    A single run is asked for the targets. A sweep without phases is asked for them as well, and for what its arms from
    scratch can say; one with phases for the original study's findings first, as far as its budget can show either outcome.
    """
    if isinstance(config, TrainConfig):
        return _targets(config.train_fraction < 1, config.decode == "ball")
    arms = {arm: {**config.coverage, **changes} for arm, changes in config.from_scratch.items()}
    whole = {arm: own for arm, own in arms.items() if own.get("stages") != "coverage" and not is_control(own)}
    in_ball = bool(whole) and all(own.get("decode") == "ball" for own in whole.values())
    targets = _targets(_sees_a_part(config), in_ball) if whole or _sees_a_part(config) else ()
    plateaus = [claim for arm, claim in PLATEAUS.items() if arm in arms]
    beside = [*(CURVATURE_BUYS if {"ball", TWIN} <= set(arms) else ()), *([RULE_LEARNT] if SHUFFLED in arms else ())]
    arms_without_draw = {
        arm.partition("_draw_")[0]
        for phase in config.phases.values()
        for arm in (*phase.get("arms", {}), *([phase["name"]] if "name" in phase else []))
    }
    findings = [claim for claim in (ANY_RIM, SAME_RIM, *FINDINGS) if set(NEEDED[claim.id]) <= arms_without_draw]
    return [*targets, *beside, *plateaus, *findings]


def _targets(part: bool, in_ball: bool) -> Sequence[Claim]:
    return UNSEEN_TARGETS if part else BALL_TARGETS if in_ball else WHOLE_TARGETS


def _sees_a_part(config: SweepConfig) -> bool:
    """Whether all whole runs of a sweep (see the column `whole`) train on a part of the operations."""
    runs = [{**config.coverage, **arm} for arm in config.from_scratch.values()]
    runs += [{**config.coverage, "stages": "coverage"}] if config.phases else []
    fractions = [
        run.get("train_fraction", 1.0)
        for run in runs
        if run.get("stages") != "coverage" or run.get("train_fraction", 1.0) < 1
    ]
    return bool(fractions) and max(fractions) < 1
