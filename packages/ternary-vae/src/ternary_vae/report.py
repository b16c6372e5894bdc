"""The reports of a run and of a sweep: tables, figures and what was found, from what their folders hold."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from studycore.claims import Wording, said, sentences
from studycore.files import write_atomic, write_json
from studycore.record import Record, read_arrays
from studycore.report import NOT_APPLICABLE, Picture, Report, Table, figure_of, number
from studycore.statistics import Interval
from ternary_vae.columns import is_control
from ternary_vae.comparisons import (
    ArmStatistics,
    InertFactor,
    Row,
    arm_statistics,
    deviation,
    inert_factors,
    interval,
    number_or_none,
)
from ternary_vae.config import COVERAGE, ORDERED, QUESTION, SCRATCH, TrainConfig
from ternary_vae.figures import (
    plot_ball,
    plot_effects,
    plot_pareto,
    plot_phase_curves,
    plot_radius_by_level,
    plot_run_curves,
)
from ternary_vae.history import without_none
from ternary_vae.metric_table import MEANINGS, Metrics, metric_table, shown

if TYPE_CHECKING:
    from pandas import DataFrame

ENUMERATION = "The hierarchy is a property of the enumeration: the valuation of an operation is the number of its leading trits that are -1. A rule gives the order without learning, and stands in every table."
CEILING = "The hierarchy's ceiling belongs to radii without ties; a size beyond it shows ties. Somers' D has the ceiling 1 whatever the spread."
INCOMPARABLE = "Richness of other curvatures or largest norms cannot be compared."
INVERTED = "The first hierarchy of the run is positive: it begins the wrong way round, where the original study's advice is to start again."
CURVE_ROWS = 200
"""Most rows of the table of curves."""


def report(record: Record) -> Report:
    """Of a run or of a sweep."""
    return report_sweep(record) if record.verb == "sweep" else report_run(record)


# ----------------------------------------------------------------------------------------------------------- one run
def report_run(record: Record) -> Report:
    """Of one run, which may not have ended but has been evaluated."""
    config, rows = record.config, record.rows
    metrics = record.metrics or dict(rows[-1])
    trained = config.orders_radii or record.verb == "import"
    tables = [metric_table(metrics, metrics.get("baselines", {}), trained), curves_table(rows)]
    radii, lacking = radius_pictures(record.arrays, record.folder, config) if config.orders_radii else ([], [])
    view = "A" if config.view == "a" else "B"
    notes = [
        ENUMERATION,
        f"Headline metrics look at encoder {view}, on mean codes. Radii at curvature {config.curvature:g} and largest norm "
        f"{config.max_radius:g}; richness of other settings cannot be compared.",
        CEILING,
        *([INVERTED] if metrics.get("starts_inverted") else []),
        *lacking,
    ]
    title = f"ternary-vae {record.verb}: 3^{config.trits} operations, seed {config.seed}"
    pictures = [curves_picture(record.folder, config, metrics, rows), *radii]
    return Report(title, QUESTION, answer(metrics, trained), tables, pictures, notes)


def answer(metrics: Metrics, trained: bool) -> str:
    """One or two sentences on one run."""
    if "covered" not in metrics:
        return f"This run has not ended; at its last evaluation its coverage was {metrics['coverage']:.6f}."
    text = f"{metrics['covered']:,} of {metrics['operations']:,} operations come back with every trit right"
    if not trained:
        return f"{text}; this run trained no radii."
    if "hierarchy" not in metrics:
        return f"{text}; all radii are equal, so there is no hierarchy."
    share = metrics["hierarchy_of_ceiling"]
    reached = f"{100 * share:.4f} % of what radii without ties can reach" if share > 0 else "the wrong way round"
    return (
        f"{text}; hierarchy {metrics['hierarchy']:.6f}, {reached}, with "
        f"{metrics['positive_gaps']} of {metrics['gaps']} neighbouring levels apart."
    )


def curves_table(rows: Sequence[Row]) -> Table:
    """The evaluations; where there are more than CURVE_ROWS, every n-th of them and the last."""
    every = -(-len(rows) // CURVE_ROWS)
    kept = [row for i, row in enumerate(rows) if i % every == 0 or i == len(rows) - 1]
    columns = ("coverage", "hierarchy", "somers_d", "min_level_gap", "tied_radius_share", "richness")
    names = [name for name in columns if any(name in row for row in kept)]
    lines = [(row["stage"], row["epoch"], row["step"], *(shown(n, row.get(n, "")) for n in names)) for row in kept]
    title = "Evaluations" if every == 1 else f"Evaluations (one of {every})"
    return Table(title, ("stage", "epoch", "update", *names), lines, folded=True)


def curves_picture(folder: Path, config: TrainConfig, metrics: Metrics, rows: Sequence[Row]) -> Picture:
    """Coverage and hierarchy over the run."""
    ordered = (
        "; hierarchy and Somers' D over the epochs of the stage that orders radii, dashed where they can go no further"
    )
    path = plot_run_curves(rows, metrics.get("hierarchy_ceiling"), folder / "figures" / "curves.svg")
    return Picture(path, f"Coverage over all updates{ordered if config.orders_radii else ''}.")


def radius_pictures(
    arrays: Mapping[str, Any], folder: Path, config: TrainConfig, whose: str = ""
) -> tuple[list[Picture], list[str]]:
    """Radius by level, and the points of the ball, into `folder`; or a note that the run holds nothing to draw."""
    if not {"norm_N", "flat_N2"} <= set(arrays):
        return [], [f"{whose}No figures of its radii: the run keeps no arrays, which version 0.1.0 did not write."]
    from ternary_vae.data import Operations

    v_N = Operations.all(config.trits, config.shuffle_seed).v_N.numpy()
    norm_N, flat_N2 = (np.asarray(arrays[name], dtype=np.float64) for name in ("norm_N", "flat_N2"))
    radius = plot_radius_by_level(v_N, norm_N, config.max_radius, folder / "figures" / "radius_by_level.svg")
    ball = plot_ball(flat_N2, v_N, config.curvature, folder / "figures" / "ball.svg")
    return [
        Picture(radius, f"{whose}Radius of every operation by level (spread sideways at random); boxes are the ranges of the levels, dashed the largest norm. Boxes that share no height: the levels are apart."),
        Picture(ball, f"{whose}The latent points, seen flat: the distance from the centre is the true norm in the ball, the angle is that of the direction's first two principal components. Neighbours in angle need not be neighbours in the ball."),
    ], []  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- sweep
ARM_COLUMNS = (
    "phase", "arm", "n", "best hierarchy [95 %]", "at the end [95 %]", "Somers' D", "richness", "coverage", "min gap",
    "cannot be told from the phase's best",
)  # fmt: skip
ARM_NOTE = (
    "n: seeds; draws of the projections are averaged within a seed first. Intervals: Student's t over seeds. Best: the most "
    "negative hierarchy of a run's evaluations, picked after the fact; Somers' D, richness, coverage and the smallest gap are "
    "of the end. Last column: the difference of the best hierarchy from that of the phase's best arm, paired over seeds, with "
    "Bonferroni's correction over the phase's other arms; yes: its interval holds 0. Standard deviations and epochs: "
    "table.csv."
)
SEED_METRICS = {
    "coverage": "coverage", "covered": "covered", "coverage_sampled": "of samples", "kl": "KL, nats",
    "prior_coverage": "met by the prior", "hierarchy": "hierarchy", "hierarchy_of_ceiling": "of its ceiling",
    "somers_d": "Somers' D", "somers_d_depths": "by depth", "min_level_gap": "min gap", "tied_radius_share": "tied radii", "richness": "richness",
}  # fmt: skip
UNSEEN_METRICS = {
    "coverage_unseen": "coverage, unseen", "linear_coverage_unseen": "by linear PCA", "hierarchy_unseen": "hierarchy, unseen",
    "hierarchy_ceiling_unseen": "its ceiling", "somers_d_unseen": "Somers' D, unseen",
    "somers_d_depths_unseen": "by depth, unseen",
}  # fmt: skip
"""Columns of the table of runs from scratch, and their heads."""


def report_sweep(record: Record) -> Report:
    """Of all runs of a sweep that are done. Writes table.md, table.csv and table.json beside it."""
    table = record.table
    of_scratch = table["phase"].isin([COVERAGE, ORDERED, SCRATCH])
    phases, scratch = table[~of_scratch], table[of_scratch]
    statistics, from_scratch = arm_statistics(phases), scratch_statistics(scratch)
    ordering = table.dropna(subset=["ordering_rows"]) if "ordering_rows" in table else table.iloc[:0]
    ordered = ordering[ordering["phase"].isin([COVERAGE, ORDERED, SCRATCH])]
    closed, untrained = closed_forms(ordering), untrained_mean(phases)

    arms = arm_table(statistics, closed, untrained) if statistics else None
    tables = [seed_table(ordered)] if len(ordered) else []
    tables += [scratch_table(from_scratch)] if from_scratch else []
    flat = [flat_statistics(arm) for arm in statistics] or seed_rows(ordered)
    write_tables(record.folder, arms or (tables[0] if tables else None), flat)
    tables += [inert_table(inert_factors(phases))] if len(phases) else []
    pictures, lacking = sweep_pictures(record.folder, ordering, statistics, closed, arms) if len(ordering) else ([], [])
    metrics = {
        "runs": len(table), "failed": len(record.missing),
        "arms": {f"{arm.phase}/{arm.arm}": flat_statistics(arm) for arm in statistics},
        "from_scratch": {arm: without_none(values) for arm, values in from_scratch.items()},
        "baselines": {"closed_form": closed, **({"untrained": untrained} if untrained else {})},
        **(seed_metrics(ordered) if len(ordered) else {}),
    }  # fmt: skip
    title = f"ternary-vae sweep: {len(table)} runs"
    notes = [ENUMERATION, CEILING, INCOMPARABLE, *inverted_starts(phases), *lacking]
    notes = [figures_in_words(statistics, ordered), *notes]
    return Report(title, QUESTION, sweep_answer(record.claims), tables, pictures, notes, metrics)


def inverted_starts(runs: "DataFrame") -> list[str]:
    """A sentence on the runs of the phases whose first hierarchy is positive, where there are any."""
    own = runs[runs["starts_inverted"].eq(True)] if "starts_inverted" in runs else runs.iloc[:0]
    if own.empty:
        return []
    end = float(own["final_hierarchy"].mean())
    other = runs.loc[~runs["starts_inverted"].eq(True), "final_hierarchy"].mean()
    beside = f", the others at {other:.4f}" if other == other else ""
    return [
        f"{len(own)} of {len(runs)} runs of the phases begin with a positive hierarchy, the wrong way round, where the original "
        f"study's advice is to start again; they are kept here and end at {end:.4f} on average{beside}."
    ]


COVERS = Wording(
    "Yes: from scratch, all {n} seeds tried rebuild all 19,683 operations",
    "{few} of the {n} seeds tried rebuild all 19,683 operations from scratch",
    "Whether seeds rebuild all operations from scratch stays open",
    "Whether training from scratch covers all operations was not run",
)
FOLLOWS = Wording(
    "in all {n} the radii follow the hierarchy to 99.99 %",
    "{few} of the {n} have radii that follow the hierarchy to 99.99 %",
    "whether the radii follow the hierarchy stays open",
    "whether the radii follow the hierarchy was not run",
)
APART = Wording(
    "all {n} have all levels apart", "{few} of the {n} have all levels apart", "whether all levels lie apart stays open", "",
)  # fmt: skip
LEARNT = Wording(
    "Shuffled valuations reach {x:.0%} of the ceiling: a rule is learnt",
    "Shuffled valuations reach {x:.0%} of the ceiling too, which shows no rule",
    "Whether shuffled valuations would be followed too stays open",
    "",
)
COVERS_UNSEEN = Wording(
    "Of the operations that training never saw, more than 95 % are rebuilt in all {n} seeds tried",
    "Of the operations that training never saw, more than 95 % are rebuilt in {few} of the {n} seeds tried",
    "How many of the operations that training never saw are rebuilt stays open",
    "Whether operations that training never saw are rebuilt was not run",
)
FOLLOWS_UNSEEN = Wording(
    "in all {n} their radii follow the hierarchy",
    "in {few} of the {n} their radii follow the hierarchy",
    "whether their radii follow the hierarchy stays open",
    "",
)
OF_SEEDS = {
    "scratch_coverage": COVERS, "scratch_hierarchy": FOLLOWS, "scratch_gaps": APART, "unseen_coverage": COVERS_UNSEEN,
    "unseen_hierarchy": FOLLOWS_UNSEEN,
}  # fmt: skip
"""Targets of the answer, which are asked of every seed."""


def said_of_seeds(claims: Sequence[Mapping[str, Any]], id_: str, wording: Wording) -> str:
    """said, of a share of seeds: `{n}` stands for how many were judged, `{few}` for how many of them passed."""
    claim = next((claim for claim in claims if claim["id"] == id_), None)
    if claim is None or claim["measured"] is None:
        return said(claims, id_, wording)
    n, passed = claim["n"], round(claim["measured"] * claim["n"])
    few = f"only {passed}" if passed else "none"
    return said(claims, id_, Wording(*(text.format(n=n, few=few) for text in astuple(wording))))


def bound_of_seeds(claims: Sequence[Mapping[str, Any]]) -> str:
    """What all seeds that were tried say of those that were not; "" where none of the answer's targets is supported."""
    lows = [claim["interval95"][0] for claim in claims if claim["id"] in OF_SEEDS and claim["verdict"] == "supported"]
    if not lows:
        return ""
    return f"where all pass, at least {min(lows):.0%} of all seeds do (95 % interval)"


