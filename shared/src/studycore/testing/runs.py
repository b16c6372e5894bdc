"""For the tests of studies, yours too: two run folders that are the same to the bit, a command in a process, a refusal."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from studycore.metrics_log import read_rows
from studycore.run_folder import read_manifest

OF_ITS_TIME = ("manifest.json", "report.html", "report.md", "report.json", "figures", ".lock")
"""Of a run folder: what says when, where and how often the run was made, and its report, which is written when it is asked for."""


def same(one: Path, other: Path, times: Collection[str] = ()) -> None:
    """Both runs are done and the same to the bit; else AssertionError, which names the file.

    Compared are state and reason; every file of the folders but OF_ITS_TIME: configuration, claims, rows, history, arrays,
    results, whatever the study writes; which checkpoints are the last and the best, and every file of these two: weights,
    optimizer, the loop's numbers, probe. A run that was cut off may keep other checkpoints besides, and an empty file of rows.

    `times`: names of what a study measures by the clock. They are left out of its JSON and rows, and history.parquet, which
    has the rows again, is then left to them.
    """
    ends = [tuple(read_manifest(folder)[key] for key in ("state", "reason")) for folder in (one, other)]
    assert ends[0] == ends[1] and ends[0][0] == "done", f"{one} and {other} ended as {ends}"
    assert (one / "results.json").exists(), f"{one} has no results"
    files = [_files_of(folder, times) for folder in (one, other)]
    assert sorted(files[0]) == sorted(files[1]), f"only one has {sorted({*files[0]} ^ {*files[1]})}"
    for name in files[0]:
        contents = [_content(folder / name, times) for folder in (one, other)]
        assert contents[0] == contents[1], f"{name} of {one} and {other} differs"


def _files_of(folder: Path, times: Collection[str]) -> list[str]:
    from studycore.checkpoints import read_index  # with torch, which processes that only wait do without

    kept = {"index.json", *read_index(folder / "checkpoints").values()}
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    left_out = {*OF_ITS_TIME, *(["history.parquet"] if times else [])}
    return [
        path.as_posix()
        for path in paths
        if path.parts[0] not in left_out and (path.parts[0] != "checkpoints" or path.parts[1] in kept)
    ]


def _content(path: Path, times: Collection[str]) -> Any:
    if not times or path.suffix not in (".json", ".jsonl"):
        return path.read_bytes()
    text = path.read_text(encoding="utf-8")
    return [_without(times, json.loads(part)) for part in (text.splitlines() if path.suffix == ".jsonl" else [text])]


def _without(times: Collection[str], value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(times, part) for key, part in value.items() if key not in times}
    return [_without(times, part) for part in value] if isinstance(value, list) else value


@contextmanager
def running(*arguments: object, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """`python ARGUMENTS` as a process of one thread, whose output is read from pipes. It is killed at the end if it still runs.

    A study's command is `running("-m", "line", "train", ...)`; `more` goes to Popen.
    """
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, **more,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def output_of(*arguments: object, seconds: float = 300, **more: Any) -> str:
    """What `python ARGUMENTS` prints; AssertionError with its errors unless its exit code is 0."""
    with running(*arguments, **more) as process:
        out, errors = process.communicate(timeout=seconds)
    assert process.returncode == 0, f"{arguments} ended with {process.returncode}: {errors}"
    return out


def wait_until(
    holds: Callable[[], object], what: str = "", process: subprocess.Popen[str] | None = None, seconds: float = 200
) -> None:
    """Returns once `holds()`; AssertionError when the seconds are over, or when the process has ended before it holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        ended = process is not None and process.poll() is not None
        assert not ended or holds(), f"it ended before {what}: {process and process.communicate()}"
        assert time.monotonic() < deadline, f"{seconds} seconds have not seen {what}"
        time.sleep(0.01)


def wait_for_rows(folder: Path, count: int, process: subprocess.Popen[str] | None = None) -> None:
    """Returns once the run's metrics.jsonl has `count` rows; else as wait_until."""
    wait_until(lambda: len(read_rows(folder / "metrics.jsonl")) >= count, f"{count} rows in {folder}", process)


def cut_off(folder: Path, rows: int, number: signal.Signals, *arguments: object, **more: Any) -> str:
    """Sends `python ARGUMENTS` the signal once the run in the folder has so many rows, and returns what it said on stderr.

    AssertionError unless it ends as the signal has it: of SIGKILL, with the run as "running"; else with exit code 3, the run
    as "stopped", and no traceback.
    """
    with running(*arguments, **more) as process:
        wait_for_rows(folder, rows, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    code_and_state = (process.returncode, read_manifest(folder)["state"])
    assert code_and_state == ((-number, "running") if number == signal.SIGKILL else (3, "stopped")), (
        code_and_state,
        errors,
    )
    assert "Traceback" not in errors, errors
    return errors


def refused(main: Callable[[list[str]], int], arguments: Sequence[str], capsys: Any) -> str:
    """The sentence with which a command refuses its arguments: its only line on stderr, with exit code 2; else AssertionError.

    `main` is a study's `main`, `capsys` pytest's.
    """
    capsys.readouterr()
    code, said = main(list(arguments)), capsys.readouterr().err.strip().splitlines()
    assert code == 2, (arguments, code, said)
    assert len(said) == 1 and ": error: " in said[0], (arguments, said)
    return said[0]
