"""What the README says of the original study's modules, and its tables of arms, gates and keys, hold.

What every README promises alike is tested in tests/test_readmes.py of the repository.
"""

import re
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path

from polytope_hsae.config import ABLATIONS, ARMS, JOBS, OF_STUDY, PATHS as KEYS
from polytope_hsae.validation import GATES

README = (Path(__file__).parents[1] / "README.md").read_text()
TABLE = README.split("## From the original study's names")[1]


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
