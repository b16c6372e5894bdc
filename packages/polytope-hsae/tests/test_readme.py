"""What the README names exists: the table from the original study's names, commands, flags, arms, gates, metrics, files."""

import re
from dataclasses import MISSING, fields
from importlib import import_module, resources
from pathlib import Path

import pytest

from polytope_hsae.cli import STUDY
from polytope_hsae.config import (
    ABLATIONS,
    ARMS,
    JOBS,
    OF_STUDY,
    PATHS as KEYS,
    GeometryConfig,
    JobOptions,
    StudyConfig,
    TrainConfig,
)
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
    fields = {
        f
        for cls in (StudyConfig, TrainConfig, GeometryConfig, JobOptions, SweepOptions)
        for f in cls.__dataclass_fields__
    }
    flags = {flag.replace("-", "_") for flag in re.findall(r"`?--([a-z][a-z-]+)", README)}
    assert flags - fields <= {"config", "help", "debug", "non_interactive", "steps", "peer_batch", "peers_only"}


def test_arms_and_gates_are_all_told():
    part = README.split("## Arms")[1].split("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.+?) \|", part, re.M)))) == set(ARMS)
    part = README.split("## Geometry and its gates")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", part, re.M)) == set(GATES)


def test_every_key_is_in_the_table_with_its_default():
    part = README.split("## Configuration")[1].split("\n## ")[0]
    told = dict(re.findall(r"^\| `([\w.]+)` \| (.+?) \| .+ \|$", part, re.M))
    assert set(told) == {*KEYS, *OF_STUDY, "seeds"}
    defaults = {
        f.name: f.default if f.default is not MISSING else f.default_factory()
        for cls in JOBS.values()
        for f in fields(cls)
    }
    for path, name in KEYS.items():
        value = defaults[name]
        assert told[path] == (
            "null"
            if value is None
            else f"{value:g}"
            if isinstance(value, float)
            else str(value).replace("True", "true")
        ), path
    assert all(f"`{name}`" in part for name in ABLATIONS)


def test_the_files_that_the_readme_reads_in_order_exist():
    files = re.findall(r"\]\(src/polytope_hsae/(\w+)\.py\)", README)
    there = {path.stem for path in (HERE / "src" / "polytope_hsae").glob("*.py")}
    assert there - set(files) == {"__init__", "__main__", "models"}
    assert len(files) == len(set(files))
