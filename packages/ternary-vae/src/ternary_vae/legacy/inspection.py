"""What is in a checkpoint, whether it rebuilds, and if not, why: one sentence for each cause.

Rebuilding is what loading does: checksums, the model built from the complete stored configuration, strict loading, the
probe replayed, the stored metrics computed again. Where names or shapes differ, the fields that the tensors show are
compared with those of the model that the configuration builds, so that a cause is a field and not a list of keys. Where
all of them fit and the probe differs, the fields that no tensor shows are read from the probe's stored outputs.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studycore.checkpoints import FILES, Checkpoint, rebuild
from studycore.configuration import from_dict
from studycore.errors import UserError
from studycore.files import read_json, sha256
from ternary_vae.checkpoint import PICKLED, check_metrics, find_checkpoint, read_checkpoint, stored_metrics
from ternary_vae.config import ArchitectureConfig, ImportOptions, TrainConfig
from ternary_vae.legacy.importing import (
    DROPOUTS,
    MANIFOLD,
    PRECISIONS,
    Forms,
    apart,
    bring_in,
    declared_fields,
    differences,
    forms_of,
    listed,
    shown_fields,
)
from ternary_vae.legacy.old_file import read_old
from ternary_vae.model import TernaryVAE, build_model, replay_probe

Build = Callable[[Mapping[str, Any]], TernaryVAE]
SHAPES = ("trits", "latent_dim", "encoder_sizes", "decoder_sizes", "hidden_dim")


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
    old = Path(name).is_file() or Path(name).suffix in PICKLED
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
        checkpoint = read_checkpoint(path)
    except UserError as error:
        return _damage(path, str(error))
    lines = contents(checkpoint)
    try:
        config: TrainConfig = from_dict(TrainConfig, checkpoint.config, f"{path}/config.json")
    except UserError as error:
        return Examination(path, lines, [Finding("configuration", f"configuration: {error}")])
    findings = diagnose(checkpoint.config, forms_of(checkpoint.model), build)
    if not findings:
        try:
            model = rebuild(checkpoint, build, replay_probe).eval()
        except UserError as error:
            findings = [read_probe(checkpoint, config, build, str(error))]
    if findings and all(finding.mend for finding in findings):
        mend = {name: value for finding in findings for name, value in finding.mend.items()}
        values = ", ".join(f"{name} {value}" for name, value in mend.items())
        outcome = (
            "loads strictly and replays its probe" if replays(checkpoint, build, mend) else "does not rebuild either"
        )
        lines.append(f"with {values} it {outcome}")
    if findings:
        return Examination(path, lines, findings)
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
        "checksums: the archive's own, if it has any; probe: none in this layout",
    ]
    try:
        lines += bring_in(old, {}, ImportOptions()).notes
    except UserError as error:
        return Examination(path, lines, [Finding("import", str(error).removeprefix(f"{path}: "))])
    return Examination(path, lines, [])


# -------------------------------------------------------------------------------------------------- names and shapes
def diagnose(values: Mapping[str, Any], held: Forms, build: Build = build_model) -> list[Finding]:
    """Why tensors of these shapes and types do not fit the model of a configuration's `values`; empty where they fit."""

    def forms_with(changes: Mapping[str, Any]) -> Forms:
        try:
            return forms_of(build({**values, **changes}).state_dict())
        except (ValueError, KeyError):  # no model has what these tensors show
            return {}

    expected = forms_with({})
    ours, theirs = shown_fields(expected), shown_fields(held)
    differing = {name: theirs[name] for name in ours if name in theirs and theirs[name] != ours[name]}
    mend = {name: value if name not in DROPOUTS else 0.1 * value for name, value in differing.items()}
    findings = []
    for name, value in mend.items():
        moved = apart(expected, forms_with({name: value}))
        keys = [key for key in apart(expected, held) if key in moved]
        cause, more = "shape" if name in SHAPES else "dtype" if name in PRECISIONS else "layers", ""
        if name in DROPOUTS:
            cause, more = "index shift by dropout", ", which moves the layers behind it"
        if name == "use_controller":
            cause = "extra controller" if differing[name] else "missing controller"
        of_model, of_file = (str(shown[name]).lower() for shown in (ours, theirs))
        sentence = f"{cause}: {name} is {of_model} in the configuration and {of_file} in the file's tensors{more}"
        sentence += f" ({differences(keys, expected, held)})"
        if name in DROPOUTS:
            sentence += f"; set {name} to {'the share, above 0, that training had' if differing[name] else '0'}"
        findings.append(Finding(cause, sentence, tuple(keys), {name: value}))
    mended = forms_with(mend)
    rest = apart(mended, held)
    if manifold := [key for key in rest if key.endswith(MANIFOLD)]:
        kind, how = ("extra", "taken out of") if manifold[0] in held else ("missing", "added to")
        sentence = (
            f"{kind} manifold: geoopt's curvature ({listed(manifold)}) was {how} the module after saving; use the version that "
            "wrote the file"
        )
        findings.append(Finding(f"{kind} manifold", sentence, tuple(manifold)))
    if rest := [key for key in rest if key not in manifold]:
        sentence = f"keys: no field of the configuration explains these tensors ({differences(rest, mended, held)})"
        findings.append(Finding("keys", sentence, tuple(rest)))
    return findings


