"""`retrofit measure`: conditioning of every weight matrix of a model, and of its FFN activations on fixed tokens."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from retrofit.blocks import find_blocks, find_matrices
from retrofit.config import MeasureConfig, RunOptions
from retrofit.data import cut_blocks, fingerprint, read_source
from retrofit.models import check_local, context_of, load_model, load_tokenizer, weights_fingerprint
from retrofit.record import LIBRARIES, STUDY
from retrofit.report import layer_ticks, look, table_text
from retrofit.spectra import (
    RELATIVE_RIDGE,
    activation_kappa,
    activation_moments,
    enough_tokens,
    few_tokens,
    gaussian_kappa,
    geometric_mean,
    median,
    noise_floor,
    seed_ff_gram_layer,
    singular_values,
    weight_spectrum,
)
from studycore.claims import Statement, judge, not_run
from studycore.configuration import to_dict
from studycore.devices import choose_device, describe, set_threads
from studycore.errors import UserError
from studycore.figures import new_figure, save_figure
from studycore.files import write_atomic
from studycore.report import Picture, Report, Table, claims_text, write_report, write_results
from studycore.runs import create_run, recording
from studycore.statistics import Interval, mean_interval

WORSE_THAN_RANDOM = Statement(
    "up_kappa_over_gaussian",
    "Up projections are more than a tenth worse conditioned than Gaussian matrices of their shape",
    "this study",
    "worse",
    "x, kappa over a Gaussian matrix's",
    1.1,
    "above",
)


@dataclass(frozen=True)
class MatrixRow:
    """One weight matrix; shape is [outputs, inputs]. A singular matrix's kappas and omega are infinite."""

    name: str
    role: str
    shape: str
    kappa: float
    gram_kappa: float
    omega: float
    effective_rank: float
    stable_rank: float
    spectral_norm: float


@dataclass(frozen=True)
class ActivationRow:
    """What enters one block's down projection; None where there are fewer tokens than the block is wide."""

    name: str
    width: int
    tokens: int
    act_kappa_centred: float | None
    act_kappa_uncentred: float | None
    seed_ff_gram: float | None


@dataclass(frozen=True)
class SummaryRow:
    """One number over matrices of a role, or over layers; infinite where too many are, None where it was not run."""

    what: str
    count: int
    singular: int
    median: float | None
    geometric_mean: float | None


ROLES = ("up", "down", "gate", "attention", "embeddings", "other")
ACTIVATION_METRICS = ("act_kappa_centred", "act_kappa_uncentred", "seed_ff_gram")


def roles_of_matrices(model: Any) -> dict[str, str]:
    """Name -> role of every matrix, embeddings too."""
    parts = {getattr(b, part).name: part for b in find_blocks(model) for part in ROLES[:3] if getattr(b, part)}
    tables = {id(e.weight) for e in (model.get_input_embeddings(), model.get_output_embeddings()) if e is not None}

    def role(name: str, module: nn.Module) -> str:
        if isinstance(module, nn.Embedding) or id(module.weight) in tables:
            return "embeddings"
        return parts.get(name, "attention" if "attn" in name or "attention" in name else "other")

    return {matrix.name: role(matrix.name, matrix.module) for matrix in find_matrices(model, embeddings=True)}


def measure_weights(model: Any, embeddings: bool = False) -> tuple[list[MatrixRow], dict[str, Tensor]]:
    """(rows, singular values by name) of every linear map, and of embeddings on request."""
    rows, spectra, roles = [], {}, roles_of_matrices(model)
    for matrix in find_matrices(model, embeddings):
        s_k = singular_values(matrix.weight_OI, matrix.name).cpu()
        outputs, inputs = matrix.weight_OI.shape
        shape = f"{outputs} x {inputs}"
        rows.append(MatrixRow(matrix.name, roles[matrix.name], shape, **asdict(weight_spectrum(s_k))))
        spectra[matrix.name] = s_k
    return rows, spectra


def measure_activations(model: Any, ids_NB: Tensor) -> list[ActivationRow]:
    """One row per FFN block, from the same tokens."""
    import torch

    blocks = find_blocks(model)
    wide = activation_moments(model, blocks, ids_NB)
    narrow = activation_moments(model, blocks, ids_NB, dtype=torch.float32)
    rows = []
    for block, m, n in zip(blocks, wide, narrow, strict=True):
        values: list[float | None] = [None, None, None]
        if enough_tokens(m.tokens, len(m.sum_F)):
            values = [activation_kappa(m, centred=True), activation_kappa(m, centred=False), seed_ff_gram_layer(n)]
        rows.append(ActivationRow(block.name, len(m.sum_F), m.tokens, *values))
    return rows