def sweep_answer(claims: Sequence[Mapping[str, Any]]) -> str:
    """Whether the operations are covered and ordered, by the verdicts; without such runs, how the original study's
    findings fare."""

    def of(names: Sequence[str]) -> list[str]:
        return [said_of_seeds(claims, id_, OF_SEEDS[id_]) for id_ in names]

    answer = sentences(
        of(["scratch_coverage", "scratch_hierarchy", "scratch_gaps"]),
        of(["unseen_coverage", "unseen_hierarchy"]),
        [bound_of_seeds(claims)],
        [said(claims, "rule_learnt", LEARNT)],
    )
    if answer:
        return answer
    asked = [claim["verdict"] for claim in claims]
    if not asked:
        return "No claim is asked of these runs."
    held, failed, still_open, not_run = map(asked.count, ("supported", "refuted", "inconclusive", "not run"))
    return (
        f"Of {len(asked)} claims on what helps or harms the hierarchy, {held} hold, {failed} do not, {still_open} stay open, and "
        f"{not_run} were not run."
    )


def figures_in_words(statistics: Sequence[ArmStatistics], ordered: "DataFrame") -> str:
    """Which arm ends best, and how many runs from scratch reach the aim."""
    parts = []
    if statistics:
        best = min(statistics, key=lambda arm: arm.final)
        parts.append(f"The hierarchy at the end is best in {best.arm} ({best.final:.4f}, n = {best.n} seeds).")
    # Controls and what else stands beside the model are no part of what it reaches.
    of_model = ordered[[not is_control(settings) for settings in ordered["settings"]]] if len(ordered) else ordered
    if len(of_model):
        full, apart = int((of_model["coverage"] == 1).sum()), int((of_model["min_level_gap"] > 0).sum())
        parts.append(
            f"From scratch, {full} of {len(of_model)} runs cover all operations and {apart} have all levels apart."
        )
    return " ".join(parts) or "No run that orders radii has finished."


