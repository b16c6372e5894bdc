"""The command from outside: exit codes, one-sentence errors, shipped configurations, measure, compare."""

import csv
import json
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from retrofit import train as train_module
from retrofit.cli import STUDY, main
from retrofit.config import START, CompareConfig, RunConfig, arm_names
from retrofit.plan import plan
from studycore import execution
from studycore.configuration import check_types, from_dict, read_yaml, to_dict, to_yaml
from studycore.errors import UserError
from studycore.study import load
from studycore.testing.runs import refused

CONFIGS = Path(str(resources.files("retrofit"))) / "configs"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run"], ["method", "geometry"]),
        (["run", "--method", "magic"], ["method: 'magic'", "glt_fold"]),
        (["run", "--method", "gram", "--lr", "fast"], ["lr", "fast", "float"]),
        (["run", "--method", "gram", "--num_stepps", "3"], ["num_stepps", "num_steps"]),
        (["run", "--method", "gram", "--batch_size", "0"], ["batch_size: 0 does not fit", "1 or more"]),
        (["run", "--method", "gram", "--gradient-accumulation-steps", "3"], ["3", "batch_size 16"]),
        (["run", "--method", "norm_matched"], ["norm_reference"]),
        (["run", "--method", "gram", "--device", "tpu"], ["device: tpu", "cuda"]),
        (["run", "--method", "gram", "--device", "cpu", "--model", "nobody/nothing"], ["--model", "nobody/nothing"]),
        (["run", "--method", "gram", "--resume"], ["--resume", "no earlier"]),
        (
            ["run", "--method", "gram", "--device", "cpu", "--model", "./x"],
            ["--model: './x'", "no such file or folder"],
        ),
        (["run", "--method", "gram", "--device", "cpu", "--dataset", "x.txt"], ["--dataset: 'x.txt'", "no such file"]),
        (
            ["run", "--method", "gram", "--device", "cpu", "--model", "nobody/nothing", "--validation-dataset", "/x"],
            ["--validation-dataset: '/x'", "no such file"],
        ),
        (["measure", "/x/y", "--device", "cpu"], ["--model: '/x/y'", "no such file or folder"]),
        (["measure", "--device", "cpu", "--dataset", "x.jsonl"], ["--dataset: 'x.jsonl'", "no such file"]),
        (["compare", "--method", "gram"], ["--arms"]),
        (["compare", "--arms", "[gram, magic]"], ["arms", "magic"]),
        (["compare", "--arms", "[norm_matched]"], ["geometry"]),
        (["compare", "--seeds", "0"], ["seeds: 0"]),
        (["compare", "--save-models", "some"], ["save_models", "some", "first"]),
        (["run", "--method", "norm_matched", "--seeds", "2"], ["norm_reference"]),
        (["run", "--method", "none", "--seeds", "2"], ["arms: 'none'"]),
        (["run", "--method", "gram", "--seeds", "2", "--output", "x.json"], ["output: 'x.json'", "--seeds"]),
        (["run", "--method", "gram", "--output", "."], ["output: '.' is a folder"]),
        (["measure", "--seeds", "2"], ["--seeds"]),
        (["compare", "--config", "nowhere"], ["nowhere", "quick"]),
        (["measure", "nobody/nothing", "--device", "cpu"], ["--model", "nobody/nothing"]),
        (["frobnicate"], ["frobnicate", "measure"]),
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


def test_an_empty_folder_and_a_model_without_known_blocks(capsys, tmp_path, small):
    (tmp_path / "empty").mkdir()
    flags = ["--method", "gram", "--device", "cpu", "--output-dir", str(tmp_path / "run")]
    assert "no config.json" in refused(main, ["run", *flags, "--model", str(tmp_path / "empty")], capsys)
    from transformers import AutoModelForCausalLM, MptConfig

    config = MptConfig(vocab_size=64, d_model=8, n_heads=2, n_layers=1, max_seq_len=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "mpt")
    from conftest import save_tokenizer

    save_tokenizer(tmp_path / "mpt")
    capsys.readouterr()
    assert main(["run", *flags, "--model", str(tmp_path / "mpt")]) == 2
    assert "no feed-forward blocks of a known kind" in capsys.readouterr().err
    assert (
        main(
            [
                "run",
                *flags,
                "--model",
                str(small().model),
                "--block-size",
                "16",
                "--dataset",
                str(tmp_path / "none.jsonl"),
            ]
        )
        == 2
    )
    assert "none.jsonl" in capsys.readouterr().err


