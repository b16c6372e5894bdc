"""What is in a checkpoint, whether it rebuilds, and if not, why: one sentence for each cause.

Rebuilding is what loading does: checksums, the model built from the complete stored configuration, strict loading, the
probe replayed, the stored metrics computed again. Where names or shapes differ, the architecture that the tensors show is
compared with the one that the configuration builds, so that a cause is a field and not a list of keys. Where they all fit
and the probe differs, each field that shows in no tensor is tried alone.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from studycore.checkpoints import FILES, Checkpoint, load_checkpoint, rebuild
from studycore.configuration import from_dict
from studycore.errors import UserError
from studycore.files import read_json, sha256
from ternary_vae.config import ArchitectureConfig, TrainConfig
from ternary_vae.foreign import (
    KEY_MAP,
    MANIFOLD,
    PICKLED,
    Shapes,
    built_shapes,
    check_manifold,
    declared_fields,
    layout_of,
    read_old,
    rename,
    shapes_of,
)
from ternary_vae.model import TernaryVAEV5_11_PartialFreeze
from ternary_vae.record import build_model, check_metrics, find_checkpoint, replay_probe

Build = Callable[[Mapping[str, Any], Path], TernaryVAEV5_11_PartialFreeze]
FIELD_KEYS = {
    "trits": r"encoder_.\.encoder\.|decoder_A\.",
    "latent_dim": r"encoder_.\.fc_|decoder_A\.|projection\.",
    "encoder_sizes": r"encoder_",
    "encoder_norm": r"encoder_.\.encoder\.",
    "encoder_dropout": r"encoder_.\.encoder\.",
    "decoder_sizes": r"decoder_A\.",
    "hidden_dim": r"projection\.proj_.\.(direction|radius)_net\.",
    "n_projection_layers": r"projection\.proj_.\.(direction|radius)_net\.",
    "projection_dropout": r"projection\.proj_.\.(direction|radius)_net\.",
    "use_dual_projection": r"projection\.proj_B\.",
    "use_controller": r"controller\.",
    "manifold": r".*manifold\.isp_c$",
}
"""Keys that a field has a say in."""
SHAPES = ("trits", "latent_dim", "encoder_sizes", "decoder_sizes", "hidden_dim")
HIDDEN_FIELDS = ("radius", "activation", "curvature", "max_radius", "dtype", "projection_dtype")
"""Fields that change what a model does and show in no name or shape."""
LISTED = 3
"""Keys that a sentence names before it counts the rest."""


@dataclass(frozen=True)
class Finding:
    """One cause that keeps a checkpoint from rebuilding."""

    cause: str
    """index shift by dropout; extra controller, missing manifold and the like; shape; layers; keys; dtype; damaged file;
    configuration; configuration only; metrics."""
    sentence: str
    keys: tuple[str, ...] = ()
    """The tensors that it concerns."""
    mend: Mapping[str, Any] = field(default_factory=dict)
    """Values of the configuration's fields with which this cause would be gone, where they are known."""


@dataclass(frozen=True)
class Examination:
    """A checkpoint's contents, as lines, and what keeps it from rebuilding."""

    path: Path
    lines: list[str]
    findings: list[Finding]


class Difference(NamedTuple):
    """A field of the architecture by the file's tensors and by the configuration."""

    name: str
    there: Any
    here: Any
    keys: tuple[str, ...]


def diagnose(expected: Shapes, found: Shapes) -> list[Finding]:
    """Why the tensors `found` in a file do not fit a model whose tensors are `expected`; empty where they fit."""
    if dict(expected) == dict(found):
        return []
    apart = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    there, here = layout_of(found), layout_of(expected)
    findings = []
    for name in here:
        if name != "dropouts_seen" and name in there and there[name] != here[name]:
            findings.append(
                _explain(Difference(name, there[name], here[name], _concerned(name, apart)), expected, found)
            )
    for name, shifted in here["dropouts_seen"].items():
        if there["dropouts_seen"].get(name, shifted) != shifted:
            findings.append(_shift(Difference(name, not shifted, shifted, _concerned(name, apart)), expected, found))
    # What is left of the difference when each side is measured at the architecture that its own tensors show.
    odd = _odd(expected) | _odd(found)
    rest = tuple(key for key in apart if key in odd or not findings)
    if rest:
        lacking, extra = [k for k in rest if k not in found], [k for k in rest if k not in expected]
        other = [k for k in rest if k in found and k in expected]
        said = [
            f"{what}: {_listed(keys)}"
            for what, keys in (("missing", lacking), ("left over", extra), ("of another shape", other))
            if keys
        ]
        findings.append(
            Finding("keys", f"keys: no field of the configuration explains these tensors, {'; '.join(said)}", rest)
        )
    return findings


