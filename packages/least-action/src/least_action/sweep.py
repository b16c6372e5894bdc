"""A sweep: plan the runs, train them over processes or stacked, resume what was cut off, report."""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from least_action.claims import RunSummary
from least_action.config import RunOptions, SweepConfig, SweepOptions, TrainerConfig
from least_action.record import STUDY
from least_action.report import summarise, write_sweep_report
from studycore.configuration import check_types, differences, from_dict, read_yaml, to_dict
from studycore.devices import choose_device, describe, set_threads
from studycore.errors import Stopped, UserError
from studycore.runs import Run, create_run, environment_changes, now, open_run, read_manifest, recording
from studycore.stopping import StopFlag, stop_on_signals
from studycore.sweep import Done, Planned, Runner, plan, runner, share_out


@dataclass(frozen=True)
class Job:
    """What one worker trains: one run, or several of one shape as a stack."""

    folders: tuple[Path, ...]
    configs: tuple[TrainerConfig, ...]
    options: RunOptions
    argv: tuple[str, ...]


def plan_sweep(sweep: SweepConfig) -> dict[str, tuple[Planned, TrainerConfig]]:
    """Experiment name -> what is planned and its configuration. UserError names the experiment that is not valid."""
    known = {f.name for f in dataclasses.fields(TrainerConfig)}
    for part, given in (("base", sweep.base), ("grid", sweep.grid), *((f"arms.{k}", v) for k, v in sweep.arms.items())):
        if not isinstance(given, dict) or set(given) - known:
            unknown = sorted(set(given) - known) if isinstance(given, dict) else given
            raise UserError(f"{part}: {unknown} are no fields of a run; see `least-action train --help`")
    if sweep.seeds < 1:
        raise UserError(f"seeds: {sweep.seeds} is too few; give at least 1")
    first = int(sweep.base.get("seed", TrainerConfig.seed))
    planned = plan(sweep.base, sweep.grid, sweep.arms, range(first, first + sweep.seeds), sweep.name)
    configs = {}
    for run in planned:
        try:
            configs[run.name] = (run, TrainerConfig(**check_types(TrainerConfig, run.values)))
        except ValueError as error:
            raise UserError(f"experiment {run.name}: {error}") from None
    return configs


def train_job(job: Job) -> Done:
    """One job in a worker. A failure is an outcome; it does not end the sweep."""
    from least_action.train import train

    folder, config = job.folders[0], job.configs[0]
    try:
        if len(job.folders) > 1:
            from least_action.stacked import train_stack

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


def run_sweep(
    sweep: SweepConfig, folder: Path, options: SweepOptions, argv: Sequence[str], resume: bool = False
) -> Path:
    """Trains every planned run that is not done and writes the sweep's report.

    Each run has its folder under `folder`, named after the experiment, and resumes from its own checkpoints. Stopped
    when a signal came, after all running runs have saved.
    """
    from least_action.stacked import make_stacks

    device, reason = choose_device(options.device)
    experiments = plan_sweep(sweep)
    stored = read_manifest(folder) if resume and (folder / "manifest.json").exists() else {}
    if stored and (changed := differences(read_yaml(folder / "config.yaml"), to_dict(sweep))):
        raise UserError(f"{folder}: its configuration is another: {'; '.join(changed)}; start a new sweep for this one")
    # A sweep that was cut off goes on with the experiments it was to run.
    chosen = stored.get("chosen") or choose_experiments(list(experiments), options)
    processes, threads = share_out(options, device, len(chosen))
    set_threads(threads)
    each = RunOptions(device=device, threads=threads, tracker=options.tracker)
    print(
        f"least-action sweeps on {device} ({reason}): {len(chosen)} of {len(experiments)} runs, {processes} processes"
    )

    run = _open(folder, sweep, [config for _, config in experiments.values()], argv, device, resume)
    with stop_on_signals() as stop, recording(run):
        todo = [name for name in chosen if not is_done(folder / name)]
        stacks, how = make_stacks({name: experiments[name][1] for name in todo}, device, options, processes, folder)
        print(how)
        run.update(runs=list(experiments), chosen=chosen, stacking=how)
        jobs = {
            " ".join(names): Job(
                tuple(folder.absolute() / n for n in names), tuple(experiments[n][1] for n in names), each, tuple(argv)
            )
            for names in stacks
        }
        train_all = runner(options, device, processes, threads)
        failed = _train(jobs, run, experiments, train_all, stop, len(todo))
        if stop:
            run.finish("stopped", f"stopped by {stop.name}")
            raise Stopped(f"stopped by {stop.name} and saved; `least-action resume {folder}` continues")
        run.metrics.compact()
        run.update()
        report_sweep(folder, failed)
        done = f"{len(chosen)} of {len(experiments)} runs asked for"
        run.finish("done", f"{done}, {len(failed)} failed" if failed else f"{done}, all finished")
    return folder


