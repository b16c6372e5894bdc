"""The names of the original study's functions and classes, from one place."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentwire_adapter.data import load_squad_subset
from latentwire_adapter.metrics.squad import batch_metrics
from latentwire_adapter.model.adapter import Adapter
from latentwire_adapter.model.compressor import EmbeddingCompressor

__all__ = ["Adapter", "EmbeddingCompressor", "batch_metrics", "load_squad_subset", "log_diagnostics"]


def log_diagnostics(log_file: str | Path, step: int, epoch: int, metrics: Mapping[str, Any]) -> None:
    """Appends a line of JSON: step, epoch, Unix time, and the metrics. ValueError for NaN, which is no JSON."""
    row = {"step": step, "epoch": epoch, "timestamp": time.time(), **metrics}
    with open(log_file, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")
