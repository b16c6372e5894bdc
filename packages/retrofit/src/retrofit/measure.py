"""`retrofit measure`: conditioning of every weight matrix of a model, and of its FFN activations on fixed tokens."""

import math
import sys
from statistics import median
from typing import Any

from tqdm import tqdm

from retrofit.blocks import left_out
from retrofit.config import EMBEDDED_DATASET, MeasureConfig
from retrofit.data import Blocks, cut_blocks, read_source
from retrofit.metrics.matrices import measure_activations, measure_weights
from retrofit.metrics.matrix_rows import ActivationRow, plain, summarise, token_note, write_csv
from retrofit.model import load_model
from retrofit.tables import tables
from studycore.errors import UserError
from studycore.files import check_local
from studycore.hashes import tensor_sha256
from studycore.language.pretrained import context_of, load_tokenizer, vocabulary_of, weights_fingerprint
from studycore.report import table_text
from studycore.run import Run


def measure(config: MeasureConfig, run: Run) -> None:
    """Measures in the open run: weights.csv, activations.csv, the spectra. UserError for what can't be measured.

    The default text need not be there: then the activations are left out, and the report says why.
    """
    if config.dataset is not None:
        check_local("--dataset", config.dataset)
    model, commit = load_model(config.model, config.model_revision)
    model.to(run.device).eval()
    lacking = left_out(model)
    if lacking.sentences:
        run.say(f"note: {lacking.sentences}")
    if config.dataset is not None and config.block_size > context_of(model):
        raise UserError(
            f"block_size: {config.block_size} is longer than the model's context of {context_of(model)} tokens; give at most that"
        )
    fingerprints, text, why_none = {"model": weights_fingerprint(model)}, None, "No dataset is given."
    tokenizer: Any = None
    if config.dataset is not None:
        try:
            tokenizer = load_tokenizer(config.model, config.model_revision)
            text = read_blocks(config, tokenizer, vocabulary_of(model))
            fingerprints["text"] = tensor_sha256(text.ids_NT)
        except UserError as error:
            if config.dataset != EMBEDDED_DATASET:
                raise
            why_none = str(error)
    run.begin(data=fingerprints)
    weights, spectra = measure_weights(model, config.embeddings, run.check_stop)
    activations: list[ActivationRow] = []
    if text is not None:
        ids_NB = text.ids_NT[: -(-config.activation_tokens // config.block_size), :-1]
        hidden = run.quiet or run.dry or not run.is_main or not sys.stderr.isatty()
        with tqdm(total=ids_NB.numel(), unit="token", desc="activations", disable=hidden) as bar:

            def progress(tokens: int) -> None:
                run.check_stop()
                bar.update(tokens)

            activations = measure_activations(model, ids_NB, tokenizer.convert_ids_to_tokens, progress)
        why_none = "" if activations else lacking.of_activations
    bos = f"Beginning-of-text token: {text.bos}." if text is not None else ""
    notes = {"weights": lacking.of_weights, "activations": f"{bos} {lacking.of_activations}".strip()}
    about = {"hub_commit": commit, "end_of_text": config.end_of_text, "bos": text.bos if text is not None else None}
    run.about(about=about, why_no_activations=why_none, notes=notes)

    if run.is_main:
        write_csv(run.folder / "weights.csv", weights)
        if activations:
            write_csv(run.folder / "activations.csv", activations)
        rows: list[Any] = [*weights, *activations]
        for number, row in enumerate(rows):
            run.log({"step": number, "kind": type(row).__name__, **plain(row)})
        for table in tables(weights, activations, why_none, notes):
            run.say(f"\n{table.title}\n{table_text(table)}" + (f"\n{table.note}" if table.note else ""))
        if activations and (warning := token_note(activations)[1]):
            enough = 4 * max(row.width for row in activations)
            run.say(f"retrofit: warning: {warning}; give --activation-tokens {enough}")
        middle = median([row.kappa for row in weights])
        summary = [plain(row) for row in summarise(weights, activations)]
        metrics = {
            "matrices": len(weights), "median_kappa": middle if math.isfinite(middle) else None, "summary": summary,
            "left_out_share": lacking.share, "left_out": list(lacking.names), "bos": about["bos"],
        }  # fmt: skip
        run.results(metrics, spectra)


def read_blocks(config: MeasureConfig, tokenizer: Any, vocabulary: int) -> Blocks:
    """The text. UserError when it cannot be read."""
    assert config.dataset is not None
    # Enough documents, whatever their length: a token needs a character at least.
    texts = read_source(config, config.dataset, config.validation_split, config.activation_tokens)
    if not texts:
        raise UserError(f"--dataset: '{config.dataset}' has no documents; name another, or null for weights alone")
    return cut_blocks("measured", texts, tokenizer, config, vocabulary, whole=False)
