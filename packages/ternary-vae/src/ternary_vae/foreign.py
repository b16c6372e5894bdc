"""Bringing in a `.pt` file of the seed study's layout, as a finished run whose checkpoint can be verified.

Such a file holds the weights under one of three names, a configuration spelled in three ways, and no probe. What the
tensors' shapes determine is taken from them and checked against what is declared; what no tensor shows (curvature,
max_radius, the share of dropout) must be declared, by the file or by flags. Nothing is loaded by position or in part:
every tensor goes through an explicit map of names, and one too many or too few is an error. Nothing in the file is
executed: it is read with `weights_only=True`, and numpy's scalars, which its metrics are made of, become plain numbers.

The old study did not clamp log variances; ours are clamped, so that metrics of samples may differ from its own.
"""

import dataclasses
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studycore.configuration import build, check_types, read_yaml
from studycore.errors import UserError
from studycore.files import sha256
from ternary_vae.config import ArchitectureConfig, ImportOptions, TrainConfig
from ternary_vae.model import TernaryVAEV5_11_PartialFreeze, architecture_of

Shapes = Mapping[str, tuple[int, ...]]
KeyMap = Mapping[str, str | None]
PICKLED = (".pt", ".pth", ".ckpt")
"""Endings of files that this module reads."""
MODEL_NAMES = ("model", "model_state", "model_state_dict")
"""Under which the weights lie: V5.5, V5.11's training, the sweeps."""
SPELLINGS = {
    "dual_projection": "use_dual_projection",
    "projection_hidden_dim": "hidden_dim",
    "projection_layers": "n_projection_layers",
}
"""Other spellings of our fields in the file's configuration."""
KEY_MAP: KeyMap = {
    **{
        prefix: prefix
        for x in "AB"
        for prefix in (
            f"encoder_{x}.encoder.",
            f"encoder_{x}.fc_mu.",
            f"encoder_{x}.fc_logvar.",
            f"projection.proj_{x}.direction_net.",
            f"projection.proj_{x}.radius_net.",
            f"projection.proj_{x}.manifold.",
        )
    },
    "decoder_A.decoder.": "decoder_A.decoder.",
    "controller.net.": "controller.net.",
    # One projection for both encoders was no submodule of its own.
    "projection.direction_net.": "projection.proj_A.direction_net.",
    "projection.radius_net.": "projection.proj_A.radius_net.",
    "projection.manifold.": "projection.proj_A.manifold.",
}
"""Prefixes of the old layout's keys and ours; null drops what begins so."""
MANIFOLD = re.compile(r"(^|\.)manifold\.isp_c$")
"""geoopt's curvature, as the inverse softplus of c."""
ISP_TOLERANCE = 1e-4
OLD = {"radius": "euclidean", "encoder_dropout": 0.0}
"""What the old layout was where neither file nor flags say it."""

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