def test_the_originals_flags_and_defaults_are_there():
    expected = {"num_steps": 1000, "lr": 1e-4, "gram_weight": 0.01, "glt_interval": 50, "eval_interval": 100,
                "max_docs": 1000, "batch_size": 16}  # fmt: skip
    config = RunConfig(method="geometry")
    for name, value in expected.items():
        assert getattr(config, name) == value
    assert {"standard", "gram", "geometry"} <= set(arm_names())


def test_every_shipped_configuration_is_valid():
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert names == {"quick", "full", "long", "weights", "smollm2"}
    arms = {}
    for name in names:
        compare = CompareConfig(**check_types(CompareConfig, read_yaml(CONFIGS / f"{name}.yaml")))
        arms[name] = compare.arms
        assert compare.seeds >= (2 if name == "smollm2" else 3)
        assert compare.lrs == [1e-5, 3e-5, 1e-4]
        for job in plan(compare):
            assert job.config.num_steps % job.config.eval_interval == 0
    assert arms["quick"] == ["standard", "gram", "geometry", "geometry_ffn", "glt_fold"]
    assert arms["smollm2"] == ["standard", "gram", "geometry", "geometry_ffn"]
    assert set(arms["full"]) == set(arms["long"]) == set(arm_names()) - {"none"}
    for name in ("long", "smollm2"):
        assert read_yaml(CONFIGS / f"{name}.yaml")["base"]["num_steps"] == 1000
    assert read_yaml(CONFIGS / "smollm2.yaml")["base"]["gram_weight"] == 1e-4
    weights = read_yaml(CONFIGS / "weights.yaml")["weights"]
    assert (min(weights), max(weights), len(weights)) == (1e-6, 1e-2, 5)


def test_every_arm_is_one_file_with_a_summary():
    from retrofit.arms import get_arm

    for name in arm_names():
        assert get_arm(name).summary


def test_a_plan_names_what_each_run_needs():
    arms = ["norm_matched", "standard", "geometry"]
    jobs = {job.name: job for job in plan(CompareConfig(base={"seed": 5}, arms=arms, seeds=2))}
    assert next(iter(jobs)) == START
    assert {job.config.seed for name, job in jobs.items() if name != START} == {5, 6}
    assert jobs[START].needs == ()
    assert jobs["standard_s5"].needs == jobs["geometry_s6"].needs == (START,)
    assert jobs["norm_matched_s6"].needs == (START, "geometry_s6")
    assert jobs["norm_matched_s6"].config.norm_reference == "../geometry_s6"
    execution.check_plan(list(jobs.values()))
    assert not any(job.keep_checkpoints for job in jobs.values())


@pytest.mark.parametrize(
    ("which", "saved"), [("none", set()), ("first", {"gram_s0", "geometry_s0"}), ("all", {"gram_s0", "gram_s1", "geometry_s0", "geometry_s1"})]
)  # fmt: skip
def test_save_models_says_of_which_runs(which, saved):
    jobs = plan(CompareConfig(arms=["gram", "geometry"], seeds=2, save_models=which))
    assert {job.name for job in jobs if job.config.save_model} == saved


