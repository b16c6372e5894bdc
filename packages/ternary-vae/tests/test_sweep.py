"""A sweep: its plan, its files, what it leaves alone when it goes on, and runs that fail."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import pytest

from studycore.configuration import check_types, read_yaml, to_dict, to_yaml
from studycore.errors import UserError
from studycore.metrics import read_rows
from studycore.runs import is_writing
from ternary_vae import summary
from ternary_vae.config import RunOptions, SweepConfig, SweepOptions, TrainConfig
from ternary_vae.record import load_model
from ternary_vae.stacked import not_stackable
from ternary_vae.summary import run_id
from ternary_vae.sweep import make_jobs, plan_sweep, run_sweep

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
    return json.loads((folder / "results.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tiny sweep, run in one process and never interrupted."""
    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    return run_sweep(sweep_of(), folder, SweepOptions(processes=1, **CPU), ["ternary-vae", "sweep"])


# ----------------------------------------------------------------------------------------------------------- the plan
def test_the_plan_has_every_arm_of_every_phase_for_every_seed():
    planned = plan_sweep(sweep_of())
    arms = ["one", "two", "plain", "heavy", "x_draw_0", "x_draw_1", "free"]
    assert list(planned) == [
        *(f"coverage_s{s}" for s in (0, 1)),
        *(f"mended_s{s}" for s in (0, 1)),
        *(f"{arm}_s{s}" for arm in arms for s in (0, 1)),
    ]
    assert {run.phase for run in planned.values()} == {"coverage", "from scratch", *SWEEP["phases"]}
    two = planned["two_s1"]
    assert (two.arm, two.phase, two.start) == ("two", "1_curvature", "coverage_s1")
    assert (two.config.curvature, two.config.max_radius, two.config.seed) == (2.0, 0.65, 1)
    assert (two.config.stages, two.config.start_projections) == ("hierarchy", "drawn")
    assert planned["plain_s0"].config.max_radius == TrainConfig().max_radius, "a phase's base is its own"
    assert planned["x_draw_1_s0"].config.projection_seed == 1
    first = planned["coverage_s1"]
    assert (first.config.stages, first.config.start, first.config.seed) == ("coverage", None, 1)
    assert first.config.coverage_epochs == 4
    assert planned["mended_s0"].config.start is None
    assert planned["mended_s0"].config.coverage_code == "mean"
    for name, run in planned.items():
        assert run.name == name
        if run.start is not None:
            assert planned[run.start].config.seed == run.config.seed


def test_names_keep_their_seed_when_there_is_one_and_seeds_count_from_the_base():
    assert "one_s0" in plan_sweep(sweep_of(seeds=1))
    planned = plan_sweep(sweep_of(base={**BASE, "seed": 40}, seeds=2))
    assert {run.config.seed for run in planned.values()} == {40, 41}
    assert "coverage_s41" in planned


def test_each_shape_of_encoders_has_its_own_coverage_checkpoint():
    phases = {"a": {"arms": {"narrow": {"latent_dim": 3}, "plain": {}, "wide": {"encoder_sizes": [16, 8]}}}}
    planned = plan_sweep(sweep_of(phases=phases, from_scratch={}, seeds=2))
    starts = {run.arm: run.start for run in planned.values() if run.start and run.config.seed == 1}
    assert starts == {
        "narrow": "coverage_latent_dim3_s1", "plain": "coverage_s1", "wide": "coverage_encoder_sizes16-8_s1",
    }  # fmt: skip
    assert planned["coverage_latent_dim3_s1"].config.latent_dim == 3
    assert planned["coverage_encoder_sizes16-8_s1"].config.encoder_sizes == [16, 8]
    assert len(planned) == 12


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
    with pytest.raises(UserError) as found:
        plan_sweep(sweep_of(**changes))
    for word in named:
        assert word in str(found.value), found.value


@pytest.mark.parametrize("name", ["quick", "full"])
def test_the_shipped_sweeps_have_the_seed_study_s_phases(name):
    sweep = SweepConfig(**check_types(SweepConfig, read_yaml(CONFIGS / f"{name}.yaml")))
    planned = plan_sweep(sweep)
    assert sweep.seeds >= 5
    assert sorted(phase[0] for phase in sweep.phases) == list("1234567")
    for phase in (*sweep.phases, "coverage", "from scratch"):
        own = [run for run in planned.values() if run.phase == phase]
        for arm in {run.arm for run in own}:
            assert len({run.config.seed for run in own if run.arm == arm}) == sweep.seeds, (phase, arm)
    phases = [run for run in planned.values() if run.start]
    assert all(not_stackable(run.config) is None for run in phases), "or it would take hours"


