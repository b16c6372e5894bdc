"""A sweep: plan the runs, train coverage checkpoints, then the phases (stacked where they can be), resume, report."""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from studycore.configuration import check_types, differences, from_dict, read_yaml, to_dict
from studycore.devices import choose_device, describe, set_threads
from studycore.errors import Stopped, UserError
from studycore.files import read_json
from studycore.runs import Run, create_run, environment_changes, now, open_run, read_manifest, recording
from studycore.stopping import StopFlag, stop_on_signals
from studycore.sweep import Done, Runner, plan, runner, share_out
from ternary_vae.config import (
    ENCODING,
    ArchitectureConfig,
    PhaseConfig,
    RunOptions,
    SweepConfig,
    SweepOptions,
    TrainConfig,
)
from ternary_vae.record import STUDY
from ternary_vae.report import write_sweep_report
from ternary_vae.stacked import not_stackable, shape_of
from ternary_vae.summary import run_id, summarise

COVERAGE, SCRATCH = "coverage", "from scratch"
"""The phases of the runs that make checkpoints, and of the arms that start without one."""


@dataclass(frozen=True)
class Planned:
    """One run of a sweep; `start` names the sister run that it needs."""

    name: str
    phase: str
    arm: str
    config: TrainConfig

    @property
    def start(self) -> str | None:
        return self.config.start


@dataclass(frozen=True)
class Job:
    """What one worker trains: one run, or several of one shape as a stack."""

    folders: tuple[Path, ...]
    configs: tuple[TrainConfig, ...]
    options: RunOptions
    argv: tuple[str, ...]
    stacked: bool = False
    """Trained as a stack, even where it is one run: its rounding is then that of its like."""


def plan_sweep(sweep: SweepConfig) -> dict[str, Planned]:
    """Name -> run: the coverage checkpoints that the phases need, arms from scratch, then the phases.

    UserError names what is not valid.
    """
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    first = int(sweep.base.get("seed", sweep.coverage.get("seed", TrainConfig.seed)))
    seeds = range(first, first + sweep.seeds)
    found: dict[str, Planned] = {}
    needed: dict[str, Planned] = {}

    def add(into: dict[str, Planned], name: str, phase: str, arm: str, values: Mapping[str, Any]) -> None:
        if unknown := sorted(set(values) - known):
            raise UserError(f"{phase}: {unknown} are no fields of a run; see `ternary-vae train --help`")
        try:
            config = TrainConfig(**check_types(TrainConfig, values))
        except ValueError as error:
            raise UserError(f"experiment {name}: {error}") from None
        if name in found or (name in needed and into is not needed):
            raise UserError(f"name: several runs would be called {name}; give every arm another name")
        into[name] = Planned(name, phase, arm, config)

    for phase, given in sweep.phases.items():
        parts = PhaseConfig(**check_types(PhaseConfig, given))
        planned = plan({**sweep.base, **parts.base}, parts.grid, parts.arms, seeds, parts.name)
        for run in planned:
            shape = {k: v for k, v in {**sweep.coverage, **run.values}.items() if k in ENCODING}
            plain = {k: v for k, v in sweep.coverage.items() if k in ENCODING}
            suffix = "".join(f"_{k}{_word(v)}" for k, v in shape.items() if plain.get(k, _default(k)) != v)
            start = f"{COVERAGE}{suffix}_s{run.seed}"
            if start not in needed:
                of_start = {**sweep.coverage, **shape, "stages": "coverage", "seed": run.seed}
                add(needed, start, COVERAGE, f"{COVERAGE}{suffix}", of_start)
            values = {**shape, **run.values, "stages": "hierarchy", "start": start, "start_projections": "drawn"}
            name = run.name if len(seeds) > 1 else f"{run.arm}_s{run.seed}"
            add(found, name, phase, run.arm, values)
    scratch: dict[str, Planned] = {}
    for run in plan(sweep.coverage, {}, sweep.from_scratch, seeds) if sweep.from_scratch else []:
        add(scratch, f"{run.arm}_s{run.seed}", SCRATCH, run.arm, run.values)
    if doubled := set(scratch) & (set(found) | set(needed)):
        raise UserError(f"from_scratch: {sorted(doubled)} are names of other runs too; give every arm another name")
    return {**needed, **scratch, **found}


def _default(name: str) -> Any:
    return to_dict(ArchitectureConfig())[name]


def _word(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)


def train_job(job: Job) -> Done:
    """One job in a worker. A failure is an outcome; it does not end the sweep."""
    if not job.stacked:
        return _train_part(job)
    # A stack whose worker died may have runs that are done, and runs that were saved at one step more than others.
    parts: dict[int, list[int]] = {}
    for k, folder in enumerate(job.folders):
        if not is_done(folder):
            parts.setdefault(_next_step(folder), []).append(k)
    ends = []
    for part in parts.values():
        folders, configs = tuple(job.folders[k] for k in part), tuple(job.configs[k] for k in part)
        ends.append(_train_part(dataclasses.replace(job, folders=folders, configs=configs)))
        if ends[-1].state == "stopped":
            return ends[-1]
    return next((end for end in ends if end.state == "failed"), Done("done", ""))