# ----------------------------------------------------------------------------------------------- what no tensor shows
def read_probe(checkpoint: Checkpoint, config: TrainConfig, build: Build, said: str) -> Finding:
    """The finding of a probe that does not replay although every tensor fits: the field with which it does, if any."""
    other = {
        "radius": "euclidean" if config.radius == "hyperbolic" else "hyperbolic",
        "activation": "silu" if config.activation == "relu" else "relu",
    }
    for name, value in {**shown_by_outputs(checkpoint, config, build), **other}.items():
        if value != getattr(config, name) and replays(checkpoint, build, {name: value}):
            sentence = (
                f"a difference that only the configuration shows: every tensor fits, and the probe replays with {name} {value} "
                f"and not with the stored {name} {getattr(config, name)}"
            )
            return Finding("configuration only", sentence, mend={name: value})
    tried = "curvature, max_radius, radius, activation"
    sentence = f"every tensor fits and no single field of the configuration ({tried}) explains what differs, so several do, or the weights or the code are others: {said}"
    return Finding("configuration only", sentence)


@torch.no_grad()
def shown_by_outputs(checkpoint: Checkpoint, config: TrainConfig, build: Build) -> dict[str, float]:
    """Curvature and largest radius of the probe's stored outputs, to six digits; empty where they show none.

    A point's stored distance and norm give the curvature by norm = tanh(sqrt(c) rho / 2) / sqrt(c); the share of the largest
    radius is the radius net's.
    """
    from scipy.optimize import brentq

    model, probe = build(checkpoint.config), checkpoint.probe
    if not {"output_mu_B", "output_rho_B", "output_z_B_hyp"} <= set(probe):  # version 0.1.0
        return {}
    model.load_state_dict(checkpoint.model, strict=True)
    projection = model.projection.of("b")
    share_N = torch.sigmoid(projection.radius_net(probe["output_mu_B"].to(projection.dtype)).squeeze(-1))
    far = int(probe["output_rho_B"].argmax())
    rho, norm = float(probe["output_rho_B"][far]), float(probe["output_z_B_hyp"][far].double().norm())
    if not 0 < 2 * norm < rho < math.inf:
        return {}
    # The norm at a given distance falls with c, from rho / 2 to below itself.
    c = brentq(lambda c: math.tanh(math.sqrt(c) * rho / 2) / math.sqrt(c) - norm, 1e-9, 1 / norm**2, xtol=1e-15)
    root, share = math.sqrt(config.curvature), float(share_N[far])
    largest = math.tanh(root * rho / share / 2) / root if config.radius == "hyperbolic" else norm / share
    return {"curvature": float(f"{c:.6g}"), "max_radius": float(f"{largest:.6g}")}


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
