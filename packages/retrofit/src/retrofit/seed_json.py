"""The seed study's JSON files: written with the keys of both of its shapes, and read in either.

The README of the seed shows {cond, ppl, loss} and a trajectory of conditioning, perplexity and loss; its scripts write
{cond, val_ppl, train_ppl, val_loss, train_loss} and val_perplexity and so on. `cond` is seed_ff_gram.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studycore.errors import UserError
from studycore.files import read_json

FILES = {"standard": "standard.json", "gram": "gram_only.json", "geometry": "geometry.json"}
"""Method -> the seed study's file name."""


@dataclass(frozen=True)
class SeedResult:
    """What either shape says."""

    method: str
    initial: Mapping[str, float]
    """cond, ppl, loss."""
    final: Mapping[str, float]
    steps: Sequence[int]
    conditioning: Sequence[float]
    perplexity: Sequence[float]

    def change(self, key: str) -> float:
        """Percent from initial to final."""
        return 100 * (self.final[key] / self.initial[key] - 1)


def write_point(row: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation row at an end as `initial` or `final`."""
    point = {"cond": row.get("seed_ff_gram"), "ppl": row["val_ppl"], "loss": row["val_loss"]}
    return point | {key: row[key] for key in ("val_ppl", "val_loss", "train_ppl", "train_loss")}


def write_result(method: str, rows: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """The seed study's JSON of one method, from its evaluation rows in order of steps."""
    columns = {
        "conditioning": "seed_ff_gram",
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
        "initial": write_point(rows[0]),
        "final": write_point(rows[-1]),
        "trajectory": {"steps": [row["step"] for row in rows], **trajectory},
        "layer_conditions": rows[-1].get("seed_ff_gram_layers"),
        **more,
    }


def read_result(path: Path) -> SeedResult:
    """Either shape. UserError names what a file lacks."""
    values = read_json(path)
    try:
        trajectory = values["trajectory"]
        return SeedResult(
            str(values["method"]),
            _point(values["initial"]),
            _point(values["final"]),
            list(trajectory["steps"]),
            list(trajectory["conditioning"]),
            list(trajectory["val_perplexity"] if "val_perplexity" in trajectory else trajectory["perplexity"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is no result of the seed study's form ({error} is missing or no number)") from None


def _point(values: Mapping[str, Any]) -> dict[str, float]:
    pairs = {"cond": ("cond",), "ppl": ("val_ppl", "ppl"), "loss": ("val_loss", "loss")}
    return {name: float(values[next(k for k in keys if k in values or k == keys[-1])]) for name, keys in pairs.items()}


def read_folder(folder: Path) -> dict[str, SeedResult]:
    """The seed study's files that a folder holds, by method."""
    return {method: read_result(folder / name) for method, name in FILES.items() if (folder / name).is_file()}


def summarise(results: Mapping[str, SeedResult]) -> dict[str, Any]:
    """The seed study's summary.json."""
    methods: dict[str, dict[str, dict[str, float]]] = {}
    for name, result in results.items():
        methods[name] = {}
        for title, key in (("conditioning", "cond"), ("perplexity", "ppl")):
            first, last = result.initial[key], result.final[key]
            methods[name][title] = {
                "initial": first,
                "final": last,
                "improvement": first - last,
                "pct_improvement": -result.change(key),
            }
    comparison = {}
    if {"standard", "geometry"} <= set(results):
        a, b = results["geometry"].final, results["standard"].final
        comparison["geometry_vs_standard"] = {
            "conditioning_advantage": b["cond"] - a["cond"],
            "conditioning_ratio": b["cond"] / a["cond"],
            "perplexity_advantage": b["ppl"] - a["ppl"],
            "perplexity_ratio": b["ppl"] / a["ppl"],
        }
    return {"methods": methods, "comparison": comparison}


SCENARIOS = {
    1: "geometry rescues well",
    2: "partial rescue",
    3: "minimal effect",
}
CONDITIONING_BOUNDS = (100 * (2250 / 4738 - 1), 100 * (3850 / 4738 - 1))
"""Percent from step 0 that divide the seed study's scenarios 1, 2 and 3: halfway between its figures (1,500-2,000;
2,500-3,500; 4,200, from 4,738)."""
PERPLEXITY_BOUNDS = (100 * (9.0 / 10.9 - 1), 100 * (10.25 / 10.9 - 1))
"""The same for perplexity (8-9; 9-10; 10.5, from 10.9)."""


def scenario(conditioning: float, perplexity: float) -> str:
    """Which of the seed study's three scenarios geometry's changes (percent) fall in, as a sentence."""
    one, other = (
        _level(x, bounds) for x, bounds in ((conditioning, CONDITIONING_BOUNDS), (perplexity, PERPLEXITY_BOUNDS))
    )
    if one == other:
        return f"The data fall in the seed study's scenario {one}: {SCENARIOS[one]}."
    return (
        f"The data fall in none of the seed study's three scenarios: conditioning as in scenario {one} ({SCENARIOS[one]}), "
        f"perplexity as in scenario {other} ({SCENARIOS[other]})."
    )


def _level(change: float, bounds: tuple[float, float]) -> int:
    return 1 if change <= bounds[0] else 2 if change <= bounds[1] else 3
