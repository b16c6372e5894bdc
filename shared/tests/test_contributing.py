"""The page "A new study" of CONTRIBUTING.md, followed to the letter."""

import json
import re
import textwrap
from pathlib import Path

import pytest

from studycore.run_folder import read_manifest

PAGE = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def section():
    if not PAGE.exists():
        pytest.skip("no CONTRIBUTING.md beside: the tests run outside the repository")
    return re.search(r"^## A new study\n(.*?)^## ", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]


def test_the_page_is_one_page(section):
    assert section.count("\n") <= 60


def test_the_study_of_the_page_trains_sweeps_and_reports(section, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"`src/(line/\w+\.py)`[^\n]*:\n\n((?: {4}.*\n|\n)+)", section)
    assert [name for name, _ in blocks] == ["line/config.py", "line/train.py", "line/cli.py"]
    (tmp_path / "line").mkdir()
    (tmp_path / "line" / "__init__.py").touch()
    for name, block in blocks:
        (tmp_path / name).write_text(textwrap.dedent(block))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    from line.cli import main

    cpu = ["--device", "cpu", "--threads", "1"]
    assert main(["train", *cpu, "--lr", "0.3", "--output-dir", "run"]) == 0
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 10, 20, 30, 40, 50]
    assert rows[-1]["loss"] < 0.01 < rows[0]["loss"]
    assert main(["resume", "run"]) == 0
    assert main(["train", *cpu, "--lr", "-1"]) == 2
    assert main(["sweep", *cpu, "--lr", "0.3", "--seeds", "2", "--processes", "1", "--output-dir", "all"]) == 0
    assert [read_manifest(Path("all") / f"run_s{seed}")["state"] for seed in (0, 1)] == ["done", "done"]
    capsys.readouterr()
    assert main(["report", "all"]) == 0
    assert "SUPPORTED    The line is fitted" in capsys.readouterr().out
    (claim,) = json.loads(Path("all/results.json").read_text())["claims"]
    assert (claim["verdict"], claim["n"]) == ("supported", 2)
    assert "2 fits." in Path("all/report.html").read_text()
