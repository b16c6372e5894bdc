"""Jobs: runs that need one another. Planning them, the order in which they may start, and processes that make them."""

import dataclasses
import itertools
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from typing import Any

from studycore.configuration import check_types, to_dict
from studycore.errors import UserError
from studycore.stopping import StopFlag, stop_on_signals
from studycore.terminal import steady_output

MOST_TOGETHER = 64
"""Jobs that are trained together at most."""
RESERVED = ("checkpoints", "figures", "history")
"""Folders that a run has for itself."""


@dataclass(frozen=True)
class Job:
    """One run among many."""

    name: str
    """Folder under that of the whole."""
    config: Any
    needs: tuple[str, ...] = ()
    """Names of jobs that must be done first; the run finds their folders in `run.needs`."""
    arm: str = ""
    """What is compared: jobs of one arm differ in their seed alone."""
    verb: str = ""
    """Of the study, with one run; by default the one that the plan's verb names."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Columns of the table of runs, such as a phase."""
    keep_checkpoints: bool = True
    """Whether its checkpoints stay when it is done."""
    together: str = ""
    """Jobs with the same word here may be trained by one call of the verb's `train_together`."""
    shared: bool = False
    """Lies in runs/<study>/cache instead, where every plan with the same configuration and needs finds it done."""


@dataclass(frozen=True)
class Ended:
    """How a job ended: "done", "stopped" or "failed", with the reason."""

    state: str
    reason: str = ""


