"""A sweep: its plan, its files, what it leaves alone when it goes on, and runs that fail."""

import dataclasses
import json
import signal
from importlib import resources
from pathlib import Path

import pytest
from conftest import BARE

from studycore.configuration import check_types, read_yaml, to_dict, to_yaml
from studycore.errors import UserError
from studycore.execution import make_runs
from studycore.jobs import Schedule
from studycore.metrics_log import read_rows
from studycore.options import SweepOptions
from studycore.run_folder import LOCK_TEXT, is_writing, read_results
from studycore.testing.runs import output_of, running, wait_until
from ternary_vae.checkpoint import load_model
from ternary_vae.cli import STUDY
from ternary_vae.config import COVERAGE, SCRATCH, SweepConfig, TrainConfig
from ternary_vae.plan import plan, sweep_of_seeds
from ternary_vae.stages import not_stackable

CONFIGS = Path(str(resources.files("ternary_vae"))) / "configs"
FROZEN = ["encoder_A", "encoder_B", "decoder_A", "controller"]
SHAPE = {
    "trits": 3, "latent_dim": 4, "encoder_sizes": [12, 8], "decoder_sizes": [8], "hidden_dim": 8, "batch_size": 10,
    "dtype": "float64", "checkpoint_every": 5,
}  # fmt: skip
BASE = {
    **SHAPE, "hierarchy_frozen": FROZEN, "loss": "rich_hierarchy", "view": "a", "code": "sample", "epochs": 20,
    "eval_every": 2, "scheduler": "constant", "lr": 1e-2,
}  # fmt: skip
SWEEP = {
    "coverage": {**SHAPE, "coverage_epochs": 4, "coverage_lr": 1e-2},
    "base": BASE,
    "phases": {
        "1_curvature": {"base": {"max_radius": 0.65}, "arms": {"one": {}, "two": {"curvature": 2.0}}},
        "2_weights": {"arms": {"plain": {}, "heavy": {"coverage_weight": 9.0}}},
        "3_draws": {"grid": {"projection_seed": [0, 1]}, "name": "x_draw_{projection_seed}"},
        "4_alone": {"arms": {"free": {"hierarchy_frozen": ["encoder_B", "decoder_A"], "epochs": 6}}},
    },
    "from_scratch": {"mended": {"stages": "coverage", "coverage_code": "mean"}},
    "seeds": 2,
}  # fmt: skip
CPU = {"device": "cpu", "threads": 1}


def sweep_of(**changes) -> SweepConfig:
    return SweepConfig(**{**SWEEP, **changes})


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def metrics_of(folder: Path) -> dict:
    return read_results(folder)["metrics"]


def planned(sweep: SweepConfig) -> dict:
    """The jobs by name."""
    return {job.name: job for job in plan(sweep)}


def plan_apart(sweep: SweepConfig) -> list:
    """The same jobs, each trained alone."""
    return [dataclasses.replace(job, together="") for job in plan(sweep)]


