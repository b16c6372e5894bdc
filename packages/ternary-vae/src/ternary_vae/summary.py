"""What a finished run's folder says, as the sweep's tables, figures and claims need it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from studycore.configuration import config_hash, to_dict
from studycore.errors import UserError
from studycore.files import read_json
from studycore.metrics import read_rows
from studycore.runs import read_manifest
from ternary_vae.config import TrainConfig
from ternary_vae.record import read_config

SCHEMA_VERSION = 1
"""Of runs; part of their ids."""
Row = dict[str, Any]


def run_id(config: TrainConfig) -> str:
    """Eight hexadecimal digits of the configuration, its seed and the schema's version."""
    return config_hash({**to_dict(config), "schema_version": SCHEMA_VERSION})


@dataclass(frozen=True)
class RunSummary:
    """A finished run. `phase` and `arm` are what its sweep calls it."""

    name: str
    phase: str
    arm: str
    config: TrainConfig
    rows: list[Row]
    """Of metrics.jsonl: one per evaluation, with step, stage, epoch, loss_* and metrics."""
    metrics: Row
    """Of results.json: the last model's."""
    seconds: float

    @property
    def seed(self) -> int:
        return self.config.seed

    @cached_property
    def ordering_rows(self) -> list[Row]:
        """Evaluations of the stage that orders radii, from before its first update on; empty where there was none."""
        return [row for row in self.rows if row["stage"] != "coverage" and "hierarchy" in row]

    @property
    def initial(self) -> Row:
        """The evaluation before the first update of the ordering stage: the untrained projections."""
        return self.ordering_rows[0]

    @property
    def best(self) -> Row:
        """The evaluation with the most negative hierarchy; the first of them."""
        return min(self.ordering_rows, key=lambda row: float(row["hierarchy"]))

    @property
    def final(self) -> Row:
        return self.ordering_rows[-1]


def summarise(folder: Path, phase: str = "", arm: str = "") -> RunSummary:
    """The summary of a run's folder. UserError when it has no evaluation or no results yet."""
    rows = read_rows(folder / "metrics.jsonl")
    if not rows or not (folder / "results.json").exists():
        raise UserError(f"{folder}: holds no results yet; `ternary-vae resume {folder}` goes on with it")
    manifest = read_manifest(folder)
    return RunSummary(
        folder.name, phase, arm or folder.name, read_config(folder), rows,
        read_json(folder / "results.json")["metrics"], float(manifest["times"].get("seconds", 0.0)),
    )  # fmt: skip
