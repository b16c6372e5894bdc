"""Shared by the tests: one thread, a run folder, and the toy study beside this file."""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from toy_study import train as toy_train
from toy_study.cli import STUDY

import studycore.execution
from studycore.run_folder import create_run
from studycore.testing.runs import running

torch.set_num_threads(1)
HERE = Path(__file__).parent


@pytest.fixture
def new_run(tmp_path):
    """Makes a run of the toy study in tmp_path/<name>, open for writing until the test ends."""
    runs = []

    def make(name="run", **changes):
        arguments = {
            "study": STUDY, "verb": "train", "config": {"lr": 0.1, "seed": 3}, "argv": ["toy", "train"],
            "seeds": [3], "devices": {"device": "cpu", "threads": 1, "world_size": 1}, "data": {"numbers": "abc"},
        }  # fmt: skip
        runs.append(create_run(tmp_path / name, **(arguments | changes)))
        return runs[-1]

    yield make
    for run in runs:
        run.close()


@pytest.fixture
def toy_on_path(monkeypatch):
    """Processes that the test starts find what lies in this folder."""
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{os.environ.get('PYTHONPATH', '')}")


@pytest.fixture
def start(toy_on_path):
    """Starts `python ARGUMENTS`; whatever still runs when the test ends is killed."""
    with ExitStack() as stack:
        yield lambda *arguments, **more: stack.enter_context(running("-W", "error", *arguments, **more))


@pytest.fixture
def here(monkeypatch):
    """Jobs are done in this process, so that tests are quick and may interfere; what was done in which order."""
    done = []

    def engine(options, device, processes, threads):
        def run(work, values, schedule, stop):
            while not stop and (names := schedule.take()):
                done.append(names)
                for name, ended in zip(names, work([values[name] for name in names]), strict=True):
                    yield from schedule.end(name, ended)

        return run

    monkeypatch.setattr(studycore.execution, "job_runner", engine)
    return done


@pytest.fixture
def at_batch(monkeypatch):
    """Has `act` done when the toy study draws the batch of `step`, once."""

    def arrange(step, act):
        real, done = toy_train.points, []

        def points(config, number, *purpose):
            if purpose == ("batch", step) and not done:
                done.append(step)
                act()
            return real(config, number, *purpose)

        monkeypatch.setattr(toy_train, "points", points)

    return arrange
