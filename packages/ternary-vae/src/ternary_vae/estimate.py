"""How long the runs of a sweep take that are trained together, from some steps of the batched model itself."""

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch

from studycore.devices import cores
from studycore.jobs import MOST_TOGETHER
from studycore.terminal import duration
from ternary_vae.config import SweepConfig, TrainConfig
from ternary_vae.data import Batches, Operations
from ternary_vae.lanes import Lane
from ternary_vae.losses import total
from ternary_vae.model import create_model
from ternary_vae.plan import plan
from ternary_vae.stacked import StackedRadii
from ternary_vae.stages import stages_of

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


def time_a_stack(configs: Sequence[TrainConfig], device: str) -> tuple[float, float]:
    """Seconds of one run among these, for an update and for an evaluation: by weights as they are drawn."""
    run = cast(Any, SimpleNamespace(device=torch.device(device), step=0, state={}))
    model, lanes = create_model(configs[0], configs[0].seed).to(device), []
    for config in configs:
        lane = Lane(run, config, model)
        lane.stage = stages_of(config)[-1]
        lane.optimizer = torch.optim.AdamW(model.parameters())
        lanes.append(lane)
    operations = Operations.all(configs[0].trits).to(device)
    stack = StackedRadii(lanes, operations)
    positions = [torch.arange(min(configs[0].batch_size, len(operations)))] * len(lanes)

    def update(k: int) -> None:
        stack.backward(total(stack.terms(positions, k, 0)))
        stack.set_rates([config.lr for config in configs])
        stack.optimizer.step()
        stack.optimizer.zero_grad()

    update(0)
    began = time.perf_counter()
    for k in range(1, UPDATES + 1):
        update(k)
    trained = time.perf_counter()
    stack.measure(0)
    return (trained - began) / UPDATES / len(lanes), time.perf_counter() - trained
