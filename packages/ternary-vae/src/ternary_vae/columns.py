"""What claims and tables read of one finished run: its columns, by its configuration, evaluations and results.

Beside measured figures stands whether the run passes each target, and what a claim may take it together with.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from studycore.configuration import to_dict
from studycore.errors import DamagedRun
from studycore.metrics_log import evaluation_epochs, read_evaluations
from studycore.run_folder import read_manifest, read_results
from ternary_vae.config import TrainConfig
from ternary_vae.history import HISTORY, Row, after_start, best_row, history_metrics, ordering_metrics, ordering_rows
from ternary_vae.stages import stages_of

TIES = 0.001
"""Share of tied radii from which on an order is not read: ties fake one, even beyond the ceiling of radii without them."""
COVERS = 0.9999
"""Share of the operations that a model must cover before its KL divergence, or its samples, say anything."""
AT_CEILING = 1 + 1e-9
"""Largest share of the ceiling of an order without ties: the fewer than TIES that are let pass, all on one value, lift it by
less, and so does rounding."""
DEPTHS = -0.85
"""Largest mean over the depths of Somers' D: the hierarchy of all operations is blind to the deep levels, which hold few. One
exchange between the two deepest, of two operations and of one, leaves -0.877, and their inversion -0.753: a single pair of
neighbours may lie the wrong way round (that levels lie apart is a target of its own), and not a level. A mean bounds no
single depth: two neighbouring levels at random among each other leave -0.92 to -0.94. So no answer speaks of deep levels."""
DEPTHS_UNSEEN = -0.7
"""The same of the unseen. Where one operation is left of each of their two deepest levels, the exchange leaves -0.76."""
WEIGHTS, DRAWS = "sweep2_*", "sweep5 and sweep6"
"""Groups of arms, as the column `group` names them."""

Term = tuple[str, str, float | tuple[float, str]]
"""A metric, how it compares, and with what: a number, or a factor and the metric that it is of."""
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip
TARGETS: dict[str, tuple[Term, ...]] = {
    "scratch_coverage": (("covered", "==", 19_683), ("operations", "==", 19_683)),
    "scratch_gaps": (("min_level_gap", ">", 0), ("positive_gaps", "==", 9)),
    "scratch_hierarchy": (
        ("hierarchy_of_ceiling", ">=", 0.9999), ("hierarchy_of_ceiling", "<=", AT_CEILING),
        ("somers_d_depths", "<=", DEPTHS), ("tied_radius_share", "<", TIES),
    ),
    "scratch_ties": (("tied_radius_share", "<", TIES),),
    "scratch_richness": (("richness", ">=", 0.003),),
    "scratch_rate": (("kl_of_least", "<=", 2.0), ("kl_of_least", ">=", 1.0), ("coverage", ">=", COVERS)),
    "scratch_prior": (("prior_coverage", ">=", 0.99), ("coverage", ">=", COVERS)),
    "unseen_coverage": (("coverage_unseen", ">", 0.95),),
    "unseen_hierarchy": (
        ("hierarchy_unseen", "<=", (-0.99, "hierarchy_ceiling_unseen")),
        ("hierarchy_unseen", ">=", (-AT_CEILING, "hierarchy_ceiling_unseen")),
        ("somers_d_depths_unseen", "<=", DEPTHS_UNSEEN), ("tied_radius_share", "<", TIES),
    ),
}  # fmt: skip
"""When a run passes a target, by its metrics: all of the terms. They stand in the claim's measure, and so in the folder."""
OF_UNEQUAL_RADII = {"hierarchy_of_ceiling", "hierarchy_unseen"}
"""Metrics that do not exist where all radii are equal: then a run that was to order them has failed."""


def passes(target: str, metrics: Mapping[str, Any]) -> bool:
    """Whether a run of these metrics passes. KeyError for one that is missing."""
    sides = [
        (metrics[name], how, bound if isinstance(bound, int | float) else bound[0] * metrics[bound[1]])
        for name, how, bound in TARGETS[target]
    ]
    return all(COMPARE[how](value, bound) for value, how, bound in sides)


