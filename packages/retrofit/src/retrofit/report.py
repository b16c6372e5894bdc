"""The reports of a run, a comparison and a measurement, from what their folders hold."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from retrofit.arms import get_arm
from retrofit.claims import (
    FRONT_KAPPA,
    FRONT_PERPLEXITY,
    ORIGINAL_UPDATES,
    FrontPoint,
    conditioning_from_start,
    evaluations_of,
    front_points,
    perplexity_from_start,
    rows_of,
)
from retrofit.config import QUESTION, ROLES, START, SWEPT, TUNING, RunConfig
from retrofit.figures import Rows, plot_front, plot_kappas, plot_layers, plot_spectra, plot_trajectories
from retrofit.legacy.original_json import SUMMARY, original_values, result_of, summarise, write_original
from retrofit.legacy.scenarios import scenario
from retrofit.metrics.matrix_rows import (
    LEFT_OUT,
    ActivationRow,
    MatrixRow,
    read_csv,
    summarise as summary_rows,
)
from retrofit.metrics.summaries import few_tokens, mean_rows, percent_change, transport_move, update_means
from retrofit.plan import variants
from retrofit.tables import shown, tables
from studycore.claims import Measure, NotRun, Wording, said, said_of, sentences
from studycore.configuration import from_dict, read_yaml
from studycore.errors import UserError
from studycore.figures import plot_arms
from studycore.files import write_json
from studycore.record import Record
from studycore.report import Picture, Report, Table, number
from studycore.run_folder import read_manifest
from studycore.statistics import Interval

METRICS_NOTE = (
    "kappa: condition number of the weight, median over layers. act kappa: of the centred covariance of FFN activations, "
    "median over layers, ridge 1e-6 of the mean eigenvalue. ff_gram_original: the original study's own recipe, mean over layers."
)
LAYERED = ("up_kappa", "down_kappa", "up_omega", "act_kappa_centred", "act_kappa_uncentred")
"""What evaluations give layer by layer, besides ff_gram_original."""
ORIGINAL_TOKENS = 1000 * 16 * 128
"""Training tokens of the original study's setting."""


def report(record: Record) -> Report:
    """Of a finished run, a comparison or a measurement."""
    return {"run": report_run, "compare": report_comparison, "measure": report_measure}[record.verb](record)


# ------------------------------------------------------------------------------------------------------------ one run
def report_run(record: Record) -> Report:
    """Of one run."""
    config, about = record.config, record.manifest.get("about", {})
    history = rows_of(record.folder)
    evaluations = evaluations_of(history)
    first, last = evaluations[0], evaluations[-1]
    note = metrics_note(last, about)
    names = layer_names(record.manifest, last)
    measured = [k for k, v in last.items() if isinstance(v, int | float) and not isinstance(v, bool) and k != "step"]
    ends = Table(
        "Start and end",
        ("quantity", "step 0", f"step {last['step']}"),
        [(k, first.get(k), last[k]) for k in measured],
        note,
    )
    transports = [row for row in history if row["kind"] == "transport"]
    more = [transport_table({config.method: transports})] if transports else []
    more += [table for table in (ablation_table(history), gradient_table({config.method: [history]})) if table]
    picture = plot_trajectories({config.method: [evaluations]}, record.folder / "figures" / "trajectories.svg")
    answer = f"{config.method}: perplexity {first['val_ppl']:.3f} to {last['val_ppl']:.3f} ({change(first, last, 'val_ppl'):+.2f} %)"
    if "up_kappa_median" in last:
        answer += (
            f", median kappa of the up projections {first['up_kappa_median']:.2f} to {last['up_kappa_median']:.2f}"
        )
    return Report(
        f"retrofit run: {config.method}", QUESTION, f"{answer}.",
        [ends, layer_table(first, last, names, note), *more],
        [Picture(picture, "Conditioning and perplexity over training.")],
        notes(config, about),
    )  # fmt: skip


def change(first: Mapping[str, Any], last: Mapping[str, Any], name: str) -> float | None:
    """Percent from the first evaluation to the last; None where either did not measure it."""
    return percent_change(first[name], last[name]) if name in first and name in last else None


