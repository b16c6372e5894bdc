"""Single faults put into the packages one at a time: which do the tests notice? `make mutants` runs all of them.

Each line of mutants.tsv names a package, a file of its source, a piece of that file, what stands there instead, and the
tests that should fail. The source is copied first, and the tests run against the copy: first without a fault, since tests
that fail anyway notice nothing. Prints what survived, and the share that was noticed; the exit code is 1 when that is below
95 in 100.

    python tests/mutants.py [--package NAME] [--only WORD] [--processes 2]
"""

import argparse
import csv
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
WANTED = 0.95
LONGEST = 900
"""Seconds that the tests of one line may take: those of least-action's claims take five minutes on one core."""
IMPORTED_ONCE = (
    "numpy", "pandas", "scipy.stats", "torch", "torch._dynamo", "accelerate", "datasets", "matplotlib.pyplot", "jsonargparse",
    "transformers.models.auto.modeling_auto", "transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama",
    "nltk.corpus", "geoopt", "plotly.subplots",
)  # fmt: skip


class Trial(NamedTuple):
    """The tests of one mutant, running."""

    mutant: dict[str, str]
    place: Path
    pid: int
    deadline: float


def mutants() -> list[dict[str, str]]:
    """The rows of mutants.tsv; \\n in a piece is a line break."""
    with open(Path(__file__).with_suffix(".tsv"), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [{name: value.replace("\\n", "\n") for name, value in row.items()} for row in rows]


def source(package: str) -> Path:
    return ROOT / ("shared" if package == "studycore" else f"packages/{package}")


def original(mutant: dict[str, str]) -> Path:
    """The file that the fault goes into; `../studycore/` leads from a study's source to what it uses of studycore."""
    package, _, file = os.path.normpath(f"{mutant['package']}/{mutant['file']}").partition("/")
    return source(package) / "src" / file


def mutate(text: str, old: str, new: str) -> str:
    """The text with the fault in it. ValueError unless the piece stands there exactly once."""
    if text.count(old) != 1:
        raise ValueError(f"'{old}' stands there {text.count(old)} times; give a piece that stands there once")
    return text.replace(old, new)


def start(mutant: dict[str, str]) -> Trial:
    """The tests of a mutant in a process of their own, forked from this one, so that torch is imported once for all."""
    place = Path(tempfile.mkdtemp(prefix="mutant-"))
    pid = os.fork()
    if not pid:
        code = 3
        try:
            with open(place / "output", "w") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            code = run_tests(mutant, place)
        except Exception:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return Trial(mutant, place, pid, time.monotonic() + LONGEST)


def run_tests(mutant: dict[str, str], place: Path) -> int:
    """pytest's exit code for the mutant's tests, run on a copy of every package's source with the piece changed."""
    names = ["studycore", *(path.parent.name for path in sorted(ROOT.glob("packages/*/pyproject.toml")))]
    copies = {name: place / name for name in names}
    for package, copy in copies.items():
        shutil.copytree(source(package) / "src", copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    file = place / mutant["package"] / mutant["file"]
    file.write_text(mutate(file.read_text(encoding="utf-8"), mutant["old"], mutant["new"]), encoding="utf-8")
    sys.path[:0] = map(str, copies.values())
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, copies.values()))  # for the commands that tests start
    sys.dont_write_bytecode = True
    os.chdir(source(mutant["package"]))
    # A plugin of pytest's that a library has imported before is not rewritten, which no test needs.
    quiet = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*quiet, *mutant["tests"].split()]))


def wait_for(trials: list[Trial]) -> Iterator[tuple[Trial, bool]]:
    """The trials that have ended, each with whether a test failed; one that took too long hangs, and was noticed."""
    for trial in trials:
        ended, status = os.waitpid(trial.pid, os.WNOHANG)
        late = not ended and time.monotonic() > trial.deadline
        if late:
            os.kill(trial.pid, signal.SIGKILL)
            os.waitpid(trial.pid, 0)
        if not ended and not late:
            continue
        code = os.waitstatus_to_exitcode(status) if ended else 1
        output = (trial.place / "output").read_text(encoding="utf-8", errors="replace")
        shutil.rmtree(trial.place)
        if code not in (0, 1, 2):  # passed, failed, could not even be imported
            raise RuntimeError(f"{trial.mutant['tests']}: {output[-4000:]}")
        yield trial, code != 0


def results(rows: Sequence[dict[str, str]], processes: int) -> Iterator[tuple[dict[str, str], bool]]:
    """Each row with whether its tests fail, `processes` at a time, in the order in which they end."""
    waiting, running = list(reversed(rows)), list[Trial]()
    while waiting or running:
        while waiting and len(running) < processes:
            running.append(start(waiting.pop()))
        for trial, failed in list(wait_for(running)):
            running.remove(trial)
            yield trial.mutant, failed
        time.sleep(0.02)


def asked_for(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[dict[str, str]]]:
    """The command's arguments, and the lines that they choose."""
    parser = argparse.ArgumentParser(description="put single faults into the packages and see whether tests notice")
    parser.add_argument("--package", default="", help="the lines of one package; without it those of all")
    parser.add_argument("--only", default="", help="a word of the lines to try, such as a file or a test")
    parser.add_argument("--processes", type=int, default=2, help="how many are tried at the same time (default: 2)")
    given = parser.parse_args(arguments)
    of_package = [row for row in mutants() if given.package in ("", row["package"])]
    return given, [row for row in of_package if given.only in "\t".join(row.values())]


def main() -> int:
    given, chosen = asked_for()
    for name in IMPORTED_ONCE:
        with suppress(ImportError):  # a package that does not need it has no environment with it
            import_module(name)
    tests = {(row["package"], row["tests"]): row for row in chosen}
    for row, failed in results([row | {"new": row["old"]} for row in tests.values()], given.processes):
        if failed:
            raise RuntimeError(f"{row['package']}: {row['tests']} fails without a fault and can notice none")
    survivors = 0
    for number, (row, noticed) in enumerate(results(chosen, given.processes), start=1):
        survivors += not noticed
        what = f"{row['package']}/{row['file']}: {row['old']!r} -> {row['new']!r}"
        print(f"{number} of {len(chosen)} {'noticed ' if noticed else 'SURVIVED'} {what}", flush=True)
    share = 1 - survivors / len(chosen) if chosen else 0.0
    print(f"{len(chosen) - survivors} of {len(chosen)} noticed ({share:.0%})")
    return int(share < WANTED)


if __name__ == "__main__":
    sys.exit(main())
