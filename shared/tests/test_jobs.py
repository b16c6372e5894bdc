"""Jobs: their names, in which order they may start, and workers that fail, are killed, are told to stop or lose their parent."""

import os
import re
import signal
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import pytest
import toy_jobs
from toy_jobs import wait_for

from studycore.bounds import PositiveFloat, check_bounds
from studycore.errors import UserError
from studycore.jobs import (
    MOST_TOGETHER,
    Ended,
    Schedule,
    base_of,
    config_of,
    grid_points,
    in_a_name,
    run_in_processes,
    seeds_from,
)
from studycore.stopping import StopFlag
from studycore.testing.runs import wait_until


def test_a_plan_is_every_arm_by_every_point_by_every_seed_in_order():
    arms = {"none": {"wd": 0.0}, "decay": {"wd": 1.0}}
    planned = grid_points({"p": 17}, {"lr": [1e-3, 3e-4], "p": [17, 113]}, arms, [4, 5], "p{p}_lr{lr}")
    expected = [
        (f"{arm}_p{p}_lr{text}_s{seed}", {"p": p, "wd": wd, "lr": lr, "seed": seed}, f"{arm}_p{p}_lr{text}")
        for (arm, wd), (lr, text), p, seed in product(
            (("none", 0.0), ("decay", 1.0)), ((1e-3, "1e-3"), (3e-4, "3e-4")), (17, 113), (4, 5)
        )
    ]
    assert [(run.name, run.values, run.arm) for run in planned] == expected


def test_names():
    grid = {"p": [17], "lr": [1e-3], "weight_decay": [1.0]}
    assert grid_points({}, grid, {}, [0], "p{p}_lr{lr}_wd{weight_decay}")[0].name == "p17_lr1e-3_wd1.0"
    assert [run.name for run in grid_points({}, {}, {}, [0])] == ["run"]
    assert [run.name for run in grid_points({}, {}, {}, [7, 8])] == ["run_s7", "run_s8"]
    assert [run.name for run in grid_points({}, {}, {"a": {}, "b": {}}, [0])] == ["a", "b"]
    assert grid_points({}, {}, {"a": {"seed": 9}}, [1])[0].values == {"seed": 1}
    # What an arm says holds against the base, and what the grid says against both.
    over = grid_points({"p": 1, "lr": 1, "wd": 1}, {"lr": [3]}, {"a": {"p": 2, "lr": 2}}, [0], "x")
    assert over[0].values == {"p": 2, "lr": 3, "wd": 1, "seed": 0}
    assert grid_points({}, {}, {}, []) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-3, "1e-3"), (3e-4, "3e-4"), (1.5e-5, "1.5e-5"), (1.0, "1.0"), (0.75, "0.75"), (0.01, "0.01"), (0.0, "0.0"),
        (1e4, "1e4"), (2.5e6, "2.5e6"), (-1e-3, "-1e-3"), (17, "17"), (100000, "100000"), ("add", "add"),
        (True, "True"),
        (None, "None"),
    ],
)  # fmt: skip
def test_numbers_are_written_shortly(value, text):
    assert in_a_name(value) == text


@pytest.mark.parametrize(
    ("base", "grid", "arms", "name", "words"),
    [
        ({}, {"lr": [1, 2]}, {}, "", ["called run; name every field that varies, for example 'lr{lr}'"]),
        ({}, {"lr": [1, 2], "p": [3, 5]}, {}, "lr{lr}", ["called lr1, lr2; ", "for example 'lr{lr}_p{p}'"]),
        ({}, {"lr": [1e-3, 1.00000001e-3]}, {}, "lr{lr}", ["lr1e-3"]),
        ({}, {"lr": [1, 1]}, {}, "lr{lr}", ["lr1"]),
        ({}, {"lr": []}, {}, "", ["grid.lr", "[]"]),
        ({}, {"lr": 3}, {}, "", ["grid.lr", "3"]),
        ({}, {"lr": "abc"}, {}, "", ["grid.lr", "'abc'"]),
        ({}, {}, {}, "lr{lr}", ["'lr{lr}'", "'lr'"]),
        ({}, {}, {}, "lr{", ["'lr{'", "template"]),
        ({}, {}, {}, "{}", ["'{}'", "template"]),
        ({"p": 1}, {}, {}, "{p.x}", ["'{p.x}'", "template"]),
        ({"p": 1}, {}, {}, "{p:d}", ["'{p:d}'", "template"]),
        ({"p": "../x"}, {}, {}, "{p}", ["'../x'"]),
        ({}, {}, {"a/b": {}}, "", ["'a/b'"]),
        ({}, {}, {"a b": {}}, "", ["'a b'"]),
        ({}, {}, {".a": {}}, "", ["'.a'"]),
        ({}, {}, {"figures": {}}, "", ["'figures'"]),
    ],
)  # fmt: skip
def test_plans_that_cannot_be_get_one_sentence(base, grid, arms, name, words):
    with pytest.raises(UserError) as caught:
        grid_points(base, grid, arms, [0], name)
    for word in words:
        assert word in str(caught.value)