def metrics_note(row: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """What the metrics of an evaluation row are, and of how many tokens those of activations."""
    tokens, width = row.get("activation_tokens"), about.get("ffn_width")
    headline = ""
    if "ff_gram_tokens" in row:
        headline = f" ff_gram: the same Gram matrix in float64, geometric mean over layers, on {int(row['ff_gram_tokens']):,} fixed tokens."
    if tokens is None:
        return f"{METRICS_NOTE}{headline}"
    note = f"{METRICS_NOTE} act kappa and ff_gram_original: on {int(tokens):,} fixed tokens; another number of tokens gives another value.{headline}"
    if width and (warning := few_tokens(int(tokens), width)):
        note += f" Warning: {warning}; give --activation-tokens {4 * width} or more."
    return note


Layers = Mapping[str, Sequence[str]]
"""The names of the blocks that a list of values by layer is of: "weights" (all) and "activations"."""


def layer_names(manifest: Mapping[str, Any], row: Mapping[str, Any]) -> Layers:
    """Of a run; earlier versions did not write them down."""
    weights = manifest.get("layers") or [f"block {i}" for i in range(len(row.get("up_kappa", [])))]
    return {"weights": weights, "activations": manifest.get("layers_with_activations", weights)}


def layer_table(first: Mapping[str, Any], last: Mapping[str, Any], names: Layers, note: str) -> Table:
    """Every layer, start and end."""
    keys = [key for key in (*LAYERED, "ff_gram_original_layers") if key in last and key in first]
    columns = ["layer", *(f"{key} {when}" for key in keys for when in ("start", "end"))]
    owners = {key: list(names["weights" if key.startswith(("up_", "down_")) else "activations"]) for key in keys}

    def cell(row: Mapping[str, Any], key: str, name: str) -> Any:
        if name not in owners[key]:
            return None
        value = row[key][owners[key].index(name)]
        return "infinite" if value is None else value

    rows = [(name, *(cell(row, key, name) for key in keys for row in (first, last))) for name in names["weights"]]
    return Table("Conditioning by layer", columns, rows, note)


def transport_table(rows_of_arms: Mapping[str, Rows]) -> Table:
    """What each arm's transports did to the function: each run's first, and those after it."""
    lines = []
    for name, rows in rows_of_arms.items():
        first_step = min(row["step"] for row in rows)
        firsts, later = ([row for row in rows if (row["step"] == first_step) == first] for first in (True, False))
        cells: list[Any] = []
        for what in (transport_move, _divergence):
            cells += [shown(median([what(row) for row in some])) if some else "" for some in (firsts, later)]
        kappas = [
            row["transport_kappa_after"] / row["transport_kappa_before"]
            for row in rows
            if {"transport_kappa_after", "transport_kappa_before"} <= set(row)
        ]
        factor = geometric_mean(kappas) if kappas else None
        largest = max(map(transport_move, rows), key=abs)
        lines.append((name, len(rows), *cells[:2], shown(largest), *cells[2:], factor))
    columns = (
        "arm", "transports", "perplexity %, first", "the others", "largest", "KL, first", "the others", "kappa, factor",
    )  # fmt: skip
    note = "Medians over a run's first transport in all seeds, and over the others. KL in nats a token; kappa: median over layers, geometric mean over transports. On the transport blocks, in float32."
    return Table("Right before and after transports", columns, lines, note)


def ablation_table(rows: Rows) -> Table | None:
    """Which matrix does the harm: one transport of each role alone, before any update; None where it was not run."""
    lines = []
    for row in (row for row in rows if row["kind"] == "ablation"):
        kappas = [row.get(f"transport_kappa_{when}") for when in ("after", "before")]
        factor = kappas[0] / kappas[1] if None not in kappas else None  # type: ignore[operator]
        ends = [row.get(f"transport_ppl_{when}", math.inf) for when in ("before", "after")]
        moved = (*ends, transport_move(row), _divergence(row))
        lines.append((row["matrices"], *map(shown, moved), factor))
    if not lines:
        return None
    columns = ("matrices", "perplexity before", "after", "change %", "KL", "kappa up, factor")
    note = "The original study's row and column normalisation of these matrices alone, once, on the start and before any update; on the transport blocks, in float32. Each line starts from the same weights."
    return Table("Which matrix does the harm: one transport alone", columns, lines, note)


def gradient_table(history: Mapping[str, Sequence[Rows]]) -> Table | None:
    """The penalty's gradient beside the cross-entropy's on the same weights, by arm and role; None without a penalty."""
    lines = []
    for arm, runs in history.items():
        means = [update_means(rows) for rows in runs]
        for role in ROLES:
            names = (f"mean_penalty_grad_norm_{role}", f"mean_grad_norm_{role}")
            if all(name in mean for mean in means for name in names):
                own, other = (sum(mean[name] for mean in means) / len(means) for name in names)
                lines.append((arm, role, own, other, own / other))
    columns = ("arm", "role", "penalty's", "cross-entropy's", "ratio")
    note = "Norms of the gradients on the weights of that role alone, the cross-entropy's before clipping; means over updates and seeds."
    return Table("Gradients on the penalised weights", columns, lines, note) if lines else None


def tuning_table(record: Record) -> Table | None:
    """The rates that were tried; None where none was."""
    runs = record.table[record.table["arm"] == TUNING] if "arm" in record.table.columns else record.table[:0]
    if runs.empty:
        return None
    lines = []
    best = runs["val_loss"].min()
    for folder, loss in zip(runs["folder"], runs["val_loss"], strict=True):
        evaluations, about = evaluations_of(rows_of(Path(folder))), read_manifest(Path(folder))["about"]
        first, last = evaluations[0]["val_ppl"], evaluations[-1]["val_ppl"]
        lines.append((about["lr"], first, last, percent_change(first, last), "taken" if loss == best else ""))
    lines.sort(key=lambda line: line[0])
    edge = len(lines) > 1 and "taken" in (lines[0][-1], lines[-1][-1])
    said = " The best one is at the edge of those tried: a better one may lie beyond." if edge else ""
    note = f"Continued training alone, on tuning text: {about['validation_set']}, neither trained on in these runs nor reported.{said}"
    columns = ("learning rate", "tuning perplexity, step 0", f"step {evaluations[-1]['step']}", "change %", "")
    return Table("Learning rates tried", columns, lines, note)


def front_tables(record: Record) -> tuple[Table | None, Mapping[str, Sequence[FrontPoint]]]:
    """The penalties' weights: what each does to kappa and perplexity beside continued training; None below two weights."""
    fronts = {arm: front_points(record.table, arm) for arm in SWEPT if arm in record.config.arms}
    fronts = {arm: points for arm, points in fronts.items() if len(points) > 1}
    lines = [
        (
            arm, f"{p.weight:g}", p.kappa.estimate, p.kappa.low, p.kappa.high, p.perplexity.estimate, p.perplexity.low,
            p.perplexity.high, p.kappa.n,
        )
        for arm, points in fronts.items()
        for p in points
    ]  # fmt: skip
    columns = ("arm", "weight", "kappa up %", "from", "to", "perplexity %", "from", "to", "seeds")
    note = f"Change beside continued training, 95 % intervals of each weight alone. A penalty helps where kappa falls by {-FRONT_KAPPA:g} % or more and perplexity stays within {FRONT_PERPLEXITY:g} %."
    return (Table("The front: weights of the penalty", columns, lines, note) if lines else None), fronts


def _divergence(row: Mapping[str, Any]) -> float:
    """Nats a token; infinite where the row lacks it."""
    return float(row.get("transport_kl", math.inf))


def notes(config: RunConfig, about: Mapping[str, Any], swept: bool = False) -> list[str]:
    """Decisions that a reader of the numbers should know."""
    varies = "order of batches (and permutations, where an arm has them)"
    if config.dropout:
        varies = f"{varies} and the dropout"
    chosen = ", chosen for continued training on tuning text" if config.tuned else ""
    warmup = f"warm-up over {config.warmup_steps} updates" if config.warmup_steps else "no warm-up"
    return [
        f"{about['training_tokens']:,} training tokens per run: {config.num_steps} updates of {config.batch_size} blocks of {config.block_size} tokens, from {about['training_documents']:,} documents of {config.dataset}. The original study's setting has {ORIGINAL_TOKENS:,} tokens in 1,000 updates with a transport every 50: this is {100 * about['training_tokens'] / ORIGINAL_TOKENS:.3g} % of its tokens.",
        f"A transport every {config.glt_interval} updates where an arm has one; Gram weight {config.gram_weight:g}{' unless an arm says another' if swept else ''}.",
        f"A seed varies the {varies}, nothing else: start and documents are the same, so intervals over seeds say nothing of other models or texts.",
        f"Perplexity: summed negative log-likelihood over tokens, on {about['validation_set']}; in between on {about['trajectory_set']}. Block size {about['block_size']}, stride {about['stride']}, end-of-text token: {about['end_of_text']}, beginning-of-text token: {about.get('bos', 'none')}.",
        "No validation document is among the training documents (compared by hash).",
        f"Mixed precision: {config.mixed_precision}; AdamW, lr {about.get('lr', config.lr):g}{chosen}, weight decay {config.weight_decay}, {warmup}, no schedule, dropout {config.dropout}. The cross-entropy's gradient is clipped at {config.grad_clip}, and the penalty's is added after it, once per update and unclipped. (The original study clips their sum at 1.0: their ratio stays, and a large penalty shrinks the cross-entropy's part.)",
        f"Conditioning of activations on {config.activation_tokens:,} fixed validation tokens (whole blocks); ff_gram on {config.headline_tokens:,}, or all there are, with the sampling of tokens inside its intervals.",
        *filter(None, [about.get("left_out", "")]),
    ]


# --------------------------------------------------------------------------------------------------------- comparison
def report_comparison(record: Record) -> Report:
    """Of the arms that have finished runs, with the original study's files. UserError when no arm has one."""
    folder, compare = record.folder, record.config
    names = {run: entry["arm"] for run, entry in record.manifest.get("jobs", {}).items()}
    shown = {variant: arm for arm, variant, _ in variants(compare)}
    named = [names.get(run) or arm for run, arm in zip(record.table["run"], record.table["arm"], strict=True)]
    runs = record.table.assign(variant=named)
    folders = {variant: [Path(p) for p in runs[runs["variant"] == variant]["folder"]] for variant in shown}
    folders = {arm: paths for arm, paths in folders.items() if paths}
    if not folders:
        first, why = next(iter(record.missing.items()))
        raise UserError(f"{folder}: no arm is done; first {first}: {why}; `retrofit resume {folder}` tries them again")
    history = {arm: [rows_of(path) for path in paths] for arm, paths in folders.items()}
    evaluations = {arm: [evaluations_of(rows) for rows in history[arm]] for arm in folders}
    merged = {arm: mean_rows(seeds) for arm, seeds in evaluations.items()}
    transports = {arm: [row for rows in history[arm] for row in rows if row["kind"] == "transport"] for arm in folders}
    manifest = read_manifest(next(iter(folders.values()))[0])
    about = manifest["about"]
    first_run = next(iter(folders.values()))[0]
    of_run = from_dict(RunConfig, read_yaml(first_run / "config.yaml"), str(first_run / "config.yaml"))
    arms = {arm: arm_metrics(merged[arm], history[arm]) for arm in folders}
    seeds_of = {variant: list(runs[runs["variant"] == variant]["seed"]) for variant in folders}
    write_original_files(record.folder, folders, seeds_of, evaluations, merged, about)

    front_table, fronts = front_tables(record)
    of_arms, *parts = comparison_tables(merged, arms, about)
    parts += [table for table in (front_table, tuning_table(record), gradient_table(history)) if table]
    start = runs[runs["run"] == START]["folder"]
    if len(start) and (ablation := ablation_table(rows_of(Path(start.iloc[0])))):
        parts.append(ablation)
    if moved := {arm: rows for arm, rows in transports.items() if rows}:
        parts.append(transport_table(moved))
    parts.append(
        Table("The arms", ("arm", "what is done"), [(variant, get_arm(shown[variant]).summary) for variant in folders])
    )
    for arm, rows in merged.items():
        of_layers = layer_table(rows[0], rows[-1], layer_names(manifest, rows[-1]), metrics_note(rows[-1], about))
        title = f"{of_layers.title}: {arm}, mean over seeds"
        parts.append(Table(title, of_layers.columns, of_layers.rows, of_layers.note, folded=True))
    plot_trajectories(evaluations, folder / "trajectories.png")
    pictures = [
        Picture(plot_trajectories(evaluations, folder / "figures" / "trajectories.svg"), "Conditioning and validation perplexity over training; thin lines are seeds."),
        Picture(plot_layers(merged, folder / "figures" / "layers.svg"), "Weight kappa of the up projections by layer: the start (grey) and the end of each arm, side by side."),
    ]  # fmt: skip
    pictures.insert(1, arms_picture(runs, shown, list(folders), of_arms, folder / "figures" / "arms.svg"))
    if fronts:
        drawn = plot_front(fronts, (FRONT_KAPPA, FRONT_PERPLEXITY), folder / "figures" / "front.svg")
        caption = "Weights of the penalties: change of the up projections' median kappa and of perplexity beside continued training, with 95 % intervals. In the shaded corner a penalty helps."
        pictures.insert(0, Picture(drawn, caption))  # it is the answer
    counts = ", ".join(f"{arm} {len(paths)}" for arm, paths in folders.items())
    shared = f"Runs by arm: {counts}. All start from the same weights; runs of one seed see the same batches in the same order."
    results = {
        "training_tokens_per_run": about["training_tokens"],
        "failed": len(record.missing),
        **about,
        "arms": arms,
    }
    return Report(
        "retrofit: arms compared", QUESTION, comparison_answer(record.claims), parts, pictures,
        [figures_in_words(merged, fronts), *notes(of_run, about, bool(compare.weights)), shared], results,
    )  # fmt: skip


def arms_picture(runs: Any, shown: Mapping[str, str], names: Sequence[str], numbers: Table, path: Path) -> Picture:
    """Perplexity and conditioning of every variant over the start's, over its numbers; one seed has no interval."""

    def over_start(measure: Callable[[str], Measure], variant: str, column: str) -> Interval | float | None:
        own, ends = runs[runs["variant"] == variant], [column, f"initial_{column}"]
        if not set(ends) <= set(own) or not all(math.isfinite(x) for name in ends for x in own[name]):
            return None
        if len(own) > 1:
            try:
                percent, _ = measure(shown[variant]).compute(own)
            except NotRun:
                return None
            estimate, low, high = (1 + x / 100 for x in (percent.estimate, percent.low, percent.high))
            return Interval(estimate, low, high, percent.n)
        return float((own[column] / own[f"initial_{column}"]).iloc[0])

    measures: dict[str, tuple[Callable[[str], Measure], str]] = {"perplexity": (perplexity_from_start, "val_ppl")}
    for column, label in (("up_kappa_median", "kappa of the up projections"), ("ff_gram", "ff_gram")):
        if column in runs and f"initial_{column}" in runs:
            measures[label] = (partial(conditioning_from_start, column), column)
    panels = {
        label: {label: [over_start(measure, name, column) for name in names]}
        for label, (measure, column) in measures.items()
    }
    caption = "Every arm at its end over the start (1), with 95 % intervals over seeds, and documents where it is perplexity; crosses are single runs."
    return Picture(plot_arms(names, panels, path, ratios=True), caption, numbers)


def write_original_files(
    folder: Path, folders: Mapping[str, Sequence[Path]], seeds_of: Mapping[str, Sequence[int]], evaluations: Mapping[str, Sequence[Rows]],
    merged: Mapping[str, Rows], about: Mapping[str, Any],
) -> None:  # fmt: skip
    """The original study's file of each arm, means over seeds with each seed's own beside them, and its summary."""
    for arm, rows in merged.items():
        saved = next((str(path / "model") for path in folders[arm] if (path / "model").is_dir()), None)
        both = zip(evaluations[arm], seeds_of[arm], strict=True)
        seeds = [original_values(arm, own) | {"seed": int(seed)} for own, seed in both]
        write_original(folder, arm, rows, checkpoint_path=saved, about=about, seeds=seeds)
    write_json(folder / SUMMARY, summarise({arm: result_of(arm, rows) for arm, rows in merged.items()}))


def arm_metrics(rows: Rows, history: Sequence[Rows]) -> dict[str, Any]:
    """An arm in results.json: its first and last evaluation, means over seeds, and means over updates."""
    names = ["val_ppl", "val_loss", "train_ppl", "ff_gram", "ff_gram_original"]
    names += [f"{name}_{mean}" for name in LAYERED for mean in ("median", "geometric_mean")]
    ends = {"initial": rows[0], "final": rows[-1]}
    means = [update_means(of_run) for of_run in history]
    return {
        "n": len(history),
        **{f"{when}_{name}": row[name] for when, row in ends.items() for name in names if name in row},
        **{name: sum(mean[name] for mean in means) / len(means) for name in means[0] if all(name in m for m in means)},
    }


def comparison_tables(
    merged: Mapping[str, Rows], arms: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]
) -> list[Table]:
    """The start and every arm's end: what is judged, and the rest."""
    keys = ("up_kappa_median", "act_kappa_centred_median", "down_kappa_median", "up_omega_median")
    first = next(iter(merged.values()))[0]
    up, act, *others = (first.get(key) for key in keys)
    judged: list[tuple[Any, ...]] = [("step 0", "", "", first["val_ppl"], "", first.get("ff_gram"), "", up, act)]
    rest: list[tuple[Any, ...]] = [("step 0", 0, first.get("ff_gram_original"), "", *others, "", "")]
    for name, rows in merged.items():
        last, means = rows[-1], arms[name]
        up, act, *others = (last.get(key) for key in keys)
        judged.append(
            (
                name, means["n"], about.get("lr"), last["val_ppl"], change(rows[0], last, "val_ppl"),
                last.get("ff_gram"), change(rows[0], last, "ff_gram"), up, act,
            )
        )  # fmt: skip
        norms = (means.get("mean_grad_norm"), means.get("clip_rate"))
        original = (last.get("ff_gram_original"), change(rows[0], last, "ff_gram_original"))
        rest.append((name, about["training_tokens"], *original, *others, *norms))
    columns = ("arm", "seeds", "lr", "perplexity", "change %", "ff_gram", "change %", "kappa up", "act kappa")
    note = f"Means over seeds. lr: of all arms. {metrics_note(next(iter(merged.values()))[-1], about)}"
    more = "grad norm: of the cross-entropy's gradient over all parameters before clipping, mean over updates."
    further = ("arm", "tokens", "ff_gram_original", "change %", "kappa down", "omega up", "grad norm", "clip rate")
    return [Table("Arms", columns, judged, note), Table("Arms: the rest", further, rest, more, folded=True)]


