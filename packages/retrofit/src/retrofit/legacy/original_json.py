"""The original study's JSON files: written with the keys of both of its forms, and read in either.

Its README shows {cond, ppl, loss} and a trajectory of conditioning, perplexity and loss; its scripts write {cond, val_ppl,
train_ppl, val_loss, train_loss} and val_perplexity and so on. `cond` is ff_gram_original.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrofit.metrics.summaries import percent_change
from studycore.errors import UserError
from studycore.files import read_json, write_json

FILES = {"standard": "standard.json", "gram": "gram_only.json", "geometry": "geometry.json"}
"""Method -> the original study's file name."""
SUMMARY = "summary.json"


@dataclass(frozen=True)
class OriginalResult:
    """What either form says."""

    method: str
    initial: Mapping[str, float | None]
    """cond, ppl, loss; None: not measured, or not finite."""
    final: Mapping[str, float | None]
    steps: Sequence[int]
    conditioning: Sequence[float | None]
    perplexity: Sequence[float | None]

    def change(self, key: str) -> float | None:
        """Percent from initial to final; None where either was not measured or is not positive."""
        first, last = self.initial.get(key), self.final.get(key)
        return percent_change(first, last) if first and last and min(first, last) > 0 else None


def original_file(method: str) -> str:
    """The name of a method's file."""
    return FILES.get(method, f"{method}.json")


def original_point(row: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation at an end of the run as `initial` or `final`."""
    point = {"cond": row.get("ff_gram_original"), "ppl": row["val_ppl"], "loss": row["val_loss"]}
    return point | {key: row[key] for key in ("val_ppl", "val_loss", "train_ppl", "train_loss")}


def original_values(method: str, rows: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """What the file of one method says, from its evaluations in order of steps."""
    columns = {
        "conditioning": "ff_gram_original",
        "perplexity": "trajectory_ppl",
        "loss": "trajectory_loss",
        "val_perplexity": "trajectory_ppl",
        "val_loss": "trajectory_loss",
        "train_perplexity": "train_ppl",
        "train_loss": "train_loss",
    }
    trajectory = {name: [row.get(column) for row in rows] for name, column in columns.items()}
    return {
        "method": method,
        "initial": original_point(rows[0]),
        "final": original_point(rows[-1]),
        "trajectory": {"steps": [row["step"] for row in rows], **trajectory},
        "layer_conditions": rows[-1].get("ff_gram_original_layers"),
        **more,
    }


def write_original(folder: Path, method: str, rows: Sequence[Mapping[str, Any]], **more: Any) -> Path:
    """Writes the file of one method into the folder and returns its path."""
    path = folder / original_file(method)
    write_json(path, original_values(method, rows, **more))
    return path


def result_of(method: str, rows: Sequence[Mapping[str, Any]]) -> OriginalResult:
    """What the file of these evaluations says."""
    first, last = (
        {"cond": row.get("ff_gram_original"), "ppl": row["val_ppl"], "loss": row["val_loss"]}
        for row in (rows[0], rows[-1])
    )
    conditioning = [row.get("ff_gram_original") for row in rows]
    return OriginalResult(
        method, first, last, [row["step"] for row in rows], conditioning, [row["trajectory_ppl"] for row in rows]
    )


def read_result(path: Path) -> OriginalResult:
    """Either form. UserError names what a file lacks."""
    values = read_json(path)
    try:
        trajectory = values["trajectory"]
        return OriginalResult(
            str(values["method"]),
            _point(values["initial"]),
            _point(values["final"]),
            list(trajectory["steps"]),
            [_finite(value) for value in trajectory["conditioning"]],
            [_finite(v) for v in trajectory["val_perplexity" if "val_perplexity" in trajectory else "perplexity"]],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: is no result of the original study's form ({error} is missing or no number)"
        ) from None


def _point(values: Mapping[str, Any]) -> dict[str, float | None]:
    names = {"cond": "cond"} | {key: f"val_{key}" if f"val_{key}" in values else key for key in ("ppl", "loss")}
    return {key: _finite(values[name]) for key, name in names.items()}


def _finite(value: Any) -> float | None:
    """None for what was not measured: null, NaN and infinity (Python writes both into JSON)."""
    return float(value) if value is not None and math.isfinite(float(value)) else None


def read_folder(folder: Path) -> dict[str, OriginalResult]:
    """The original study's files that a folder holds, by method."""
    return {method: read_result(folder / name) for method, name in FILES.items() if (folder / name).is_file()}


def is_original_folder(folder: Path) -> bool:
    """Whether the folder holds the original study's files and is no run folder."""
    return not (folder / "manifest.json").exists() and any((folder / name).is_file() for name in FILES.values())


def summarise(results: Mapping[str, OriginalResult]) -> dict[str, Any]:
    """The original study's summary.json. What was not measured, or is not positive, is left out."""
    methods: dict[str, dict[str, dict[str, float]]] = {}
    for name, result in results.items():
        methods[name] = {}
        for title, key in (("conditioning", "cond"), ("perplexity", "ppl")):
            first, last, change = result.initial[key], result.final[key], result.change(key)
            if first is not None and last is not None and change is not None:
                entry = {"initial": first, "final": last, "improvement": first - last, "pct_improvement": -change}
                methods[name][title] = entry
    comparison: dict[str, float] = {}
    if {"standard", "geometry"} <= set(results):
        for title, key in (("conditioning", "cond"), ("perplexity", "ppl")):
            a, b = results["geometry"].final[key], results["standard"].final[key]
            if all(results[name].change(key) is not None for name in ("geometry", "standard")) and a and b:
                comparison |= {f"{title}_advantage": b - a, f"{title}_ratio": b / a}
    return {"methods": methods, "comparison": {"geometry_vs_standard": comparison} if comparison else {}}
