"""The command from outside: help, exit codes, errors in one sentence, and a run from its beginning to its end."""

import json
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import yaml

from studycore.configuration import check_types, read_yaml
from studycore.metrics_log import read_rows
from studycore.testing.runs import cut_off, output_of, refused
from ternary_vae.cli import STUDY, main
from ternary_vae.config import SweepConfig, TrainConfig
from ternary_vae.plan import plan

CONFIGS = Path(str(resources.files("ternary_vae"))) / "configs"
VERBS = [*STUDY.verbs, "report", "resume", "runs", "doctor"]
TINY = [
    "--config", "two_codes", "--trits", "3", "--latent-dim", "4", "--encoder-sizes", "[12, 8]", "--decoder-sizes", "[8]", "--hidden-dim", "8",
    "--coverage-epochs", "3", "--epochs", "3", "--batch-size", "10", "--device", "cpu", "--threads", "1",
]  # fmt: skip
COMMAND = ("-m", "ternary_vae")


# --------------------------------------------------------------------------------------------------------------- help
def test_help_of_every_verb_answers_without_the_heavy_imports():
    code = """
import json, sys, time
from ternary_vae.cli import main
took = {}
for verb in json.loads(sys.argv[1]):
    began = time.process_time()
    try:
        code = main([*verb, "--help"])
    except SystemExit as end:
        code = end.code
    took[" ".join(verb)] = time.process_time() - began
    heavy = [name for name in ("torch", "numpy", "matplotlib", "accelerate", "pandas", "scipy") if name in sys.modules]
    assert code in (0, None), (verb, code)
    assert not heavy, (verb, heavy)
print(json.dumps(took))
"""
    verbs = [[], *[[verb] for verb in VERBS]]
    ended = subprocess.run(
        [sys.executable, "-c", code, json.dumps(verbs)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    took = json.loads(ended.stdout.splitlines()[-1])
    assert max(took.values()) < 2, took
    for verb in VERBS:
        assert f"  {verb} " in ended.stdout
    for flag in ("max_radius", "curvature", "coverage_epochs", "--seeds", "--dry_run", "--tracker", "key_map"):
        assert flag.replace("-", "_") in ended.stdout.replace("-", "_"), flag
    assert "ternary-vae finetune START [flags]" in ended.stdout


# -------------------------------------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--max-radius", "1.0"], ["max_radius: 1.0", "ball of curvature 1.0", "less than"]),
        (["train", "--curvature", "2"], ["max_radius: 0.95", "curvature 2.0", "less than 0.707"]),
        (["train", "--curvature", "-1"], ["curvature: -1", "above 0"]),
        (["train", "--learning-rate", "1"], ["learning_rate"]),
        (["train", "--lr", "fast"], ["lr", "fast", "float"]),
        (["train", "--lr", "0"], ["lr: 0", "above 0"]),
        (["train", "--lr", "nan"], ["lr: nan", "give a float"]),
        (["train", "--loss", "best"], ["loss", "best", "ordered"]),
        (["train", "--config", "nowhere"], ["nowhere", "quick", "v5_11"]),
        (["train", "--config", "quick"], ["quick", "ternary-vae sweep"]),
        (["train", "--seeds", "0"], ["seeds: 0", "from 1 to 10000"]),
        (["train", "--stages", "hierarchy"], ["stages: hierarchy", "decode ball", "joint"]),
        (["train", "--config", "v5_11", "--stages", "hierarchy"], ["stages: hierarchy", "start"]),
        (["train", "--config", "v5_11", "--stages", "hierarchy", "--start", "gone"], ["gone", "holds no checkpoint"]),
        (["train", "--hierarchy-frozen", "[decoder_B]"], ["hierarchy_frozen", "decoder_B", "encoder_A"]),
        (["train", "--train-fraction", "0"], ["train_fraction: 0"]),
        (["train", "--trits", "14"], ["trits: 14", "at most 13"]),
        (["train", "--device", "tpu"], ["device", "tpu", "cpu"]),
        (["train", "--resume"], ["--resume", "no earlier", "leave"]),
        (["train", "--tracker", "abacus"], ["tracker", "abacus", "tensorboard"]),
        (["finetune", "--lr", "1"], ["checkpoint", "first"]),
        (["finetune", "gone", "--stages", "joint"], ["--stages", "leave it out"]),
        (["finetune", "gone", "--start", "there"], ["--start", "first argument", "leave"]),
        (["finetune", "gone"], ["gone", "holds no checkpoint"]),
        (["finetune", "."], [".", "holds no checkpoint", "run folder"]),
        (["finetune", "model.pt"], ["model.pt", "ternary-vae import"]),
        (["sweep"], ["--config", "quick"]),
        (["sweep", "--config", "joint"], ["stages"]),
        (["sweep", "--config", "quick", "--seeds", "0"], ["seeds: 0", "from 1 to 10000"]),
        (["sweep", "--config", "quick", "--start", "there"], ["--start", "leave it out"]),
        (["sweep", "--config", "full", "--curvature", "9"], ["experiment", "max_radius"]),
        (["evaluate", "gone"], ["gone", "holds no checkpoint"]),
        (["evaluate"], ["checkpoint"]),
        (["inspect", "gone"], ["gone"]),
        (["frobnicate"], ["frobnicate", "train"]),
        (["resume", "missing"], ["missing"]),
        (["report", "."], ["manifest.json"]),
        (["report"], ["RUN"]),
    ],
    ids=str,
)  # fmt: skip
def test_mistakes_get_one_sentence_and_exit_code_2(arguments, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refused(main, arguments, capsys)
    assert [word for word in named if word not in said] == [], said
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["train", "sweep"])
@pytest.mark.parametrize("text", ["trits: {", "- 1", "\x00", "epochs: [1, 2]", "lr: fast", "phases: 3", "base: {lr: x"])
def test_bad_yaml_gets_one_sentence(verb, text, capsys, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    refused(main, [verb, "--config", str(tmp_path / "c.yaml")], capsys)


def test_a_folder_that_holds_a_run_is_refused(capsys, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    said = refused(main, ["train", *TINY, "--output-dir", str(tmp_path)], capsys)
    assert "holds a run already; resume it or choose another folder" in said
    assert "holds no checkpoint" in refused(main, ["finetune", str(tmp_path)], capsys)


# -------------------------------------------------------------------------------------------------------- configurations
def test_every_shipped_configuration_is_valid():
    for path in CONFIGS.glob("*.yaml"):
        values = read_yaml(path)
        if {"phases", "from_scratch"} & set(values):
            if path.stem not in ("quick", "full"):  # test_sweep plans these
                assert plan(SweepConfig(**check_types(SweepConfig, values))), path
        elif path.stem == "finetune":
            TrainConfig(**check_types(TrainConfig, {**values, "stages": "hierarchy", "start": "somewhere"}))
        else:
            TrainConfig(**check_types(TrainConfig, values))


def shown(capsys) -> tuple[dict, str]:
    """The configuration that a dry run prints, and the rest."""
    text, _, rest = capsys.readouterr().out.partition("\n\n")
    return yaml.safe_load(text), rest


def test_max_epochs_is_epochs_and_flags_win_over_the_file(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("lr: 1.0e-3\nepochs: 7\ntrits: 3\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    for flag in ("--max-epochs=9", "--max_epochs=9", "--epochs=9"):
        assert main(["train", flag, "--config", "c.yaml", "--lr", "0.5", "--dry-run"]) == 0
        values, rest = shown(capsys)
        assert (values["epochs"], values["lr"], values["trits"]) == (9, 0.5, 3)
        assert "coverage: 100 epochs of" in rest
        assert ", then hierarchy: 9 epochs of" in rest
        assert "MiB" in rest
    assert main(["train", "--max-epochs", "9", "--config", "c.yaml", "--dry-run"]) == 0
    assert shown(capsys)[0]["epochs"] == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_dry_run_of_a_sweep_lists_its_runs_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TINY, "--seeds", "2", "--seed", "5", "--dry-run"]) == 0
    values, rest = shown(capsys)
    assert values["seeds"] == 2
    assert "0: train_s5" in rest
    assert "1: train_s6" in rest
    assert "2 runs" in rest
    assert not any(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------------- a chain
def test_train_evaluate_inspect_finetune_report_runs_and_resume(tmp_path):
    """One tiny model through the real command."""

    def call(*arguments):
        return output_of(*COMMAND, *arguments, cwd=tmp_path)

    assert "coverage" in call("train", *TINY)
    (run,) = (tmp_path / "runs" / "ternary-vae").iterdir()
    assert run.name.startswith("train-")
    for file in ("config.yaml", "metrics.jsonl", "history.parquet", "results.json", "report.html", "report.md"):
        assert (run / file).exists(), file
    name = str(run.relative_to(tmp_path))
    output = call("evaluate", name, "--output", "metrics.json")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    flat = json.dumps(metrics)
    for metric in ("coverage", "hierarchy", "somers_d", "closed_form", "untrained"):
        assert metric in flat, metric
    assert "coverage" in output
    assert "hierarchy" in output
    assert "trits" in call("inspect", name)
    call("finetune", name, "--epochs", "2", "--device", "cpu", "--threads", "1", "--output-dir", "tuned")
    manifest = json.loads((tmp_path / "tuned" / "manifest.json").read_text())
    assert (manifest["verb"], manifest["state"]) == ("finetune", "done")
    config = read_yaml(tmp_path / "tuned" / "config.yaml")
    assert (config["trits"], config["latent_dim"], config["stages"], config["start"]) == (3, 4, "hierarchy", name)
    report = (run / "report.md").read_text()
    (run / "report.md").unlink()
    call("report", name)
    assert (run / "report.md").read_text() == report
    listed = call("runs")
    assert name in listed
    assert "done" in listed
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert "finished" in call("resume", name)
    assert "finished" in call("train", *TINY, "--resume")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_a_run_that_gets_sigterm_exits_with_3_and_resume_goes_on(tmp_path):
    flags = [*TINY, "--epochs", "4000", "--early-stopping-patience", "100000", "--checkpoint-every", "5"]
    folder = tmp_path / "run"
    said = cut_off(folder, 12, signal.SIGTERM, *COMMAND, "train", *flags, "--output-dir", folder)
    assert "stopped by SIGTERM at" in said
    assert f"`ternary-vae resume {folder}` continues" in said
    rows = read_rows(folder / "metrics.jsonl")
    assert 12 <= len(rows) < 4000
    # Going on to the end would take long: another signal, and the rows are those of before and more.
    cut_off(folder, len(rows) + 5, signal.SIGTERM, *COMMAND, "resume", folder)
    after = read_rows(folder / "metrics.jsonl")
    assert after[: len(rows)] == rows
    assert [row["epoch"] for row in after if row["stage"] == "hierarchy"] == list(range(len(after) - 4))
    assert len(json.loads((folder / "manifest.json").read_text())["resumed"]) == 1


@pytest.mark.parametrize(
    "flags",
    [
        ["--encoder-sizes", "[1000000, 1000000]"],
        ["--decoder-sizes", "[8, 1000000, 1000000]"],
        ["--hidden-dim", "10000000", "--n-projection-layers", "2"],
        ["--latent-dim", "10000000000"],
    ],
    ids=lambda flags: flags[0],
)
@pytest.mark.parametrize("decode", ["ball", "code"])
def test_a_model_that_cannot_fit_is_refused_with_its_size(flags, decode, tmp_path, capsys):
    stages = ["--stages", "joint", "--view", "a"] if decode == "ball" else []
    asked = [*TINY, "--decode", decode, *stages, *flags, "--output-dir", str(tmp_path / "run")]
    said = refused(main, ["train", *asked], capsys)
    assert flags[1] in said and "moments and a batch take" in said
    assert not (tmp_path / "run").exists()
