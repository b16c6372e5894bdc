"""What is in a checkpoint, whether it rebuilds, and if not, why: one sentence for each cause.

Rebuilding is what loading does: checksums, the model built from the complete stored configuration, strict loading, the
probe replayed, the stored metrics computed again. Where names or shapes differ, the fields that the tensors show are
compared with those of the model that the configuration builds, so that a cause is a field and not a list of keys. Where
all of them fit and the probe differs, each field that shows in no tensor is tried alone.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studycore.checkpoints import FILES, Checkpoint, load_checkpoint, rebuild
from studycore.configuration import from_dict
from studycore.errors import UserError
from studycore.files import read_json, sha256
from ternary_vae.checkpoint import check_metrics, find_checkpoint, stored_metrics
from ternary_vae.config import ArchitectureConfig, TrainConfig
from ternary_vae.legacy.importing import (
    DROPOUTS,
    PICKLED,
    Shapes,
    convert,
    declared_fields,
    read_old,
    shapes_of,
    shown_fields,
)
from ternary_vae.model import TernaryVAE, build_model, replay_probe

Build = Callable[[Mapping[str, Any]], TernaryVAE]
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
HIDDEN_FIELDS = ("curvature", "max_radius", "radius", "activation")
"""Fields that change what a model does and show in no tensor."""
LISTED = 3
"""Keys that a sentence names before it counts the rest."""


@dataclass(frozen=True)
class Finding:
    """One cause that keeps a checkpoint from rebuilding."""

    cause: str
    """index shift by dropout; extra controller, missing manifold and the like; shape; layers; keys; dtype; damaged file;
    configuration; configuration only; metrics; import."""
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


def inspect(name: str) -> None:
    """Prints what is in a checkpoint or an old file. UserError with every cause when it does not rebuild."""
    old = Path(name).suffix in PICKLED
    examination = examine_old(Path(name)) if old else examine(find_checkpoint(name))
    print("\n".join(examination.lines))
    if examination.findings:
        print("does it rebuild: no")
        raise UserError(f"{examination.path}: does not rebuild: {'; '.join(f.sentence for f in examination.findings)}")
    yes = "yes: checksums, configuration, strict loading, probe and stored metrics agree"
    fits = f"every tensor fits what the file declares; `ternary-vae import {name} FOLDER` makes it a run"
    print(f"does it rebuild: {fits if old else yes}")


def examine(path: Path, build: Build = build_model) -> Examination:
    """Looks into a checkpoint folder; `build` makes the model of a stored configuration."""
    try:
        checkpoint = load_checkpoint(path)
    except UserError as error:
        return _damage(path, str(error))
    lines = contents(checkpoint)
    try:
        config: TrainConfig = from_dict(TrainConfig, checkpoint.config, f"{path}/config.json")
    except UserError as error:
        return Examination(path, lines, [Finding("configuration", f"configuration: {error}")])
    expected = build(checkpoint.config).state_dict()
    findings = diagnose(shapes_of(expected), shapes_of(checkpoint.model))
    findings += diagnose_dtypes(expected, checkpoint.model)
    if findings and all(finding.mend for finding in findings):
        mend = {name: value for finding in findings for name, value in finding.mend.items()}
        outcome = (
            "loads strictly and replays its probe" if replays(checkpoint, build, mend) else "does not rebuild either"
        )
        lines.append(f"with {', '.join(f'{name} {value}' for name, value in mend.items())} it {outcome}")
    if findings:
        return Examination(path, lines, findings)
    try:
        model = rebuild(checkpoint, build, replay_probe).eval()
    except UserError as error:
        return Examination(path, lines, [explain_probe(checkpoint, config, build, str(error))])
    try:
        check_metrics(path, stored_metrics(checkpoint), config, model)
    except UserError as error:
        why = f"metrics: the probe replays and the stored metrics are not the model's: {error}"
        return Examination(path, lines, [Finding("metrics", why)])
    return Examination(path, lines, [])


def examine_old(path: Path) -> Examination:
    """Looks into a `.pt` file: what `import` would say of it without any flags."""
    old = read_old(path)
    declared = declared_fields(old)
    lines = [
        f"{path}: an old layout with {', '.join(old.entries)}" + ("" if old.epoch is None else f"; epoch {old.epoch}"),
        "architecture declared: " + (", ".join(f"{k} {v}" for k, v in declared.items()) or "nothing"),
        _metrics_line(old.metrics),
        *_tensor_lines(old.tensors),
        "checksums, probe: none in this layout",
    ]
    try:
        convert(old, {}, {})
    except UserError as error:
        return Examination(path, lines, [Finding("import", str(error).removeprefix(f"{path}: "))])
    return Examination(path, lines, [])


# -------------------------------------------------------------------------------------------------- names and shapes
def diagnose(expected: Shapes, found: Shapes) -> list[Finding]:
    """Why the tensors `found` in a file do not fit a model whose tensors are `expected`; empty where they fit."""
    apart = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    there, here = shown_fields(found), shown_fields(expected)
    findings = []
    for name in here:
        keys = tuple(key for key in apart if re.match(FIELD_KEYS[name], key))
        if name in there and there[name] != here[name]:
            findings.append(_field_finding(name, there[name], here[name], keys, expected, found))
    explained = {key for finding in findings for key in finding.keys}
    if rest := tuple(key for key in apart if key not in explained):
        kinds = {
            "missing": [key for key in rest if key not in found],
            "left over": [key for key in rest if key not in expected],
            "of another shape": [key for key in rest if key in found and key in expected],
        }
        said = "; ".join(f"{kind}: {_listed(keys)}" for kind, keys in kinds.items() if keys)
        findings.append(Finding("keys", f"keys: no field of the configuration explains these tensors, {said}", rest))
    return findings


def _field_finding(name: str, there: Any, here: Any, keys: tuple[str, ...], expected: Shapes, found: Shapes) -> Finding:
    """The finding of a field that the file's tensors show as `there` and the configuration has as `here`."""
    lacking, extra = [key for key in keys if key not in found], [key for key in keys if key not in expected]
    if name in DROPOUTS:
        part = "projections" if name == "projection_dropout" else "encoders"
        return Finding(
            "index shift by dropout",
            f"index shift by dropout: the {part} were saved {'with' if there else 'without'} dropout and the configuration "
            f"builds them {'without' if there else 'with'}, which moves the layers behind it: {len(lacking)} tensors are "
            f"missing ({_listed(lacking)}) and {len(extra)} left over ({_listed(extra)}); set {name} to "
            f"{'the share, above 0, that training had' if there else '0'}",
            keys,
            {name: 0.1 if there else 0.0},
        )
    if name == "manifold":
        cause = f"{'extra' if there else 'missing'} manifold"
        holder, other = ("file", "model") if there else ("model", "file")
        return Finding(
            cause,
            f"{cause}: the {holder} holds geoopt's curvature ({_listed(keys)}) and the {other} does not: the manifold was "
            f"{'taken out of' if there else 'added to'} the module after saving; use the version that wrote the file",
            keys,
        )
    cause = "shape" if name in SHAPES else "layers"
    if name == "use_controller":
        cause = f"{'extra' if there else 'missing'} controller"
    says = [str(value).lower() if isinstance(value, bool) else value for value in (here, there)]
    return Finding(
        cause,
        f"{cause}: {name} is {says[0]} in the configuration and {says[1]} in the file's tensors; {len(keys)} tensors do not "
        f"fit ({_listed(keys)})",
        keys,
        {name: there},
    )


