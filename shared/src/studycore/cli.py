"""The command of a study, from its declaration: its verbs, the common ones, exit codes, and errors in one sentence."""

import argparse
import dataclasses
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from studycore.errors import SomeFailed, Stopped, UserError, refused_by_system
from studycore.study import ManyRuns, OneRun, Study, Verb, load
from studycore.terminal import duration, steady_output

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
            carry_out(one_run(study, verb, action, rest))
        elif isinstance(action, ManyRuns):
            carry_out(many_runs(study, verb, action, rest))
        elif verb in common:
            common[verb](study, rest)
        else:
            verbs = ", ".join(dict.fromkeys([*study.verbs, *common]))
            raise UserError(f"'{verb}' is no verb of {study.name}; there are {verbs}")

    return exit_code(study.name, act)


def exit_code(name: str, act: Callable[[], None]) -> int:
    """The exit code of `act()`, with the command `name` saying on stderr why it is not 0; see help_text."""
    with steady_output() as lost:
        try:
            act()
        except UserError as error:
            _say(f"{name}: error: {error}")
            return 2
        except (OSError, MemoryError, RuntimeError) as error:
            if not (sentence := refused_by_system(error)):
                raise
            _say(f"{name}: error: {sentence}")
            return 2
        except Stopped as stopped:
            if _is_first_process():  # a signal has told all
                _say(f"{name}: {stopped}")
            return 3
        except KeyboardInterrupt:  # where no run is open, which would have saved and raised Stopped
            if _is_first_process():
                _say(f"{name}: interrupted (Ctrl-C), no run was open; what was finished stays, give the command again")
            return INTERRUPTED
        sys.stdout.flush()
        if why := lost():
            _say(f"{name}: error: standard output: {why}; free some space, or send it elsewhere")
            return 2
    return 0


def _say(sentence: str) -> None:
    """On stderr.

    Processes of one run mostly fail alike, so the first speaks at once and the others wait PATIENCE seconds; by then the
    launcher has ended all that had nothing of their own to say.
    """
    if not _is_first_process():
        time.sleep(PATIENCE)
    print(sentence, file=sys.stderr)


INTERRUPTED = 128 + signal.SIGINT
"""The shell's exit code for Ctrl-C."""
PATIENCE = 5
"""Seconds that the other processes of a run wait for the first one's last word."""


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
    lines += ["exit codes: 0 done, 1 a fault of the program's, 2 a mistake in what was asked, 3 stopped after saving,"]
    lines += [f"{INTERRUPTED} Ctrl-C where no run is open"]
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------- making runs
@dataclass(frozen=True)
class Request:
    """What is to be made: a verb's configuration and options; `argv` is what the run folder records."""

    study: Study
    verb: str
    config: Any
    options: Any
    argv: list[str]

    @property
    def action(self) -> Any:
        return self.study.verbs[self.verb]


def one_run(study: Study, verb: str, action: OneRun, argv: list[str]) -> Request:
    """One run, or with --seeds several."""
    from studycore.configuration import build, read_arguments

    given, names = with_aliases(study, argv), _names(load(action.config))
    if action.first_argument and {"-h", "--help"} & set(argv):
        print(f"usage: {study.name} {verb} {action.first_argument.upper()} [flags]\n")
    elif action.first_argument and given and not given[0].startswith("-"):
        flag = f"--{action.first_argument}"
        if flag in [item.partition("=")[0] for item in given[1:]]:
            raise UserError(f"{flag}: is given as the first argument, '{given[0]}'; leave the flag out")
        given = [f"{flag}={given[0]}", *given[1:]]
    refuse_config_of_many(study, given)
    classes, prog = [load(action.config), load(action.options)], f"{study.name} {verb}"
    file, flags = read_arguments(classes, given, prog, study.package, action.default_config)
    own = [{k: v for k, v in values.items() if k in names} for values in (file, flags)]
    config = build(classes[0], load(action.resolve)(*own) if action.resolve else {**own[0], **own[1]})
    options = build(classes[1], {k: v for k, v in {**file, **flags}.items() if k not in names})
    if options.extends and not options.resume:
        raise UserError("--resume: extending goes on with an earlier run, so give --resume as well")
    recorded = [study.name, verb, *argv]
    if options.seeds == 1:
        return Request(study, verb, config, options, recorded)
    if not action.seeds:
        raise UserError(f"--seeds: {prog} makes one run; leave it out")
    if options.num_processes is not None:
        raise UserError("--num-processes: several seeds are runs with a process each; leave it or --seeds out")
    many, whole = load(action.seeds)(config, options.seeds)
    shared = {name: getattr(options, name) for name in _names(load("studycore.options:RunOptions"))}
    return Request(study, many, whole, load("studycore.options:SweepOptions")(**shared), recorded)