def test_several_seeds_of_a_run_are_a_comparison_of_one_arm(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--method", "gram", "--lr", "0.5", "--seed", "7", "--seeds", "3", "--print-config"]
    assert main(["run", *flags]) == 0
    file = tmp_path / "c.yaml"
    file.write_text(capsys.readouterr().out)
    jobs = plan(from_dict(CompareConfig, read_yaml(file), "here"))
    assert [job.name for job in jobs] == [START, "gram_s7", "gram_s8", "gram_s9"]
    assert {job.config.lr for job in jobs} == {0.5}


def test_measure_writes_its_tables_and_equals_svdvals(made, text, capsys, tmp_path):
    flags = ["--dataset", str(text[1]), "--block-size", "16", "--activation-tokens", "128", "--device", "cpu"]
    assert main(["measure", str(made("llama")), *flags, "--embeddings", "--output-dir", str(tmp_path / "m")]) == 0
    out = capsys.readouterr().out
    assert "act_kappa_centred" in out
    rows = list(csv.DictReader((tmp_path / "m" / "weights.csv").read_text().splitlines()))
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(made("llama"))
    state = model.state_dict()
    assert {row["name"].rsplit(".", 1)[-1] for row in rows} >= {"q_proj", "up_proj", "gate_proj", "embed_tokens"}
    for row in rows:
        s = torch.linalg.svdvals(state[row["name"] + ".weight"].double())
        assert float(row["kappa"]) == pytest.approx(float(s[0] / s[-1]), rel=1e-6)
    activations = list(csv.DictReader((tmp_path / "m" / "activations.csv").read_text().splitlines()))
    assert [row["tokens"] for row in activations] == ["128", "128"]
    for name in ("results.json", "report.html", "report.md", "history.parquet", "figures/spectra.svg"):
        assert (tmp_path / "m" / name).is_file(), name
    assert main(["report", str(tmp_path / "m")]) == 0


def test_measure_without_text_reads_weights_alone(made, capsys, tmp_path):
    """A folder without tokenizer will do, and a singular matrix is infinite, not an error."""
    import shutil

    folder = tmp_path / "gpt2"
    shutil.copytree(made("gpt2"), folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.0.mlp.c_fc.weight"][0] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    flags = ["--dataset", "null", "--device", "cpu", "--output-dir", str(tmp_path / "m")]
    assert main(["measure", str(folder), *flags]) == 0
    assert "infinite" in capsys.readouterr().out


def in_this_process(work, values, schedule, stop, processes):
    while names := schedule.take():
        for name, ended in zip(names, work([values[name] for name in names]), strict=True):
            yield from schedule.end(name, ended)


@pytest.fixture
def comparison(small, tmp_path, monkeypatch):
    """(the flags of a small comparison, its folder), whose runs are made in this process."""
    monkeypatch.setattr(execution, "run_in_processes", in_this_process)
    base = {k: v for k, v in to_dict(small(num_steps=4, eval_interval=2, glt_interval=2)).items() if k != "method"}
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml({"base": base, "arms": ["standard", "gram", "geometry", "norm_matched"], "seeds": 2}))
    folder = tmp_path / "compare"
    return ["--config", str(file), "--device", "cpu", "--threads", "1", "--output-dir", str(folder)], folder


def test_compare_writes_the_original_files_and_goes_on_where_it_was(comparison, monkeypatch, capsys):
    flags, folder = comparison
    original, trained = train_module.train, []

    def sometimes(config, run):
        trained.append(run.folder.name)
        if run.folder.name == "gram_s1":
            raise UserError("planted")
        original(config, run)

    monkeypatch.setattr(train_module, "train", sometimes)
    assert main(["compare", *flags]) == 2
    assert len(trained) == 9
    assert "1 of 9 runs failed, first gram_s1: planted" in capsys.readouterr().err
    assert json.loads((folder / "manifest.json").read_text())["state"] == "failed"
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "standard.json", "gram_only.json", "geometry.json", "norm_matched.json", "summary.json", "trajectories.png",
        "results.json", "report.html", "report.md", "history.parquet", "claims.json",
    }  # fmt: skip
    assert main(["report", str(folder)]) == 0
    assert "The original study's scenarios are of 1,000 updates." in (folder / "report.md").read_text()
    results = json.loads((folder / "results.json").read_text())
    assert results["metrics"]["training_tokens_per_run"] == 4 * 4 * 16
    assert {name: arm["n"] for name, arm in results["metrics"]["arms"].items()} == {
        "standard": 2, "gram": 1, "geometry": 2, "norm_matched": 2,
    }  # fmt: skip
    arm = results["metrics"]["arms"]["gram"]
    for name in ("up_kappa", "down_kappa", "up_omega", "act_kappa_centred", "act_kappa_uncentred"):
        assert {f"final_{name}_median", f"final_{name}_geometric_mean"} <= set(arm)
    judged = {claim["id"]: claim for claim in results["claims"]}
    assert all(claim["registered"] for claim in judged.values())
    assert judged["geometry_vs_norm_matched"]["n"] == 2
    assert "Not run at 1,000 updates; after 4 updates: " in judged["geometry_vs_standard"]["why"]
    assert judged["gram_perplexity"]["verdict"] == "not run"
    report = (folder / "report.md").read_text()
    for table, columns in (("## Arms\n", {"lr", "perplexity"}), ("## Arms: the rest\n", {"grad norm", "clip rate"})):
        header = report.split(table)[1].strip().splitlines()[0]
        assert columns <= {cell.strip() for cell in header.split("|")}
    for said in (
        "on 64 fixed tokens", "Warning: 64 tokens are fewer than 4 x the FFN's width 64", "4 updates of 4 blocks", "Which matrix does the harm",
        "0.0125 % of its tokens", "A transport every 2 updates", "Gram weight 0.01", "A seed varies the order of batches",
    ):  # fmt: skip
        assert said in report, said
    assert "planted" in report.split("## Runs that did not finish")[1]
    # One start: the same first row for all, and the same documents.
    firsts = {json.loads((folder / n).read_text())["initial"]["val_ppl"] for n in ("standard.json", "geometry.json")}
    assert len(firsts) == 1
    starts = {path.read_bytes() for path in folder.glob("*/evaluations/step-0.parquet")}
    assert len(starts) == 1
    assert set(json.loads((folder / "summary.json").read_text())["comparison"]) == {"geometry_vs_standard"}
    assert (folder / "standard_s0" / "model" / "config.json").exists()
    assert not (folder / "standard_s1" / "model").exists()
    assert not (folder / "standard_s0" / "checkpoints").exists()

    # Resumed, only the one that failed is made, and the report again.
    trained.clear()
    monkeypatch.setattr(
        train_module, "train", lambda config, run: trained.append(run.folder.name) or original(config, run)
    )
    assert main(["resume", str(folder)]) == 0
    assert trained == ["gram_s1"]
    assert json.loads((folder / "results.json").read_text())["metrics"]["arms"]["gram"]["n"] == 2
    assert main(["resume", str(folder)]) == 0
    capsys.readouterr()
    assert main(["report", "--results_dir", str(folder)]) == 0
    assert "NOT RUN" in capsys.readouterr().out