def _listed(keys: list[str] | tuple[str, ...]) -> str:
    more = len(keys) - LISTED
    return ", ".join(keys[:LISTED]) + (f" and {more} more" if more > 0 else "")


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


# ----------------------------------------------------------------------------------------------- what no tensor shows
def explain_probe(checkpoint: Checkpoint, config: TrainConfig, build: Build, said: str) -> Finding:
    """The finding of a probe that does not replay although every tensor fits: the one field that explains it, if any."""
    model = build(checkpoint.config)
    model.load_state_dict(checkpoint.model, strict=True)
    for name, value in candidates(config, inferred(checkpoint, config, model)):
        if value != getattr(config, name) and replays(checkpoint, build, {name: value}):
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


def candidates(config: TrainConfig, implied: Mapping[str, float]) -> Iterator[tuple[str, Any]]:
    """Values to try, one field at a time: what the probe implies, rounded as a user would have written it; the others."""
    for name, value in implied.items():
        yield from ((name, float(f"{value:.{digits}g}")) for digits in (2, 3, 4, 6, 17))
    yield "radius", "euclidean" if config.radius == "hyperbolic" else "hyperbolic"
    yield "activation", "silu" if config.activation == "relu" else "relu"


def inferred(checkpoint: Checkpoint, config: TrainConfig, model: TernaryVAE) -> dict[str, float]:
    """Curvature and largest radius that the probe's stored outputs imply for `model`, whose weights are loaded.

    The share of the radius is the radius net's; the stored distance and norm of one point give c by
    norm = tanh(sqrt(c) rho / 2) / sqrt(c), and with the share the largest radius.
    """
    from scipy.optimize import brentq

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
    # The norm at a given distance falls with c, from rho / 2 to below itself.
    c = brentq(lambda c: math.tanh(math.sqrt(c) * rho / 2) / math.sqrt(c) - norm, 1e-9, 1 / norm**2, xtol=1e-15)
    root = math.sqrt(config.curvature)
    largest = math.tanh(root * rho / share / 2) / root if config.radius == "hyperbolic" else norm / share
    return {"curvature": float(c), "max_radius": largest}