def many_runs(study: Study, verb: str, action: ManyRuns, argv: list[str]) -> Request:
    """Many runs. Flags of a single run that are given change the base of all."""
    from studycore.configuration import build, read_arguments

    of: Any = study.verbs[action.of]
    classes = [load(action.config), load("studycore.options:SweepOptions"), load(of.config)]
    file, flags = read_arguments(classes, with_aliases(study, argv), f"{study.name} {verb}", study.package)
    of_whole, of_options, of_runs = ({k: v for k, v in flags.items() if k in _names(cls)} for cls in classes)
    if odd := [name for name in file if name not in _names(classes[0])]:
        raise UserError(f"--config: '{odd[0]}' is no field of {study.name} {verb}; put settings of runs under base")
    of_runs = {k: v for k, v in of_runs.items() if k not in of_whole}
    if action.resolve:
        values = load(action.resolve)(file, of_whole, of_runs)
    else:
        values = {**file, **of_whole}
        values["base"] = {**values.get("base", {}), **of_runs}
    options = build(classes[1], {k: v for k, v in of_options.items() if k not in of_whole})
    return Request(study, verb, build(classes[0], values), options, [study.name, verb, *argv])


def carry_out(request: Request) -> None:
    """Makes what is requested, or shows it where no more is asked for."""
    from studycore.configuration import to_dict, to_yaml

    study, verb, config, options = request.study, request.verb, request.config, request.options
    if options.dry_run or options.print_config:
        print(to_yaml(to_dict(config)))
        if options.dry_run:
            print(time_a_step(request)[1] if isinstance(request.action, OneRun) else describe_plan(request))
        return
    folder = find_folder(study, verb, to_dict(config), options)
    if isinstance(request.action, OneRun):
        # Every process of a relaunched run must get the same folder.
        kept = [item for item in request.argv[2:] if not item.replace("_", "-").startswith("--output-dir=")]
        _relaunch(study, [verb, *kept, "--output-dir", str(folder)], options)
        if options.extends and not (folder / "manifest.json").exists():
            raise UserError(f"--resume: {folder} holds no run to extend; name the run's folder")
    if not (options.resume and not options.extends and _covers(folder, request) and finished(study, folder, config)):
        make(request, folder, options.resume)


def _covers(folder: Path, request: Request) -> bool:
    """Whether the runs that a folder of many was to make are all that are asked for now."""
    if isinstance(request.action, OneRun) or not (folder / "manifest.json").exists():
        return True
    from studycore.execution import choose_jobs
    from studycore.run_folder import read_manifest

    asked = choose_jobs(load(request.action.plan)(request.config), request.options)
    return set(asked) <= set(read_manifest(folder).get("chosen", asked))


def make(request: Request, folder: Path, resume: bool, **more: Any) -> None:
    """Makes the run or runs in the folder and prints the report, also where some of many failed."""
    from studycore.execution import make_run, make_runs

    function: Any = make_run if isinstance(request.action, OneRun) else make_runs
    arguments = (request.study, request.verb, request.config, folder, request.options, request.argv, resume)
    try:
        function(*arguments, **more)
    except SomeFailed:
        # Any other refusal leaves a folder whose report is not of this run.
        _show_report(folder)
        raise
    _show_report(folder)


def _show_report(folder: Path) -> None:
    from studycore.report import print_report

    if _is_first_process() and (folder / "report.md").exists():
        print_report(folder)


def with_aliases(study: Study, argv: Sequence[str]) -> list[str]:
    """The arguments with earlier names of flags as today's."""
    renamed = []
    for item in argv:
        flag, equals, value = item.partition("=")
        alias = study.aliases.get(flag[2:].replace("-", "_")) if flag.startswith("--") else None
        renamed.append(f"--{alias}{equals}{value}" if alias else item)
    return renamed


def refuse_config_of_many(study: Study, argv: list[str]) -> None:
    """UserError when --config names a configuration of many runs where one run is asked for."""
    from studycore.configuration import read_yaml, take_config

    path, _ = take_config(argv, study.package)
    known = {
        v: _names(load(action.config)) for v, action in study.verbs.items() if isinstance(action, OneRun | ManyRuns)
    }
    of_one = {name for v, names in known.items() if isinstance(study.verbs[v], OneRun) for name in names} | {"seeds"}
    for verb, names in known.items() if path else ():
        if isinstance(study.verbs[verb], ManyRuns) and set(read_yaml(path)) & (names - of_one):  # type: ignore[arg-type]
            raise UserError(f"--config: {path} is a configuration of many runs; use it with `{study.name} {verb}`")


