"""The report of a phase, or of a single job, from what its folder holds."""

from collections.abc import Mapping, Sequence
from typing import Any

from polytope_hsae.config import QUESTION
from polytope_hsae.figures import pictures_of
from studycore.claims import Wording, said, sentences
from studycore.record import Record
from studycore.report import Report, Table, figure_of, number

ARM_COLUMNS = (
    "explained_variance", "ce_recovered", "purity", "leakage", "purity_prompts", "leakage_prompts", "split", "absorption",
    "steering_leakage", "steering_success", "steps_to_convergence", "stability",
)  # fmt: skip
LABELLED = (
    "base_rate",
    "purity",
    "purity_shuffled",
    "purity_reference",
    "leakage",
    "leakage_shuffled",
    "leakage_reference",
)
"""What labels give, with what it stands beside; of prompts too, under the names of `of_prompts`."""
YARDSTICKS = (
    "inclusion", "coverage", "hard_absorption", "soft_absorption", "distinct_siblings", "co_correlation", "reconstruction_gain",
    "reconstruction_condition",
)  # fmt: skip


def report(record: Record) -> Report:
    """Of any folder."""
    if record.verb in ("geometry", "activations", "train", "evaluate"):
        rows = [(name, value) for name, value in record.metrics.items()]
        return Report(f"polytope-hsae {record.verb}", QUESTION, f"{len(rows)} metrics.", [Table("Metrics", ("metric", "value"), rows)])  # fmt: skip
    table = record.table
    tables = [geometry_table(record)]
    arms = [arm for arm in table["arm"].unique() if arm not in ("geometry", "activations")]
    if arms:
        tables.append(
            arm_table(
                record,
                arms,
                "Arms",
                ARM_COLUMNS,
                "Means over seeds. purity, leakage, split, absorption: on test activations, whose words no vector was estimated from.",
            )
        )
        tables += [
            arm_table(record, arms, title, names, "base rate: share of activations with the concept, the purity of a latent that is always on. shuffled: the same latents matched to shuffled labels. reference: phase 1's own directions beyond a threshold, untrained.")
            for title, names in (
                (f"Purity and leakage{', on texts, where the concept is that of the next word' if 'prompts' in record.table else ''}", LABELLED),
                ("Purity and leakage on prompts that end in a word of the concept", tuple(map(of_prompts, LABELLED))),
            )
            if any(names[1] in _means(record, arm) for arm in arms)
        ]  # fmt: skip
        tables.append(
            arm_table(
                record,
                arms,
                "Learned parents and children",
                YARDSTICKS,
                "In brackets the null: the same children with other parents of equal rate. Inclusion is 1 by construction in hierarchical arms.",
                null=True,
            )
        )
    metrics = {arm: _means(record, arm) for arm in arms}
    return Report("polytope-hsae", QUESTION, answer(record.claims), tables, pictures_of(record), [*figures_in_words(record), *notes(record)], {"arms": metrics, "jobs": len(table)})  # fmt: skip


def of_prompts(name: str) -> str:
    """The name of a figure on prompts."""
    base, *kind = name.rsplit("_", 1) if name.endswith(("_shuffled", "_reference")) else [name]
    return "_".join([base, "prompts", *kind])


HIERARCHY = Wording(
    "Concepts do form a hierarchy: a child's words, unseen before, point along its parent too",
    "Concepts form no hierarchy: a child's words do not point along its parent",
    "Whether concepts form a hierarchy stays open",
    "Whether concepts form a hierarchy was not run",
)
PURER = Wording(
    "An autoencoder that starts from it keeps it better, by 10 points of purity or more",
    "An autoencoder that starts from it does not keep it 10 points better than a random start",
    "Whether an autoencoder that starts from it keeps it 10 points better stays open",
    "Whether an autoencoder that starts from it keeps it 10 points better could not be judged",
)
STEERS = Wording(
    "steering with it disturbs other words a fifth less",
    "steering with it does not disturb other words a fifth less",
    "whether steering with it disturbs other words less stays open",
    "",
)


