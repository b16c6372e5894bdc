"""The command of a study, from its declaration: its verbs, the common ones, exit codes, and errors in one sentence."""

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from studycore.errors import Stopped, UserError
from studycore.study import ManyRuns, OneRun, Study, Verb, load

COMMON = {
    "report": "write a run's report again and print what it says",
    "resume": "continue a run that was stopped or cut off",
    "runs": "list and compare earlier runs",
    "doctor": "check device, memory, folders and versions",
}


def main(study: Study, argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 2 the user's mistake, 3 stopped after saving."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    common: dict[str, Callable[[Study, list[str]], None]] = {
        "report": report_verb, "resume": resume_verb, "runs": runs_verb, "doctor": doctor_verb,
    }  # fmt: skip

    def act() -> None:
        verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
        if verb in ("--help", "-h", "help"):
            print(help_text(study))
        elif verb == "--version":
            print(f"{study.name} {metadata.version(study.distribution)}")
        elif isinstance(action := study.verbs.get(verb), Verb):
            load(action.function)(rest)
        elif isinstance(action, OneRun):
            one_run_verb(study, verb, action, rest)
        elif isinstance(action, ManyRuns):
            many_runs_verb(study, verb, action, rest)
        elif verb in common:
            common[verb](study, rest)
        else:
            there = ", ".join(dict.fromkeys([*study.verbs, *common]))
            raise UserError(f"'{verb}' is no verb of {study.name}; there are {there}")

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
    """On stderr, by the first of several processes of one run: all of them say the same."""
    if _is_first_process():
        print(sentence, file=sys.stderr)


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are UserErrors."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message} (see {self.prog} --help)")


def help_text(study: Study) -> str:
    lines = [f"usage: {study.name} VERB [flags]", "", study.question, "", "verbs:"]
    listed = COMMON | {verb: action.summary for verb, action in study.verbs.items()}
    order = dict.fromkeys([*(verb for verb in study.verbs if verb not in COMMON), *COMMON])
    lines += [f"  {verb:<10} {listed[verb]}" for verb in order]
    lines += ["", f"{study.name} VERB --help shows a verb's flags; --version prints the version.", ""]
    lines += ["exit codes: 0 done, 1 a fault of the program's, 2 a mistake in what was asked, 3 stopped after saving"]
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------- making runs
def one_run_verb(study: Study, verb: str, action: OneRun, argv: list[str]) -> None:
    """One run, or with --seeds several."""
    from studycore.configuration import build, read_arguments, to_dict

    config_class, options_class = load(action.config), load(action.options)
    given = with_aliases(study, argv)
    if action.first_argument and {"-h", "--help"} & set(argv):
        print(f"usage: {study.name} {verb} {action.first_argument.upper()} [flags]\n")
    elif action.first_argument and given and not given[0].startswith("-"):
        flag = f"--{action.first_argument}"
        if flag in [item.partition("=")[0] for item in given[1:]]:
            raise UserError(f"{flag}: is given as the first argument, '{given[0]}'; leave the flag out")
        given = [f"{flag}={given[0]}", *given[1:]]
    refuse_config_of_many(study, given)
    file, flags = read_arguments(
        [config_class, options_class], given, f"{study.name} {verb}", study.package, action.default_config
    )
    own = [{k: v for k, v in values.items() if k in _names(config_class)} for values in (file, flags)]
    values = load(action.resolve)(*own) if action.resolve else {**own[0], **own[1]}
    config = build(config_class, values)
    options = build(options_class, {k: v for k, v in {**file, **flags}.items() if k not in _names(config_class)})
    if options.extends and not options.resume:
        raise UserError("--resume: extending goes on with an earlier run, so give --resume as well")
    if options.seeds > 1:
        if not action.seeds:
            raise UserError(f"--seeds: {study.name} {verb} makes one run; leave it out")
        if options.num_processes is not None:
            raise UserError("--num-processes: several seeds are runs with a process each; leave it or --seeds out")
        many, whole = load(action.seeds)(config, options.seeds)
        shared = {f.name: getattr(options, f.name) for f in dataclasses.fields(load("studycore.options:RunOptions"))}
        _make_many(study, many, whole, build(load("studycore.options:SweepOptions"), shared), [study.name, verb, *argv])
        return
    if _only_shown(config, options):
        if options.dry_run:
            print(time_a_step(study, verb, config, options)[1])
        return
    folder = find_folder(study, verb, to_dict(config), options)
    # Every process of a relaunched run must get the same folder.
    kept = [item for item in argv if not item.replace("_", "-").startswith("--output-dir=")]
    _relaunch(study, [verb, *kept, "--output-dir", str(folder)], options)
    if options.extends and not (folder / "manifest.json").exists():
        raise UserError(f"--resume: {folder} holds no run to extend; name the run's folder")
    if options.resume and not options.extends and finished(study, folder, config):
        return
    _make_one(study, verb, config, folder, options, [study.name, verb, *argv], options.resume)


