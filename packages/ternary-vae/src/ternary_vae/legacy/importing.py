"""Bringing in a `.pt` file of the original study's layout, as a finished run whose checkpoint can be verified.

Such a file holds the weights under one of three names, a configuration spelled in three ways, and no probe. What the
tensors' shapes determine is taken from them and checked against what is declared; what no tensor shows (curvature,
max_radius, the share of dropout) must be declared, by the file or by flags. Nothing is loaded by position or in part:
every tensor goes through an explicit map of names, and one too many or too few is an error. Nothing in the file is
executed: it is read with `weights_only=True`, and numpy's scalars, which its metrics are made of, become plain numbers.

The original study did not clamp log variances; ours are clamped, so that metrics of samples may differ from its own.
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

from studycore.configuration import build, check_types, read_yaml, to_dict
from studycore.errors import UserError
from studycore.files import sha256
from studycore.study import Study
from ternary_vae.config import ArchitectureConfig, ImportOptions, TrainConfig
from ternary_vae.model import TernaryVAE, architecture_of, count_parameters, probe_inputs, replay_probe

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
PARTS = (
    *(f"encoder_{x}.{part}." for x in "AB" for part in ("encoder", "fc_mu", "fc_logvar")),
    *(f"projection.proj_{x}.{part}." for x in "AB" for part in ("direction_net", "radius_net", "manifold")),
    "decoder_A.decoder.",
    "controller.net.",
)
KEY_MAP: KeyMap = {
    **{prefix: prefix for prefix in PARTS},
    # One projection for both encoders was no submodule of its own.
    **{f"projection.{part}.": f"projection.proj_A.{part}." for part in ("direction_net", "radius_net", "manifold")},
}
"""Prefixes of the original layout's keys and ours; null drops what begins so."""
MANIFOLD = re.compile(r"(^|\.)manifold\.isp_c$")
"""geoopt's curvature, as the inverse softplus of c."""
ISP_TOLERANCE = 1e-4
DROPOUTS = ("encoder_dropout", "projection_dropout")
ORIGINAL = {"radius": "euclidean", "encoder_dropout": 0.0}
"""What the original layout was where neither file nor flags say it; its encoders without LayerNorm had ReLU."""

NUMBER_CODES = {
    "f2": "e", "f4": "f", "f8": "d", "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q",
    "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
}  # fmt: skip
"""Plain number types of numpy and their codes in `struct`."""