def replays(checkpoint: Checkpoint, build: Build, changes: Mapping[str, Any]) -> bool:
    """Whether the checkpoint rebuilds and its probe replays when its configuration is changed so."""
    try:
        changed = dataclasses.replace(checkpoint, config={**checkpoint.config, **changes})
        from_dict(TrainConfig, changed.config, str(checkpoint.path))
        rebuild(changed, build, replay_probe)
    except UserError:
        return False
    return True


# ------------------------------------------------------------------------------------------------------ what is there
def contents(checkpoint: Checkpoint) -> list[str]:
    """What a checkpoint holds, as lines."""
    config = checkpoint.config
    names = [f.name for f in dataclasses.fields(ArchitectureConfig)]
    try:
        metrics = stored_metrics(checkpoint)
    except UserError:
        metrics = {}
    outputs = ", ".join(key.removeprefix("output_") for key in sorted(checkpoint.probe) if key.startswith("output"))
    return [
        f"{checkpoint.path}: {position(checkpoint)}",
        "architecture: " + ", ".join(f"{name} {config.get(name, 'not stored')}" for name in names),
        _metrics_line(metrics),
        *_tensor_lines(checkpoint.model),
        f"optimiser: {len(checkpoint.optimizer)} tensors",
        f"probe: {len(checkpoint.probe.get('input_index', ()))} operations, outputs {outputs or 'none'}",
    ]


def position(checkpoint: Checkpoint) -> str:
    """Where the training stood: "step 7, stage hierarchy, epoch 3"."""
    state = checkpoint.state
    stage, epoch = state.get("loop"), state.get("index")
    if isinstance(number := state.get("stage"), int):  # version 0.1.0
        stages = checkpoint.config.get("stages")
        names = ("coverage", "hierarchy") if stages == "coverage_hierarchy" else (stages,)
        stage, epoch = names[number] if number < len(names) else None, state.get("epoch")
    return f"step {checkpoint.step}" + (f", stage {stage}, epoch {epoch}" if stage else "")


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
    try:
        sums = read_json(path / "manifest.json")["sha256"]
    except (UserError, LookupError, TypeError):
        sums = {}
    for name in FILES if isinstance(sums, dict) and sums else ():
        file = path / name
        state = "missing" if not file.is_file() else "as written" if sha256(file) == sums.get(name) else "damaged"
        lines.append(f"  {name}: {state}")
    return Examination(path, lines, [Finding("damaged file", f"damaged file: {said}")])
