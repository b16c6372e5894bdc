"""A study on the frame, from its command: what it gets for nothing, and that a run that was cut off equals one that was not."""

import json
import os
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
import toy_variants as variants
import yaml
from pyarrow import parquet
from safetensors.torch import load_file
from toy_study import cli as toy, train as toy_train
from toy_study.config import Config

import studycore.execution
from studycore.checkpoints import load_checkpoint, steps
from studycore.metrics_log import read_rows
from studycore.record import is_done
from studycore.run import Run
from studycore.run_folder import is_writing, open_run, read_manifest, state_of
from studycore.testing.runs import cut_off, same, wait_for_rows, wait_until

CPU = ("--device", "cpu", "--threads", "1")
OFTEN = ("--checkpoint-every", "10")
STAGES = ("--stages", "2", *OFTEN)
FAILS = {"lr": 1e20}
TOY = Path(toy.__file__).parent


def train(folder, *flags, study=toy):
    return study.main(["train", *CPU, "--output-dir", str(folder), *map(str, flags)])


def rows_of(folder):
    return read_rows(folder / "metrics.jsonl")


def tell():
    os.kill(os.getpid(), signal.SIGTERM)


def raises(error):
    def act():
        raise error

    return act


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert train(folder, *OFTEN) == 0
    return folder


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """One of two stages."""
    folder = tmp_path_factory.mktemp("staged") / "run"
    assert train(folder, *STAGES, study=variants) == 0
    return folder


