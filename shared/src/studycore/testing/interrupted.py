"""A signal at a chosen moment, for tests that ask what is left of a run and whether it goes on to the same bits."""

import os
import signal
import warnings
from collections.abc import Callable
from typing import Any


def signal_at(owner: Any, name: str, count: int, number: int, before: bool = False) -> None:
    """Makes the count-th call of a function of `owner` send this process a signal, after its work or before it."""
    real, calls = getattr(owner, name), 0

    def calling(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if before and calls == count:
            os.kill(os.getpid(), number)
        result = real(*args, **kwargs)
        if not before and calls == count:
            os.kill(os.getpid(), number)
        return result

    setattr(owner, name, calling)


def killed_at(owner: Any, name: str, count: int, act: Callable[[], Any], before: bool = False) -> bool:
    """Whether SIGKILL ended `act`, in a forked child whose count-th call of owner.name sends it.

    Forked, because the imports of a new process would take most of the time.
    """
    with warnings.catch_warnings():
        # Python 3.12 warns of threads, of which a test's process has none at work.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            signal_at(owner, name, count, signal.SIGKILL, before)
            act()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