def closed_forms(runs: "DataFrame") -> dict[str, dict[str, Any]]:
    """The closed form's metrics for every geometry among the runs."""
    from ternary_vae.metrics.closed_form import closed_form

    forms: dict[str, dict[str, Any]] = {}
    for config in (TrainConfig(**settings) for settings in runs.get("settings", ())):
        geometry = f"curvature {config.curvature:g}, max radius {config.max_radius:g}, {config.radius}"
        geometry += "" if config.bands == "wide" else f", {config.bands} bands"
        geometry += "" if config.geometry == "hyperbolic" else ", flat twin"
        name = f"3^{config.trits}, {geometry}"
        if name not in forms:
            forms[name] = closed_form(config)
    return forms


def untrained_mean(runs: "DataFrame") -> dict[str, float]:
    """Means over the runs of their evaluations before the first update."""
    first = [rows[0] for rows in runs["ordering_rows"].dropna()] if "ordering_rows" in runs else []
    names = [name for name in MEANINGS if first and all(name in row for row in first)]
    return {name: float(np.mean([row[name] for row in first])) for name in names}


def arm_table(statistics: Sequence[ArmStatistics], closed: Mapping[str, Metrics], untrained: Metrics) -> Table:
    """Every arm, and the baselines below."""
    rows: list[tuple[Any, ...]] = []
    for a in statistics:
        rows.append((
            a.phase, a.arm, a.n, with_interval(a.best, a.best_interval), with_interval(a.final, a.final_interval),
            fixed(a.somers_d), fixed(a.richness, 5), fixed(a.coverage, 5), fixed(a.min_level_gap), against_text(a),
        ))  # fmt: skip
    named = [(f"closed form ({name})", values, "no learning") for name, values in closed.items()]
    for name, values, why in [*named, ("untrained projections", untrained, "epoch 0, mean of runs")]:
        digits = {"somers_d": 4, "richness": 5, "coverage": 5, "min_level_gap": 4}
        cells = [fixed(values.get(key), n) for key, n in digits.items()]
        rows.append(("baseline", name, "", "", fixed(values.get("hierarchy")), *cells, why))
    return Table("Arms", ARM_COLUMNS, rows, ARM_NOTE)