def read_old(path: Path) -> OldFile:
    """Reads a `.pt` file without executing anything in it. UserError for whatever is not weights and plain values."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; check the name")
    try:
        with torch.serialization.safe_globals(STAND_INS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)|numpy[^.;\n]*", str(error))
        what = f" ({named.group(1) or named.group(0)})" if named else ""
        raise UserError(
            f"{path}: holds more than weights and plain values{what}, or is damaged; it is not unpickled, because that could "
            "run code: where you trust it, load it yourself and save its weights and configuration alone"
        ) from None
    except (
        RuntimeError,
        EOFError,
        OSError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        AssertionError,
    ) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{path}: cannot be read as a PyTorch file ({reason}); fetch it anew") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: holds {type(content).__name__} and no mapping; save a mapping with the weights under 'model'"
        )
    entries = tuple(str(name) for name in content)
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return OldFile(path, _tensors(path, content), {}, {}, None, entries)
    names = [name for name in MODEL_NAMES if name in content]
    if len(names) != 1:
        raise UserError(
            f"{path}: holds {', '.join(entries) or 'nothing'}, and of {', '.join(MODEL_NAMES)} there must be exactly one; "
            "save the weights under one of them"
        )
    config, metrics, epoch = content.get("config"), content.get("metrics"), content.get("epoch")
    return OldFile(
        path,
        _tensors(path, content[names[0]]),
        {str(k): v for k, v in config.items()} if isinstance(config, dict) else {},
        {str(k): v for k, v in metrics.items() if isinstance(v, int | float)} if isinstance(metrics, dict) else {},
        epoch if isinstance(epoch, int) else None,
        entries,
    )


def _tensors(path: Path, state: object) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path}: its model is no mapping of tensors; save the model's state_dict() there")
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor) or not isinstance(key, str):
            raise UserError(f"{path}: {key!r} of its model is no tensor; save the model's state_dict() there")
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{path}: {key} holds NaN or infinity; use an earlier checkpoint")
    return dict(state)


def declared_fields(old: OldFile) -> dict[str, Any]:
    """The architecture's fields that the file's configuration declares, under our names."""
    names = {f.name for f in dataclasses.fields(ArchitectureConfig)}
    found: dict[str, Any] = {}
    for key, value in old.config.items():
        name = SPELLINGS.get(key, key)
        if name not in names:
            continue
        if name in found and found[name] != value:
            raise UserError(
                f"{old.path}: its configuration gives {name} twice, as {found[name]} and {value}; give its flag"
            )
        found[name] = value
    try:
        return check_types(ArchitectureConfig, found)
    except UserError as error:
        raise UserError(f"{old.path}: its configuration: {error}") from None


def rename(tensors: Mapping[str, Tensor], *maps: KeyMap) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Tensors under our names, by the longest prefix that fits of the first map that has one.

    Besides, the keys that no prefix fits, and those that a map drops. UserError where two keys would get one name.
    """
    renamed: dict[str, Tensor] = {}
    left, dropped = [], []
    for key, tensor in tensors.items():
        fitting = ([prefix for prefix in prefixes if key.startswith(prefix)] for prefixes in maps)
        found = next(
            ((max(some, key=len), prefixes) for some, prefixes in zip(fitting, maps, strict=True) if some), None
        )
        if found is None:
            left.append(key)
            continue
        prefix, prefixes = found
        ours = prefixes[prefix]
        if ours is None:
            dropped.append(key)
            continue
        name = ours + key.removeprefix(prefix)
        if name in renamed:
            raise UserError(f"--key-map: {key} and another tensor would both be {name}; let one of them go (null)")
        renamed[name] = tensor
    return renamed, left, dropped


def read_key_map(path: str | None) -> dict[str, str | None]:
    """The prefixes of a user's file; none without one."""
    own = {} if path is None else read_yaml(Path(path))
    for prefix, ours in own.items():
        if not (ours is None or isinstance(ours, str)):
            raise UserError(f"{path}: {prefix}: {ours!r} is no prefix; give text, or null to drop what begins so")
    return own


