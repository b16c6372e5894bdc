"""The command `studycore`."""

import sys

import pytest

from studycore.commands import main


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
        assert command(*arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("studycore: error: ")
        assert len(err.strip().splitlines()) == 1


def test_version_and_help(command, capsys):
    for flag, words in (("--version", "studycore 0.1.0"), ("--help", "index.html")):
        with pytest.raises(SystemExit) as caught:
            command(flag)
        assert caught.value.code == 0
        assert words in capsys.readouterr().out
