"""The page "A new study" of CONTRIBUTING.md: it shows the toy study's own lines, and its first step gives a study that runs."""

import re
import textwrap
from pathlib import Path

import pytest
import toy_study

from studycore.run_folder import read_manifest

PAGE = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"
TOY = Path(toy_study.__file__).parent


@pytest.fixture(scope="module")
def section():
    if not PAGE.exists():
        pytest.skip("no CONTRIBUTING.md beside: the tests run outside the repository")
    return re.search(r"^## A new study\n(.*?)^## ", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]


def test_the_page_is_one_page(section):
    assert section.count("\n") <= 85


def test_what_the_page_shows_are_the_toys_own_lines(section):
    """Each block, to the letter, in the file that the paragraph before it names."""
    blocks = re.findall(r"^\S[^\n]*`(\w+\.py)`[^\n]*:\n\n((?: {4}.*\n|\n)+)", section, re.MULTILINE)
    assert [name for name, _ in blocks] == ["config.py", "train.py", "cli.py", "cli.py"]
    assert section.count("\n    ") == sum(bool(line) for _, block in blocks for line in block.splitlines())
    for name, block in blocks:
        assert f"\n{textwrap.dedent(block).strip()}\n" in (TOY / name).read_text(), name


def test_a_copy_of_the_toy_under_another_name_is_a_study(section, tmp_path, monkeypatch, capsys):
    assert "write `line` for `toy_study` in its files and for `toy` in its declaration" in section
    for path in [path for path in TOY.rglob("*") if path.is_file() and path.suffix != ".pyc"]:
        copy = tmp_path / "line" / path.relative_to(TOY)
        copy.parent.mkdir(exist_ok=True, parents=True)
        copy.write_text(path.read_text().replace("toy_study", "line").replace('name="toy"', 'name="line"'))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    from line.cli import main

    cpu = ["--device", "cpu", "--threads", "1", "--steps", "5"]
    assert main(["train", *cpu, "--lr", "-1"]) == 2
    assert main(["sweep", *cpu, "--config", "arms", "--seeds", "1", "--processes", "1"]) == 0
    (folder,) = Path("runs/line").iterdir()
    assert [read_manifest(folder / arm)["state"] for arm in ("plain", "momentum")] == ["done", "done"]
    capsys.readouterr()
    assert main(["report", str(folder)]) == 0
    assert "2 fits." in capsys.readouterr().out