# ------------------------------------------------------------------------------------------------------------ run ids
def test_run_ids_are_of_configuration_seed_and_schema(monkeypatch):
    config = TrainConfig(seed=3)
    assert run_id(config) == run_id(TrainConfig(**to_dict(config)))
    changed = {run_id(TrainConfig(seed=3, **c)) for c in ({"lr": 1e-3}, {"start": "x"}, {"projection_seed": 1})}
    found = {run_id(config), run_id(TrainConfig(seed=4)), *changed}
    monkeypatch.setattr(summary, "SCHEMA_VERSION", summary.SCHEMA_VERSION + 1)
    assert len({*found, run_id(config)}) == 6


def test_run_ids_stay_what_they_are():
    """The sweep's rows of earlier days are found by them; a new field of TrainConfig changes them, on purpose."""
    code = "from ternary_vae.config import TrainConfig; from ternary_vae.summary import run_id; print(run_id(TrainConfig()))"
    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    assert told == [run_id(TrainConfig())] * 2
    assert len(told[0]) == 8


# ----------------------------------------------------------------------------------------------------------- the jobs
def test_jobs_are_stacks_of_one_shape_and_leave_no_process_idle(tmp_path):
    planned = plan_sweep(sweep_of())
    names = [name for name, run in planned.items() if run.start]

    def jobs(processes=1, stack=True, largest=64):
        made = make_jobs(planned, names, tmp_path, RunOptions(), [], processes, stack, largest)
        assert sorted(name for key in made for name in key.split()) == sorted(names), "every run is in one job"
        for key, job in made.items():
            assert [folder.name for folder in job.folders] == key.split()
            assert list(job.configs) == [planned[name].config for name in key.split()]
        return [len(job.folders) for job in made.values()]

    assert jobs() == [12, 1, 1]
    assert jobs(processes=2) == [6, 6, 1, 1]
    assert jobs(largest=5) == [5, 5, 2, 1, 1]
    assert jobs(stack=False) == [1] * 14


# -------------------------------------------------------------------------------------------------------- a whole sweep
def test_a_sweep_ends_done_with_its_tables_figures_and_results(whole):
    planned = plan_sweep(sweep_of())
    manifest = manifest_of(whole)
    assert (manifest["state"], manifest["reason"]) == ("done", "18 runs, all finished")
    assert manifest["runs"] == {name: run_id(run.config) for name, run in planned.items()}
    assert manifest["seeds"] == [0, 1]
    assert {path.name for path in whole.iterdir() if path.is_dir()} - {"history"} == {*planned, "figures"}
    for file in ("config.yaml", "metrics.jsonl", "history.parquet", "results.json", "report.html", "report.md"):
        assert (whole / file).stat().st_size > 0, file
    assert read_yaml(whole / "config.yaml") == to_dict(sweep_of())
    assert {path.stem for path in (whole / "figures").glob("*.svg")} >= {"curves", "effects", "pareto"}
    rows = read_rows(whole / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 19))
    assert {row["run"]: row["run_id"] for row in rows} == manifest["runs"]
    assert {row["state"] for row in rows} == {"done"}
    table = json.loads((whole / "table.json").read_text())
    arms = {row["arm"] for row in table}
    assert arms == {"one", "two", "plain", "heavy", "x", "free"}
    assert all(row["n"] == 2 for row in table)
    assert next(row["runs"] for row in table if row["arm"] == "x") == 4
    lines = (whole / "table.csv").read_text().splitlines()
    assert len(lines) == 1 + len(table)
    assert lines[0].split(",") == list(dict.fromkeys(name for row in table for name in row))
    for arm in arms:
        assert f"| {arm} |" in (whole / "table.md").read_text()
    results = json.loads((whole / "results.json").read_text())
    assert results["study"] == "ternary-vae"
    assert results["metrics"]["runs"] == 18
    assert results["metrics"]["failed"] == 0
    assert results["claims"]
    for claim in results["claims"]:
        assert claim["verdict"] in ("supported", "refuted", "inconclusive", "not run")
        assert claim["why"] or claim["verdict"] != "not run"
    for name, run in planned.items():
        assert manifest_of(whole / name)["state"] == "done"
        assert read_yaml(whole / name / "config.yaml") == to_dict(run.config)
        assert (whole / name / "results.json").exists()
    assert manifest_of(whole / "one_s0")["stack"] == 12
    assert "stack" not in manifest_of(whole / "free_s0")


def test_runs_of_a_sweep_start_from_their_sister_and_load_alone(whole):
    _, _, start = load_model(str(whole / "coverage_s1"))
    _, config, model = load_model(str(whole / "two_s1"))
    assert config.start == "coverage_s1"
    for name, weight in start.state_dict().items():
        if name.startswith(("encoder_A", "decoder_A")):
            assert (weight == model.state_dict()[name]).all(), name
    rows = [read_rows(whole / f"{name}_s1" / "metrics.jsonl") for name in ("plain", "heavy")]
    strip = [[{k: v for k, v in row.items() if not k.startswith("loss_")} for row in own] for own in rows]
    assert strip[0] == strip[1], "a weight of the reconstruction changes nothing where the decoder is frozen"
    assert "coverage_weight" in (whole / "report.md").read_text().split("Factors that changed nothing in these runs")[1]


