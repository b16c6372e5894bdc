"""The README's table has the names of the original study, and its tables of arms, models and faults hold.

What every README promises alike is tested in tests/test_readmes.py of the repository.
"""

import re
from pathlib import Path

from retrofit.config import arm_names

README = (Path(__file__).parents[1] / "README.md").read_text()
TABLE = README.split("## From the original study's names")[1]


def test_the_table_covers_the_original_functions_and_files():
    for name in ("gradient_less_transport", "compute_gram_loss", "geometry_retrofit.py", "compare_retrofit_results.py",
                 "run_retrofit_comparison.sh", "measure_hf_conditioning_v2.py", "summary.json"):  # fmt: skip
        assert name in TABLE, name


def test_the_arms_that_the_readme_lists_are_all():
    arms = README.split("## Arms")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", arms, re.M)) == set(arm_names())


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
