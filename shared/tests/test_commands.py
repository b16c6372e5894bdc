"""The command `studycore`."""

import sys

import pytest

from studycore.commands import main
from studycore.testing.runs import refused


@pytest.fixture
def command(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["studycore", *arguments])
        return main()

    return run


def test_index_writes_the_page_and_says_where(command, new_run, tmp_path, capsys):
    new_run("runs/studycore/a").finish("done", "")
    assert command("index", "--runs", str(tmp_path / "runs")) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "runs" / "index.html")
    assert "studycore/a" in (tmp_path / "runs" / "index.html").read_text()


def test_mistakes_get_one_sentence(command, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for arguments in ([], ["frobnicate"], ["index", "--frobnicate"], ["index", "--runs", str(tmp_path / "file")]):
        assert refused(lambda given: command(*given), arguments, capsys).startswith("studycore: error: ")


def test_version_and_help(command, capsys):
    for flag, words in (("--version", "studycore 0.1.0"), ("--help", "index.html")):
        assert command(flag) == 0
        assert words in capsys.readouterr().out


def test_the_runs_of_the_reference_model_have_the_common_verbs(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command("runs") == 0
    assert "no runs under runs/studycore" in capsys.readouterr().out
    assert command("resume", "nowhere") == 2
    assert "there is no such run folder" in capsys.readouterr().err