PENALTY = Wording(
    "The Gram penalty improves conditioning: the weights' condition number ends {size:.2g} % lower",
    "The Gram penalty does not improve conditioning: the weights' condition number ends no lower",
    "Whether the Gram penalty improves conditioning stays open",
    "Whether the Gram penalty improves conditioning was not run",
)
PENALTY_COST = Wording(
    "it lowers perplexity too", "perplexity ends {size:.2g} % higher", "what it does to perplexity stays open", "",
)  # fmt: skip
GEOMETRY = Wording(
    "{arm} helps: perplexity ends {{size:.2g}} % below continued training's",
    "{arm} does harm: perplexity ends {{size:,.0f}} % above continued training's",
    "Whether {arm} helps perplexity stays open",
    "Whether {arm} helps perplexity was not run",
)
CONDITIONED = Wording(
    "activations are better conditioned with it", "activations are not better conditioned with it", "", "",
)  # fmt: skip
GEOMETRIES = {
    "geometry_vs_standard": "full geometry", "geometry_ffn_vs_standard": "geometry without embeddings and down projections",
}  # fmt: skip
"""The claim on the original study's method, and that on the milder one, which is asked of short runs too."""
HELPS = Wording(
    "{which} helps: the weights' condition number falls by a tenth at no cost in perplexity",
    "{which} does not help: at no weight the condition number falls by a tenth without a cost in perplexity",
    "whether {which} helps without a cost in perplexity stays open",
    "whether {which} helps was not run long enough to say",
)
PENALTIES = {"gram_front": "the Gram penalty", "gram_scale_free_front": "the scale-free penalty"}


