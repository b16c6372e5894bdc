"""Sweeps: planning runs from a grid, running them over processes, and picking up where they were left."""

import itertools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import Any, Protocol

from studycore.devices import cores
from studycore.errors import UserError
from studycore.stopping import StopFlag, stop_on_signals

RESERVED = ("checkpoints", "figures", "history")
"""Folders that a sweep has for itself."""


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
    grid value, and for names that are not distinct or cannot be folders of a sweep.
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
                raise UserError(
                    f"name: '{name}' uses {error}, which the sweep does not set; name fields of base or grid"
                ) from None
            except (ValueError, IndexError, AttributeError) as error:
                raise UserError(
                    f"name: '{name}' is no template ({error}); write fields in braces, such as lr{{lr}}"
                ) from None
            label = "_".join(piece for piece in (arm, part) if piece) or "run"
            for seed in seeds:
                full = f"{label}_s{seed}" if len(seeds) > 1 else label
                planned.append(Planned(full, {**values, "seed": seed}, label, seed))
    names = [run.name for run in planned]
    if unfit := [name for name in names if not re.fullmatch(r"\w[\w.,+=@-]*", name) or name in RESERVED]:
        raise UserError(
            f"name: '{unfit[0]}' cannot be a run's folder; use letters, digits and _.,+=@- in names of arms and runs"
        )
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


class Engine(Protocol):
    """The flags of a sweep that say where its jobs run."""

    @property
    def engine(self) -> str: ...
    @property
    def address(self) -> str | None: ...
    @property
    def processes(self) -> int | None: ...
    @property
    def threads(self) -> int | None: ...


Runner = Callable[[Callable[[Any], Done], Mapping[str, Any], StopFlag], Iterator[tuple[str, Done]]]
"""Takes a job, its values by name and the stop flag; yields (name, how it ended) as run_in_processes does."""


def share_out(options: Engine, device: str, jobs: int) -> tuple[int, int | None]:
    """(jobs at the same time, threads of each), where the flags leave them open: None is torch's own choice.

    On this machine one job per core, or one on a GPU; on a cluster one per core, or per GPU, of all its machines.
    UserError for an address without Ray, and for a cluster that cannot be used.
    """
    if options.engine != "ray" and options.address is not None:
        raise UserError(f"--address: '{options.address}' is for --engine ray; give that too, or leave the address out")
    if options.engine == "ray":
        from studycore.ray_engine import load, slots

        load()
        if options.address is not None:
            there = slots(options.address, *_needs(device, options.threads))
            threads = options.threads or (1 if device == "cpu" else None)
            return options.processes or max(1, min(there, jobs)), threads
    processes = options.processes or (max(1, min(cores(), jobs)) if device == "cpu" else 1)
    return processes, options.threads or (max(1, cores() // processes) if device == "cpu" else None)


def runner(options: Engine, device: str, processes: int, threads: int | None) -> Runner:
    """What runs the jobs: processes of this machine, or Ray (studycore.ray_engine)."""
    if options.engine != "ray":
        return lambda job, jobs, stop: run_in_processes(job, jobs, processes, stop)
    from studycore.ray_engine import run_on_ray

    # A cluster may grow: what is not asked for is not bounded there.
    at_once = processes if options.address is None else options.processes
    cpus, gpus = _needs(device, threads)
    return lambda job, jobs, stop: run_on_ray(job, jobs, options.address, stop, at_once, cpus, gpus)


def _needs(device: str, threads: int | None) -> tuple[int, int]:
    """Cores and GPUs of one job."""
    return threads or 1, int(device == "cuda")


def run_in_processes(
    job: Callable[[Any], Done], jobs: Mapping[str, Any], processes: int, stop: StopFlag
) -> Iterator[tuple[str, Done]]:
    """Yields (name, how it ended) as jobs finish; `job` is called in one of `processes` workers with the job's value.

    A job that raises is failed. A worker that dies (kill -9, out of memory) costs only its job, which is run again once. A
    raised `stop` is passed to the workers, which save and end; jobs not begun are not started, nor yielded.
    """
    waiting, deaths = list(jobs), dict.fromkeys(jobs, 0)
    # One pool per worker: when a worker dies, its pool ends all workers that it has.
    idle: list[ProcessPoolExecutor] = []
    running: dict[Future[Done], tuple[str, ProcessPoolExecutor]] = {}
    told = False
    try:
        while running or (waiting and not stop):
            while waiting and len(running) < processes and not stop:
                pool = idle.pop() if idle else ProcessPoolExecutor(1, get_context("spawn"), _start_worker)
                try:
                    running[pool.submit(_guarded, job, jobs[waiting[0]])] = waiting[0], pool
                except BrokenProcessPool:  # its worker died while it was idle
                    pool.shutdown()
                    continue
                del waiting[0]
            finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            if stop and not told:
                told = True
                _tell(running.values())
            for future in finished:
                name, pool = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    pool.shutdown()
                    deaths[name] += 1
                    if stop:
                        continue
                    if deaths[name] == 1:
                        waiting.insert(0, name)
                        print(f"the process of {name} died; it goes on from its checkpoint", file=sys.stderr)
                        continue
                    yield name, Done("failed", "its process died twice without a word (out of memory?)")
                else:
                    idle.append(pool)
                    yield name, Done("failed", f"{type(error).__name__}: {error}") if error else future.result()
    finally:
        _tell(running.values())  # when the caller gives up midway; else nothing is running
        for pool in [*idle, *(pool for _, pool in running.values())]:
            pool.shutdown()


def _tell(running: Iterable[tuple[str, ProcessPoolExecutor]]) -> None:
    for pid in [pid for _, pool in running for pid in pool._processes or {}]:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue


_busy = threading.Lock()
_heard = ExitStack()


def _start_worker() -> None:
    """A worker stops when it is told to, and as if told to when its parent dies.

    The flag is held for the worker's life, so that a signal between two jobs, or before a job listens, is not lost. A
    worker often hears twice: Ctrl-C and some schedulers signal all processes, and then its parent does.
    """
    flag = _heard.enter_context(stop_on_signals(patient=True))
    threading.Thread(target=_follow_parent, args=(flag,), daemon=True).start()


def _guarded(job: Callable[[Any], Done], value: Any) -> Done:
    with _busy:
        return job(value)


def _follow_parent(flag: StopFlag) -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    flag.name = flag.name or "the end of its parent"
    with _busy:  # the job has saved and ended; nobody is left to hand it on to
        os._exit(3)