def against_text(arm: ArmStatistics) -> str:
    """The last column of the table of arms."""
    if arm.against_best is None:
        return "is the best" if arm.is_best else "too few seeds"
    return f"{'yes' if arm.indistinguishable else 'no'}: {figure_of(arm.against_best)}"


def with_interval(value: float, around: Interval | None) -> str:
    """The value with its interval, which needs two units."""
    return f"{fixed(value)} (n = 1)" if around is None else figure_of(around)


def fixed(value: float | None, digits: int = 4) -> str:
    """A number with that many decimals."""
    return "none" if value is None else f"{value:.{digits}f}"


def flat_statistics(arm: ArmStatistics) -> dict[str, Any]:
    """An arm's statistics as flat numbers; what does not exist is left out."""
    values: dict[str, Any] = {}
    for name, value in vars(arm).items():
        if isinstance(value, Interval):
            values |= {f"{name}_{part}": getattr(value, part) for part in ("estimate", "low", "high")}
        else:
            values[name] = value
    return without_none({**values, "indistinguishable": arm.indistinguishable})


def inert_table(factors: Sequence[InertFactor]) -> Table:
    """Settings between whose values nothing moved."""
    rows = [(f.field, *map(str, f.values), *f.arms, f.seeds, f.evaluations) for f in factors]
    note = "Pairs of arms that differ in this field alone and whose metrics agree at every evaluation of every seed to 1e-10 (rounding), histories being equally long. Losses are not compared, nor richness_hyperbolic and dist_corr_geodesic, whose unit the curvature sets. A term that longer runs would switch on is not seen."
    columns = ("field", "value", "other value", "arm", "other arm", "seeds", "evaluations")
    return Table(
        "Factors that changed nothing in these runs", columns, rows, note if rows else f"None was found. {note}"
    )


