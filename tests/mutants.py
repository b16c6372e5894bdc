"""Single faults put into the packages one at a time: which do the tests notice? `make mutants` runs all of them.

Each line of mutants.tsv names a package, a file of its source, a piece of that file, what stands there instead, and the
tests that should fail. The source is copied first, and the tests run against the copy: first without a fault, since tests
that fail anyway notice nothing. Prints what survived, and the share that was noticed; the exit code is 1 when that is below
95 in 100.

    python tests/mutants.py [--package NAME] [--only WORD]
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
WANTED = 0.95


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


def fails(mutant: dict[str, str]) -> bool:
    """Whether a test fails where the piece stands that the mutant gives."""
    home = source(mutant["package"])
    with tempfile.TemporaryDirectory() as place:
        copies = []
        for package in (
            "studycore",
            *(path.name for path in sorted((ROOT / "packages").iterdir())),
        ):
            copies.append(Path(place) / package)
            shutil.copytree(source(package) / "src", copies[-1])
        file = Path(place) / mutant["package"] / mutant["file"]
        file.write_text(
            mutate(file.read_text(encoding="utf-8"), mutant["old"], mutant["new"]),
            encoding="utf-8",
        )
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, copies))}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            *mutant["tests"].split(),
        ]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1, 2):  # passed, failed, could not even be imported
        raise RuntimeError(f"{mutant['tests']}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode != 0


def asked_for(arguments: list[str] | None = None) -> list[dict[str, str]]:
    """The lines that the command's arguments choose."""
    parser = argparse.ArgumentParser(description="put single faults into the packages and see whether tests notice")
    parser.add_argument("--package", default="", help="the lines of one package; without it those of all")
    parser.add_argument("--only", default="", help="a word of the lines to try, such as a file or a test")
    given = parser.parse_args(arguments)
    of_package = [row for row in mutants() if given.package in ("", row["package"])]
    return [row for row in of_package if given.only in "\t".join(row.values())]


def main() -> int:
    chosen, survivors = asked_for(), []
    whole: set[tuple[str, str]] = set()
    for number, row in enumerate(chosen, start=1):
        if (row["package"], row["tests"]) not in whole:
            if fails(row | {"new": row["old"]}):
                raise RuntimeError(f"{row['package']}: {row['tests']} fails without a fault and can notice none")
            whole.add((row["package"], row["tests"]))
        noticed = fails(row)
        if not noticed:
            survivors.append(row)
        what = f"{row['package']}/{row['file']}: {row['old']!r} -> {row['new']!r}"
        print(
            f"{number} of {len(chosen)} {'noticed ' if noticed else 'SURVIVED'} {what}",
            flush=True,
        )
    noticed_share = 1 - len(survivors) / len(chosen) if chosen else 0.0
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} noticed ({noticed_share:.0%})")
    return int(noticed_share < WANTED)


if __name__ == "__main__":
    sys.exit(main())
