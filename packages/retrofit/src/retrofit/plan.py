"""The main job: all arms and seeds from one start, as runs of their own that resume one by one, and the report on them."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from retrofit.config import CompareConfig, CompareOptions, RunConfig, RunOptions
from retrofit.record import LIBRARIES, STUDY
from retrofit.report import write_comparison
from studycore.configuration import check_types, differences, from_dict, read_yaml, to_dict
from studycore.devices import choose_device, cores, describe, set_threads
from studycore.errors import Stopped, UserError
from studycore.metrics import read_rows
from studycore.runs import Run, create_run, environment_changes, now, open_run, read_manifest, recording
from studycore.stopping import StopFlag, stop_on_signals
from studycore.sweep import Done, run_in_processes

START = "start"
"""The run that only evaluates step 0; all arms take its numbers over."""


@dataclass(frozen=True)
class Job:
    """What a worker needs."""

    folder: Path
    config: RunConfig
    options: RunOptions
    argv: tuple[str, ...]
    start: Path | None


def plan(compare: CompareConfig) -> dict[str, RunConfig]:
    """Name -> configuration of every run: the start, then seed by seed every arm. UserError for fields that don't fit."""
    if unknown := sorted(set(compare.base) - set(RunConfig.__dataclass_fields__)):
        raise UserError(f"base: {unknown} are no fields of a run; see `retrofit run --help`")
    base = check_types(RunConfig, {k: v for k, v in compare.base.items() if k != "method"})
    first = int(base.get("seed", RunConfig.seed))
    planned = {}
    try:
        planned[START] = RunConfig(**{**base, "method": "none", "save_model": False})
        for seed in range(first, first + compare.seeds):
            for arm in compare.arms:
                values = {**base, "method": arm, "seed": seed}
                if arm == "norm_matched":
                    values["norm_reference"] = f"../geometry_s{seed}"
                planned[f"{arm}_s{seed}"] = RunConfig(**values)
    except ValueError as error:
        raise UserError(f"base: {error}") from None
    return planned


def waves(planned: Mapping[str, RunConfig]) -> list[list[str]]:
    """Names in the order of need: the start, what stands alone, what follows another run's norms."""
    alone = [name for name, config in planned.items() if name != START and config.norm_reference is None]
    return [[START], alone, [name for name, config in planned.items() if config.norm_reference is not None]]


def train_job(job: Job) -> Done:
    """One run in a worker. A failure is an outcome; it does not end the comparison."""
    from retrofit.train import train

    try:
        resume = (job.folder / "manifest.json").exists()
        train(
            job.config, job.folder, job.options, job.argv, resume, quiet=True, start=job.start, keep_checkpoints=False
        )
    except Stopped as stopped:
        return Done("stopped", str(stopped))
    except UserError as error:
        return Done("failed", str(error))
    except Exception as error:  # a fault in one run is recorded, and the others go on
        import traceback

        traceback.print_exc()
        return Done("failed", f"{type(error).__name__}: {error}")
    return Done("done", "")