def _layers(shapes: Shapes, prefix: str) -> list[tuple[int, tuple[int, ...]]]:
    """Index and weight's shape of each layer with weights in a Sequential."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.weight$")
    return sorted((int(m.group(1)), shape) for key, shape in shapes.items() if (m := pattern.match(key)))


def layout_of(shapes: Shapes) -> dict[str, Any]:
    """What tensors' names and shapes say of the architecture: fields of ArchitectureConfig as far as they show.

    Besides, dropouts_seen names the fields whose dropout moved indices, as a mapping to whether it did (a net with
    nothing behind its dropout does not tell), and manifold says whether geoopt's curvature is among the tensors.
    """
    found: dict[str, Any] = {
        "use_controller": any(key.startswith("controller.") for key in shapes),
        "manifold": any(MANIFOLD.search(key) for key in shapes),
    }
    if any(key.startswith("projection.proj_A.") for key in shapes):
        found["use_dual_projection"] = any(key.startswith("projection.proj_B.") for key in shapes)
    seen: dict[str, bool] = {}
    encoder = _layers(shapes, "encoder_A.encoder")
    linear = [(index, shape) for index, shape in encoder if len(shape) == 2]
    if linear:
        found["trits"] = linear[0][1][1]
        found["encoder_sizes"] = [shape[0] for _, shape in linear]
        found["encoder_norm"] = len(encoder) > len(linear)
        if len(linear) > 1:
            seen["encoder_dropout"] = linear[1][0] - linear[0][0] > 2 + found["encoder_norm"]
    if "encoder_A.fc_mu.weight" in shapes:
        found["latent_dim"] = shapes["encoder_A.fc_mu.weight"][0]
    if decoder := _layers(shapes, "decoder_A.decoder"):
        found["decoder_sizes"] = [shape[0] for _, shape in decoder[:-1]]
    linear = [(index, shape) for index, shape in _layers(shapes, "projection.proj_A.direction_net") if len(shape) == 2]
    if len(linear) > 1:
        found["hidden_dim"] = linear[0][1][0]
        found["n_projection_layers"] = len(linear) - 1
        seen["projection_dropout"] = linear[1][0] - linear[0][0] > 3
    return {**found, "dropouts_seen": seen}


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Key to shape."""
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def built_shapes(config: ArchitectureConfig) -> dict[str, tuple[int, ...]]:
    """Key to shape of the model that a configuration builds."""
    with torch.device("meta"):
        return shapes_of(TernaryVAEV5_11_PartialFreeze(**architecture_of(config)).state_dict())


