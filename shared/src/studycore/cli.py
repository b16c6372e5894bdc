"""The shape that every study's command has: its verbs, the common ones, exit codes, and errors in one sentence."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from studycore.errors import Stopped, UserError


@dataclass(frozen=True)
class Study:
    """What the command line needs to know of a study. Functions are named "module:function", imported when called."""

    name: str
    """Command, folder and compose service."""
    distribution: str
    question: str
    verbs: Mapping[str, tuple[str, str]]
    """Verb -> (what it does, "module:function"); the function takes the remaining arguments and returns nothing."""
    report: str
    """`function(run_folder)`: writes the report of a run again and prints what it says."""
    resume: str
    """`function(run_folder)`: continues a run."""
    checks: str | None = None
    """`function() -> list[(what, holds, what to do)]`: the study's own part of `doctor`."""
    libraries: tuple[str, ...] = field(default=())
    """Distributions whose versions `doctor` shows, besides the common ones."""


def main(study: Study, argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 2 the user's mistake, 3 stopped after saving."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    common: dict[str, Callable[[list[str]], None]] = {
        "report": lambda rest: _on_run(study, "report", study.report, rest),
        "resume": lambda rest: _on_run(study, "resume", study.resume, rest),
        "runs": lambda rest: _runs(study, rest),
        "doctor": lambda rest: _doctor(study, rest),
    }

    def act() -> None:
        if not arguments or arguments[0] in ("--help", "-h", "help"):
            print(_help(study))
        elif arguments[0] == "--version":
            print(f"{study.name} {metadata.version(study.distribution)}")
        elif arguments[0] in study.verbs:
            load(study.verbs[arguments[0]][1])(arguments[1:])
        elif arguments[0] in common:
            common[arguments[0]](arguments[1:])
        else:
            there = ", ".join([*study.verbs, *common])
            raise UserError(f"'{arguments[0]}' is no verb of {study.name}; there are {there}")

    return exit_code(study.name, act)


def exit_code(name: str, act: Callable[[], None]) -> int:
    """The exit code of `act()`, with the command `name` saying on stderr why it is not 0."""
    try:
        act()
    except UserError as error:
        _say(f"{name}: error: {error}")
        return 2
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        mend = "choose another place, or change its owner or rights"
        _say(f"{name}: error: {error.filename}: {error.strerror}; {mend}")
        return 2
    except Stopped as stopped:
        _say(f"{name}: {stopped}")
        return 3
    return 0


def _say(sentence: str) -> None:
    """On stderr, by the first of several processes of one run: all of them find the same."""
    if os.environ.get("RANK", "0") == "0":
        print(sentence, file=sys.stderr)


def load(name: str) -> Callable[..., Any]:
    """The function "module:function"."""
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)  # type: ignore[no-any-return]


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are UserErrors."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message} (see {self.prog} --help)")


COMMON = {
    "report": "write a run's report again and print what it says",
    "resume": "continue a run that was stopped or cut off",
    "runs": "list and compare earlier runs",
    "doctor": "check device, memory, folders and versions",
}


def _help(study: Study) -> str:
    lines = [f"usage: {study.name} VERB [flags]", "", study.question, "", "verbs:"]
    listed = {verb: text for verb, (text, _) in study.verbs.items()} | COMMON
    lines += [f"  {verb:<10} {text}" for verb, text in listed.items()]
    lines += ["", f"{study.name} VERB --help shows a verb's flags; --version prints the version.", ""]
    lines += ["exit codes: 0 done, 1 a fault of the program's, 2 a mistake in what was asked, 3 stopped after saving"]
    return "\n".join(lines)