def run_compare(
    compare: CompareConfig, folder: Path, options: CompareOptions, argv: Sequence[str], resume: bool = False
) -> Path:
    """Trains every planned run that is not done and writes the report. Stopped when a signal came, after saving."""
    device, reason = choose_device(options.device)
    planned = plan(compare)
    if resume and (folder / "manifest.json").exists():
        if changed := differences(read_yaml(folder / "config.yaml"), to_dict(compare)):
            raise UserError(f"{folder}: its configuration is another: {'; '.join(changed)}; start a new comparison")
        options_of = read_manifest(folder).get("save_models", options.save_models)
    else:
        options_of = options.save_models
    processes = options.processes or (cores() if device == "cpu" else 1)
    threads = options.threads or (max(1, cores() // processes) if device == "cpu" else None)
    set_threads(threads)
    each = RunOptions(device=device, threads=threads, tracker=options.tracker)
    todo = [name for name in planned if not is_done(folder / name)]
    tokens = next(config.tokens for name, config in planned.items() if name != START)
    print(
        f"retrofit compares on {device} ({reason}): {len(compare.arms)} arms x {compare.seeds} seeds, {tokens:,} tokens "
        f"a run, {processes} at a time with {threads or 'default'} threads",
        flush=True,
    )
    run = _open(folder, compare, planned, argv, device, resume)
    with stop_on_signals() as stop, recording(run):
        run.update(save_models=options_of, processes=processes)
        first_seed = min(config.seed for config in planned.values())
        failed: dict[str, str] = {}
        progress = _Progress(len(todo))
        for name in planned:
            if is_done(folder / name):
                run.metrics.append(_row(run, name, planned[name], "done"))
        for wave in waves(planned):
            jobs = {}
            for name in wave:
                if name not in todo:
                    continue
                save = options_of == "all" or (options_of == "first" and planned[name].seed == first_seed)
                config = RunConfig(**{**to_dict(planned[name]), "save_model": save and name != START})
                start = None if name == START else folder / START
                jobs[name] = Job(folder / name, config, each, tuple(argv), start)
            failed |= _train(jobs, run, planned, processes, stop, progress)
            if START in failed:
                # What ends the start ends every arm, and is most often the user's mistake.
                raise UserError(failed[START])
        progress.close()
        if stop:
            run.finish("stopped", f"stopped by {stop.name}")
            raise Stopped(f"stopped by {stop.name} and saved; `retrofit resume {folder}` continues")
        run.metrics.compact()
        run.update(data_fingerprints=read_manifest(folder / START)["data_fingerprints"], failed=failed)
        total = len(planned) - 1
        if len(failed) < total:
            report_compare(folder)
        if failed:
            name, reason = next(iter(failed.items()))
            said = f"{len(failed)} of {total} runs failed, first {name}: {reason.rstrip('.')}"
            run.finish("failed", said)
            raise UserError(f"{said}; the report holds the others, and `retrofit resume {folder}` tries them again")
        run.finish("done", f"{total} runs, all finished")
    return folder


class _Progress:
    """Runs done, and the time that the rest may take."""

    def __init__(self, total: int):
        self.total, self.ended, self.started = total, 0, time.monotonic()
        self.bar = tqdm(total=total, unit="run", disable=not sys.stderr.isatty())

    def tell(self, text: str, processes: int) -> None:
        self.ended += 1
        self.bar.update(1)
        left = (time.monotonic() - self.started) / self.ended * (self.total - self.ended)
        tqdm.write(f"  {text} ({self.ended} of {self.total}; about {left:.0f} s left)")
        sys.stdout.flush()

    def close(self) -> None:
        self.bar.close()


def _train(
    jobs: Mapping[str, Job],
    run: Run,
    planned: Mapping[str, RunConfig],
    processes: int,
    stop: StopFlag,
    progress: _Progress,
) -> dict[str, str]:
    failed: dict[str, str] = {}
    if not jobs or stop:
        return failed
    for name, done in run_in_processes(train_job, jobs, min(processes, len(jobs)), stop):
        state = "done" if is_done(jobs[name].folder) else done.state
        if state == "failed":
            failed[name] = done.reason
        row = _row(run, name, planned[name], state)
        run.metrics.append(row)
        how = f"perplexity {row['val_ppl']:.3f}" if "val_ppl" in row else f"{state}, {done.reason}"
        if "up_kappa_median" in row:
            how += f", kappa {row['up_kappa_median']:.2f}"
        progress.tell(f"{name}: {how}", processes)
    return failed


def _row(run: Run, name: str, config: RunConfig, state: str) -> dict[str, Any]:
    """The comparison's row on a run that ended: step counts the runs."""
    row = {"step": len(run.metrics.rows) + 1, "run": name, "arm": config.method, "seed": config.seed, "state": state}
    if state == "done":
        last = [r for r in read_rows(run.folder / name / "metrics.jsonl") if r["kind"] == "evaluation"][-1]
        row |= {k: v for k, v in last.items() if isinstance(v, int | float) and k != "step"}
    return row


def finished_arms(folder: Path) -> dict[str, list[Path]]:
    """The folders of finished runs, by arm in the configuration's order."""
    compare = read_compare_config(folder)
    arms: dict[str, list[Path]] = {}
    for name, config in plan(compare).items():
        if name != START and is_done(folder / name):
            arms.setdefault(config.method, []).append(folder / name)
    return {name: arms[name] for name in compare.arms if name in arms}


def report_compare(folder: Path) -> None:
    """The comparison's results and report from the runs that are done."""
    arms = finished_arms(folder)
    if not arms:
        raise UserError(f"{folder}: none of its runs is done yet; `retrofit resume {folder}` continues")
    missing = dict(read_manifest(folder).get("failed", {}))
    for name in plan(read_compare_config(folder)):
        if name not in missing and not is_done(folder / name):
            missing[name] = "not done yet"
    write_comparison(folder, arms, missing)


def read_compare_config(folder: Path) -> CompareConfig:
    config: CompareConfig = from_dict(CompareConfig, read_yaml(folder / "config.yaml"), f"{folder}/config.yaml")
    return config


def is_done(folder: Path) -> bool:
    return (folder / "manifest.json").exists() and read_manifest(folder)["state"] == "done"


def _open(
    folder: Path,
    compare: CompareConfig,
    planned: Mapping[str, RunConfig],
    argv: Sequence[str],
    device: str,
    resume: bool,
) -> Run:
    devices = describe(device)
    if resume and (folder / "manifest.json").exists():
        run = open_run(folder)
        run.metrics.rewind(-1)
        changes = environment_changes(run.manifest, devices)
        run.update(state="running", reason="", resumed=[*run.manifest["resumed"], {"at": now(), "changes": changes}])
        return run
    return create_run(
        folder,
        study=STUDY,
        verb="compare",
        config=to_dict(compare),
        argv=list(argv),
        seeds=sorted({config.seed for config in planned.values()}),
        devices=devices,
        data={"model and text": "each run's manifest holds its own"},
        source=Path(__file__),
        libraries=LIBRARIES,
    )
