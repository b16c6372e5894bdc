"""Which device a run uses and why, threads, and starting one process per device."""

import os
import platform
import sys
import time
from importlib import metadata
from typing import Any

from studycore.errors import UserError


def choose_device(name: str) -> tuple[str, str]:
    """(device, reason) for "auto", "cpu", "cuda" or "mps". UserError when the one asked for is not there."""
    import torch

    usable = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        if usable["cuda"]:
            return "cuda", f"a CUDA device is there: {torch.cuda.get_device_name()}"
        return ("mps", "Apple's GPU is there") if usable["mps"] else ("cpu", "no GPU is there")
    if not usable.get(name, False):
        names = [device for device, yes in usable.items() if yes]
        raise UserError(f"--device: '{name}' is not there; this machine has {', '.join(names)} (or use auto)")
    return name, "asked for"


def set_threads(threads: int | None) -> int:
    """Sets PyTorch's intra-operation threads, where given, and returns their number. UserError below 1."""
    import torch

    if threads is not None and threads < 1:
        raise UserError(f"--threads: {threads} is too few; give at least 1, or leave it out")
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def check_memory(size: int, what: str, mend: str, device: str = "cpu") -> None:
    """UserError when `size` bytes are more than the device has free: ask before they are allocated."""
    import psutil

    if device.startswith("cuda"):
        import torch

        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available
    if size > free:
        raise UserError(f"{what} take {size / 2**30:,.0f} GiB of memory and {free / 2**30:,.0f} GiB are free; {mend}")


def clock(device: str) -> float:
    """The clock, once the device has done what it was given."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def relaunch(module: str, argv: list[str], num_processes: int | None, device: str) -> None:
    """Runs `python -m module argv` as one process per device, when there is more than one to use, and exits as they do.

    Returns when the process is already one of several (torchrun's environment is there), or when one is enough. A signal
    is passed on to the processes, which save and stop. UserError for less than one process.
    """
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num-processes: {num_processes} is too few; give at least 1, or leave it out")
    if "LOCAL_RANK" in os.environ:
        return
    import torch

    processes = num_processes or (torch.cuda.device_count() if device in ("auto", "cuda") else 1)
    if processes > 1:
        sys.exit(_launch(module, argv, processes))


def _launch(module: str, argv: list[str], processes: int) -> int:
    """The exit code of several processes of a command under torchrun's own agent: 2 and 3 as one process has them."""
    import logging
    import uuid

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The processes say on stderr what was wrong; the agent would say it again, with its own traceback.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    sys.stdout.flush()
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0",
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", module, *argv)
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        return next((code for code in (2, 3) if code in codes), 1)
    except SignalException:
        return 3
    return 0


def versions(*distributions: str) -> dict[str, str]:
    """Versions of Python and the named distributions, "not installed" where one is not."""
    installed = {"python": platform.python_version()}
    for name in distributions:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def describe(device: str) -> dict[str, Any]:
    """What the bitwise promise depends on besides the code."""
    import torch

    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {
        "device": device,
        "name": name,
        "threads": torch.get_num_threads(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "platform": platform.platform(),
    }
