"""Shared by the tests: one thread, small configurations, and runs without the study's report."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ternary_vae.train as module
from studycore.checkpoints import read_index
from studycore.metrics_log import read_rows
from studycore.options import TrainOptions
from studycore.report import Report, write_results
from studycore.run import Run, opened
from ternary_vae.cli import STUDY
from ternary_vae.config import TrainConfig

torch.set_num_threads(1)
CPU = TrainOptions(device="cpu", threads=1)
BARE = dataclasses.replace(
    STUDY, claims="conftest:no_claims", columns="conftest:no_columns", report="conftest:no_report"
)
"""The study without its claims and report, whose tests are their own."""


def no_claims(verb, config):
    return ()


def no_columns(folder, config):
    return {}


def no_report(record):
    return Report("title", "question", "answer")


def complete(run: Run) -> None:
    """The end of a run: its history and results."""
    run.open.metrics.compact()
    write_results(run.folder, "ternary-vae", run.verb, run.final, [])
    run.open.finish("done", f"{run.step} updates")


def train_runs(
    configs: Sequence[TrainConfig],
    folders: Sequence[Path],
    resume: bool = False,
    needs: Mapping[str, Path] | None = None,
) -> None:
    """Trains the runs in their folders, new or from where they stand: together, where they are several."""
    with ExitStack() as stack:
        runs = [
            stack.enter_context(opened(BARE, "train", config, folder, CPU, resume=resume, needs=needs, quiet=True))
            for config, folder in zip(configs, folders, strict=True)
        ]
        for run in runs:
            run.complete = complete
        if len(runs) == 1:
            module.train(configs[0], runs[0])
        else:
            module.train_together(configs, runs)
        for run in runs:
            run.finished()


def train_run(config: TrainConfig, folder: Path, resume: bool = False) -> Path:
    """One run; returns its folder."""
    train_runs([config], [folder], resume)
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """A run's evaluations."""
    return read_rows(folder / "metrics.jsonl")


def weights_of(folder: Path, which: str = "last") -> dict[str, torch.Tensor]:
    """The weights of a run's last or best checkpoint."""
    return load_file(folder / "checkpoints" / read_index(folder / "checkpoints")[which] / "model.safetensors")


@pytest.fixture
def small():
    """A configuration of a tiny model over 27 operations, with changes."""

    def make(**changes):
        values = {
            "trits": 3, "latent_dim": 4, "encoder_sizes": [12, 8], "decoder_sizes": [8], "hidden_dim": 8, "seed": 3,
            "coverage_epochs": 6, "epochs": 6, "batch_size": 10, "coverage_lr": 1e-2, "lr": 1e-2, "kl_warmup_epochs": 2,
            "n_pairs": 40, "checkpoint_every": 4,
        }  # fmt: skip
        return TrainConfig(**(values | changes))

    return make
