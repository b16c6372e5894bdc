"""A run's folder: opening it, its checkpoints, and loading a model so that nothing is taken on trust."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studycore.checkpoints import (
    Checkpoint,
    load_checkpoint,
    load_latest,
    read_index,
    rebuild,
    save_checkpoint as save_folder,
    steps,
)
from studycore.configuration import differences, from_dict, read_yaml, to_dict
from studycore.errors import UserError
from studycore.runs import Run, create_run, environment_changes, now, open_run
from ternary_vae.config import TrainConfig
from ternary_vae.evaluate import order_metrics, reconstruct
from ternary_vae.model import TernaryVAEV5_11_PartialFreeze, architecture_of
from ternary_vae.operations import Operations, training_indices

STUDY = "ternary-vae"
PROBE_OPERATIONS = 32
CHECKED = ("coverage", "hierarchy", "somers_d", "richness")
"""Metrics that a checkpoint stores and that loading computes again."""
METRIC_TOLERANCE = 1e-4
"""Of the recomputed metrics: other threads and libraries may move a few operations of 19,683, another function more."""


def open_or_create(
    folder: Path,
    config: TrainConfig,
    argv: Sequence[str],
    devices: Mapping[str, Any],
    resume: bool,
    verb: str = "train",
) -> Run:
    """A new run in `folder`, or with `resume` the one there, after checking that configuration and data are the same."""
    indices = training_indices(config.trits, config.train_fraction, config.seed)
    fingerprints = {"training operations": hashlib.sha256(indices.numpy().tobytes()).hexdigest()}
    if config.start is not None:
        manifest = find_checkpoint(start_of(config.start, folder)) / "manifest.json"
        fingerprints["start"] = hashlib.sha256(manifest.read_bytes()).hexdigest()
    if not (resume and (folder / "manifest.json").exists()):
        return create_run(
            folder,
            study=STUDY,
            verb=verb,
            config=to_dict(config),
            argv=list(argv),
            seeds=[config.seed],
            devices=devices,
            data=fingerprints,
            source=Path(__file__),
            libraries=("accelerate", "geoopt"),
        )
    if changed := differences(read_yaml(folder / "config.yaml"), to_dict(config)):
        raise UserError(f"{folder}: its configuration is another: {'; '.join(changed)}; start a new run for this one")
    run = open_run(folder)
    if run.manifest["data_fingerprints"] != fingerprints:
        run.close()
        raise UserError(
            f"{folder}: the training operations, or the checkpoint it starts from, are not those it began with; "
            "start a new run"
        )
    changes = environment_changes(run.manifest, devices)
    if changes:
        print(f"{STUDY}: not bitwise the same from here on: {', '.join(changes)}")
    run.update(state="running", reason="", resumed=[*run.manifest["resumed"], {"at": now(), "changes": changes}])
    return run


def read_config(folder: Path) -> TrainConfig:
    """The configuration of a train run."""
    path = folder / "config.yaml"
    try:
        config: TrainConfig = from_dict(TrainConfig, read_yaml(path), str(path))
    except (ValueError, TypeError) as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    return config


def probe_inputs(trits: int) -> dict[str, Tensor]:
    """Fixed operations, spread over the indices; the deepest one among them."""
    return {"input_index": torch.linspace(0, 3**trits - 1, PROBE_OPERATIONS, dtype=torch.float64).long()}


@torch.no_grad()
def replay_probe(model: TernaryVAEV5_11_PartialFreeze, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Logits, points of both views and hyperbolic radii of the probe's operations, as in evaluation."""
    device = model.decoder_A.decoder[0].weight.device
    training = model.training
    out = model.eval()(Operations.of(inputs["input_index"], model.config.trits).to(str(device)).x_NM)
    model.train(training)
    names = ("logits", "z_A_hyp", "z_B_hyp", "rho_A", "rho_B", "mu_A", "logvar_A", "mu_B", "logvar_B")
    return {f"output_{name}": out[name] for name in names}


