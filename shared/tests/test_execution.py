"""Jobs of a plan as runs: which are made, which are found done, and what becomes of those that need others.

A sweep of the toy study's runs, whose plan each test writes down.
"""

import dataclasses
import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import toy_variants as variants

from studycore import cli
from studycore.checkpoints import load_latest
from studycore.devices import cores
from studycore.errors import UserError
from studycore.execution import _Progress, alone, identity_of, locate, report_on
from studycore.jobs import Job
from studycore.metrics_log import read_rows
from studycore.options import RunOptions
from studycore.record import read_record
from studycore.report import Report
from studycore.run import Run
from studycore.run_folder import read_manifest
from studycore.study import ManyRuns

CACHE = Path("runs/toy/cache")
planned: list[Job] = []


def rows_so_far(record):
    return Report("A sum", "How far is it?", f"{len(record.rows)} rows.")


def plan(sweep):
    return list(planned)


SWEEP = ManyRuns("make what the test plans", "toy_variants:Sweep", "test_execution:plan", of="train")
STUDY = dataclasses.replace(variants.STUDY, verbs={**variants.STUDY.verbs, "sweep": SWEEP})


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def config(**values):
    return variants.Config(**{"steps": 10} | values)


def sweep(folder, *jobs):
    planned[:] = jobs
    return cli.main(STUDY, ["sweep", "--device", "cpu", "--threads", "1", "--output-dir", folder])


def resume(folder, *jobs):
    planned[:] = jobs
    return cli.main(STUDY, ["resume", folder])


def change_manifest(folder, **fields):
    (Path(folder) / "manifest.json").write_text(json.dumps(read_manifest(Path(folder)) | fields))


def last_loss(folder):
    return read_rows(Path(folder) / "metrics.jsonl")[-1]["loss"]


def first_loss(folder):
    return read_rows(Path(folder) / "metrics.jsonl")[0]["loss"]


START = Job("start", config(seed=7), shared=True)


# ------------------------------------------------------------------------------------------------------------ shared jobs
def test_a_shared_job_is_made_once_and_found_by_every_plan(here):
    one = [START, Job("a", config(lr=0.02, seed=7), needs=("start",))]
    two = [Job("other", config()), START, Job("b", config(lr=0.03, seed=7), needs=("start",))]
    assert sweep("one", *one) == 0
    (cached,) = CACHE.iterdir()
    made = (cached / "manifest.json").read_bytes()
    assert cached.name == f"train-{identity_of('train', START.config, {})}"
    assert sweep("two", *two) == 0
    assert here == [["start"], ["a"], ["other"], ["b"]]
    assert (list(CACHE.iterdir()), (cached / "manifest.json").read_bytes()) == ([cached], made)
    assert not Path("one/start").exists()
    assert not Path("two/start").exists()
    assert first_loss("one/a") == first_loss("two/b") == last_loss(cached)
    # The whole has it among its runs all the same.
    for folder, jobs, names in (("one", one, {"start", "a"}), ("two", two, {"start", "other", "b"})):
        planned[:] = jobs
        record = read_record(STUDY, Path(folder))
        assert (set(record.table["run"]), record.missing) == (names, {})
        assert {row["run"] for row in record.rows} == names


def test_runs_that_were_moved_together_keep_their_shared_jobs(here):
    assert sweep("runs/toy/one", START, Job("a", config(seed=7), needs=("start",))) == 0
    Path("runs").rename("moved")
    assert set(read_record(STUDY, Path("moved/toy/one")).table["run"]) == {"start", "a"}


def test_a_run_that_was_moved_without_its_shared_jobs_says_which_folder_it_lacks(here):
    assert sweep("runs/toy/one", START) == 0
    Path("elsewhere").mkdir()
    Path("runs/toy/one").rename("elsewhere/one")
    (why,) = read_record(STUDY, Path("elsewhere/one")).missing.values()
    assert re.fullmatch(r"made before, and its folder elsewhere/one/.*/train-\w+ is not there now", why)
    with pytest.raises(UserError, match="first start: made before, and its folder"):
        report_on(STUDY, Path("elsewhere/one"))


