"""The rows of metrics.jsonl that evaluations make: perplexities, and the conditioning of weights and activations."""

import math
from collections.abc import Callable, Sequence
from statistics import geometric_mean
from typing import Any

import torch
from torch import Tensor

from retrofit.blocks import FeedForward, Projection
from retrofit.config import RunConfig
from retrofit.data import Blocks, Data
from retrofit.metrics.perplexity import Evaluation
from retrofit.metrics.spectra import (
    WeightSpectrum,
    activation_kappa,
    activation_moments,
    ff_gram_of_windows,
    ff_gram_original_of_layer,
    spectrum_of,
)
from retrofit.metrics.summaries import by_layer, enough_tokens
from retrofit.metrics.windows import Floats, ff_gram_interval
from studycore.errors import UserError


def perplexity_row(
    config: RunConfig, data: Data, evaluate: Callable[[Blocks], Evaluation], end: bool, updates: int
) -> tuple[dict[str, Any], Evaluation | None]:
    """Perplexities after so many updates: on the trajectory's validation and training blocks, at both ends on the whole named set.

    At both ends also the evaluation of the whole set. UserError when one is infinite.
    """
    part = data.validation.first(config.trajectory_blocks)
    whole = data.validation.first(config.validation_blocks)
    on_part = evaluate(part)
    on_train = evaluate(data.train.first(config.trajectory_blocks))
    row = {
        "trajectory_loss": on_part.loss,
        "trajectory_ppl": on_part.perplexity,
        "train_loss": on_train.loss,
        "train_ppl": on_train.perplexity,
    }
    on_whole = None
    if end:
        on_whole = on_part if whole.name == part.name else evaluate(whole)
        row |= {"val_loss": on_whole.loss, "val_ppl": on_whole.perplexity, "val_tokens": on_whole.tokens}
    if not all(math.isfinite(value) for value in row.values()):
        if updates == 0:
            raise UserError(
                f"--model: '{config.model}' has a perplexity that is not finite before any update; check that model, text and precision belong together"
            )
        raise UserError(f"lr: {config.lr} made a perplexity infinite; lower it, or gram_weight {config.gram_weight}")
    return row, on_whole


def conditioning_row(
    model: Any,
    blocks: Sequence[FeedForward],
    data: Data,
    config: RunConfig,
    end: bool,
    heed: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Conditioning of weights, and of activations on the fixed tokens; lists go by layer. At both ends in full.

    `heed` is called for each matrix and batch.
    """

    def heeded(projection: Projection) -> WeightSpectrum:
        heed()
        return spectrum_of(projection)[0]

    row: dict[str, Any] = {}
    for name in ("up", "down"):
        projections = [getattr(block, name) for block in blocks]
        spectra = [heeded(projection) for projection in projections]
        for key in ("kappa", "omega"):
            row |= by_layer(f"{name}_{key}", [getattr(spectrum, key) for spectrum in spectra])
    ids_NB, seen = activation_ids(data, config), [block for block in blocks if block.has_features]
    # With fewer tokens than the width only the ridge would be measured: then it is not run.
    if seen and enough_tokens(ids_NB.numel(), max(block.down.weight_OI.shape[1] for block in seen)):
        moments = activation_moments(model, seen, ids_NB, dtype=torch.float32, progress=lambda tokens: heed())
        layers = [ff_gram_original_of_layer(m) for m in moments]
        row["ff_gram_original_layers"] = [value if math.isfinite(value) else None for value in layers]
        if infinite := sum(not math.isfinite(value) for value in layers):  # then their mean is nothing
            row["ff_gram_original_infinite"] = infinite
        else:
            row["ff_gram_original"] = sum(layers) / len(layers)
        row["activation_tokens"] = moments[0].tokens
        if end:
            moments = activation_moments(model, seen, ids_NB, progress=lambda tokens: heed())
            for key, centred in (("act_kappa_centred", True), ("act_kappa_uncentred", False)):
                row |= by_layer(key, [activation_kappa(m, centred) for m in moments])
    return row


def ff_gram_row(
    model: Any,
    blocks: Sequence[FeedForward],
    data: Data,
    config: RunConfig,
    heed: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], Floats | None]:
    """(ff_gram: geometric mean over layers on headline_tokens fixed tokens, with its interval; what the windows give).

    The interval is of the sampling of tokens: see windows.ff_gram_interval. Nothing for fewer tokens than the FFN's width.
    `heed` is called for each batch.
    """
    ids_NB, seen = fixed_ids(data, config, config.headline_tokens), [block for block in blocks if block.has_features]
    if not seen or not enough_tokens(ids_NB.numel(), max(block.down.weight_OI.shape[1] for block in seen)):
        return {}, None
    layers, extremes = ff_gram_of_windows(model, seen, ids_NB, progress=lambda tokens: heed())
    extremes_LW2 = extremes.numpy()
    low, high = ff_gram_interval(extremes_LW2)
    row = {"ff_gram": geometric_mean(layers), "ff_gram_low": low, "ff_gram_high": high, "ff_gram_layers": layers}
    return {**row, "ff_gram_tokens": ids_NB.numel()}, extremes_LW2


def activation_ids(data: Data, config: RunConfig) -> Tensor:
    """The fixed validation tokens [blocks, block_size] of activation_tokens."""
    return fixed_ids(data, config, config.activation_tokens)


def fixed_ids(data: Data, config: RunConfig, tokens: int) -> Tensor:
    """The first whole validation blocks [blocks, block_size] that hold so many tokens, or all there are."""
    whole = data.validation.document_NT.ge(0).all(dim=1)
    return data.validation.ids_NT[whole][: -(-tokens // config.block_size), :-1]
