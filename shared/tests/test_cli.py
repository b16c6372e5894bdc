"""The command from outside: exit codes, one-sentence errors, and the common verbs."""

import dataclasses
import os
import subprocess
import sys
import time
import traceback

import pytest
import toy

from studycore import cli
from studycore.cli import main
from studycore.report import write_results


def run(*arguments, study=toy.STUDY):
    return main(study, list(arguments))


def one_sentence(capsys):
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
    assert err.startswith("studycore: ")
    return err.strip().removeprefix("studycore: ")


def test_exit_codes(capsys):
    assert run() == run("--help") == run("-h") == run("help") == 0
    assert run("--version") == 0
    assert capsys.readouterr().out.strip().endswith("studycore 0.1.0")
    assert run("fail", "user") == 2
    assert one_sentence(capsys) == "error: lr: 3 is wrong; give 2"
    assert run("fail", "stop") == 3
    assert one_sentence(capsys) == "stopped"
    with pytest.raises(KeyError):
        run("fail", "fault")
    assert run("frobnicate") == 2
    assert one_sentence(capsys) == (
        "error: 'frobnicate' is no verb of studycore; there are train, sweep, fail, report, resume, runs, doctor"
    )


def test_a_fault_shows_its_traceback_and_exits_with_1(start):
    process = start("toy_jobs.py", "fail", "fault")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" in errors
    assert "KeyError: 'x'" in errors


def test_help_names_every_verb_and_answers_in_a_second(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    for words in (
        "Does a line fit?",
        "train",
        "sweep",
        "report",
        "resume",
        "runs",
        "doctor",
        "--version",
        "exit codes",
    ):
        assert words in text
    code = """
from studycore.cli import Study, main
main(Study("a", "studycore", "Q?", {}, "a:b", "a:b"), ["--help"])
"""
    times = []
    for _ in range(3):  # the best of three: other programs may be running
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        times.append(time.monotonic() - began)
    assert min(times) < 1.0
    loaded = (
        "import sys, studycore.cli, studycore.configuration; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", loaded], check=True)


