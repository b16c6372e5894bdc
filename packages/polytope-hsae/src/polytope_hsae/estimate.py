"""What a dry run says before anything is made: time and room of the four phases, from updates that are timed here.

Nothing is fetched: a language model that is not on this machine is not timed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from polytope_hsae import synthetic
from polytope_hsae.arms import check_room, shape_of, stages
from polytope_hsae.config import SYNTHETIC, ActivationConfig, StudyConfig, TrainConfig
from polytope_hsae.data import check_budget
from polytope_hsae.models import build_sae
from polytope_hsae.update import Learner, Objective, create_optimizer, update
from studycore.devices import clock
from studycore.language.embedded import locate
from studycore.models import count_parameters
from studycore.terminal import duration


def estimate(study: StudyConfig, device: str) -> list[str]:
    """One sentence for activations, one for trainings. UserError for a configuration that does not fit."""
    config: ActivationConfig = study.job("activations")
    if config.model == SYNTHETIC:
        synthetic.check_tree(config)
        synthetic.check_activations(config, config.token_budget, "data.token_budget")
        return [_trainings(study, config.tree_dim, device)]
    check_budget(config)
    place = Path(locate(config.model))
    if not (place / "config.json").is_file():
        room = config.token_budget * 1024 * 4 / 2**30
        return [
            f"{config.model} is not on this machine, so neither its activations nor trainings at its width are timed; "
            f"{config.token_budget:,} activations take {room:.3g} GiB under runs/ for every 1,024 numbers of its width"
        ]
    width, seconds = _model(str(place), config, device)
    room = config.token_budget * width * 4 / 2**30
    captured = f"{config.token_budget:,} activations of {width} numbers: about {duration(seconds)}, once, and {room:.2g} GiB under runs/"
    return [captured, _trainings(study, width, device)]


def _model(place: str, config: ActivationConfig, device: str) -> tuple[int, float]:
    """(width, seconds for all activations)."""
    from polytope_hsae.language import final_activations, load_model

    model = load_model(place, dtype=config.dtype).to(device)
    # No batch holds more windows than there are.
    windows = max(1, min(config.batch_size, config.token_budget // config.window_length))
    ids_BT = torch.ones(windows, config.window_length, dtype=torch.long, device=device)
    width = int(model.get_output_embeddings().weight.shape[1])
    return width, _seconds(lambda: final_activations(model, ids_BT), device) * config.token_budget / ids_BT.numel()


def _trainings(study: StudyConfig, width: int, device: str) -> str:
    """An update of each shape on random activations, times the steps of all arms and seeds."""
    configs: list[TrainConfig] = [study.job("train", arm=arm, seed=0) for arm in study.arms]
    steps, total, most = configs[0].total_steps, 0.0, 0
    timed: dict[str, float] = {}
    for config in configs:
        kind = config.arm if config.flat or config.arm == "top2" else "hierarchical"
        if kind not in timed:
            check_room(config, width, device)
            model = build_sae(shape_of(config, width, 1.0)).to(device).train()
            timed[kind] = _seconds(_update_of(model, config, device), device)
            # Weights, gradients, two moments, and the activations of a batch.
            most = max(most, 16 * count_parameters(model) + 40 * config.batch_size_acts * width)
        total += timed[kind] * steps * study.seeds
    return (
        f"all phases: {len(configs)} arms x {study.seeds} seeds x {steps:,} steps: about {duration(total)} on {device}, one after another, "
        f"without evaluations, and {most / 2**20:.0f} MiB of memory each"
    )


def _update_of(model: Any, config: TrainConfig, device: str) -> Callable[[], object]:
    """The training's own update in the last stage, on random activations."""
    from accelerate import Accelerator

    accelerator, stage = Accelerator(cpu=device == "cpu"), stages(config)[-1]
    objective = Objective(model, config, None, device)
    stepper, optimizer = accelerator.prepare(objective, create_optimizer(model, config, stage))
    learner = Learner(model, stepper, optimizer, accelerator, accelerator.backward)
    x_BD = torch.randn(config.batch_size_acts, model.config.d_in, device=device)
    return lambda: update(learner, config, stage, 0, x_BD)


def _seconds(act: Callable[[], object], device: str) -> float:
    """The faster of two calls, after a warm-up call."""
    times = []
    for _ in range(3):
        began = clock(device)
        act()
        times.append(clock(device) - began)
    return min(times[1:])