# ------------------------------------------------------------------------------------------------------ from scratch
def scratch_statistics(runs: "DataFrame") -> dict[str, dict[str, Any]]:
    """Arm -> coverage over seeds at the end of runs from scratch, and the epoch at which all operations came back right."""
    by_arm = {}
    for arm, own in runs.groupby("arm", sort=False):
        last = own.groupby("seed")["coverage"].mean()
        around = interval(last)
        epochs = own["coverage_epoch"].dropna() if "coverage_epoch" in own else own["coverage"].iloc[:0]
        by_arm[str(arm)] = {
            "n": len(last), "runs": len(own), "coverage": float(last.mean()), "coverage_std": deviation(last),
            "coverage_low": None if around is None else around.low,
            "coverage_high": None if around is None else around.high,
            "smallest": float(last.min()), "largest": float(last.max()), "full": len(epochs),
            "full_coverage_epoch": number_or_none(epochs.mean()),
        }  # fmt: skip
        if "coverage_unseen" in own and own["coverage_unseen"].notna().any():
            unseen = own["coverage_unseen"]
            by_arm[str(arm)] |= {"coverage_unseen": float(unseen.mean()), "smallest_unseen": float(unseen.min())}
    return by_arm


def scratch_table(by_arm: Mapping[str, Metrics]) -> Table:
    """Coverage of the arms that start from scratch."""
    partly = any("coverage_unseen" in s for s in by_arm.values())
    rows = [
        (
            arm, s["n"],
            f"{fixed(s['coverage'], 5)} (n = 1)" if s["coverage_low"] is None
            else figure_of({"measured": s["coverage"], "interval95": [s["coverage_low"], s["coverage_high"]]}),
            f"{s['smallest']:.5f} to {s['largest']:.5f}", f"{s['full']} of {s['runs']}",
            "never" if s["full_coverage_epoch"] is None else f"{s['full_coverage_epoch']:.1f}",
            *([f"{s['coverage_unseen']:.5f} ({s['smallest_unseen']:.5f})" if "coverage_unseen" in s else "all seen"] if partly else []),
        )
        for arm, s in by_arm.items()
    ]  # fmt: skip
    columns = (
        "arm", "n", "coverage [95 %]", "range", "runs that reached 100 %", "at epoch (mean of these)",
    )  # fmt: skip
    note = "Coverage at the end of runs that start without a checkpoint; n: seeds, interval: Student's t over them."
    return Table("From scratch", [*columns, *(["of the unseen (worst)"] if partly else [])], rows, note)


