"""Fabricated runs: judged as real ones are, by what was registered, and with what is left out missing."""

import json
import shutil

import pytest
from toy_study import cli as toy
from toy_study.config import Config, Sweep

from studycore.errors import DamagedRun
from studycore.files import read_json
from studycore.record import read_record
from studycore.run_folder import read_manifest
from studycore.testing.fabricated import Outcome, fabricate, judged

SWEEP = Sweep(arms={"momentum": {"momentum": 0.9}, "plain": {"momentum": 0.0}}, seeds=4)


def outcome(job, sooner=True):
    reached = 10 + job.config.seed if (job.arm == "momentum") == sooner else 40 + job.config.seed
    return Outcome([{"step": step, "loss": 0.001 if step >= reached else 1.0} for step in range(60)])


def test_both_verdicts_of_a_claim_and_a_run_that_is_left_out(tmp_path):
    found = fabricate(toy.STUDY, "sweep", SWEEP, tmp_path / "sooner", outcome)
    assert {name: claim["verdict"] for name, claim in found.items()} == {"sooner": "supported", "fits": "supported"}
    assert all(claim["registered"] for claim in found.values())
    later = fabricate(toy.STUDY, "sweep", SWEEP, tmp_path / "later", lambda job: outcome(job, sooner=False))
    assert later["sooner"]["verdict"] == "refuted"
    without = fabricate(
        toy.STUDY, "sweep", SWEEP, tmp_path / "without", lambda job: outcome(job) if job.arm == "plain" else None
    )
    assert without["sooner"]["verdict"] == "not run"
    record = read_record(toy.STUDY, tmp_path / "without")
    assert len(record.table) == 4 and set(record.missing) == {f"momentum_s{s}" for s in range(1, 5)}
    assert judged(toy.STUDY, record) == without
    lost = record.table.attrs["missing"]
    assert [(run["arm"], run["seed"], run["failed"]) for run in lost] == [("momentum", s, True) for s in range(1, 5)]


def test_one_run(tmp_path):
    run = tmp_path / "run"
    found = fabricate(toy.STUDY, "train", Config(), run, lambda job: Outcome([{"step": 0, "loss": 1.0}], {"loss": 1.0}))
    assert found["fits"]["verdict"] == "not run"  # one seed has no interval
    assert read_manifest(run)["state"] == "done"


def states(folder):
    record = read_record(toy.STUDY, folder)
    return {name: claim["verdict"] for name, claim in judged(toy.STUDY, record).items()}, record


def test_a_folder_that_holds_another_run_than_the_plan_has_there_is_missing(tmp_path):
    """Copies of one run are no further seeds, and neither is a run of another configuration or of other needs."""
    folder = tmp_path / "run"
    fabricate(toy.STUDY, "sweep", SWEEP, folder, outcome)
    for seed in (2, 3):
        shutil.rmtree(folder / f"momentum_s{seed}")
        shutil.copytree(folder / "momentum_s1", folder / f"momentum_s{seed}")
    manifest = read_json(folder / "momentum_s4" / "manifest.json")
    (folder / "momentum_s4" / "manifest.json").write_text(json.dumps(manifest | {"identity": "0" * 8}))
    verdicts, record = states(folder)
    assert set(record.missing) == {"momentum_s2", "momentum_s3", "momentum_s4"} and verdicts["sooner"] == "not run"
    assert "holds another run than the plan has there: seed: there 1, planned 2" in record.missing["momentum_s2"]
    assert "made from other runs than those that it needs" in record.missing["momentum_s4"]
    assert not any(run["failed"] for run in record.table.attrs["missing"])


def changed(path, **fields):
    path.write_text(json.dumps(read_json(path) | fields))


def test_a_configuration_that_was_changed_after_the_start_is_refused(tmp_path):
    """Of the sweep: a plan with fewer seeds has no run that failed. Of one of its runs: it is not the run of the plan."""
    folder = tmp_path / "run"
    fabricate(toy.STUDY, "sweep", SWEEP, folder, outcome)
    path = folder / "momentum_s1" / "config.yaml"
    changed(folder / "momentum_s1" / "manifest.json", configuration_hash="0" * 8, identity="0" * 8)
    assert f"{path}: was changed after the run started; restore it" in states(folder)[1].missing["momentum_s1"]
    of_sweep = folder / "config.yaml"
    before = of_sweep.read_text()
    of_sweep.write_text(before.replace("seeds: 4", "seeds: 3"))
    with pytest.raises(DamagedRun, match="was changed after the run started"):
        read_record(toy.STUDY, folder)
    # A folder of an earlier schema is held to its configuration as well, and is read.
    of_sweep.write_text(before)
    changed(folder / "manifest.json", schema_version=1)
    for name in ("plain_s1", "plain_s2"):
        changed(folder / name / "manifest.json", schema_version=1, identity="0" * 8)
    changed(folder / "plain_s2" / "manifest.json", configuration_hash="0" * 8)
    assert set(states(folder)[1].missing) == {"momentum_s1", "plain_s2"}


def test_a_run_of_another_study_is_missing(tmp_path):
    folder = tmp_path / "run"
    fabricate(toy.STUDY, "sweep", SWEEP, folder, outcome)
    changed(folder / "plain_s1" / "manifest.json", study="ternary-vae")
    assert "than the plan has there: one of ternary-vae" in states(folder)[1].missing["plain_s1"]


def test_a_finished_run_whose_rows_end_before_its_results_is_missing(tmp_path):
    folder = tmp_path / "run"
    fabricate(toy.STUDY, "sweep", SWEEP, folder, outcome)
    log = folder / "momentum_s1" / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:9]))
    verdicts, record = states(folder)
    assert verdicts["sooner"] == "not run"
    assert "its last step is 8 and that of results.json 59; restore it" in record.missing["momentum_s1"]


def test_a_finished_run_with_a_row_that_is_none_is_missing(tmp_path):
    """No run writes NaN, which would compare as smaller than anything."""
    folder = tmp_path / "run"
    fabricate(toy.STUDY, "sweep", SWEEP, folder, outcome)
    log = folder / "momentum_s1" / "metrics.jsonl"
    log.write_text(log.read_text().replace('"loss": 1.0', '"loss": NaN', 1))
    verdicts, record = states(folder)
    assert verdicts["sooner"] == "not run" and "line 1 is no row of metrics" in record.missing["momentum_s1"]


def test_runs_that_were_struck_from_the_manifest_are_read_and_runs_beside_the_plan_are_not(tmp_path):
    folder = tmp_path / "run"

    def slow(job):
        return outcome(job, sooner=job.config.seed != 1)

    before = fabricate(toy.STUDY, "sweep", SWEEP, folder, slow)
    manifest = read_json(folder / "manifest.json")
    kept = {name: entry for name, entry in manifest["jobs"].items() if not name.endswith("_s1")}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"jobs": kept}))
    _, record = states(folder)
    assert judged(toy.STUDY, record) == before and len(record.table) == 8
    shutil.copytree(folder / "momentum_s2", folder / "extra")
    more = {**manifest["jobs"], "extra": {**manifest["jobs"]["momentum_s2"], "folder": "extra"}}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"jobs": more}))
    verdicts, record = states(folder)
    assert record.missing == {"extra": "the plan does not have it"} and verdicts["sooner"] == "not run"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert states(folder)[0]["sooner"] != "not run"
    shutil.rmtree(folder / "momentum_s1")
    assert states(folder)[0]["sooner"] == "not run"
