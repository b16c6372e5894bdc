"""Fabricated runs: judged as real ones are, by what was registered, and with what is left out missing."""

from toy_study import cli as toy
from toy_study.config import Config, Sweep

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
