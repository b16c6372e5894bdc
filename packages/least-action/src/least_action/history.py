"""A run's rows over training, as folders hold them: what figures and notebooks read, without torch."""

from pathlib import Path
from typing import Any, Protocol

from studycore.metrics_log import read_rows, write_parquet


class Measured(Protocol):
    """What can be appended: least_action.metrics.training.TrainingMetrics."""

    def row(self) -> dict[str, Any]: ...


class MetricsHistory:
    """Rows over training."""

    def __init__(self, rows: list[dict[str, Any]] | None = None):
        self.rows: list[dict[str, Any]] = [] if rows is None else rows

    @classmethod
    def load(cls, run: Path) -> "MetricsHistory":
        """The rows of a run folder, finished or not."""
        return cls(read_rows(run / "metrics.jsonl"))

    def append(self, metrics: Measured) -> None:
        self.rows.append(metrics.row())

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """(epochs, values) of a column, where it was measured."""
        measured = [row for row in self.rows if row.get(name) is not None]
        return [row["epoch"] for row in measured], [row[name] for row in measured]

    def save(self, path: Path) -> None:
        """Parquet with typed columns."""
        write_parquet(path, self.rows)
