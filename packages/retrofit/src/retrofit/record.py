"""A run's folder: opening it, its checkpoints, its evaluations by document."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrofit.config import RunConfig
from retrofit.evaluate import Evaluation
from retrofit.models import build_model
from studycore.checkpoints import Checkpoint, load_latest, rebuild
from studycore.configuration import differences, from_dict, read_yaml, to_dict
from studycore.errors import UserError
from studycore.metrics import write_parquet
from studycore.runs import Run, create_run, environment_changes, now, open_run

STUDY = "retrofit"
LIBRARIES = ("accelerate", "transformers", "datasets")
MOMENTS = ("exp_avg", "exp_avg_sq")
PROBE_TOKENS = 12


def open_or_create(
    folder: Path,
    config: RunConfig,
    fingerprints: Mapping[str, str],
    argv: Sequence[str],
    devices: Mapping[str, Any],
    resume: bool,
) -> Run:
    """A new run in `folder`, or with `resume` the one there, after checking that configuration and data are the same."""
    if not (resume and (folder / "manifest.json").exists()):
        return create_run(
            folder,
            study=STUDY,
            verb="run",
            config=to_dict(config),
            argv=list(argv),
            seeds=[config.seed],
            devices=devices,
            data=fingerprints,
            source=Path(__file__),
            libraries=LIBRARIES,
        )
    if changed := differences(read_yaml(folder / "config.yaml"), to_dict(config)):
        raise UserError(f"{folder}: its configuration is another: {'; '.join(changed)}; start a new run for this one")
    run = open_run(folder)
    if changed := differences(run.manifest["data_fingerprints"], dict(fingerprints)):
        run.close()
        raise UserError(f"{folder}: model or data are not those it began with: {'; '.join(changed)}; start a new run")
    changes = environment_changes(run.manifest, devices)
    if changes:
        print(f"retrofit: not bitwise the same from here on: {', '.join(changes)}")
    resumed = [*run.manifest["resumed"], {"at": now(), "changes": changes}]
    run.update(state="running", reason="", resumed=resumed)
    return run


def read_config(folder: Path) -> RunConfig:
    """The configuration of a `run`."""
    config: RunConfig = from_dict(RunConfig, read_yaml(folder / "config.yaml"), str(folder / "config.yaml"))
    return config


# ----------------------------------------------------------------------------------------------------- checkpoints
def replay_probe(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Logits after a fixed sequence."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"].to(device), use_cache=False).logits[:, -1].float()
    model.train(was_training)
    return {"output_logits": logits}


def optimizer_tensors(model: Any, optimizer: Any) -> dict[str, Tensor]:
    """AdamW's moments and step counts by parameter name."""
    found = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{key}.{name}"] = value
    return found


def restore_optimizer(model: Any, optimizer: Any, tensors: Mapping[str, Tensor]) -> None:
    """What optimizer_tensors returned, put back on each parameter's device (step counts stay on the CPU)."""
    for name, parameter in model.named_parameters():
        if f"exp_avg.{name}" in tensors:
            moments = {key: tensors[f"{key}.{name}"].to(parameter.device) for key in MOMENTS}
            optimizer.state[parameter] = {"step": tensors[f"step.{name}"].clone(), **moments}


def checkpoint_tensors(model: Any, optimizer: Any) -> dict[str, Any]:
    """The tensors of a checkpoint: model, optimizer and probe."""
    inputs = {"input_ids": (torch.arange(PROBE_TOKENS) * 37 % model.config.vocab_size)[None]}
    probe = {**inputs, **replay_probe(model, inputs)}
    return {"model": model.state_dict(), "optimizer": optimizer_tensors(model, optimizer), "probe": probe}


def checkpoint_config(model: Any, config: RunConfig) -> dict[str, Any]:
    """What builds the model again, and the run's own settings."""
    architecture = json.loads(model.config.to_json_string(use_diff=False))
    return {"architecture": architecture, "run": to_dict(config)}


def load_run_checkpoint(folder: Path, config: RunConfig) -> tuple[Checkpoint | None, Any]:
    """The newest checkpoint that verifies, and its model; (None, None) when there is none yet."""
    checkpoint = load_latest(folder / "checkpoints")
    if checkpoint is None:
        return None, None
    if changed := differences(checkpoint.config.get("run", {}), to_dict(config)):
        raise UserError(f"{checkpoint.path}: is of another configuration: {'; '.join(changed)}; use its own run folder")
    model = rebuild(checkpoint, lambda stored: build_model(stored["architecture"]), replay_probe)
    return checkpoint, model


# ----------------------------------------------------------------------------------------------------- evaluations
def write_evaluation(folder: Path, step: int, evaluation: Evaluation) -> None:
    """evaluations/step-<n>.parquet: negative log-likelihood and tokens of each document that was evaluated."""
    (folder / "evaluations").mkdir(exist_ok=True)
    rows = [
        {"document": i, "nll": float(nll), "tokens": int(tokens)}
        for i, (nll, tokens) in enumerate(zip(evaluation.nll_D, evaluation.tokens_D, strict=True))
        if tokens > 0
    ]
    write_parquet(folder / "evaluations" / f"step-{step}.parquet", rows)


def read_evaluation(folder: Path, step: int) -> NDArray[np.float64]:
    """[documents, (index, nll, tokens)]. UserError when the run has none at that step."""
    from pyarrow import parquet

    path = folder / "evaluations" / f"step-{step}.parquet"
    if not path.is_file():
        raise UserError(f"{path}: there is no such evaluation; resume the run first")
    table = parquet.read_table(path)
    return np.stack([table[name].to_numpy().astype(np.float64) for name in ("document", "nll", "tokens")], axis=1)
