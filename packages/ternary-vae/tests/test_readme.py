"""The README's table has the names of the original study, and its experiments, losses and metrics are here.

What every README promises alike is tested in tests/test_readmes.py of the repository.
"""

import re
from importlib import resources
from pathlib import Path

import torch

from studycore.configuration import read_yaml
from ternary_vae.config import SweepConfig, TrainConfig
from ternary_vae.data import Operations
from ternary_vae.metrics.evaluate import all_metrics
from ternary_vae.model import TernaryVAEV5_11_PartialFreeze, create_model
from ternary_vae.plan import plan

README = (Path(__file__).parents[1] / "README.md").read_text()
TABLE = README.split("## From the original study's names")[1]
CONFIGS = Path(str(resources.files("ternary_vae"))) / "configs"


def test_the_table_covers_the_original_studys_names():
    for name in ("train_from_scratch.py", "TernaryVAEV5_11_PartialFreeze", "ArchitectureConfig", "save_checkpoint",
                 "early_stopping_patience", "max_epochs", "hierarchy_weight", "richness_weight", "CosineAnnealing",
                 "v5_11_homeostasis", "sweep_curv_2.0", "sweep3_early_stop_p5", "sweep3_step_decay", "sweep4_lr_1e3",
                 "sweep4_lr_3e4"):  # fmt: skip
        assert name in TABLE, name


def test_the_original_studys_example_runs():
    model = TernaryVAEV5_11_PartialFreeze(curvature=1.0, max_radius=0.95, use_controller=True)
    assert model.controller is not None
    assert model(torch.zeros(2, 9))["z_A_hyp"].shape == (2, 16)


def test_the_experiments_that_the_table_names_are_in_the_sweep():
    arms = {job.arm for job in plan(SweepConfig(**read_yaml(CONFIGS / "full.yaml")))}
    named = set(re.findall(r"`(sweep[34]?_\w+(?:\.\d)?)`", TABLE)) - {"sweep_strategic"}
    named = {name for name in named if not name.startswith("sweep_phase")}
    assert len(named) >= 5
    assert named <= arms


def test_the_losses_and_metrics_that_the_readme_names_exist():
    config = TrainConfig(trits=3, encoder_sizes=[8], decoder_sizes=[8], latent_dim=4)
    metrics = all_metrics(create_model(config, 0), Operations.all(3), "b", 0)
    measured = README.split("## What is measured")[1].split("\n## ")[0]
    names = {name for row in re.findall(r"^\| (`.+?) \|", measured, re.M) for name in re.findall(r"`(\w+)`", row)}
    assert len(names) >= 12
    assert names <= set(metrics)
    losses = set(re.findall(r"^\| `(\w+)` \|", README.split("## What is measured")[0], re.M))
    assert losses == {"ordered", "rich_hierarchy", "geodesic"}
