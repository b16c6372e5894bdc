"""Reading a `.pt` file without running anything in it: what such a file holds of weights, configuration and metrics.

It is read with `weights_only=True`, and numpy's scalars, which the original study's metrics are made of, become plain
numbers. The archive's own checksums are looked at first, and every tensor must be a sound weight.
"""

import pickle
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studycore.errors import UserError
from studycore.foreign import check_file, check_tensors, reading

MODEL_NAMES = ("model", "model_state", "model_state_dict")
"""Under which the weights lie: V5.5, V5.11's training, the sweeps."""
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch puts into the names of a wrapped module's tensors: data parallel or averaged, compiled, sharded, checkpointed."""
NUMBER_CODES = {
    "f2": "e", "f4": "f", "f8": "d", "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q",
    "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
}  # fmt: skip
"""Plain number types of numpy and their codes in `struct`."""


@dataclass(frozen=True)
class OldFile:
    """What a `.pt` file holds."""

    path: Path
    tensors: dict[str, Tensor]
    """Of the model, under the file's own names."""
    taken: str
    """The entry that they are from; empty where the file is nothing but them."""
    copies: tuple[str, ...]
    """Entries that hold the same tensors again, such as averaged weights."""
    config: dict[str, Any]
    metrics: dict[str, Any]
    epoch: int | None
    entries: tuple[str, ...]
    """Names at the top of the file."""


class _NumberType:
    """Stands in for numpy.dtype while a file is read: plain numbers only."""

    def __init__(self, code: object, align: object = False, copy: object = True):
        if not isinstance(code, str) or code not in NUMBER_CODES:
            raise pickle.UnpicklingError(f"numpy's type {code!r} is no plain number")
        self.format = "<" + NUMBER_CODES[code]

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", "|"):
            raise pickle.UnpicklingError(f"numpy's byte order {order!r} is not little-endian")


def _plain_number(kind: object, raw: object) -> float | int | bool:
    """Stands in for numpy's scalars while a file is read."""
    if not isinstance(kind, _NumberType) or not isinstance(raw, bytes) or len(raw) != struct.calcsize(kind.format):
        raise pickle.UnpicklingError("a numpy scalar that is no plain number")
    number: float | int | bool = struct.unpack(kind.format, raw)[0]
    return number


STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_NumberType, "numpy.dtype"),
    (_plain_number, "numpy.core.multiarray.scalar"),
    (_plain_number, "numpy._core.multiarray.scalar"),
]
"""Ours in the place of numpy's: numpy itself would unpickle what a scalar of an object type carries."""


def _load(path: Path) -> Any:
    """The content of the file. UserError names what in it would have to be run to be read."""
    check_file(path)
    with torch.serialization.safe_globals(STAND_INS), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of torch, on the layouts of sparse tensors and the like, which are refused below
        try:
            with reading(path, "a PyTorch file"):
                return torch.load(path, map_location="cpu", weights_only=True)
        except UserError as error:
            if not isinstance(error.__cause__, pickle.UnpicklingError):
                raise
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except ValueError:  # the layout before zip archives has no such list
            names = []
    what = f" ({', '.join(names)})" if names else ""
    raise UserError(
        f"{path}: holds more than weights and plain values{what}, or is damaged; it is not unpickled, because that could "
        "run code: where you trust it, load it yourself and save its weights and configuration alone"
    )


def read_old(path: Path) -> OldFile:
    """Reads a `.pt` file without executing anything in it. UserError for whatever is not weights and plain values."""
    content = _load(path)
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: holds {type(content).__name__} and no mapping; save a mapping with the weights under 'model'"
        )
    entries = tuple(str(name) for name in content)
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return OldFile(path, _weights(path, content), "", (), {}, {}, None, entries)
    names = [name for name in MODEL_NAMES if name in content]
    if len(names) != 1:
        raise UserError(
            f"{path}: holds {', '.join(entries) or 'nothing'}, and of {', '.join(MODEL_NAMES)} there must be exactly one; "
            "save the weights under one of them"
        )
    (taken,), config = names, content.get("config")
    if not isinstance(config, dict | None):
        raise UserError(
            f"{path}: its config is {type(config).__name__} and no mapping; save it as a dict, or leave it out and give flags"
        )
    tensors, metrics = _weights(path, content[taken]), content.get("metrics")
    wanted = {unwrapped(key) for key in tensors}
    copies = [name for name, keys in _mappings(content) if name != taken and wanted <= {*map(unwrapped, keys)}]
    return OldFile(
        path, tensors, taken, tuple(copies), {str(name): value for name, value in (config or {}).items()},
        {str(k): v for k, v in metrics.items() if isinstance(v, int | float)} if isinstance(metrics, dict) else {},
        epoch if isinstance(epoch := content.get("epoch"), int) else None, entries,
    )  # fmt: skip


def _weights(path: Path, state: object) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path}: its model is no mapping of tensors; save the model's state_dict() there")
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor) or not isinstance(key, str):
            raise UserError(f"{path}: {key!r} of its model is no tensor; save the model's state_dict() there")
    check_tensors(state, path)
    return dict(state)


def _mappings(content: Mapping[Any, Any], within: str = "", depth: int = 4) -> Iterator[tuple[str, list[str]]]:
    """Name and text keys of each mapping inside `content`, as "ema" or "ema.shadow"."""
    for name, value in content.items():
        if isinstance(value, dict) and depth:
            yield f"{within}{name}", [key for key in value if isinstance(key, str)]
            yield from _mappings(value, f"{within}{name}.", depth - 1)


def unwrapped(key: str) -> str:
    """A tensor's name without what wrappers put into it."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)