def _train_part(job: Job) -> Done:
    """Runs that go on from one step, as a stack, or one run alone."""
    from ternary_vae.train import train

    folder, config = job.folders[0], job.configs[0]
    try:
        if job.stacked:
            from ternary_vae.stacked import train_stack

            train_stack(job.configs, job.folders, job.options, job.argv)
        else:
            train(config, folder, job.options, job.argv, resume=(folder / "manifest.json").exists(), quiet=True)
    except Stopped as stopped:
        return Done("stopped", str(stopped))
    except UserError as error:
        return Done("failed", str(error))
    except Exception as error:  # a fault in one run is recorded, and the others go on
        import traceback

        traceback.print_exc()
        return Done("failed", f"{type(error).__name__}: {error}")
    return Done("done", "")


def make_jobs(
    planned: Mapping[str, Planned], names: Sequence[str], folder: Path, each: RunOptions, argv: Sequence[str],
    processes: int, stack: bool, max_stack: int,
) -> dict[str, Job]:  # fmt: skip
    """The jobs that train the named runs: stacks of runs that share shape and step, at least one per process."""
    groups: dict[Any, list[str]] = {}
    for name in names:
        config = planned[name].config
        alone = not stack or not_stackable(config)
        groups.setdefault(name if alone else (shape_of(config), _next_step(folder / name)), []).append(name)
    stacks: list[list[str]] = []
    for group in groups.values():
        size = min(max_stack, -(-len(group) // processes))
        # Runs of one seed share their codes and batches: neighbours in a stack.
        ordered = sorted(group, key=lambda name: (planned[name].config.seed, planned[name].start or ""))
        stacks += [ordered[k : k + size] for k in range(0, len(ordered), size)]
    stacks.sort(key=lambda group: -sum(planned[name].config.epochs for name in group))
    return {
        " ".join(group): Job(
            tuple(folder.absolute() / n for n in group),
            tuple(planned[n].config for n in group),
            each,
            tuple(argv),
            stack and not not_stackable(planned[group[0]].config),
        )
        for group in stacks
    }


def _next_step(folder: Path) -> int:
    """Where a run would go on; -1 for one without a checkpoint, which differs from one that was saved at step 0."""
    from studycore.checkpoints import load_latest

    root = folder / "checkpoints"
    checkpoint = load_latest(root) if root.is_dir() else None
    return int(checkpoint.state["step"]) if checkpoint else -1


def run_sweep(
    sweep: SweepConfig, folder: Path, options: SweepOptions, argv: Sequence[str], resume: bool = False
) -> Path:
    """Trains every planned run that is not done and writes the sweep's report.

    Each run has its folder under `folder`, named after the experiment, and resumes from its own checkpoints. Stopped
    when a signal came, after all running runs have saved.
    """
    device, reason = choose_device(options.device)
    planned = plan_sweep(sweep)
    stored = read_manifest(folder) if resume and (folder / "manifest.json").exists() else {}
    if stored and (changed := differences(read_yaml(folder / "config.yaml"), to_dict(sweep))):
        raise UserError(f"{folder}: its configuration is another: {'; '.join(changed)}; start a new sweep for this one")
    processes, threads = share_out(options, device, len(planned))
    set_threads(threads)
    each = RunOptions(device=device, threads=threads, tracker=options.tracker)
    print(f"ternary-vae sweeps on {device} ({reason}): {len(planned)} runs, {processes} processes")

    run = _open(folder, sweep, planned, argv, device, resume)
    with stop_on_signals() as stop, recording(run):
        for name in planned:
            if is_done(folder / name):
                run.metrics.append(_row(run, planned[name], "done"))
        ids = {name: run_id(p.config) for name, p in planned.items()}
        kept = ("processes", "threads", "stack", "max_stack", "tracker", "engine", "address")
        run.update(runs=ids, options={name: getattr(options, name) for name in kept})
        failed: dict[str, str] = {}
        train_all = runner(options, device, processes, threads)
        # What others start from comes first; then the rest, longest first.
        for phase_is_first in (True, False):
            names = [
                n for n, p in planned.items() if (p.phase == COVERAGE) == phase_is_first and not is_done(folder / n)
            ]
            for name in list(names):
                start = planned[name].start
                if start in failed:
                    failed[name] = f"its start {start} failed: {failed[start]}"
                    names.remove(name)
            jobs = make_jobs(planned, names, folder, each, argv, processes, options.stack == "auto", options.max_stack)
            failed |= _train(jobs, run, planned, train_all, stop)
            if stop:
                run.finish("stopped", f"stopped by {stop.name}")
                raise Stopped(f"stopped by {stop.name} and saved; `ternary-vae resume {folder}` continues")
        run.metrics.compact()
        run.update()
        report_sweep(folder, failed)
        done = f"{len(planned)} runs"
        run.finish("done", f"{done}, {len(failed)} failed" if failed else f"{done}, all finished")
    return folder


def _train(
    jobs: Mapping[str, Job], run: Run, planned: Mapping[str, Planned], train_all: Runner, stop: StopFlag
) -> dict[str, str]:
    """Trains the jobs with progress and a row per run that ends; returns the failed runs with their reasons."""
    failed: dict[str, str] = {}
    weights = {key: sum(c.epochs + c.coverage_epochs / 2 for c in job.configs) for key, job in jobs.items()}
    bar = tqdm(total=sum(len(job.folders) for job in jobs.values()), unit="run", disable=not sys.stderr.isatty())
    ended, started = 0.0, time.monotonic()
    for key, done in train_all(train_job, jobs, stop):
        ended += weights[key]
        left = (time.monotonic() - started) / ended * (sum(weights.values()) - ended)
        names = [folder.name for folder in jobs[key].folders]
        for folder in jobs[key].folders:
            state = "done"
            if not is_done(folder):
                # A stack is done when all its runs have ended, also those that failed.
                state = "stopped" if done.state == "stopped" else "failed"
            if state == "failed":
                there = (folder / "manifest.json").exists()
                own = read_manifest(folder) if there else {"state": "", "reason": ""}
                reason = own["reason"] if own["state"] == "failed" else done.reason
                failed[folder.name] = reason or "ended without a word"
            run.metrics.append(_row(run, planned[folder.name], state))
            bar.update(1)
        shown = names[0] if len(names) == 1 else f"{len(names)} stacked runs, {names[0]} to {names[-1]}"
        tqdm.write(
            f"  {shown}: {done.state}{f', {done.reason}' if done.reason else ''} (about {left:.0f} s left in this part)"
        )
    bar.close()
    return failed


def _row(run: Run, planned: Planned, state: str) -> dict[str, Any]:
    """The sweep's row on a run that ended: step counts the runs."""
    row = {
        "step": len(run.metrics.rows) + 1, "run": planned.name, "run_id": run_id(planned.config), "phase": planned.phase,
        "arm": planned.arm, "seed": planned.config.seed, "state": state,
    }  # fmt: skip
    if state == "done":
        metrics = read_json(run.folder / planned.name / "results.json")["metrics"]
        names = ("coverage", "hierarchy", "somers_d", "min_level_gap", "richness", "best_hierarchy", "best_epoch")
        row |= {name: metrics[name] for name in names if name in metrics}
    return row


def report_sweep(folder: Path, failed: Mapping[str, str] | None = None) -> None:
    """The sweep's results and report from the runs that are done."""
    planned = plan_sweep(read_sweep_config(folder))
    missing = dict(failed or {})
    found = []
    for name, run in planned.items():
        if is_done(folder / name):
            found.append(summarise(folder / name, run.phase, run.arm))
        elif name not in missing:
            manifest = read_manifest(folder / name) if (folder / name / "manifest.json").exists() else None
            missing[name] = "not begun" if manifest is None else f"{manifest['state']}: {manifest['reason']}"
    if not found:
        raise UserError(f"{folder}: none of its runs is done yet; `ternary-vae resume {folder}` continues")
    phases = [run for run in found if run.phase not in (COVERAGE, SCRATCH)]
    scratch = [run for run in found if run.phase in (COVERAGE, SCRATCH)]
    write_sweep_report(folder, phases, scratch, missing, [])


def read_sweep_config(folder: Path) -> SweepConfig:
    config: SweepConfig = from_dict(SweepConfig, read_yaml(folder / "config.yaml"), f"{folder}/config.yaml")
    return config


def is_done(folder: Path) -> bool:
    """Whether the run finished."""
    return (folder / "manifest.json").exists() and read_manifest(folder)["state"] == "done"


def _open(
    folder: Path, sweep: SweepConfig, planned: Mapping[str, Planned], argv: Sequence[str], device: str, resume: bool
) -> Run:
    devices = describe(device)
    if resume and (folder / "manifest.json").exists():
        run = open_run(folder)
        run.metrics.rewind(-1)
        changes = environment_changes(run.manifest, devices)
        run.update(state="running", reason="", resumed=[*run.manifest["resumed"], {"at": now(), "changes": changes}])
        return run
    seeds = sorted({p.config.seed for p in planned.values()})
    return create_run(
        folder,
        study=STUDY,
        verb="sweep",
        config=to_dict(sweep),
        argv=list(argv),
        seeds=seeds,
        devices=devices,
        data={"training operations": "each run's manifest holds its own"},
        source=Path(__file__),
        libraries=("accelerate", "geoopt"),
    )
