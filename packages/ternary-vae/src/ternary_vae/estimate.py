"""How long the runs of a sweep take that are trained together, from some of its updates and an evaluation."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch

from studycore.devices import clock, cores
from studycore.jobs import MOST_TOGETHER
from studycore.run import Run
from studycore.terminal import duration
from ternary_vae.config import SweepConfig, TrainConfig
from ternary_vae.data import Batches, Operations
from ternary_vae.lanes import Lane
from ternary_vae.model import create_model
from ternary_vae.plan import plan
from ternary_vae.stacked import StackedRadii
from ternary_vae.stages import stages_of
from ternary_vae.update import update

UPDATES = 10
"""Updates that are timed, after one that is not."""


def estimate(sweep: SweepConfig, device: str) -> list[str]:
    """A sentence on the runs of radius nets alone, as many at a time as there are cores; none where there are none."""
    groups: dict[str, list[TrainConfig]] = {}
    for job in plan(sweep):
        if job.together:
            groups.setdefault(job.together, []).append(job.config)
    if not groups:
        return []
    processes = cores() if device == "cpu" else 1
    seconds = 0.0
    for configs in groups.values():
        at_once = configs[: min(MOST_TOGETHER, -(-len(configs) // processes))]
        seconds += seconds_of(configs, *time_a_stack(at_once, device)) / processes
    runs = sum(map(len, groups.values()))
    return [f"{runs} runs of radius nets, trained together: about {duration(seconds)} if none ends early"]


def seconds_of(configs: Sequence[TrainConfig], update: float, evaluation: float) -> float:
    """What runs take at these seconds of one run for an update and for an evaluation."""
    return sum(
        config.epochs * updates_per_epoch(config) * update + (config.epochs // config.eval_every + 1) * evaluation
        for config in configs
    )


def updates_per_epoch(config: TrainConfig) -> int:
    """Updates of one epoch over all operations."""
    v_N = Operations.all(config.trits).v_N
    return Batches(v_N, config.trits, config.batch_size, config.deep_share, config.seed).steps_per_epoch


class NoRun:
    """What a lane asks of a run that is not made: it has no folder and stands at its first update."""

    def __init__(self, device: str):
        self.device, self.step, self.state = device, 0, dict[str, Any]()

    def optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        return optimizer

    def steps(self, total: int, **loop: Any) -> Iterator[int]:
        return iter(range(total + 1))


def time_a_stack(configs: Sequence[TrainConfig], device: str) -> tuple[float, float]:
    """Seconds of one run among these, for an update and for an evaluation: by weights as they are drawn."""
    operations, per_epoch = Operations.all(configs[0].trits).to(device), updates_per_epoch(configs[0])
    model = create_model(configs[0], configs[0].seed).to(device)
    lanes = [Lane(cast(Run, NoRun(device)), config, model, stages_of(config)) for config in configs]
    for lane in lanes:
        lane.enter(0, per_epoch)
    stack = StackedRadii(lanes, operations)
    positions = [torch.arange(min(configs[0].batch_size, len(operations)))] * len(lanes)
    update(stack, lanes, positions, 0, per_epoch)
    began = clock(device)
    for index in range(1, UPDATES + 1):
        update(stack, lanes, positions, index, per_epoch)
    trained = clock(device)
    stack.measure(0)
    return (trained - began) / UPDATES / len(lanes), clock(device) - trained