def test_another_configuration_of_a_shared_job_is_another_run(here):
    assert sweep("one", START) == 0
    assert sweep("two", dataclasses.replace(START, config=config(seed=8))) == 0
    assert here == [["start"], ["start"]]
    assert len(list(CACHE.iterdir())) == 2


def test_a_shared_run_of_another_identity_is_refused(here, capsys):
    assert sweep("one", START) == 0
    (cached,) = CACHE.iterdir()
    change_manifest(cached, identity="another")
    capsys.readouterr()
    assert sweep("two", START) == 2
    assert (
        f"{cached.absolute()}: holds a run of another version, or of other needs; remove it" in capsys.readouterr().err
    )
    assert (here, read_manifest(Path("two"))["state"]) == ([["start"]], "failed")


def test_a_shared_run_that_was_cut_off_goes_on_in_the_next_plan(here, at_batch):
    def fault():
        raise OSError("disk full")

    job = Job("start", config(steps=30, checkpoint_every=10), shared=True)
    at_batch(25, fault)
    assert sweep("one", job, Job("a", config(), needs=("start",))) == 2
    assert read_manifest(Path("one"))["failed"] == {
        "start": "OSError: disk full", "a": "it needs start, which failed: OSError: disk full",
    }  # fmt: skip
    assert sweep("two", job) == 0
    (cached,) = CACHE.iterdir()
    assert len(read_manifest(cached)["resumed"]) == 1
    assert sweep("straight", dataclasses.replace(job, shared=False)) == 0
    assert (cached / "metrics.jsonl").read_bytes() == Path("straight/start/metrics.jsonl").read_bytes()
    # The first plan goes on with what the second has made.
    here.clear()
    assert resume("one", *[job, Job("a", config(), needs=("start",))]) == 0
    assert here == [["a"]]