def _names(cls: type) -> set[str]:
    return {f.name for f in dataclasses.fields(cls)}


NO_STEPS = "It has no steps to time."


def time_a_step(request: Request, needs: Mapping[str, Path] | None = None) -> tuple[float | None, str]:
    """(seconds that the loops would take, a sentence), from the first steps of each in the real training; nothing is
    written. `needs`: folders of the finished runs that this one needs."""
    if not request.action.has_steps:
        return None, NO_STEPS
    from studycore.run import Timed, opened, peak_memory

    arguments = (request.study, request.verb, request.config)
    with (
        tempfile.TemporaryDirectory() as place,
        opened(*arguments, Path(place), request.options, dry=True, needs=needs) as run,
    ):
        try:
            load(request.action.train)(request.config, run)
        except Timed as timed:
            loops = [loop for loop in timed.args if loop[2]]
            if loops:
                whole = sum(seconds * total for _, seconds, total, _ in loops)
                each = [
                    f"{name}{': ' if name else ''}{total:,} {unit}s of {seconds:.3g} s each"
                    for name, seconds, total, unit in loops
                ]
                return whole, (
                    f"{', then '.join(each)} on {run.device}, so about {duration(whole)} without evaluations; so far "
                    f"{peak_memory():.0f} MiB of memory"
                )
    return None, NO_STEPS


def describe_plan(request: Request) -> str:
    """The jobs that would be made, and the time that all of one verb take if they are like the first that has steps.

    Jobs that are trained together with others take another time: the plan's `estimate` says which.
    """
    from studycore.devices import choose_device
    from studycore.execution import check_plan, choose_jobs, locate, processes_and_threads
    from studycore.record import is_done

    jobs = load(request.action.plan)(request.config)
    check_plan(jobs)
    chosen = choose_jobs(jobs, request.options)
    places, _ = locate(request.study, request.action, jobs, Path(request.options.output_dir or "runs"))
    lines = [
        f"{index}: {job.name}" + (f", after {', '.join(job.needs)}" if job.needs else "")
        for index, job in enumerate(jobs)
        if job.name in chosen
    ]
    if request.action.estimate:
        lines += load(request.action.estimate)(request.config, choose_device(request.options.device)[0])
    for job in (job for job in jobs if job.name in chosen):
        verb = job.verb or request.action.of
        needs = {name: places[name] for name in job.needs}
        if not all(map(is_done, needs.values())):
            continue  # a step of it cannot be made yet
        first = Request(request.study, verb, job.config, request.options, request.argv)
        seconds, sentence = time_a_step(first, needs)
        if seconds is not None:
            alike = sum(
                other.name in chosen and (other.verb or request.action.of, other.together) == (verb, job.together)
                for other in jobs
            )
            processes, _ = processes_and_threads(request.options, choose_device(request.options.device)[0], alike)
            whole = duration(seconds * alike / processes)
            lines += [f"{job.name}: {sentence}"]
            lines += [f"{alike} runs, {processes} at a time: about {whole} if all are like it and none ends early"]
            break
    return "\n".join(lines)


def find_folder(study: Study, verb: str, values: Mapping[str, Any], options: Any) -> Path:
    """--output-dir; with --resume the newest run of this configuration, an unfinished one first."""
    from studycore.configuration import config_hash
    from studycore.run_folder import list_runs, new_folder, state_of

    root = Path("runs")
    if options.output_dir is not None or not options.resume:
        return Path(options.output_dir) if options.output_dir else new_folder(root, study.name, verb, values)
    verb_and_hash = (verb, config_hash(values))
    candidates = [
        (f, state_of(f, m))
        for f, m in list_runs(root, study.name)
        if (m["verb"], m["configuration_hash"]) == verb_and_hash
    ]
    of_this = [f for f, state in candidates if state == "done"]
    of_this += [f for f, state in candidates if state not in ("done", "running")]
    if not of_this:
        what = f"no earlier {verb} run of this configuration under {root}/{study.name}"
        raise UserError(f"--resume: {what}; leave --resume out")
    return of_this[-1]


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
    from studycore.record import manifest_of, read_config

    parser = Parser(prog=f"{study.name} resume", description=COMMON["resume"])
    parser.add_argument("run", help="a run folder")
    folder = Path(parser.parse_args(argv).run)
    manifest = manifest_of(study, folder)
    if finished(study, folder):
        return
    action, verb, devices = study.verbs.get(manifest["verb"]), manifest["verb"], manifest["devices"]
    options = dict(manifest.get("options", {})) | {"device": devices["device"].partition(":")[0], "resume": True}
    if isinstance(action, ManyRuns):
        options_class, needs = load("studycore.options:SweepOptions"), {}
    elif isinstance(action, OneRun):
        options_class, world = load(action.options), devices["world_size"]
        options |= {"threads": devices["threads"], "num_processes": world if world > 1 else None}
        needs = {"needs": {name: folder / place for name, place in manifest.get("needs", {}).items()}}
    else:
        raise UserError(f"{folder}: `{study.name} {verb}` has nothing to resume; run it again")
    request = Request(study, verb, read_config(study, folder), options_class(**options), list(manifest["argv"]))
    if options.get("num_processes"):
        _relaunch(study, ["resume", str(folder)], request.options)
    make(request, folder, True, **needs)