# ------------------------------------------------------------------------------------------------------- the old file
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
UNREADABLE = (RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError, AttributeError, AssertionError)
"""What torch.load raises for files that are none of its own, or damaged."""


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
    except UNREADABLE as error:
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
    config, metrics = (value if isinstance(value := content.get(name), dict) else {} for name in ("config", "metrics"))
    return OldFile(
        path,
        _tensors(path, content[names[0]]),
        {str(name): value for name, value in config.items()},
        {str(name): value for name, value in metrics.items() if isinstance(value, int | float)},
        epoch if isinstance(epoch := content.get("epoch"), int) else None,
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
        if name in found and found[name] != value:
            raise UserError(
                f"{old.path}: its configuration gives {name} twice, as {found[name]} and {value}; give its flag"
            )
        if name in names:
            found[name] = value
    try:
        return check_types(ArchitectureConfig, found)
    except UserError as error:
        raise UserError(f"{old.path}: its configuration: {error}") from None


# ---------------------------------------------------------------------------------------------- names and architecture
def rename(tensors: Mapping[str, Tensor], *maps: KeyMap) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Tensors under our names, by the longest prefix that fits of the first map that has one.

    Besides, the keys that no prefix fits, and those that a map drops. UserError where two keys would get one name.
    """
    renamed: dict[str, Tensor] = {}
    left, dropped = [], []
    for key, tensor in tensors.items():
        fitting = [(max(some, key=len), map_) for map_ in maps if (some := [p for p in map_ if key.startswith(p)])]
        if not fitting:
            left.append(key)
            continue
        prefix, map_ = fitting[0]
        if (ours := map_[prefix]) is None:
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
    return sorted((int(match.group(1)), shape) for key, shape in shapes.items() if (match := pattern.match(key)))


def shown_fields(shapes: Shapes) -> dict[str, Any]:
    """The architecture's fields as far as tensors' names and shapes show them.

    A dropout shows as the index that it takes in a Sequential: its field is true or false, whether there is any (a net
    with nothing behind its dropout does not tell). `manifold`: whether geoopt's curvature is among the tensors.
    """
    found: dict[str, Any] = {
        "use_controller": any(key.startswith("controller.") for key in shapes),
        "manifold": any(MANIFOLD.search(key) for key in shapes),
    }
    if any(key.startswith("projection.proj_A.") for key in shapes):
        found["use_dual_projection"] = any(key.startswith("projection.proj_B.") for key in shapes)
    encoder = _layers(shapes, "encoder_A.encoder")
    linear = [(index, shape) for index, shape in encoder if len(shape) == 2]
    if linear:
        found["trits"] = linear[0][1][1]
        found["encoder_sizes"] = [shape[0] for _, shape in linear]
        found["encoder_norm"] = len(encoder) > len(linear)
        if len(linear) > 1:
            found["encoder_dropout"] = linear[1][0] - linear[0][0] > 2 + found["encoder_norm"]
    if "encoder_A.fc_mu.weight" in shapes:
        found["latent_dim"] = shapes["encoder_A.fc_mu.weight"][0]
    if decoder := _layers(shapes, "decoder_A.decoder"):
        found["decoder_sizes"] = [shape[0] for _, shape in decoder[:-1]]
    linear = [(index, shape) for index, shape in _layers(shapes, "projection.proj_A.direction_net") if len(shape) == 2]
    if len(linear) > 1:
        found["hidden_dim"] = linear[0][1][0]
        found["n_projection_layers"] = len(linear) - 1
        found["projection_dropout"] = linear[1][0] - linear[0][0] > 3
    return found


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Key to shape."""
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _dtype(path: Path, tensors: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> str | None:
    """The one precision of the tensors whose keys begin so; None where there are none."""
    names = {str(tensor.dtype).removeprefix("torch.") for key, tensor in tensors.items() if key.startswith(prefixes)}
    if len(names) > 1 or not names <= {"float32", "float64"}:
        raise UserError(
            f"{path}: {prefixes[0]}* and its like are {', '.join(sorted(names))}; convert them to float32 or float64 alone"
        )
    return names.pop() if names else None


def architecture(old: OldFile, tensors: Mapping[str, Tensor], flags: Mapping[str, Any]) -> ArchitectureConfig:
    """The architecture of a file whose tensors have our names: flags, else its configuration, agreeing with the tensors.

    UserError where a declaration contradicts the tensors, and where neither says what must be known.
    """
    said = {**declared_fields(old), **flags}
    values = {**ORIGINAL, **said}
    shown = {name: value for name, value in shown_fields(shapes_of(tensors)).items() if name != "manifold"}
    shown["dtype"] = _dtype(old.path, tensors, ("encoder_", "decoder_", "controller."))
    shown["projection_dtype"] = _dtype(old.path, tensors, ("projection.",))
    for name, value in shown.items():
        source, flag = "the flag" if name in flags else "its configuration", f"--{name.replace('_', '-')}"
        if name in DROPOUTS:
            if value and name not in said:
                raise UserError(
                    f"{old.path}: {name}: the tensors' indices show dropout, of a share that nothing says; give {flag}, such as 0.1"
                )
            if bool(values.get(name, value)) != value:
                raise UserError(
                    f"{old.path}: {name}: {source} says {values[name]} and the tensors' indices show "
                    f"{'dropout' if value else 'none'}; give {flag} {'above 0, such as 0.1' if value else '0'}"
                )
        elif value is not None and values.setdefault(name, value) != value:
            raise UserError(
                f"{old.path}: {name}: {source} says {values[name]} and the tensors say {value}; "
                f"give {flag} {value} if the tensors are right"
            )
    if not values.get("encoder_norm"):
        values.setdefault("activation", "relu")
    if lacking := [name for name in ("curvature", "max_radius", "activation") if name not in values]:
        flags_to_give = " and ".join(f"--{name.replace('_', '-')}" for name in lacking)
        raise UserError(
            f"{old.path}: {', '.join(lacking)}: shown in no tensor and not said by its configuration; give {flags_to_give}"
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
    with torch.device("meta"):
        wanted = shapes_of(TernaryVAE(**architecture_of(config)).state_dict())
    found = shapes_of(kept)
    wrong = [f"{key} is missing" for key in wanted if key not in found]
    wrong += [f"{key} is left over" for key in found if key not in wanted]
    wrong += [
        f"{key} is {list(shape)} and not {list(wanted[key])}"
        for key, shape in found.items()
        if wanted.get(key, shape) != shape
    ]
    if wrong:
        raise UserError(f"{old.path}: does not fit its architecture: {'; '.join(wrong)}; mend flags or --key-map")
    return config, kept, [*dropped, *manifold]


# --------------------------------------------------------------------------------------------------------- the new run
def import_file(
    study: Study, file: Path, folder: Path, flags: Mapping[str, Any], options: ImportOptions, argv: list[str]
) -> dict[str, Any]:
    """Makes the finished run `folder` of an old file and returns its metrics."""
    from studycore.checkpoints import save_checkpoint
    from studycore.claims import as_stored
    from studycore.devices import describe
    from studycore.execution import closing
    from studycore.report import write_results
    from studycore.run_folder import create_run
    from ternary_vae.claims import claims
    from ternary_vae.data import Operations
    from ternary_vae.metrics.evaluate import all_metrics
    from ternary_vae.metrics.final import baselines

    old = read_old(file)
    architecture, tensors, dropped = convert(old, flags, read_key_map(options.key_map))
    config: TrainConfig = build(
        TrainConfig, {**architecture_of(architecture), "stages": "coverage", "view": options.view}
    )
    model = TernaryVAE(**architecture_of(config))
    model.load_state_dict(tensors, strict=True)
    model.eval()
    metrics = all_metrics(model, Operations.all(config.trits), config.view, config.seed)
    inputs = probe_inputs(config.trits)
    run = create_run(
        folder, study=study, verb="import", config=to_dict(config), argv=argv, seeds=[config.seed], devices=describe("cpu"),
        data={"file": sha256(file)}, claims=[as_stored(claim) for claim in claims("import", config)], parameters=count_parameters(model),
        imported={"file": file.name, "sha256": sha256(file), "epoch": old.epoch, "dropped": dropped},
    )  # fmt: skip
    with closing(run):
        run.metrics.append({"step": 0, "stage": "coverage", "epoch": 0, **metrics})
        save_checkpoint(
            folder / "checkpoints", 0, config=to_dict(config), model=tensors, optimizer={}, best=True,
            state={"loop": "coverage", "index": 0, "rows": 1, "best": metrics["coverage"], "state": {"metrics": metrics}},
            probe={**inputs, **replay_probe(model, inputs)},
        )  # fmt: skip
        run.metrics.compact()
        write_results(folder, study.name, "import", {**metrics, "baselines": baselines(config)}, [])
        run.finish("done", f"imported {file.name}")
    return metrics