def comparison_answer(claims: Sequence[Mapping[str, Any]]) -> str:
    """Whether the methods improve conditioning and perplexity, by the verdicts: of a sweep of weights on the fronts, else
    on the Gram penalty and on the geometry that was run."""
    verdicts = {claim["id"]: claim["verdict"] for claim in claims}
    if "gram_kappa" not in verdicts:
        return sentences(said_of(claims, PENALTIES, HELPS)) or "No claim is asked of these runs."
    which = next((id_ for id_ in GEOMETRIES if verdicts.get(id_) != "not run"), "geometry_vs_standard")
    wording = Wording(*(text.format(arm=GEOMETRIES[which]) for text in astuple(GEOMETRY)))
    return sentences(
        [said(claims, "gram_kappa", PENALTY), said(claims, "gram_vs_standard", PENALTY_COST)],
        [said(claims, which, wording), said(claims, which.replace("_vs_standard", "_ff_gram"), CONDITIONED)],
    )


def figures_in_words(merged: Mapping[str, Rows], fronts: Mapping[str, Sequence[FrontPoint]]) -> str:
    """What a front has to give; without one what each arm did, and which of the original study's scenarios this is."""
    updates = int(next(iter(merged.values()))[-1]["step"])
    if fronts:
        return " ".join(front_answer(penalty, points, updates) for penalty, points in fronts.items())

    def moved(name: str) -> str:
        changes = {arm: change(rows[0], rows[-1], name) for arm, rows in merged.items()}
        return ", ".join(f"{arm} {percent:+,.1f} %" for arm, percent in changes.items() if percent is not None)

    answer = f"From step 0 to {updates} perplexity changes by: {moved('val_ppl')}."
    name = "ff_gram" if all("ff_gram" in rows[-1] for rows in merged.values()) else "ff_gram_original"
    if conditioning := moved(name):
        answer += f" {name} by: {conditioning}."
    if "geometry" not in merged:
        return answer
    if updates < ORIGINAL_UPDATES:
        return f"{answer} The original study's scenarios are of {ORIGINAL_UPDATES:,} updates."
    results = {name: result_of(name, merged[name]) for name in ("geometry", "standard") if name in merged}
    return f"{answer} {scenario(results['geometry'], results.get('standard'))}"


