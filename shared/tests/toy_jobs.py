"""Jobs of a sweep that end in every way: `toy_jobs.py sweep FOLDER KIND...`. Without torch: quick."""

import os
import signal
import sys
import time
from pathlib import Path

from studycore.cli import Study, main
from studycore.errors import Stopped, UserError
from studycore.stopping import stop_on_signals
from studycore.sweep import Done, run_in_processes


def fail_verb(argv):
    raise {"user": UserError("lr: 3 is wrong; give 2"), "stop": Stopped("stopped"), "fault": KeyError("x")}[argv[0]]


def job(value):
    """A job of a sweep: `kind` says how it ends. It leaves a line in its file whenever it begins."""
    kind, file = value
    with open(file, "a") as log:
        log.write(f"{os.getpid()}\n")
    if kind == "fails":
        raise ValueError("no good")
    if kind == "exits":
        sys.exit(5)
    if kind == "dies" or (kind == "dies once" and len(Path(file).read_text().splitlines()) == 1):
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "is deaf at first":
        time.sleep(1.5)
    if kind in ("waits", "is deaf at first"):
        with stop_on_signals() as stop:
            for _ in range(3000):
                if stop:
                    time.sleep(0.5)  # saving takes a while, in which the worker may be told again
                    Path(f"{file}.saved").write_text(str(stop.name))
                    return Done("stopped", "saved")
                time.sleep(0.01)
    if kind == "slow":
        time.sleep(1.0)
    return Done("done", "")


def sweep_verb(argv):
    """`sweep FOLDER KIND...`: one job of each kind on two workers."""
    jobs = {f"{i}-{kind}": (kind, str(Path(argv[0]) / f"{i}")) for i, kind in enumerate(argv[1:])}
    with stop_on_signals() as stop:
        for name, done in run_in_processes(job, jobs, 2, stop):
            print(f"{name}: {done.state}: {done.reason}", flush=True)
    if stop:
        raise Stopped("sweep stopped")


VERBS = {"sweep": ("run jobs", "toy_jobs:sweep_verb"), "fail": ("fail", "toy_jobs:fail_verb")}

if __name__ == "__main__":
    sys.exit(main(Study("studycore", "studycore", "", VERBS, "toy:report_run", "toy:resume_run")))
