"""The report of a phase, or of a single job, from what its folder holds."""

from collections.abc import Mapping, Sequence
from typing import Any

from polytope_hsae.claims import room
from polytope_hsae.config import QUESTION, StudyConfig
from polytope_hsae.visualization import (
    geometry_pictures,
    pictures_of,
    plot_explained_variance,
    plot_purity_leakage,
    tree_page,
)
from studycore.claims import Wording, said, sentences
from studycore.figures import plot_arms
from studycore.record import Record
from studycore.report import Picture, Report, Table, figure_of, number
from studycore.statistics import Interval, mean_interval

ARM_COLUMNS = (
    "explained_variance", "ce_recovered", "purity", "recall", "leakage", "auroc", "absorption", "steering_leakage",
    "steering_success", "causal_cosine_squared",
)  # fmt: skip
TRAINING_COLUMNS = ("steps_to_convergence", "latents_used", "dead_parents", "split", "stability")
LABELLED = ("purity", "leakage", "purity_prompts", "leakage_prompts")
"""What labels give, on texts and on prompts."""
YARDSTICKS = (
    "inclusion", "coverage", "soft_absorption", "distinct_siblings", "co_correlation", "reconstruction_gain",
    "reconstruction_condition",
)  # fmt: skip
DRAWN = ("purity", "leakage", "steering_leakage", "explained_variance")
"""Of every arm, in the main figure."""


def report(record: Record) -> Report:
    """Of any folder."""
    if record.verb in ONE_JOB:
        return of_one_job(record)
    table = record.table
    arms = [arm for arm in table["arm"].unique() if arm not in ("geometry", "activations")]
    pictures = pictures_of(record, geometry_table(record))
    tables = []
    if arms:
        pictures[:0] = arm_pictures(record, arms)
        note = "The step from which explained variance stays at 99 % of its last value, shares of latents, concepts to whose F1 a second latent adds 0.03, largest cosine with another seed's latents."
        tables.append(arm_table(record, arms, "Training and usage", TRAINING_COLUMNS, note))
        tables[-1].folded = True
    metrics = {arm: _means(record, arm) for arm in arms}
    return Report("polytope-hsae", QUESTION, answer(record.claims), tables, pictures, [*figures_in_words(record), *notes(record)], {"arms": metrics, "jobs": len(table)}, tree_page(record))  # fmt: skip


ONE_JOB = {
    "geometry": {
        "held_out_projection_median": "Words that took no part in estimating project on their concept's vector with {held_out_projection_median:.2f} of its length (shuffled rows: {held_out_projection_shuffled_median:.2f}).",
        "disjoint_angle_median": "The angle of child minus parent with the parent, estimated from disjoint words, is {disjoint_angle_median:.1f} degrees (shuffled rows: {disjoint_angle_shuffled_median:.1f}).",
    },
    "activations": {"activations": "{activations:,} activations are kept, {labelled:,} of them with a concept."},
    "train": {
        "explained_variance": "The autoencoder explains {explained_variance:.1%} of the variance with {latents_active:.1f} active latents.",
        "purity": "Of a parent latent's activation {purity:.1%} is on its own concept (of a latent that is always on: {base_rate:.1%}).",
    },
    "evaluate": {
        "steering_leakage": "Of what steering moves, {steering_leakage:.1%} goes to other words.",
        "ce_recovered": "Its reconstructions recover {ce_recovered:.1%} of the cross-entropy.",
    },
}  # fmt: skip
"""Verb -> the sentences that answer for one job by itself, each by the metric without which it is left out."""


