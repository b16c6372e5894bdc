"""`retrofit measure`: conditioning of every weight matrix of a model, and of its FFN activations on fixed tokens."""

import math
import sys
from typing import Any

from torch import Tensor
from tqdm import tqdm

from retrofit.config import MeasureConfig, check_local
from retrofit.data import cut_blocks, fingerprint, read_source
from retrofit.metrics.matrices import measure_activations, measure_weights
from retrofit.metrics.matrix_rows import ActivationRow, plain, summarise, tables, token_note, write_csv
from retrofit.metrics.summaries import median
from retrofit.model import context_of, load_model, load_tokenizer, weights_fingerprint
from studycore.errors import UserError
from studycore.report import table_text
from studycore.run import Run


def measure(config: MeasureConfig, run: Run) -> None:
    """Measures in the open run: weights.csv, activations.csv, the spectra. UserError for what can't be measured.

    Text that cannot be read leaves out the activations, and the report says why.
    """
    if config.dataset is not None:
        check_local("--dataset", config.dataset)
    model, commit = load_model(config.model, config.model_revision)
    model.to(run.device).eval()
    if config.dataset is not None and config.block_size > context_of(model):
        raise UserError(
            f"block_size: {config.block_size} is longer than the model's context of {context_of(model)} tokens; give at most that"
        )
    weights, spectra = measure_weights(model, config.embeddings)
    fingerprints, ids_NB, why_none = {"model": weights_fingerprint(model)}, None, "No dataset is given."
    tokenizer: Any = None
    if config.dataset is not None:
        try:
            tokenizer = load_tokenizer(config.model, config.model_revision)
            ids_NB, fingerprints["text"] = read_tokens(config, tokenizer)
        except UserError as error:
            why_none = str(error)
    run.begin(data=fingerprints)
    activations: list[ActivationRow] = []
    if ids_NB is not None:
        hidden = run.quiet or run.dry or not run.is_main or not sys.stderr.isatty()
        with tqdm(total=ids_NB.numel(), unit="token", desc="activations", disable=hidden) as bar:
            activations = measure_activations(model, ids_NB, tokenizer.convert_ids_to_tokens, bar.update)
    run.about(about={"hub_commit": commit}, why_no_activations="" if activations else why_none)

    if run.is_main:
        write_csv(run.folder / "weights.csv", weights)
        if activations:
            write_csv(run.folder / "activations.csv", activations)
        rows: list[Any] = [*weights, *activations]
        for number, row in enumerate(rows):
            run.log({"step": number, "kind": type(row).__name__, **plain(row)})
        for table in tables(weights, activations, why_none):
            run.say(f"\n{table.title}\n{table_text(table)}" + (f"\n{table.note}" if table.note else ""))
        if activations and (warning := token_note(activations)[1]):
            enough = 4 * max(row.width for row in activations)
            run.say(f"retrofit: warning: {warning}; give --activation-tokens {enough}")
        middle = median([row.kappa for row in weights])
        summary = [plain(row) for row in summarise(weights, activations)]
        metrics = {
            "matrices": len(weights), "median_kappa": middle if math.isfinite(middle) else None, "summary": summary,
        }  # fmt: skip
        run.results(metrics, spectra)


def read_tokens(config: MeasureConfig, tokenizer: Any) -> tuple[Tensor, str]:
    """(ids [blocks, block_size], their fingerprint) of the text. UserError when it cannot be read."""
    assert config.dataset is not None
    # Enough documents, whatever their length: a token needs a character at least.
    texts = read_source(config, config.dataset, config.validation_split, config.activation_tokens)
    if not texts:
        raise UserError(f"--dataset: '{config.dataset}' has no documents; name another, or null for weights alone")
    text = cut_blocks("measured", texts, tokenizer, config, whole=False)
    return text.ids_NT[: -(-config.activation_tokens // config.block_size), :-1], fingerprint(text)