def measured_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are numbers. What is NaN or infinite was not measured."""
    return {k: v for k, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}


def _passed(metrics: Mapping[str, Any], orders_radii: bool) -> dict[str, bool]:
    """Target -> whether the run passes, for the targets whose metrics it has or, all radii being equal, cannot have."""
    passed, numbers = {}, measured_of(metrics)
    for target, terms in TARGETS.items():
        needed = {name for name, _, _ in terms} | {bound[1] for _, _, bound in terms if isinstance(bound, tuple)}
        lacking = needed - set(numbers)
        if not lacking:
            passed[target] = passes(target, numbers)
        elif orders_radii and "tied_radius_share" in numbers and lacking <= OF_UNEQUAL_RADII - set(metrics):
            passed[target] = False
    return passed


def columns(folder: Path, config: TrainConfig) -> dict[str, Any]:
    """What claims and tables read of one finished run. UserError when it holds no evaluation."""
    evaluations, manifest, metrics = read_evaluations(folder), read_manifest(folder), read_results(folder)["metrics"]
    if manifest["verb"] != "import":
        check_history(folder, config, evaluations, metrics)
    return columns_of(folder.name, config, evaluations, metrics, float(manifest["times"].get("seconds", 0.0)))


MEASURED_AGAIN = 1e-3
"""Largest difference between a run's last evaluation and the same metric of its results, which are measured once more: by other
sums, so that on a GPU an operation at the edge may come out otherwise."""


def check_history(folder: Path, config: TrainConfig, evaluations: Sequence[Row], metrics: Mapping[str, Any]) -> None:
    """DamagedRun where the evaluations are not those that the configuration makes up to the run's end, or where its results are
    not of them."""
    place, mend = f"{folder}/metrics.jsonl", "restore it, or make the run again"
    for stage in stages_of(config):
        epochs = [row["epoch"] for row in evaluations if row["stage"] == stage.name]
        ends_early = stage.patience is not None or stage.covered_patience is not None
        last = epochs[-1] if epochs and ends_early else stage.epochs
        if epochs != evaluation_epochs(config.eval_every, last):
            due = f"every {config.eval_every} epochs up to {last}"
            raise DamagedRun(f"{place}: evaluations of the stage {stage.name} are not {due}; {mend}")
    said = history_metrics(evaluations)
    off = [name for name in HISTORY if metrics.get(name) != said.get(name)]
    again = [name for name in ("coverage", "hierarchy") if {name} <= metrics.keys() & evaluations[-1].keys()]
    off += [name for name in again if abs(metrics[name] - evaluations[-1][name]) > MEASURED_AGAIN]
    if off:
        raise DamagedRun(f"{place}: results.json has another {', '.join(off)}; {mend}")


SETTINGS = (
    "stages", "trits", "curvature", "view", "train_fraction", "coverage_epochs", "epochs", "loss", "radius",
    "start_projections", "decode",
)  # fmt: skip
"""Settings that are columns."""


def planned(name: str, config: TrainConfig) -> dict[str, Any]:
    """The columns that the configuration gives, of a run that has not been made as well."""
    arm = re.sub(r"(_draw_\d+)?_s\d+$", "", name)
    settings = to_dict(config)
    row = {
        **{key: getattr(config, key) for key in SETTINGS},
        "arm_without_draw": arm,
        "group": _group(arm, config),
        "draw": config.seed if config.projection_seed is None else config.projection_seed,
        "phase_loss": config.loss if config.stages == "hierarchy" else None,
        "settings": settings,
        # A finetuned run, or one of a sweep's phases, is asked for no target; nor is what stands beside the model: controls,
        # the flat twin, other bands. Checkpoints of a sweep are told by their phase (measures.from_scratch).
        "whole": config.stages != "hierarchy"
        and (config.orders_radii or config.train_fraction < 1)
        and not is_control(settings),
        "fits_targets": fits_targets(settings),
        "fits_unseen_targets": fits_unseen_targets(settings),
    }
    return {key: value for key, value in row.items() if value is not None}


def columns_of(
    name: str, config: TrainConfig, evaluations: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """Columns of the run `name` from its rows of metrics.jsonl and its metrics of results.json."""
    row: dict[str, Any] = {
        **measured_of(metrics),
        **planned(name, config),
        "largest_coverage": max(float(row["coverage"]) for row in evaluations),
        "seconds": seconds,
    }
    if ordering := ordering_rows(evaluations):
        starts_ordered = config.stages == "hierarchy" and config.start_projections == "loaded"
        best = best_row(evaluations, starts_ordered) or {}
        reached = after_start(ordering, starts_ordered)
        row |= {
            **ordering_metrics(evaluations, starts_ordered),
            "best_tied_share": best.get("tied_radius_share"),
            # Radii that are all equal at the end are in no order: their Somers' D is 0.
            "final_hierarchy": evaluations[-1].get("hierarchy", 0.0),
            "ordering_rows": ordering,
            "hierarchy_by_epoch": {int(of["epoch"]): float(of["hierarchy"]) for of in reached},
            "best_is_start": best.get("epoch") == ordering[0]["epoch"],
        }
        row["decay"] = row["final_hierarchy"] - row["best_hierarchy"]
    if config.orders_radii and "tied_radius_share" in metrics:
        row["order"] = metrics.get("hierarchy_of_ceiling", 0.0)
        row["size_of_order"] = abs(row["order"])
    row |= {f"passes_{target}": passed for target, passed in _passed(metrics, config.orders_radii).items()}
    return {key: value for key, value in row.items() if value is not None}


def is_control(settings: Mapping[str, Any]) -> bool:
    """Whether the run is a control: shuffled valuations, flat geometry or other bands. `settings` may leave out defaults."""
    return (
        settings.get("valuations", "true") == "shuffled"
        or settings.get("geometry", "hyperbolic") == "euclidean"
        or settings.get("bands", "wide") == "even"
    )


TARGETS_ARE_OF = {"trits": 9, "curvature": 1.0, "max_radius": 0.95, "train_fraction": 1.0}
"""Settings that a run must have for the targets to be judged on it. Where training saw a part of the operations, only the
trits must be these."""
LARGEST_PART = 0.1
"""Share of the operations that training may see where the unseen are judged."""


def setting(settings: Mapping[str, Any], name: str) -> Any:
    return settings.get(name, getattr(TrainConfig, name))


def fits_targets(settings: Mapping[str, Any]) -> bool:
    """Whether the targets are judged on a run of these settings; defaults may be left out."""
    from_scratch = setting(settings, "start") is None and setting(settings, "stages") in ORDER_FROM_SCRATCH
    return from_scratch and all(setting(settings, name) == value for name, value in TARGETS_ARE_OF.items())


ORDER_FROM_SCRATCH = ("coverage_hierarchy", "joint")


def fits_unseen_targets(settings: Mapping[str, Any]) -> bool:
    """The same for the targets of operations that training did not see."""
    part, trits = setting(settings, "train_fraction") <= LARGEST_PART, setting(settings, "trits")
    return setting(settings, "start") is None and part and trits == TARGETS_ARE_OF["trits"]


def _group(arm: str, config: TrainConfig) -> str | None:
    """The arms that a claim takes together."""
    if config.stages != "hierarchy" or config.loss != "rich_hierarchy":
        return None
    return WEIGHTS if arm.startswith("sweep2_") else DRAWS if arm in ("sweep5", "sweep6") else None
