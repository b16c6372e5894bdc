"""The command from outside: exit codes, one-sentence errors, and the common verbs."""

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path

import pytest
import toy_jobs
import yaml
from toy_study.cli import STUDY

from studycore import cli
from studycore.cli import main
from studycore.errors import UserError
from studycore.files import read_json
from studycore.options import RunOptions, TrainOptions
from studycore.report import write_results
from studycore.run_folder import read_results

HERE = Path(__file__).parent
TOY = dataclasses.replace(STUDY, verbs={**STUDY.verbs, "fail": toy_jobs.VERBS["fail"]})


def lost_checks():
    return [("data found", False, "fetch it")]


def run(*arguments, study=TOY):
    return main(study, list(arguments))


def one_sentence(capsys):
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
    assert err.startswith("toy: ")
    return err.strip().removeprefix("toy: ")


def test_exit_codes(capsys):
    assert run() == run("--help") == run("-h") == run("help") == 0
    assert run("--version") == 0
    assert capsys.readouterr().out.strip().endswith(f"toy {metadata.version('studycore')}")
    assert run("fail", "user") == 2
    assert one_sentence(capsys) == "error: lr: 3 is wrong; give 2"
    assert run("fail", "stop") == 3
    assert one_sentence(capsys) == "stopped"
    with pytest.raises(KeyError):
        run("fail", "fault")
    assert run("frobnicate") == 2
    assert one_sentence(capsys) == (
        "error: 'frobnicate' is no verb of toy; there are train, sweep, fail, report, resume, runs, doctor"
    )


def test_a_fault_shows_its_traceback_and_exits_with_1(start):
    process = start(HERE / "toy_jobs.py", "fail", "fault")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" in errors
    assert "KeyError: 'x'" in errors


