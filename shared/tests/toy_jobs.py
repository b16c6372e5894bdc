"""Jobs of a sweep that end in every way: `toy_jobs.py sweep FOLDER KIND...`. Without torch: quick."""

import os
import signal
import sys
import time
from pathlib import Path

from studycore.cli import main
from studycore.errors import Stopped, UserError
from studycore.jobs import Ended, Schedule, run_in_processes
from studycore.ray_engine import run_on_ray
from studycore.stopping import stop_on_signals
from studycore.study import Study, Verb
from studycore.testing.runs import wait_until


def wait_for(files):
    """Until each file is there and not empty."""
    written = lambda file: file.exists() and file.read_text().endswith("\n")  # noqa: E731
    wait_until(lambda: all(map(written, files)), f"lines in {files}", seconds=60)


def fail_verb(argv):
    raise {"user": UserError("lr: 3 is wrong; give 2"), "stop": Stopped("stopped"), "fault": KeyError("x")}[argv[0]]


def work(values):
    """Jobs that start together: an exception of one is that of all."""
    return [job(value) for value in values]


def job(value):
    """A job of a sweep: `kind` says how it ends. It leaves a line in its file whenever it begins."""
    kind, file = value
    with open(file, "a") as log:
        log.write(f"{os.getpid()}\n")
    if kind == "prints":
        print("a line", flush=True)
        print("a warning", file=sys.stderr, flush=True)
    if kind == "fails":
        raise ValueError("no good")
    if kind == "exits":
        sys.exit(5)
    if kind == "dies" or (kind == "dies once" and len(Path(file).read_text().splitlines()) == 1):
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "is deaf at first":
        time.sleep(1.5)
    if kind in ("waits", "is deaf at first") or (
        kind == "waits once" and len(Path(file).read_text().splitlines()) == 1
    ):
        with stop_on_signals() as stop:
            for _ in range(3000):
                if stop:
                    time.sleep(0.5)  # saving takes a while, in which the worker may be told again
                    Path(f"{file}.saved").write_text(str(stop.name))
                    return Ended("stopped", "saved")
                time.sleep(0.01)
    if kind == "until":
        while not Path(file).with_name("go").exists():
            time.sleep(0.01)
    if kind == "slow":
        time.sleep(1.0)
    return Ended("done", "")


def jobs_of(folder, kinds):
    return {f"{i}-{kind}": (kind, str(Path(folder) / f"{i}")) for i, kind in enumerate(kinds)}


def alone(jobs):
    """A schedule of jobs that need nothing."""
    return Schedule(dict.fromkeys(jobs, ()))


def sweep_verb(argv):
    """`sweep FOLDER KIND...`: one job of each kind on two workers; `sweep ray FOLDER KIND...`: on Ray."""
    with stop_on_signals() as stop:
        if argv[0] == "ray":
            jobs = jobs_of(argv[1], argv[2:])
            running = run_on_ray(work, jobs, alone(jobs), stop, None, at_once=2)
        else:
            jobs = jobs_of(argv[0], argv[1:])
            running = run_in_processes(work, jobs, alone(jobs), stop, 2)
        for name, done in running:
            print(f"{name}: {done.state}: {done.reason}", flush=True)
    if stop:
        raise Stopped("sweep stopped")


VERBS = {"sweep": Verb("run jobs", "toy_jobs:sweep_verb"), "fail": Verb("fail", "toy_jobs:fail_verb")}
STUDY = Study("studycore", "studycore", "studycore", "Does it end?", VERBS, claims="", columns="", report="")

if __name__ == "__main__":
    sys.exit(main(STUDY))