def summarise(weights: Sequence[MatrixRow], activations: Sequence[ActivationRow]) -> list[SummaryRow]:
    """kappa by role of matrix, and what was measured of activations over layers."""
    rows = []
    for role in ROLES:
        if kappas := [row.kappa for row in weights if row.role == role]:
            rows.append(_summary(f"kappa, {role}", kappas))
    for name in ACTIVATION_METRICS:
        rows.append(_summary(name, [getattr(row, name) for row in activations]))
    return rows


def _summary(what: str, values: Sequence[float | None]) -> SummaryRow:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return SummaryRow(what, len(known), 0, None, None)
    singular = sum(map(math.isinf, known))
    return SummaryRow(what, len(known), singular, median(known), geometric_mean(known))


def _plain(row: Any) -> dict[str, Any]:
    """As JSON has it: null for infinity too, which `singular` or a null kappa tells."""
    return {
        key: None if isinstance(value, float) and math.isinf(value) else value for key, value in asdict(row).items()
    }


def read_tokens(config: MeasureConfig) -> tuple[Tensor, str]:
    """(ids [blocks, block_size], their fingerprint) of the text. UserError when it cannot be read."""
    assert config.dataset is not None
    tokenizer = load_tokenizer(config.model, config.model_revision)
    # Enough documents, whatever their length: a token needs a character at least.
    texts = read_source(config, config.dataset, config.validation_split, config.activation_tokens)
    if not texts:
        raise UserError(f"--dataset: '{config.dataset}' has no documents; name another, or null for weights alone")
    text = cut_blocks("measured", texts, tokenizer, config, whole=False)
    return text.ids_NT[: -(-config.activation_tokens // config.block_size), :-1], fingerprint(text)


def token_note(activations: Sequence[ActivationRow]) -> tuple[str, str]:
    """(what the number of tokens means, a warning or nothing)."""
    widest = max(row.width for row in activations)
    tokens = activations[0].tokens
    if not enough_tokens(tokens, widest):
        why = f"{tokens} tokens are fewer than the FFN's width {widest}, where only the ridge would be measured"
        return f"Not run: {why}; give --activation-tokens {4 * widest} or more.", why
    floor = f"White noise would have {noise_floor(tokens, widest):.3g} on {tokens} tokens of width {widest} (Marchenko-Pastur)."
    return floor, few_tokens(tokens, widest)


def measure(config: MeasureConfig, folder: Path, options: RunOptions, argv: Sequence[str]) -> Path:
    """Writes the run folder (weights.csv, activations.csv, figures, report), prints the tables, returns the folder."""
    device, reason = choose_device(options.device)
    set_threads(options.threads)
    print(f"retrofit measures on {device} ({reason})")
    if config.dataset is not None:
        check_local("--dataset", config.dataset)
    model, commit = load_model(config.model, config.model_revision)
    blocks = find_blocks(model)
    model.to(device).eval()
    if config.dataset is not None and config.block_size > context_of(model):
        raise UserError(
            f"block_size: {config.block_size} is longer than the model's context of {context_of(model)} tokens; give at most that"
        )
    weights, spectra = measure_weights(model, config.embeddings)
    fingerprints = {"model": weights_fingerprint(model)}
    run = create_run(
        folder,
        study=STUDY,
        verb="measure",
        config=to_dict(config),
        argv=list(argv),
        seeds=[],
        devices=describe(device),
        data=fingerprints,
        source=Path(__file__),
        libraries=LIBRARIES,
    )
    with recording(run):
        run.update(about={"hub_commit": commit})
        write_csv(folder / "weights.csv", weights)
        tables = [table_of("Weights", weights)]
        show(tables[0])

        activations, why = [], "No dataset is given."
        if config.dataset is not None:
            try:
                ids_NB, fingerprints["text"] = read_tokens(config)
                activations = measure_activations(model, ids_NB)
            except UserError as error:
                why = str(error)
        if activations:
            run.update(data_fingerprints=fingerprints)
            write_csv(folder / "activations.csv", activations)
            tokens, warning = token_note(activations)
            if warning:
                print(f"retrofit: warning: {warning}; give --activation-tokens {4 * max(r.width for r in activations)}")
            ridge = f"Ridge {RELATIVE_RIDGE:g} of the mean eigenvalue; seed_ff_gram: the seed study's recipe, + 1e-5 I."
            tables.append(table_of("FFN activations", activations, f"{ridge} {tokens}"))
        else:
            tables.append(Table("FFN activations", ("what", "value"), [(n, None) for n in ACTIVATION_METRICS], why))
        summary = summarise(weights, activations)
        tables.append(table_of("Summary", summary, "kappa over matrices of a role; activations over layers."))
        for table in tables[1:]:
            show(table)

        rows: list[Any] = [*weights, *activations]
        for i, row in enumerate(rows):
            run.metrics.append({"step": i, "kind": type(row).__name__, **_plain(row)})
        run.metrics.compact()
        claim = against_gaussian(
            {b.up.name: spectra[b.up.name] for b in blocks}, [b.up.weight_OI.shape for b in blocks]
        )
        middle = median([row.kappa for row in weights])
        metrics = {
            "matrices": len(weights),
            "median_kappa": middle if math.isfinite(middle) else None,
            "summary": [_plain(row) for row in summary],
        }
        write_results(folder, STUDY, "measure", metrics, [claim])
        pictures = [
            Picture(plot_spectra(spectra, folder / "figures" / "spectra.svg"), "Singular values over the largest, by matrix."),
            Picture(plot_kappas(weights, folder / "figures" / "kappa.svg"), "Condition number of every matrix, in order of depth."),
        ]  # fmt: skip
        worst = max(weights, key=lambda row: row.kappa)
        answer = f"{len(weights)} matrices; the worst conditioned is {worst.name}, kappa {_cell(worst.kappa)}."
        question = f"How well conditioned are the weights and activations of {config.model}?"
        write_report(folder, Report("retrofit measure", question, answer, tables, pictures))
        print(claims_text([claim]))
        run.update()
        run.finish("done", f"{len(weights)} matrices")
    print(f"report: {folder / 'report.html'}")
    return folder


def table_of(title: str, rows: Sequence[Any], note: str = "") -> Table:
    """A table of dataclasses, columns named by their fields."""
    return Table(title, tuple(asdict(rows[0])), [[_cell(v) for v in asdict(row).values()] for row in rows], note)


def show(table: Table) -> None:
    print(f"\n{table.title}\n{table_text(table)}")
    if table.note:
        print(table.note)


def _cell(value: Any) -> Any:
    return "infinite" if value == math.inf else value


def against_gaussian(spectra: dict[str, Tensor], shapes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The claim that training has left up projections worse conditioned than chance would."""
    logs = []
    for s_k, (outputs, inputs) in zip(spectra.values(), shapes, strict=True):
        ratio = weight_spectrum(s_k).kappa / gaussian_kappa(outputs, inputs)
        if math.isfinite(ratio) and ratio > 0:
            logs.append(math.log(ratio))
    if len(logs) < 2:
        return not_run(WORSE_THAN_RANDOM, f"Needs 2 or more up projections of full rank that are not square; there are {len(logs)}.")  # fmt: skip
    mean = mean_interval(logs)
    interval = Interval(math.exp(mean.estimate), math.exp(mean.low), math.exp(mean.high), mean.n)
    return judge(WORSE_THAN_RANDOM, interval, "Geometric mean over layers, Student's t.")


def write_csv(path: Path, rows: Sequence[Any]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_atomic(path, buffer.getvalue())


def kind_of(name: str) -> str:
    """The last two parts of a matrix's name that are no numbers: attn.c_proj is another kind than mlp.c_proj."""
    return ".".join([part for part in name.split(".") if not part.isdigit()][-2:])


def plot_spectra(spectra: dict[str, Tensor], path: Path) -> Path:
    """s_i / s_1 over i / k, one line per matrix, drawn by kind of matrix."""
    figure, axis = new_figure(7.5, 3.8)
    kinds = list(dict.fromkeys(map(kind_of, spectra)))
    told: set[str] = set()
    for name, s_k in spectra.items():
        kind = kind_of(name)
        y = (s_k / s_k.max()).clamp_min(1e-12).tolist() if s_k.max() > 0 else [1e-12] * len(s_k)
        x = [i / max(len(y) - 1, 1) for i in range(len(y))]
        label = kind if kind not in told else None
        told.add(kind)
        colour, line, _ = look(kinds.index(kind))
        axis.plot(x, y, color=colour, linestyle=line, alpha=0.6, linewidth=0.9, label=label)
    axis.set(xlabel="index over rank", ylabel="singular value over the largest", yscale="log")
    figure.legend(fontsize=7, loc="outside right upper")
    return save_figure(figure, path)


def plot_kappas(rows: Sequence[MatrixRow], path: Path) -> Path:
    """kappa by matrix, in order of depth; singular ones leave a gap."""
    figure, axis = new_figure(7.5, 3.4)
    deepest = 0
    for i, kind in enumerate(dict.fromkeys(kind_of(row.name) for row in rows)):
        own = [row.kappa if math.isfinite(row.kappa) else math.nan for row in rows if kind_of(row.name) == kind]
        colour, line, marker = look(i)
        deepest = max(deepest, len(own))
        axis.plot(range(len(own)), own, marker=marker, markersize=4, color=colour, linestyle=line, label=kind)
    axis.set(xlabel="layer", ylabel="kappa(W)", yscale="log", xticks=layer_ticks(deepest))
    figure.legend(fontsize=7, loc="outside right upper")
    return save_figure(figure, path)
