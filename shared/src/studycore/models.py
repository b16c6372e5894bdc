"""What torch models of every kind need: their size, a pass that leaves no trace, and a folder of their own.

with evaluating(model) as device:
    logits = model(x.to(device))
save_module(model, folder, {"width": 8})
model = load_module(folder, lambda values: Model(**values), "a Model")
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from studycore.devices import check_memory
from studycore.files import read_json, write_json, write_tensors
from studycore.foreign import reading

Module = TypeVar("Module", bound=nn.Module)


def count_parameters(module: nn.Module) -> int:
    """Numbers in all parameters, each once however many modules share it."""
    return sum(parameter.numel() for parameter in module.parameters())


def check_fits(build: Callable[[], nn.Module], what: str, mend: str, device: str = "cpu", activations: int = 0) -> None:
    """UserError when training the module would need more memory than the device has free.

    Counted are weights, gradients and AdamW's two moments, and bytes of `activations`. `build` makes the module of
    shapes alone: nothing is allocated or drawn.
    """
    try:
        with torch.device("meta"):
            weights = sum(parameter.nbytes for parameter in build().parameters())
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        weights = 2**63  # of a matrix whose size in bytes is no int64
    check_memory(4 * weights + activations, f"{what}: weights, gradients, moments and a batch", mend, device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode without gradients; yields the model's device, and afterwards the model is in its mode again."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(was_training)


def save_module(
    module: nn.Module,
    folder: str | Path,
    values: Mapping[str, Any],
    config_file: str = "config.json",
    weights_file: str = "model.safetensors",
) -> None:
    """A folder with the values that the module is built from, and its state."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / config_file, values)
    write_tensors(place / weights_file, module.state_dict())


def load_module(
    folder: str | Path,
    build: Callable[[dict[str, Any]], Module],
    what: str,
    config_file: str = "config.json",
    weights_file: str = "model.safetensors",
) -> Module:
    """What `save_module` wrote, built by `build` from the stored values. UserError where it is not `what`, or does not fit."""
    from safetensors.torch import load_file

    place = Path(folder)
    values = read_json(place / config_file)
    with reading(place, what, "restore it or save it again"):
        module = build(values)
        module.load_state_dict(load_file(place / weights_file), strict=True)
    return module
