"""Sweeps: planning runs from a grid, running them over processes, and picking up where they were left."""

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import Any

from studycore.errors import UserError
from studycore.stopping import StopFlag


@dataclass(frozen=True)
class Planned:
    """One run of a sweep."""

    name: str
    """Experiment name, and folder name under the sweep's folder."""
    values: dict[str, Any]
    """The fields that differ from the defaults."""
    arm: str
    """The name without the seed."""
    seed: int


def plan(
    base: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    arms: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    name: str = "",
) -> list[Planned]:
    """Every arm x every point of the grid x every seed, in that order.

    `name` is a template over the fields, such as "p{p}_lr{lr}_wd{weight_decay}"; numbers are written shortly (1e-3,
    3e-4, 1.0). Arms' names come first; "_s<seed>" is added when there are several seeds. UserError for an empty
    grid value or for names that are not distinct.
    """
    planned = []
    for field, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise UserError(f"grid.{field}: {choices!r} is no list of values; give at least one")
    for arm, changes in (arms or {"": {}}).items():
        for point in itertools.product(*grid.values()):
            values = {**base, **changes, **dict(zip(grid, point, strict=True))}
            try:
                part = name.format(**{key: short(value) for key, value in values.items()})
            except KeyError as error:
                raise UserError(f"name: '{name}' uses {error}, which the sweep does not set; name fields of base or grid") from None
            label = "_".join(piece for piece in (arm, part) if piece) or "run"
            for seed in seeds:
                full = f"{label}_s{seed}" if len(seeds) > 1 else label
                planned.append(Planned(full, {**values, "seed": seed}, label, seed))
    names = [run.name for run in planned]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"name: several runs would be called {', '.join(doubled)}; name every field that varies")
    return planned


def short(value: Any) -> str:
    """0.001 as 1e-3, 1.0 as 1.0, text as it is."""
    if not isinstance(value, float) or value == 0 or 0.01 <= abs(value) < 1e4:
        return str(value)
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


@dataclass(frozen=True)
class Done:
    """How a job ended: "done", "stopped" or "failed", with the reason."""

    state: str
    reason: str


def run_in_processes(
    job: Callable[[Any], Done], jobs: Mapping[str, Any], processes: int, stop: StopFlag
) -> Iterator[tuple[str, Done]]:
    """Yields (name, how it ended) as jobs finish; `job` is called in one of `processes` workers with the job's value.

    A worker that dies (kill -9, out of memory) costs only the jobs that it held: they are run again once. A raised `stop`
    is passed to the workers, which save and end; jobs not begun are not started.
    """
    todo, deaths = dict(jobs), dict.fromkeys(jobs, 0)
    while todo and not stop:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_start_worker) as pool:
            # One at a time per worker, so that a stop or a death finds few jobs begun.
            waiting, running, told = list(todo.items()), {}, False
            try:
                while waiting or running:
                    while waiting and len(running) < processes and not stop:
                        name, value = waiting.pop(0)
                        running[pool.submit(_guarded, job, value)] = name
                    if not running:
                        break
                    finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                    if stop and not told:
                        told = True
                        for pid in list(pool._processes or {}):
                            _tell(pid)
                    for future in finished:
                        name = running[future]
                        result = future.result()
                        del running[future], todo[name]
                        yield name, result
                    if stop and not running:
                        return
            except BrokenProcessPool:
                for name in running.values():
                    deaths[name] += 1
                    if deaths[name] > 1:
                        del todo[name]
                        yield name, Done("failed", "its process died twice without a word (out of memory?)")
                print("a worker process died; its runs go on from their checkpoints", file=sys.stderr)


def _tell(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return


def _start_worker() -> None:
    """A worker hears of Ctrl-C through its parent alone, and stops as if told to when the parent dies."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


_busy = threading.Lock()


def _guarded(job: Callable[[Any], Done], value: Any) -> Done:
    with _busy:
        return job(value)


def _follow_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    with _busy:  # the job has saved and ended; nobody is left to hand it on to
        os._exit(3)
