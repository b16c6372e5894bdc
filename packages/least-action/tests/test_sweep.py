"""Sweeps: run over processes, resumed, stacked; stacked runs equal runs trained alone."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from least_action.cli import main
from least_action.config import RunOptions, SweepOptions
from least_action.models import create_model
from least_action.recipes import create_optimizers, learning_rate, total_norm, transform_gradients
from least_action.stacked import StackedTraining, make_stacks, train_stack
from least_action.train import LeastActionLoss, PairForward, create_dataset, train
from studycore.metrics import read_rows

CPU = RunOptions(device="cpu", threads=1)
TINY = {
    "p": 7, "train_frac": 0.5, "model_type": "baseline", "hidden_dim": 8, "n_layers": 1, "epochs": 40, "eval_every": 5,
    "log_every": 20, "weight_curvature_interval": 20, "curvature_probes": 2, "metric_samples": 4, "checkpoint_every": 10,
}  # fmt: skip


def write(path, **sweep):
    path.write_text(yaml.safe_dump(sweep))
    return str(path)


def run_sweep_command(*arguments, cwd):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "least_action", "sweep", *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def plain_loop(config, steps):
    """The reference: plain pass, torch's optimisers, one run."""
    model = create_model(config)
    pairs, loss, forward = create_dataset(config).train, LeastActionLoss(config), PairForward(model, restructured=False)
    optimizers, averages = create_optimizers(model, config), {}
    weights = dict(model.named_parameters())
    start = total_norm(weights).item()
    for step in range(steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
        loss(forward(pairs.a_N, pairs.b_N), pairs.y_N).total.backward()
        if config.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        gradients = {name: q.grad for name, q in weights.items() if q.grad is not None}
        gradients, averages = transform_gradients(weights, gradients, averages, config)
        for name, g in gradients.items():
            weights[name].grad = g
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if config.recipe == "constrained_norm":
            with torch.no_grad():
                torch._foreach_mul_(list(weights.values()), config.constrained_norm_alpha * start / total_norm(weights))
    return {name: q.detach() for name, q in weights.items()}


LANES = [
    {"seed": s, "data_seed": None, "lr": lr, "weight_decay": wd}
    for s, lr, wd in ((0, 1e-3, 0.0), (1, 3e-4, 1.0), (2, 2e-3, 0.5))
]
FORMS = [
    {"recipe": "bounded_sphere", "activation": "relu", "init_std": 0.2, "weight_decay_rule": "all"},
    {"residual_norm": "none", "activation": "relu", "init_std": 0.2, "grad_clip": 0.5, "warmup_epochs": 30},
    {"model_type": "routed_transformer", "residual_norm": "none", "init_std": 0.2},
    {"model_type": "routed", "n_layers": 2},
    {"model_type": "baseline", "n_layers": 2, "recipe": "grokfast"},
    {"model_type": "baseline", "n_layers": 2, "recipe": "orthograd_stablemax", "mlp_bias": False},
    {"recipe": "constrained_norm", "residual_norm": "none", "init_std": 0.2, "weight_decay": 0.0},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_stacked_runs_equal_the_plain_loop_over_200_steps(small, form):
    """float64, restructured pass, against plain pass and torch's AdamW: 1e-8 of each weight tensor's maximum."""
    configs = [small(**{"p": 11, "hidden_dim": 16, "dtype": "float64", **lane, **form}) for lane in LANES]
    stack = StackedTraining(configs, [create_model(c) for c in configs], "cpu")
    for step in range(200):
        stack.step(step)
    for s, config in enumerate(configs):
        for name, expected in plain_loop(config, 200).items():
            error = (stack.weights[name][s] - expected).abs().max() / expected.abs().max()
            assert error < 1e-8, (s, name, float(error))


def test_one_stacked_step_equals_a_plain_one_where_rounding_grows(small):
    """A pre-norm transformer at N(0, 0.02) doubles rounding errors every few steps, so single steps are compared."""
    form = {"p": 11, "hidden_dim": 16, "dtype": "float64", "n_layers": 2, "residual_norm": "layernorm"}
    configs = [small(**form, **lane) for lane in LANES]
    stack = StackedTraining(configs, [create_model(c) for c in configs], "cpu")
    for step in range(8):
        stack.step(step)
        for s, config in enumerate(configs):
            for name, expected in plain_loop(config, step + 1).items():
                torch.testing.assert_close(
                    stack.weights[name][s], expected, rtol=1e-11, atol=1e-12 * float(expected.abs().max())
                )


def test_a_stack_writes_what_single_runs_write(small, tmp_path):
    base = {
        "dtype": "float64",
        "recipe": "bounded_sphere",
        "init_std": 0.15,
        "n_heads": 4,
        "p": 23,
        "train_frac": 0.8,
        "hidden_dim": 32,
        "activation": "relu",
    }
    configs = [small(**base, seed=s, data_seed=None, epochs=400, eval_every=5, log_every=50, checkpoint_every=50, weight_curvature_interval=50, stop_after_grok=20, weight_decay_rule="all") for s in (0, 1)]  # fmt: skip
    train_stack(configs, [tmp_path / f"stack{s}" for s in (0, 1)], CPU)
    for s, config in enumerate(configs):
        train(config, tmp_path / f"alone{s}", CPU, quiet=True)
        stacked, alone = (read_rows(tmp_path / f"{kind}{s}" / "metrics.jsonl") for kind in ("stack", "alone"))
        for one, other in zip(stacked[:20], alone[:20], strict=True):
            assert one.keys() == other.keys()
            for name in one:
                expected = (
                    other[name] if isinstance(other[name], str) else pytest.approx(other[name], rel=1e-5, abs=1e-7)
                )
                assert one[name] == expected, (name, one["epoch"])
        events = [
            json.loads((tmp_path / f"{kind}{s}" / "results.json").read_text())["metrics"]["grokked_99"]
            for kind in ("stack", "alone")
        ]
        assert abs(events[0] - events[1]) <= 30
        assert json.loads((tmp_path / f"stack{s}" / "manifest.json").read_text())["state"] == "done"


def test_a_stack_resumes_and_its_runs_may_go_on_alone(small, tmp_path):
    configs = [small(seed=s, dtype="float64", epochs=30) for s in (0, 1, 2)]
    straight = [tmp_path / f"straight{s}" for s in range(3)]
    train_stack(configs, straight, CPU)
    cut = [tmp_path / f"cut{s}" for s in range(3)]
    half = StackedTraining.step

    def dies(self, epoch):
        if epoch == 17:
            raise KeyboardInterrupt
        half(self, epoch)

    StackedTraining.step = dies
    try:
        with pytest.raises(KeyboardInterrupt):
            train_stack(configs, cut, CPU)
    finally:
        StackedTraining.step = half
    train_stack(configs[:2], cut[:2], CPU)
    for one, other in zip(straight[:2], cut[:2], strict=True):
        for a, b in zip(read_rows(one / "metrics.jsonl"), read_rows(other / "metrics.jsonl"), strict=True):
            assert a.pop("key_frequencies", "") == b.pop("key_frequencies", "")
            assert a == pytest.approx(b, rel=1e-9)
    train(configs[2], cut[2], CPU, resume=True, quiet=True)
    a, b = (read_rows(f / "metrics.jsonl")[-1] for f in (straight[2], cut[2]))
    assert a.pop("key_frequencies") == b.pop("key_frequencies")
    assert a == pytest.approx(b, rel=1e-6)


def test_stacks_hold_runs_of_one_shape_and_leave_no_process_idle(small, tmp_path):
    configs = {f"a{s}": small(seed=s, lr=0.1 * (s + 1)) for s in range(6)} | {
        "muon": small(recipe="muon"),
        "wide": small(hidden_dim=16),
    }
    always = SweepOptions(stack="always", max_stack=2)
    stacks, said = make_stacks(configs, "cpu", always, 2, tmp_path)
    assert stacks == [("a0", "a1"), ("a2", "a3"), ("a4", "a5"), ("muon",), ("wide",)]
    assert "--stack always" in said
    assert make_stacks(configs, "cpu", SweepOptions(stack="always"), 2, tmp_path)[0][:2] == [
        ("a0", "a1", "a2"),
        ("a3", "a4", "a5"),
    ]
    assert all(len(stack) == 1 for stack in make_stacks(configs, "cpu", SweepOptions(stack="never"), 2, tmp_path)[0])
    _, measured = make_stacks(configs, "cpu", SweepOptions(stack="auto"), 2, tmp_path)
    assert "times as fast" in measured


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
                "--stack",
                "never",
            ]
        )
        == 0
    )
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
    assert (manifest["state"], manifest["reason"]) == ("done", "6 of 6 runs asked for, 2 failed")
    capsys.readouterr()
    assert main(["resume", "out"]) == 0
    assert "finished" in capsys.readouterr().out
    assert main(["report", "out"]) == 0
    assert main(["runs", "--runs-dir", "."]) == 0


