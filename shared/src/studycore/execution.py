"""Making runs: one, as a job among others, or all jobs of a plan."""

import os
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from studycore.claims import Claim, as_stored, judge_all
from studycore.configuration import differences, read_yaml, to_dict
from studycore.devices import choose_device, cores, describe, set_threads
from studycore.errors import SomeFailed, Stopped, UserError, reason_of, refused_by_system
from studycore.jobs import Ended, Job, JobRunner, Schedule, check_names, run_in_processes
from studycore.options import RunOptions, SweepOptions
from studycore.record import Record, identities_of, identity_of, is_done, job_entries, read_record
from studycore.report import configuration_name, write_report, write_results
from studycore.run_folder import RunFolder, create_run, is_writing, read_manifest
from studycore.stopping import stop_on_signals
from studycore.study import ManyRuns, OneRun, Study, load
from studycore.terminal import duration


def make_run(
    study: Study,
    verb: str,
    config: Any,
    folder: Path,
    options: RunOptions,
    argv: Sequence[str] = (),
    resume: bool = False,
    needs: Mapping[str, Path] | None = None,
    quiet: bool = False,
) -> None:
    """Trains a run in the new `folder`, or goes on with the one there, judges its claims and writes its report.

    With `quiet` nothing is printed and the report is left out. UserError for what can't be run; Stopped when a signal came, after saving.
    """
    task = Task(
        study, verb, config, folder, options, tuple(argv), dict(needs or {}), identity=identity_of(verb, config, {})
    )
    if _train([task], resume=resume, quiet=quiet) and not quiet:
        report_on(study, folder)


@dataclass(frozen=True)
class Task:
    """What a worker needs for one job."""

    study: Study
    verb: str
    config: Any
    folder: Path
    options: RunOptions
    argv: tuple[str, ...]
    needs: dict[str, Path]
    keep_checkpoints: bool = True
    identity: str = ""


def _train(tasks: Sequence[Task], resume: bool, quiet: bool) -> bool:
    """Trains the runs of the tasks, together where there are several; whether this is the main process."""
    from studycore.run import opened

    first = tasks[0]
    action = first.study.verbs[first.verb]
    assert isinstance(action, OneRun)
    try:
        with ExitStack() as stack:
            runs = []
            for task in tasks:
                context = opened(
                    task.study, task.verb, task.config, task.folder, task.options, argv=task.argv, resume=resume,
                    needs=task.needs, quiet=quiet, identity=task.identity,
                )  # fmt: skip
                runs.append(stack.enter_context(context))
                runs[-1].complete = partial(_complete, task)
            if len(tasks) > 1:
                load(action.train_together)([task.config for task in tasks], runs)
            else:
                load(action.train)(first.config, runs[0])
            for run in runs:
                run.finished()
            return runs[0].is_main
    except Stopped as stopped:
        raise Stopped(_what_is_left(str(stopped), first)) from None


def _what_is_left(stopped: str, task: Task) -> str:
    """The sentence on a run that was stopped: what of it is there, and how to go on."""
    if not (task.folder / "manifest.json").exists():
        return f"{stopped} before it had begun; give the command again"
    if not (task.folder / "checkpoints").exists():
        return f"{stopped} without a checkpoint; `{task.study.name} resume {task.folder}` starts it again"
    return f"{stopped} and saved; `{task.study.name} resume {task.folder}` continues"


def _complete(task: Task, run: Any) -> None:
    """The end of a run: its history, its results with the verdicts on its claims, and that it is done."""
    run.open.metrics.compact()
    run.open.update()
    write_results(task.folder, task.study.name, task.verb, run.final, [])
    record = read_record(task.study, task.folder, just_ended=True)
    claims = judged(task.study, record)
    write_results(task.folder, task.study.name, task.verb, run.final, claims)
    run.open.finish("done", f"{run.step} updates")
    if not task.keep_checkpoints:
        shutil.rmtree(task.folder / "checkpoints", ignore_errors=True)