def _concerned(name: str, apart: list[str]) -> tuple[str, ...]:
    return tuple(key for key in apart if re.match(FIELD_KEYS[name], key))


def _odd(shapes: Shapes) -> set[str]:
    """Keys in which tensors differ from those of the architecture that they show themselves."""
    config = shown_architecture(shapes)
    built = {} if config is None else built_shapes(config)
    return {key for key in {**shapes, **built} if not MANIFOLD.search(key) and shapes.get(key) != built.get(key)}


def shown_architecture(shapes: Shapes, **changes: Any) -> ArchitectureConfig | None:
    """The architecture that tensors show, defaults where they do not, with changes; None where there is no such one."""
    layout = layout_of(shapes)
    fields = {f.name for f in dataclasses.fields(ArchitectureConfig)}
    values = {name: value for name, value in layout.items() if name in fields}
    values |= {name: 0.1 if seen else 0.0 for name, seen in layout["dropouts_seen"].items()}
    try:
        return ArchitectureConfig(**{**values, **changes})
    except ValueError:
        return None


def _listed(keys: list[str] | tuple[str, ...]) -> str:
    more = len(keys) - LISTED
    return ", ".join(keys[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _explain(at: Difference, expected: Shapes, found: Shapes) -> Finding:
    """The finding of a field that tensors show directly."""
    name, there, here, keys = at
    if name == "manifold":
        cause = "extra manifold" if there else "missing manifold"
        holder = (
            ("the file holds", "the model has no such parameter")
            if there
            else ("the model has", "the file does not hold it")
        )
        return Finding(
            cause,
            f"{cause}: {holder[0]} geoopt's curvature ({_listed(keys)}) and {holder[1]}: the manifold was "
            f"{'taken out of' if there else 'added to'} the module after saving; use the version that wrote the file",
            keys,
        )
    if name == "use_controller":
        cause = "extra controller" if there else "missing controller"
        return Finding(
            cause,
            f"{cause}: the file {'holds' if there else 'lacks'} a controller's {len(keys)} tensors, and the configuration says "
            f"use_controller {str(here).lower()}; it was saved with use_controller {str(there).lower()}",
            keys,
            {name: there},
        )
    both = [key for key in keys if key in expected and key in found]
    if name in SHAPES:
        example = f", as {both[0]} shows with {list(found[both[0]])} for {list(expected[both[0]])}" if both else ""
        return Finding(
            "shape",
            f"shape: {name} is {here} in the configuration and {there} in the file's tensors{example}",
            keys,
            {name: there},
        )
    return Finding(
        "layers",
        f"layers: {name} is {str(here).lower()} in the configuration and {str(there).lower()} in the file's tensors: "
        f"{len(keys)} do not fit ({_listed(keys)})",
        keys,
        {name: there},
    )


def _shift(at: Difference, expected: Shapes, found: Shapes) -> Finding:
    """The finding of a dropout that moved the indices of the layers behind it."""
    name, there, _, keys = at
    lacking = sorted(key for key in keys if key not in found)
    extra = sorted(key for key in keys if key not in expected)
    part = "projections" if name == "projection_dropout" else "encoders"
    moved = f" ({extra[0].removesuffix('.bias')} for {lacking[0].removesuffix('.bias')})" if extra and lacking else ""
    return Finding(
        "index shift by dropout",
        f"index shift by dropout: the {part} were saved {'with' if there else 'without'} dropout and the configuration builds "
        f"them {'without' if there else 'with'}, which moves the layers behind it{moved}: {len(lacking)} tensors are missing and "
        f"{len(extra)} left over; set {name} to {'the share, above 0, that training had' if there else '0'}",
        keys,
        {name: 0.1 if there else 0.0},
    )


def diagnose_dtypes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[Finding]:
    """Strict loading converts in silence: tensors whose precision is not the one that the configuration names."""
    findings = []
    for name, parts in (("dtype", ("encoder_", "decoder_", "controller.")), ("projection_dtype", ("projection.",))):
        keys = tuple(k for k in found if k in expected and k.startswith(parts) and found[k].dtype != expected[k].dtype)
        if keys:
            there, here = (str(tensors[keys[0]].dtype).removeprefix("torch.") for tensors in (found, expected))
            sentence = f"dtype: {name} is {here} in the configuration and {there} in the file's tensors"
            findings.append(Finding("dtype", sentence, keys, {name: there}))
    return findings


def inferred(checkpoint: Checkpoint, config: TrainConfig, model: TernaryVAEV5_11_PartialFreeze) -> dict[str, float]:
    """Curvature and largest radius that the probe's stored outputs imply for `model`, whose weights are loaded.

    The share of the radius is the radius net's; the stored distance and norm of one point give c by
    norm = tanh(sqrt(c) rho / 2) / sqrt(c), and with the share the largest radius.
    """
    probe = checkpoint.probe
    if not {"output_mu_B", "output_rho_B", "output_z_B_hyp"} <= set(probe):
        return {}
    projection = model.projection.of("b")
    with torch.no_grad():
        share_N = torch.sigmoid(projection.radius_net(probe["output_mu_B"].to(projection.dtype)).squeeze(-1)).double()
    rho_N, norm_N = probe["output_rho_B"].double(), probe["output_z_B_hyp"].double().norm(dim=-1)
    far = int(rho_N.argmax())
    share, rho, norm = float(share_N[far]), float(rho_N[far]), float(norm_N[far])
    if not (share > 0 and norm > 0 and rho > 2 * norm and math.isfinite(rho)):
        return {}
    flat, steep = 1e-9, 1 / norm**2
    for _ in range(100):  # the norm at a given distance falls with c
        c = (flat + steep) / 2
        if math.tanh(math.sqrt(c) * rho / 2) / math.sqrt(c) > norm:
            flat = c
        else:
            steep = c
    root = math.sqrt(config.curvature)
    largest = math.tanh(root * rho / share / 2) / root if config.radius == "hyperbolic" else norm / share
    return {"curvature": c, "max_radius": largest}


def candidates(config: TrainConfig, implied: Mapping[str, float]) -> Iterator[tuple[str, Any]]:
    """Values to try, one field at a time: what the probe implies, rounded in several ways, then common ones."""
    common = {
        "curvature": (0.1, 0.25, 0.5, 0.8, 1.0, 1.5, 2.0, 4.0),
        "max_radius": (0.5, 0.7, 0.8, 0.9, 0.95, 0.99),
        "radius": ("hyperbolic", "euclidean"),
        "activation": ("relu", "silu"),
        "dtype": ("float32", "float64"),
        "projection_dtype": ("float32", "float64"),
    }
    for name in HIDDEN_FIELDS:
        rounded = [float(f"{implied[name]:.{digits}g}") for digits in (2, 3, 4, 6, 17)] if name in implied else []
        for value in dict.fromkeys([*rounded, *common[name]]):
            if value != getattr(config, name):
                yield name, value


def replays(checkpoint: Checkpoint, build: Build, **changes: Any) -> bool:
    """Whether the checkpoint rebuilds and its probe replays when its configuration is changed so."""
    changed = dataclasses.replace(checkpoint, config={**checkpoint.config, **changes})
    try:
        rebuild(changed, lambda stored: build(stored, checkpoint.path), replay_probe)
    except UserError:
        return False
    return True


def explain_probe(checkpoint: Checkpoint, config: TrainConfig, build: Build, said: str) -> Finding:
    """The finding of a probe that does not replay although every tensor fits: the one field that explains it, if any."""
    model = build(checkpoint.config, checkpoint.path)
    model.load_state_dict(checkpoint.model, strict=True)
    for name, value in candidates(config, inferred(checkpoint, config, model)):
        if replays(checkpoint, build, **{name: value}):
            return Finding(
                "configuration only",
                f"a difference that only the configuration shows: every tensor fits, and the probe replays with {name} {value} "
                f"and not with the stored {name} {getattr(config, name)}",
                mend={name: value},
            )
    return Finding(
        "configuration only",
        f"every tensor fits and no single field of the configuration explains what differs ({', '.join(HIDDEN_FIELDS)} tried), "
        f"so several do, or the weights or the code are others: {said}",
    )


def explain_metrics(checkpoint: Checkpoint, config: TrainConfig, model: TernaryVAEV5_11_PartialFreeze) -> list[Finding]:
    """The finding of stored metrics that differ when computed again; empty where they agree."""
    try:
        check_metrics(checkpoint.path, checkpoint.state, config, model)
    except UserError as error:
        for view in ("a", "b"):
            try:
                check_metrics(checkpoint.path, checkpoint.state, dataclasses.replace(config, view=view), model)
            except UserError:
                continue
            sentence = (
                "a difference that only the configuration shows: the probe replays, and the stored metrics are those of "
                f"view {view} and not of the stored view {config.view}"
            )
            return [Finding("configuration only", sentence, mend={"view": view})]
        return [Finding("metrics", f"metrics: the probe replays and the stored metrics do not: {error}")]
    return []


def contents(checkpoint: Checkpoint) -> list[str]:
    """What a checkpoint holds, as lines."""
    config, state = checkpoint.config, checkpoint.state
    names = [f.name for f in dataclasses.fields(ArchitectureConfig)]
    both, stage = config.get("stages") == "coverage_hierarchy", state.get("stage")
    called = ("coverage", "hierarchy") if both else (config.get("stages"),)
    at = [f"step {checkpoint.step}"]
    if isinstance(stage, int) and 0 <= stage < len(called):
        at += [f"stage {called[stage]}", f"epoch {state.get('epoch')}"]
    stored = state.get("metrics")
    return [
        f"{checkpoint.path}: {', '.join(at)}",
        "architecture: " + ", ".join(f"{name} {config.get(name, 'not stored')}" for name in names),
        _metrics_line(stored if isinstance(stored, dict) else {}),
        *_tensor_lines(checkpoint.model),
        f"optimiser: {len(checkpoint.optimizer)} tensors",
        f"probe: {len(checkpoint.probe.get('input_index', ()))} operations, outputs "
        + (", ".join(k.removeprefix("output_") for k in sorted(checkpoint.probe) if k.startswith("output")) or "none"),
    ]


def _metrics_line(metrics: Mapping[str, Any]) -> str:
    shown = [f"{name} {value:.6g}" for name, value in metrics.items() if isinstance(value, int | float)]
    return "metrics: " + (", ".join(shown) or "none")


def _tensor_lines(tensors: Mapping[str, Tensor]) -> list[str]:
    parts: dict[str, list[Tensor]] = {}
    for key, tensor in tensors.items():
        parts.setdefault(key.partition(".")[0], []).append(tensor)
    lines = [f"tensors: {len(tensors)}, {sum(t.numel() for t in tensors.values()):,} parameters"]
    for part, group in parts.items():
        dtypes = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in group}))
        lines.append(f"  {part}: {len(group)} tensors, {sum(t.numel() for t in group):,} parameters, {dtypes}")
    return lines