def answer(claims: Sequence[Mapping[str, Any]]) -> str:
    """Whether there is a hierarchy, and whether starting from it helps, by the verdicts."""
    hierarchy, purer, steers = (
        said(claims, id_, wording)
        for id_, wording in (("own_parent", HIERARCHY), ("purity", PURER), ("steering_leakage", STEERS))
    )
    return sentences([hierarchy], [purer, steers]) or "No phase has been judged yet."


def figures_in_words(record: Record) -> list[str]:
    """What the geometry shows beside its null, and what the teacher did, in figures."""
    row = record.table[record.table["arm"] == "geometry"]
    if row.empty or "held_out_projection_median" not in row:
        return []
    g = row.iloc[0]
    words = (
        f"Held-out words project on their concept's vector at {g['held_out_projection_median']:.2f} (shuffled "
        f"{g['held_out_projection_shuffled_median']:.2f}); child minus parent stands at {g['disjoint_angle_median']:.1f} degrees "
        f"from disjoint words (shuffled {g['disjoint_angle_shuffled_median']:.1f}, random parts of the parent's words "
        f"{g['disjoint_angle_label_permutation_median']:.1f}), while nested words give "
        f"{g['nested_angle_median']:.1f} whatever they are (shuffled {g['nested_angle_shuffled_median']:.1f})."
    )
    teacher, random = _means(record, "teacher"), _means(record, "random")
    if "purity" in teacher and "purity" in random:
        words += (
            f" Starting from these vectors, the autoencoder has purity {teacher['purity']:.2f} and leakage {teacher['leakage']:.2f}, from "
            f"a random start {random['purity']:.2f} and {random['leakage']:.2f}, at explained variance "
            f"{teacher['explained_variance']:.3f} and {random['explained_variance']:.3f}."
        )
    return [words]


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
        ("projection_on_own_parent", "projection on the own parent", ()),
        ("sibling_accuracy", "test words nearest to their own sibling", ("shuffled",)),
        ("sibling_difference_cosine", "|cosine| of siblings' difference with their parent", ("shuffled",)),
        ("ratio_invariance_kl", "divergence among siblings when their parent is added (nats)", ("random_step",)),
        ("target_shift", "logit that this adds to the parent's words", ()),
    ):
        if f"{name}_median" in g:
            beside = "; ".join(f"{null.replace('_', ' ')} {_figure(g, f'{name}_{null}')}" for null in nulls if f"{name}_{null}_median" in g)  # fmt: skip
            lines.append((label, _figure(g, name), beside))
    passed = ", ".join(f"{k.removeprefix('passed_')} {'passes' if v else 'fails'} (p = {g['p_' + k.removeprefix('passed_')]:.3g})" for k, v in g.items() if k.startswith("passed_"))  # fmt: skip
    return Table("Geometry of concepts", ("statistic", "median [95 % interval]", "nulls"), lines,
                 f"Intervals draw whole parents with all their children. Gates at a level of 5 %: {passed}. Angles from nested words are 90 by algebra and carry nothing.")  # fmt: skip


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
        "All arms train the same number of steps on the same batches of a seed; flat arms have as many latents in all and as many active.",
    ]
    if arms & {"teacher", "random_staged", "random_teacher"}:
        lines.append("random trains everything at full rate from the first step; the teacher first trains with frozen parents at a lower rate. What the start alone does is seen beside an arm with the teacher's stages (random_staged, random_teacher).")  # fmt: skip
    if arms & {"random_teacher", "frozen_random"}:
        lines.append(
            "random_teacher is the teacher rotated at random in the unified space: every causal angle is the same."
        )
    if "frozen_random" in arms:
        lines.append("frozen_random is random_teacher with a decoder that is never trained.")
    return lines
