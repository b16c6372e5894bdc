"""SIGTERM and SIGINT: the first asks the loop to save and stop, the second ends the process at once."""

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

    def handle(number: int, frame: FrameType | None) -> None:
        if flag and not patient:
            os._exit(128 + number)
        flag.name = flag.name or signal.Signals(number).name

    former = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    _flags.append(flag)
    try:
        yield flag
    finally:
        _flags.clear()
        for number, handler in former.items():
            signal.signal(number, handler)
