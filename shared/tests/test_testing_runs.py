"""What the tests of studies use for runs fails when it should: each check is broken once."""

import json
import shutil
import signal
import sys

import pytest
from toy_study.cli import main

from studycore.run_folder import read_manifest
from studycore.testing.runs import cut_off, output_of, refused, running, same, wait_until

CPU = ("--device", "cpu", "--threads", "1")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A short run."""
    folder = tmp_path_factory.mktemp("one") / "run"
    assert main(["train", *CPU, "--steps", "10", "--checkpoint-every", "5", "--output-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def other(one, tmp_path):
    """A copy of it."""
    return shutil.copytree(one, tmp_path / "other")


@pytest.mark.parametrize(
    "name",
    ["metrics.jsonl", "history.parquet", "arrays.safetensors", "results.json", "claims.json", "config.yaml", "checkpoints/index.json"]
    + [f"checkpoints/step-10/{n}" for n in ("model.safetensors", "optimizer.safetensors", "probe.safetensors", "state.json")],
)  # fmt: skip
def test_a_byte_makes_two_runs_different(one, other, name):
    same(one, other)
    (other / name).write_bytes((other / name).read_bytes().replace(b"\n", b"\n\n", 1) + b" ")
    with pytest.raises(AssertionError, match=name):
        same(one, other)
    shutil.copy(one / name, other / name)
    same(one, other)
    (other / name).unlink()
    with pytest.raises((AssertionError, FileNotFoundError), match=name):
        same(one, other)


def test_the_best_checkpoint_is_compared_as_the_last_is_and_no_other(one, other):
    weights = (other / "checkpoints/step-5/model.safetensors").read_bytes()
    (other / "checkpoints/step-5/model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    same(one, other)
    for folder in (one, other):
        index = json.loads((folder / "checkpoints/index.json").read_text())
        (folder / "checkpoints/index.json").write_text(json.dumps(index | {"best": "step-5"}))
    with pytest.raises(AssertionError, match=r"step-5/model\.safetensors"):
        same(one, other)


def test_runs_that_ended_otherwise_or_not_at_all_are_not_the_same(one, other):
    manifest = read_manifest(other)
    for changes, compared in (
        ({"reason": "patience"}, one),
        ({"state": "stopped"}, one),
        ({"state": "stopped"}, other),
    ):
        (other / "manifest.json").write_text(json.dumps(manifest | changes))
        with pytest.raises(AssertionError, match="ended as"):
            same(compared, other)


def test_times_are_left_out_and_nothing_else(one, other):
    rows = [
        json.loads(line) | {"seconds": i} for i, line in enumerate((other / "metrics.jsonl").read_text().splitlines())
    ]
    (other / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = json.loads((other / "results.json").read_text())
    (other / "results.json").write_text(json.dumps(results | {"metrics": results["metrics"] | {"seconds": 3}}))
    same(one, other, times=["seconds"])
    with pytest.raises(AssertionError, match="differs"):
        same(one, other)
    rows[1]["loss"] += 1e-9
    (other / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(AssertionError, match=r"metrics\.jsonl"):
        same(one, other, times=["seconds"])


def test_processes_that_do_not_do_what_is_awaited_are_named_with_what_they_said(tmp_path):
    fails = ("-c", "import sys; print('no good', file=sys.stderr); sys.exit(2)")
    assert output_of("-c", "print('good')") == "good\n"
    with pytest.raises(AssertionError, match="ended with 2: no good"):
        output_of(*fails)
    with pytest.raises(AssertionError, match=r"it ended before 1 rows in .*no good"):
        cut_off(tmp_path, 1, signal.SIGTERM, *fails)
    late = pytest.raises(AssertionError, match=r"0\.1 seconds have not seen the end")
    with running("-c", "import time; time.sleep(60)") as process, late:
        wait_until(lambda: False, "the end", process, seconds=0.1)
    assert process.returncode == -signal.SIGKILL


def test_a_process_that_a_signal_does_not_end_as_it_should_is_found(one):
    """One that takes SIGTERM as its end has not saved; one that is killed leaves no run that is done."""
    for number, found in ((signal.SIGTERM, r"\(-15, 'done'\)"), (signal.SIGKILL, r"\(-9, 'done'\)")):
        with pytest.raises(AssertionError, match=found):
            cut_off(one, 2, number, "-c", "import time; time.sleep(60)")


def test_what_is_no_refusal_is_found(capsys):
    def said(*lines, code=2):
        def main(arguments):
            print(*lines, sep="\n", file=sys.stderr)
            return code

        return main

    assert refused(said("toy: error: lr: 3"), ["train"], capsys) == "toy: error: lr: 3"
    for lacking in (said("toy: error: lr: 3", code=1), said("Traceback", "toy: error: lr: 3"), said("lr: 3"), said()):
        with pytest.raises(AssertionError):
            refused(lacking, ["train"], capsys)
