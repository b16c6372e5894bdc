"""The README's table from the original study's names to this package's, and its commands, hold."""

import re
from importlib import import_module, resources
from pathlib import Path

import pytest
import torch

from studycore.configuration import read_yaml
from studycore.options import SweepOptions, TrainOptions
from ternary_vae.cli import STUDY
from ternary_vae.config import SweepConfig, TrainConfig
from ternary_vae.data import Operations
from ternary_vae.metrics.evaluate import all_metrics
from ternary_vae.model import TernaryVAEV5_11_PartialFreeze, create_model
from ternary_vae.plan import plan

README = (Path(__file__).parents[1] / "README.md").read_text()
TABLE = README.split("## From the original study's names")[1]
PATHS = re.findall(r"`((?:ternary_vae|studycore)(?:\.\w+)+)`", TABLE)
CONFIGS = Path(str(resources.files("ternary_vae"))) / "configs"


@pytest.mark.parametrize("path", PATHS)
def test_each_name_of_the_table_exists(path):
    module, parts = path, []
    while True:
        try:
            found = import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            parts.insert(0, last)
    for part in parts:
        found = getattr(found, part)
    assert callable(found)


def test_the_table_covers_the_original_studys_names():
    for name in ("train_from_scratch.py", "TernaryVAEV5_11_PartialFreeze", "ArchitectureConfig", "save_checkpoint",
                 "early_stopping_patience", "max_epochs", "hierarchy_weight", "richness_weight", "CosineAnnealing",
                 "v5_11_homeostasis", "sweep_curv_2.0", "sweep3_early_stop_p5", "sweep3_step_decay", "sweep4_lr_1e3",
                 "sweep4_lr_3e4"):  # fmt: skip
        assert name in TABLE, name
    assert len(PATHS) >= 12


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


def test_the_files_that_the_readme_reads_in_order_exist():
    order = README.split("## Read the code in this order")[1].split("\n## ")[0]
    files = re.findall(r"\]\((src/[\w/.]+)\)", order)
    here = Path(__file__).parents[1]
    assert all((here / name).exists() for name in files)
    there = {path.relative_to(here).as_posix() for path in (here / "src" / "ternary_vae").glob("*.py")}
    assert there - set(files) == {f"src/ternary_vae/{name}.py" for name in ("__init__", "__main__")}


def test_the_flags_that_the_readme_names_exist():
    fields = {*TrainConfig.__dataclass_fields__, *TrainOptions.__dataclass_fields__, *SweepOptions.__dataclass_fields__}
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z_-]+)", README)}
    # The last is the benchmark's.
    assert flags - fields <= {"config", "help", "key_map", "max_epochs", "plain"}


def test_the_commands_that_the_readme_names_exist():
    commands = re.findall(r"^    ternary-vae ([a-z]+)|`ternary-vae ([a-z]+)|run ternary-vae ([a-z]+)", README, re.M)
    verbs = {word for match in commands for word in match if word}
    assert verbs <= set(STUDY.verbs) | {"report", "resume", "runs", "doctor"}
    for name in re.findall(r"--config (\w+)", README):
        assert (CONFIGS / f"{name}.yaml").is_file(), name


def test_the_losses_and_metrics_that_the_readme_names_exist():
    config = TrainConfig(trits=3, encoder_sizes=[8], decoder_sizes=[8], latent_dim=4)
    found = all_metrics(create_model(config, 0), Operations.all(3), "b", 0)
    measured = README.split("## What is measured")[1].split("\n## ")[0]
    names = {name for row in re.findall(r"^\| (`.+?) \|", measured, re.M) for name in re.findall(r"`(\w+)`", row)}
    assert len(names) >= 12
    assert names <= set(found)
    losses = set(re.findall(r"^\| `(\w+)` \|", README.split("## What is measured")[0], re.M))
    assert losses == {"ordered", "rich_hierarchy", "geodesic"}
