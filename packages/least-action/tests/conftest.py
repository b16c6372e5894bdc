"""Shared by the tests: one thread, and small configurations."""

import pytest
import torch
import yaml

from least_action.cli import STUDY, main
from least_action.config import TrainerConfig, TrainOptions
from studycore.execution import make_run

torch.set_num_threads(1)


COMMAND = ("-m", "least_action")
"""Python's arguments for `least-action`."""


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


BASE = {
    "p": 7, "train_frac": 0.5, "model_type": "transformer", "hidden_dim": 8, "n_layers": 1, "n_heads": 2, "epochs": 30,
    "eval_every": 5, "log_every": 10, "weight_curvature_interval": 15, "curvature_probes": 2, "metric_samples": 4,
    "checkpoint_every": 10, "event_window": 2,
}  # fmt: skip
SWEEP = "sweep-a"


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """runs/least-action with a sweep of 2 x 2 x 2 runs and one routed run."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "s.yaml").write_text(
        yaml.safe_dump(
            {"base": BASE, "grid": {"lr": [3e-4, 1e-3], "weight_decay": [0.0, 1.0]}, "seeds": 2, "name": "p{p}_lr{lr}_wd{weight_decay}"}
        )
    )  # fmt: skip
    runs = folder / "runs" / "least-action"
    flags = ["--device", "cpu", "--threads", "1"]
    assert (
        main(
            ["sweep", "--config", str(folder / "s.yaml"), *flags, "--processes", "1", "--output-dir", str(runs / SWEEP)]
        )
        == 0
    )
    (folder / "r.yaml").write_text(
        yaml.safe_dump(BASE | {"model_type": "routed", "event_window": 1, "weight_curvature_interval": 30})
    )
    assert (
        main(
            [
                "train",
                "--config",
                str(folder / "r.yaml"),
                *flags,
                "--keep-checkpoints",
                "9",
                "--output-dir",
                str(runs / "routed"),
            ]
        )
        == 0
    )
    return runs