def seed_rows(runs: "DataFrame") -> list[dict[str, Any]]:
    """Runs from scratch that order radii, with the metrics of their last models."""
    names = [name for name in (*SEED_METRICS, *UNSEEN_METRICS) if name in runs]
    ordered = runs.sort_values(["arm", "seed"]) if len(runs) else runs
    return [
        {"arm": run["arm"], "seed": run["seed"]}
        | {name: run[name] for name in names if run[name] == run[name]}
        | {"seconds": run["seconds"]}
        for run in ordered.to_dict("records")
    ]


def seed_table(runs: "DataFrame") -> Table:
    """Runs from scratch that order radii, seed by seed."""
    from ternary_vae.metrics.closed_form import closed_form

    heads = {**SEED_METRICS, **(UNSEEN_METRICS if (runs["train_fraction"] < 1).any() else {})}
    rows: list[tuple[Any, ...]] = [
        (row["arm"], row["seed"], *(shown(name, row.get(name)) for name in heads), f"{row['seconds']:.0f}")
        for row in seed_rows(runs)
    ]
    configs = [TrainConfig(**settings) for settings in runs["settings"]]
    for config in {
        (c.curvature, c.max_radius, c.radius, c.geometry, c.bands, c.trits): c for c in reversed(configs)
    }.values():
        rows.append(
            ("closed form", "", *(shown(name, closed_form(config).get(name, NOT_APPLICABLE)) for name in heads), "")
        )
    # Joint training measures the model before its first update; stages do so only after coverage.
    drawn = runs[runs["stages"] == "joint"].sort_values(["arm", "seed"]).drop_duplicates("arm")
    for arm, first in zip(drawn["arm"], drawn["ordering_rows"].map(lambda of_run: of_run[0]), strict=True):
        rows.append((f"{arm}, untrained", "", *(shown(name, first.get(name)) for name in heads), ""))
    note = "The last model of every run, by mean codes. min gap above 0: all levels apart. Below: radii by the closed form, without learning or codes; and, where it was measured, the model of the first seed before training."
    return Table("From scratch, seed by seed", ("arm", "seed", *heads.values(), "seconds"), rows, note)