def report_on(study: Study, folder: Path) -> Record:
    """Writes results.json and the report of a run folder from what it holds. UserError when it holds nothing to report."""
    if is_writing(folder):
        raise UserError(f"{folder}: a process is writing this run; wait for its end, or stop it, then report")
    record = read_record(study, folder)
    if isinstance(study.verbs[record.verb], ManyRuns) and record.table.empty:
        first = next((f"; first {name}: {why}" for name, why in record.missing.items()), "")
        raise UserError(f"{folder}: none of its runs is done{first}; `{study.name} resume {folder}` tries them")
    action = study.verbs[record.verb]
    if isinstance(action, OneRun) and record.table.empty:
        again = f"`{study.name} resume {folder}` continues it"
        if not action.reports_unfinished:
            raise UserError(f"{folder}: the run is {record.manifest['state']}; {again}")
        if not record.rows:
            raise UserError(f"{folder}/metrics.jsonl: holds no evaluation yet; {again}")
    claims = judged(study, record)
    report = load(study.report)(replace(record, claims=claims))
    write_results(folder, study.name, record.verb, record.metrics | report.metrics, claims)
    write_report(folder, report, record.missing)
    return record


CHANGES_NOTHING = {"--config", "--output-dir", "--resume", "--processes", "--threads"}
"""Flags beside which a run is still the whole of its configuration."""


def judged(study: Study, record: Record) -> list[dict[str, Any]]:
    """The verdicts on a record's claims, and the command that would run what is not run."""
    argv = record.manifest["argv"]

    def flags(items: Sequence[str]) -> set[str]:
        return {item.partition("=")[0] for item in items if item.startswith("--")}

    def command(claim: Claim) -> str:
        if record.missing:
            return f"{study.name} resume {record.folder}"
        decided_by = study.decided_by if claim.decided_by == "" else claim.decided_by or ""
        verb, *rest = decided_by.split() or [""]
        is_this_run = [verb] == argv[1:2] and configuration_name(rest) == configuration_name(argv)
        is_this_run = is_this_run and not flags(argv) - flags(rest) - CHANGES_NOTHING
        return "" if not decided_by or is_this_run else f"{study.name} {decided_by}"

    claims = load(study.claims)(record.verb, record.config)
    return judge_all(claims, record.table, record.registered, command, record.unregistered)


# --------------------------------------------------------------------------------------------------------- many runs
def do_tasks(tasks: list[Task]) -> list[Ended]:
    """Jobs in a worker. A failure is an outcome; it does not end the others.

    Runs that are trained together must go on from one step; a worker that died may have left them at several, or done.
    """
    parts: dict[int, list[Task]] = {}
    for task in tasks:
        if not is_done(task.folder):
            parts.setdefault(_next_step(task.folder), []).append(task)
    reason = Ended("done")
    for part in parts.values():
        try:
            _train(part, resume=True, quiet=True)
        except Stopped as stopped:
            reason = Ended("stopped", str(stopped))
            break
        except Exception as error:  # a fault in one run is recorded, and the others go on
            if not (isinstance(error, UserError) or refused_by_system(error)):
                traceback.print_exc()
            reason = Ended("failed", reason_of(error))
    return [_how_ended(task.folder, reason) for task in tasks]


def _how_ended(folder: Path, reason: Ended) -> Ended:
    """By the run's own manifest, where it has one; `reason` is how its group ended."""
    if is_done(folder):
        return Ended("done")
    manifest = read_manifest(folder) if (folder / "manifest.json").exists() else {"state": "", "reason": ""}
    return Ended("failed", manifest["reason"]) if manifest["state"] == "failed" else reason


def _next_step(folder: Path) -> int:
    """The step from which a run would go on; -1 for one without a checkpoint, which differs from one saved at step 0."""
    from studycore.checkpoints import load_latest

    checkpoint = load_latest(folder / "checkpoints")
    return checkpoint.step if checkpoint else -1