def front_answer(penalty: str, points: Sequence[FrontPoint], updates: int) -> str:
    """The most that a penalty does to kappa without its cost, and with it."""
    free = [p for p in points if p.perplexity.estimate <= FRONT_PERPLEXITY]
    most = min(points, key=lambda p: p.kappa.estimate)
    begin = f"Beside continued training, {updates} updates with {penalty} change the up projections' median kappa by "
    cost = f"perplexity by {most.perplexity.estimate:+.2g} %"
    if most in free:
        return f"{begin}{most.kappa.estimate:+.2g} % at most (weight {most.weight:g}), and {cost}."
    best = min(free, key=lambda p: p.kappa.estimate, default=None)
    at_no_cost = f"{best.kappa.estimate:+.2g} % (weight {best.weight:g})" if best else "nothing"
    return (
        f"{begin}{at_no_cost} where perplexity stays within {FRONT_PERPLEXITY:g} %, and by {most.kappa.estimate:+.2g} % at "
        f"most (weight {most.weight:g}), {cost}."
    )


# -------------------------------------------------------------------------------------------------------- measurement
def report_measure(record: Record) -> Report:
    """Of a measurement."""
    weights = read_csv(record.folder / "weights.csv", MatrixRow)
    activations = read_csv(record.folder / "activations.csv", ActivationRow)
    pictures = []
    if record.arrays:
        spectra = {row.name: record.arrays[row.name] for row in weights}
        figure = plot_spectra(spectra, record.folder / "figures" / "spectra.svg")
        pictures.append(Picture(figure, "Singular values over the largest, by matrix."))
    figure = plot_kappas(weights, record.folder / "figures" / "kappa.svg")
    pictures.append(Picture(figure, "Condition number of every matrix, in order of depth."))
    worst = max(weights, key=lambda row: row.kappa)
    middle = {row.what: shown(row.median) for row in summary_rows(weights, activations) if row.median is not None}
    answer = f"{len(weights)} matrices; the worst conditioned is {worst.name}, kappa {number(shown(worst.kappa))}."
    if "kappa, up" in middle:
        answer += f" The up projections' median kappa is {number(middle['kappa, up'])}."
    if {"act_kappa_centred", "act_kappa_without_largest"} <= set(middle):
        every, without = (number(middle[name]) for name in ("act_kappa_centred", "act_kappa_without_largest"))
        answer += f" The FFN activations' is {every}, and {without} without their {LEFT_OUT} largest directions."
    question = f"How well conditioned are the weights and activations of {record.config.model}?"
    why_none = record.manifest.get("why_no_activations", "")
    notes = record.manifest.get("notes", {})
    of_weights, of_activations, summary = tables(weights, activations, why_none, notes)
    parts = [summary, of_activations, dataclasses.replace(of_weights, folded=True)]
    return Report("retrofit measure", question, answer, parts, pictures)
