"""The reports of a run and of a sweep: results.json, figures, report.html and report.md; and what the terminal shows."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from studycore.checkpoints import steps
from studycore.errors import UserError
from studycore.files import read_json, write_atomic, write_json
from studycore.metrics import read_rows
from studycore.report import Picture, Report, Table, claims_text, number, write_report, write_results
from studycore.runs import read_manifest
from studycore.statistics import Interval, mean_interval
from ternary_vae import evaluate
from ternary_vae.claims import run_claims, sweep_claims
from ternary_vae.comparisons import ArmStatistics, arm_statistics, by_arm, by_seed, inert_factors, spread
from ternary_vae.config import TrainConfig
from ternary_vae.figures import (
    plot_ball,
    plot_effects,
    plot_pareto,
    plot_phase_curves,
    plot_radius_by_level,
    plot_run_curves,
)
from ternary_vae.model import TernaryVAEV5_11_PartialFreeze, count_parameters
from ternary_vae.operations import Operations, training_indices
from ternary_vae.record import STUDY, load_model, load_run_checkpoint, read_config
from ternary_vae.summary import Row, RunSummary

QUESTION = "Does a hyperbolic VAE cover all ternary operations, and do its radii follow the 3-adic hierarchy?"
MEANINGS = {
    "coverage": ("share", "operations with every trit right, decoded from the mean code"),
    "covered": ("operations", "how many these are"),
    "operations": ("operations", "all there are"),
    "coverage_sampled": ("share", "coverage from one sample of the code"),
    "coverage_seen": ("share", "coverage of the operations that training saw"),
    "coverage_unseen": ("share", "coverage of those it did not see"),
    "unseen": ("operations", "how many these are"),
    "hierarchy": ("Spearman", "valuation and radius; -1 to 1, negative is right"),
    "hierarchy_ceiling": ("Spearman", "the most that radii without ties can reach, as a size"),
    "hierarchy_of_ceiling": ("share", "hierarchy over its ceiling; above 1 only by ties"),
    "somers_d": ("Somers' D", "radius given valuation; -1: every pair of levels in order"),
    "min_level_gap": ("norm", "smallest distance between neighbouring levels; negative: they overlap"),
    "positive_gaps": ("levels", "neighbouring levels that do not overlap"),
    "gaps": ("levels", "neighbouring levels"),
    "tied_radius_share": ("share", "operations that share their radius with another"),
    "richness": ("norm^2", "a tenth of the levels' summed variances of the radius"),
    "richness_hyperbolic": ("distance^2", "the same, of hyperbolic distances"),
    "hierarchy_A": ("Spearman", "hierarchy of encoder A's points"),
    "hierarchy_B": ("Spearman", "hierarchy of encoder B's points"),
    "dist_corr_geodesic": ("Pearson", "geodesic distances and 3 exp(-v(i - j)/3), random pairs"),
    "dist_corr_levels": ("Spearman", "Euclidean distances and |v_i - v_j|, random points"),
    "q": ("1", "dist_corr_levels - 1.5 hierarchy"),
    "q_seed": ("1", "the seed study's dist_corr_levels + 1.5 |hierarchy|"),
    "hierarchy_unseen": ("Spearman", "hierarchy of the operations that training did not see"),
    "hierarchy_ceiling_unseen": ("Spearman", "their own ceiling"),
    "somers_d_unseen": ("Somers' D", "of the operations that training did not see"),
}
"""Metric -> unit and meaning, in the order of the tables."""
FINE = ("hierarchy", "hierarchy_", "somers_d", "coverage")
"""Metrics whose last digits matter: six decimals."""
COVERAGE_METRICS = (
    "coverage",
    "covered",
    "operations",
    "coverage_sampled",
    "coverage_seen",
    "coverage_unseen",
    "unseen",
)
"""What a run that only learns to reconstruct has learned something about."""
ENUMERATION = "The hierarchy is a property of the enumeration: the valuation of an operation is the number of its leading trits that are -1. A rule gives the order without learning, and stands in every table."
CEILING = "The hierarchy's ceiling belongs to radii without ties; a size beyond it shows ties. Somers' D has the ceiling 1 whatever the spread."
CURVE_ROWS = 200
"""Most rows of the table of curves."""
Metrics = Mapping[str, Any]


def shown(name: str, value: Any) -> Any:
    """A metric as its table shows it."""
    return f"{value:.6f}" if isinstance(value, float) and name.startswith(FINE) else value


def table_text(table: Table) -> str:
    """A table as aligned columns for a terminal."""
    cells = [list(table.columns), *[[number(cell) for cell in row] for row in table.rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    left = {0, len(widths) - 1}
    lines = [
        "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


# ----------------------------------------------------------------------------------------------------------- one run
def orders_radii(config: TrainConfig) -> bool:
    """Whether the radii are anything that was trained: a coverage stage alone leaves the projections as they were drawn."""
    return config.stages != "coverage" or (config.start is not None and config.start_projections == "loaded")


def baselines(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Metrics of the closed form and of the untrained model."""
    operations = Operations.all(config.trits)
    return {
        "closed_form": evaluate.closed_form(config, operations),
        "untrained": evaluate.untrained(config, operations),
    }