def test_a_killed_sweep_keeps_what_is_done_and_resumes_the_rest(tmp_path):
    file = write(
        tmp_path / "s.yaml", base={**TINY, "epochs": 400, "log_every": 400, "weight_curvature_interval": 400}, seeds=4
    )
    flags = ["--config", file, "--device", "cpu", "--processes", "2", "--stack", "never", "--output-dir", "out"]
    process = run_sweep_command(*flags, cwd=tmp_path)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not read_rows(tmp_path / "out" / "metrics.jsonl"):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    done = [row["run"] for row in read_rows(tmp_path / "out" / "metrics.jsonl")]
    finished = {name: (tmp_path / "out" / name / "results.json").stat().st_mtime_ns for name in done}
    assert done
    time.sleep(2)  # the workers see that their parent is gone, save and end
    resumed = subprocess.run(
        [sys.executable, "-m", "least_action", "resume", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert resumed.returncode == 0, resumed.stderr
    rows = read_rows(tmp_path / "out" / "metrics.jsonl")
    assert sorted(row["run"] for row in rows) == [f"run_s{s}" for s in (42, 43, 44, 45)]
    for name, written in finished.items():
        assert (tmp_path / "out" / name / "results.json").stat().st_mtime_ns == written


def test_one_experiment_of_a_sweep_and_the_rest_later(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "s.yaml", base=TINY, grid={"lr": [1e-3, 3e-3]}, name="lr{lr}")
    flags = ["sweep", "--config", file, "--device", "cpu", "--stack", "never", "--output-dir", "out"]
    assert main([*flags, "--experiment", "lr3e-3"]) == 0
    report = (tmp_path / "out" / "report.md").read_text()
    assert "lr1e-3 | not run: not begun" in report
    assert not (tmp_path / "out" / "lr1e-3").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_cuda_graph_equals_the_plain_loop(small):
    configs = [small(**{"p": 11, "hidden_dim": 16, "dtype": "float64", **lane, **FORMS[0]}) for lane in LANES]
    stack = StackedTraining(configs, [create_model(c) for c in configs], "cuda")
    for step in range(200):
        stack.step(step)
    for s, config in enumerate(configs):
        for name, expected in plain_loop(config, 200).items():
            assert (stack.weights[name][s].cpu() - expected).abs().max() < 1e-8 * expected.abs().max()
