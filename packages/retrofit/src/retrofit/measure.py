"""`retrofit measure`: conditioning of every weight matrix of a model, and of its FFN activations on fixed tokens."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from retrofit.blocks import find_blocks, find_matrices
from retrofit.config import MeasureConfig, RunOptions
from retrofit.data import cut_blocks, fingerprint, read_source
from retrofit.models import context_of, load_model, load_tokenizer, weights_fingerprint
from retrofit.record import LIBRARIES, STUDY
from retrofit.report import table_text
from retrofit.spectra import (
    RELATIVE_RIDGE,
    activation_kappa,
    activation_moments,
    gaussian_kappa,
    seed_ff_gram_layer,
    singular_values,
    weight_spectrum,
)
from studycore.claims import Statement, judge, not_run
from studycore.configuration import to_dict
from studycore.devices import choose_device, describe, set_threads
from studycore.errors import UserError
from studycore.figures import COLOURS, new_figure, save_figure
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
    """One weight matrix; shape is [outputs, inputs]. None stands for infinity: a singular matrix."""

    name: str
    shape: str
    kappa: float | None
    gram_kappa: float | None
    omega: float | None
    effective_rank: float
    stable_rank: float
    spectral_norm: float


@dataclass(frozen=True)
class ActivationRow:
    """What enters one block's down projection."""

    name: str
    width: int
    tokens: int
    act_kappa_centred: float | None
    act_kappa_uncentred: float | None
    seed_ff_gram: float | None


def measure_weights(model: Any, embeddings: bool = False) -> tuple[list[MatrixRow], dict[str, Tensor]]:
    """(rows, singular values by name) of every linear map, and of embeddings on request."""
    rows, spectra = [], {}
    for matrix in find_matrices(model, embeddings):
        s_k = singular_values(matrix.weight_OI).cpu()
        found = {key: _finite(value) for key, value in asdict(weight_spectrum(s_k)).items()}
        outputs, inputs = matrix.weight_OI.shape
        rows.append(MatrixRow(matrix.name, f"{outputs} x {inputs}", **found))  # type: ignore[arg-type]
        spectra[matrix.name] = s_k
    return rows, spectra


