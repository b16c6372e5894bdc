"""Sweeps: run over processes, failures recorded, resumed after a kill, one experiment alone."""

import json
import signal
from importlib import resources
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import COMMAND

from least_action.cli import main
from least_action.config import SweepConfig
from least_action.figures import cell_of
from least_action.plan import plan
from least_action.report import atlas_answer, atlas_pictures, smallest_fraction, smallest_fractions, tasks_of
from studycore.configuration import check_types, read_yaml
from studycore.metrics_log import read_rows
from studycore.run_folder import is_writing
from studycore.testing.runs import cut_off, output_of, wait_until

TINY = {
    "p": 7, "train_frac": 0.5, "model_type": "baseline", "hidden_dim": 8, "n_layers": 1, "epochs": 40, "eval_every": 5,
    "log_every": 20, "weight_curvature_interval": 20, "curvature_probes": 2, "metric_samples": 4, "checkpoint_every": 10,
}  # fmt: skip


def write(path, **sweep):
    path.write_text(yaml.safe_dump(sweep))
    return str(path)


def test_a_sweep_runs_reports_and_records_failures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arms = {
        "decay": {"weight_decay": 1.0},
        "none": {"weight_decay": 0.0},
        "bad": {"lr": 1e18, "n_layers": 3, "loss_dtype": "float32"},
    }
    file = write(tmp_path / "s.yaml", base=TINY, arms=arms, seeds=2)
    assert (
        main(
            [
                "sweep",
                "--config",
                file,
                "--device",
                "cpu",
                "--processes",
                "2",
                "--output-dir",
                "out",
            ]
        )
        == 2
    )
    assert "2 of 6 runs failed, first bad_s42: lr: 1e+18" in capsys.readouterr().err
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir() if p.is_dir()} >= {f"{arm}_s{s}" for arm in arms for s in (42, 43)}
    results = json.loads((out / "results.json").read_text())
    assert results["metrics"]["failed"] == 2
    assert results["metrics"]["arms"]["decay"]["n"] == 2
    rows = read_rows(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {row["state"] for row in rows} == {"done", "failed"}
    assert "lr: 1e+18" in (out / "report.md").read_text()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["state"] == "failed"
    assert manifest["reason"].startswith("2 of 6 runs failed, first bad_s42: lr: 1e+18")
    written = (out / "decay_s42" / "results.json").stat().st_mtime_ns
    assert main(["resume", "out"]) == 2  # the failed runs are tried again, and the others left as they are
    assert (out / "decay_s42" / "results.json").stat().st_mtime_ns == written
    assert main(["report", "out"]) == 0
    assert main(["runs", "--runs-dir", "."]) == 0


def test_a_killed_sweep_keeps_what_is_done_and_resumes_the_rest(tmp_path):
    file = write(
        tmp_path / "s.yaml", base={**TINY, "epochs": 400, "log_every": 400, "weight_curvature_interval": 400}, seeds=4
    )
    flags = ["--config", file, "--device", "cpu", "--processes", "2", "--output-dir", "out"]
    cut_off(tmp_path / "out", 1, signal.SIGKILL, *COMMAND, "sweep", *flags, cwd=tmp_path)
    done = [row["run"] for row in read_rows(tmp_path / "out" / "metrics.jsonl")]
    finished = {name: (tmp_path / "out" / name / "results.json").stat().st_mtime_ns for name in done}
    assert done
    folders = [file.parent for file in (tmp_path / "out").glob("*/manifest.json")]
    wait_until(lambda: not any(map(is_writing, folders)), "the end of workers whose parent is gone")
    output_of(*COMMAND, "resume", "out", cwd=tmp_path)
    rows = read_rows(tmp_path / "out" / "metrics.jsonl")
    assert sorted(row["run"] for row in rows) == [f"run_s{s}" for s in (42, 43, 44, 45)]
    for name, written in finished.items():
        assert (tmp_path / "out" / name / "results.json").stat().st_mtime_ns == written


def test_one_experiment_of_a_sweep_and_the_rest_later(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "s.yaml", base=TINY, grid={"lr": [1e-3, 3e-3]}, name="lr{lr}")
    flags = ["sweep", "--config", file, "--device", "cpu", "--output-dir", "out"]
    assert main([*flags, "--experiment", "lr3e-3"]) == 0
    report = (tmp_path / "out" / "report.md").read_text()
    assert "lr1e-3 | not begun" in report
    assert not (tmp_path / "out" / "lr1e-3").exists()
    written = (tmp_path / "out" / "lr3e-3" / "results.json").stat().st_mtime_ns
    assert main([*flags, "--resume"]) == 0
    assert "lr1e-3 | not begun" not in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "lr1e-3" / "results.json").exists()
    assert (tmp_path / "out" / "lr3e-3" / "results.json").stat().st_mtime_ns == written


