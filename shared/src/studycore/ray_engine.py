"""Jobs on several machines with Ray: what `jobs.run_in_processes` does on one. Needs the extra studycore[ray].

All machines need the same Python environment, and must see the run folders under the same absolute paths, on a file
system that they share: a job that is run again goes on from the checkpoint in its folder, on whichever machine it is. A machine
that is cut off but alive still holds its runs' locks, where the file system passes locks on; then these runs fail, and
`resume` does them later.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from studycore.devices import cores
from studycore.errors import Stopped, UserError
from studycore.jobs import Ended, Schedule, Work
from studycore.stopping import SIGNALS, StopFlag, stop_on_signals

STORE = 100 * 2**20
"""Bytes of a local instance's object store: jobs and their ends are small."""


def run_on_ray(
    work: Work,
    values: Mapping[str, Any],
    schedule: Schedule,
    stop: StopFlag,
    address: str | None,
    at_once: int | None = None,
    cpus: int = 1,
    gpus: int = 0,
    tries: int = 3,
) -> Iterator[tuple[str, Ended]]:
    """Yields (name, how it ended) as jobs end, as run_in_processes does; each start of the schedule is one Ray task with
    `cpus` cores and `gpus` devices of its own.

    The cluster is the one whose head is at `address` ("host:port", or "auto" for the one that this machine belongs to);
    None starts an instance on this machine, for `at_once` tasks, and ends it. At most `at_once` tasks run at a time, as
    many as there is room for without it. The run folders must lie on a file system that all machines share, and be given
    by absolute paths.

    A worker or machine that dies, or is told to end, costs only its jobs, which are done again on what is left, `tries`
    times in all. When the caller itself is killed, Ray ends the workers, and what came after their last checkpoints is
    lost. UserError when Ray is not installed, or no cluster answers at `address`.
    """
    if not values or stop:
        return
    try:
        with _connected(address, (at_once or max(1, cores() // cpus)) * cpus) as ray:
            # Ray would retry by itself, but neither say so nor leave out what was told to end.
            task = ray.remote(
                num_cpus=cpus, num_gpus=gpus, max_retries=0, scheduling_strategy="SPREAD"
            )(_guarded)  # fmt: skip
            yield from _run(ray, task, work, values, schedule, stop, at_once or len(values), tries)
    except Stopped:  # while it was connecting
        stop.name = stop.name or "SIGTERM"


def slots(address: str, cpus: int = 1, gpus: int = 0) -> int:
    """How many tasks of that size the cluster can run at a time. UserError when it is none, and as in run_on_ray."""
    with _connected(address, cores()) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    tasks = sum(
        int(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) // gpus if gpus else sys.maxsize)) for node in nodes
    )
    if not tasks:
        needed = f"{cpus} cores" + (f" and {gpus} GPU" if gpus else "")
        raise UserError(
            f"--address: no machine of the cluster at {address} has {needed}; change --threads, or --device"
        )
    return tasks


def load() -> Any:
    """Ray's module. UserError when it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns that this will be the default
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("--engine ray: Ray is not installed; `pip install 'studycore[ray]'`") from None
    return ray


def _run(
    ray: Any, task: Any, work: Work, values: Mapping[str, Any], schedule: Schedule, stop: StopFlag, at_once: int, tries: int
) -> Iterator[tuple[str, Ended]]:  # fmt: skip
    lost = (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.LocalRayletDiedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.ObjectLostError,
        ray.exceptions.TaskCancelledError,
    )
    losses = dict.fromkeys(values, 0)
    running: dict[Any, list[str]] = {}
    last_cancel = -float("inf")
    try:
        while running or (schedule.waiting and not stop):
            while len(running) < at_once and not stop and (names := schedule.take()):
                running[task.remote(work, [values[name] for name in names])] = names
            finished, _ = ray.wait(list(running), timeout=0.2)
            if stop and time.monotonic() > last_cancel + 5:  # again and again: a task may move from queue to worker
                last_cancel = time.monotonic()
                _cancel(ray, running)
            for reference in finished:
                names, ends = running.pop(reference), None
                try:
                    was_signalled, ends = ray.get(reference)
                    if was_signalled and not stop and any(ended.state == "stopped" for ended in ends):
                        ends = None  # its machine ends, and not what was asked for
                except lost:
                    pass
                except ray.exceptions.RayTaskError as error:
                    ends = [Ended("failed", f"{type(error.cause).__name__}: {error.cause}")] * len(names)
                except ray.exceptions.RayError as error:
                    ends = [Ended("failed", f"{type(error).__name__}: {error}")] * len(names)
                if ends is None and stop:
                    continue
                if ends is None:
                    for name in names:
                        losses[name] += 1
                    if losses[names[0]] < tries:
                        schedule.put_back(names)
                        lost_jobs = ", ".join(names)
                        print(
                            f"the process or machine of {lost_jobs} was lost; it goes on from its checkpoint",
                            file=sys.stderr,
                        )
                        continue
                    why = f"its process or machine was lost {tries} times without a word (out of memory?)"
                    ends = [Ended("failed", why)] * len(names)
                for name, ended in zip(names, ends, strict=True):
                    yield from schedule.end(name, ended)
    finally:  # when the caller gives up midway; else nothing is running
        if running and ray.is_initialized():
            _cancel(ray, running)
            ray.wait(list(running), num_returns=len(running))


def _cancel(ray: Any, running: Iterable[Any]) -> None:
    """Ray takes tasks that have not begun from the queue, and raises SIGINT's handler in the workers of the others."""
    for reference in running:
        ray.cancel(reference, force=False)


def _guarded(work: Work, values: list[Any]) -> tuple[bool, list[Ended]]:
    """On a worker: (whether it was told to stop, how the jobs ended)."""
    with stop_on_signals(patient=True) as flag:
        try:
            ends = work(values)
        except BaseException as error:  # SystemExit too, which would end the worker
            ends = [Ended("failed", f"{type(error).__name__}: {error}")] * len(values)
        return bool(flag), ends


@contextmanager
def _connected(address: str | None, local_cpus: int) -> Iterator[Any]:
    """Ray, connected to the cluster at `address`, or to an instance of its own. Stopped when SIGTERM came meanwhile."""
    ray = load()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        quiet |= {"num_cpus": local_cpus, "include_dashboard": False, "object_store_memory": STORE}
    else:
        _knock(address)
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # attempts of half a minute, really
    # Ray sets a handler of its own for SIGTERM, which would end the process; the former ones come back once it has started.
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in SIGNALS} if main else {}
    try:
        try:
            ray.init(address=address or "local", **quiet)
        except SystemExit:
            raise Stopped("stopped while Ray was starting") from None
        except Exception as error:
            where = f"--address: the cluster at {address}" if address else "--engine ray: a local instance"
            mend = "; if the cluster asks for a token, set RAY_AUTH_MODE=token" if address else ""
            raise UserError(f"{where} cannot be used ({' '.join(str(error).split())}){mend}") from None
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """UserError when nothing listens at the address: Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise UserError(f"--address: '{address}' is no address of a Ray cluster; give host:port of its head, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address: no Ray cluster answers at {address} ({error}); is its head running?") from None