def test_stacked_or_not_on_one_process_or_two_the_numbers_are_the_same(whole, tmp_path):
    options = SweepOptions(processes=2, stack="never", **CPU)
    never = run_sweep(sweep_of(), tmp_path / "never", options, ["ternary-vae", "sweep"])
    assert "stack" not in manifest_of(never / "one_s0")
    for name in plan_sweep(sweep_of()):
        one, other = (read_rows(folder / name / "metrics.jsonl") for folder in (whole, never))
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert a.keys() == b.keys()
            for key, value in a.items():
                assert value == (b[key] if isinstance(value, str) else pytest.approx(b[key], rel=0, abs=1e-8)), (
                    name,
                    key,
                )
        if name.startswith(("coverage_s", "mended", "free")):
            assert one == other, "alone in both"


# ------------------------------------------------------------------------------------------------------ killed, resumed
def test_a_killed_sweep_keeps_what_is_done_and_ends_with_the_same_numbers(whole, tmp_path):
    """SIGKILL of the sweep while its stacks are at work, on two processes; then `sweep --resume`."""
    (tmp_path / "s.yaml").write_text(to_yaml(SWEEP))
    command = [sys.executable, "-m", "ternary_vae", "sweep", "--config", "s.yaml", "--device", "cpu", "--threads", "1"]
    command += ["--processes", "2", "--output-dir", "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = tmp_path / "out"
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline and not list(out.glob("*_s*/checkpoints/step-30")):
            time.sleep(0.01)
        process.kill()
        process.wait(30)
    assert process.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()
    folders = [path.parent for path in out.glob("*/manifest.json")]
    while any(map(is_writing, folders)) and time.monotonic() < deadline:
        time.sleep(0.05)  # the workers see that their parent is gone, save and end
    states = {folder.name: manifest_of(folder)["state"] for folder in folders}
    done = [name for name, state in states.items() if state == "done"]
    assert {"coverage_s0", "coverage_s1"} <= set(done)
    assert "stopped" in states.values(), states
    written = {name: [(out / name / f).stat().st_mtime_ns for f in ("results.json", "manifest.json")] for name in done}
    told = subprocess.run(
        [*command, "--resume"], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert told.returncode == 0, told.stderr
    for name, times in written.items():
        assert [(out / name / f).stat().st_mtime_ns for f in ("results.json", "manifest.json")] == times, name
    assert manifest_of(out)["state"] == "done"
    assert len(manifest_of(out)["resumed"]) == 1
    rows = read_rows(out / "metrics.jsonl")
    assert sorted(row["run"] for row in rows) == sorted(plan_sweep(sweep_of()))
    assert metrics_of(out) == metrics_of(whole)
    for name in plan_sweep(sweep_of()):
        assert (out / name / "metrics.jsonl").read_bytes() == (whole / name / "metrics.jsonl").read_bytes(), name


# --------------------------------------------------------------------------------------------------------------- failures
def test_runs_that_fail_are_recorded_with_their_reason_and_the_rest_goes_on(tmp_path, capfd):
    """A loss that is not finite, alone and in a stack; and a coverage checkpoint that cannot be written."""
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
    run_sweep(sweep, out, SweepOptions(processes=1, **CPU), ["ternary-vae", "sweep"])
    manifest = manifest_of(out)
    assert (manifest["state"], manifest["reason"]) == ("done", "8 runs, 6 failed")
    assert metrics_of(out)["failed"] == 6
    assert metrics_of(out)["runs"] == 2
    report = (out / "report.md").read_text().split("Runs that did not finish")[1]
    reasons = dict(
        line.strip("| ").split(" | ", 1) for line in report.splitlines() if line.startswith("| ") and "_s" in line
    )
    assert set(reasons) == {"coverage_s1", "good_s1", "bad_s0", "bad_s1", "bad_alone_s0", "bad_alone_s1"}
    for name in ("bad_s0", "bad_alone_s0"):
        assert "lr: 1e+200 made the loss infinite or NaN" in reasons[name], reasons
        assert manifest_of(out / name)["state"] == "failed"
    assert "FileExistsError" in reasons["coverage_s1"]
    for name in ("good_s1", "bad_s1", "bad_alone_s1"):
        assert reasons[name].startswith("its start coverage_s1 failed: ")
        assert not (out / name).exists()
    assert manifest_of(out / "good_s0")["state"] == "done"
    states = {row["run"]: row["state"] for row in read_rows(out / "metrics.jsonl")}
    assert {name for name, state in states.items() if state == "done"} == {"coverage_s0", "good_s0"}
    assert "Traceback" not in capfd.readouterr().out
