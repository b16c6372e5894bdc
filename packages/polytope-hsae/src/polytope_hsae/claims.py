"""The study's claims, as data, and what they read of a finished job.

Of the geometry: medians over concepts, whose intervals draw whole parents with all their children, since a model has one
unembedding. Of autoencoders: paired differences over seeds. `random` trains everything at full rate from the first step;
`random_staged` and `random_teacher` have the teacher's schedule, so that what is beside them is the start alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytope_hsae.config import SYNTHETIC, StudyConfig
from studycore.claims import Claim, Condition, Measure, NotRun
from studycore.measures import paired_difference, paired_ratio, rows
from studycore.run_folder import read_results
from studycore.statistics import Interval

if TYPE_CHECKING:
    from pandas import DataFrame

ORIGINAL, OWN = "the original study's expected results", "this study"
PARK = "Park et al., arXiv:2406.01506"
FULL = "all --config smollm2-full"
"""What decides claims beside arms that the default configuration leaves out."""


def of_geometry(name: str) -> Measure:
    """A median over concepts with its interval."""

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        columns = [f"{name}_{part}" for part in ("median", "low", "high", "n")]
        if table.empty or not set(columns) <= set(table.columns) or table[columns].dropna().empty:
            raise NotRun(f"The median of {name} exists for no finished phase 1.")
        middle, low, high, n = table[columns].dropna().iloc[0]
        interval = Interval(float(middle), float(low), float(high), int(n))
        return interval, "Median over concepts; bootstrap over parents, each with all its children."

    return Measure(f"median({name}) over concepts, parents drawn", compute, "parents")


LEAST_LEAKAGE = 1e-3
"""What a smaller share counts as: a ratio leaves out pairs with 0, which is the best that there is."""


def leakage_ratio(metric: str, control: str) -> Measure:
    """Percent change of a leakage beside another arm, of LEAST_LEAKAGE at the least."""
    measure = paired_ratio(metric, "teacher", control, percent=True)

    def compute(table: "DataFrame") -> tuple[Interval, str]:
        if metric not in table:
            return measure.compute(table)
        floored = table.assign(**{metric: table[metric].clip(lower=LEAST_LEAKAGE)})
        floored.attrs = table.attrs
        interval, how = measure.compute(floored)
        fewer = int((rows(table[table["arm"].isin(["teacher", control])], metric)[metric] < LEAST_LEAKAGE).sum())
        return interval, f"{how} {fewer} values below {LEAST_LEAKAGE:g} count as that." if fewer else how

    return replace(measure, text=f"{measure.text}, each {LEAST_LEAKAGE:g} at the least", compute=compute)


def room(metric: str, gain: float, arm: str = "random") -> Callable[["DataFrame"], str]:
    """What the target, `gain` above an arm, comes to, and what phase 1's own vectors reach, which nothing has trained."""

    def note(table: "DataFrame") -> str:
        target = float(rows(table, metric, arm)[metric].mean()) + gain
        name = f"{metric}_reference"
        if name not in table or table[name].dropna().empty:
            return f"The target is {target:.3g}; what phase 1's own vectors reach untrained was not measured."
        reference = float(table[name].mean())
        text = f"The target is {target:.3g}; phase 1's own vectors, untrained, reach {reference:.3g}"
        return f"{text}." if reference >= target else f"{text}, which is short of it."

    return note


def level(metric: str, arm: str, below: str) -> Callable[["DataFrame"], str]:
    """What the other arm has itself, and what it means where that is below 0."""

    def note(table: "DataFrame") -> str:
        mean = float(rows(table, metric, arm)[metric].mean())
        return f"The arm {arm} itself has {mean:.3g}{f', {below}' if mean < 0 else ''}."

    return note


def shifted(gate: str) -> Condition:
    """That a step moves its own words more than its null does: odds that stay say nothing where nothing is moved."""

    def unmet(table: "DataFrame") -> str:
        if f"p_{gate}" not in table or table[f"p_{gate}"].dropna().empty:
            raise NotRun("Phase 1 is not done.")
        p = float(table[f"p_{gate}"].dropna().iloc[0])
        if p <= 0.05:
            return ""
        return f"The step moves its own words no more than vectors of shuffled rows do (p = {p:.2g}): odds that stay show nothing."

    return Condition(f"shifted({gate})", unmet)