def test_the_toy_study_is_small():
    """What CONTRIBUTING says of it, and what it is to show: a study is its science and little else."""
    files = [path for path in TOY.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {path.name for path in files} == {
        "__init__.py", "__main__.py", "arms.yaml", "cli.py", "config.py", "train.py",
    }  # fmt: skip
    assert sum(len(path.read_text().splitlines()) for path in files) < 150


# --------------------------------------------------------------------------------------------------------------- one run
def test_a_run_leaves_what_the_contract_names(straight):
    rows, results, manifest = (
        rows_of(straight),
        *(json.loads((straight / f"{name}.json").read_text()) for name in ("results", "manifest")),
    )
    assert [row["step"] for row in rows] == [*range(0, 61, 5)]
    assert results["metrics"] == {"final_loss": rows[-1]["loss"]}
    assert [claim["verdict"] for claim in results["claims"]] == ["not run", "not run"]  # of two seeds at least
    registered = json.loads((straight / "claims.json").read_text())
    assert [(claim["id"], claim["threshold"], claim["direction"]) for claim in registered] == [
        ("sooner", 1.0, "below"),
        ("fits", 0.01, "below"),
    ]
    assert (manifest["state"], manifest["pid"], manifest["reason"]) == ("done", None, "60 updates")
    assert (manifest["study"], manifest["verb"], manifest["seeds"]) == ("toy", "train", [1])
    assert manifest["argv"][:2] == ["toy", "train"]
    assert parquet.read_table(straight / "history.parquet").to_pylist() == rows
    assert "A sum" in (straight / "report.html").read_text() and "# A sum" in (straight / "report.md").read_text()
    assert not (straight / "history").exists()
    last = load_checkpoint(steps(straight / "checkpoints")[-1])
    assert (last.step, last.state["loop"], last.state["index"]) == (60, "", 60)
    assert torch.equal(load_file(straight / "arrays.safetensors")["weights"], last.model["weight"])
    assert rows[-1]["loss"] < 0.01 < rows[0]["loss"]


def test_claims_that_were_changed_after_the_start_are_exploratory(tmp_path, straight, capsys):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    assert toy.main(["report", str(folder)]) == 0
    assert "exploratory" not in capsys.readouterr().out
    stored = json.loads((folder / "claims.json").read_text())
    (folder / "claims.json").write_text(json.dumps([stored[0], stored[1] | {"threshold": 5.0}]))
    assert toy.main(["report", str(folder)]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("exploratory: not registered before the run") == 2
    assert "claims.json: was changed after the run started" in shown.err
    judged = json.loads((folder / "results.json").read_text())["claims"]
    assert [(claim["threshold"], claim["registered"]) for claim in judged] == [(1.0, False), (0.01, False)]
    assert all(claim["why"].endswith("The run's claims.json was changed after the run started.") for claim in judged)
    (folder / "claims.json").unlink()
    assert toy.main(["report", str(folder)]) == 0
    assert "claims.json: was removed after the run started" in capsys.readouterr().err
    judged = json.loads((folder / "results.json").read_text())["claims"]
    assert all(claim["why"].endswith("The run's claims.json was removed after the run started.") for claim in judged)


def test_a_run_that_is_being_written_is_not_reported(tmp_path, straight, capsys):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    report = (folder / "report.md").stat().st_mtime_ns
    writer = open_run(folder)
    assert toy.main(["report", str(folder)]) == 2
    assert "a process is writing this run" in capsys.readouterr().err
    writer.close()
    assert (folder / "report.md").stat().st_mtime_ns == report
    assert toy.main(["report", str(folder)]) == 0


def plain_fit(config, steps):
    """The same fit without the frame: gradient descent with momentum, written out."""
    model = toy_train.build(vars(config))
    momenta = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for step in range(steps):
        loss = toy_train.loss_of(model, toy_train.points(config, 8, "batch", step))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for (name, p), gradient in zip(model.named_parameters(), gradients, strict=True):
            momenta[name] = config.momentum * momenta[name] + gradient
            with torch.no_grad():
                p -= config.lr * momenta[name]
    return model


def test_the_frame_changes_nothing_of_what_is_computed(tmp_path):
    assert train(tmp_path / "run", "--steps", 30) == 0
    found = load_checkpoint(steps(tmp_path / "run" / "checkpoints")[-1])
    expected = plain_fit(Config(), 30).state_dict()
    assert all(torch.allclose(found.model[name], value, rtol=1e-6) for name, value in expected.items())


@pytest.mark.parametrize("step", [0, 39, 60, 93], ids=["at once", "stage 0", "first of stage 1", "stage 1"])
def test_a_run_that_is_told_to_stop_goes_on_to_the_bit(tmp_path, staged, at_batch, capsys, step):
    folder = tmp_path / "run"
    at_batch(step, tell)
    assert train(folder, *STAGES, study=variants) == 3
    stage, index = divmod(step + 1, 60)
    output = capsys.readouterr()
    assert output.err == (
        f"toy: stopped by SIGTERM at stage {stage} step {index} and saved; `toy resume {folder}` continues\n"
    )
    manifest = read_manifest(folder)
    assert (manifest["state"], manifest["pid"]) == ("stopped", None)
    assert manifest["reason"] == f"stopped by SIGTERM at stage {stage} step {index}"
    assert steps(folder / "checkpoints")[-1].name == f"step-{step + 1}"
    assert not (folder / "results.json").exists()
    assert variants.main(["resume", str(folder)]) == 0
    same(staged, folder)
    assert len(read_manifest(folder)["resumed"]) == 1
    assert "bitwise" not in capsys.readouterr().out


def test_a_stop_between_two_stages(tmp_path, staged, at_batch):
    """The signal comes in the last update of the first stage, whose last index only evaluates and saves."""
    folder = tmp_path / "run"
    at_batch(59, tell)
    assert train(folder, *STAGES, study=variants) == 3
    assert variants.main(["resume", str(folder)]) == 0
    same(staged, folder)


@pytest.mark.parametrize("step", [35, 60])
def test_an_evaluation_that_is_told_to_stop_is_given_up_and_made_again(tmp_path, straight, monkeypatch, capsys, step):
    """Between two checkpoints, and at the end, where nothing is left to do but to evaluate."""
    folder, evaluate = tmp_path / "run", toy_train.evaluate

    def long(config, run, model):
        with run.saved_if_stopped():
            run.check_stop()
            if run.step == step:
                tell()
            run.check_stop()
        return evaluate(config, run, model)

    with monkeypatch.context() as patch:
        patch.setattr(toy_train, "evaluate", long)
        assert train(folder, *OFTEN) == 3
    assert capsys.readouterr().err == (
        f"toy: stopped by SIGTERM at step {step} and saved; `toy resume {folder}` continues\n"
    )
    assert read_manifest(folder)["state"] == "stopped" and not (folder / "results.json").exists()
    assert steps(folder / "checkpoints")[-1].name == f"step-{step}"
    assert rows_of(folder)[-1]["step"] == step - 5
    assert toy.main(["resume", str(folder)]) == 0
    same(straight, folder)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("begin", "stopped by SIGTERM before it had begun; give the command again"),
        ("model", "stopped by SIGTERM without a checkpoint; `toy resume {}` starts it again"),
        ("results", "stopped by SIGTERM and saved; `toy resume {}` continues"),
    ],
)
def test_long_work_outside_the_loop_hears_a_signal_too(tmp_path, straight, monkeypatch, capsys, method, said):
    """A run that is told to stop before its loop, or after it, does not end as done."""
    folder = tmp_path / "run"

    def long(run, *arguments, **more):
        run.check_stop()
        tell()
        run.check_stop()

    with monkeypatch.context() as patch:
        patch.setattr(Run, method, long)
        assert train(folder, *OFTEN) == 3
    assert capsys.readouterr().err == f"toy: {said.format(folder)}\n"
    if method == "begin":
        assert not folder.exists()
        return
    assert read_manifest(folder)["state"] == "stopped"
    assert toy.main(["resume", str(folder)]) == 0
    same(straight, folder)