class Schedule:
    """Which jobs may start: the first, in the plan's order, whose needs are done, and with it those of its group."""

    def __init__(self, needs: Mapping[str, Sequence[str]], groups: Mapping[str, str] | None = None, processes: int = 1):
        """`needs`: name -> names of those that must be done first; names that are not among the jobs are done already.

        `groups`: name -> word that jobs of one group share; groups are cut into as many parts as there are processes.
        """
        self.waiting = list(needs)
        self._needs, self._open = needs, set(needs)
        self._groups = {name: word for name, word in (groups or {}).items() if word}
        sizes = Counter(self._groups.values())
        self._size = {word: min(MOST_TOGETHER, -(-n // processes)) for word, n in sizes.items()}

    def take(self) -> list[str]:
        """The next jobs to start, together; empty while none may."""
        ready = [name for name in self.waiting if not self._open.intersection(self._needs[name])]
        if not ready:
            return []
        word = self._groups.get(ready[0])
        taken = [name for name in ready if self._groups.get(name) == word][: self._size[word]] if word else ready[:1]
        self.waiting = [name for name in self.waiting if name not in taken]
        return taken

    def put_back(self, names: Sequence[str]) -> None:
        """Jobs whose process was lost, to be started again before the others."""
        self.waiting[:0] = names

    def end(self, name: str, ended: Ended) -> Iterator[tuple[str, Ended]]:
        """The job that ended, and those that fail with it because they need it."""
        yield name, ended
        if ended.state == "done":
            self._open.discard(name)
        elif ended.state == "failed":
            for other in [n for n in self.waiting if name in self._needs[n]]:
                if other in self.waiting:
                    self.waiting.remove(other)
                    yield from self.end(other, Ended("failed", f"it needs {name}, which failed: {ended.reason}"))


Work = Callable[[list[Any]], list[Ended]]
"""Does the jobs of these values, together, and says how each ended."""
JobRunner = Callable[[Work, Mapping[str, Any], Schedule, StopFlag], Iterator[tuple[str, Ended]]]
"""Has the work done on each job's value in the schedule's order; yields (name, how it ended) as run_in_processes."""


# ---------------------------------------------------------------------------------------------------------- planning
@dataclass(frozen=True)
class Point:
    """One run of a grid."""

    name: str
    values: dict[str, Any]
    """The fields that differ from the defaults."""
    arm: str
    """The name without the seed."""


def grid_points(
    base: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    arms: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    name: str = "",
) -> list[Point]:
    """Every arm x every point of the grid x every seed, in that order.

    `name` is a template over the fields, such as "p{p}_lr{lr}_wd{weight_decay}"; numbers are written shortly (1e-3,
    3e-4, 1.0). Arms' names come first; "_s<seed>" is added when there are several seeds. UserError for an empty
    grid value, and for names that are not distinct or cannot be folders.
    """
    points = []
    for name_of_field, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise UserError(f"grid.{name_of_field}: {choices!r} is no list of values; give at least one")
    for arm, changes in (arms or {"": {}}).items():
        for choice in itertools.product(*grid.values()):
            values = {**base, **changes, **dict(zip(grid, choice, strict=True))}
            try:
                part = name.format(**{key: in_a_name(value) for key, value in values.items()})
            except KeyError as error:
                raise UserError(f"name: '{name}' uses {error}, which is not set; name fields of base or grid") from None
            except (ValueError, IndexError, AttributeError) as error:
                raise UserError(
                    f"name: '{name}' is no template ({error}); write fields in braces, such as lr{{lr}}"
                ) from None
            label = "_".join(piece for piece in (arm, part) if piece) or "run"
            for seed in seeds:
                full = f"{label}_s{seed}" if len(seeds) > 1 else label
                points.append(Point(full, {**values, "seed": seed}, label))
    check_names([point.name for point in points], "_".join(f"{key}{{{key}}}" for key in grid))
    return points


def config_of(cls: Any, values: Mapping[str, Any], place: str) -> Any:
    """The configuration of one run of a plan. UserError names the `place` in the plan, the field, its value and the mend."""
    try:
        return cls(**check_types(cls, values))
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None


def seeds_from(cls: Any, base: Mapping[str, Any], count: int) -> range:
    """`count` seeds, from that of a plan's base on, or from the default one."""
    first = check_types(cls, {"seed": base.get("seed", cls.seed)})["seed"]
    return range(first, first + count)


def base_of(config: Any) -> dict[str, Any]:
    """The settings of a run that are not the defaults, and its seed: the base of a plan of several runs like it."""
    defaults = {
        f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        for f in dataclasses.fields(config)
    }
    return {name: v for name, v in to_dict(config).items() if name == "seed" or getattr(config, name) != defaults[name]}


def check_names(names: Sequence[str], example: str = "") -> None:
    """UserError for names that are not distinct, with a template that makes them so, or that cannot be folders of a run."""
    if unfit := [name for name in names if not re.fullmatch(r"\w[\w.,+=@-]*", name) or name in RESERVED]:
        raise UserError(
            f"name: '{unfit[0]}' cannot be a run's folder; use letters, digits and _.,+=@- in names of arms and runs"
        )
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        mend = "name every field that varies" + (f", for example '{example}'" if example else "")
        raise UserError(f"name: several runs would be called {', '.join(doubled)}; {mend}")


def in_a_name(value: Any) -> str:
    """0.001 as 1e-3, 1.0 as 1.0, text as it is."""
    if not isinstance(value, float) or value == 0 or 0.01 <= abs(value) < 1e4:
        return str(value)
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


# --------------------------------------------------------------------------------------------------------- processes
def run_in_processes(
    work: Work, values: Mapping[str, Any], schedule: Schedule, stop: StopFlag, processes: int
) -> Iterator[tuple[str, Ended]]:
    """Yields (name, how it ended) as jobs end; `work` is called in one of `processes` workers with the jobs' values.

    Jobs whose work raises are failed, and those that need them fail with them. A worker that dies (kill -9, out of
    memory) costs only its jobs, which are done again once. A raised `stop` is passed to the workers, which save and end;
    jobs not begun are not started, nor yielded.
    """
    deaths = dict.fromkeys(values, 0)
    # One pool per worker: when a worker dies, its pool ends all workers that it has.
    idle: list[ProcessPoolExecutor] = []
    running: dict[Future[list[Ended]], tuple[list[str], ProcessPoolExecutor]] = {}
    was_passed_on = False
    try:
        while running or (schedule.waiting and not stop):
            while len(running) < processes and not stop and (names := schedule.take()):
                pool = idle.pop() if idle else ProcessPoolExecutor(1, get_context("spawn"), _start_worker)
                try:
                    running[pool.submit(_guarded, work, [values[name] for name in names])] = names, pool
                except BrokenProcessPool:  # its worker died while it was idle
                    pool.shutdown()
                    schedule.put_back(names)
            finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            if stop and not was_passed_on:
                was_passed_on = True
                _pass_on(pool for _, pool in running.values())
            for future in finished:
                names, pool = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    pool.shutdown()
                    for name in names:
                        deaths[name] += 1
                    if stop:
                        continue
                    if deaths[names[0]] == 1:
                        schedule.put_back(names)
                        print(
                            f"the process of {', '.join(names)} died; it goes on from its checkpoint", file=sys.stderr
                        )
                        continue
                    ends = [Ended("failed", "its process died twice without a word (out of memory?)")] * len(names)
                else:
                    idle.append(pool)
                    failed = Ended("failed", f"{type(error).__name__}: {error}")
                    ends = [failed] * len(names) if error else future.result()
                for name, ended in zip(names, ends, strict=True):
                    yield from schedule.end(name, ended)
    finally:
        _pass_on(pool for _, pool in running.values())  # when the caller gives up midway; else nothing is running
        for pool in [*idle, *(pool for _, pool in running.values())]:
            pool.shutdown()


def _pass_on(pools: Iterable[ProcessPoolExecutor]) -> None:
    for pid in [pid for pool in pools for pid in pool._processes or {}]:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue


_busy = threading.Lock()
_heard = ExitStack()


def _start_worker() -> None:
    """A worker stops when it is told to, and as if told to when its parent dies; a lost reader of its output ends nothing.

    The flag is held for the worker's life, so that a signal between two jobs, or before a job listens, is not lost. A
    worker often hears twice: Ctrl-C and some schedulers signal all processes, and then its parent does.
    """
    _heard.enter_context(steady_output())
    flag = _heard.enter_context(stop_on_signals(patient=True))
    threading.Thread(target=_follow_parent, args=(flag,), daemon=True).start()


def _guarded(work: Work, values: list[Any]) -> list[Ended]:
    with _busy:
        return work(values)


def _follow_parent(flag: StopFlag) -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    flag.name = flag.name or "the end of its parent"
    with _busy:  # the job has saved and ended; nobody is left to hand it on to
        os._exit(3)