def _damage(path: Path, said: str) -> Examination:
    """A folder that does not verify: which of its files are as they were written."""
    lines = [str(path)]
    if (path / "manifest.json").exists():
        try:
            manifest = read_json(path / "manifest.json")
        except UserError:
            manifest = None
        sums = manifest.get("sha256") if isinstance(manifest, dict) else None
        sums = sums if isinstance(sums, dict) else {}
        for name in FILES if sums else ():
            file = path / name
            state = "missing" if not file.is_file() else "as written" if sha256(file) == sums.get(name) else "damaged"
            lines.append(f"  {name}: {state}")
    return Examination(path, lines, [Finding("damaged file", f"damaged file: {said}")])


def examine(path: Path, build: Build = build_model) -> Examination:
    """Looks into a checkpoint folder; `build` makes the model of a stored configuration."""
    try:
        checkpoint = load_checkpoint(path)
    except UserError as error:
        return _damage(path, str(error))
    lines = contents(checkpoint)
    try:
        config: TrainConfig = from_dict(TrainConfig, checkpoint.config, f"{path}/config.json")
        expected = build(checkpoint.config, path).state_dict()
    except UserError as error:
        return Examination(path, lines, [Finding("configuration", f"configuration: {error}")])
    findings = diagnose(shapes_of(expected), shapes_of(checkpoint.model))
    findings += diagnose_dtypes(expected, checkpoint.model)
    if findings:
        mend = {name: value for finding in findings for name, value in finding.mend.items()}
        if all(finding.mend for finding in findings):
            said = ", ".join(f"{name} {value}" for name, value in mend.items())
            outcome = (
                "loads strictly and replays its probe"
                if replays(checkpoint, build, **mend)
                else "does not rebuild either"
            )
            lines.append(f"with {said} it {outcome}")
        return Examination(path, lines, findings)
    try:
        model = rebuild(checkpoint, lambda stored: build(stored, path), replay_probe)
    except UserError as error:
        return Examination(path, lines, [explain_probe(checkpoint, config, build, str(error))])
    return Examination(path, lines, explain_metrics(checkpoint, config, model.eval()))