def save_checkpoint(
    root: Path,
    step: int,
    config: TrainConfig,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    best: bool = False,
    build: TernaryVAEV5_11_PartialFreeze | None = None,
) -> Path:
    """Writes root/step-<step> with every field of the configuration and a probe of what the weights do.

    `state["metrics"]` are those that loading computes again. `build` lends a model to run the probe on.
    """
    probe_model = build or TernaryVAEV5_11_PartialFreeze(**architecture_of(config))
    probe_model.load_state_dict(dict(model), strict=True)
    inputs = probe_inputs(config.trits)
    return save_folder(
        root,
        step,
        config=to_dict(config),
        model=model,
        optimizer=optimizer,
        state=state,
        probe={**inputs, **replay_probe(probe_model, inputs)},
        best=best,
    )


def build_model(stored: Mapping[str, Any], path: Path) -> TernaryVAEV5_11_PartialFreeze:
    """The model of a checkpoint's configuration."""
    try:
        return TernaryVAEV5_11_PartialFreeze(**architecture_of(from_dict(TrainConfig, stored, f"{path}/config.json")))
    except ValueError as error:
        raise UserError(f"{path}/config.json: {error}") from None


def find_checkpoint(name: str) -> Path:
    """The checkpoint folder of a name: itself, or the best (else the last) one of a run or of a `checkpoints` folder."""
    path = Path(name)
    if (path / "model.safetensors").exists() or path.name.startswith("step-"):
        return path
    if path.suffix in (".pt", ".pth", ".ckpt"):
        raise UserError(f"{name}: is a pickled file; bring it in with `ternary-vae import {name} FOLDER` first")
    root = path if path.name == "checkpoints" else path / "checkpoints"
    if not root.is_dir() or not steps(root):
        if inner := sorted(found.parent.name for found in path.glob("*/checkpoints")):
            raise UserError(f"{name}: is a sweep; give one of its runs, such as {path / inner[0]}")
        raise UserError(f"{name}: holds no checkpoint; give a run folder, or a folder such as RUN/checkpoints/step-100")
    index = read_index(root)
    return root / (index.get("best") or index.get("last") or steps(root)[-1].name)


def start_of(start: str, folder: Path) -> str:
    """Where a run in `folder` finds its start: the sister run of that name in its sweep, or else the path itself."""
    return str(folder.parent / start) if (folder.parent / start / "manifest.json").exists() else start


Loaded = tuple[Checkpoint, TrainConfig, TernaryVAEV5_11_PartialFreeze]
"""A checkpoint, its configuration and its model."""


def load_model(name: str, recompute: bool = True) -> Loaded:
    """A checkpoint's model: checksums, built from its whole configuration, strict loading, probe, stored metrics again.

    UserError says in one sentence what does not hold.
    """
    path = find_checkpoint(name)
    checkpoint = load_checkpoint(path)
    model = rebuild(checkpoint, lambda stored: build_model(stored, path), replay_probe).eval()
    config: TrainConfig = from_dict(TrainConfig, checkpoint.config, f"{path}/config.json")
    if recompute:
        check_metrics(path, checkpoint.state, config, model)
    return checkpoint, config, model


def check_metrics(
    path: Path, state: Mapping[str, Any], config: TrainConfig, model: TernaryVAEV5_11_PartialFreeze
) -> None:
    """Computes the stored metrics again; UserError where one differs."""
    from ternary_vae.evaluate import headline

    stored = state.get("metrics")
    if not isinstance(stored, dict) or "coverage" not in stored:
        raise UserError(f"{path}/state.json: stores no metrics to compare with; use another checkpoint")
    operations = Operations.all(config.trits)
    found = {"coverage": float(reconstruct(model, operations).double().mean())}
    if set(stored) - {"coverage"}:
        found |= order_metrics(model, operations, headline(config.view))
    for key in CHECKED:
        if key in stored and not abs(found.get(key, float("nan")) - stored[key]) <= METRIC_TOLERANCE:
            raise UserError(
                f"{path}: {key} is {found.get(key)} when computed again and was stored as {stored[key]}: the model does "
                "something else than when it was saved; use the version that wrote it"
            )


def load_run_checkpoint(
    folder: Path, config: TrainConfig
) -> tuple[Checkpoint, TernaryVAEV5_11_PartialFreeze] | tuple[None, None]:
    """The newest checkpoint of a run that verifies, and its model; (None, None) when there is none yet."""
    checkpoint = load_latest(folder / "checkpoints")
    if checkpoint is None:
        return None, None
    found = checkpoint
    return found, rebuild(found, lambda stored: build_model(stored, found.path), replay_probe, to_dict(config))
