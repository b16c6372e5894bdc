"""The run folder: its name, what it records, who may write it, and its state."""

import dataclasses
import json
import multiprocessing
import os
import re
import signal
import subprocess
import time
from importlib import metadata

import pytest
from toy_study.cli import STUDY

from studycore.configuration import config_hash, read_yaml
from studycore.errors import UserError
from studycore.run_folder import (
    environment_changes,
    git_state,
    is_writing,
    library_versions,
    list_runs,
    new_folder,
    open_run,
    read_manifest,
    state_of,
)

DEVICES = {"device": "cpu", "threads": 1, "world_size": 1}


def stored(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_a_folders_name_has_verb_time_and_hash_and_is_not_there_yet(tmp_path):
    values = {"lr": 0.1}
    folder = new_folder(tmp_path, "toy", "train", values)
    assert folder.parent == tmp_path / "toy"
    assert re.fullmatch(r"train-\d{8}-\d{6}-[0-9a-f]{8}", folder.name)
    assert folder.name.endswith(config_hash(values))
    assert abs(time.mktime(time.strptime(folder.name[6:21], "%Y%m%d-%H%M%S")) - time.time()) < 5
    folder.mkdir(parents=True)
    assert new_folder(tmp_path, "toy", "train", values) != folder


def test_a_new_run_records_what_it_is(new_run, tmp_path):
    run = new_run()
    manifest = stored(run.folder)
    assert manifest == run.manifest
    assert read_yaml(run.folder / "config.yaml") == {"lr": 0.1, "seed": 3}
    assert manifest["configuration_hash"] == config_hash({"lr": 0.1, "seed": 3})
    assert (manifest["study"], manifest["verb"], manifest["argv"]) == ("toy", "train", ["toy", "train"])
    assert (manifest["seeds"], manifest["devices"], manifest["data_fingerprints"]) == ([3], DEVICES, {"numbers": "abc"})
    assert set(manifest["versions"]) >= {"python", "torch", "numpy", "studycore"}
    assert set(manifest["git"]) == {"commit", "dirty"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", manifest["times"]["started"])
    assert (manifest["state"], manifest["reason"], manifest["pid"]) == ("running", "", os.getpid())
    run.finish("done", "all of it")
    manifest = stored(run.folder)
    assert (manifest["state"], manifest["reason"], manifest["pid"]) == ("done", "all of it", None)
    assert read_manifest(run.folder) == manifest


def test_time_is_added_up_over_resumptions(new_run):
    run = new_run()
    time.sleep(0.05)
    run.finish("stopped", "")
    first = stored(run.folder)["times"]["seconds"]
    run = open_run(run.folder)
    time.sleep(0.05)
    run.finish("done", "")
    assert first >= 0.05
    assert first + 0.049 <= stored(run.folder)["times"]["seconds"] < first + 5


def test_no_secret_gets_into_the_folder(new_run, monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "PASSWORD"):
        monkeypatch.setenv(name, "hunter2-secret")
    run = new_run()
    run.metrics.append({"step": 0})
    run.finish("done", "")
    for path in run.folder.rglob("*"):
        assert b"hunter2" not in (path.read_bytes() if path.is_file() else b"")


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(new_run):
    run = new_run()
    run.finish("done", "")
    before = (run.folder / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=r"--output-dir: .*run holds a run already; resume it or choose another"):
        new_run(config={"lr": 0.2})
    assert (run.folder / "manifest.json").read_bytes() == before
    open_run(run.folder).close()


def test_a_place_that_is_no_folder_is_refused(new_run, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/below"):
        with pytest.raises(UserError, match=r"--output-dir: .*file.* choose another folder"):
            new_run(name)


def test_a_second_writer_is_refused_until_the_first_is_done(new_run):
    run = new_run()
    assert is_writing(run.folder)
    for attempt in (open_run, lambda folder: new_run()):
        with pytest.raises(UserError, match="another process is writing this run"):
            attempt(run.folder)
    run.close()
    assert not is_writing(run.folder)
    again = open_run(run.folder)
    assert is_writing(run.folder)
    again.close()


def _hold(folder, ready):
    run = open_run(folder)
    assert run
    ready.set()
    time.sleep(60)


def test_the_lock_goes_with_its_process_however_it_ends(new_run):
    run = new_run()
    run.update()
    run.close()
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(run.folder, ready))
    process.start()
    assert ready.wait(60)
    manifest = read_manifest(run.folder)
    assert state_of(run.folder, manifest) == "running"
    with pytest.raises(UserError, match="another process"):
        open_run(run.folder)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert state_of(run.folder, manifest) == "interrupted"
    open_run(run.folder).close()


def test_looking_disturbs_nobody(new_run):
    """Those who look don't see each other, and need no right to write."""
    import fcntl

    run = new_run()
    run.close()
    with open(run.folder / ".lock") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert not is_writing(run.folder)
    (run.folder / ".lock").unlink()
    assert not is_writing(run.folder)
    assert not (run.folder / ".lock").exists()


def test_states(new_run):
    run = new_run()
    assert state_of(run.folder, run.manifest) == "running"
    run.close()
    assert state_of(run.folder, run.manifest) == "interrupted"
    for state in ("done", "stopped", "failed"):
        run = open_run(run.folder)
        run.finish(state, "so")
        assert state_of(run.folder, read_manifest(run.folder)) == state


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "manifest.json: not valid JSON"),
        ("{", "manifest.json: not valid JSON"),
        ("[]", "manifest.json: lacks"),
        ("{}", "lacks study, version, verb"),
        (None, "holds no manifest.json"),
    ],
)
def test_a_damaged_manifest_is_named(new_run, content, words, tmp_path, capsys):
    run = new_run("studycore/damaged")
    run.close()
    whole = new_run("studycore/whole")
    whole.finish("done", "")
    path = run.folder / "manifest.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=re.escape(words)):
        read_manifest(run.folder)
    with pytest.raises(UserError, match="manifest"):
        open_run(run.folder)
    assert [folder.name for folder, _ in list_runs(tmp_path, "studycore")] == ["whole"]
    assert (words in capsys.readouterr().err) == (content is not None)


