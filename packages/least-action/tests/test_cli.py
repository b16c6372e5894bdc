"""The command from outside: exit codes, one-sentence errors, the original study's configurations."""

import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import yaml

from least_action.cli import main
from least_action.config import SweepConfig, TrainerConfig
from least_action.plan import plan
from studycore.configuration import check_types, read_yaml
from studycore.testing.runs import refused

CONFIGS = Path(str(resources.files("least_action"))) / "configs"
ORIGINAL_CONFIGS = {
    "baseline",
    "validate",
    "transformer",
    "validate_transformer",
    "transformer_sweep",
    "new_year_validation_sweep",
}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--p", "12", "--operation", "multiply"], ["p: 12", "13"]),
        (["train", "--p", "91", "--operation", "divide"], ["p: 91", "97"]),
        (["train", "--weight-decya", "1"], ["weight_decya", "weight_decay"]),
        (["train", "--train-frac", "1.0"], ["train_frac: 1.0", "0 for testing"]),
        (["train", "--train-frac", "0"], ["train_frac: 0"]),
        (["train", "--lr", "fast"], ["lr", "fast", "float"]),
        (["train", "--lr", "-1"], ["lr: -1", "above 0"]),
        (["train", "--operation", "power"], ["operation", "power", "add"]),
        (["train", "--config", "nowhere"], ["nowhere", "baseline"]),
        (["train", "--config", "transformer_sweep"], ["transformer_sweep", "least-action sweep"]),
        (["train", "--batch-size", "100000"], ["batch_size: 100000"]),
        (["train", "--model-type", "transformer", "--n-heads", "3"], ["n_heads: 3", "128"]),
        (["train", "--recipe", "bounded_sphere", "--model-type", "baseline"], ["bounded_sphere", "baseline"]),
        (["train", "--extra-epochs", "5"], ["--resume"]),
        (["train", "--config", "validate", "--resume"], ["--resume", "no earlier"]),
        (["train", "--config", "validate", "--device", "tpu"], ["device: tpu", "cpu"]),
        (["train", "--log-every", "15"], ["log_every: 15", "eval_every 10"]),
        (["train", "--seeds", "0"], ["seeds: 0"]),
        (["sweep"], ["--config"]),
        (["sweep", "--config", "validate"], ["'p'", "base"]),
        (["sweep", "--config", "transformer_sweep", "--experiment", "p5"], ["p5", "p17_lr1e-3_wd1.0"]),
        (["sweep", "--config", "transformer_sweep", "--start-from", "99"], ["99", "18"]),
        (["sweep", "--config", "quick", "--p", "12", "--operation", "multiply"], ["experiment sphere_s0", "p: 12"]),
        (["frobnicate"], ["frobnicate", "train"]),
        (["resume", "missing"], ["missing"]),
        (["report", "."], ["manifest.json"]),
        (["report"], ["RUN"]),
    ],
    ids=" ".join,
)
def test_mistakes_get_one_sentence_and_exit_code_2(arguments, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refused(main, arguments, capsys)
    assert [word for word in named if word not in said] == [], said
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", ["p: 17\nlearning_rate: 3", "p: [1, 2]", "- 1", "p: {", "lr: 1e-3\nepochs: two", "\x00"]
)
def test_bad_yaml_gets_one_sentence(text, capsys, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    refused(main, ["train", "--config", str(tmp_path / "c.yaml")], capsys)


def test_flags_win_over_the_file_wherever_they_stand(capsys, tmp_path):
    (tmp_path / "c.yaml").write_text(
        "lr: 1e-3\neps: 1e-9\ngrad_clip: null\np: 17\ntrain_frac: 0.5\nepochs: 10\nmodel_type: baseline\n"
    )
    for order in (
        ["--lr", "0.5", "--config", str(tmp_path / "c.yaml")],
        ["--config", str(tmp_path / "c.yaml"), "--lr=0.5"],
    ):
        assert main(["train", *order, "--dry-run"]) == 0
        shown = yaml.safe_load(capsys.readouterr().out.split("\n\n")[0])
        assert (shown["lr"], shown["eps"], shown["grad_clip"], shown["p"]) == (0.5, 1e-9, None, 17)


def test_every_shipped_configuration_is_valid_and_the_originals_are_all_there():
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert names >= ORIGINAL_CONFIGS
    for name in names:
        values = read_yaml(CONFIGS / f"{name}.yaml")
        if "base" in values:
            assert plan(SweepConfig(**check_types(SweepConfig, values)))
        else:
            TrainerConfig(**check_types(TrainerConfig, values))


def test_the_original_sweeps_have_the_experiments_it_names():
    grid = plan(SweepConfig(**read_yaml(CONFIGS / "transformer_sweep.yaml")))
    assert len(grid) == 18
    configs = [job.config for job in grid]
    assert "p17_lr1e-3_wd1.0" in [job.name for job in grid]
    assert {(c.p, c.lr, c.weight_decay) for c in configs} == {
        (p, lr, wd) for p in (17, 113) for lr in (3e-4, 1e-3, 3e-3) for wd in (0.5, 1.0, 2.0)
    }
    decay = [job.config for job in plan(SweepConfig(**read_yaml(CONFIGS / "new_year_validation_sweep.yaml")))]
    assert [c.weight_decay for c in decay] == [0.5, 0.75, 1.0, 1.25, 1.5]
    assert {(c.p, c.lr, c.train_frac) for c in decay} == {(113, 3e-4, 0.3)}


def test_dry_run_of_a_sweep_says_what_would_run_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "--config", "transformer_sweep", "--experiment", "p17_lr3e-4_wd2.0", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "2: p17_lr3e-4_wd2.0\n" in out
    assert "MiB" in out
    assert not any(tmp_path.iterdir())


def test_resuming_a_finished_run_with_another_architecture_is_refused(capsys, tmp_path):
    flags = [
        "--p",
        "5",
        "--train-frac",
        "0.5",
        "--model-type",
        "baseline",
        "--hidden-dim",
        "4",
        "--epochs",
        "10",
        "--device",
        "cpu",
        "--threads",
        "1",
    ]
    folder = ["--output-dir", str(tmp_path / "run")]
    assert main(["train", *flags, "--n-layers", "1", *folder]) == 0
    said = refused(main, ["train", *flags, "--n-layers", "2", *folder, "--resume"], capsys)
    assert "n_layers: stored 1, given 2" in said
    assert main(["train", *flags, "--n-layers", "1", *folder, "--resume"]) == 0
    assert "finished" in capsys.readouterr().out
    empty = ["--output-dir", str(tmp_path / "none")]
    assert main(["train", *flags, "--n-layers", "1", *empty, "--resume", "--extra-epochs", "5"]) == 2


def test_reports_and_claims_are_read_without_torch():
    code = "import sys, least_action.report, least_action.claims, least_action.history; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