def examine_old(path: Path) -> Examination:
    """Looks into a `.pt` file: do its tensors fit the configuration that it declares (and no dropout where it declares none)?"""
    old = read_old(path)
    tensors, left, _ = rename(old.tensors, KEY_MAP)
    declared = declared_fields(old)
    lines = [
        f"{path}: an old layout with {', '.join(old.entries)}" + ("" if old.epoch is None else f"; epoch {old.epoch}"),
        "architecture declared: " + (", ".join(f"{k} {v}" for k, v in declared.items()) or "nothing"),
        _metrics_line(old.metrics),
        *_tensor_lines(old.tensors),
        "checksums, probe: none in this layout",
    ]
    found = {k: s for k, s in shapes_of(tensors).items() if not MANIFOLD.search(k)}
    dropouts = {"projection_dropout": 0.0, "encoder_dropout": 0.0}
    config = shown_architecture(found, **{**dropouts, **declared})
    if config is None:
        return Examination(
            path, lines, [Finding("configuration", "configuration: what the file declares makes no model")]
        )
    findings = diagnose(built_shapes(config), found)
    if left:
        findings.append(
            Finding("keys", f"keys: {_listed(left)} have no name here; give `import` a --key-map", tuple(left))
        )
    if lacking := [name for name in ("curvature", "max_radius") if name not in declared]:
        sentence = f"configuration: {' and '.join(lacking)} show in no tensor and the file does not declare them; give `import` their flags"
        findings.append(Finding("configuration", sentence))
    elif not findings:
        try:
            check_manifold(old, tensors, config.curvature)
        except UserError as error:
            findings.append(Finding("configuration only", f"a difference that only the configuration shows: {error}"))
    return Examination(path, lines, findings)


def inspect_command(name: str) -> None:
    """`ternary-vae inspect CHECKPOINT`: prints what is there; UserError with every cause when it does not rebuild."""
    old = Path(name).suffix in PICKLED
    examination = examine_old(Path(name)) if old else examine(find_checkpoint(name))
    for line in examination.lines:
        print(line)
    if examination.findings:
        print("does it rebuild: no")
        raise UserError(f"{examination.path}: does not rebuild: {'; '.join(f.sentence for f in examination.findings)}")
    if old:
        print(
            f"does it rebuild: every tensor fits what the file declares; `ternary-vae import {name} FOLDER` makes it a run"
        )
        return
    print("does it rebuild: yes: checksums, configuration, strict loading, probe and stored metrics agree")
