"""The README's table from the original study's names to this package's, and its commands, hold."""

import re
from importlib import import_module, resources
from pathlib import Path

import pytest

from retrofit.cli import STUDY
from retrofit.config import CompareConfig, RunConfig, TrainOptions, arm_names
from studycore.options import SweepOptions

README = (Path(__file__).parents[1] / "README.md").read_text()
TABLE = README.split("## From the original study's names")[1]
PATHS = re.findall(r"`(retrofit(?:\.\w+)+)`", TABLE)


@pytest.mark.parametrize("path", PATHS)
def test_each_name_of_the_table_exists(path):
    module, _, name = path.rpartition(".")
    assert callable(getattr(import_module(module), name))


def test_the_table_covers_the_original_functions_and_files():
    for name in ("gradient_less_transport", "compute_gram_loss", "geometry_retrofit.py", "compare_retrofit_results.py",
                 "run_retrofit_comparison.sh", "measure_hf_conditioning_v2.py", "summary.json"):  # fmt: skip
        assert name in TABLE, name
    assert len(PATHS) >= 10


def test_the_flags_and_arms_that_the_readme_names_exist():
    classes = (RunConfig, TrainOptions, CompareConfig, SweepOptions)
    fields = {name for cls in classes for name in cls.__dataclass_fields__}
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z_-]+)", README)}
    assert flags - fields <= {"config", "embeddings", "results_dir", "help"}
    arms = README.split("## Arms")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", arms, re.M)) == set(arm_names())


def test_the_commands_that_the_readme_names_exist():
    commands = re.findall(r"^    retrofit ([a-z]+)|`retrofit ([a-z]+)|compose run retrofit ([a-z]+)", README, re.M)
    verbs = {word for match in commands for word in match if word}
    assert verbs <= set(STUDY.verbs) | {"report", "resume", "runs", "doctor"}
    configs = Path(str(resources.files("retrofit"))) / "configs"
    for name in re.findall(r"--config ([a-z]+)\b", README):
        assert (configs / f"{name}.yaml").is_file(), name


def test_the_files_that_the_reading_order_names_exist():
    order = README.split("## Read the code in this order")[1].split("\n## ")[0]
    source = Path(str(resources.files("retrofit")))
    names = re.findall(r"`([\w/]+\.py|[\w/]+/)`", order)
    assert len(names) > 8
    for name in names:
        assert (source / name).exists(), name


def test_the_models_that_the_readme_lists_are_those_that_are_tested():
    from conftest import tiny_configs

    table = README.split("## Models")[1].split("\n## ")[0]
    listed = {name for line in re.findall(r"^\| (`.*?) \|", table, re.M)[1:] for name in re.findall(r"`(\w+)`", line)}
    assert listed == {make().model_type for make in tiny_configs().values()}


def test_every_fault_names_a_test_that_there_is():
    table = README.split("## Faults")[1].split("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    tests = re.findall(r"`(test_\w+\.py)::(test_\w+)`", table)
    assert len(lines) >= 10
    assert all("test" in line or "first of these" in line for line in lines)
    for file, name in tests:
        own = Path(__file__).parent
        places = [own / file, own.parents[2] / "shared" / "tests" / file]
        assert any(f"def {name}(" in place.read_text() for place in places if place.exists()), name
