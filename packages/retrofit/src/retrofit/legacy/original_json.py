"""The seed study's JSON files: written with the keys of both of its shapes, and read in either.

The README of the seed shows {cond, ppl, loss} and a trajectory of conditioning, perplexity and loss; its scripts write
{cond, val_ppl, train_ppl, val_loss, train_loss} and val_perplexity and so on. `cond` is seed_ff_gram.
"""

import math
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
    initial: Mapping[str, float | None]
    """cond, ppl, loss; None: not measured, or not finite."""
    final: Mapping[str, float | None]
    steps: Sequence[int]
    conditioning: Sequence[float | None]
    perplexity: Sequence[float | None]

    def change(self, key: str) -> float | None:
        """Percent from initial to final; None where either was not measured or is not positive."""
        first, last = self.initial.get(key), self.final.get(key)
        return 100 * (last / first - 1) if first and last and min(first, last) > 0 else None


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
            [_finite(value) for value in trajectory["conditioning"]],
            [_finite(v) for v in trajectory["val_perplexity" if "val_perplexity" in trajectory else "perplexity"]],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is no result of the seed study's form ({error} is missing or no number)") from None


def _point(values: Mapping[str, Any]) -> dict[str, float | None]:
    pairs = {"ppl": ("val_ppl", "ppl"), "loss": ("val_loss", "loss")}
    found = {name: next(k for k in keys if k in values or k == keys[-1]) for name, keys in pairs.items()}
    return {name: _finite(values[key]) for name, key in {"cond": "cond", **found}.items()}


def _finite(value: Any) -> float | None:
    """None for what was not measured: null, NaN and infinity (Python writes both into JSON)."""
    return float(value) if value is not None and math.isfinite(float(value)) else None


def read_folder(folder: Path) -> dict[str, SeedResult]:
    """The seed study's files that a folder holds, by method."""
    return {method: read_result(folder / name) for method, name in FILES.items() if (folder / name).is_file()}


def summarise(results: Mapping[str, SeedResult]) -> dict[str, Any]:
    """The seed study's summary.json. What was not measured, or is not positive, is left out."""
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


SEED_STANDARD = {"cond": 100 * (4600 / 4738 - 1), "ppl": 100 * (10.7 / 10.9 - 1)}
"""What continued training does in all three of the seed study's scenarios, percent from step 0."""
HARM = {"cond": 100 * (1 - 4200 / 4600), "ppl": 100 * (1 - 10.5 / 10.7)}
"""Percent by which geometry is better than continued training in the seed study's scenario 3: as much worse is harm."""
QUANTITIES = {"cond": "conditioning", "ppl": "perplexity"}


def scenario(geometry: SeedResult, standard: SeedResult | None) -> str:
    """Which of the seed study's three scenarios the data fall in, as a sentence.

    The scenarios set geometry beside continued training that hardly moves. Where it moves more (or less) than in the
    seed study, geometry's change is taken by as much less (more): what training does by itself is no rescue. Beyond
    HARM on the worse side of continued training it is none of the three.
    """
    if standard is None:
        return "No scenario: the seed study's scenarios compare with the method standard, which is not there."
    levels, beside = {}, {}
    for key, bounds in (("cond", CONDITIONING_BOUNDS), ("ppl", PERPLEXITY_BOUNDS)):
        own, control = geometry.change(key), standard.change(key)
        if own is None or control is None:
            what = "seed_ff_gram" if key == "cond" else "perplexity"
            return f"No scenario: {what} was not measured for both methods, or is not positive."
        ratio = (1 + own / 100) / (1 + control / 100)
        levels[key] = _level(100 * (ratio * (1 + SEED_STANDARD[key] / 100) - 1), bounds)
        beside[key] = 100 * (ratio - 1)
    harmed = [key for key in QUANTITIES if beside[key] > HARM[key]]
    if harmed:
        worse = " and ".join(f"{QUANTITIES[key]} {beside[key]:+.3g} %" for key in harmed)
        found = [f"beside continued training {worse}"]
        found += [
            f"{QUANTITIES[k]} as in scenario {levels[k]} ({SCENARIOS[levels[k]]})" for k in levels if k not in harmed
        ]
        return f"The data fall in none of the seed study's three scenarios: geometry does harm ({'; '.join(found)})."
    one, other = levels["cond"], levels["ppl"]
    how = "(geometry beside continued training)"
    if one == other:
        return f"The data fall in the seed study's scenario {one}: {SCENARIOS[one]} {how}."
    return (
        f"The data fall in none of the seed study's three scenarios: conditioning as in scenario {one} ({SCENARIOS[one]}), "
        f"perplexity as in scenario {other} ({SCENARIOS[other]}) {how}."
    )


def _level(change: float, bounds: tuple[float, float]) -> int:
    return 1 if change <= bounds[0] else 2 if change <= bounds[1] else 3
