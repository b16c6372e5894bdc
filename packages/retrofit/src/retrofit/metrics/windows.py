"""The FFN Gram's condition number with the sampling error of the tokens: what windows give it, on disk and resampled. No torch.

Shapes: L layers, W windows of tokens, R resamples.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrofit.metrics.summaries import ORIGINAL_RIDGE
from studycore.metrics_log import write_parquet
from studycore.statistics import resample_counts

Floats = NDArray[np.float64]
RESAMPLES = 2000


def windows_file(folder: Path, step: int) -> Path:
    return folder / "evaluations" / f"windows-{step}.parquet"


def write_windows(folder: Path, step: int, extremes_LW2: Floats) -> None:
    """evaluations/windows-<n>.parquet: mean square of the features along a layer's first and last eigenvector, by window."""
    path = windows_file(folder, step)
    path.parent.mkdir(exist_ok=True)
    rows = [
        {"layer": layer, "window": window, "largest": float(largest), "smallest": float(smallest)}
        for layer, of_layer in enumerate(extremes_LW2)
        for window, (largest, smallest) in enumerate(of_layer)
    ]
    write_parquet(path, rows)


def read_windows(folder: Path, step: int) -> Floats | None:
    """[L, W, 2] as written; None where the run has none (too few tokens, or a run of an earlier version)."""
    from pyarrow import parquet

    path = windows_file(folder, step)
    if not path.is_file():
        return None
    table = parquet.read_table(path)
    layers = int(table["layer"].to_numpy().max()) + 1
    extremes = np.stack([table[name].to_numpy().astype(np.float64) for name in ("largest", "smallest")], axis=1)
    return extremes.reshape(layers, -1, 2)


def log_ff_gram(extremes_LW2: Floats, counts_RW: Floats | None = None) -> Floats:
    """[R] log of the geometric mean over layers, with each window counted so often (by default once: [1]).

    First order in the weights of the windows: the eigenvectors are those of all windows together (Efron's infinitesimal
    jackknife), so that a resample costs no eigenvalues. With every window once it is the exact value.
    """
    counts_RW = np.ones((1, extremes_LW2.shape[1])) if counts_RW is None else counts_RW
    means_R2L = np.einsum("rw,lwk->rkl", counts_RW, extremes_LW2) / counts_RW.sum(1)[:, None, None] + ORIGINAL_RIDGE
    return np.asarray((np.log(means_R2L[:, 0]) - np.log(means_R2L[:, 1])).mean(1))


def ff_gram_interval(extremes_LW2: Floats) -> tuple[float, float]:
    """95 % of the bootstrap over windows of tokens."""
    logs_R = log_ff_gram(extremes_LW2, resample_counts(extremes_LW2.shape[1], RESAMPLES))
    low, high = np.quantile(logs_R, [0.025, 0.975])
    return math.exp(float(low)), math.exp(float(high))


def log_differences(pairs: Sequence[tuple[Floats, Floats]], resamples: int = RESAMPLES) -> tuple[list[float], Floats]:
    """(log ratio treated over control of each pair, [R] their mean on resampled windows, each with its values in all pairs)."""
    counts_RW = resample_counts(pairs[0][0].shape[1], resamples)
    for treated, control in pairs:
        assert treated.shape == control.shape == pairs[0][0].shape, "evaluations on other tokens can't be paired"
    each = [float(log_ff_gram(treated)[0] - log_ff_gram(control)[0]) for treated, control in pairs]
    drawn_R = np.mean([log_ff_gram(a, counts_RW) - log_ff_gram(b, counts_RW) for a, b in pairs], axis=0)
    return each, drawn_R