def _make_one(
    study: Study, verb: str, config: Any, folder: Path, options: Any, argv: list[str], resume: bool, **more: Any
) -> None:
    from studycore.execution import make_run
    from studycore.report import print_report

    make_run(study, verb, config, folder, options, argv, resume, **more)
    if _is_first_process():
        print_report(folder)


def many_runs_verb(study: Study, verb: str, action: ManyRuns, argv: list[str]) -> None:
    """Many runs. Flags of a single run that are given change the base of all."""
    from studycore.configuration import build, read_arguments

    of = study.verbs[action.of]
    assert isinstance(of, OneRun)
    config_class, run_class, options_class = (
        load(action.config),
        load(of.config),
        load("studycore.options:SweepOptions"),
    )
    file, flags = read_arguments(
        [config_class, options_class, run_class], with_aliases(study, argv), f"{study.name} {verb}", study.package
    )
    if odd := [name for name in file if name not in _names(config_class)]:
        raise UserError(f"--config: '{odd[0]}' is no field of {study.name} {verb}; put settings of runs under base")
    whole = {k: v for k, v in flags.items() if k in _names(config_class)}
    of_runs = {k: v for k, v in flags.items() if k in _names(run_class) - _names(config_class)}
    if action.resolve:
        values = load(action.resolve)(file, whole, of_runs)
    else:
        values = {**file, **whole}
        values["base"] = {**values.get("base", {}), **of_runs}
    options = build(
        options_class, {k: v for k, v in flags.items() if k in _names(options_class) - _names(config_class)}
    )
    _make_many(study, verb, build(config_class, values), options, [study.name, verb, *argv])


def _make_many(study: Study, verb: str, config: Any, options: Any, argv: list[str]) -> None:
    from studycore.configuration import to_dict

    if _only_shown(config, options):
        if options.dry_run:
            show_plan(study, verb, config, options)
        return
    folder = find_folder(study, verb, to_dict(config), options)
    if options.resume and finished(study, folder, config):
        return
    _continue_many(study, verb, config, folder, options, argv, options.resume)


def _continue_many(
    study: Study, verb: str, config: Any, folder: Path, options: Any, argv: list[str], resume: bool
) -> None:
    from studycore.execution import make_runs
    from studycore.report import print_report

    try:
        make_runs(study, verb, config, folder, options, argv, resume)
    finally:
        if sys.exc_info()[0] in (None, UserError) and (folder / "report.md").exists():
            print_report(folder)


def with_aliases(study: Study, argv: Sequence[str]) -> list[str]:
    """The arguments with earlier names of flags as today's."""
    found = []
    for item in argv:
        flag, equals, value = item.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        is_alias = flag.startswith("--") and name in study.aliases
        found.append(f"--{study.aliases[name]}{equals}{value}" if is_alias else item)
    return found