def seed_metrics(runs: "DataFrame") -> dict[str, Any]:
    """Each from-scratch run's metrics, and the smallest and largest over runs."""
    rows = seed_rows(runs)
    names = [name for name in rows[0] if name not in ("arm", "seed") and all(name in row for row in rows)]
    return {
        "seeds": {f"{row['arm']}/{row['seed']}": {k: v for k, v in row.items() if k not in ("arm", "seed")} for row in rows},
        "min": {name: min(row[name] for row in rows) for name in names},
        "max": {name: max(row[name] for row in rows) for name in names},
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- files and figures
def write_tables(folder: Path, table: Table | None, rows: Sequence[Metrics]) -> None:
    """The first table as table.md; its numbers unrounded as table.csv and table.json."""
    import pandas as pd

    write_json(folder / "table.json", list(rows))
    write_atomic(folder / "table.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    write_atomic(folder / "table.md", "" if table is None else table_markdown(table))


def table_markdown(table: Table) -> str:
    """A table in Markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *[[number(cell) for cell in row] for row in table.rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{table.note}\n"


def sweep_pictures(
    folder: Path,
    runs: "DataFrame",
    statistics: Sequence[ArmStatistics],
    closed: Mapping[str, Metrics],
    arms: Table | None = None,
) -> tuple[list[Picture], list[str]]:
    """The figures of a sweep, of its runs that order radii; and notes on those that are lacking."""
    to = folder / "figures"
    ceiling = number_or_none(runs["hierarchy_ceiling"].dropna().iloc[0]) if "hierarchy_ceiling" in runs else None
    pictures = [Picture(plot_phase_curves(runs, ceiling, to / "curves.svg"), "Hierarchy by epoch: means over the runs of an arm that lasted until then, shaded their range; dashed the ceiling of radii without ties. Starts that lie far above the rest are cut off.")]  # fmt: skip
    if statistics:
        pictures.append(Picture(plot_effects(statistics, ceiling, to / "effects.svg"), "What each factor does: best and last hierarchy of every arm with 95 % intervals over seeds; crosses: the best that the original study gives for the arm, from one run (stability: the mean of 25).", arms))  # fmt: skip
    form = max(closed.values(), key=lambda values: float(values["richness"]), default=None)
    pictures.append(Picture(plot_pareto(runs, form, ceiling, to / "pareto.svg"), f"Hierarchy and richness at the end of every run; the line joins the runs that no other beats in both. Star: the closed form, without learning, in the geometry where it is richest. {INCOMPARABLE}"))  # fmt: skip
    best = runs.loc[runs["final_hierarchy"].astype(float).idxmin()]
    whose = f"{best['run']}, the run with the best hierarchy at its end. "
    more, lacking = radius_pictures(read_arrays(Path(best["folder"])), folder, TrainConfig(**best["settings"]), whose)
    return [*pictures, *more], lacking
