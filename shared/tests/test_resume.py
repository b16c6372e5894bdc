"""A run whose process is killed and that goes on in another one equals one that is not, to the bit."""

import json
import shutil
import signal
import time

import pytest
import toy
from safetensors.torch import load_file

from studycore.checkpoints import load_checkpoint, read_index, steps
from studycore.metrics import read_rows
from studycore.runs import read_manifest, state_of


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    toy.train(folder)
    return folder


def same(one, other):
    """Weights, momenta, probe, the loop's numbers and every row."""
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert (one / "history.parquet").read_bytes() == (other / "history.parquet").read_bytes()
    assert read_index(one / "checkpoints") == read_index(other / "checkpoints")
    for path in steps(one / "checkpoints"):
        for name in ("model.safetensors", "optimizer.safetensors", "probe.safetensors", "state.json"):
            assert (path / name).read_bytes() == (other / "checkpoints" / path.name / name).read_bytes()


def wait_for_rows(folder, count):
    deadline = time.monotonic() + 60
    while len(read_rows(folder / "metrics.jsonl")) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=str)
def test_a_killed_run_resumes_to_the_bit(tmp_path, straight, start, number):
    folder = tmp_path / "run"
    process = start("toy.py", "train", folder, 0.01)
    wait_for_rows(folder, 50)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    manifest = read_manifest(folder)
    rows = len(read_rows(folder / "metrics.jsonl"))
    newest = load_checkpoint(steps(folder / "checkpoints")[-1]).step
    assert 50 <= rows < 200
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert (manifest["state"], state_of(folder, manifest)) == ("running", "interrupted")
        assert newest == (rows - 1) // 20 * 20 or newest == (rows - 1) // 20 * 20 - 20  # killed while it was saved
        with open(folder / "metrics.jsonl", "a") as file:
            file.write('{"step": 999, "lo')  # torn
    else:
        assert process.returncode == 3, errors
        assert errors == f"studycore: stopped by {number.name} at step {newest} and saved\n"
        assert (manifest["state"], newest) == ("stopped", rows - 1)
        assert number.name in manifest["reason"]
    toy.resume_run(folder)
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl")] == list(range(201))
    manifest = read_manifest(folder)
    assert (manifest["state"], manifest["pid"]) == ("done", None)
    if number == signal.SIGKILL:
        same(straight, folder)
    else:  # the stop left a checkpoint that the other run has not
        assert (straight / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
        last = read_index(straight / "checkpoints")["last"]
        for name in ("model", "optimizer"):
            a, b = (load_file(f / "checkpoints" / last / f"{name}.safetensors") for f in (straight, folder))
            assert all(a[key].equal(b[key]) for key in a)


def test_resuming_twice_and_from_the_checkpoint_before(tmp_path, straight, start, capsys):
    folder = tmp_path / "run"
    process = start("toy.py", "train", folder, 0.01)
    wait_for_rows(folder, 65)
    process.kill()
    process.wait()
    (steps(folder / "checkpoints")[-1] / "model.safetensors").write_bytes(b"damaged")
    toy.resume_run(folder)
    assert "model.safetensors: its checksum differs" in capsys.readouterr().err
    same(straight, folder)
    toy.resume_run(folder)
    assert capsys.readouterr().out == "is finished\n"
    same(straight, folder)


def test_without_a_checkpoint_it_starts_at_step_0(tmp_path, straight):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    shutil.rmtree(folder / "checkpoints")
    toy.train(folder)
    same(straight, folder)


def test_a_fault_marks_the_run_as_failed_and_it_can_go_on(tmp_path, straight, monkeypatch):
    folder = tmp_path / "run"
    real = toy.save

    def fails(root, step, *args, **kwargs):
        if step == 60:
            raise OSError("disk full")
        return real(root, step, *args, **kwargs)

    monkeypatch.setattr(toy, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        toy.train(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["state"], manifest["reason"]) == ("failed", "OSError: disk full")
    monkeypatch.setattr(toy, "save", real)
    toy.train(folder)
    same(straight, folder)
