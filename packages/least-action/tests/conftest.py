"""Shared by the tests: one thread, and small configurations."""

import pytest
import torch

from least_action.cli import STUDY
from least_action.config import TrainerConfig, TrainOptions
from studycore.execution import make_run

torch.set_num_threads(1)


@pytest.fixture
def small():
    """A configuration of a tiny transformer, with changes."""

    def make(**changes):
        values = {
            "p": 7, "train_frac": 0.5, "model_type": "transformer", "hidden_dim": 8, "n_layers": 1, "n_heads": 2,
            "epochs": 30, "eval_every": 5, "log_every": 10, "checkpoint_every": 10, "weight_curvature_interval": 10,
            "curvature_probes": 2, "metric_samples": 4, "lr": 1e-2, "weight_decay": 1.0, "seed": 3,
        }  # fmt: skip
        return TrainerConfig(**(values | changes))

    return make


@pytest.fixture
def train():
    """Trains a configuration in a folder as `least-action train` does, on one thread and without report."""

    def run(config, folder, resume=False, extra_epochs=0, quiet=True, **options):
        options = TrainOptions(device="cpu", threads=1, extra_epochs=extra_epochs, **options)
        make_run(STUDY, "train", config, folder, options, ["least-action", "train"], resume, quiet=quiet)

    return run
