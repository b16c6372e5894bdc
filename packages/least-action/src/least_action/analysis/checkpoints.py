"""A run's model at its checkpoints: spectra, routing and norms of layers at a moment of training, without training.

Shapes: P residues, F frequencies 1..n // 2 of the operation's group, R heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from least_action.analysis.loader import ExperimentData
from studycore.errors import UserError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Snapshot:
    """The model of one checkpoint."""

    step: int
    epoch: int
    arrays: "dict[str, np.ndarray[Any, Any]]"
    """As least_action.metrics.final.figure_arrays names them: embedding_power_F, logit_power_F, dominant_head_<layer>_PP, ..."""
    layer_norms: dict[str, float]
    """Norm of the weights of each layer."""


@dataclass(frozen=True)
class RoutingSnapshot:
    """Which head dominates for each pair, at one checkpoint."""

    step: int
    epoch: int
    dominant_heads: "list[np.ndarray[Any, Any]]"
    """Per routed layer [P, P], NaN where the operation is undefined."""
    head_use: "list[np.ndarray[Any, Any]]"
    """Per routed layer the mean weight of each head, [R]."""


def checkpoint_steps(experiment: ExperimentData) -> list[int]:
    """Steps (updates) of the checkpoints that the run has kept."""
    return [int(path.name.removeprefix("step-")) for path in _folders(experiment)]


def _folders(experiment: ExperimentData) -> Sequence[Path]:
    from studycore.checkpoints import steps

    return steps(experiment.folder / "checkpoints")


def nearest_checkpoint(experiment: ExperimentData, percent: float) -> int:
    """Step of the checkpoint nearest to a percentage of the run's training so far. UserError when there is none."""
    if not 0 <= percent <= 100:
        raise UserError(f"percent: {percent} is no share of the training; give 0 to 100")
    steps = checkpoint_steps(experiment)
    if not steps:
        raise UserError(f"{experiment.folder}: keeps no checkpoint; resume the run, which writes one at its end")
    last = max([*steps, *experiment.history["step"].to_pylist()[-1:]])
    return min(steps, key=lambda step: abs(step - percent / 100 * last))


def snapshot(experiment: ExperimentData, step: int) -> Snapshot:
    """The model of a checkpoint, rebuilt and verified. UserError when the step has none, or it is damaged."""
    from least_action.config import TrainerConfig
    from least_action.metrics.final import figure_arrays
    from least_action.metrics.model_properties import compute_layer_weight_norms
    from least_action.model import build_model, replay_probe
    from studycore.checkpoints import load_checkpoint, rebuild
    from studycore.configuration import from_dict

    steps = checkpoint_steps(experiment)
    if step not in steps:
        raise UserError(f"step: {step} has no checkpoint; {experiment.name} has {', '.join(map(str, steps)) or 'none'}")
    checkpoint = load_checkpoint(experiment.folder / "checkpoints" / f"step-{step}")
    model = rebuild(checkpoint, build_model, replay_probe)
    arrays = figure_arrays(model, from_dict(TrainerConfig, checkpoint.config, str(checkpoint.path)))
    return Snapshot(
        step,
        int(checkpoint.state["index"]),
        {name: tensor.numpy() for name, tensor in arrays.items()},
        compute_layer_weight_norms(model),
    )


def get_routing_at_step(experiment: ExperimentData, percent: float) -> RoutingSnapshot:
    """The routing at the checkpoint nearest to a percentage of training. UserError for a model without routing."""
    if experiment.config.get("model_type") not in ("routed", "routed_transformer"):
        raise UserError(
            f"{experiment.name}: is a {experiment.config.get('model_type')}, which routes nothing; choose a routed one"
        )
    at_step = snapshot(experiment, nearest_checkpoint(experiment, percent))
    layers = sorted(int(name.split("_")[2]) for name in at_step.arrays if name.startswith("dominant_head_"))
    return RoutingSnapshot(
        at_step.step,
        at_step.epoch,
        [at_step.arrays[f"dominant_head_{k}_PP"] for k in layers],
        [at_step.arrays[f"head_use_{k}_R"] for k in layers],
    )
