"""Reports of a run and of a comparison: the seed study's JSON files, results.json, figures, report.html and report.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retrofit.arms import get_arm
from retrofit.blocks import find_blocks
from retrofit.claims import RunResult, make_claims
from retrofit.record import STUDY, read_config, read_evaluation
from retrofit.seed_json import SeedResult, read_folder, scenario, summarise, write_result
from retrofit.spectra import few_tokens, geometric_mean, median
from studycore.errors import UserError
from studycore.figures import COLOURS, new_figure, save_figure
from studycore.files import read_json, write_json
from studycore.metrics import read_rows
from studycore.report import Picture, Report, Table, claims_text, number, write_report, write_results
from studycore.runs import read_manifest

QUESTION = "Does geometry-aware training improve the conditioning of a pre-trained language model, and its perplexity?"
METRICS_NOTE = (
    "kappa: condition number of the weight, median over layers. act kappa: of the centred covariance of FFN activations, "
    "median over layers, ridge 1e-6 of the mean eigenvalue. seed_ff_gram: the seed study's own recipe, mean over layers."
)
SEED_TOKENS = 1000 * 16 * 128
"""Training tokens of the seed study's setting."""
LINES = ("-", "--", "-.", (0, (1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
Rows = Sequence[Mapping[str, Any]]


def look(i: int) -> tuple[str, Any, str]:
    """(colour, line, marker) of the i-th curve of a figure; the first 28 differ, also where they lie on each other."""
    return COLOURS[i % len(COLOURS)], LINES[i % len(LINES)], MARKERS[i % len(MARKERS)]


def metrics_note(row: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """What the metrics of an evaluation row are, and of how many tokens those of activations."""
    tokens, width = row.get("activation_tokens"), about.get("ffn_width")
    if tokens is None:
        return METRICS_NOTE
    note = f"{METRICS_NOTE} act kappa and seed_ff_gram: on {int(tokens):,} fixed tokens; another number of tokens gives another value."
    if width and (warning := few_tokens(int(tokens), width)):
        note += f" Warning: {warning}; give --activation-tokens {4 * width} or more."
    return note


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """The evaluation rows. UserError when the run has not measured both ends."""
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "evaluation"]
    if not rows or "val_ppl" not in rows[-1]:
        raise UserError(f"{folder}/metrics.jsonl: the run has not ended; `retrofit resume` continues it")
    return rows


def load_result(folder: Path) -> RunResult:
    """What a finished run's folder says."""
    config, rows = read_config(folder), evaluations(folder)
    moves = [
        abs(row["transport_ppl_after"] / row["transport_ppl_before"] - 1)
        for row in read_rows(folder / "metrics.jsonl")
        if row["kind"] == "transport"
    ]
    first, last = (read_evaluation(folder, row["step"]) for row in (rows[0], rows[-1]))
    return RunResult(config.method, config.seed, rows[0], rows[-1], first, last, moves)


def seed_file(method: str) -> str:
    """The seed study's name of a method's JSON."""
    return f"{get_arm(method).file or method}.json"


# -------------------------------------------------------------------------------------------------------- one run
def write_run_report(folder: Path, model: Any) -> None:
    """Results, the seed study's JSON, figures and report of a run."""
    config, rows, manifest = read_config(folder), evaluations(folder), read_manifest(folder)
    result, about = load_result(folder), manifest["about"]
    last = rows[-1]
    metrics = {
        **{f"initial_{k}": rows[0][k] for k in ("val_ppl", "val_loss")},
        **{k: v for k, v in last.items() if k not in ("kind",) and not isinstance(v, list)},
        **clip_metrics(read_rows(folder / "metrics.jsonl")),
        **about,
    }
    own = (f"{config.method}_conditioning", f"{config.method}_perplexity", f"{config.method}_function", "author_model")
    claims = [claim for claim in make_claims([result]) if claim["verdict"] != "not run" or claim["id"] in own]
    write_results(folder, STUDY, "run", metrics, claims)
    model_folder = str(folder / "model") if config.save_model else None
    write_json(
        folder / seed_file(config.method), write_result(config.method, rows, checkpoint_path=model_folder, about=about)
    )
    note = metrics_note(last, about)
    layers = layer_table(rows[0], last, [block.name for block in find_blocks(model)], note)
    keys = [k for k in last if isinstance(last[k], int | float) and not isinstance(last[k], bool) and k != "step"]
    ends = Table(
        "Start and end",
        ("quantity", "step 0", f"step {last['step']}"),
        [(k, rows[0].get(k), last[k]) for k in keys],
        note,
    )
    pictures = [
        Picture(
            plot_trajectories({config.method: [rows]}, folder / "figures" / "trajectories.svg"),
            "Conditioning and perplexity over training.",
        )
    ]
    transports = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "transport"]
    tables = [ends, layers, *([transport_table({config.method: transports})] if transports else [])]
    change = 100 * (last["val_ppl"] / rows[0]["val_ppl"] - 1)
    answer = f"{config.method}: perplexity {rows[0]['val_ppl']:.3f} to {last['val_ppl']:.3f} ({change:+.2f} %)"
    if "up_kappa_median" in last:
        answer += (
            f", median kappa of the up projections {rows[0]['up_kappa_median']:.2f} to {last['up_kappa_median']:.2f}"
        )
    report = Report(f"retrofit run: {config.method}", QUESTION, f"{answer}.", tables, pictures, notes(config, about))
    write_report(folder, report)


def layer_table(first: Mapping[str, Any], last: Mapping[str, Any], names: Sequence[str], note: str) -> Table:
    """Every layer, start and end."""
    keys = [
        k
        for k in (
            "up_kappa",
            "down_kappa",
            "up_omega",
            "act_kappa_centred",
            "act_kappa_uncentred",
            "seed_ff_gram_layers",
        )
        if k in last and k in first
    ]
    columns = ["layer", *(f"{k} {when}" for k in keys for when in ("start", "end"))]
    rows = [(name, *(row[k][i] for k in keys for row in (first, last))) for i, name in enumerate(names)]
    return Table("Conditioning by layer", columns, rows, note)


def clip_metrics(rows: Rows) -> dict[str, Any]:
    updates = [row for row in rows if row["kind"] == "update"]
    if not updates:
        return {}
    found: dict[str, Any] = {"clip_rate": sum(row["clipped"] for row in updates) / len(updates)}
    for key in ("grad_norm", "penalty_grad_norm", "penalty"):
        values = [row[key] for row in updates if key in row]
        if values:
            found[f"mean_{key}"] = sum(values) / len(values)
    return found


def transport_table(rows_of: Mapping[str, Rows]) -> Table:
    """What each arm's transports did to the function: each run's first, and those after it."""
    lines = []
    for name, rows in rows_of.items():
        at = min(row["step"] for row in rows)
        firsts, later = ([row for row in rows if (row["step"] == at) == first] for first in (True, False))
        cells: list[Any] = []
        for what in (_move, _divergence):
            cells += [median([what(row) for row in some]) if some else "" for some in (firsts, later)]
        kappas = [
            row["transport_kappa_after"] / row["transport_kappa_before"]
            for row in rows
            if {"transport_kappa_after", "transport_kappa_before"} <= set(row)
        ]
        factor = geometric_mean(kappas) if kappas else None
        lines.append((name, len(rows), *cells[:2], max(map(_move, rows), key=abs), *cells[2:], factor))
    columns = (
        "arm",
        "transports",
        "perplexity %, first",
        "the others",
        "largest",
        "KL, first",
        "the others",
        "kappa, factor",
    )
    note = "Medians over a run's first transport in all seeds, and over the others. KL in nats a token; kappa: median over layers, geometric mean over transports. On the transport blocks, in float32."
    return Table("Right before and after transports", columns, lines, note)


def _move(row: Mapping[str, Any]) -> float:
    """Percent by which a transport moved perplexity."""
    return 100 * (float(row["transport_ppl_after"]) / float(row["transport_ppl_before"]) - 1)


def _divergence(row: Mapping[str, Any]) -> float:
    return float(row["transport_kl"])


def notes(config: Any, about: Mapping[str, Any]) -> list[str]:
    """Decisions that a reader of the numbers should know."""
    varies = "order of batches (and permutations, where an arm has them)"
    if config.dropout:
        varies = f"{varies} and the dropout"
    return [
        f"{about['training_tokens']:,} training tokens per run: {config.num_steps} updates of {config.batch_size} blocks of {config.block_size} tokens, from {about['training_documents']:,} documents of {config.dataset}. The seed study's setting has {SEED_TOKENS:,} tokens in 1,000 updates with a transport every 50: this is {100 * about['training_tokens'] / SEED_TOKENS:.3g} % of its tokens.",
        f"A transport every {config.glt_interval} updates where an arm has one; Gram weight {config.gram_weight:g}.",
        f"A seed varies the {varies}, nothing else: start and documents are the same, so intervals over seeds say nothing of other models or texts.",
        f"Perplexity: summed negative log-likelihood over tokens, on {about['validation_set']}; in between on {about['trajectory_set']}. Block size {about['block_size']}, stride {about['stride']}, end-of-text token: {about['end_of_text']}.",
        "No validation document is among the training documents (compared by hash).",
        f"Mixed precision: {config.mixed_precision}; AdamW, lr {config.lr}, weight decay {config.weight_decay}, no warm-up or schedule, dropout {config.dropout}. The cross-entropy's gradient is clipped at {config.grad_clip}, and the penalty's is added after it, once per update and unclipped. (The seed study clips their sum at 1.0: their ratio stays, and a large penalty shrinks the cross-entropy's part.)",
        f"Conditioning of activations on {config.activation_tokens:,} fixed validation tokens (whole blocks).",
    ]


# ------------------------------------------------------------------------------------------------------ comparison
def write_comparison(folder: Path, arms: Mapping[str, Sequence[Path]], failed: Mapping[str, str]) -> None:
    """The seed study's files, results, figures and report from the finished runs of each arm."""
    results = {name: [load_result(path) for path in paths] for name, paths in arms.items()}
    rows_of = {name: [evaluations(path) for path in paths] for name, paths in arms.items()}
    merged = {name: mean_rows(rows) for name, rows in rows_of.items()}
    config = read_config(next(iter(arms.values()))[0])
    about = read_manifest(next(iter(arms.values()))[0])["about"]
    seeds = {name: [result.seed for result in found] for name, found in results.items()}
    for name, rows in merged.items():
        saved = next((str(path / "model") for path in arms[name] if (path / "model").is_dir()), None)
        each = [
            write_result(name, rows) | {"seed": seed} for rows, seed in zip(rows_of[name], seeds[name], strict=True)
        ]
        write_json(folder / seed_file(name), write_result(name, rows, checkpoint_path=saved, about=about, seeds=each))
    write_json(folder / "summary.json", summarise({name: _as_seed_result(name, rows) for name, rows in merged.items()}))
    plot_trajectories(rows_of, folder / "trajectories.png")

    claims = make_claims([run for found in results.values() for run in found])
    metrics = {"training_tokens_per_run": about["training_tokens"], "failed": len(failed), **about}
    metrics["arms"] = {name: arm_metrics(merged[name], arms[name]) for name in arms}
    write_results(folder, STUDY, "compare", metrics, claims)
    transports = {
        name: [row for path in paths for row in read_rows(path / "metrics.jsonl") if row["kind"] == "transport"]
        for name, paths in arms.items()
    }
    tables = [comparison_table(merged, arms)]
    if any(transports.values()):
        tables.append(transport_table({name: rows for name, rows in transports.items() if rows}))
    tables.append(Table("The arms", ("arm", "what is done"), [(name, get_arm(name).summary) for name in arms]))
    if failed:
        tables.append(Table("Runs that did not finish", ("run", "reason"), list(failed.items())))
    for name, rows in merged.items():
        names = [f"block {i}" for i in range(len(rows[-1].get("up_kappa", [])))]
        table = layer_table(rows[0], rows[-1], names, metrics_note(rows[-1], about))
        title = f"{table.title}: {name}, mean over seeds"
        tables.append(Table(title, table.columns, table.rows, table.note, folded=True))
    pictures = [
        Picture(plot_trajectories(rows_of, folder / "figures" / "trajectories.svg"), "Conditioning (the seed study's recipe) and validation perplexity over training; thin lines are seeds."),
        Picture(plot_layers(merged, folder / "figures" / "layers.svg"), "Weight kappa of the up projections by layer: the start (grey) and the end of each arm, side by side."),
    ]  # fmt: skip
    counts = ", ".join(f"{name} {len(paths)}" for name, paths in arms.items())
    extra = [
        f"Runs by arm: {counts}. All start from the same weights; runs of one seed see the same batches in the same order."
    ]
    answer = " ".join([comparison_answer(merged), *([scenario_of(merged)] if "geometry" in merged else [])])
    write_report(
        folder, Report("retrofit: arms compared", QUESTION, answer, tables, pictures, notes(config, about) + extra)
    )


def mean_rows(rows_of_seeds: Sequence[Rows]) -> list[dict[str, Any]]:
    """Evaluation rows averaged over seeds, step by step; perplexities geometrically, as exp of the mean loss."""
    merged = []
    for rows in zip(*rows_of_seeds, strict=True):
        assert len({row["step"] for row in rows}) == 1
        row: dict[str, Any] = {}
        for key, value in rows[0].items():
            values = [other[key] for other in rows if key in other]
            if len(values) < len(rows):
                continue
            if isinstance(value, list):
                columns = zip(*values, strict=True)
                row[key] = [None if None in column else sum(column) / len(column) for column in columns]
            elif isinstance(value, str) or key == "step":
                row[key] = value
            else:
                row[key] = geometric_mean(values) if key.endswith("_ppl") else sum(values) / len(values)
        merged.append(row)
    return merged


def arm_metrics(rows: Rows, paths: Sequence[Path]) -> dict[str, Any]:
    layered = ("up_kappa", "down_kappa", "up_omega", "act_kappa_centred", "act_kappa_uncentred")
    keys = ["val_ppl", "val_loss", "train_ppl", "seed_ff_gram"]
    keys += [f"{key}_{mean}" for key in layered for mean in ("median", "geometric_mean")]
    found: dict[str, Any] = {
        f"{when}_{k}": row[k] for when, row in (("initial", rows[0]), ("final", rows[-1])) for k in keys if k in row
    }
    clips = [clip_metrics(read_rows(path / "metrics.jsonl")) for path in paths]
    for key in clips[0]:
        found[key] = sum(c[key] for c in clips) / len(clips)
    return {"n": len(paths), **found}


def _as_seed_result(name: str, rows: Rows) -> SeedResult:
    first, last = (
        {"cond": r.get("seed_ff_gram"), "ppl": r["val_ppl"], "loss": r["val_loss"]} for r in (rows[0], rows[-1])
    )
    steps, conditioning = [row["step"] for row in rows], [r.get("seed_ff_gram") for r in rows]
    return SeedResult(name, first, last, steps, conditioning, [r["trajectory_ppl"] for r in rows])


def comparison_table(merged: Mapping[str, Rows], arms: Mapping[str, Sequence[Path]]) -> Table:
    """The start and every arm's end."""
    columns = (
        "arm",
        "seeds",
        "tokens",
        "perplexity",
        "change %",
        "seed_ff_gram",
        "change %",
        "kappa up",
        "kappa down",
        "omega up",
        "act kappa",
        "grad norm",
        "penalty's",
        "clip rate",
    )
    keys = ("up_kappa_median", "down_kappa_median", "up_omega_median", "act_kappa_centred_median")
    first = next(iter(merged.values()))[0]
    lines: list[tuple[Any, ...]] = [
        (
            "step 0",
            "",
            0,
            first["val_ppl"],
            "",
            first.get("seed_ff_gram"),
            "",
            *(first.get(k) for k in keys),
            "",
            "",
            "",
        )
    ]
    for name, rows in merged.items():
        last, tokens = rows[-1], read_manifest(arms[name][0])["about"]["training_tokens"]
        metrics = arm_metrics(rows, arms[name])
        changes = [
            100 * (last[k] / rows[0][k] - 1) if k in last and k in rows[0] else None
            for k in ("val_ppl", "seed_ff_gram")
        ]
        lines.append(
            (
                name,
                len(arms[name]),
                tokens,
                last["val_ppl"],
                changes[0],
                last.get("seed_ff_gram"),
                changes[1],
                *(last.get(k) for k in keys),
                metrics.get("mean_grad_norm"),
                metrics.get("mean_penalty_grad_norm", ""),
                metrics.get("clip_rate"),
            )
        )
    row, about = next(iter(merged.values()))[-1], read_manifest(next(iter(arms.values()))[0])["about"]
    norms = "grad norm: of the cross-entropy's gradient before clipping, penalty's: of what is added to it unclipped, means over updates."
    return Table("Arms", columns, lines, f"Means over seeds. {metrics_note(row, about)} {norms}")


def comparison_answer(merged: Mapping[str, Rows]) -> str:
    parts = []
    for name, rows in merged.items():
        ppl = 100 * (rows[-1]["val_ppl"] / rows[0]["val_ppl"] - 1)
        part = f"{name} perplexity {ppl:+.1f} %"
        if "seed_ff_gram" in rows[-1]:
            part += f", conditioning {100 * (rows[-1]['seed_ff_gram'] / rows[0]['seed_ff_gram'] - 1):+.1f} %"
        parts.append(part)
    return f"From step 0: {'; '.join(parts)}."


def scenario_of(merged: Mapping[str, Rows]) -> str:
    results = {name: _as_seed_result(name, merged[name]) for name in ("geometry", "standard") if name in merged}
    return scenario(results["geometry"], results.get("standard"))


def plot_trajectories(rows_of: Mapping[str, Sequence[Rows]], path: Path) -> Path:
    """Two panels over steps: seed_ff_gram and perplexity; thin lines are seeds, thick their mean."""
    figure, (left, right) = new_figure(9.0, 3.4, ncols=2)
    for i, (name, seeds) in enumerate(rows_of.items()):
        # Arms that keep the function lie on each other: broken lines and markers of falling size let all be seen.
        colour, style, marker = look(i)
        merged = mean_rows(seeds)
        for axis, key in ((left, "seed_ff_gram"), (right, "trajectory_ppl")):
            for rows in seeds if len(seeds) > 1 else ():
                points = [(row["step"], row[key]) for row in rows if key in row]
                axis.plot(
                    *zip(*points, strict=True), color=colour, alpha=0.3, linewidth=0.7, linestyle=style
                ) if points else None
            points = [(row["step"], row[key]) for row in merged if key in row]
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    linewidth=1.6,
                    linestyle=style,
                    label=name,
                    marker=marker if len(points) < 12 else "",
                    markersize=max(8 - i, 3),
                )
    left.set(xlabel="step", ylabel="seed_ff_gram", title="Conditioning of FFN activations")
    right.set(xlabel="step", ylabel="perplexity", title="Validation perplexity")
    values = [row["trajectory_ppl"] for seeds in rows_of.values() for rows in seeds for row in rows]
    if max(values) > 1.5 * min(values):
        right.set_yscale("log")
    if len(rows_of) > 1:
        figure.legend(*right.get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    return save_figure(figure, path)


def plot_layers(merged: Mapping[str, Rows], path: Path) -> Path:
    """kappa(W) of the up projections by layer; arms stand side by side, since some are equal."""
    figure, axis = new_figure(7.5, 3.4)
    start = next(iter(merged.values()))[0].get("up_kappa", [])
    axis.plot(range(len(start)), start, color="grey", linewidth=3, alpha=0.5, label="step 0")
    for i, (name, rows) in enumerate(merged.items()):
        values = rows[-1].get("up_kappa", [])
        colour, _, marker = look(i)
        places = [layer + 0.6 * ((i + 0.5) / len(merged) - 0.5) for layer in range(len(values))]
        axis.plot(places, values, marker=marker, markersize=4, color=colour, label=name, linestyle="")
    axis.set(xlabel="layer", ylabel="kappa(W) of the up projection", yscale="log", xticks=layer_ticks(len(start)))
    figure.legend(fontsize=7, loc="outside right upper")
    return save_figure(figure, path)


def layer_ticks(layers: int) -> list[int]:
    """Every layer, or every so many of a deep model."""
    return list(range(0, layers, -(-layers // 16) or 1))


# --------------------------------------------------------------------------------------------------------- on screen
def table_text(table: Table) -> str:
    """A table as aligned columns."""
    cells = [list(table.columns), *[[number(cell) for cell in row] for row in table.rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def print_report(folder: Path) -> None:
    """What a run's results say."""
    results, manifest = read_json(folder / "results.json"), read_manifest(folder)
    if manifest["verb"] == "compare":
        from retrofit.compare import finished_arms

        arms = finished_arms(folder)
        merged = {name: mean_rows([evaluations(path) for path in paths]) for name, paths in arms.items()}
        table = comparison_table(merged, arms)
        print(f"{table_text(table)}\n{table.note}")
        if "geometry" in merged:
            print(scenario_of(merged))
    if results["claims"]:
        print(claims_text(results["claims"]))
    print(f"report: {folder / 'report.html'}")


def report_command(folder: Path) -> None:
    """`retrofit report RUN`: writes the report again where its inputs are, and prints it."""
    manifest = read_manifest(folder)
    if manifest["verb"] == "compare":
        from retrofit.compare import report_compare

        report_compare(folder)
    elif manifest["verb"] == "run" and manifest["state"] != "done":
        raise UserError(f"{folder}: the run is {manifest['state']}; `retrofit resume {folder}` continues it")
    print_report(folder)


def print_seed_folder(folder: Path) -> None:
    """The comparison table and scenario of a folder that holds the seed study's JSON files alone."""
    results = read_folder(folder)
    columns = ("method", "conditioning", "final", "change %", "perplexity", "final", "change %")
    rows = [
        (name, r.initial["cond"], r.final["cond"], r.change("cond"), r.initial["ppl"], r.final["ppl"], r.change("ppl"))
        for name, r in results.items()
    ]
    print(table_text(Table("", columns, rows)))
    if "geometry" in results:
        print(scenario(results["geometry"], results.get("standard")))
