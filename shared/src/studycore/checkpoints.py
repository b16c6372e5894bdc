"""Checkpoints that survive kill -9 and refuse to load as something else.

    step-<n>/  config.json          every constructor argument of what was saved
               model.safetensors    optimizer.safetensors
               state.json           the loop's own numbers
               probe.safetensors    fixed inputs and the outputs they gave
               manifest.json        sha256 of each of these, written last

Writing: a temporary folder beside it, fsync of each file, manifest last, os.replace, fsync of the parent, then the
index, then pruning. Loading: checksums, the model built from config.json, strict loading, the probe replayed.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from studycore.configuration import differences
from studycore.errors import UserError
from studycore.files import read_json, sha256, sync_folder, write_json, write_tensors
from studycore.foreign import reading

FILES = ("config.json", "model.safetensors", "optimizer.safetensors", "state.json", "probe.safetensors")
Tensors = Mapping[str, Tensor]
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Checkpoint:
    """What was read, with checksums verified."""

    path: Path
    step: int
    config: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    probe: dict[str, Tensor]


def save_checkpoint(
    root: Path,
    step: int,
    *,
    config: Mapping[str, Any],
    model: Tensors,
    optimizer: Tensors,
    state: Mapping[str, Any],
    probe: Tensors,
    best: bool = False,
    keep: int = 2,
) -> Path:
    """Writes root/step-<step>, names it `last` (and `best`, on request) in root/index.json, then prunes.

    `probe` holds inputs under names that start with "input" and outputs under names that start with "output". The newest
    `keep` checkpoints and the best one stay. A whole checkpoint of that step and state is kept as it is: the rest is
    determined by them, and writing it again could only lose it.
    """
    assert any(key.startswith("output") for key in probe), "a probe without outputs proves nothing"
    root.mkdir(parents=True, exist_ok=True)
    target, temporary = root / f"step-{step}", root / f"tmp-step-{step}"
    if not _is_there(target, state):
        _write(target, temporary, step, config, model, optimizer, state, probe)
    try:
        index = read_index(root)
    except UserError as error:
        print(f"started anew: {error}", file=sys.stderr)
        index = {}
    index |= {"last": target.name} | ({"best": target.name} if best else {})
    write_json(root / "index.json", index)
    prune(root, keep)
    return target


def _is_there(path: Path, state: Mapping[str, Any]) -> bool:
    """Whether a whole checkpoint of this state is there; one from before an evaluation that was given up has another."""
    try:
        return load_checkpoint(path).state == json.loads(json.dumps(state))
    except UserError:
        return False


def _write(
    target: Path,
    temporary: Path,
    step: int,
    config: Mapping[str, Any],
    model: Tensors,
    optimizer: Tensors,
    state: Mapping[str, Any],
    probe: Tensors,
) -> None:
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    (temporary / "config.json").write_text(json.dumps(config, indent=2, allow_nan=False), encoding="utf-8")
    (temporary / "state.json").write_text(json.dumps(state, indent=2, allow_nan=False), encoding="utf-8")
    for name, tensors in (("model", model), ("optimizer", optimizer), ("probe", probe)):
        write_tensors(temporary / f"{name}.safetensors", tensors)
    for name in FILES:
        with open(temporary / name, "rb") as file:
            os.fsync(file.fileno())
    write_json(
        temporary / "manifest.json", {"step": step, "sha256": {name: sha256(temporary / name) for name in FILES}}
    )
    if target.exists():
        shutil.rmtree(target)
    os.replace(temporary, target)
    sync_folder(target.parent)


def read_index(root: Path) -> dict[str, str]:
    """The names `last` and `best`; UserError when the file is damaged."""
    path = root / "index.json"
    index = read_json(path) if path.exists() else {}
    if (
        not isinstance(index, dict)
        or not set(index) <= {"last", "best"}
        or not all(isinstance(v, str) for v in index.values())
    ):
        raise UserError(f"{path}: does not name the last and the best checkpoint; remove it, the next save writes it")
    return index


def prune(root: Path, keep: int) -> None:
    """Removes what unfinished writes left and all but the newest `keep` checkpoints and the best one."""
    kept = {path.name for path in steps(root)[-keep:]} | set(read_index(root).values())
    for path in [*steps(root), *root.glob("tmp-step-*")]:
        if path.name not in kept:
            shutil.rmtree(path)
    for file in root.glob(".*.tmp"):
        file.unlink()


def steps(root: Path) -> list[Path]:
    """Checkpoint folders by step; what has another name, such as a copy that somebody made, is none."""
    folders = [path for path in root.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")))


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads and verifies one checkpoint folder. UserError says what is wrong with it."""
    from safetensors.torch import load_file

    if not (path / "manifest.json").exists():
        raise UserError(f"{path}: no manifest.json, so the checkpoint was never completed; use another one")
    manifest = read_json(path / "manifest.json")
    sums = manifest.get("sha256") if isinstance(manifest, dict) else None
    if not isinstance(sums, dict) or set(sums) != set(FILES) or not isinstance(manifest.get("step"), int):
        raise UserError(f"{path}/manifest.json: does not list {', '.join(FILES)} and the step; use another checkpoint")
    if path.name != f"step-{manifest['step']}":
        raise UserError(
            f"{path}/manifest.json: is of step {manifest['step']}, the folder's name of another; use another checkpoint"
        )
    for name, expected in sums.items():
        if not (path / name).exists():
            raise UserError(f"{path}/{name}: missing; use another checkpoint")
        try:
            checksum = sha256(path / name)
        except OSError as error:
            raise UserError(f"{path}/{name}: cannot be read ({error.strerror}); use another checkpoint") from None
        if checksum != expected:
            raise UserError(
                f"{path}/{name}: its checksum differs from the manifest's (damaged); use another checkpoint"
            )
    tensors = {}
    for name in ("model", "optimizer", "probe"):
        with reading(path / f"{name}.safetensors", "safetensors"):
            tensors[name] = load_file(path / f"{name}.safetensors")
    values = {name: read_json(path / f"{name}.json") for name in ("config", "state")}
    for name, value in values.items():
        if not isinstance(value, dict):
            raise UserError(f"{path}/{name}.json: holds no mapping; use another checkpoint")
    return Checkpoint(path, manifest["step"], **values, **tensors)