def _train(
    jobs: Mapping[str, Job],
    run: Run,
    experiments: Mapping[str, tuple[Planned, TrainerConfig]],
    train_all: Runner,
    stop: StopFlag,
    total: int,
) -> dict[str, str]:
    """Trains the jobs with progress and a row per run that ends; returns the failed runs with their reasons."""
    failed: dict[str, str] = {}
    bar = tqdm(total=total, unit="run", disable=not sys.stderr.isatty())
    ended, started = 0, time.monotonic()
    for name in experiments:
        if is_done(run.folder / name):
            run.metrics.append(_row(run, name, experiments, "done"))
    for key, done in train_all(train_job, jobs, stop):
        for folder in jobs[key].folders:
            name, ended = folder.name, ended + 1
            state = "done" if is_done(folder) else done.state
            if state == "failed":
                failed[name] = done.reason
            row = _row(run, name, experiments, state)
            run.metrics.append(row)
            bar.update(1)
            left = (time.monotonic() - started) / ended * (total - ended)
            how = (
                f"grokked at {row['grokked_99']}" if "grokked_99" in row else f"{state}, {done.reason or 'not grokked'}"
            )
            tqdm.write(f"  {name}: {how} ({ended} of {total}; about {left:.0f} s left)")
    bar.close()
    return failed


def _row(run: Run, name: str, experiments: Mapping[str, tuple[Planned, TrainerConfig]], state: str) -> dict[str, Any]:
    """The sweep's row on a run that ended: step counts the runs."""
    planned, config = experiments[name]
    row = {"step": len(run.metrics.rows) + 1, "run": name, "arm": planned.arm, "seed": config.seed, "state": state}
    if state == "done":
        summary = summarise(run.folder / name)
        row |= {k: v for k, v in summary.events.as_dict().items() if v is not None}
        row |= {k: summary.rows[-1][k] for k in ("train_acc", "test_acc", "train_loss", "test_loss")}
    return row


def report_sweep(folder: Path, failed: Mapping[str, str] | None = None) -> None:
    """The sweep's results and report from the runs that are done."""
    experiments = plan_sweep(read_sweep_config(folder))
    arms: dict[str, list[RunSummary]] = {}
    missing = dict(failed or {})
    for name, (planned, _) in experiments.items():
        if is_done(folder / name):
            arms.setdefault(planned.arm, []).append(summarise(folder / name))
        elif name not in missing:
            state = read_manifest(folder / name)["state"] if (folder / name / "manifest.json").exists() else "not begun"
            missing[name] = f"not run: {state}"
    if not arms:
        raise UserError(f"{folder}: none of its runs is done yet; `least-action resume {folder}` continues")
    stacking = read_manifest(folder).get("stacking", "")
    write_sweep_report(folder, arms, missing, [stacking] if stacking else [])


def read_sweep_config(folder: Path) -> SweepConfig:
    config: SweepConfig = from_dict(SweepConfig, read_yaml(folder / "config.yaml"), f"{folder}/config.yaml")
    return config


def is_done(folder: Path) -> bool:
    """Whether the run finished."""
    return (folder / "manifest.json").exists() and read_manifest(folder)["state"] == "done"


def choose_experiments(names: list[str], options: SweepOptions) -> list[str]:
    """All names, those from --start-from on, or the one of --experiment. UserError when that leaves none."""
    if options.experiment is not None:
        if options.experiment not in names:
            raise UserError(f"--experiment: '{options.experiment}' is not in this sweep; there are {', '.join(names)}")
        return [options.experiment]
    if not 0 <= options.start_from < len(names):
        raise UserError(
            f"--start-from: {options.start_from} is no index of the {len(names)} experiments; give 0 to {len(names) - 1}"
        )
    return names[options.start_from :]


def _open(
    folder: Path, sweep: SweepConfig, configs: Sequence[TrainerConfig], argv: Sequence[str], device: str, resume: bool
) -> Run:
    devices = describe(device)
    if resume and (folder / "manifest.json").exists():
        run = open_run(folder)
        run.metrics.rewind(-1)
        changes = environment_changes(run.manifest, devices)
        run.update(state="running", reason="", resumed=[*run.manifest["resumed"], {"at": now(), "changes": changes}])
        return run
    seeds = sorted({config.seed for config in configs})
    return create_run(
        folder,
        study=STUDY,
        verb="sweep",
        config=to_dict(sweep),
        argv=list(argv),
        seeds=seeds,
        devices=devices,
        data={"training pairs": "each run's manifest holds its own"},
        source=Path(__file__),
    )
