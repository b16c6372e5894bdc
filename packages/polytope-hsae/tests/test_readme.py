"""What the README names exists: the table from the original study's names, commands, flags, arms, gates, metrics, files."""

import re
from importlib import import_module, resources
from pathlib import Path

import pytest

from polytope_hsae.cli import STUDY
from polytope_hsae.config import ARMS, JobOptions, StudyConfig, TrainConfig
from polytope_hsae.validation import GATES
from studycore.options import SweepOptions

HERE = Path(__file__).parents[1]
README = (HERE / "README.md").read_text()
TABLE = README.split("## From the original study's names")[1]
PATHS = sorted(set(re.findall(r"`(polytope_hsae(?:\.\w+)+)`", README)) - {"polytope_hsae.config"})
CONFIGS = Path(str(resources.files("polytope_hsae"))) / "configs"


@pytest.mark.parametrize("path", PATHS)
def test_each_name_exists(path):
    module, _, name = path.rpartition(".")
    assert callable(getattr(import_module(module), name))


def test_the_modules_of_the_original_study_are_there():
    for name in (
        "geometry",
        "estimators",
        "validation",
        "concepts",
        "activations",
        "models",
        "training",
        "steering",
        "metrics",
        "visualization",
    ):
        assert f"{name}.py" in TABLE
        import_module(f"polytope_hsae.{name}")


def test_commands_and_configurations_exist():
    verbs = set(re.findall(r"^    polytope-hsae (\w+)", README, re.M)) | set(
        re.findall(r"`polytope-hsae (\w+)", README)
    )
    assert verbs <= set(STUDY.verbs) | {"report", "resume", "runs", "doctor"}
    for name in re.findall(r"--config ([\w-]+)", README):
        assert (CONFIGS / f"{name}.yaml").is_file(), name


def test_flags_exist():
    fields = {f for cls in (StudyConfig, TrainConfig, JobOptions, SweepOptions) for f in cls.__dataclass_fields__}
    flags = {flag.replace("-", "_") for flag in re.findall(r"`?--([a-z][a-z-]+)", README)}
    assert flags - fields <= {"config", "help", "debug", "non_interactive", "steps", "peer_batch", "peers_only"}


def test_arms_and_gates_are_all_told():
    part = README.split("## Arms")[1].split("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.+?) \|", part, re.M)))) == set(ARMS)
    part = README.split("## Geometry and its gates")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", part, re.M)) == set(GATES)


def test_the_files_that_the_readme_reads_in_order_exist():
    files = re.findall(r"\]\(src/polytope_hsae/(\w+)\.py\)", README)
    there = {path.stem for path in (HERE / "src" / "polytope_hsae").glob("*.py")}
    assert there - set(files) == {"__init__", "__main__", "models"}
    assert len(files) == len(set(files))