def history_metrics(rows: Sequence[Row]) -> dict[str, Any]:
    """What the evaluations of a run say beyond its last model; what never happened is left out."""
    found: dict[str, Any] = {}
    full = next((row for row in rows if row["coverage"] == 1.0), None)
    if full is not None:
        found |= {"coverage_epoch": full["epoch"], "coverage_epoch_stage": full["stage"]}
    ordering = [row for row in rows if row["stage"] != "coverage" and "hierarchy" in row]
    if ordering:
        best = min(ordering, key=lambda row: float(row["hierarchy"]))
        found |= {"initial_hierarchy": ordering[0]["hierarchy"], "best_hierarchy": best["hierarchy"]}
        found |= {"best_epoch": best["epoch"], "last_epoch": ordering[-1]["epoch"]}
    elif rows:
        found["last_epoch"] = rows[-1]["epoch"]
    return found


def run_metrics(config: TrainConfig, model: TernaryVAEV5_11_PartialFreeze, rows: Sequence[Row]) -> dict[str, Any]:
    """Everything that results.json says of a run's last model, without the baselines."""
    device = str(next(model.parameters()).device)
    seen_N = torch.zeros(3**config.trits, dtype=torch.bool)
    seen_N[training_indices(config.trits, config.train_fraction, config.seed)] = True
    operations = Operations.all(config.trits).to(device)
    found = evaluate.all_metrics(model, operations, config.view, config.seed, seen_N)
    if not orders_radii(config):
        found = {name: value for name, value in found.items() if name in COVERAGE_METRICS}
    return {**found, **history_metrics(rows), "parameters": count_parameters(model)}


def write_run_results(folder: Path, config: TrainConfig, metrics: dict[str, Any]) -> None:
    """results.json alone: what a run inside a sweep writes."""
    write_results(folder, STUDY, read_manifest(folder)["verb"], metrics, run_claims(metrics, config))


def write_run_report(folder: Path, config: TrainConfig, model: TernaryVAEV5_11_PartialFreeze) -> None:
    """Results, figures and report of a run, from its rows and its model."""
    rows, verb = read_rows(folder / "metrics.jsonl"), read_manifest(folder)["verb"]
    model.eval()
    beside = baselines(config)
    metrics = {**run_metrics(config, model, rows), "baselines": beside}
    write_run_results(folder, config, metrics)
    tables = [metric_table(metrics, beside, orders_radii(config))]
    if rows:
        tables.append(curves_table(rows))
    report = Report(
        f"ternary-vae {verb}: 3^{config.trits} operations, seed {config.seed}",
        QUESTION, answer(config, metrics), tables, run_pictures(folder, config, model, metrics, rows), notes(config),
    )  # fmt: skip
    write_report(folder, report)


def metric_table(metrics: Metrics, beside: Mapping[str, Metrics], trained_radii: bool = True) -> Table:
    """Every metric with its unit, beside the two baselines."""
    known = [name for name in MEANINGS if any(name in values for values in (metrics, *beside.values()))]
    rows = []
    for name in known:
        own = shown(name, metrics.get(name, "none"))
        if not trained_radii and name not in COVERAGE_METRICS:
            own = "untrained"
        others = [shown(name, values.get(name, "none")) for values in (beside["closed_form"], beside["untrained"])]
        rows.append((name, own, *others, *MEANINGS[name]))
    return Table(
        "Metrics", ("metric", "trained", "closed form (no learning)", "untrained", "unit", "meaning"), rows,
        "Closed form: the radius that the default loss asks for, read off the leading trits by a rule. Untrained: the "
        "model as it is drawn. By the mean code of every operation; none: does not exist there.",
    )  # fmt: skip