def of_one_job(record: Record) -> Report:
    """What it found in a sentence or two, its figures, and every metric."""
    metrics, place = record.metrics, record.folder / "figures"
    sentence = " ".join(text.format(**metrics) for name, text in ONE_JOB[record.verb].items() if name in metrics)
    pictures = geometry_pictures(record.folder, place) if record.verb == "geometry" else []
    curve = [row for row in record.rows if "explained_variance" in row] if record.verb == "train" else []
    if curve:
        pictures.append(
            Picture(
                plot_explained_variance(curve, place / "explained_variance.svg"),
                "Explained variance of activations kept for choosing, over updates of each stage.",
            )
        )
    return Report(f"polytope-hsae {record.verb}", QUESTION, sentence, [Table("Metrics", ("metric", "value"), list(metrics.items()))], pictures)  # fmt: skip


def arm_pictures(record: Record, arms: list[str]) -> list[Picture]:
    """Every arm with its interval over seeds, over the numbers: what the answer is about, prompts, learned pairs."""
    place = record.folder / "figures"
    prompts = "purity_prompts" in record.table
    words = "texts, where the concept is that of the next word" if prompts else "activations whose labels are exact"
    pictures = [
        Picture(
            plot_arms(arms, _panels(record, arms, DRAWN), place / "arms.svg", levels=_levels(record, ("purity", "leakage", "steering_leakage"))),
            f"Every arm, means over seeds with 95 % intervals (Student's t). Purity and leakage: on {words}. Dashed: phase 1's own vectors, untrained; dotted: the base rate, which a latent that is always on has as its purity.",
            arm_table(record, arms, "Arms", ARM_COLUMNS, "Means over seeds. Purity, recall, leakage, AUROC, absorption: on test activations, whose words no vector was estimated from. Leakage counts firings on other concepts, so a latent that fires more often leaks more; AUROC, the chance that its code is larger on its own concept, does not depend on that. Causal cosine squared: of a parent and what its children add, in the causal metric in every arm; on as many parents as there are concepts."),
        )
    ]  # fmt: skip
    if not any("purity" in _means(record, arm) for arm in arms):
        return pictures
    drawn = plot_purity_leakage(record.table, place / "purity_leakage.svg")
    caption = "Purity and leakage of every arm and seed; crosses are means, the star is what phase 1's own vectors reach untrained, the line the base rate."
    pictures.append(Picture(drawn, caption, labelled_table(record, arms)))
    if prompts:
        names = ("purity_prompts", "leakage_prompts")
        drawn = plot_arms(arms, _panels(record, arms, names), place / "prompts.svg", levels=_levels(record, names))
        pictures.append(Picture(drawn, "The same on prompts that end in a word of the concept."))
    pairs = {
        name.replace("_", " "): {
            kind: [_interval(record, arm, f"{name}{suffix}") for arm in arms]
            for kind, suffix in (("learned", ""), ("null", "_null"))
        }
        for name in ("coverage", "soft_absorption", "reconstruction_gain")
    }
    pictures.append(
        Picture(
            plot_arms(arms, pairs, place / "pairs.svg"),
            "Learned parents and children, and the same children with other parents of equal rate (null). Soft absorption below 0: the parent rises with its child.",
            yardstick_table(record, arms),
        )
    )
    return pictures


def _panels(
    record: Record, arms: list[str], names: Sequence[str]
) -> dict[str, dict[str, list[Interval | float | None]]]:
    """A panel for each figure that some arm has."""
    panels = {name.replace("_", " "): [_interval(record, arm, name) for arm in arms] for name in names}
    return {label: {label: entries} for label, entries in panels.items() if any(e is not None for e in entries)}


