"""SIGTERM, SIGINT and SIGHUP: the first asks the loop to save and stop, a second ends the process at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopFlag:
    """`name` is the signal's, once one has come."""

    name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None


HANG_UP = signal.SIGHUP
"""Comes when the terminal is closed; `nohup` has it ignored, and then it stays so."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, HANG_UP)
_flags: list[StopFlag] = []


@contextmanager
def stop_on_signals(patient: bool = False) -> Iterator[StopFlag]:
    """A flag that signals raise; the former handlers come back at the end. Main thread only.

    A block within another one shares its flag. When `patient`, a second signal changes nothing.
    """
    if _flags:
        yield _flags[0]
        return
    flag = StopFlag()

    strikes = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal strikes
        strikes += number != HANG_UP  # which comes twice, from the shell and from the system
        if strikes > 1 and not patient:
            os._exit(128 + number)
        flag.name = flag.name or signal.Signals(number).name

    heard = [n for n in SIGNALS if n != HANG_UP or signal.getsignal(n) is not signal.SIG_IGN]
    former = {number: signal.signal(number, handle) for number in heard}
    _flags.append(flag)
    try:
        yield flag
    finally:
        _flags.clear()
        for number, handler in former.items():
            signal.signal(number, handler)
