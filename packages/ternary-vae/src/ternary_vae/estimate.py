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

STACKED = 10
"""How many times less a run costs in a stack: what benchmarks/sweep.py prints is more."""


def estimate(configs: Sequence[TrainConfig], device: str, processes: int | None = None) -> str:
    """Times a few updates of each shape on the device and says what the whole would take."""
    device, reason = choose_device(device)
    at_once = processes or (min(cores(), len(configs)) if device == "cpu" else 1)
    timed: dict[tuple[object, ...], float] = {}
    seconds, largest = 0.0, 0.0
    for config in configs:
        for stage in config.stage_names:
            key = (stage, config.trits, config.batch_size, config.loss, config.view, str(config.encoder_sizes),
                   config.latent_dim, config.forward, str(config.hierarchy_frozen))  # fmt: skip
            if key not in timed:
                timed[key] = _update_seconds(config, stage, device)
            epochs = config.coverage_epochs if stage == "coverage" else config.epochs
            steps = epochs * -(-round(3**config.trits * config.train_fraction) // config.batch_size)
            stacked = len(configs) > 1 and stage == "hierarchy" and not not_stackable(config)
            seconds += timed[key] * steps / (STACKED if stacked else 1)
        per_value = 8 if config.dtype == "float64" else 4
        # Weights, gradients, two moments; all operations' codes; a chunk's activations.
        values = 4 * 101_661 + 3**config.trits * (2 * config.trits + 4 * config.latent_dim)
        values += 65_536 * 2 * max(config.encoder_sizes)
        largest = max(largest, values * per_value / 2**20)
    hours = seconds / at_once / 3600
    span = f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
    return (
        f"{len(configs)} runs, {at_once} at a time on {device} ({reason}): at most about {span} for the updates (stages may "
        f"end early), about {largest:.0f} MiB per run besides the libraries"
    )


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