def test_help_names_every_verb_and_answers_in_a_second(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    for words in (
        "Does momentum fit a sum sooner?",
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
from studycore.cli import main
from studycore.study import Study
main(Study("a", "studycore", "a", "Q?", {}, "a:b", "a:b", "a:b"), ["--help"])
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
    assert f"toy {verb}" in capsys.readouterr().out
    assert run(verb, "--frobnicate") == 2
    assert f"(see toy {verb} --help)" in one_sentence(capsys)


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
    assert run("train", "--device", "cpu", "--output-dir", str(tmp_path / "run")) == 2
    assert "Permission denied" in one_sentence(capsys)


def test_report_takes_the_newest_run_when_none_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("report") == 2
    assert one_sentence(capsys) == "error: RUN: none given and none under runs/toy; name a run folder"
    for name, seed in (("b", "3"), ("a", "4")):
        flags = ("--device", "cpu", "--steps", "2", "--seed", seed)
        assert run("train", *flags, "--output-dir", f"runs/toy/{name}") == 0
    manifest = read_json(tmp_path / "runs/toy/b/manifest.json")
    manifest["times"]["started"] = "2020-01-01"
    (tmp_path / "runs/toy/b/manifest.json").write_text(json.dumps(manifest))
    reports = {name: (tmp_path / "runs/toy" / name / "report.html").read_bytes() for name in "ab"}
    for name, flags in (
        ("a", []),
        ("b", ["runs/toy/b"]),
        ("b", ["--results_dir", "runs/toy/b"]),
        ("a", ["--results-dir", "runs/toy/a"]),
    ):
        (tmp_path / "runs/toy" / name / "report.html").unlink()
        capsys.readouterr()
        assert run("report", *flags) == 0
        out = capsys.readouterr().out
        assert out.startswith("# A sum\n")
        assert out.endswith(f"report: runs/toy/{name}/report.html\n")
        if name == "a":
            assert (tmp_path / "runs/toy/a/report.html").read_bytes() == reports["a"]
    assert run("resume") == 2
    assert "run" in one_sentence(capsys)


def test_a_configuration_that_is_none_of_the_studys_is_refused(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text("arms: {a: {}}\nseeds: 2")
    assert run("train", "--config", str(file)) == 2
    assert f"{file} is a configuration of many runs; use it with `toy sweep`" in one_sentence(capsys)
    file.write_text("lr: 0.1")
    assert run("sweep", "--config", str(file)) == 2
    assert "'lr' is no field of toy sweep; put settings of runs under base" in one_sentence(capsys)
    for flags, words in (
        (["--lr", "-1"], "lr: -1"),
        (["--sped", "3"], "did you mean 'seed'?"),
        (["--seeds", "2", "--num-processes", "2"], "--num-processes: several seeds are runs with a process each"),
        (["--tracker", "wandb"], "--tracker: wandb is not installed"),
        (["--threads", "0"], "threads: 0 does not fit; give an int of 1 or more"),
    ):
        if "wandb" in flags and importlib.util.find_spec("wandb"):
            continue
        assert run("train", "--device", "cpu", "--output-dir", str(tmp_path / "run"), *flags) == 2
        assert words in one_sentence(capsys)
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_earlier_names_of_flags_and_a_first_argument(tmp_path, capsys):
    train = dataclasses.replace(STUDY.verbs["train"], first_argument="lr", seeds="")
    study = dataclasses.replace(STUDY, verbs={"train": train}, aliases={"learning_rate": "lr", "n": "steps"})
    for argv, lr, steps in (
        (["0.5"], 0.5, 60), (["--learning-rate", "0.25", "--n=7"], 0.25, 7), (["--learning_rate=1e-3"], 1e-3, 60),
    ):  # fmt: skip
        assert run("train", *argv, "--print-config", study=study) == 0
        shown = yaml.safe_load(capsys.readouterr().out)
        assert (shown["lr"], shown["steps"]) == (lr, steps)
    assert run("train", "--seeds", "2", study=study) == 2
    assert "--seeds: toy train makes one run; leave it out" in one_sentence(capsys)


@dataclasses.dataclass(frozen=True)
class Extending(TrainOptions):
    """Flags of a verb whose finished runs may go on."""

    extra: int = 0
    """Updates more."""

    @property
    def extends(self):
        return self.extra > 0


def test_what_extends_a_run_needs_one_that_is_there(tmp_path, capsys):
    train = dataclasses.replace(STUDY.verbs["train"], options="test_cli:Extending")
    study = dataclasses.replace(STUDY, verbs={"train": train})
    folder = ("--device", "cpu", "--output-dir", str(tmp_path / "run"))
    assert run("train", *folder, "--extra", "5", study=study) == 2
    assert "--resume: extending goes on with an earlier run, so give --resume as well" in one_sentence(capsys)
    assert run("train", *folder, "--extra", "5", "--resume", study=study) == 2
    assert f"--resume: {tmp_path / 'run'} holds no run to extend" in one_sentence(capsys)
    assert not (tmp_path / "run").exists()


def test_runs_lists_and_compares(new_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("runs") == 0
    assert capsys.readouterr().out == "no runs under runs/toy\n"
    for name, rate in (("a", 0.1), ("b", 0.2)):
        created = new_run(f"runs/toy/{name}", config={"lr": rate, "note": "stored and given"})
        if name == "a":
            write_results(created.folder, "toy", "train", {"loss": 0.5, "more": {}}, [])
            created.finish("done", "reached the end")
    (tmp_path / "runs" / "toy" / "c").mkdir()
    (tmp_path / "runs" / "toy" / "c" / "manifest.json").write_text("{")
    assert run("runs") == 0
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["runs/toy/a", "done"],
        ["runs/toy/b", "running"],
    ]
    assert "reached the end" in out
    assert "c/manifest.json" in err
    assert run("runs", "runs/toy/a", "runs/toy/b") == 0
    assert capsys.readouterr().out.splitlines() == ["lr: a 0.1, b 0.2", "a: loss 0.5", "b: no results yet"]
    assert run("runs", "runs/toy/a", "runs/toy/a") == 0
    assert "same configuration" in capsys.readouterr().out
    assert run("runs", "runs/toy/a") == 2
    assert "1 run folders given" in one_sentence(capsys)
    assert run("runs", "runs/toy/a", "nowhere") == 2
    assert "nowhere: there is no such run folder" in one_sentence(capsys)


@pytest.mark.parametrize(
    "damaged",
    [
        "{}", "[]", "null", '"text"', '{"metrics": [], "claims": []}', '{"metrics": {}}', '{"metrics": {}, "claims": {}}',
        '{"metrics": {}, "claims": [1]}', '{"metrics": {}, "claims": [{"id": "a"}]}',
    ],
)  # fmt: skip
def test_results_of_another_form_get_one_sentence(trained, tmp_path, capsys, damaged):
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "results.json").write_text(damaged)
    for command in (("runs", str(folder), str(trained)), ("report", str(folder))):
        assert run(*command) == 2
        said = one_sentence(capsys)
        assert said.startswith(f"error: {folder}/results.json: is no results of a run (see its ")
        assert said.endswith("; restore it or make the run again")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert run("train", "--device", "cpu", "--steps", "2", "--output-dir", str(folder)) == 0
    return folder


@pytest.mark.parametrize("key", ["id", "statement", "verdict", "threshold", "n", "why", "predicted", "measured"])
def test_a_claim_of_another_form_is_named_by_its_number(trained, tmp_path, key):
    """What a run itself wrote is taken, with figures and without."""
    folder = shutil.copytree(trained, tmp_path / "run")
    results = read_results(folder)
    judged = results["claims"][1] | {"measured": 0.5, "interval95": [0, 1.0], "verdict": "inconclusive"}
    good = [results["claims"][0], judged]
    (folder / "results.json").write_text(json.dumps(results | {"claims": good}))
    assert read_results(folder)["claims"] == good
    (folder / "results.json").write_text(json.dumps(results | {"claims": [good[0], judged | {key: [1]}]}))
    with pytest.raises(UserError, match=r"see its claims, entry 2\)"):
        read_results(folder)
    (folder / "results.json").write_text(json.dumps(results | {"claims": [good[0], judged | {"interval95": None}]}))
    with pytest.raises(UserError, match=r"see its claims, entry 2\)"):
        read_results(folder)


def test_resume_takes_an_unfinished_run_before_a_finished_one_and_the_newest_of_each(new_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values, options = {"lr": 0.1, "seed": 3}, RunOptions(resume=True)

    def made(name, day, state):
        created = new_run(f"runs/toy/{name}", config=values)
        created.manifest["times"]["started"] = f"2020-01-0{day}"
        if state == "running":
            created.update()
        else:
            created.finish(state, "")

    with pytest.raises(UserError, match="no earlier train run of this configuration"):
        cli.find_folder(STUDY, "train", values, options)
    for name, day, state, expected in (
        ("d", 1, "done", "d"), ("c", 3, "done", "c"), ("e", 2, "done", "c"), ("a", 1, "stopped", "a"),
        ("b", 2, "failed", "b"), ("f", 4, "running", "b"), ("g", 5, "done", "b"),
    ):  # fmt: skip
        made(name, day, state)
        assert cli.find_folder(STUDY, "train", values, options) == Path("runs/toy") / expected
    with pytest.raises(UserError, match="no earlier train run of this configuration"):
        cli.find_folder(STUDY, "train", values | {"lr": 0.2}, options)
    with pytest.raises(UserError, match="no earlier sweep run"):
        cli.find_folder(STUDY, "sweep", values, options)
    named = cli.find_folder(STUDY, "train", values, RunOptions(resume=True, output_dir="there"))
    assert named == Path("there")
    fresh = cli.find_folder(STUDY, "train", values, RunOptions())
    assert fresh.parent == Path("runs/toy") and not fresh.exists()


def test_doctor_says_what_is_lacking_and_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "cache"))
    assert run("doctor", "--runs-dir", str(tmp_path / "runs")) == 0
    out = capsys.readouterr().out
    for words in (
        "python 3",
        "torch",
        f"studycore {metadata.version('studycore')}",
        "device",
        "cores",
        "GiB free",
        "can be written",
        str(tmp_path / "cache"),
    ):
        assert words in out
    assert "LACKS" not in out
    study = dataclasses.replace(STUDY, doctor="test_cli:lost_checks", libraries=("no-such-library",))
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