def make_runs(
    study: Study,
    verb: str,
    config: Any,
    folder: Path,
    options: SweepOptions,
    argv: Sequence[str] = (),
    resume: bool = False,
) -> None:
    """Makes every run of the plan that is not done, each in a folder under `folder`, and writes the report on all.

    SomeFailed when some did, after the report on the others; UserError for what can't be made; Stopped when a signal
    came, after all have saved.
    """
    action = study.verbs[verb]
    assert isinstance(action, ManyRuns)
    device, reason = choose_device(options.device)
    jobs: list[Job] = load(action.plan)(config)
    check_plan(jobs)
    stored = read_manifest(folder) if resume and (folder / "manifest.json").exists() else {}
    if stored and (changed := differences(read_yaml(folder / "config.yaml"), to_dict(config))):
        raise UserError(f"{folder}: its configuration is another: {'; '.join(changed)}; start a new one")
    # What was asked for before is still asked for.
    wanted = {*choose_jobs(jobs, options), *stored.get("chosen", [])}
    chosen = [job.name for job in jobs if job.name in wanted]
    places, identities = locate(study, action, jobs, folder)
    processes, threads = processes_and_threads(options, device, len(chosen))
    set_threads(threads)
    each = "as many threads as torch takes" if threads is None else f"{threads} thread{'s' if threads > 1 else ''} each"
    count = f"{len(chosen)} of {len(jobs)} runs, {processes} at a time, {each}"
    print(f"{study.name} {verb} on {device} ({reason}): {count}", flush=True)

    whole = _open(study, verb, config, folder, options, argv, device, jobs, places, chosen, bool(stored))
    with stop_on_signals() as stop, closing(whole):
        tasks = {}
        every = None if threads is None or options.threads is not None else threads * processes
        by_itself = alone(jobs)
        for job in (job for job in jobs if job.name in chosen):
            if found_done(places[job.name], identities[job.name]):
                whole.metrics.append(_row(whole, study, job, places[job.name], "done"))
                print(f"  {job.name}: was done before, in {places[job.name]}", flush=True)
                continue
            of = job.verb or action.of
            own = every or threads if job.name in by_itself and options.engine == "local" else threads
            each = load(study.verbs[of].options)(device=device, threads=own, tracker=options.tracker)  # type: ignore[union-attr]
            tasks[job.name] = Task(
                study, of, job.config, places[job.name], each, tuple(argv), {n: places[n] for n in job.needs},
                job.keep_checkpoints, identities[job.name],
            )  # fmt: skip
        schedule = Schedule(
            {job.name: job.needs for job in jobs if job.name in tasks},
            {job.name: job.together for job in jobs},
            processes,
        )
        by_name = {job.name: job for job in jobs}
        failed: dict[str, str] = {}
        progress = _Progress({name: task.verb for name, task in tasks.items()}, processes)
        for name, ended in job_runner(options, device, processes, threads)(do_tasks, tasks, schedule, stop):
            state = "done" if is_done(places[name]) else ended.state
            if state == "failed":
                failed[name] = ended.reason
            row = _row(whole, study, by_name[name], places[name], state)
            whole.metrics.append(row)
            seconds = read_manifest(places[name])["times"]["seconds"] if state == "done" else None
            progress.tell(name, f"{state}{f', {ended.reason}' if state != 'done' else _figures(row)}", seconds)
        progress.bar.close()
        if stop:
            whole.finish("stopped", f"stopped by {stop.name}")
            raise Stopped(f"stopped by {stop.name} and saved; `{study.name} resume {folder}` continues")
        whole.metrics.compact()
        failed = {name: failed[name] for name in chosen if name in failed}  # in the plan's order
        whole.update(failed=failed)
        finished = f"{len(chosen)} of {len(jobs)} runs asked for"
        if not failed:
            whole.finish("done", f"{finished}, all finished")
            report_on(study, folder)
            return
        name, why = next(iter(failed.items()))
        said = f"{len(failed)} of {len(chosen)} runs failed, first {name}: {why.rstrip('.')}"
        whole.finish("failed", said)
        report_on(study, folder)
        raise SomeFailed(f"{said}; the report holds the others, and `{study.name} resume {folder}` tries them again")