def measure_activations(model: Any, ids_NB: Tensor) -> list[ActivationRow]:
    """One row per FFN block, from the same tokens."""
    import torch

    blocks = find_blocks(model)
    wide = activation_moments(model, blocks, ids_NB)
    narrow = activation_moments(model, blocks, ids_NB, dtype=torch.float32)
    return [
        ActivationRow(
            block.name,
            len(m.sum_F),
            m.tokens,
            _finite(activation_kappa(m, centred=True)),
            _finite(activation_kappa(m, centred=False)),
            _finite(seed_ff_gram_layer(n)),
        )
        for block, m, n in zip(blocks, wide, narrow, strict=True)
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def measure(config: MeasureConfig, folder: Path, options: RunOptions, argv: Sequence[str]) -> Path:
    """Writes the run folder (weights.csv, activations.csv, figures, report), prints the tables, returns the folder."""
    device, reason = choose_device(options.device)
    set_threads(options.threads)
    print(f"retrofit measures on {device} ({reason})")
    model, commit = load_model(config.model, config.model_revision)
    blocks = find_blocks(model)
    model.to(device).eval()
    ids_NB, fingerprints = None, {"model": weights_fingerprint(model)}
    if config.dataset is not None:
        if config.block_size > context_of(model):
            raise UserError(
                f"block_size: {config.block_size} is longer than the model's context of {context_of(model)} tokens; give at most that"
            )
        tokenizer = load_tokenizer(config.model, config.model_revision)
        # Enough documents, whatever their length: a token needs a character at least.
        texts = read_source(config, config.dataset, config.validation_split, config.activation_tokens)
        if not texts:
            raise UserError(f"--dataset: '{config.dataset}' has no documents; name another, or null for weights alone")
        text = cut_blocks("measured", texts, tokenizer, config, whole=False)
        ids_NB = text.ids_NT[: -(-config.activation_tokens // config.block_size), :-1]
        fingerprints["text"] = fingerprint(text)
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
        weights, spectra = measure_weights(model, config.embeddings)
        activations = measure_activations(model, ids_NB) if ids_NB is not None else []
        rows: list[Any] = [*weights, *activations]
        for i, row in enumerate(rows):
            run.metrics.append({"step": i, "kind": type(row).__name__, **asdict(row)})
        run.metrics.compact()
        write_csv(folder / "weights.csv", weights)
        tables = [Table("Weights", ("matrix", *list(asdict(weights[0]))[1:]), [_cells(row) for row in weights])]
        if activations:
            write_csv(folder / "activations.csv", activations)
            note = f"Ridge {RELATIVE_RIDGE:g} of the mean eigenvalue; seed_ff_gram: the seed study's recipe, + 1e-5 I."
            columns = ("block", *list(asdict(activations[0]))[1:])
            tables.append(Table("FFN activations", columns, [_cells(row) for row in activations], note))
        claim = against_gaussian(
            {b.up.name: spectra[b.up.name] for b in blocks}, [b.up.weight_OI.shape for b in blocks]
        )
        kappas = [row.kappa for row in weights if row.kappa is not None]
        metrics = {"matrices": len(weights), "median_kappa": sorted(kappas)[len(kappas) // 2] if kappas else None}
        write_results(folder, STUDY, "measure", metrics, [claim])
        pictures = [
            Picture(plot_spectra(spectra, folder / "figures" / "spectra.svg"), "Singular values over the largest, by matrix."),
            Picture(plot_kappas(weights, folder / "figures" / "kappa.svg"), "Condition number of every matrix, in order of depth."),
        ]  # fmt: skip
        worst = max(weights, key=lambda row: math.inf if row.kappa is None else row.kappa)
        answer = f"{len(weights)} matrices; the worst conditioned is {worst.name}, kappa {'infinite' if worst.kappa is None else f'{worst.kappa:.3g}'}."
        question = f"How well conditioned are the weights and activations of {config.model}?"
        write_report(folder, Report("retrofit measure", question, answer, tables, pictures))
        for table in tables:
            print(f"\n{table.title}\n{table_text(table)}")
        print(claims_text([claim]))
        run.update()
        run.finish("done", f"{len(weights)} matrices")
    print(f"report: {folder / 'report.html'}")
    return folder


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


def _cells(row: Any) -> list[Any]:
    return ["infinite" if value is None else value for value in asdict(row).values()]


def plot_spectra(spectra: dict[str, Tensor], path: Path) -> Path:
    """s_i / s_1 over i / k, one line per matrix, coloured by kind of matrix."""
    figure, axis = new_figure(6.5, 3.8)
    kinds = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in spectra))
    told: set[str] = set()
    for name, s_k in spectra.items():
        kind = name.rsplit(".", 1)[-1]
        y = (s_k / s_k.max()).clamp_min(1e-12).tolist() if s_k.max() > 0 else [1e-12] * len(s_k)
        x = [i / max(len(y) - 1, 1) for i in range(len(y))]
        label = kind if kind not in told else None
        told.add(kind)
        axis.plot(x, y, color=COLOURS[kinds.index(kind) % len(COLOURS)], alpha=0.6, linewidth=0.9, label=label)
    axis.set(xlabel="index over rank", ylabel="singular value over the largest", yscale="log")
    axis.legend(fontsize=7, ncols=2)
    return save_figure(figure, path)


def plot_kappas(rows: Sequence[MatrixRow], path: Path) -> Path:
    """kappa by matrix, in order of depth; singular ones are left out."""
    figure, axis = new_figure(6.5, 3.2)
    kinds = list(dict.fromkeys(row.name.rsplit(".", 1)[-1] for row in rows))
    for i, kind in enumerate(kinds):
        own = [row.kappa for row in rows if row.name.rsplit(".", 1)[-1] == kind and row.kappa is not None]
        axis.plot(range(len(own)), own, marker="o", markersize=3, color=COLOURS[i % len(COLOURS)], label=kind)
    axis.set(xlabel="matrix of its kind, from the input on", ylabel="kappa(W)", yscale="log")
    axis.legend(fontsize=7, ncols=2)
    return save_figure(figure, path)