def refuse_config_of_many(study: Study, argv: list[str]) -> None:
    """UserError when --config names a configuration of many runs where one run is asked for."""
    from studycore.configuration import read_yaml, take_config

    path, _ = take_config(argv, study.package)
    many = {verb: _names(load(action.config)) for verb, action in study.verbs.items() if isinstance(action, ManyRuns)}
    one = [_names(load(action.config)) for action in study.verbs.values() if isinstance(action, OneRun)]
    if path is None:
        return
    for verb, names in many.items():
        if set(read_yaml(path)) & (names - set().union(*one) - {"seeds"}):
            raise UserError(f"--config: {path} is a configuration of many runs; use it with `{study.name} {verb}`")


def _names(cls: type) -> set[str]:
    return {f.name for f in dataclasses.fields(cls)}


def _only_shown(config: Any, options: Any) -> bool:
    """Prints the configuration where no more, or a dry run, is asked for."""
    from studycore.configuration import to_dict, to_yaml

    if options.dry_run or options.print_config:
        print(to_yaml(to_dict(config)))
    return bool(options.dry_run or options.print_config)


def time_a_step(study: Study, verb: str, config: Any, options: Any) -> tuple[float | None, str]:
    """(seconds that the loop would take, a sentence), from the real training's own first steps; nothing is written."""
    action = study.verbs[verb]
    assert isinstance(action, OneRun)
    if not action.has_steps:
        return None, "It has no steps to time."
    from studycore.run import Timed, opened, peak_memory

    with tempfile.TemporaryDirectory() as place, opened(study, verb, config, Path(place), options, dry=True) as run:
        try:
            load(action.train)(config, run)
        except Timed as timed:
            seconds, total, unit = timed.args
            if not total:
                return None, "It has no steps to time."
            whole = seconds * total
            return whole, (
                f"{total:,} {unit}s of {seconds:.3g} s each on {run.device}, so about {duration(whole)} without evaluations"
                f"; so far {peak_memory():.0f} MiB of memory"
            )
    return None, "It has no steps to time."


def show_plan(study: Study, verb: str, config: Any, options: Any) -> None:
    """What many runs would do."""
    from studycore.execution import check_plan, choose_jobs, share_out

    action = study.verbs[verb]
    assert isinstance(action, ManyRuns)
    jobs = load(action.plan)(config)
    check_plan(jobs)
    chosen = choose_jobs(jobs, options)
    for index, job in enumerate(jobs):
        if job.name in chosen:
            print(f"{index}: {job.name}" + (f", after {', '.join(job.needs)}" if job.needs else ""))
    from studycore.devices import choose_device

    # The first job that has steps; one that comes after others is timed without what they make.
    for first in (job for job in jobs if job.name in chosen):
        seconds, sentence = time_a_step(study, first.verb or action.of, first.config, options)
        if seconds is not None:
            break
    processes, _ = share_out(options, choose_device(options.device)[0], len(chosen))
    print(f"{first.name}: {sentence}")
    if seconds is not None:
        whole = duration(seconds * len(chosen) / processes)
        print(f"{len(chosen)} runs, {processes} at a time: about {whole} if all are like it and none ends early")


def duration(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} hours"
        if seconds >= 5400
        else f"{seconds / 60:.0f} minutes"
        if seconds >= 90
        else f"{seconds:.0f} s"
    )


def find_folder(study: Study, verb: str, values: Mapping[str, Any], options: Any) -> Path:
    """--output-dir; with --resume the newest run of this configuration, an unfinished one first."""
    from studycore.configuration import config_hash
    from studycore.run_folder import list_runs, new_folder, state_of

    if options.output_dir is not None:
        return Path(options.output_dir)
    root = Path("runs")
    if not options.resume:
        return new_folder(root, study.name, verb, values)
    same = [
        (folder, state_of(folder, manifest))
        for folder, manifest in list_runs(root, study.name)
        if manifest["verb"] == verb and manifest["configuration_hash"] == config_hash(values)
    ]
    found = [f for f, state in same if state not in ("done", "running")] or [f for f, state in same if state == "done"]
    if not found:
        raise UserError(
            f"--resume: no earlier {verb} run of this configuration under {root}/{study.name}; leave --resume out"
        )
    return found[-1]