def test_what_ends_the_start_is_said_of_the_whole(comparison, capsys):
    flags, folder = comparison
    assert main(["compare", *flags, "--block-size", "128"]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert "block_size: 128 is longer than the model's context of 64" in error
    assert json.loads((folder / "manifest.json").read_text())["state"] == "failed"


def test_an_experiment_is_run_with_what_it_needs(comparison, capsys):
    flags, folder = comparison
    assert main(["compare", *flags, "--experiment", "norm_matched_s1"]) == 0
    made = {path.parent.name for path in folder.glob("*/manifest.json")}
    assert made == {START, "geometry_s1", "norm_matched_s1"}


def test_run_writes_output_and_resumes_nothing_twice(small, tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(to_dict(small(method="gram", num_steps=2))))
    output = tmp_path / "artifacts" / "gram.json"
    flags = ["--config", str(file), "--device", "cpu", "--threads", "1", "--output-dir", str(tmp_path / "r")]
    assert main(["run", *flags, "--output", str(output)]) == 0
    written = json.loads(output.read_text())
    assert written["method"] == "gram"
    assert set(written["initial"]) >= {"cond", "ppl", "loss", "val_ppl", "train_ppl"}
    # An earlier one of these is replaced, and nothing else.
    output.write_text(json.dumps(written | {"method": "standard"}))
    flags[-1] = str(tmp_path / "again")
    assert main(["run", *flags, "--output", str(output)]) == 0
    assert json.loads(output.read_text()) == written
    output.write_text('{"mine": 1}')
    flags[-1] = str(tmp_path / "refused")
    capsys.readouterr()
    assert main(["run", *flags, "--output", str(output)]) == 2
    assert f"output: '{output}' is there and no earlier output of this command" in capsys.readouterr().err
    assert output.read_text() == '{"mine": 1}' and not (tmp_path / "refused").exists()
    flags[-1] = str(tmp_path / "r")
    assert main(["run", *flags, "--resume"]) == 0
    assert "finished" in capsys.readouterr().out
    assert main(["run", *flags, "--resume", "--lr", "0.5"]) == 2
    assert "lr: stored 0.01, given 0.5" in capsys.readouterr().err


def test_dry_run_times_a_real_step_and_writes_nothing(small, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--model", str(small().model), "--dataset", str(text[0]), "--block_size", "16", "--batch-size", "2"]
    flags += ["--device", "cpu", "--dry-run"]
    assert main(["compare", "--config", "quick", *flags]) == 0
    out = capsys.readouterr().out
    assert "glt_fold_s2, after start, tune_lr1e-5, tune_lr3e-5, tune_lr1e-4" in out
    assert "tune_lr1e-5: 32 steps of" in out
    assert "19 runs" in out
    assert main(["run", "--method", "gram", *flags]) == 0
    assert "MiB" in capsys.readouterr().out
    for nothing in (["run", "--method", "none", *flags], ["measure", "--device", "cpu", "--dry-run"]):
        assert main(nothing) == 0
        assert "no steps to time" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_doctor_says_which_models_are_there(monkeypatch, tmp_path):
    monkeypatch.setenv("STUDYCORE_MODELS", str(tmp_path))
    checks = {what.split()[0]: (holds, mend) for what, holds, mend in load(STUDY.doctor)()}
    assert checks["studycore/wordnet-lm"][0]
    assert checks["studycore/smollm2-135m-instruct"][0] is False
    assert "`studycore language fetch` brings it" in checks["studycore/smollm2-135m-instruct"][1]
    assert "WordNet" in checks


def test_a_model_that_is_not_fetched_gets_one_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("STUDYCORE_MODELS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["measure", "studycore/smollm2-135m-instruct", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "studycore/smollm2-135m-instruct: is not in" in error
    assert len(error.strip().splitlines()) == 1