def test_processes_that_train_together_hear_of_a_signal_at_the_next_index(tmp_path, monkeypatch):
    """One that left an evaluation by itself would leave the others waiting."""
    heard, evaluate = [], toy_train.evaluate

    def long(config, run, model):
        if run.step == 10:
            tell()
            monkeypatch.setenv("WORLD_SIZE", "2")
            run.check_stop()
            monkeypatch.delenv("WORLD_SIZE")
            heard.append(run.step)
        return evaluate(config, run, model)

    monkeypatch.setattr(toy_train, "evaluate", long)
    assert train(tmp_path / "run", *OFTEN) == 3
    assert heard == [10] and steps(tmp_path / "run" / "checkpoints")[-1].name == "step-11"


def test_a_folder_that_is_removed_meanwhile_is_one_sentence(tmp_path, at_batch, capsys):
    folder = tmp_path / "run"
    at_batch(22, lambda: shutil.rmtree(folder))
    assert train(folder, *OFTEN) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(
        f"toy: error: {folder}/metrics.jsonl: No such file or directory; it was moved or removed"
    )
    assert not any("Traceback" in line for line in said)


def test_a_run_whose_name_is_no_utf_8_is_reported(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    assert train(folder, "--steps", 5) == 0
    assert toy.main(["report", str(folder)]) == 0
    assert sweep(tmp_path / os.fsdecode(b"th\xe9"), "--steps", 5, "--processes", 1) == 0


KILLED = """
import os, signal, sys
from toy_study import cli, train
points = train.points
def killed(config, number, *purpose):
    if purpose == ("batch", {step}):
        os.kill(os.getpid(), signal.SIGKILL)
    return points(config, number, *purpose)
train.points = killed
sys.exit(cli.main())
"""


def test_a_killed_run_goes_on_to_the_bit_and_a_damaged_checkpoint_is_passed_over(tmp_path, straight, start, capsys):
    folder = tmp_path / "run"
    process = start("-c", KILLED.format(step=47), "train", *CPU, "--output-dir", folder, *OFTEN)
    assert process.wait(timeout=200) == -signal.SIGKILL
    manifest = read_manifest(folder)
    assert (manifest["state"], state_of(folder, manifest)) == ("running", "interrupted")
    newest = steps(folder / "checkpoints")[-1]
    assert (newest.name, rows_of(folder)[-1]["step"]) == ("step-40", 45)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 999, "lo')  # torn
    (newest / "model.safetensors").write_bytes(b"damaged")
    assert toy.main(["resume", str(folder)]) == 0
    assert f"passed over: {newest}/model.safetensors: its checksum differs" in capsys.readouterr().err
    same(straight, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert toy.main(["resume", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}: is finished; `toy report {folder}` shows it\n"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_without_a_checkpoint_it_starts_at_step_0(tmp_path, straight):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    shutil.rmtree(folder / "checkpoints")
    manifest = read_manifest(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest | {"state": "failed"}))
    assert toy.main(["resume", str(folder)]) == 0
    same(straight, folder)


def test_a_fault_marks_the_run_as_failed_and_it_can_go_on(tmp_path, straight, at_batch):
    folder = tmp_path / "run"
    at_batch(47, raises(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        train(folder, *OFTEN)
    manifest = read_manifest(folder)
    assert (manifest["state"], manifest["reason"], manifest["pid"]) == ("failed", "OSError: disk full", None)
    assert toy.main(["resume", str(folder)]) == 0
    same(straight, folder)


def test_a_loss_that_is_not_finite_is_the_users_mistake(tmp_path, capsys):
    assert train(tmp_path / "run", "--lr", "1e20") == 2
    message = capsys.readouterr().err
    assert message == "toy: error: lr: 1e+20 made the loss inf at step 1; lower it\n"
    assert read_manifest(tmp_path / "run")["state"] == "failed"


def test_resume_finds_the_newest_unfinished_run_of_the_configuration(tmp_path, at_batch, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = ("--steps", "6", *CPU)
    at_batch(3, tell)
    assert toy.main(["train", *short]) == 3
    assert toy.main(["train", *short, "--lr", "0.01"]) == 0
    (stopped,) = (f for f in (tmp_path / "runs" / "toy").iterdir() if read_manifest(f)["state"] == "stopped")
    assert toy.main(["train", *short, "--resume"]) == 0
    assert read_manifest(stopped)["state"] == "done"
    capsys.readouterr()
    assert toy.main(["train", *short, "--resume"]) == 0
    assert f"{stopped.name}: is finished" in capsys.readouterr().out
    assert toy.main(["train", *short, "--resume", "--lr", "0.03"]) == 2
    assert "--resume: no earlier train run of this configuration" in capsys.readouterr().err
    assert toy.main(["train", *short, "--lr", "0.03", "--resume", "--output-dir", str(stopped)]) == 2
    assert "its configuration is another: lr: stored 0.05, given 0.03" in capsys.readouterr().err
    assert toy.main(["train", *short, "--output-dir", str(stopped)]) == 2
    assert "holds a run already; resume it or choose another folder" in capsys.readouterr().err


def test_other_data_are_refused(tmp_path, at_batch, capsys):
    folder = tmp_path / "run"
    at_batch(3, tell)
    assert train(folder, "--steps", 6) == 3
    manifest = read_manifest(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest | {"data_fingerprints": {"points": "seed 2"}}))
    capsys.readouterr()
    assert toy.main(["resume", str(folder)]) == 2
    assert "its data are not those it began with: points: stored 'seed 2', given 'seed 1'" in capsys.readouterr().err


def test_a_dry_run_times_a_step_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert toy.main(["train", *CPU, "--steps", "1000", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert yaml.safe_load(out[: out.index("\n\n")])["steps"] == 1000
    assert "1,000 steps of " in out and "MiB of memory" in out
    assert toy.main(["sweep", *CPU, "--config", "arms", "--steps", "1000", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "0: plain_s1\n1: plain_s2" in out and "6 runs, " in out
    assert toy.main(["train", "--print-config", "--lr", "0.5"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["lr"] == 0.5
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_times_every_loop_and_adds_them_up(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # One clock for the three steps of each loop: the fastest of the first take 2 s and of the second 3 s.
    clock = iter([0, 9, 11, 14, 20, 29, 33, 36])
    monkeypatch.setattr("studycore.run.time.perf_counter", lambda: float(next(clock)))
    assert variants.main(["train", *CPU, "--steps", "10", "--stages", "2", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "stage 0: 10 steps of 2 s each, then stage 1: 10 steps of 3 s each on cpu, so about 50 s without" in out
    assert next(clock, None) is None and list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("toy_on_path")
def test_two_processes_give_the_rows_of_one_and_stop_together(tmp_path, capsys):
    folder, flags = tmp_path / "two", (*CPU, "--steps", "40", "--pause", "0.02")
    toy_of_two = ("-W", "error", "-m", "toy_study", "train", *flags, "--num-processes", 2, "--output-dir", folder)
    assert cut_off(folder, 4, signal.SIGTERM, *toy_of_two).count("stopped by SIGTERM") == 1
    assert read_manifest(folder)["devices"]["world_size"] == 2
    assert 15 <= int(steps(folder / "checkpoints")[-1].name[5:]) < 40
    assert train(tmp_path / "one", "--steps", 40) == 0
    one, two = (rows_of(tmp_path / name) for name in ("one", "two"))
    close = {"rtol": 0, "atol": 1e-6}
    pd.testing.assert_frame_equal(pd.DataFrame(one[: len(two)]), pd.DataFrame(two), **close)
    # One process takes over from two, and says that it rounds otherwise.
    capsys.readouterr()
    assert train(folder, *flags[4:], "--num-processes", 1, "--resume") == 0
    assert "toy: not bitwise the same from here on: world_size 2 -> 1\n" in capsys.readouterr().out
    pd.testing.assert_frame_equal(pd.DataFrame(one), pd.DataFrame(rows_of(folder)), **close)


# ------------------------------------------------------------------------------------------------------------- many runs
def sweep_file(path, base=None, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    base = {"steps": 40, "checkpoint_every": 10} | (base or {})
    path.write_text(
        yaml.safe_dump({"base": base, "arms": {"a": {}, "b": {"momentum": 0.0}}, **fields}, sort_keys=False)
    )
    return str(path)


def sweep(folder, *flags, **fields):
    """Of the toy study; of its variants when the fields are theirs."""
    study = variants if {"goes_on_from", "together"} & set(fields) else toy
    file = sweep_file(folder.parent / f"{folder.name}.yaml", **fields)
    return study.main(["sweep", *CPU, "--config", file, "--output-dir", str(folder), *map(str, flags)])


def test_a_sweep_that_is_killed_goes_on_where_its_runs_were(tmp_path, start, here):
    """Its two workers save and end when their parent is gone. Arm c fails."""
    folder = tmp_path / "sweep"
    file = sweep_file(tmp_path / "c.yaml", {"pause": 0.03}, seeds=2, arms={"a": {}, "b": {}, "c": FAILS})
    flags = ("--config", file, "--output-dir", folder, "--processes", 2, *CPU)
    process = start("-m", "toy_study", "sweep", *flags)
    wait_for_rows(folder / "a_s1", 2, process)
    process.kill()
    process.wait()
    wait_until(lambda: not any(is_writing(place) for place in folder.glob("*_s?")))
    assert read_manifest(folder / "a_s1")["state"] == "stopped"
    assert 0 < int(steps(folder / "a_s1" / "checkpoints")[-1].name[5:]) < 40
    assert state_of(folder, read_manifest(folder)) == "interrupted"
    names = ["a_s1", "a_s2", "b_s1", "b_s2", "c_s1", "c_s2"]
    left = [name for name in names if not is_done(folder / name)]
    assert toy.main(["resume", str(folder)]) == 2
    assert here == [[name] for name in left]
    manifest = read_manifest(folder)
    assert (manifest["state"], list(manifest["jobs"]), sorted(manifest["failed"])) == ("failed", names, names[4:])
    rows = rows_of(folder)
    assert [(row["step"], row["run"]) for row in rows] == list(enumerate(sorted(names, key=left.__contains__), start=1))
    assert [row["state"] for row in rows] == ["done"] * 4 + ["failed"] * 2
    assert json.loads((folder / "results.json").read_text())["metrics"] == {"runs": 4}
    report = (folder / "report.md").read_text()
    assert [report.index(name) for name in names] == sorted(report.index(name) for name in names)
    for seed in (1, 2):
        assert train(tmp_path / f"{seed}", "--steps", 40, *OFTEN, "--pause", 0.03, "--seed", seed) == 0
        same(tmp_path / f"{seed}", folder / f"a_s{seed}")


def test_a_run_begins_with_the_weights_of_the_run_that_it_needs(tmp_path, here):
    assert sweep(tmp_path / "s", seeds=2, goes_on_from={"b": "a"}) == 0
    for seed in (1, 2):
        first, last = rows_of(tmp_path / "s" / f"b_s{seed}")[0], rows_of(tmp_path / "s" / f"a_s{seed}")[-1]
        assert (first["step"], first["loss"]) == (0, last["loss"])
        assert read_manifest(tmp_path / "s" / f"b_s{seed}")["needs"] == {f"a_s{seed}": f"../a_s{seed}"}


def test_a_sweep_and_its_report_judge_the_claims(tmp_path, here, capsys):
    assert toy.main(["sweep", *CPU, "--config", "arms", "--output-dir", str(tmp_path / "s")]) == 0
    said = capsys.readouterr().out
    assert "SUPPORTED    Momentum brings the loss below 0.01 sooner" in said
    assert "SUPPORTED    The sum is fitted" in said
    for written in ("results.json", "report.md", "report.html"):
        (tmp_path / "s" / written).unlink()
    assert toy.main(["report", str(tmp_path / "s")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("# A sum: arms\nDoes momentum fit a sum sooner?\n6 fits.")
    assert said.count("SUPPORTED") == 2
    judged = {claim["id"]: claim for claim in json.loads((tmp_path / "s" / "results.json").read_text())["claims"]}
    assert {name: (claim["verdict"], claim["n"]) for name, claim in judged.items()} == {
        "sooner": ("supported", 3), "fits": ("supported", 3),
    }  # fmt: skip
    # What has learnt nothing is refuted.
    assert train(tmp_path / "t", "--steps", 1, "--seeds", 5) == 0
    fits = json.loads((tmp_path / "t" / "results.json").read_text())["claims"][1]
    assert (fits["id"], fits["verdict"], fits["n"]) == ("fits", "refuted", 5)


@pytest.mark.parametrize("verb", ["train", "sweep"])
@pytest.mark.parametrize("theirs", [("report.md",), ("report.md", "results.json")])
def test_of_a_refused_folder_nothing_is_shown(tmp_path, here, capsys, verb, theirs):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in theirs:
        (folder / name).write_text('{"mine": 1}')
    config = ["--config", "arms"] if verb == "sweep" else []
    assert toy.main([verb, *CPU, *config, "--output-dir", str(folder)]) == 2
    said = capsys.readouterr()
    assert f"--output-dir: {folder} holds {', '.join(theirs)} and no run" in said.err
    assert "mine" not in said.out
    assert {file.name: file.read_text() for file in folder.iterdir()} == dict.fromkeys(theirs, '{"mine": 1}')


def test_a_refused_resume_does_not_show_the_report_that_is_there(tmp_path, here, capsys):
    assert sweep(tmp_path / "s", arms={"a": {}, "b": FAILS}) == 2
    said = capsys.readouterr()
    assert "# A sum" in said.out  # of those that did not fail
    assert "the report holds the others" in said.err
    assert sweep(tmp_path / "s", arms={"a": {}, "b": FAILS}) == 2
    said = capsys.readouterr()
    assert "holds a run already" in said.err
    assert "# A sum" not in said.out


def test_a_failing_job_takes_along_only_what_needs_it(tmp_path, here, capsys):
    arms = {"a": {}, "bad": FAILS, "after": {}, "last": {}, "free": {}}
    assert sweep(tmp_path / "s", arms=arms, goes_on_from={"after": "bad", "last": "after", "free": "a"}) == 2
    assert here == [["a"], ["bad"], ["free"]]
    failed = read_manifest(tmp_path / "s")["failed"]
    why = failed["bad"]
    assert "made the loss inf" in why
    assert failed == {
        "bad": why,
        "after": f"it needs bad, which failed: {why}",
        "last": f"it needs after, which failed: it needs bad, which failed: {why}",
    }
    assert not (tmp_path / "s" / "after").exists()
    assert "3 of 5 runs failed" in capsys.readouterr().err
    # Resuming tries those again, and only those.
    here.clear()
    assert variants.main(["resume", str(tmp_path / "s")]) == 2
    assert here == [["bad"]]


def test_finished_jobs_are_not_made_again_and_others_are_refused(tmp_path, here, at_batch, capsys):
    folder = tmp_path / "s"
    at_batch(25, tell)
    assert sweep(folder, seeds=2) == 3
    assert "stopped by SIGTERM and saved; `toy resume" in capsys.readouterr().err
    assert (read_manifest(folder)["state"], here) == ("stopped", [["a_s1"]])
    assert toy.main(["resume", str(folder)]) == 0
    assert here == [["a_s1"], *([name] for name in ("a_s1", "a_s2", "b_s1", "b_s2"))]
    assert [(row["run"], row["state"]) for row in rows_of(folder)] == [
        (name, "done") for name in ("a_s1", "a_s2", "b_s1", "b_s2")
    ]
    assert sweep(tmp_path / "straight", seeds=2) == 0
    for name in ("a_s1", "a_s2", "b_s1", "b_s2"):
        same(tmp_path / "straight" / name, folder / name)
    # One that is taken away is made again, and nothing else.
    here.clear()
    shutil.rmtree(folder / "b_s1")
    manifest = read_manifest(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest | {"state": "stopped"}))
    before = (folder / "a_s1" / "manifest.json").read_bytes()
    assert toy.main(["resume", str(folder)]) == 0
    assert here == [["b_s1"]]
    assert (folder / "a_s1" / "manifest.json").read_bytes() == before
    assert [row["run"] for row in rows_of(folder)] == ["a_s1", "a_s2", "b_s2", "b_s1"]  # as they ended
    assert list(pd.read_parquet(folder / "history.parquet")["step"]) == [1, 2, 3, 4]
    # The same folder with a run of another identity in it.
    other = read_manifest(folder / "a_s2") | {"identity": "another"}
    (folder / "a_s2" / "manifest.json").write_text(json.dumps(other))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"state": "stopped"}))
    capsys.readouterr()
    assert toy.main(["resume", str(folder)]) == 2
    assert f"{folder / 'a_s2'}: holds a run of another version, or of other needs" in capsys.readouterr().err


def test_one_experiment_is_made_with_what_it_needs(tmp_path, here, capsys):
    arms, needs = {"x": {}, "a": {}, "b": {}, "c": {}}, {"b": "a", "c": "b"}
    assert sweep(tmp_path / "s", "--experiment", "c", arms=arms, goes_on_from=needs) == 0
    assert here == [["a"], ["b"], ["c"]]
    assert read_manifest(tmp_path / "s")["chosen"] == ["a", "b", "c"]
    here.clear()
    assert sweep(tmp_path / "t", "--start-from", 3, arms=arms, goes_on_from=needs) == 0
    assert here == [["a"], ["b"], ["c"]]
    assert sweep(tmp_path / "u", "--experiment", "y", arms=arms) == 2
    assert "--experiment: 'y' is not among the runs; there are x, a, b, c" in capsys.readouterr().err
    assert sweep(tmp_path / "u", "--start-from", 4, arms=arms) == 2
    assert "--start-from: 4 is no index of the 4 runs" in capsys.readouterr().err


def test_flags_of_a_run_change_the_base_of_all_and_seeds_start_a_sweep(tmp_path, here, monkeypatch):
    assert sweep(tmp_path / "s", "--steps", 7, "--seed", 5, "--seeds", 2) == 0
    assert here == [["a_s5"], ["a_s6"], ["b_s5"], ["b_s6"]]
    assert rows_of(tmp_path / "s" / "b_s6")[-1]["step"] == 7
    here.clear()
    assert train(tmp_path / "t", "--steps", 7, "--seeds", 3) == 0
    assert here == [["run_s1"], ["run_s2"], ["run_s3"]]
    claims = {claim["id"]: claim for claim in json.loads((tmp_path / "t" / "results.json").read_text())["claims"]}
    assert claims["fits"]["n"] == 3
    assert claims["fits"]["verdict"] in ("supported", "refuted", "inconclusive")
    assert claims["sooner"]["verdict"] == "not run"


# ----------------------------------------------------------------------------------------------------- trained together
TOGETHER = {"together": True, "arms": {"a": {}, "b": {"steps": 25}, "bad": FAILS, "c": {"steps": 55}}}


def test_runs_that_are_trained_together_equal_runs_alone(tmp_path, here):
    """Their ends lie at different indices, and one fails on the way."""
    assert sweep(tmp_path / "s", "--processes", 1, **TOGETHER) == 2
    assert here == [["a", "b", "bad", "c"]]
    assert {n: read_manifest(tmp_path / "s" / n)["state"] for n in TOGETHER["arms"]} == {
        "a": "done", "b": "done", "bad": "failed", "c": "done",
    }  # fmt: skip
    for name, count in (("a", 40), ("b", 25), ("c", 55)):
        assert train(tmp_path / name, "--steps", count, *OFTEN, study=variants) == 0
        same(tmp_path / name, tmp_path / "s" / name)


def test_a_signal_stops_all_that_are_trained_together(tmp_path, here, at_batch):
    at_batch(30, tell)
    assert sweep(tmp_path / "s", "--processes", 1, **TOGETHER) == 3
    states = {n: read_manifest(tmp_path / "s" / n) for n in TOGETHER["arms"]}
    assert {n: manifest["state"] for n, manifest in states.items()} == {
        "a": "stopped", "b": "done", "bad": "failed", "c": "stopped",
    }  # fmt: skip
    assert [steps(tmp_path / "s" / n / "checkpoints")[-1].name for n in "ac"] == ["step-31"] * 2
    assert variants.main(["resume", str(tmp_path / "s")]) == 2
    assert here == [["a", "b", "bad", "c"], ["a", "bad", "c"]]
    for name, count in (("a", 40), ("c", 55)):
        assert train(tmp_path / name, "--steps", count, *OFTEN, study=variants) == 0
        same(tmp_path / name, tmp_path / "s" / name)


def test_runs_that_stand_at_several_steps_go_on_in_parts(tmp_path, here, at_batch, monkeypatch):
    at_batch(30, tell)
    assert sweep(tmp_path / "s", "--processes", 1, **TOGETHER) == 3
    shutil.rmtree(tmp_path / "s" / "a" / "checkpoints")  # as if killed before its first
    parts = []
    monkeypatch.setattr(
        studycore.execution, "_train",
        lambda tasks, real=studycore.execution._train, **more: parts.append([t.folder.name for t in tasks])
        or real(tasks, **more),
    )  # fmt: skip
    assert variants.main(["resume", str(tmp_path / "s")]) == 2
    assert sorted(map(sorted, parts)) == [["a", "bad"], ["c"]]
    assert train(tmp_path / "a", "--steps", 40, *OFTEN, study=variants) == 0
    same(tmp_path / "a", tmp_path / "s" / "a")