def test_a_full_disk_ends_a_sweep_with_what_to_do(here, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")

    monkeypatch.setattr("studycore.execution._row", full)
    assert sweep("one", Job("a", config())) == 2
    manifest = read_manifest(Path("one"))
    assert manifest["state"] == "failed"
    assert manifest["reason"].startswith("metrics.jsonl: No space left on device; free some space")


def test_a_run_that_has_not_ended_is_reported_where_the_study_can(here):
    assert sweep("one", Job("a", config())) == 0
    change_manifest("one/a", state="stopped")
    with pytest.raises(UserError, match="one/a: the run is stopped; `toy resume one/a` continues it"):
        report_on(STUDY, Path("one/a"))
    train = dataclasses.replace(STUDY.verbs["train"], reports_unfinished=True)
    study = dataclasses.replace(STUDY, verbs={**STUDY.verbs, "train": train}, report="test_execution:rows_so_far")
    report_on(study, Path("one/a"))
    assert "3 rows." in Path("one/a/report.md").read_text()
    Path("one/a/metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no evaluation yet; `toy resume one/a` continues it"):
        report_on(study, Path("one/a"))


def test_the_folder_of_another_run_is_the_plans_or_the_one_that_is_named(tmp_path):
    options = RunOptions(device="cpu")
    (tmp_path / "other").mkdir()
    run = Run(STUDY, "train", config(), tmp_path / "run", options, needs={"start": Path("given")}, dry=True)
    assert run.folder_of("start", None, need="start") == Path("given")
    with pytest.raises(
        UserError, match="start: null; this run goes on from a finished one, so name its folder: --start"
    ):
        run.folder_of("start", None)
    with pytest.raises(UserError, match=r"start: 'other' is no run folder with manifest.json"):
        run.folder_of("start", "other")
    (tmp_path / "other" / "manifest.json").touch()
    # From where the command is called, and from the run's own folder.
    assert run.folder_of("start", "other", need="another") == Path("other")
    assert run.folder_of("start", "../other") == tmp_path / "other"


# ------------------------------------------------------------------------------------------------------------ checkpoints
def test_checkpoints_leave_with_the_run_that_does_not_keep_them(here):
    jobs = (Job("a", config(), keep_checkpoints=False), Job("b", config()))
    assert sweep("s", *jobs) == 0
    assert not Path("s/a/checkpoints").exists()
    assert load_latest(Path("s/b/checkpoints")).step == 10
    before = {path: path.read_bytes() for name in "ab" for path in Path("s", name).rglob("*") if path.is_file()}
    change_manifest("s", state="stopped")
    assert resume("s", *jobs) == 0
    assert here == [["a"], ["b"]]  # it is done, also without them
    assert before == {path: path.read_bytes() for name in "ab" for path in Path("s", name).rglob("*") if path.is_file()}


def test_checkpoints_stay_until_the_run_is_done(here, at_batch):
    def fault():
        raise OSError("disk full")

    job = Job("a", config(steps=30, checkpoint_every=10), keep_checkpoints=False)
    at_batch(25, fault)
    assert sweep("s", job) == 2
    assert load_latest(Path("s/a/checkpoints")).step == 20
    assert resume("s", job) == 0
    assert not Path("s/a/checkpoints").exists()
    assert [row["step"] for row in read_rows(Path("s/a/metrics.jsonl"))] == [*range(0, 31, 5)]


# ----------------------------------------------------------------------------------------------------------------- needs
def test_what_needs_a_failed_run_is_made_once_that_is_mended(here, at_batch):
    def fault():
        raise OSError("disk full")

    jobs = (
        Job("a", config()),
        Job("b", config(seed=2), needs=("a",)),
        Job("c", config(seed=3), needs=("b", "a")),
        Job("d", config(seed=4)),
    )
    at_batch(5, fault)
    assert sweep("s", *jobs) == 2
    assert here == [["a"], ["d"]]
    why = "it needs a, which failed: OSError: disk full"
    assert read_manifest(Path("s"))["failed"] == {
        "a": "OSError: disk full", "b": why, "c": f"it needs b, which failed: {why}",
    }  # fmt: skip
    assert [row["run"] for row in read_rows(Path("s/metrics.jsonl")) if row["state"] == "failed"] == ["a", "b", "c"]
    here.clear()
    assert resume("s", *jobs) == 0
    assert here == [["a"], ["b"], ["c"]]
    assert read_manifest(Path("s"))["failed"] == {}
    assert first_loss("s/b") != first_loss("s/a")
    assert set(read_record(STUDY, Path("s")).table["run"]) == set("abcd")


def test_an_identity_changes_with_configuration_verb_and_every_need():
    def identities(*jobs):
        return locate(STUDY, SWEEP, jobs, Path("s"))[1]

    first, second, third = (
        Job("a", config()), Job("b", config(seed=2), needs=("a",)), Job("c", config(seed=3), needs=("b",)),
    )  # fmt: skip
    before = identities(first, second, third)
    assert identities(first, second, third) == before
    assert len(set(before.values())) == 3
    changed = identities(dataclasses.replace(first, config=config(lr=0.06)), second, third)
    assert all(changed[name] != before[name] for name in "abc")
    changed = identities(first, dataclasses.replace(second, needs=()), third)
    assert (changed["a"], changed["b"] != before["b"], changed["c"] != before["c"]) == (before["a"], True, True)
    # What is only said of a run, or where it lies, makes it no other run.
    shown = dataclasses.replace(first, arm="x", labels={"phase": "1"}, shared=True, keep_checkpoints=False)
    assert identities(shown, second, third) == before
    assert identity_of("train", first.config, {}) == before["a"] != identity_of("other", first.config, {})


def test_a_run_made_with_other_needs_is_refused(here, capsys):
    """The plan is the code's: a sweep's configuration may stay as it is while its jobs change."""
    a, b = Job("a", config()), Job("b", config(lr=0.02), needs=("a",))
    other = dataclasses.replace(a, config=config(lr=0.06))
    assert sweep("s", a, b) == 0
    change_manifest("s", state="stopped")
    shutil.rmtree("s/a")
    here.clear()
    assert resume("s", other, b) == 2
    assert (
        "s/b: holds a run of another version, or of other needs; remove it, or start a new one"
        in capsys.readouterr().err
    )
    shutil.rmtree("s/b")
    assert resume("s", other, b) == 0
    assert here == [["a"], ["b"]]
    assert first_loss("s/b") == last_loss("s/a")


def test_the_beginning_of_a_run_made_with_other_needs_is_refused_too(here, capsys):
    a, b = Job("a", config()), Job("b", config(lr=0.02), needs=("a",))
    assert sweep("s", a, b) == 0
    change_manifest("s", state="stopped")
    change_manifest("s/b", state="stopped")
    shutil.rmtree("s/a")
    assert resume("s", dataclasses.replace(a, config=config(lr=0.06)), b) == 2
    assert "s/b: holds a run of another version, or of other needs" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- the rest
def test_labels_of_a_job_are_columns_of_the_tables(here):
    jobs = [
        Job(f"{phase}_s{seed}", config(seed=seed), arm="x", labels={"phase": phase})
        for phase in "ab"
        for seed in (1, 2)
    ]
    assert sweep("s", *jobs) == 0
    shown = [(row["run"], row["arm"], row["phase"], row["seed"]) for row in read_rows(Path("s/metrics.jsonl"))]
    assert shown == [(job.name, "x", job.labels["phase"], job.config.seed) for job in jobs]
    table = read_record(STUDY, Path("s")).table
    assert table[["run", "arm", "phase", "seed"]].values.tolist() == [list(row) for row in shown]


def test_a_job_of_another_verb_is_made_by_that_verb(here):
    fit = dataclasses.replace(STUDY.verbs["train"], config="toy_study.config:Config", train="toy_study.train:train")
    study = dataclasses.replace(STUDY, verbs={**STUDY.verbs, "fit": fit})
    from toy_study.config import Config

    planned[:] = [Job("a", Config(steps=10), verb="fit"), Job("b", config())]
    assert cli.main(study, ["sweep", "--device", "cpu", "--output-dir", "s"]) == 0
    assert [read_manifest(Path("s") / name)["verb"] for name in "ab"] == ["fit", "train"]


def test_a_job_beside_which_no_other_can_run_gets_the_threads_of_all():
    jobs = [Job("start", config()), Job("text", config(), ("start",)), Job("a", config(), ("text",)), Job("b", config(), ("text",)),
            Job("end", config(), ("a", "b"))]  # fmt: skip
    assert alone(jobs) == {"start", "text", "end"}
    assert alone([Job("a", config()), Job("b", config())]) == set()
    planned[:] = [
        Job("start", config(seed=5)),
        Job("a", config(seed=6), ("start",)),
        Job("b", config(seed=7), ("start",)),
    ]
    assert cli.main(STUDY, ["sweep", "--device", "cpu", "--processes", "2", "--output-dir", "whole"]) == 0
    threads = {name: read_manifest(Path("whole") / name)["devices"]["threads"] for name in ("start", "a", "b")}
    assert threads["a"] == threads["b"] == max(1, cores() // 2)
    assert threads["start"] == 2 * threads["a"]


def test_the_time_that_is_left_is_told_from_runs_of_the_same_verb(capsys):
    """Nothing before one has ended of any kind that waits; a bound while some kinds have not; shared out over processes."""
    progress = _Progress({"a": "fit", "b": "score", "c": "score", "d": "score", "e": "draw"}, processes=2)
    progress.tell("a", "done", 7.0)
    progress.tell("b", "done", 100.0)
    progress.tell("e", "done before", None)
    progress.tell("c", "done", 300.0)
    progress.tell("d", "failed", None)
    assert capsys.readouterr().out.splitlines() == [
        "  a: done (1 of 5)",
        "  b: done (2 of 5; more than 2 minutes left)",
        "  e: done before (3 of 5; about 2 minutes left)",
        "  c: done (4 of 5; about 2 minutes left)",
        "  d: failed (5 of 5)",
    ]
