"""What a run will need, before it begins: memory and time."""

import time
from collections.abc import Sequence

import torch

from studycore.devices import choose_device, cores
from studycore.streams import derive_seed
from ternary_vae.config import TrainConfig
from ternary_vae.losses import total
from ternary_vae.model import create_model
from ternary_vae.operations import Batches, Operations
from ternary_vae.stacked import not_stackable
from ternary_vae.stages import StageForward, StageLoss, noise, samples, set_trained
from ternary_vae.train import evaluate

STACKED_UPDATE, STACKED_EVALUATION = 10, 4
"""How many times less an update and an evaluation of a run cost in a stack, roughly."""
PER_RUN, PER_SWEEP = 0.3, 20.0
"""Seconds for a run's files, and for a sweep's processes and report, roughly."""


def estimate(configs: Sequence[TrainConfig], device: str, processes: int | None = None) -> str:
    """Times a few updates of each shape on the device and says what the whole would take."""
    device, reason = choose_device(device)
    at_once = processes or (min(cores(), len(configs)) if device == "cpu" else 1)
    timed: dict[tuple[object, ...], float] = {}
    evaluating: dict[tuple[object, ...], float] = {}
    seconds, largest = 0.0, 0.0
    for config in configs:
        for stage in config.stage_names:
            key = (stage, config.trits, config.batch_size, config.loss, config.view, str(config.encoder_sizes),
                   config.latent_dim, config.forward, str(config.hierarchy_frozen))  # fmt: skip
            if key not in timed:
                timed[key] = _update_seconds(config, stage, device)
                evaluating[key] = _evaluation_seconds(config, stage, device)
            epochs = config.coverage_epochs if stage == "coverage" else config.epochs
            steps = epochs * -(-round(3**config.trits * config.train_fraction) // config.batch_size)
            stacked = len(configs) > 1 and stage == "hierarchy" and not not_stackable(config)
            seconds += timed[key] * steps / (STACKED_UPDATE if stacked else 1) + PER_RUN
            seconds += evaluating[key] * epochs / config.eval_every / (STACKED_EVALUATION if stacked else 1)
        per_value = 8 if config.dtype == "float64" else 4
        # Weights, gradients, two moments; all operations' codes; a chunk's activations.
        values = 4 * 101_661 + 3**config.trits * (2 * config.trits + 4 * config.latent_dim)
        values += 65_536 * 2 * max(config.encoder_sizes)
        largest = max(largest, values * per_value / 2**20)
    hours = (seconds / at_once + (PER_SWEEP if len(configs) > 1 else 0)) / 3600
    span = f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
    return f"{len(configs)} runs, {at_once} at a time on {device} ({reason}): about {span} if no stage ends early, about {largest:.0f} MiB per run besides the libraries"


def _evaluation_seconds(config: TrainConfig, stage: str, device: str) -> float:
    """Seconds of one evaluation of a model of the configuration's shape, on at most 3^9 operations, scaled up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    few = min(3**config.trits, 3**9)
    chosen = Operations.of(torch.arange(few), config.trits).to(device)
    model = create_model(config, config.seed).to(device)
    evaluate(model, config, chosen, torch.ones(few, dtype=torch.bool), stage)
    began = time.perf_counter()
    evaluate(model, config, chosen, torch.ones(few, dtype=torch.bool), stage)
    taken = time.perf_counter() - began
    torch.set_num_threads(threads)
    return taken * 3**config.trits / few


def _update_seconds(config: TrainConfig, stage: str, device: str, updates: int = 5) -> float:
    """Median seconds of one update of a model of the configuration's shape."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = create_model(config, config.seed).to(device)
    trained = set_trained(model, config, stage)
    chosen = Operations.of(torch.arange(min(3**config.trits, 4 * config.batch_size)), config.trits).to(device)
    forward = StageForward(model, config, stage, chosen)
    loss = StageLoss(config, stage, torch.ones(config.trits + 1, dtype=torch.float64), device, model.controller)
    optimizer = torch.optim.AdamW(trained.values())
    batches = Batches(chosen.v_N, config.trits, config.batch_size, config.deep_share, derive_seed(config.seed, stage))
    taken = []
    for step in range(updates + 1):
        positions = next(batches.epoch(step)).to(device)
        noises = {
            v: noise(config, stage, v, step, len(positions)).to(device) for v in "ab" if samples(config, stage, v)
        }
        began = time.perf_counter()
        batch = chosen[positions]
        total(loss(forward(batch, positions, noises), batch, step, step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    return sorted(taken[1:])[updates // 2]