def make(folder: Path, sweep: SweepConfig, study=BARE, processes: int = 1) -> Path:
    make_runs(study, "sweep", sweep, folder, SweepOptions(processes=processes, **CPU), ["ternary-vae", "sweep"])
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tiny sweep with its report, in one process and never interrupted."""
    return make(tmp_path_factory.mktemp("sweeps") / "whole", sweep_of(), STUDY)


# ----------------------------------------------------------------------------------------------------------- the plan
def test_the_plan_has_every_arm_of_every_phase_for_every_seed():
    jobs = planned(sweep_of())
    arms = ["one", "two", "plain", "heavy", "x_draw_0", "x_draw_1", "free"]
    assert list(jobs) == [
        *(f"coverage_s{s}" for s in (0, 1)),
        *(f"mended_s{s}" for s in (0, 1)),
        *(f"{arm}_s{s}" for arm in arms for s in (0, 1)),
    ]
    assert {job.labels["phase"] for job in jobs.values()} == {COVERAGE, SCRATCH, *SWEEP["phases"]}
    two = jobs["two_s1"]
    assert (two.arm, two.labels["phase"], two.needs) == ("two", "1_curvature", ("coverage_s1",))
    assert (two.config.curvature, two.config.max_radius, two.config.seed) == (2.0, 0.65, 1)
    assert (two.config.stages, two.config.start, two.config.start_projections) == ("hierarchy", "coverage_s1", "drawn")
    assert jobs["plain_s0"].config.max_radius == TrainConfig().max_radius, "a phase's base is its own"
    assert jobs["x_draw_1_s0"].config.projection_seed == 1
    first = jobs["coverage_s1"]
    assert (first.config.stages, first.config.start, first.config.seed) == ("coverage", None, 1)
    assert first.config.coverage_epochs == 4
    assert jobs["mended_s0"].config.start is None
    assert jobs["mended_s0"].config.coverage_code == "mean"
    for name, job in jobs.items():
        assert job.name == name
        for start in job.needs:
            assert jobs[start].config.seed == job.config.seed


def test_names_keep_their_seed_when_there_is_one_and_seeds_count_from_the_base():
    assert "one_s0" in planned(sweep_of(seeds=1))
    jobs = planned(sweep_of(base={**BASE, "seed": 40}, seeds=2))
    assert {job.config.seed for job in jobs.values()} == {40, 41}
    assert "coverage_s41" in jobs


def test_several_seeds_of_one_configuration_are_a_sweep():
    verb, sweep = sweep_of_seeds(TrainConfig(seed=7, trits=3, lr=0.5), 3)
    assert verb == "sweep"
    jobs = planned(sweep)
    assert list(jobs) == ["train_s7", "train_s8", "train_s9"]
    assert {job.labels["phase"] for job in jobs.values()} == {SCRATCH}
    assert jobs["train_s8"].config == TrainConfig(seed=8, trits=3, lr=0.5)


def test_each_shape_of_encoders_has_its_own_coverage_checkpoint():
    phases = {"a": {"arms": {"narrow": {"latent_dim": 3}, "plain": {}, "wide": {"encoder_sizes": [16, 8]}}}}
    jobs = planned(sweep_of(phases=phases, from_scratch={}, seeds=2))
    starts = {job.arm: job.needs for job in jobs.values() if job.needs and job.config.seed == 1}
    assert starts == {
        "narrow": ("coverage_latent_dim3_s1",), "plain": ("coverage_s1",), "wide": ("coverage_encoder_sizes16-8_s1",),
    }  # fmt: skip
    assert jobs["coverage_latent_dim3_s1"].config.latent_dim == 3
    assert jobs["coverage_encoder_sizes16-8_s1"].config.encoder_sizes == [16, 8]
    assert len(jobs) == 12


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"phases": {"a": {"arms": {"x": {"learning_rate": 1}}}}}, ["a: ", "learning_rate"]),
        ({"phases": {"a": {"grid": {"lrs": [1]}, "name": "x{lrs}"}}}, ["a: ", "lrs"]),
        ({"phases": {"a": {"arm": {}}}}, ["arm"]),
        ({"base": {**BASE, "wieght_decay": 1}}, ["wieght_decay"]),
        ({"coverage": {"batchsize": 3}}, ["batchsize"]),
        ({"from_scratch": {"y": {"lrr": 3}}}, ["from scratch", "lrr"]),
        ({"phases": {"a": {"arms": {"x": {}}}, "b": {"arms": {"x": {}}}}}, ["x_s0", "another name"]),
        ({"phases": {"a": {"arms": {"mended": {}}}}}, ["mended_s0", "another name"]),
        ({"phases": {"a": {"arms": {"coverage": {}}}}}, ["coverage_s0", "another name"]),
        ({"phases": {"a": {"arms": {"x": {"curvature": 2.0}}}}}, ["experiment x_s0", "max_radius: 0.95"]),
        ({"phases": {"a": {"grid": {"lr": [1e-3, 2e-3]}, "name": "x"}}}, ["several runs", "x_s0"]),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_planned_is_refused_by_name(changes, named):
    with pytest.raises(UserError) as refused:
        plan(sweep_of(**changes))
    for word in named:
        assert word in str(refused.value), refused.value


def test_the_quick_sweep_is_from_scratch_and_asks_for_six_seeds_of_each_arm():
    jobs = plan(SweepConfig(**check_types(SweepConfig, read_yaml(CONFIGS / "quick.yaml"))))
    assert {job.labels["phase"] for job in jobs} == {SCRATCH} and len(jobs) == 24


@pytest.mark.parametrize("name", ["full"])
def test_the_shipped_sweeps_have_the_original_study_s_phases(name):
    sweep = SweepConfig(**check_types(SweepConfig, read_yaml(CONFIGS / f"{name}.yaml")))
    jobs = plan(sweep)
    assert sweep.seeds >= 5
    assert sorted(phase[0] for phase in sweep.phases) == list("1234567")
    for phase in (*sweep.phases, COVERAGE, SCRATCH):
        own = [job for job in jobs if job.labels["phase"] == phase]
        for arm in {job.arm for job in own}:
            assert len({job.config.seed for job in own if job.arm == arm}) == sweep.seeds, (phase, arm)
    assert all(not_stackable(job.config) is None for job in jobs if job.needs), "or it would take hours"


def test_runs_of_one_shape_are_trained_together():
    jobs = planned(sweep_of())
    together = {job.together for job in jobs.values() if job.arm not in ("coverage", "mended", "free")}
    assert len(together) == 1
    assert "" not in together
    assert {job.together for job in jobs.values() if job.arm in ("coverage", "mended", "free")} == {""}

    def sizes(processes):
        schedule = Schedule(
            {name: () for name, job in jobs.items() if job.needs}, {n: j.together for n, j in jobs.items()}, processes
        )
        return [len(taken) for taken in iter(schedule.take, [])]

    assert sizes(1) == [12, 1, 1]
    assert sizes(2) == [6, 6, 1, 1]


# -------------------------------------------------------------------------------------------------------- a whole sweep
def test_a_sweep_ends_done_with_its_tables_figures_and_results(whole):
    jobs = planned(sweep_of())
    manifest = manifest_of(whole)
    assert (manifest["state"], manifest["reason"]) == ("done", "18 of 18 runs asked for, all finished")
    assert list(manifest["jobs"]) == list(jobs)
    assert manifest["seeds"] == [0, 1]
    assert {path.name for path in whole.iterdir() if path.is_dir()} - {"history"} == {*jobs, "figures"}
    for file in ("config.yaml", "metrics.jsonl", "history.parquet", "results.json", "report.html", "report.md"):
        assert (whole / file).stat().st_size > 0, file
    assert read_yaml(whole / "config.yaml") == to_dict(sweep_of())
    assert {path.stem for path in (whole / "figures").glob("*.svg")} >= {"curves", "effects", "pareto"}
    rows = read_rows(whole / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 19))
    assert {(row["run"], row["arm"], row["phase"]) for row in rows} == {
        (name, job.arm, job.labels["phase"]) for name, job in jobs.items()
    }
    assert {row["state"] for row in rows} == {"done"}
    for arm in ("one", "two", "plain", "heavy", "x", "free"):
        assert f"| {arm}" in (whole / "report.md").read_text()
    results = read_results(whole)
    assert results["study"] == "ternary-vae"
    assert results["claims"]
    for claim in results["claims"]:
        assert claim["verdict"] in ("supported", "refuted", "inconclusive", "not run")
        assert claim["why"] or claim["verdict"] != "not run"
    for name, job in jobs.items():
        assert manifest_of(whole / name)["state"] == "done"
        assert read_yaml(whole / name / "config.yaml") == to_dict(job.config)
        assert "baselines" not in metrics_of(whole / name)
    assert len({manifest_of(whole / name)["identity"] for name in jobs}) == len(jobs)
    assert manifest_of(whole / "one_s0")["stack"] == 12
    assert "stack" not in manifest_of(whole / "free_s0")


def test_runs_of_a_sweep_start_from_their_sister_and_load_alone(whole):
    _, _, start = load_model(whole / "coverage_s1")
    _, config, model = load_model(whole / "two_s1")
    assert config.start == "coverage_s1"
    for name, weight in start.state_dict().items():
        if name.startswith(("encoder_A", "decoder_A")):
            assert (weight == model.state_dict()[name]).all(), name
    rows = [read_rows(whole / f"{name}_s1" / "metrics.jsonl") for name in ("plain", "heavy")]
    strip = [[{k: v for k, v in row.items() if not k.startswith("loss_")} for row in own] for own in rows]
    assert strip[0] == strip[1], "a weight of the reconstruction changes nothing where the decoder is frozen"
    assert "coverage_weight" in (whole / "report.md").read_text().split("Factors that changed nothing in these runs")[1]


def test_together_or_alone_on_one_process_or_two_the_numbers_are_the_same(whole, tmp_path):
    sweep_verb = dataclasses.replace(BARE.verbs["sweep"], plan="test_sweep:plan_apart")
    study = dataclasses.replace(BARE, verbs={**BARE.verbs, "sweep": sweep_verb})
    apart = make(tmp_path / "apart", sweep_of(), study, processes=2)
    assert "stack" not in manifest_of(apart / "one_s0")
    for name in planned(sweep_of()):
        one, other = (read_rows(folder / name / "metrics.jsonl") for folder in (whole, apart))
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert a.keys() == b.keys()
            for key, value in a.items():
                wanted = b[key] if isinstance(value, str) else pytest.approx(b[key], rel=0, abs=1e-8)
                assert value == wanted, (name, key)
        if name.startswith(("coverage_s", "mended", "free")):
            assert one == other, "alone in both"


# ------------------------------------------------------------------------------------------------------ killed, resumed
def test_a_killed_sweep_keeps_what_is_done_and_ends_with_the_same_numbers(whole, tmp_path):
    """SIGKILL of the sweep while its runs are trained, on two processes; then `sweep --resume`."""
    (tmp_path / "s.yaml").write_text(to_yaml(SWEEP))
    command = ["-m", "ternary_vae", "sweep", "--config", "s.yaml", "--device", "cpu", "--threads", "1"]
    command += ["--processes", "2", "--output-dir", "out"]
    out = tmp_path / "out"
    with running(*command, cwd=tmp_path) as process:
        wait_until(lambda: list(out.glob("*_s*/checkpoints/step-30")), "step 30", process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    folders = [path.parent for path in out.glob("*/manifest.json")]
    wait_until(lambda: not any(map(is_writing, folders)), "the end of workers whose parent is gone")
    states = {folder.name: manifest_of(folder)["state"] for folder in folders}
    done = [name for name, state in states.items() if state == "done"]
    assert done
    assert "stopped" in states.values(), states
    written = {name: [(out / name / f).stat().st_mtime_ns for f in ("results.json", "manifest.json")] for name in done}
    output_of(*command, "--resume", cwd=tmp_path)
    for name, times in written.items():
        assert [(out / name / f).stat().st_mtime_ns for f in ("results.json", "manifest.json")] == times, name
    assert manifest_of(out)["state"] == "done"
    assert len(manifest_of(out)["resumed"]) == 1
    rows = read_rows(out / "metrics.jsonl")
    assert sorted(row["run"] for row in rows) == sorted(planned(sweep_of()))
    assert metrics_of(out) == metrics_of(whole)
    for name in planned(sweep_of()):
        assert (out / name / "metrics.jsonl").read_bytes() == (whole / name / "metrics.jsonl").read_bytes(), name


# --------------------------------------------------------------------------------------------------------------- failures
def test_runs_that_fail_are_recorded_with_their_reason_and_the_rest_goes_on(tmp_path):
    """A loss that is not finite, alone and beside others; and a folder of a run in which somebody's own file is."""
    base = {**BASE, "epochs": 4, "grad_clip": None}
    arms = {
        "good": {},
        "bad": {"lr": 1e200},
        "bad_alone": {"lr": 1e200, "hierarchy_frozen": ["encoder_B", "decoder_A"]},
    }
    sweep = sweep_of(base=base, phases={"a": {"arms": arms}}, from_scratch={})
    out = tmp_path / "out"
    (out / "coverage_s1").mkdir(parents=True)
    (out / "coverage_s1" / "checkpoints").write_text("a file where a folder should be")
    (out / ".lock").write_text(LOCK_TEXT)  # the sweep's own folder, as a killed process leaves it
    with pytest.raises(UserError, match="6 of 8 runs failed"):
        make(out, sweep)
    manifest = manifest_of(out)
    assert manifest["state"] == "failed"
    reasons = manifest["failed"]
    assert set(reasons) == {"coverage_s1", "good_s1", "bad_s0", "bad_s1", "bad_alone_s0", "bad_alone_s1"}
    for name in ("bad_s0", "bad_alone_s0"):
        assert reasons[name].startswith("lr: 1e+200 made "), reasons
        assert manifest_of(out / name)["state"] == "failed"
    assert "coverage_s1 holds checkpoints and no run" in reasons["coverage_s1"]
    for name in ("good_s1", "bad_s1", "bad_alone_s1"):
        assert reasons[name].startswith("it needs coverage_s1, which failed: ")
        assert not (out / name).exists()
    assert manifest_of(out / "good_s0")["state"] == "done"
    states = {row["run"]: row["state"] for row in read_rows(out / "metrics.jsonl")}
    assert {name for name, state in states.items() if state == "done"} == {"coverage_s0", "good_s0"}