def _dtype(path: Path, tensors: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> str | None:
    names = {str(tensor.dtype).removeprefix("torch.") for key, tensor in tensors.items() if key.startswith(prefixes)}
    if not names:
        return None
    if len(names) > 1 or not names <= {"float32", "float64"}:
        raise UserError(
            f"{path}: {prefixes[0]}* and its like are {', '.join(sorted(names))}; convert them to float32 or float64 alone"
        )
    return names.pop()


def architecture(old: OldFile, tensors: Mapping[str, Tensor], flags: Mapping[str, Any]) -> ArchitectureConfig:
    """The architecture of a file whose tensors have our names: flags, else its configuration, agreeing with the shapes.

    UserError where a declaration contradicts the tensors, and where neither says what must be known.
    """
    layout = layout_of(shapes_of(tensors))
    values = {**OLD, **declared_fields(old), **flags}
    fields = {f.name for f in dataclasses.fields(ArchitectureConfig)}
    shown = {name: value for name, value in layout.items() if name in fields}
    shown["dtype"] = _dtype(old.path, tensors, ("encoder_", "decoder_", "controller."))
    shown["projection_dtype"] = _dtype(old.path, tensors, ("projection.",))

    def source(name: str) -> str:
        return "the flag" if name in flags else "its configuration"

    for name, value in shown.items():
        if value is None:
            continue
        if name in values and values[name] != value:
            raise UserError(
                f"{old.path}: {name}: {source(name)} says {values[name]} and the tensors say {value}; "
                f"give --{name.replace('_', '-')} {value} if the tensors are right"
            )
        values[name] = value
    for name, seen in layout["dropouts_seen"].items():
        flag = f"--{name.replace('_', '-')}"
        if seen and name not in {**declared_fields(old), **flags}:
            raise UserError(
                f"{old.path}: {name}: the tensors' indices show dropout, of a share that nothing says; give {flag}, such as 0.1"
            )
        if name in values and bool(values[name]) != seen:
            raise UserError(
                f"{old.path}: {name}: {source(name)} says {values[name]} and the tensors' indices show "
                f"{'dropout' if seen else 'none'}; give {flag} {'above 0, such as 0.1' if seen else '0'}"
            )
    if "activation" not in values and not values.get("encoder_norm"):
        values["activation"] = "relu"
    for name in ("curvature", "max_radius", "activation"):
        if name not in values:
            raise UserError(
                f"{old.path}: {name}: shows in no tensor and its configuration does not say it; give "
                f"--{name.replace('_', '-')}"
            )
    config: ArchitectureConfig = build(ArchitectureConfig, values)
    return config


def check_manifold(old: OldFile, tensors: Mapping[str, Tensor], curvature: float) -> list[str]:
    """Keys of geoopt's curvature, after checking each against the declared one."""
    keys = [key for key in tensors if MANIFOLD.search(key)]
    for key in keys:
        c = float(torch.nn.functional.softplus(tensors[key].double()).mean())
        if not abs(c - curvature) <= ISP_TOLERANCE:
            raise UserError(
                f"{old.path}: curvature: {curvature} is declared and {key} says {c:.6g}; give --curvature {c:.6g} if the "
                "tensor is right"
            )
    return keys


def convert(
    old: OldFile, flags: Mapping[str, Any], own: KeyMap
) -> tuple[ArchitectureConfig, dict[str, Tensor], list[str]]:
    """Architecture and weights of an old file under our names, and the keys that were let go.

    UserError lists keys that are left over, missing or of another shape.
    """
    tensors, left, dropped = rename(old.tensors, own, KEY_MAP)
    if left:
        raise UserError(f"{old.path}: no name here for {', '.join(left)}; name them in a --key-map")
    config = architecture(old, tensors, flags)
    manifold = check_manifold(old, tensors, config.curvature)
    kept = {key: tensor for key, tensor in tensors.items() if key not in manifold}
    wanted, found = built_shapes(config), shapes_of(kept)
    wrong = [f"{key} is missing" for key in wanted if key not in found]
    wrong += [f"{key} is left over" for key in found if key not in wanted]
    wrong += [
        f"{key} is {list(found[key])} and not {list(wanted[key])}"
        for key in wanted
        if key in found and found[key] != wanted[key]
    ]
    if wrong:
        raise UserError(f"{old.path}: does not fit its architecture: {'; '.join(wrong)}; mend flags or --key-map")
    return config, kept, [*dropped, *manifold]


def import_file(
    file: Path, folder: Path, flags: Mapping[str, Any], options: ImportOptions, argv: list[str]
) -> dict[str, Any]:
    """Makes the finished run `folder` of an old file and returns its metrics."""
    from studycore.devices import describe
    from studycore.report import write_results
    from studycore.runs import recording
    from ternary_vae.evaluate import all_metrics
    from ternary_vae.model import count_parameters
    from ternary_vae.operations import Operations
    from ternary_vae.record import STUDY, open_or_create, save_checkpoint
    from ternary_vae.train import Progress

    old = read_old(file)
    architecture, tensors, dropped = convert(old, flags, read_key_map(options.key_map))
    config: TrainConfig = build(
        TrainConfig, {**architecture_of(architecture), "stages": "coverage", "view": options.view}
    )
    model = TernaryVAEV5_11_PartialFreeze(**architecture_of(config))
    model.load_state_dict(tensors, strict=True)
    model.eval()
    metrics = all_metrics(model, Operations.all(config.trits), config.view, config.seed)
    at = Progress(rows=1, ended=True, metrics=metrics, best=metrics["coverage"])
    run = open_or_create(folder, config, argv, describe("cpu"), resume=False, verb="import")
    with recording(run):
        run.metrics.append({"step": 0, "stage": "coverage", "epoch": 0, **metrics})
        save_checkpoint(folder / "checkpoints", 0, config, tensors, {}, dataclasses.asdict(at), best=True)
        run.metrics.write_part()
        run.metrics.compact()
        brought = {"file": file.name, "sha256": sha256(file), "epoch": old.epoch, "dropped": dropped}
        run.update(parameters=count_parameters(model), imported=brought)
        write_results(folder, STUDY, "import", metrics, [])
        run.finish("done", f"imported {file.name}")
    return metrics
