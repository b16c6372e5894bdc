"""Devices, threads, and one process per device."""

import os
import platform
import sys

import pytest
import torch

from studycore import devices
from studycore.errors import UserError


class Replaced(Exception):
    pass


@pytest.fixture
def execv(monkeypatch):
    """What the process would have become."""
    calls = []

    def record(path, argv):
        calls.append((path, argv))
        raise Replaced

    monkeypatch.setattr(os, "execv", record)
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


def test_several_devices_get_a_process_each(execv, monkeypatch):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    for count, asked, device, processes in (
        (4, None, "auto", 4),
        (4, None, "cuda", 4),
        (4, 2, "auto", 2),
        (0, 3, "cpu", 3),
    ):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        with pytest.raises(Replaced):
            devices.relaunch("toy", ["train", "--lr", "1 2"], asked, device)
        expected = [*launcher, f"--nproc-per-node={processes}", "-m", "toy", "train", "--lr", "1 2"]
        assert execv.pop() == (sys.executable, expected)


def test_one_process_goes_on_as_it_is(execv, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    devices.relaunch("toy", [], None, "cpu")
    devices.relaunch("toy", [], 1, "cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    devices.relaunch("toy", [], None, "cuda")
    assert execv == []
    for count in (0, -2):
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        with pytest.raises(UserError, match=f"--num-processes: {count} is too few; give at least 1"):
            devices.relaunch("toy", [], count, "cpu")


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