def noise_fails(angle: float) -> Condition:
    """That shuffled rows miss the angle: nested words give 90 degrees by algebra, and what noise passes shows nothing."""

    def unmet(table: "DataFrame") -> str:
        name = "nested_angle_shuffled_median"
        if name not in table or table[name].dropna().empty:
            raise NotRun("Phase 1 is not done.")
        noise = float(table[name].dropna().iloc[0])
        if noise < angle:
            return ""
        return f"Shuffled rows reach {noise:.1f} degrees too, since nested words give 90 by algebra: the angle shows nothing."

    return Condition(f"noise_fails({angle:g} degrees)", unmet)


def claims(verb: str, config: Any) -> Sequence[Claim]:
    """What a phase is judged by; a single job by none."""
    if not isinstance(config, StudyConfig):
        return ()
    order = ["phase1", "phase2", "phase3", "phase4"]
    reached = len(order) if verb == "all" else order.index(verb) + 1
    arms, planted = set(config.arms), config.model.get("name") == SYNTHETIC
    thresholds = config.eval.get("validation", {})
    angle, divergence = (
        float(thresholds.get(name, default)) for name, default in (("angle_threshold_deg", 80.0), ("kl_threshold", 0.1))
    )
    judged = [*of_the_geometry(angle, divergence)]
    if reached >= 3:
        judged += [claim for needed, claim in (*TRAINED, *([] if planted else IN_PROMPTS)) if needed <= arms]
    if reached >= 4:
        judged += [claim for needed, claim in STEERED if needed <= arms]
        judged += [] if planted else [CROSS_ENTROPY]
    return judged


def of_the_geometry(angle: float, divergence: float) -> Sequence[Claim]:
    """Of phase 1, by the thresholds of eval.validation: angle_threshold_deg and kl_threshold."""
    return (
        Claim("held_out_projection", "Words that took no part in estimating a concept's vector project on it, by more than half of its length", PARK, "about 1",
              "of the vector", of_geometry("held_out_projection"), above=0.5),
        Claim("disjoint_angle_null", "Where a parent and its child are estimated from different words, the angle between the parent's vector and child minus parent is smaller than in an unembedding with shuffled rows",
              OWN, "below 0", "degrees from the null's median", of_geometry("disjoint_angle_minus_shuffled"), below=0.0),
        Claim("disjoint_angle_random_part", "Where a parent and its child are estimated from different words, the angle between the parent's vector and child minus parent is nearer to 90 degrees than where a random part of the parent's words stands for the child", OWN, "below 0",
              "degrees farther from 90 than the null", of_geometry("disjoint_angle_farther_than_random_part"), below=0.0),
        Claim("held_out_projection_euclidean", "Words that took no part in estimating a concept's vector project further on it with the causal inner product than with the Euclidean one", OWN, "above 0",
              "of the vector", of_geometry("held_out_projection_minus_euclidean"), above=0.0),
        Claim("disjoint_angle_euclidean", "Where a parent and its child are estimated from different words, the angle between the parent's vector and child minus parent is nearer to 90 degrees with the causal inner product than with the Euclidean one", OWN, "below 0",
              "degrees farther from 90 than the Euclidean one", of_geometry("disjoint_angle_farther_than_euclidean"), below=0.0),
        Claim("median_angle", f"Where a parent's words include its child's, the median causal angle between the parent's vector and child minus parent is at least {angle:g} degrees", ORIGINAL,
              f">= {angle:g}", "degrees", of_geometry("nested_angle"), above=angle, when=noise_fails(angle)),
        Claim("own_parent", "A child's held-out words project on its parent's vector, which was estimated without any word of the child, by more than a quarter of its length", OWN, "above 0.25",
              "of the parent's vector", of_geometry("projection_on_own_parent"), above=0.25),
        Claim("ratio_invariance", f"Adding a parent's vector to an activation leaves the model's odds among the words of its children nearly as they were: the median divergence is below {divergence:g} nats", ORIGINAL,
              f"< {divergence:g}", "nats", of_geometry("ratio_invariance_kl"), below=divergence, when=shifted("ratio_invariance")),
        Claim("ratio_invariance_null", "Adding a parent's vector to an activation changes the model's odds among the words of its children less than random steps of the same length do", OWN,
              "below 0", "nats beyond the random steps'", of_geometry("ratio_invariance_kl_minus_random"), below=0.0, when=shifted("ratio_invariance")),
    )  # fmt: skip


