"""What a run will need, before it begins: arithmetic, memory, time."""

import time
from collections.abc import Sequence

import torch

from least_action.config import TrainerConfig
from least_action.losses import LeastActionLoss
from least_action.models import count_parameters, create_model
from least_action.recipes import create_optimizers
from least_action.train import PairForward, create_dataset
from studycore.devices import choose_device, cores


def estimate(configs: Sequence[TrainerConfig], device: str, processes: int | None = None) -> str:
    """Times a few updates of each shape on the device and says what the whole would take."""
    device, reason = choose_device(device)
    at_once = processes or (min(cores(), len(configs)) if device == "cpu" else 1)
    seconds, largest, shapes = 0.0, 0.0, {}
    for config in configs:
        shape = (
            config.p,
            config.train_frac,
            config.model_type,
            config.hidden_dim,
            config.n_layers,
            config.forward,
            config.dtype,
        )
        if shape not in shapes:
            shapes[shape] = _update_seconds(config, device)
        seconds += shapes[shape] * config.epochs
        per_value = 8 if config.dtype == "float64" else 4
        model = create_model(config)
        # Weights, gradients, two moments; activations of all pairs in an evaluation.
        values = 4 * count_parameters(model) + config.p**2 * (config.p + 8 * config.hidden_dim * config.n_layers)
        largest = max(largest, values * per_value / 2**20)
    hours = seconds / at_once / 3600
    span = f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"
    return (
        f"{len(configs)} runs, {sum(config.epochs for config in configs):,} epochs, {at_once} at a time on {device} ({reason}): "
        f"about {span} for the updates if none ends early, about {largest:.0f} MiB per run besides the libraries"
    )


def _update_seconds(config: TrainerConfig, device: str, updates: int = 3) -> float:
    """Median seconds of one update."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = create_model(config).to(device)
    optimizers, loss, train = (
        create_optimizers(model, config),
        LeastActionLoss(config),
        create_dataset(config).train.to(device),
    )
    forward = PairForward(model, config.forward == "restructured")
    taken = []
    for _ in range(updates + 1):
        began = time.perf_counter()
        inputs = model.get_embeddings(model.plain_inputs(train.a_N, train.b_N)).flatten(1)
        loss(forward(train.a_N, train.b_N), train.y_N, inputs).total.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    return sorted(taken[1:])[updates // 2]