def _on_run(study: Study, verb: str, function: str, argv: list[str]) -> None:
    from studycore.runs import list_runs, read_manifest

    parser = Parser(prog=f"{study.name} {verb}", description=COMMON[verb])
    if verb == "report":
        parser.add_argument("run", nargs="?", help="a run folder; without it the newest one under --runs-dir")
        parser.add_argument("--results_dir", "--results-dir", help="the same")
    else:
        parser.add_argument("run", help="a run folder")
    parser.add_argument("--runs-dir", default="runs")
    options = parser.parse_args(argv)
    name = options.run or getattr(options, "results_dir", None)
    if name is None:
        found = list_runs(Path(options.runs_dir), study.name)
        if not found:
            raise UserError(f"RUN: none given and none under {options.runs_dir}/{study.name}; name a run folder")
        name = str(found[-1][0])
    manifest = read_manifest(Path(name))
    if manifest["study"] != study.name:
        raise UserError(f"{name}: is a run of {manifest['study']}; use that command")
    load(function)(Path(name))


def _runs(study: Study, argv: list[str]) -> None:
    from studycore.configuration import differences, read_yaml
    from studycore.files import read_json
    from studycore.report import number
    from studycore.runs import list_runs, read_manifest, state_of

    parser = Parser(prog=f"{study.name} runs", description="list runs; with two run folders, compare them")
    parser.add_argument("compare", nargs="*", help="two run folders")
    parser.add_argument("--runs-dir", default="runs")
    options = parser.parse_args(argv)
    if len(options.compare) not in (0, 2):
        raise UserError(f"compare: {len(options.compare)} run folders given; name two, or none for the list")
    if options.compare:
        one, other = (Path(name) for name in options.compare)
        for folder in (one, other):
            read_manifest(folder)
        values_of_one, values_of_other = read_yaml(one / "config.yaml"), read_yaml(other / "config.yaml")
        for line in differences(values_of_one, values_of_other, one.name, other.name) or ["same configuration"]:
            print(line)
        for folder in (one, other):
            results = folder / "results.json"
            values = read_json(results)["metrics"] if results.exists() else {}
            print(
                f"{folder.name}: "
                + (
                    ", ".join(f"{k} {number(v)}" for k, v in values.items() if not isinstance(v, dict | list))
                    or "no results yet"
                )
            )
        return
    found = list_runs(Path(options.runs_dir), study.name)
    if not found:
        print(f"no runs under {options.runs_dir}/{study.name}")
    for folder, manifest in found:
        print(
            f"{folder}  {state_of(folder, manifest)}  {manifest['times'].get('seconds', 0):.0f} s  {manifest['reason']}"
        )


def _doctor(study: Study, argv: list[str]) -> None:
    import shutil

    from studycore.devices import choose_device, cores, versions

    parser = Parser(prog=f"{study.name} doctor", description=COMMON["doctor"])
    parser.add_argument("--runs-dir", default="runs")
    options = parser.parse_args(argv)
    device, reason = choose_device("auto")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    there = next(
        path
        for path in [Path(options.runs_dir).absolute(), *Path(options.runs_dir).absolute().parents]
        if path.exists()
    )
    free = shutil.disk_usage(there).free / 2**30
    cache = Path(os.environ.get("MPLCONFIGDIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    checks = [
        (f"device {device}: {reason}", True, ""),
        (f"{cores()} cores, {memory:.0f} GiB of memory", memory >= 2, "needs about 2 GiB"),
        (f"{free:.0f} GiB free for {options.runs_dir}", free >= 1, "free some space or choose another --output-dir"),
        (f"{options.runs_dir} can be written", _writable(there), "choose another --output-dir, or change its owner"),
        (f"cache folder {cache} can be written", _writable(cache), "set MPLCONFIGDIR to a folder that can be written"),
        *(load(study.checks)() if study.checks else []),
    ]
    shown = versions(study.distribution, "studycore", "torch", *study.libraries)
    print(", ".join(f"{name} {version}" for name, version in shown.items()))
    for what, holds, mend in checks:
        print(f"{'ok    ' if holds else 'LACKS '}{what}{'' if holds else f': {mend}'}")
    lacking = [what for what, holds, _ in checks if not holds]
    if lacking:
        raise UserError(
            f"doctor: {len(lacking)} of {len(checks)} checks fail: {'; '.join(lacking)}; see above what to do"
        )


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
