"""Perplexity by document, on disk: what claims pair. No torch."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from studycore.errors import UserError
from studycore.metrics_log import write_parquet

Floats = NDArray[np.float64]


def documents_file(folder: Path, step: int) -> Path:
    return folder / "evaluations" / f"step-{step}.parquet"


def write_documents(folder: Path, step: int, nll_D: Iterable[float], tokens_D: Iterable[float]) -> None:
    """evaluations/step-<n>.parquet: negative log-likelihood and tokens of each document that was evaluated."""
    path = documents_file(folder, step)
    path.parent.mkdir(exist_ok=True)
    rows = [
        {"document": i, "nll": float(nll), "tokens": int(tokens)}
        for i, (nll, tokens) in enumerate(zip(nll_D, tokens_D, strict=True))
        if tokens > 0
    ]
    write_parquet(path, rows)


def read_documents(folder: Path, step: int) -> Floats:
    """[documents, (index, nll, tokens)]. UserError when the run has none at that step."""
    from pyarrow import parquet

    path = documents_file(folder, step)
    if not path.is_file():
        raise UserError(f"{path}: there is no such evaluation; resume the run first")
    table = parquet.read_table(path)
    return np.stack([table[name].to_numpy().astype(np.float64) for name in ("document", "nll", "tokens")], axis=1)