@pytest.mark.parametrize("verb", ["report", "resume", "runs", "doctor"])
def test_common_verbs_have_help_and_refuse_unknown_flags(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        run(verb, "--help")
    assert caught.value.code == 0
    assert f"studycore {verb}" in capsys.readouterr().out
    assert run(verb, "--frobnicate") == 2
    assert f"(see studycore {verb} --help)" in one_sentence(capsys)


@pytest.mark.parametrize("verb", ["report", "resume"])
@pytest.mark.parametrize("place", ["missing", "empty", "a file", "another study's", "damaged", "no right to"])
def test_a_folder_that_is_no_run_gets_one_sentence(verb, place, new_run, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "folder"
    words = {
        "missing": "there is no such run folder", "empty": "no manifest.json", "a file": "there is no such run folder",
        "another study's": "is a run of least-action", "damaged": "not valid JSON", "no right to": "Permission denied",
    }[place]  # fmt: skip
    if place == "empty":
        folder.mkdir()
    elif place == "a file":
        folder.write_text("")
    elif place != "missing":
        created = new_run("folder")
        created.manifest["study"] = "least-action"
        created.finish("stopped", "")
    if place == "damaged":
        (folder / "manifest.json").write_text("{")
    if place == "no right to":
        if os.geteuid() == 0:  # root may read everything
            import pathlib

            real = pathlib.Path.exists

            def refuses(path, **kwargs):
                if path.parent == folder:
                    raise PermissionError(13, "Permission denied", str(path))
                return real(path, **kwargs)

            monkeypatch.setattr(pathlib.Path, "exists", refuses)
        else:
            folder.chmod(0)
    assert run(verb, str(folder)) == 2
    if place == "no right to" and os.geteuid():
        folder.chmod(0o700)
    message = one_sentence(capsys)
    assert words in message
    assert str(folder) in message


def test_without_the_right_to_write_a_new_run_gets_one_sentence(capsys, monkeypatch, tmp_path):
    def refuses(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path / "run"))

    monkeypatch.setattr("pathlib.Path.mkdir", refuses)
    assert run("train", str(tmp_path / "run")) == 2
    assert "Permission denied" in one_sentence(capsys)


def test_report_takes_the_newest_run_when_none_is_named(new_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("report") == 2
    assert one_sentence(capsys) == "error: RUN: none given and none under runs/studycore; name a run folder"
    for name in ("a", "b"):
        created = new_run(f"runs/studycore/{name}")
        created.manifest["times"]["started"] = f"2020-01-0{1 if name == 'b' else 2}"
        created.finish("done", "")
    assert run("report") == 0
    assert capsys.readouterr().out == "report of runs/studycore/a\n"
    for flag in ("--results_dir", "--results-dir"):
        assert run("report", flag, "runs/studycore/b") == 0
        assert capsys.readouterr().out == "report of runs/studycore/b\n"
    assert run("resume") == 2
    assert "RUN" in one_sentence(capsys).upper()


def test_resume_of_a_finished_run_says_so(new_run, tmp_path, capsys):
    new_run("r").finish("done", "")
    assert run("resume", str(tmp_path / "r")) == 0
    assert capsys.readouterr().out == "is finished\n"


def test_runs_lists_and_compares(new_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("runs") == 0
    assert capsys.readouterr().out == "no runs under runs/studycore\n"
    for name, rate in (("a", 0.1), ("b", 0.2)):
        created = new_run(f"runs/studycore/{name}", config={"lr": rate, "note": "stored and given"})
        if name == "a":
            write_results(created.folder, "studycore", "train", {"loss": 0.5, "more": {}}, [])
            created.finish("done", "reached the end")
    (tmp_path / "runs" / "studycore" / "c").mkdir()
    (tmp_path / "runs" / "studycore" / "c" / "manifest.json").write_text("{")
    assert run("runs") == 0
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["runs/studycore/a", "done"],
        ["runs/studycore/b", "running"],
    ]
    assert "reached the end" in out
    assert "c/manifest.json" in err
    assert run("runs", "runs/studycore/a", "runs/studycore/b") == 0
    assert capsys.readouterr().out.splitlines() == ["lr: a 0.1, b 0.2", "a: loss 0.5", "b: no results yet"]
    assert run("runs", "runs/studycore/a", "runs/studycore/a") == 0
    assert "same configuration" in capsys.readouterr().out
    assert run("runs", "runs/studycore/a") == 2
    assert "1 run folders given" in one_sentence(capsys)
    assert run("runs", "runs/studycore/a", "nowhere") == 2
    assert "nowhere: there is no such run folder" in one_sentence(capsys)


def test_doctor_says_what_is_lacking_and_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "cache"))
    assert run("doctor", "--runs-dir", str(tmp_path / "runs")) == 0
    out = capsys.readouterr().out
    for words in (
        "python 3",
        "torch",
        "studycore 0.1",
        "device",
        "cores",
        "GiB free",
        "can be written",
        str(tmp_path / "cache"),
    ):
        assert words in out
    assert "LACKS" not in out
    study = dataclasses.replace(toy.STUDY, checks="toy:lost_checks", libraries=("no-such-library",))
    monkeypatch.setattr(cli, "_writable", lambda folder: folder != tmp_path / "cache")
    assert run("doctor", "--runs-dir", str(tmp_path / "runs"), study=study) == 2
    out, err = capsys.readouterr()
    assert "no-such-library not installed" in out
    assert "LACKS data found: fetch it" in out
    assert "set MPLCONFIGDIR" in out
    assert "2 of 6 checks fail" in err
    assert len(err.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_written_is_found(tmp_path):
    assert cli._writable(tmp_path / "new" / "deep")
    (tmp_path / "file").write_text("")
    assert not cli._writable(tmp_path / "file")
    assert not any(tmp_path.glob("new/deep/*"))


def test_an_error_in_the_middle_of_a_message_is_not_a_users_mistake():
    """ValueErrors of libraries keep their traceback."""

    def fails():
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside") as caught:
        cli.exit_code("toy", fails)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "fails"