def check_plan(jobs: Sequence[Job]) -> None:
    """UserError for names that cannot be; assertion that what a job needs stands before it."""
    check_names([job.name for job in jobs])
    for i, job in enumerate(jobs):
        assert set(job.needs) <= {other.name for other in jobs[:i]}, (job.name, job.needs)


def alone(jobs: Sequence[Job]) -> set[str]:
    """Names of jobs beside which no other can run: each other one is needed by it or needs it, at some remove."""
    above: dict[str, set[str]] = {}
    for job in jobs:
        above[job.name] = set(job.needs).union(*(above[name] for name in job.needs))
    below = {name: sum(name in needed for needed in above.values()) for name in above}
    return {name for name, needed in above.items() if len(needed) + below[name] == len(jobs) - 1}


def choose_jobs(jobs: Sequence[Job], options: SweepOptions) -> list[str]:
    """All names, those from --start-from on, or the one of --experiment, each with what it needs. UserError for none."""
    names = [job.name for job in jobs]
    if options.experiment is not None and options.experiment not in names:
        raise UserError(f"--experiment: '{options.experiment}' is not among the runs; there are {', '.join(names)}")
    if not options.start_from < len(names):
        raise UserError(
            f"--start-from: {options.start_from} is no index of the {len(names)} runs; give 0 to {len(names) - 1}"
        )
    chosen = set(names[options.start_from :] if options.experiment is None else [options.experiment])
    for job in reversed(jobs):
        if job.name in chosen:
            chosen |= set(job.needs)
    return [name for name in names if name in chosen]