@pytest.mark.parametrize("key", ["study", "times", "argv", "git", "devices", "state", "reason", "resumed"])
def test_what_a_manifest_lacks_is_named(new_run, key):
    run = new_run()
    run.close()
    manifest = stored(run.folder)
    for value in ({}, {key: 3}):
        changed = {k: v for k, v in manifest.items() if k != key} | value
        (run.folder / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=rf"lacks {key}; restore it or start the run again"):
            read_manifest(run.folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: there is no such run folder"):
        read_manifest(tmp_path / "nowhere")


def test_what_a_crash_left_half_written_is_cleaned_up(new_run):
    run = new_run()
    run.close()
    (run.folder / ".manifest.json.123.tmp").write_text("{")
    (run.folder / ".notes.tmp").write_text("mine")
    open_run(run.folder).close()
    assert [path.name for path in run.folder.glob(".*.tmp")] == [".notes.tmp"]


def test_runs_are_listed_oldest_first(new_run, tmp_path):
    for name, started in (("b", "2020-01-02"), ("a", "2020-01-03"), ("c", "2020-01-01"), ("d", "2020-01-03")):
        run = new_run(f"studycore/{name}")
        run.manifest["times"]["started"] = started
        run.finish("done", "")
    (tmp_path / "studycore" / "no run").mkdir()
    assert [folder.name for folder, _ in list_runs(tmp_path, "studycore")] == ["c", "b", "a", "d"]
    assert list_runs(tmp_path, "other") == []


def test_changes_of_the_environment_are_phrases(new_run):
    manifest = new_run().manifest
    assert environment_changes(manifest, DEVICES) == []
    assert environment_changes(manifest, DEVICES | {"threads": 4, "device": "cuda"}) == [
        "device cpu -> cuda",
        "threads 1 -> 4",
    ]
    manifest["versions"]["torch"] = "0.1"
    manifest["versions"]["no-such-library"] = "3"
    changes = environment_changes(manifest, DEVICES)
    assert changes[0].startswith("torch 0.1 -> ")
    assert changes[1] == "no-such-library 3 -> not installed"
    assert "pyyaml" in library_versions(("pyyaml",))


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_state_of_a_work_tree(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    source = tmp_path / "study.py"
    source.write_text("1")
    nothing = {"commit": None, "dirty": None}
    assert git_state(source) == nothing
    git(tmp_path, "init")
    assert git_state(source) == nothing  # not tracked: an installed copy in somebody's work tree
    git(tmp_path, "add", "study.py")
    git(tmp_path, "commit", "-m", "x")
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=tmp_path, text=True).strip()
    assert git_state(source) == {"commit": head, "dirty": False}
    (tmp_path / "other.py").write_text("2")
    assert git_state(source) == {"commit": head, "dirty": False}
    source.write_text("2")
    assert git_state(source) == {"commit": head, "dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(source) == nothing


def test_a_run_of_an_installed_copy_has_no_commit(new_run):
    study = dataclasses.replace(STUDY, package="yaml")
    assert new_run(study=study).manifest["git"] == {"commit": None, "dirty": None}


def test_the_claims_and_more_are_stored_before_the_run(new_run):
    claims = [{"id": "a", "threshold": 1.0}]
    run = new_run(claims=claims, needs={"before": "/somewhere"})
    assert json.loads((run.folder / "claims.json").read_text()) == claims
    assert stored(run.folder)["needs"] == {"before": "/somewhere"}
    assert stored(run.folder)["version"] == metadata.version("studycore")
    assert set(stored(run.folder)["versions"]) >= {"accelerate"}  # a library that the study names


@pytest.mark.parametrize(
    "name", ["config.yaml", "results.json", "metrics.jsonl", "report.html", "weights.csv", "figures/"]
)
def test_somebody_elses_files_are_refused_before_anything_is_written(new_run, tmp_path, name):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).mkdir() if name.endswith("/") else (folder / name).write_text("mine")
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=rf"--output-dir: .*mine holds {name.rstrip('/')} and no run"):
        new_run("mine")
    assert sorted(folder.rglob("*")) == before


