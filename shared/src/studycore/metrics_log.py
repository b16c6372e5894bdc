"""A run's metrics: metrics.jsonl is the record; Parquet parts while it runs and history.parquet at the end are made from it."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studycore.errors import DamagedRun, UserError
from studycore.files import write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

Row = Mapping[str, Any]


class MetricsLog:
    """Append-only rows with a non-decreasing integer "step"; absent values are left out, NaN is an error.

    A log that was there before must be rewound before anything is appended to it.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "metrics.jsonl"
        self.parts = folder / "history"
        self.rows: list[dict[str, Any]] = read_rows(self.path)
        self._in_parts = 0

    def append(self, row: Row) -> None:
        """Writes one row and hands it to the system; nothing but a crash of the machine loses it. ValueError for NaN."""
        assert not self.rows or row["step"] >= self.rows[-1]["step"], (row["step"], self.rows[-1]["step"])
        kept = {name: value for name, value in row.items() if value is not None}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(kept, allow_nan=False) + "\n")
        self.rows.append(kept)

    def rewind(self, count: int) -> None:
        """Drops all rows but the first `count`, and a torn last line. History parts start anew."""
        self.rows = self.rows[:count]
        write_atomic(self.path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in self.rows))
        shutil.rmtree(self.parts, ignore_errors=True)
        self._in_parts = 0
        self.write_part()

    def write_part(self) -> None:
        """Makes the rows durable and puts those since the last part into history/part-<first step>.parquet."""
        new = self.rows[self._in_parts :]
        if not new:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            os.fsync(file.fileno())
        self.parts.mkdir(exist_ok=True)
        write_parquet(self.parts / f"part-{new[0]['step']:09d}-{self._in_parts:06d}.parquet", new)
        self._in_parts = len(self.rows)

    def compact(self) -> Path:
        """Writes history.parquet from all rows and removes the parts."""
        write_parquet(self.folder / "history.parquet", self.rows)
        shutil.rmtree(self.parts, ignore_errors=True)
        return self.folder / "history.parquet"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a metrics.jsonl; what follows the last line break was torn by a crash and is left out.

    DamagedRun names a line that is no row: NaN is none either, which no run writes.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.exists() else [], start=1):
        try:
            row = json.loads(line, parse_constant=_refused)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise DamagedRun(f"{path}: line {number} is no row of metrics; restore it, or start the run again")
        rows.append(row)
    return rows


def _refused(constant: str) -> float:
    raise ValueError(constant)


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """The rows of a finished run. UserError when there are none."""
    rows = read_rows(folder / "metrics.jsonl")
    if not rows:
        raise UserError(f"{folder}/metrics.jsonl: holds no evaluation; restore it, or make the run again")
    return rows


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows as `rows_table` has them."""
    import pyarrow as pa
    from pyarrow import parquet

    buffer = pa.BufferOutputStream()
    parquet.write_table(rows_table(rows), buffer)
    write_atomic(path, buffer.getvalue().to_pybytes())


def evaluation_epochs(every: int, last: int) -> list[int]:
    """The epochs at which a run that ends after `last` of them is evaluated."""
    return sorted({*range(0, last, every), last})


def rows_table(rows: list[dict[str, Any]]) -> "pa.Table":
    """Typed columns: the union of the rows' keys in order of appearance; what a row lacks is null."""
    import pyarrow as pa

    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: pa.array([_number(row.get(name)) for row in rows]) for name in names})


def _number(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)