def report_verb(study: Study, argv: list[str]) -> None:
    """`report RUN`: writes the report again from what the folder holds, and prints it."""
    parser = Parser(prog=f"{study.name} report", description=COMMON["report"])
    parser.add_argument("run", nargs="?", help="a run folder; without it the newest one under --runs-dir")
    parser.add_argument("--results_dir", "--results-dir", help="the same")
    parser.add_argument("--runs-dir", default="runs")
    options = parser.parse_args(argv)
    from studycore.execution import report_on
    from studycore.record import manifest_of
    from studycore.report import print_report
    from studycore.run_folder import list_runs

    name = options.run or options.results_dir
    if name is None:
        runs = list_runs(Path(options.runs_dir), study.name)
        if not runs:
            raise UserError(f"RUN: none given and none under {options.runs_dir}/{study.name}; name a run folder")
        name = runs[-1][0]
    manifest_of(study, Path(name))
    report_on(study, Path(name))
    print_report(Path(name))


def runs_verb(study: Study, argv: list[str]) -> None:
    """`runs`: the runs there are; `runs ONE OTHER`: what differs between two."""
    from studycore.configuration import differences, read_yaml
    from studycore.report import number
    from studycore.run_folder import list_runs, read_manifest, read_results, state_of

    parser = Parser(prog=f"{study.name} runs", description="list runs; with two run folders, compare them")
    parser.add_argument("compare", nargs="*", help="two run folders")
    parser.add_argument("--runs-dir", default="runs")
    options = parser.parse_args(argv)
    folders = [Path(name) for name in options.compare]
    if len(folders) not in (0, 2):
        raise UserError(f"compare: {len(folders)} run folders given; name two, or none for the list")
    if folders:
        for folder in folders:
            read_manifest(folder)
        values = [read_yaml(folder / "config.yaml") for folder in folders]
        lines = differences(values[0], values[1], folders[0].name, folders[1].name) or ["same configuration"]
        for folder in folders:
            results = folder / "results.json"
            metrics = read_results(folder)["metrics"] if results.exists() else {}
            shown = [f"{k} {number(v)}" for k, v in metrics.items() if not isinstance(v, dict | list)]
            lines.append(f"{folder.name}: {', '.join(shown) or 'no results yet'}")
    else:
        lines = [
            f"{folder}  {state_of(folder, manifest)}  {manifest['times'].get('seconds', 0):.0f} s  {manifest['reason']}"
            for folder, manifest in list_runs(Path(options.runs_dir), study.name)
        ] or [f"no runs under {options.runs_dir}/{study.name}"]
    print("\n".join(lines))


def doctor_verb(study: Study, argv: list[str]) -> None:
    """`doctor`: what a run needs of this machine, and what to do about what it lacks."""
    from studycore.devices import choose_device, cores, versions

    parser = Parser(prog=f"{study.name} doctor", description=COMMON["doctor"])
    parser.add_argument("--runs-dir", default="runs")
    runs = Path(parser.parse_args(argv).runs_dir)
    device, reason = choose_device("auto")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    existing = next(path for path in [runs.absolute(), *runs.absolute().parents] if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    cache = Path(os.environ.get("MPLCONFIGDIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    checks = [
        (f"device {device}: {reason}", True, ""),
        (f"{cores()} cores, {memory:.0f} GiB of memory", memory >= 2, "needs about 2 GiB"),
        (f"{free:.0f} GiB free for {runs}", free >= 1, "free some space or choose another --output-dir"),
        (f"{runs} can be written", _writable(existing), "choose another --output-dir, or change its owner"),
        (f"cache folder {cache} can be written", _writable(cache), "set MPLCONFIGDIR to a folder that can be written"),
        *(load(study.doctor)() if study.doctor else []),
    ]
    shown = versions(study.distribution, "studycore", "torch", *study.libraries)
    print(", ".join(f"{name} {version}" for name, version in shown.items()))
    for what, holds, mend in checks:
        print(f"{'ok    ' if holds else 'LACKS '}{what}{'' if holds else f': {mend}'}")
    if lacking := [what for what, holds, _ in checks if not holds]:
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