def load_latest(root: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies, saying on stderr why newer ones were passed over; None if there is none.

    UserError when there are checkpoints and none of them verifies.
    """
    folders = steps(root) if root.is_dir() else []
    for path in reversed(folders):
        try:
            return load_checkpoint(path)
        except UserError as error:
            print(f"passed over: {error}", file=sys.stderr)
    if folders:
        raise UserError(
            f"{root}: none of the {len(folders)} checkpoints verifies; remove the folder to start at step 0"
        )
    return None


def rebuild(
    checkpoint: Checkpoint,
    build: Callable[[dict[str, Any]], Model],
    replay: Callable[[Model, dict[str, Tensor]], dict[str, Tensor]],
    expected: Mapping[str, Any] | None = None,
    tolerance: float = 1e-5,
) -> Model:
    """The model, built from the checkpoint's own configuration, loaded strictly and checked on its probe.

    `replay(model, inputs)` returns the probe's outputs. `expected` is the caller's own idea of the configuration; where
    it differs from the stored one, UserError lists field by field how. `tolerance` is relative to the largest stored
    output: it passes other threads and library versions (rounding) and nothing that changes the function.
    """
    if expected is not None and (differing := differences(checkpoint.config, expected)):
        raise UserError(
            f"{checkpoint.path}: of another architecture: {'; '.join(differing)}; use its own configuration"
        )
    model = build(checkpoint.config)
    try:
        model.load_state_dict(checkpoint.model, strict=True)
    except RuntimeError as error:
        raise UserError(f"{checkpoint.path}: does not fit its configuration: {' '.join(str(error).split())}") from None
    # Strict loading converts silently.
    built = {key: value.dtype for key, value in model.state_dict().items()}
    if other := [key for key, tensor in checkpoint.model.items() if tensor.dtype != built[key]]:
        raise UserError(
            f"{checkpoint.path}: {other[0]} is stored as {checkpoint.model[other[0]].dtype} and its configuration makes it "
            f"{built[other[0]]}: another configuration wrote it; use its own"
        )
    with torch.no_grad():
        outputs = replay(model, {key: value for key, value in checkpoint.probe.items() if key.startswith("input")})
    for key, stored in checkpoint.probe.items():
        if not key.startswith("output"):
            continue
        if key not in outputs:
            raise UserError(
                f"{checkpoint.path}: its probe stores {key}, which this version does not give; use the version that wrote it"
            )
        got = outputs[key].detach().cpu()
        apart = (
            float((got - stored).abs().max() / stored.abs().max().clamp_min(1e-30))
            if got.shape == stored.shape
            else float("inf")
        )
        if not apart <= tolerance:
            raise UserError(
                f"{checkpoint.path}: replaying its probe changes {key} by {apart:.1e} of its maximum (allowed "
                f"{tolerance:.0e}): the code or a setting outside the weights is another; use the version that wrote it"
            )
    return model


def optimizer_tensors(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimizers' state by parameter name: "<parameter>/<entry>", such as "head.weight/exp_avg"."""
    states = [optimizer.state for optimizer in optimizers]
    return {
        f"{name}/{entry}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for state in states
        for entry, value in state.get(parameter, {}).items()
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Puts back what `optimizer_tensors` gave for the optimizer's own parameters. UserError for a name of no parameter.

    Names with a colon are a loop's own tensors.
    """
    parameters = dict(model.named_parameters())
    own = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    for full, tensor in tensors.items():
        name, _, entry = full.rpartition("/")
        if name not in parameters and ":" not in full:
            raise UserError(
                f"optimizer.safetensors: {full} belongs to no parameter of the model; use another checkpoint"
            )
        if name in parameters and parameters[name] in own:
            # AdamW keeps its step count on the CPU, unless it is fused or capturable.
            on_device = own[parameters[name]].get("fused") or own[parameters[name]].get("capturable")
            value = tensor.clone() if entry == "step" and not on_device else tensor.to(parameters[name].device)
            optimizer.state[parameters[name]][entry] = value
