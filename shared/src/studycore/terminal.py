"""What a command prints: it survives a reader that has gone away, and a terminal that cannot show every letter."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
"""A pipe that nobody reads, a terminal that was closed."""


class Output:
    """A text stream whose failures never end a run: the first is kept, and all that follows goes nowhere."""

    def __init__(self, stream: Any):
        self._stream = stream
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.failure = self.failure or error
        # What the stream still holds must go somewhere, or the interpreter's end fails on it.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


@contextmanager
def steady_output() -> Iterator[Callable[[], str]]:
    """Makes standard output and error such streams; letters that their encoding lacks are written as escapes.

    Yields a function that says why some of standard output could not be written: "" when it could, or when its reader
    only went away.
    """
    former = sys.stdout, sys.stderr
    for stream in former:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    output, errors = (None if stream is None else Output(stream) for stream in former)  # without a console: none
    sys.stdout, sys.stderr = output, errors  # type: ignore[assignment]
    try:
        yield (
            lambda: (
                str(output.failure.strerror) if output and output.failure and output.failure.errno not in GONE else ""
            )
        )
    finally:
        sys.stdout, sys.stderr = former


def duration(seconds: float) -> str:
    """With a unit that suits."""
    unit, size = next(
        (u, n) for u, n, least in (("hours", 3600, 5400), ("minutes", 60, 90), ("s", 1, 0)) if seconds >= least
    )
    return f"{seconds / size:.1f} hours" if unit == "hours" else f"{seconds / size:.0f} {unit}"