def locate(study: Study, action: ManyRuns, jobs: Sequence[Job], folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """(folders, identities) of the jobs by name."""
    places: dict[str, Path] = {}
    identities = identities_of(action, jobs)
    for job in jobs:
        cache = Path("runs") / study.name / "cache" / f"{job.verb or action.of}-{identities[job.name]}"
        places[job.name] = (cache if job.shared else folder / job.name).absolute()
    return places, identities


def found_done(folder: Path, identity: str) -> bool:
    """Whether the folder holds the run that is wanted, finished. UserError when it holds another one, or a part of it."""
    if not (folder / "manifest.json").exists():
        return False
    if read_manifest(folder).get("identity") != identity:
        raise UserError(f"{folder}: holds a run of another version, or of other needs; remove it, or start a new one")
    return is_done(folder)


def processes_and_threads(options: SweepOptions, device: str, jobs: int) -> tuple[int, int | None]:
    """(jobs at the same time, threads of each), where the flags leave them open: None is torch's own choice.

    On this machine one job per core, or one on a GPU; on a cluster one per core, or per GPU, of all its machines.
    UserError for an address without Ray, and for a cluster that cannot be used.
    """
    if options.engine != "ray" and options.address is not None:
        raise UserError(f"--address: '{options.address}' is for --engine ray; give that too, or leave the address out")
    if options.engine == "ray":
        from studycore.ray_engine import load as load_ray, slots

        load_ray()
        if options.address is not None:
            free_slots = slots(options.address, options.threads or 1, int(device == "cuda"))
            return options.processes or max(1, min(free_slots, jobs)), options.threads or (
                1 if device == "cpu" else None
            )
    processes = options.processes or (max(1, min(cores(), jobs)) if device == "cpu" else 1)
    return processes, options.threads or (max(1, cores() // processes) if device == "cpu" else None)


def job_runner(options: SweepOptions, device: str, processes: int, threads: int | None) -> JobRunner:
    """What makes the runs: processes of this machine, or Ray."""
    if options.engine != "ray":
        return lambda work, values, schedule, stop: run_in_processes(work, values, schedule, stop, processes)
    from studycore.ray_engine import run_on_ray

    # A cluster may grow: what is not asked for is not bounded there.
    at_once = processes if options.address is None else options.processes
    cpus, gpus = threads or 1, int(device == "cuda")
    return lambda work, values, schedule, stop: run_on_ray(
        work, values, schedule, stop, options.address, at_once, cpus, gpus
    )


RECORDED_OPTIONS = ("experiment", "start_from", "processes", "threads", "tracker", "engine", "address")
"""Flags of many runs that `resume` gives again."""


class closing:
    """When an error leaves the block, the folder is marked as failed, with the reason; it is closed in any case."""

    def __init__(self, folder: RunFolder):
        self.folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not self.folder.closed:
            self.folder.finish("failed", reason_of(error))
        self.folder.close()


def _open(
    study: Study, verb: str, config: Any, folder: Path, options: SweepOptions, argv: Sequence[str], device: str,
    jobs: Sequence[Job], places: Mapping[str, Path], chosen: Sequence[str], resume: bool,
) -> RunFolder:  # fmt: skip
    """The folder of the whole, new or gone on with."""
    if resume:
        from studycore.run import reopen

        whole = reopen(folder, describe(device), study.name)
        whole.metrics.rewind(0)
    else:
        whole = create_run(
            folder, study=study, verb=verb, config=to_dict(config), argv=argv, devices=describe(device),
            seeds=sorted({job.config.seed for job in jobs if hasattr(job.config, "seed")}),
            data={"runs": "each run's manifest holds its own"},
            claims=[as_stored(claim) for claim in load(study.claims)(verb, config)],
        )  # fmt: skip
    # Relative, so that a whole runs/ may be moved.
    elsewhere = {job.name: os.path.relpath(places[job.name].resolve(), folder.resolve()) for job in jobs if job.shared}
    kept = {name: getattr(options, name) for name in RECORDED_OPTIONS}
    whole.update(jobs=job_entries(jobs, elsewhere), chosen=list(chosen), options=kept)
    return whole


class _Progress:
    """Runs that have ended, and the time that the others may take: as long as those of the same verb did."""

    def __init__(self, verbs: Mapping[str, str], processes: int):
        from tqdm import tqdm

        self.waiting, self.total, self.processes = dict(verbs), len(verbs), processes
        self.took: dict[str, list[float]] = {}
        self.bar = tqdm(total=self.total, unit="run", disable=not sys.stderr.isatty())

    def tell(self, name: str, how: str, seconds: float | None) -> None:
        verb = self.waiting.pop(name)
        if seconds is not None:
            self.took.setdefault(verb, []).append(seconds)
        self.bar.update(1)
        known = [sum(self.took[v]) / len(self.took[v]) for v in self.waiting.values() if v in self.took]
        said = "about" if len(known) == len(self.waiting) else "more than"
        left = f"; {said} {duration(sum(known) / self.processes)} left" if known else ""
        done = self.total - len(self.waiting)
        self.bar.write(f"  {name}: {how} ({done} of {self.total}{left})", file=sys.stdout)
        sys.stdout.flush()


def _row(whole: RunFolder, study: Study, job: Job, folder: Path, state: str) -> dict[str, Any]:
    """The row of the whole on a run that ended: step counts the runs."""
    seed = {"seed": job.config.seed} if hasattr(job.config, "seed") else {}
    row = {"step": len(whole.metrics.rows) + 1, "run": job.name, "arm": job.arm or job.name, **job.labels, **seed}
    metrics = {}
    if state == "done":
        columns = load(study.columns)(folder, job.config)
        metrics = {k: v for k, v in columns.items() if isinstance(v, int | float | str) and k not in row}
    return {**row, "state": state, **metrics}


def _figures(row: Mapping[str, Any]) -> str:
    """The first numbers of a run."""
    from studycore.report import number

    skipped = ("step", "seed")
    numbers = [
        (k, v) for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool) and k not in skipped
    ]
    return "".join(f", {name} {number(value)}" for name, value in numbers[:3])