def finished(study: Study, folder: Path, config: Any = None) -> bool:
    """Whether the folder holds a finished run (of this configuration), which is then said."""
    from studycore.configuration import read_yaml, to_dict
    from studycore.record import is_done

    if not is_done(folder) or (config is not None and read_yaml(folder / "config.yaml") != to_dict(config)):
        return False
    if _is_first_process():
        print(f"{folder}: is finished; `{study.name} report {folder}` shows it")
    return True


def _relaunch(study: Study, argv: list[str], options: Any) -> None:
    from studycore.devices import relaunch

    relaunch(study.package, argv, options.num_processes, options.device)


# ------------------------------------------------------------------------------------------------------ common verbs
def resume_verb(study: Study, argv: list[str]) -> None:
    """`resume RUN`: goes on from the newest checkpoint, with the device and threads it had."""
    from studycore.record import read_config
    from studycore.run_folder import read_manifest

    parser = Parser(prog=f"{study.name} resume", description=COMMON["resume"])
    parser.add_argument("run", help="a run folder")
    folder = Path(parser.parse_args(argv).run)
    manifest = _manifest_of(study, folder)
    if finished(study, folder):
        return
    verb, argv_then, stored = manifest["verb"], list(manifest["argv"]), dict(manifest.get("options", {}))
    config = read_config(study, folder)
    action = study.verbs[verb]
    if isinstance(action, Verb):
        raise UserError(f"{folder}: `{study.name} {verb}` was cut off; remove the folder and repeat it")
    common = {"device": manifest["devices"]["device"].partition(":")[0], "resume": True}
    if isinstance(action, ManyRuns):
        options = load("studycore.options:SweepOptions")(**stored, **common)
        _continue_many(study, verb, config, folder, options, argv_then, True)
        return
    assert isinstance(action, OneRun)
    world = manifest["devices"]["world_size"]
    options = load(action.options)(
        **{k: v for k, v in stored.items() if k != "num_processes"}, **common,
        threads=manifest["devices"]["threads"], num_processes=world if world > 1 else None,
    )  # fmt: skip
    if world > 1:
        _relaunch(study, ["resume", str(folder)], options)
    needs = {name: Path(place) for name, place in read_manifest(folder).get("needs", {}).items()}
    _make_one(study, verb, config, folder, options, argv_then, True, needs=needs)


def report_verb(study: Study, argv: list[str]) -> None:
    """`report RUN`: writes the report again from what the folder holds, and prints it."""
    from studycore.execution import report_on
    from studycore.report import print_report
    from studycore.run_folder import list_runs

    parser = Parser(prog=f"{study.name} report", description=COMMON["report"])
    parser.add_argument("run", nargs="?", help="a run folder; without it the newest one under --runs-dir")
    parser.add_argument("--results_dir", "--results-dir", help="the same")
    parser.add_argument("--runs-dir", default="runs")
    options = parser.parse_args(argv)
    name = options.run or options.results_dir
    if name is None:
        there = list_runs(Path(options.runs_dir), study.name)
        if not there:
            raise UserError(f"RUN: none given and none under {options.runs_dir}/{study.name}; name a run folder")
        name = str(there[-1][0])
    _manifest_of(study, Path(name))
    report_on(study, Path(name))
    print_report(Path(name))


def _manifest_of(study: Study, folder: Path) -> dict[str, Any]:
    from studycore.run_folder import read_manifest

    manifest = read_manifest(folder)
    if manifest["study"] != study.name:
        raise UserError(f"{folder}: is a run of {manifest['study']}; use that command")
    return manifest


def runs_verb(study: Study, argv: list[str]) -> None:
    from studycore.configuration import differences, read_yaml
    from studycore.files import read_json
    from studycore.report import number
    from studycore.run_folder import list_runs, read_manifest, state_of

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


def doctor_verb(study: Study, argv: list[str]) -> None:
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
        *(load(study.doctor)() if study.doctor else []),
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