def curves_table(rows: Sequence[Row]) -> Table:
    """The evaluations; of very many every so manieth, and the last."""
    every = -(-len(rows) // CURVE_ROWS)
    kept = [row for i, row in enumerate(rows) if i % every == 0 or i == len(rows) - 1]
    names = [
        n
        for n in ("coverage", "hierarchy", "somers_d", "min_level_gap", "tied_radius_share", "richness")
        if any(n in row for row in kept)
    ]
    lines = [(row["stage"], row["epoch"], row["step"], *(shown(n, row.get(n, "")) for n in names)) for row in kept]
    title = "Evaluations" if every == 1 else f"Evaluations (one of {every})"
    return Table(title, ("stage", "epoch", "update", *names), lines, folded=True)


def answer(config: TrainConfig, metrics: Metrics) -> str:
    """One or two sentences on one run."""
    text = f"{metrics['covered']:,} of {metrics['operations']:,} operations come back with every trit right"
    if not orders_radii(config):
        return f"{text}; this run trained no radii."
    if "hierarchy" not in metrics:
        return f"{text}; all radii are equal, so there is no hierarchy."
    share = metrics["hierarchy_of_ceiling"]
    reached = f"{100 * share:.4f} % of what radii without ties can reach" if share > 0 else "the wrong way round"
    return (
        f"{text}; hierarchy {metrics['hierarchy']:.6f}, {reached}, with "
        f"{metrics['positive_gaps']} of {metrics['gaps']} neighbouring levels apart."
    )


def notes(config: TrainConfig) -> list[str]:
    """Decisions that a reader of the numbers should know."""
    return [
        ENUMERATION,
        f"Headline metrics look at encoder {evaluate.headline(config.view).upper()}, on mean codes. Radii at curvature {config.curvature:g} and largest norm {config.max_radius:g}; richness of other settings cannot be compared.",
        CEILING,
    ]


@torch.no_grad()
def run_pictures(
    folder: Path, config: TrainConfig, model: TernaryVAEV5_11_PartialFreeze, metrics: Metrics, rows: Sequence[Row]
) -> list[Picture]:
    """The figures of a run."""
    pictures, to = [], folder / "figures"
    if rows:
        ceiling = metrics.get("hierarchy_ceiling")
        caption = "Coverage over all updates" + (
            "; hierarchy and Somers' D over the epochs of the stage that orders radii, dashed where they can go no further."
            if orders_radii(config)
            else "."
        )
        pictures.append(Picture(plot_run_curves(rows, ceiling, to / "curves.svg"), caption))
    if orders_radii(config):
        pictures += latent_pictures(to, config, model)
    return pictures


def latent_pictures(
    to: Path, config: TrainConfig, model: TernaryVAEV5_11_PartialFreeze, whose: str = ""
) -> list[Picture]:
    """Radius by level, and the points of the ball, of one model."""
    operations, view = Operations.all(config.trits), evaluate.headline(config.view)
    device = str(next(model.parameters()).device)
    _, norm_N = evaluate.radii(model, operations.to(device), view)
    points_ND = evaluate.points(model, operations.to(device), view)
    v_N = operations.v_N.numpy()
    radius = plot_radius_by_level(v_N, norm_N.numpy(), config.max_radius, to / "radius_by_level.svg")
    ball = plot_ball(points_ND.numpy(), v_N, norm_N.numpy(), config.curvature, to / "ball.svg")
    return [
        Picture(radius, f"{whose}Radius of every operation by level (spread sideways at random); boxes are the ranges of the levels, dashed the largest norm. Boxes that share no height: the levels are apart."),
        Picture(ball, f"{whose}The latent points, seen flat: the distance from the centre is the true norm in the ball, the angle is that of the direction's first two principal components. Neighbours in angle need not be neighbours in the ball."),
    ]  # fmt: skip


def report_command(folder: Path) -> None:
    """`report RUN`: writes the report again from what the folder holds, and prints it."""
    if read_manifest(folder)["verb"] == "sweep":
        from ternary_vae.sweep import report_sweep

        report_sweep(folder)
    else:
        config = read_config(folder)
        _, model = load_run_checkpoint(folder, config)
        if model is None:
            raise UserError(f"{folder}: holds no checkpoint yet; `ternary-vae resume {folder}` goes on with it")
        write_run_report(folder, config, model)
    print_report(folder)


def print_report(folder: Path) -> None:
    """The answer and the claims on the terminal, and where the report is."""
    claims: list[dict[str, Any]] = read_json(folder / "results.json")["claims"]
    if (folder / "report.md").exists():
        text = (folder / "report.md").read_text().splitlines()
        print("\n".join(line.strip("*") for line in text[:5] if line))
    if claims:
        print(claims_text(claims))
    print(f"report: {folder / 'report.html'}")


def evaluate_command(name: str, output: str | None = None) -> None:
    """`evaluate CHECKPOINT`: every metric of a verified checkpoint beside its baselines, and as JSON where asked."""
    checkpoint, config, model = load_model(name)
    metrics, beside = run_metrics(config, model.eval(), []), baselines(config)
    state = checkpoint.state
    print(
        f"{checkpoint.path} (epoch {state.get('epoch')} of the stage {config.stage_names[state.get('stage', 0)]}): 3^{config.trits} operations, curvature {config.curvature:g}, max_radius {config.max_radius:g}"
    )
    print(table_text(metric_table(metrics, beside, orders_radii(config))))
    if output is not None:
        try:
            write_json(Path(output), {"checkpoint": str(checkpoint.path), **metrics, "baselines": beside})
        except OSError as error:
            raise UserError(f"--output: {output} cannot be written ({error.strerror}); choose another file") from None
        print(f"written: {output}")


# ------------------------------------------------------------------------------------------------------------- sweep
ARM_COLUMNS = (
    "phase", "arm", "n", "best hierarchy", "std", "95 % interval", "hierarchy at the end", "std", "95 % interval",
    "epoch of best", "Somers' D", "richness", "coverage", "min gap", "cannot be told from the phase's best",
)  # fmt: skip
ARM_NOTE = (
    "n: seeds; draws of the projections are averaged within a seed first. Intervals: Student's t over seeds. Best: the most "
    "negative hierarchy of a run's evaluations, picked after the fact; Somers' D, richness, coverage and the smallest gap are "
    "of the end. Last column: the difference of the best hierarchy from that of the phase's best arm, paired over seeds, with "
    "Bonferroni's correction over the phase's other arms; yes: its interval holds 0."
)
SEED_METRICS = (
    "coverage", "covered", "hierarchy", "hierarchy_of_ceiling", "somers_d", "min_level_gap", "tied_radius_share", "richness",
)  # fmt: skip
"""Of a from-scratch run's table."""


def write_sweep_report(
    folder: Path,
    runs: Sequence[RunSummary],
    coverage_runs: Sequence[RunSummary],
    failed: Mapping[str, str],
    extra: Sequence[str] = (),
) -> None:
    """Results, tables (table.md, .csv, .json), figures and report of a sweep.

    `runs` are the phases' runs, `coverage_runs` those from scratch with their arm, `failed` runs that did not finish with
    the reason, `extra` notes.
    """
    statistics = arm_statistics(runs)
    closed = closed_forms([run for run in (*runs, *coverage_runs) if run.ordering_rows])
    # What is not asked of such runs comes last.
    claims = sorted(sweep_claims(runs, coverage_runs), key=lambda claim: claim["verdict"] == "not run")
    ordered = [run for run in coverage_runs if run.ordering_rows]
    from_scratch = scratch_statistics(coverage_runs)
    write_results(folder, STUDY, read_manifest(folder)["verb"], {
        "runs": len(runs) + len(coverage_runs), "failed": len(failed),
        "arms": {f"{arm.phase}/{arm.arm}": flat_statistics(arm) for arm in statistics},
        "from_scratch": {arm: without_none(values) for arm, values in from_scratch.items()},
        "baselines": {"closed_form": closed, **({"untrained": untrained_mean(runs)} if runs else {})},
        **(seed_metrics(ordered) if ordered else {}),
    }, claims)  # fmt: skip
    tables = []
    if statistics:
        tables.append(arm_table(statistics, closed, untrained_mean(runs)))
    if ordered:
        tables.append(seed_table(ordered))
    if from_scratch:
        tables.append(scratch_table(from_scratch))
    write_tables(folder, tables[0] if tables else None, statistics, ordered)
    inert = inert_factors(runs)
    if runs:
        rows = [(f.field, *map(str, f.values), *f.arms, f.seeds, f.evaluations) for f in inert]
        note = "Pairs of arms that differ in this field alone and whose metrics agree at every evaluation of every seed to 1e-10 (rounding), histories being equally long. Losses are not compared, nor richness_hyperbolic and dist_corr_geodesic, whose unit the curvature sets. A term that longer runs would switch on is not seen."
        if not rows:
            note = f"None was found. {note}"
        tables.append(
            Table(
                "Factors that changed nothing in these runs",
                ("field", "value", "other value", "arm", "other arm", "seeds", "evaluations"),
                rows,
                note,
            )
        )
    if failed:
        tables.append(Table("Runs that did not finish", ("run", "reason"), list(failed.items())))
    verdicts = [claim["verdict"] for claim in claims]
    counted = ", ".join(f"{verdicts.count(v)} {v}" for v in ("supported", "refuted", "inconclusive", "not run"))
    text = f"{sweep_answer(statistics, ordered)} Of {len(claims)} claims: {counted}."
    title = f"ternary-vae {read_manifest(folder)['verb']}: {len(runs) + len(coverage_runs)} runs"
    write_report(
        folder,
        Report(
            title,
            QUESTION,
            text,
            tables,
            sweep_pictures(folder, runs, ordered, statistics, closed),
            [ENUMERATION, CEILING, "Richness of other curvatures or largest norms cannot be compared.", *extra],
        ),
    )


def sweep_answer(statistics: Sequence[ArmStatistics], ordered: Sequence[RunSummary]) -> str:
    """One or two sentences on a sweep."""
    parts = []
    if statistics:
        best = min(statistics, key=lambda arm: arm.final)
        parts.append(f"The hierarchy at the end is best in {best.arm} ({best.final:.4f}, n = {best.n} seeds).")
    if ordered:
        full = sum(run.metrics.get("coverage") == 1.0 for run in ordered)
        apart = sum(run.metrics.get("min_level_gap", -1.0) > 0 for run in ordered)
        parts.append(
            f"From scratch, {full} of {len(ordered)} runs cover all operations and {apart} have all levels apart."
        )
    return " ".join(parts) or "No run has finished."


def closed_forms(runs: Sequence[RunSummary]) -> dict[str, dict[str, Any]]:
    """The closed form's metrics for every geometry among the runs."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        c = run.config
        name = f"3^{c.trits}, curvature {c.curvature:g}, max radius {c.max_radius:g}, {c.radius}"
        if name not in found:
            found[name] = evaluate.closed_form(c, Operations.all(c.trits))
    return found


def untrained_mean(runs: Sequence[RunSummary]) -> dict[str, float]:
    """Means over the runs of their evaluations before the first update."""
    first = [run.initial for run in runs if run.ordering_rows]
    names = [name for name in MEANINGS if first and all(name in row for row in first)]
    return {name: float(np.mean([row[name] for row in first])) for name in names}


def interval_text(interval: Interval | None, digits: int = 4) -> str:
    """[low, high]; an interval needs two units."""
    return "n = 1" if interval is None else f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def fixed(value: float | None, digits: int = 4) -> str:
    """A number with that many decimals."""
    return "none" if value is None else f"{value:.{digits}f}"


def arm_table(statistics: Sequence[ArmStatistics], closed: Mapping[str, Metrics], untrained: Metrics) -> Table:
    """Every arm, and the baselines below."""
    rows: list[tuple[Any, ...]] = []
    for a in statistics:
        rows.append((
            a.phase, a.arm, a.n, fixed(a.best), fixed(a.best_std), interval_text(a.best_interval), fixed(a.final),
            fixed(a.final_std), interval_text(a.final_interval), f"{a.best_epoch:.1f}", fixed(a.somers_d), fixed(a.richness, 5),
            fixed(a.coverage, 5), fixed(a.min_level_gap), against_text(a),
        ))  # fmt: skip
    named = [(f"closed form ({name})", values, "no learning") for name, values in closed.items()]
    for name, values, why in [*named, ("untrained projections", untrained, "epoch 0, mean of runs")]:
        cells = [
            fixed(values.get(key), digits)
            for key, digits in (("somers_d", 4), ("richness", 5), ("coverage", 5), ("min_level_gap", 4))
        ]
        rows.append(("baseline", name, "", "", "", "", fixed(values.get("hierarchy")), "", "", "", *cells, why))
    return Table("Arms", ARM_COLUMNS, rows, ARM_NOTE)


def against_text(arm: ArmStatistics) -> str:
    """The last column of the table of arms."""
    if arm.against_best is None:
        return "is the best" if arm.is_best else "too few seeds"
    mark = "yes" if arm.indistinguishable else "no"
    return f"{mark}: {arm.against_best.estimate:+.4f} {interval_text(arm.against_best)}"


def flat_statistics(arm: ArmStatistics) -> dict[str, Any]:
    """An arm's statistics as flat numbers; what does not exist is left out."""
    values: dict[str, Any] = {}
    for name, value in dataclasses.asdict(arm).items():
        if isinstance(value, dict):
            value = {f"{name}_{k}": v for k, v in value.items() if k != "n"}
            values |= value
        else:
            values[name] = value
    return without_none({**values, "indistinguishable": arm.indistinguishable})


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that have a value."""
    return {name: value for name, value in values.items() if value is not None}


def scratch_statistics(runs: Sequence[RunSummary]) -> dict[str, dict[str, Any]]:
    """Arm -> coverage over seeds at the end of runs from scratch, and the epoch at which all operations came back right."""
    found = {}
    for (_, arm), own in by_arm(runs).items():
        last = list(by_seed(own, lambda run: float(run.rows[-1]["coverage"])).values())
        interval = mean_interval(last) if len(last) > 1 else None
        epochs = [row["epoch"] for run in own if (row := next((r for r in run.rows if r["coverage"] == 1.0), None))]
        found[arm] = {
            "n": len(last), "runs": len(own), "coverage": float(np.mean(last)), "coverage_std": spread(last),
            "coverage_low": None if interval is None else interval.low,
            "coverage_high": None if interval is None else interval.high,
            "smallest": min(last), "largest": max(last), "full": len(epochs),
            "full_coverage_epoch": float(np.mean(epochs)) if epochs else None,
        }  # fmt: skip
        unseen = [run.metrics["coverage_unseen"] for run in own if "coverage_unseen" in run.metrics]
        if unseen:
            found[arm] |= {"coverage_unseen": float(np.mean(unseen)), "smallest_unseen": min(unseen)}
    return found


def scratch_table(found: Mapping[str, Metrics]) -> Table:
    """Coverage of the arms that start from scratch."""
    partly = any("coverage_unseen" in s for s in found.values())
    rows = [
        (
            arm, s["n"], fixed(s["coverage"], 5), fixed(s["coverage_std"], 5),
            "n = 1" if s["coverage_low"] is None else f"[{s['coverage_low']:.5f}, {s['coverage_high']:.5f}]",
            f"{s['smallest']:.5f} to {s['largest']:.5f}", f"{s['full']} of {s['runs']}",
            "never" if s["full_coverage_epoch"] is None else f"{s['full_coverage_epoch']:.1f}",
            *([f"{s['coverage_unseen']:.5f} ({s['smallest_unseen']:.5f})" if "coverage_unseen" in s else "all seen"] if partly else []),
        )
        for arm, s in found.items()
    ]  # fmt: skip
    columns = (
        "arm",
        "n",
        "coverage",
        "std",
        "95 % interval",
        "range",
        "runs that reached 100 %",
        "at epoch (mean of these)",
        *(["of the unseen (worst)"] if partly else []),
    )
    return Table(
        "From scratch",
        columns,
        rows,
        "Coverage at the end of runs that start without a checkpoint; n: seeds, interval: Student's t over them.",
    )


UNSEEN_METRICS = ("coverage_unseen", "hierarchy_unseen", "hierarchy_ceiling_unseen", "somers_d_unseen")


def seed_table(runs: Sequence[RunSummary]) -> Table:
    """Runs from scratch with both stages, seed by seed."""
    partly = any(run.config.train_fraction < 1 for run in runs)
    names = (*SEED_METRICS, *(UNSEEN_METRICS if partly else ()))
    rows = [
        (run.arm, run.seed, *(shown(name, run.metrics.get(name)) for name in names), f"{run.seconds:.0f}")
        for run in sorted(runs, key=lambda run: (run.arm, run.seed))
    ]
    first = {(run.config.curvature, run.config.max_radius, run.config.radius, run.config.trits): run for run in runs}
    for run in first.values():
        beside = baselines(run.config)
        for name, found in (("closed form", beside["closed_form"]), ("untrained", beside["untrained"])):
            rows.append((name, "", *(shown(key, found.get(key)) for key in names), ""))
    columns = (
        "arm",
        "seed",
        "coverage",
        "covered",
        "hierarchy",
        "of its ceiling",
        "Somers' D",
        "min gap",
        "tied radii",
        "richness",
        *(("coverage, unseen", "hierarchy, unseen", "its ceiling", "Somers' D, unseen") if partly else ()),
        "seconds",
    )
    return Table(
        "From scratch, seed by seed",
        columns,
        rows,
        "The last model of every run, by mean codes. min gap above 0: all levels apart. Below: radii by the closed form, without learning or codes; and the model of the first seed before training.",
    )


def seed_metrics(runs: Sequence[RunSummary]) -> dict[str, Any]:
    """Each from-scratch run's metrics, and the smallest and largest over runs."""
    names_of_all = (*SEED_METRICS, *UNSEEN_METRICS)
    each = {
        f"{run.arm}/{run.seed}": {**without_none({k: run.metrics.get(k) for k in names_of_all}), "seconds": run.seconds}
        for run in runs
    }
    names = [name for name in (*names_of_all, "seconds") if all(name in values for values in each.values())]
    return {
        "seeds": each,
        "min": {name: min(values[name] for values in each.values()) for name in names},
        "max": {name: max(values[name] for values in each.values()) for name in names},
    }


def write_tables(
    folder: Path, table: Table | None, statistics: Sequence[ArmStatistics], ordered: Sequence[RunSummary]
) -> None:
    """The first table as table.md; its numbers unrounded as table.csv and table.json."""
    rows = [flat_statistics(arm) for arm in statistics] or [
        {
            "arm": run.arm,
            "seed": run.seed,
            **without_none({k: run.metrics.get(k) for k in SEED_METRICS}),
            "seconds": run.seconds,
        }
        for run in ordered
    ]
    write_json(folder / "table.json", rows)
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(folder / "table.csv", text.getvalue())
    write_atomic(folder / "table.md", "" if table is None else table_markdown(table))


def table_markdown(table: Table) -> str:
    """A table in Markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *[[number(cell) for cell in row] for row in table.rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{table.note}\n"


def sweep_pictures(
    folder: Path, runs: Sequence[RunSummary], ordered: Sequence[RunSummary], statistics: Sequence[ArmStatistics],
    closed: Mapping[str, Metrics],
) -> list[Picture]:  # fmt: skip
    """The figures of a sweep."""
    shown_runs, to = [*runs, *ordered], folder / "figures"
    shown_runs = [run for run in shown_runs if run.ordering_rows]
    if not shown_runs:
        return []
    ceiling = shown_runs[0].final.get("hierarchy_ceiling")
    pictures = [
        Picture(
            plot_phase_curves(shown_runs, to / "curves.svg"),
            "Hierarchy by epoch: means over the runs of an arm that lasted until then, shaded their range; dashed the ceiling of radii without ties. Starts that lie far above the rest are cut off.",
        )
    ]
    if statistics:
        pictures.append(
            Picture(
                plot_effects(statistics, ceiling, to / "effects.svg"),
                "What each factor does: best and last hierarchy of every arm with 95 % intervals over seeds; crosses: the best that the seed study gives for the arm, from one run (stability: the mean of 25).",
            )
        )
    form = max(closed.values(), key=lambda found: float(found["richness"]), default=None)
    pictures.append(
        Picture(
            plot_pareto(shown_runs, form, ceiling, to / "pareto.svg"),
            "Hierarchy and richness at the end of every run; the line joins the runs that no other beats in both. Star: the closed form, without learning, in the geometry where it is richest. Richness of other curvatures or largest norms cannot be compared.",
        )
    )
    best = min(shown_runs, key=lambda run: float(run.final["hierarchy"]))
    last = steps(folder / best.name / "checkpoints")
    if last:
        _, config, model = load_model(str(last[-1]))
        pictures += latent_pictures(to, config, model, f"{best.name}, the run with the best hierarchy at its end. ")
    return pictures