@dataclass(frozen=True)
class Config:
    lr: PositiveFloat = 0.1
    sizes: list[int] = field(default_factory=lambda: [3])
    seed: int = 1
    __post_init__ = check_bounds


def test_a_plans_values_become_a_configuration_or_one_sentence():
    assert config_of(Config, {"lr": 1, "sizes": [4]}, "base") == Config(1.0, [4])
    for values, words in (
        ({"sped": 3}, "base: 'sped' is no field here; did you mean 'seed'?"),
        ({"lr": "fast"}, "base: lr: fast does not fit"),
        ({"lr": -1.0}, "base: lr: -1.0 does not fit; give a float above 0"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            config_of(Config, values, "base")


def test_seeds_are_counted_from_that_of_the_base():
    assert list(seeds_from(Config, {}, 2)) == [1, 2]
    assert list(seeds_from(Config, {"seed": 5, "other": 0}, 3)) == [5, 6, 7]
    with pytest.raises(UserError, match="seed: x does not fit"):
        seeds_from(Config, {"seed": "x"}, 1)


def test_the_base_of_several_runs_is_what_differs_from_the_defaults_and_the_seed():
    assert base_of(Config()) == {"seed": 1}
    assert base_of(Config(lr=0.2, sizes=[3], seed=4)) == {"lr": 0.2, "seed": 4}
    assert base_of(Config(sizes=[])) == {"sizes": [], "seed": 1}


HERE = Path(__file__).parent


def test_a_job_starts_when_what_it_needs_is_done():
    """What is no job of the schedule is done already."""
    schedule = Schedule({"a": (), "b": ("a",), "c": ("a", "b"), "d": ("elsewhere",)})
    assert [schedule.take() for _ in range(3)] == [["a"], ["d"], []]
    assert list(schedule.end("d", Ended("done"))) == [("d", Ended("done"))]
    assert schedule.take() == []
    list(schedule.end("a", Ended("done")))
    assert schedule.take() == ["b"]
    schedule.put_back(["b"])
    assert (schedule.waiting, schedule.take(), schedule.take()) == (["b", "c"], ["b"], [])
    list(schedule.end("b", Ended("done")))
    assert schedule.take() == ["c"]


def test_what_needs_a_failed_job_fails_with_it_and_nothing_else():
    schedule = Schedule({"a": (), "b": ("a",), "c": ("b", "a"), "d": (), "e": ("d",)})
    assert schedule.take() == ["a"]
    assert dict(schedule.end("a", Ended("failed", "no good"))) == {
        "a": Ended("failed", "no good"),
        "b": Ended("failed", "it needs a, which failed: no good"),
        "c": Ended("failed", "it needs b, which failed: it needs a, which failed: no good"),
    }
    assert [schedule.take(), schedule.take()] == [["d"], []]
    # What was stopped is done later: those that need it wait.
    assert list(schedule.end("d", Ended("stopped"))) == [("d", Ended("stopped"))]
    assert (schedule.waiting, schedule.take()) == (["e"], [])


def test_jobs_of_a_group_start_together_in_as_many_parts_as_there_are_processes():
    names = [f"{i}" for i in range(5)]
    groups = {"0": "x", "2": "x", "3": "x", "4": "y", "1": ""}
    assert [Schedule(dict.fromkeys(names, ()), groups).take() for _ in range(2)] == [["0", "2", "3"]] * 2
    schedule = Schedule(dict.fromkeys(names, ()), groups, processes=2)
    assert [schedule.take() for _ in range(5)] == [["0", "2"], ["1"], ["3"], ["4"], []]
    # Only those that may start do.
    schedule = Schedule({"0": (), "1": (), "2": ("1",), "3": ()}, groups)
    assert [schedule.take() for _ in range(3)] == [["0", "3"], ["1"], []]
    list(schedule.end("1", Ended("done")))
    assert schedule.take() == ["2"]
    many = [f"{i}" for i in range(3 * MOST_TOGETHER)]
    assert len(Schedule(dict.fromkeys(many, ()), dict.fromkeys(many, "x"), 2).take()) == MOST_TOGETHER


def test_each_value_is_given_to_the_work_with_those_of_its_group(tmp_path):
    """In one process: the group of two in one call, whose exception is that of both."""
    jobs = toy_jobs.jobs_of(tmp_path, ["fine", "fails", "fine"])
    schedule = Schedule(dict.fromkeys(jobs, ()), dict.fromkeys(["0-fine", "1-fails"], "both"))
    failed = Ended("failed", "ValueError: no good")
    assert dict(run_in_processes(toy_jobs.work, jobs, schedule, StopFlag(), 1)) == {
        "0-fine": failed, "1-fails": failed, "2-fine": Ended("done"),
    }  # fmt: skip
    raised = Schedule(dict.fromkeys(jobs, ()))
    assert list(run_in_processes(toy_jobs.work, jobs, raised, StopFlag("SIGTERM"), 1)) == []


def lines(process):
    out, errors = process.communicate(timeout=60)
    return out.splitlines(), errors


def alive(pid):
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def wait_until_gone(pids):
    wait_until(lambda: not any(map(alive, pids)), "the end of the workers", seconds=20)


def test_each_job_ends_in_its_own_way_and_stops_no_other(start, tmp_path):
    """One raises, one exits, one is killed once, one is killed each time; the others don't notice, nor run twice."""
    kinds = ["fine", "fails", "dies", "slow", "exits", "dies once", "slow", "fine"]
    process = start(HERE / "toy_jobs.py", "sweep", tmp_path, *kinds)
    out, errors = lines(process)
    assert process.returncode == 0, errors
    twice = "its process died twice without a word (out of memory?)"
    assert sorted(out) == [
        "0-fine: done: ", "1-fails: failed: ValueError: no good", f"2-dies: failed: {twice}", "3-slow: done: ",
        "4-exits: failed: SystemExit: 5", "5-dies once: done: ", "6-slow: done: ", "7-fine: done: ",
    ]  # fmt: skip
    begun = [len((tmp_path / f"{i}").read_text().splitlines()) for i in range(8)]
    assert begun == [1, 1, 2, 1, 1, 2, 1, 1]
    assert errors.splitlines() == [
        f"the process of {name} died; it goes on from its checkpoint" for name in ("2-dies", "5-dies once")
    ]


@pytest.mark.parametrize("how", ["SIGTERM", "Ctrl-C"])
def test_a_stop_reaches_every_worker_and_begins_nothing_new(start, tmp_path, how):
    """Also the worker that does not listen yet, and one that the signal reaches from elsewhere as well."""
    process = start(
        HERE / "toy_jobs.py", "sweep", tmp_path, "waits", "is deaf at first", "fine", start_new_session=True
    )
    wait_for([tmp_path / "0", tmp_path / "1"])
    workers = [int((tmp_path / name).read_text()) for name in "01"]
    if how == "Ctrl-C":  # the terminal signals the whole foreground group
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
        os.kill(workers[0], signal.SIGTERM)
    out, errors = lines(process)
    assert process.returncode == 3, errors
    assert sorted(out) == ["0-waits: stopped: saved", "1-is deaf at first: stopped: saved"]
    assert (tmp_path / "0.saved").exists()
    assert not (tmp_path / "2").exists()
    assert "Traceback" not in errors
    wait_until_gone(workers)


def test_workers_save_and_end_when_their_parent_is_killed(start, tmp_path):
    process = start(HERE / "toy_jobs.py", "sweep", tmp_path, "fine", "waits")
    wait_for([tmp_path / "0", tmp_path / "1"])
    time.sleep(0.5)  # the first worker is idle by now
    process.kill()
    process.wait()
    wait_until_gone([int((tmp_path / name).read_text()) for name in "01"])
    assert (tmp_path / "1.saved").exists()


def test_giving_up_midway_stops_the_workers(tmp_path):
    jobs = {"a": ("fine", str(tmp_path / "0")), "b": ("waits", str(tmp_path / "1"))}
    running = run_in_processes(toy_jobs.work, jobs, toy_jobs.alone(jobs), StopFlag(), 2)
    assert next(running)[0] == "a"
    wait_for([tmp_path / "1"])
    running.close()
    assert (tmp_path / "1.saved").exists()


def test_a_reader_that_has_gone_away_ends_no_worker(tmp_path):
    """As `2>&1 | head` does of a sweep: its workers write to the same pipe."""
    read, write = os.pipe()
    os.close(read)
    kept = [(number, os.dup(number)) for number in (1, 2)]
    jobs = toy_jobs.jobs_of(tmp_path, ["prints", "prints", "done"])
    try:
        for number, _ in kept:
            os.dup2(write, number)
        ends = dict(run_in_processes(toy_jobs.work, jobs, toy_jobs.alone(jobs), StopFlag(), 1))
    finally:
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)
        os.close(write)
    assert ends == dict.fromkeys(jobs, Ended("done", ""))
