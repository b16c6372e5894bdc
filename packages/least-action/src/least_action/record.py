"""A run's folder: opening it, its checkpoints, and what is written when the run ends."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from least_action.config import TrainerConfig
from least_action.data import ModularArithmeticDataset
from least_action.models import PairModel, create_model
from studycore.checkpoints import Checkpoint, load_latest, rebuild
from studycore.configuration import config_hash, differences, from_dict, read_yaml, to_dict
from studycore.errors import UserError
from studycore.runs import Run, create_run, environment_changes, now, open_run

STUDY = "least-action"
PROBE_PAIRS = 16


def data_fingerprint(data: ModularArithmeticDataset) -> str:
    """SHA-256 of the training pairs and their labels, in order."""
    rows_N3 = torch.stack([data.train.a_N, data.train.b_N, data.train.y_N], dim=-1)
    return hashlib.sha256(rows_N3.numpy().tobytes()).hexdigest()


def open_or_create(
    folder: Path,
    config: TrainerConfig,
    data: ModularArithmeticDataset,
    argv: Sequence[str],
    devices: Mapping[str, Any],
    resume: bool,
) -> Run:
    """A new run in `folder`, or with `resume` the one there, after checking that configuration and data are the same."""
    fingerprints = {"training pairs": data_fingerprint(data)}
    if not (resume and (folder / "manifest.json").exists()):
        return create_run(
            folder,
            study=STUDY,
            verb="train",
            config=to_dict(config),
            argv=list(argv),
            seeds=[config.seed],
            devices=devices,
            data=fingerprints,
            source=Path(__file__),
            libraries=("accelerate",),
        )
    if changed := differences(read_yaml(folder / "config.yaml"), to_dict(config)):
        raise UserError(f"{folder}: its configuration is another: {'; '.join(changed)}; start a new run for this one")
    run = open_run(folder)
    if run.manifest["data_fingerprints"] != fingerprints:
        run.close()
        raise UserError(f"{folder}: the training pairs are not those it began with; use the version that began it")
    changes = environment_changes(run.manifest, devices)
    if changes:
        print(f"least-action: not bitwise the same from here on: {', '.join(changes)}")
    resumed = [*run.manifest["resumed"], {"at": now(), "changes": changes}]
    run.update(state="running", reason="", resumed=resumed)
    return run


def read_config(folder: Path) -> TrainerConfig:
    """The configuration of a train run."""
    path = folder / "config.yaml"
    try:
        config: TrainerConfig = from_dict(TrainerConfig, read_yaml(path), str(path))
    except (ValueError, TypeError) as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    return config


def probe_inputs(p: int) -> dict[str, Tensor]:
    """Fixed pairs, spread over the residues; b is never 0, so that they serve every operation."""
    k_N = torch.arange(PROBE_PAIRS)
    return {"input_a": k_N * 7 % p, "input_b": k_N * 11 % (p - 1) + 1}


def replay_probe(model: PairModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Logits of the probe's pairs."""
    device = next(model.parameters()).device
    return {"output_logits": model.forward_pairs(inputs["input_a"].to(device), inputs["input_b"].to(device)).logits_NP}


def checkpoint_tensors(model: PairModel, optimizer: Mapping[str, Tensor], config: TrainerConfig) -> dict[str, Any]:
    """The tensors of a checkpoint: model, optimizer and probe."""
    inputs = probe_inputs(config.p)
    with torch.no_grad():
        outputs = replay_probe(model, inputs)
    return {"model": model.state_dict(), "optimizer": optimizer, "probe": {**inputs, **outputs}}


def build_model(stored: Mapping[str, Any], path: Path) -> PairModel:
    """The model of a checkpoint's configuration."""
    return create_model(from_dict(TrainerConfig, stored, f"{path}/config.json"))


def load_run_checkpoint(
    folder: Path, config: TrainerConfig | None = None
) -> tuple[Checkpoint | None, PairModel | None]:
    """The newest checkpoint of a run that verifies, and its model on the CPU; (None, None) when there is none yet.

    UserError lists field by field where the checkpoint's configuration differs from `config`.
    """
    checkpoint = load_latest(folder / "checkpoints")
    if checkpoint is None:
        return None, None
    expected = None if config is None else to_dict(config)
    model = rebuild(checkpoint, lambda stored: build_model(stored, checkpoint.path), replay_probe, expected)
    return checkpoint, model


def configuration_hash(config: TrainerConfig) -> str:
    return config_hash(dataclasses.asdict(config))
