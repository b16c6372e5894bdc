"""The command from outside: exit codes, one-sentence errors, shipped configurations."""

from importlib import resources
from pathlib import Path

import pytest
import yaml

from latentwire_adapter.cli import main
from latentwire_adapter.config import SuiteConfig
from latentwire_adapter.plan import plan
from studycore.configuration import check_types, read_yaml
from studycore.testing.runs import refused

CONFIGS = Path(str(resources.files("latentwire_adapter"))) / "configs"
CPU = ["--device", "cpu"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["phase1", "--ce_weight", "0.5"], ["ce_weight: 0.5", "phase2"]),
        (["phase1", "--epochs", "-1"], ["epochs: -1"]),
        (["phase1", "--adapter_lr", "fast"], ["adapter_lr", "fast"]),
        (["phase1", "--compress_method", "svd"], ["compress_method", "svd", "pca"]),
        (["phase1", "--ratioo", "8"], ["ratioo", "ratio"]),
        (["phase1", *CPU, "--model", "./x"], ["--model: './x'", "no such file or folder"]),
        (["phase1", *CPU, "--model_id", "nobody/nothing"], ["--model", "nobody/nothing"]),
        (["phase1", "--diagnostic-log", "."], ["diagnostic_log: '.' is a folder"]),
        (
            ["phase1", "--diagnostic-log", "/dev/null/x.jsonl"],
            ["diagnostic_log: '/dev/null/x.jsonl' cannot be written"],
        ),
        (["phase1", "--resume"], ["--resume", "no earlier"]),
        (["evaluate", *CPU, "--arm", "magic"], ["arm", "magic", "nearest"]),
        (["selfcheck", "/x/y", *CPU], ["--model: '/x/y'"]),
        (["selfcheck", "--seeds", "2"], ["--seeds"]),
        (["run", "--ratios", "[1.0]"], ["ratios: [1.0]", "above 1"]),
        (["run", "--arms", "[linear, magic]"], ["arms: 'magic'"]),
        (["run", "--config", "nowhere"], ["nowhere", "quick"]),
        (["run", "--ratio", "4"], ["ratio", "--ratios"]),
        (["run", "--phase1", "x"], ["phase1", "no fields of all runs"]),
        (["frobnicate"], ["frobnicate", "phase1"]),
        (["resume", "missing"], ["missing"]),
        (["report", "."], ["manifest.json"]),
    ],
    ids=" ".join,
)
def test_mistakes_get_one_sentence_and_exit_code_2(arguments, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refused(main, arguments, capsys)
    assert [word for word in named if word not in said] == [], said
    assert not any(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--dataset", "x.json"], ["--dataset: 'x.json'", "no such file"]),
        (["--split", "test"], ["split: 'test'", "validation"]),
        (["--arm", "linear"], ["phase1: null", "--phase1 RUN"]),
        (["--arm", "linear", "--phase1", "nowhere"], ["phase1: 'nowhere'", "adapter/config.json"]),
        (["--max-length", "5"], ["exceed", "max_length 5"]),
        (["--arm", "shuffled", "--eval-samples", "1"], ["eval_samples", "one paragraph"]),
    ],
    ids=" ".join,
)
def test_mistakes_that_the_model_and_the_text_tell(flags, named, folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("latentwire_adapter.selfcheck.run_checks", lambda *a: {})
    samples = [] if "--eval-samples" in flags else ["--eval-samples", "4"]
    asked = ["evaluate", *CPU, "--model", str(folder), "--examples", "1", *flags, *samples]
    said = refused(main, asked, capsys)
    assert [word for word in named if word not in said] == [], said


def test_every_shipped_configuration_plans():
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert {"quick", "full", "llama-8b"} <= names
    for name in names:
        assert plan(SuiteConfig(**check_types(SuiteConfig, read_yaml(CONFIGS / f"{name}.yaml"))))
    full = SuiteConfig(**check_types(SuiteConfig, read_yaml(CONFIGS / "full.yaml")))
    assert full.ratios == [2.0, 4.0, 8.0, 16.0]
    assert full.base["eval_samples"] >= 400


def test_flags_of_a_run_change_all_runs(capsys):
    flags = ["--config", "llama-8b", "--dtype", "float32", "--eval_samples", "7", "--model_id", "a/b", "--dry-run"]
    assert main(["run", *flags[:-1], "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["base"]["dtype"], shown["base"]["eval_samples"], shown["base"]["model"]) == ("float32", 7, "a/b")


def test_help_needs_no_torch(capsys):
    assert main(["--help"]) == 0
    assert "phase2" in capsys.readouterr().out


def test_a_dry_run_times_a_step_and_writes_nothing(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [
        "--model",
        str(folder),
        "--examples",
        "1",
        "--eval-samples",
        "4",
        "--samples",
        "20",
        "--fit_text",
        "null",
        "--always_seen",
        "10",
    ]
    assert main(["phase1", *CPU, *flags, "--dry-run"]) == 0
    assert "s each on cpu" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())