def test_arms_may_have_grids_of_their_own():
    base = {"p": 7, "train_frac": 0.5, "lr": 1e-3, "model_type": "baseline"}
    arms, grids = {"sum": {}, "s5": {"operation": "compose", "p": 120}}, {"s5": {"train_frac": [0.4, 0.5]}}
    sweep = SweepConfig(
        base=base, arms=arms, grid={"lr": [1e-3, 1e-2]}, arm_grids=grids, seeds=2, name="{lr}_{train_frac}"
    )
    jobs = plan(sweep)
    assert [(job.config.operation, job.config.lr, job.config.train_frac) for job in jobs[::2]] == [
        ("add", 1e-3, 0.5), ("add", 1e-2, 0.5), ("compose", 1e-3, 0.4), ("compose", 1e-3, 0.5),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="arm_grids: 'other' is none of the arms"):
        SweepConfig(base=base, arms=arms, arm_grids={"other": {}})
    for name, runs in (("atlas", 135), ("quick", 18), ("full", 30), ("operations", 40), ("recipes", 42)):
        path = Path(str(resources.files("least_action"))) / "configs" / f"{name}.yaml"
        assert len(plan(SweepConfig(**check_types(SweepConfig, read_yaml(path))))) == runs, name


def test_the_atlas_tells_regions_and_smallest_fractions(tmp_path):
    cells = {  # fraction, decay: times of three seeds (None: never), and whether they memorised
        (0.2, 0.0): ([None] * 3, False), (0.2, 1.0): ([None] * 3, True),
        (0.4, 0.0): ([None, None, 90], True), (0.4, 1.0): ([100, None, 80], True),
    }  # fmt: skip
    runs = pd.DataFrame(
        {
            "operation": "add", "p": 59, "epochs": 500, "train_frac": fraction, "weight_decay": decay, "time": time or 500, "last_epoch": 500,
            "grokked": time is not None, "has_memorised": memorised, "has_plateau": time == 100,
        }
        for (fraction, decay), (times, memorised) in cells.items()
        for time in times
    )  # fmt: skip
    found = {key: cell_of(cell) for key, cell in runs.groupby(["train_frac", "weight_decay"])}
    assert found == {
        (0.2, 0.0): ("never memorised", "-"), (0.2, 1.0): ("memorised only", "-"),
        (0.4, 0.0): ("memorised only", "-"), (0.4, 1.0): ("groks", "100"),
    }  # fmt: skip
    assert cell_of(runs[8:].assign(has_plateau=False)) == ("generalises", "90")
    (table,) = smallest_fractions(runs)
    assert table.rows[0][:4] == ("addition mod 59", "none", "0.2 to 0.4", 500)  # one seed of three is not there
    every = runs.assign(grokked=runs["grokked"] | (runs["train_frac"] == 0.4) & (runs["weight_decay"] == 1.0))
    assert smallest_fractions(every)[0].rows[0][1] == "0.4"
    sooner = every.assign(grokked=every["grokked"] | (every["train_frac"] == 0.2) & (every["weight_decay"] == 0.0))
    assert smallest_fraction(sooner) == "0.2"
    assert smallest_fraction(sooner[sooner["train_frac"] == 0.2]) == "0.2"
    assert smallest_fraction(sooner.assign(grokked=sooner["train_frac"] == 0.2)) == "none"  # it fails at a larger one
    few = every.assign(operation="compose", p=120, epochs=40)[lambda t: (t["train_frac"] != 0.4) | (t["time"] != 100)]
    assert smallest_fraction(few) == "none"  # two of a cell's three seeds are there
    both = pd.concat([every, few])
    assert atlas_answer(both) == (
        "The smallest share of all pairs from which every seed comes to generalise: addition 0.4 (mod 59, 500 epochs); "
        "composition in S5 none (40 epochs)."
    )
    assert "composition in S5 none so far (40 epochs). Not run: division." in atlas_answer(both, {"divide", "compose"})
    assert "S5, 120 elements: 4 points, 40 epochs at most" in tasks_of(both)
    drawn = atlas_pictures(both, tmp_path)[0].path.read_text()
    assert "composition in S5, 120 elements" in drawn and "addition mod 59" in drawn and "compose" not in drawn
    (picture,) = atlas_pictures(runs, tmp_path)
    assert "weight decay" in picture.path.read_text()
    assert atlas_pictures(runs[runs["weight_decay"] == 1.0], tmp_path) == []
