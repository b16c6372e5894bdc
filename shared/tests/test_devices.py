"""Devices, threads, and one process per device."""

import os
import platform
import signal
import subprocess
import sys

import pytest
import torch

from studycore import devices
from studycore.errors import UserError


@pytest.fixture
def launched(monkeypatch):
    """The (module, arguments, processes) that would have been started; each start exits with 0."""
    calls = []
    monkeypatch.setattr(devices, "_launch", lambda *call: calls.append(call) or 0)
    for name in ("LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_the_device_asked_for_or_the_best_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert devices.choose_device("cpu") == ("cpu", "asked for")
    assert devices.choose_device("auto") == ("cpu", "no GPU is there")
    for name in ("cuda", "mps", "tpu", "", "cuda:0"):
        with pytest.raises(UserError, match=rf"--device: '{name}' is not there; this machine has cpu \(or use auto\)"):
            devices.choose_device(name)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.choose_device("auto")[0] == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    assert devices.choose_device("auto") == ("cuda", "a CUDA device is there: a card")
    assert devices.choose_device("cuda")[0] == "cuda"


def test_several_devices_get_a_process_each(launched, monkeypatch):
    for count, asked, device, processes in (
        (4, None, "auto", 4),
        (4, None, "cuda", 4),
        (4, 2, "auto", 2),
        (0, 3, "cpu", 3),
    ):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        with pytest.raises(SystemExit) as ended:
            devices.relaunch("toy", ["train", "--lr", "1 2"], asked, device)
        assert ended.value.code == 0
        assert launched.pop() == ("toy", ["train", "--lr", "1 2"], processes)


def test_one_process_goes_on_as_it_is(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    devices.relaunch("toy", [], None, "cpu")
    devices.relaunch("toy", [], 1, "cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    devices.relaunch("toy", [], None, "cuda")
    assert launched == []
    for count in (0, -2):
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        with pytest.raises(UserError, match=f"--num-processes: {count} is too few; give at least 1"):
            devices.relaunch("toy", [], count, "cpu")


TOY = """
import os, sys, time
from studycore.cli import exit_code
from studycore.devices import relaunch
from studycore.errors import Stopped, UserError
from studycore.stopping import stop_on_signals

def act():
    relaunch("toy", sys.argv[1:], 2, "cpu")
    if sys.argv[1] == "mistake":
        raise UserError("lr: -1 must be above 0")
    if sys.argv[1] == "fault" and os.environ["RANK"] == "1":
        raise RuntimeError("a fault")
    if sys.argv[1] == "wait":
        with stop_on_signals() as stop:
            print("ready", flush=True)
            while not stop:
                time.sleep(0.05)
            raise Stopped(f"stopped by {stop.name} and saved")

sys.exit(exit_code("toy", act))
"""


@pytest.mark.parametrize(("what", "code", "words"), [
    ("good", 0, []),
    ("mistake", 2, ["toy: error: lr: -1 must be above 0"]),
    ("fault", 1, ["RuntimeError: a fault"]),
    ("wait", 3, ["toy: stopped by SIGTERM and saved"]),
])  # fmt: skip
def test_several_processes_exit_as_one_would(tmp_path, what, code, words):
    (tmp_path / "toy.py").write_text(TOY)
    process = subprocess.Popen(
        [sys.executable, "toy.py", what], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    if what == "wait":
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "ready\n"]
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert all(errors.count(word) == 1 for word in words), errors
    if code in (0, 2, 3):
        assert errors.strip().splitlines() == words


def test_threads(monkeypatch):
    assert devices.set_threads(None) == torch.get_num_threads()
    assert devices.set_threads(1) == 1
    for count in (0, -1):
        with pytest.raises(UserError, match=f"--threads: {count} is too few"):
            devices.set_threads(count)
    assert 1 <= devices.cores() <= os.cpu_count()


def test_what_the_bitwise_promise_depends_on(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    described = devices.describe("cpu")
    assert (described["device"], described["threads"], described["world_size"]) == ("cpu", 1, 3)
    assert described["name"]
    assert devices.versions("torch", "no-such-library") == {
        "python": platform.python_version(), "torch": torch.__version__, "no-such-library": "not installed",
    }  # fmt: skip


def test_what_cannot_fit_is_refused_with_its_size():
    devices.check_memory(2**20, "numbers", "take fewer")
    with pytest.raises(UserError, match=r"^numbers take 8,192 GiB of memory and \d+ GiB are free; take fewer$"):
        devices.check_memory(2**43, "numbers", "take fewer")