def soft_absorption(treated: str, control: str) -> Measure:
    """The paired difference, with what the control has itself."""
    note = level(
        "soft_absorption", control, "below 0: its parents rise with their children, and there is no fall to lower"
    )
    may_lack = "which has a value only where a parent and its child fire together often enough"
    return paired_difference("soft_absorption", treated, control, may_lack=may_lack).noted(note)


SAME_SCHEDULE = {
    "random_staged": "where it starts at random and is trained in the same stages",
    "random_teacher": "where it starts from the same vectors rotated at random and is trained in the same stages",
}
"""Arms that differ from the teacher in the start alone."""


def beside_the_same_schedule(
    metric: str, what: str, predicted: str, unit: str, measure: Callable[[str, str], Measure],
    above: float | None = None, below: float | None = None,
) -> list[tuple[set[str], Claim]]:  # fmt: skip
    """A claim beside each arm that has the teacher's schedule."""
    return [
        ({arm}, Claim(
            f"{metric}_beside_{arm}", f"{what} where the decoder starts from the concept vectors than {other}", OWN, predicted,
            unit, measure("teacher", arm), above, below, decided_by=FULL if arm == "random_staged" else "",
        ))
        for arm, other in SAME_SCHEDULE.items()
    ]  # fmt: skip


TRAINED: tuple[tuple[set[str], Claim], ...] = (
    (set(), Claim("purity", "At least 10 points more of a parent latent's activation fall on its own concept where the decoder starts from the concept vectors than where it starts at random", ORIGINAL, ">= +0.10", "share of activation",
                  paired_difference("purity", "teacher", "random").noted(room("purity", 0.10)), above=0.10)),
    (set(), Claim("leakage", "Parent latents fire at least a fifth less often on activations of other concepts where the decoder starts from the concept vectors than where it starts at random", ORIGINAL, "<= -20 %", "% change",
                  leakage_ratio("leakage", "random"), below=-20.0)),
    (set(), Claim("reconstruction_parity", "An autoencoder whose decoder starts from the concept vectors explains at most 2 points of variance less than one that starts at random", ORIGINAL, "similar",
                  "explained variance", paired_difference("explained_variance", "teacher", "random"), above=-0.02)),
    ({"random_teacher"}, Claim("purity_beside_random_teacher", "More of a parent latent's activation falls on its own concept where the decoder starts from the concept vectors than where it starts from the same vectors rotated at random, which have the same angles among them",
                               OWN, "above 0", "share of activation", paired_difference("purity", "teacher", "random_teacher"), above=0.0)),
    ({"random_teacher"}, Claim("leakage_beside_random_teacher", "Parent latents fire less often on activations of other concepts where the decoder starts from the concept vectors than where it starts from the same vectors rotated at random", OWN, "below 0", "% change",
                               leakage_ratio("leakage", "random_teacher"), below=0.0)),
    ({"frozen_random"}, Claim("purity_beside_frozen_random", "More of a parent latent's activation falls on its own concept where the decoder starts from the concept vectors than where it starts from the same vectors rotated at random and is never trained", OWN, "above 0",
                              "share of activation", paired_difference("purity", "teacher", "frozen_random"), above=0.0, decided_by=FULL)),
    ({"euclidean"}, Claim("purity_beside_euclidean", "More of a parent latent's activation falls on its own concept where the autoencoder starts from concept vectors of the causal inner product than where it starts from those of the Euclidean one", OWN, "above 0", "share of activation",
                          paired_difference("purity", "teacher", "euclidean"), above=0.0, decided_by=FULL)),
    ({"tied"}, Claim("purity_beside_tied", "More of a parent latent's activation falls on its own concept where the encoder starts from the duals of the concept vectors in the causal inner product than where it starts as a copy of the decoder", OWN, "above 0", "share of activation",
                     paired_difference("purity", "teacher", "tied"), above=0.0, decided_by=FULL)),
    ({"no_causal_ortho"}, Claim("causal_cosine_beside_no_causal_ortho", "What child latents add to a reconstruction is nearer to orthogonal to their parents at the end where stage A has the loss of causal orthogonality than where it has none", OWN, "below 0", "squared causal cosine",
                                paired_difference("causal_cosine_squared", "teacher", "no_causal_ortho"), below=0.0, decided_by=FULL)),
    ({"no_causal_ortho"}, Claim("purity_beside_no_causal_ortho", "More of a parent latent's activation falls on its own concept where stage A has the loss of causal orthogonality than where it has none", OWN, "above 0", "share of activation",
                                paired_difference("purity", "teacher", "no_causal_ortho"), above=0.0, decided_by=FULL)),
    ({"top2"}, Claim("purity_beside_top2", "More of a parent latent's activation falls on its own concept where an active parent has one active child than where it has two", OWN, "above 0", "share of activation",
                     paired_difference("purity", "teacher", "top2"), above=0.0, decided_by=FULL)),
    ({"random_projectors"}, Claim("purity_beside_random_projectors", "More of a parent latent's activation falls on its own concept where a parent's subspace starts from the vectors of its children than where it starts at random", OWN, "above 0", "share of activation",
                                  paired_difference("purity", "teacher", "random_projectors"), above=0.0, decided_by=FULL)),
    (set(), Claim("absorption", "On activations of a child concept the parent's latent is less often silent while the child's latent fires where the decoder starts from the concept vectors than where it starts at random", OWN, "below 0", "share of activations",
                  paired_difference("absorption", "teacher", "random"), below=0.0)),
    *beside_the_same_schedule("soft_absorption", "A parent latent's activation falls less when one of its child latents fires", "below 0",
                              "share of activation", soft_absorption, below=0.0),
    *beside_the_same_schedule("explained_variance", "At most 2 points less variance are explained", "similar",
                              "explained variance", partial(paired_difference, "explained_variance"), above=-0.02),
)  # fmt: skip
IN_PROMPTS: tuple[tuple[set[str], Claim], ...] = (
    (set(), Claim("purity_prompts", "On prompts that end in a concept's word, at least 10 points more of a parent latent's activation fall on its own concept where the decoder starts from the concept vectors than where it starts at random",
                  ORIGINAL, ">= +0.10", "share of activation", paired_difference("purity_prompts", "teacher", "random").noted(room("purity_prompts", 0.10)), above=0.10)),
    (set(), Claim("leakage_prompts", "On prompts that end in a concept's word, parent latents fire at least a fifth less often on activations of other concepts where the decoder starts from the concept vectors than where it starts at random",
                  ORIGINAL, "<= -20 %", "% change", leakage_ratio("leakage_prompts", "random"), below=-20.0)),
    ({"random_teacher"}, Claim("purity_prompts_beside_random_teacher", "On prompts that end in a concept's word, more of a parent latent's activation falls on its own concept where the decoder starts from the concept vectors than where it starts from the same vectors rotated at random",
                               OWN, "above 0", "share of activation", paired_difference("purity_prompts", "teacher", "random_teacher"), above=0.0)),
)  # fmt: skip
"""Of language models: a planted tree has no prompts."""
CROSS_ENTROPY = Claim(
    "ce_parity", "Reconstructions of an autoencoder whose decoder starts from the concept vectors recover at most 2 points less of the cross-entropy than those of one that starts at random", ORIGINAL, "similar",
    "share of cross-entropy", paired_difference("ce_recovered", "teacher", "random"), above=-0.02,
)  # fmt: skip
"""A planted tree has no next token to predict."""
STEERED: tuple[tuple[set[str], Claim], ...] = (
    (set(), Claim("steering_leakage", "Of all that steering with a parent's latent moves, other concepts' words have a share that is at least a fifth smaller where the decoder starts from the concept vectors than where it starts at random", ORIGINAL, "<= -20 %", "% change",
          paired_ratio("steering_leakage", "teacher", "random", percent=True), below=-20.0)),
    *beside_the_same_schedule("steering_leakage", "Of all that steering with a parent's latent moves, other concepts' words have a share that is at least a fifth smaller", "<= -20 %",
                              "% change", partial(paired_ratio, "steering_leakage", percent=True), below=-20.0),
)  # fmt: skip


def columns(folder: Path, config: Any) -> dict[str, Any]:
    """The metrics of a finished job."""
    metrics: dict[str, Any] = read_results(folder)["metrics"]
    return metrics