def _levels(record: Record, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The base rate and phase 1's own vectors, beside which purity is read, and leakage."""
    levels: dict[str, dict[str, float]] = {}
    for name in names:
        base, *kind = name.partition("_prompts")[:2]
        beside = {"phase 1's vectors": f"{name}_reference"}
        if base == "purity":
            beside |= {"base rate": f"base_rate{''.join(kind)}"}
        of = {label: float(record.table[column].mean()) for label, column in beside.items() if column in record.table}
        levels[name.replace("_", " ")] = of
    return levels


def _interval(record: Record, arm: str, name: str) -> Interval | float | None:
    """Mean over seeds with Student's t interval; the figure itself of one seed; None without any."""
    if name not in record.table:
        return None
    values = record.table[record.table["arm"] == arm].groupby("seed")[name].mean().dropna().tolist()
    return mean_interval(values) if len(values) > 1 else values[0] if values else None


def labelled_table(record: Record, arms: list[str]) -> Table:
    """What labels give of every arm, and of what it stands beside."""
    shown = [name for name in LABELLED if name in record.table]
    means = {arm: _means(record, arm) for arm in arms}
    rows: list[tuple[Any, ...]] = [(arm, *(means[arm].get(name) for name in shown)) for arm in arms]
    first = next(m for m in means.values() if "purity" in m)
    rows.append(("phase 1's vectors, untrained", *(first.get(f"{name}_reference") for name in shown)))
    always = {"purity": "base_rate", "purity_prompts": "base_rate_prompts"}
    rows.append(("a latent that is always on", *(first.get(always[n]) if n in always else 1.0 for n in shown)))
    rows += [(f"{arm}, labels shuffled", *(means[arm].get(f"{name}_shuffled") for name in shown)) for arm in arms if "purity_shuffled" in means[arm]]  # fmt: skip
    return Table("Purity and leakage", ("what", *(name.replace("_", " ") for name in shown)), rows,
                 "Means over seeds. Phase 1's vectors: an activation's product with Sigma^1/2 v beyond the threshold of best F1 on the activations for choosing. Shuffled: labels are moved to other activations at random, and latents matched to them anew. A latent that never fires has purity 0.")  # fmt: skip


def yardstick_table(record: Record, arms: list[str]) -> Table:
    """Learned pairs with their null."""
    note = (
        "In brackets the null: the same children with other parents of equal rate. Some of these cannot fail and show nothing: in hierarchical arms "
        "a child waits for its parent, so that inclusion is 1 (hard absorption, 1 - inclusion, 0), and of siblings at top-1 no two "
        "fire at once, so that they are distinct (1); the reconstruction condition holds of nearly all pairs, the null's too, "
        "where a child takes anything off an error. What can differ is soft absorption, coverage and the gain."
    )
    return arm_table(record, arms, "Learned parents and children", YARDSTICKS, note, null=True)


HIERARCHY = Wording(
    "Concepts do form a hierarchy: a child's words, unseen before, point along its parent too",
    "Concepts form no hierarchy: a child's words do not point along its parent",
    "Whether concepts form a hierarchy stays open",
    "Whether concepts form a hierarchy was not run",
)
EVIDENCE = {
    "held_out_projection": Wording(
        "held-out words project on their concept's vector with {x:.2f} of its length",
        "held-out words project on their concept's vector with only {x:.2f} of its length",
        "how far held-out words project on their concept's vector stays open",
        "",
    ),
    "disjoint_angle_null": Wording(
        "the angle of child minus parent with the parent, each from words of its own, is {size:.1f} degrees smaller than with shuffled rows",
        "the angle of child minus parent with the parent, each from words of its own, is not smaller than with shuffled rows",
        "whether the angle of child minus parent with the parent, each from words of its own, is smaller than with shuffled rows stays open",
        "",
    ),
}
"""What the finding rests on: the two figures that noise does not have."""
PURER = Wording(
    "An autoencoder that starts from it keeps it better, by 10 points of purity or more",
    "An autoencoder that starts from it does not keep it 10 points better than a random start",
    "Whether an autoencoder that starts from it keeps it 10 points better stays open",
    "Whether an autoencoder that starts from it keeps it 10 points better was not run",
)
LEAKS = Wording(
    "its latents fire a fifth less often on other concepts' words",
    "its latents do not fire a fifth less often on other concepts' words ({x:+.0f} %)",
    "whether its latents fire a fifth less often on other concepts' words stays open",
    "",
)
STEERS = Wording(
    "steering with it disturbs other words a fifth less",
    "steering with it does not disturb other words a fifth less",
    "whether steering with it disturbs other words less stays open",
    "",
)


def answer(claims: Sequence[Mapping[str, Any]]) -> str:
    """Whether there is a hierarchy, with what that rests on, and what starting from it does, by the verdicts."""
    hierarchy = [
        said(claims, "own_parent", HIERARCHY),
        *(said(claims, id_, wording) for id_, wording in EVIDENCE.items()),
    ]
    wordings = {"purity": PURER, "leakage": LEAKS, "steering_leakage": STEERS}
    return sentences(hierarchy, [said(claims, id_, wording) for id_, wording in wordings.items()]) or "No phase has been judged yet."  # fmt: skip


BASIS = "Phase 1 rests on the projection of held-out words, and on the angle between a parent's vector and child minus parent from disjoint words (different ones for parent and child), each beside its nulls. Where a parent's words include its child's (nested words), that angle is 90 degrees by algebra, in noise too."


def figures_in_words(record: Record) -> list[str]:
    """What the geometry shows beside its null, and what the teacher did, in figures."""
    row = record.table[record.table["arm"] == "geometry"]
    if row.empty or "held_out_projection_median" not in row:
        return []
    g = row.iloc[0]
    words = (
        f"Held-out words project on their concept's vector at {g['held_out_projection_median']:.2f} (shuffled "
        f"{g['held_out_projection_shuffled_median']:.2f}); the angle between a parent and child minus parent is {g['disjoint_angle_median']:.1f} degrees "
        f"from disjoint words (shuffled {g['disjoint_angle_shuffled_median']:.1f}, random parts of the parent's words "
        f"{g['disjoint_angle_label_permutation_median']:.1f}), while nested words give "
        f"{g['nested_angle_median']:.1f} whatever their rows are (shuffled {g['nested_angle_shuffled_median']:.1f}). Without whitening, in the "
        f"Euclidean metric, held-out projection is {g['held_out_projection_euclidean_median']:.3g} and the angle "
        f"{g['disjoint_angle_euclidean_median']:.1f}."
    )
    teacher, random = _means(record, "teacher"), _means(record, "random")
    if "purity" in teacher and "purity" in random:
        words += (
            f" Starting from these vectors, the autoencoder has purity {teacher['purity']:.3g} and leakage {teacher['leakage']:.3g}, from "
            f"a random start {random['purity']:.3g} and {random['leakage']:.3g}, at explained variance "
            f"{teacher['explained_variance']:.3f} and {random['explained_variance']:.3f}. "
            f"Ten points of purity above a random start: {room('purity', 0.10)(record.table).removeprefix('The target is ')}"
        )
    return [BASIS, words]


def _means(record: Record, arm: str) -> dict[str, float]:
    """Of every number of an arm, over seeds."""
    rows = record.table[record.table["arm"] == arm]
    numbers = rows.select_dtypes("number").drop(columns=["seed"], errors="ignore").dropna(axis=1, how="all")
    return {str(name): float(value) for name, value in numbers.mean().items()}


def geometry_table(record: Record) -> Table:
    """Each statistic beside its nulls."""
    rows = record.table[record.table["arm"] == "geometry"]
    g = rows.iloc[0].to_dict() if not rows.empty else {}
    lines = []
    for name, label, nulls in (
        ("held_out_projection", "held-out projection on the own concept", ("shuffled", "sibling_swap", "euclidean")),
        (
            "disjoint_angle",
            "angle, disjoint words (degrees)",
            ("shuffled", "random_parent", "label_permutation", "sibling_swap", "euclidean"),
        ),
        (
            "nested_angle",
            "angle, nested words (degrees)",
            ("shuffled", "random_parent", "label_permutation", "euclidean"),
        ),
        ("projection_on_own_parent", "projection on the own parent, without the child's words", ("other_parents",)),
        ("sibling_accuracy", "test words nearest to their own sibling", ("shuffled",)),
        ("sibling_difference_cosine", "|cosine| of siblings' difference with their parent", ("shuffled",)),
        ("ratio_invariance_kl", "divergence among siblings when their parent is added (nats)", ("random_step",)),
        ("target_shift", "logit that this adds to the parent's words", ()),
    ):
        if f"{name}_median" in g:
            beside = "; ".join(f"{null.replace('_', ' ')} {_figure(g, _null(name, null))}" for null in nulls if f"{_null(name, null)}_median" in g)  # fmt: skip
            lines.append((label, _figure(g, name), beside))
    passed = ", ".join(f"{k.removeprefix('passed_')} {'passes' if v else 'fails'} (p = {g['p_' + k.removeprefix('passed_')]:.3g})" for k, v in g.items() if k.startswith("passed_"))  # fmt: skip
    return Table("Geometry of concepts", ("statistic", "median [95 % interval]", "nulls"), lines,
                 f"Intervals draw whole parents with all their children. Label permutation: a random part of the parent's words stands for the child. Gates at a level of 5 %: {passed}. Angles from nested words are 90 by algebra and show nothing.")  # fmt: skip


def _null(name: str, null: str) -> str:
    """The name under which phase 1 has a statistic's null."""
    return "projection_on_other_parents" if null == "other_parents" else f"{name}_{null}"


def _figure(row: dict[str, Any], name: str) -> str:
    """The median, with its interval where there is one."""
    if f"{name}_low" not in row:
        return number(float(row[f"{name}_median"]))
    return figure_of({"measured": row[f"{name}_median"], "interval95": [row[f"{name}_low"], row[f"{name}_high"]]})


def arm_table(
    record: Record, arms: list[str], title: str, names: tuple[str, ...], note: str, null: bool = False
) -> Table:
    """Means over seeds of each arm; what an arm has not is "not run"."""
    means = {arm: _means(record, arm) for arm in arms}
    shown = [name for name in names if any(name in m for m in means.values())]
    rows = []
    for arm in arms:
        cells = []
        for name in shown:
            value, other = means[arm].get(name), means[arm].get(f"{name}_null")
            cells.append(f"{value:.3g} ({other:.3g})" if null and value is not None and other is not None else value)
        seeds = record.table[(record.table["arm"] == arm) & (record.table["phase"] != "phase4")]["seed"].nunique()
        rows.append((arm, seeds, *cells))
    return Table(title, ("arm", "seeds", *(name.replace("_", " ") for name in shown)), rows, note)


def notes(record: Record) -> list[str]:
    """What a reader needs to know of the arms that are there."""
    arms = set(record.table["arm"])
    lines = [
        "Gates: p = (1 + draws that reach the statistic) / (1 + draws). Over pure noise each passes in at most 5 % of cases (tested).",
        "Explained variance against the mean of all test activations; 1-EV and 1-CE in results.json are what is lacking to 1.",
        f"All arms train the same number of steps{_steps(record)} on the same batches of a seed, converged or not; flat arms have as many latents in all and as many active.",
    ]
    if arms & {"teacher", "random_staged", "random_teacher"}:
        lines.append("random trains everything at full rate from the first step; the teacher first trains with frozen parents at a lower rate. What the start alone does is seen beside an arm with the teacher's stages (random_staged, random_teacher).")  # fmt: skip
    if arms & {"random_teacher", "frozen_random"}:
        lines.append(
            "random_teacher is the teacher rotated at random in the unified space: every causal angle is the same."
        )
    if "frozen_random" in arms:
        lines.append("frozen_random is random_teacher with a decoder that is never trained.")
    if arms & {"tied", "euclidean"}:
        lines.append("An arm that starts from vectors reads them with the dual of its own metric; tied reads as the decoder writes, whatever the metric. In the Euclidean metric the two are one.")  # fmt: skip
    return lines


def _steps(record: Record) -> str:
    """How many, where the record has the study's settings."""
    config = getattr(record, "config", None)
    return f" ({config.job('train').total_steps:,})" if isinstance(config, StudyConfig) else ""
