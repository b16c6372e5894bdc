"""What `measure` measures: the spectrum of every matrix of a model, and the conditioning of its FFN activations."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import Tensor

from retrofit.blocks import find_blocks, find_matrices, roles_of_matrices
from retrofit.metrics.matrix_rows import LEFT_OUT, ActivationRow, MatrixRow
from retrofit.metrics.spectra import (
    activation_eigenvalues,
    activation_kappa,
    activation_moments,
    ff_gram_original_of_layer,
    spectrum_of,
    without_largest,
)
from retrofit.metrics.summaries import enough_tokens


def measure_weights(
    model: Any, embeddings: bool = False, heed: Callable[[], None] = lambda: None
) -> tuple[list[MatrixRow], dict[str, Tensor]]:
    """(rows, singular values by name) of every linear map, and of embeddings on request; `heed` is called for each."""
    rows, spectra, roles = [], {}, roles_of_matrices(model)
    for matrix in find_matrices(model, embeddings):
        heed()
        spectrum, spectra[matrix.name] = spectrum_of(matrix)
        outputs, inputs = matrix.weight_OI.shape
        rows.append(MatrixRow(matrix.name, roles[matrix.name], f"{outputs} x {inputs}", **asdict(spectrum)))
    return rows, spectra


def measure_activations(
    model: Any,
    ids_NB: Tensor,
    decode: Callable[[int], str] = str,
    progress: Callable[[int], None] = lambda tokens: None,
) -> list[ActivationRow]:
    """One row per FFN block that has features, from the same tokens; `decode` names a token, `progress` hears how many have been seen."""
    blocks = [block for block in find_blocks(model) if block.has_features]
    if not blocks:
        return []
    rows, ids_N = [], ids_NB.flatten()
    for block, m in zip(blocks, activation_moments(model, blocks, ids_NB, progress=progress), strict=True):
        kappas: tuple[float | None, float | None, float | None, float | None] = (None, None, None, None)
        if enough_tokens(m.tokens, len(m.sum_F)):
            e_F = activation_eigenvalues(m, centred=True)
            rest = without_largest(e_F, LEFT_OUT) if len(e_F) > LEFT_OUT else None
            uncentred = activation_kappa(m, centred=False)
            kappas = (without_largest(e_F), uncentred, ff_gram_original_of_layer(m), rest)
        token = decode(int(ids_N[m.position])) if m.position >= 0 else ""
        rows.append(ActivationRow(block.name, len(m.sum_F), m.tokens, *kappas, m.largest, m.unit, token))
    return rows