def test_a_lock_of_somebody_elses_is_not_written_into(new_run, tmp_path):
    (tmp_path / "mine").mkdir()
    lock = tmp_path / "mine" / ".lock"
    lock.write_text("another program's\n")
    with pytest.raises(UserError, match=r"--output-dir: .*mine holds \.lock and no run"):
        new_run("mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [".lock"]
    assert lock.read_text() == "another program's\n"
    lock.write_text("")  # as a process of ours leaves it that died at once
    new_run("mine").finish("done", "")


def test_a_log_beside_the_run_is_no_obstacle(new_run, tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("out.log", "notes.txt", ".hidden"):
        (tmp_path / "mine" / name).write_text("mine")
    new_run("mine").finish("done", "")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_what_a_process_left_that_died_before_its_manifest_is_taken_over(new_run):
    run = new_run()
    (run.folder / "manifest.json").unlink()
    run.close()
    new_run().finish("done", "")
    (run.folder / "manifest.json").unlink()
    (run.folder / ".lock").write_text("another program's")
    with pytest.raises(UserError, match=r"holds claims.json, config.yaml, .lock and no run"):
        new_run()


def test_a_run_that_cannot_be_made_lets_go_of_its_folder(new_run, monkeypatch, tmp_path):
    def full(path, value):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("studycore.run_folder.write_json", full)
        with pytest.raises(
            OSError, match="No space"
        ) as kept:  # its traceback keeps the frame, and the lock in it, alive
            new_run("one")
    assert not is_writing(tmp_path / "one"), kept
    new_run("one").finish("done", "")


def test_a_full_disk_still_takes_the_last_word(new_run, monkeypatch, capsys):
    run = new_run()
    assert (run.folder / ".lock").stat().st_size > 16 * 2**10
    room = []

    def write_json(path, value):  # there is room as soon as the reserve is given back
        if (run.folder / ".lock").stat().st_size and not room:
            raise OSError(28, "No space left on device")
        path.write_text(json.dumps(value))

    monkeypatch.setattr("studycore.run_folder.write_json", write_json)
    run.finish("failed", "no space")
    assert (stored(run.folder)["state"], stored(run.folder)["reason"]) == ("failed", "no space")
    monkeypatch.undo()
    again = open_run(run.folder)
    assert (run.folder / ".lock").stat().st_size > 16 * 2**10
    monkeypatch.setattr("studycore.run_folder.write_json", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only")))
    again.finish("failed", "no space")
    assert "manifest.json: cannot be written (Read-only): no space" in capsys.readouterr().err
    assert again.closed
