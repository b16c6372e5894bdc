"""A sweep's configuration as a list of jobs: coverage checkpoints, arms from scratch, and the phases that start from the
checkpoints. Runs of one shape may be trained together."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from studycore.configuration import check_types, from_dict, to_dict
from studycore.errors import UserError
from studycore.jobs import Job, base_of, config_of, grid_points
from ternary_vae.config import (
    COVERAGE,
    ENCODING,
    ORDERED,
    SCRATCH,
    ArchitectureConfig,
    PhaseConfig,
    SweepConfig,
    TrainConfig,
)
from ternary_vae.stages import shape_of

ARCHITECTURE = tuple(f.name for f in dataclasses.fields(ArchitectureConfig))


def plan(sweep: SweepConfig) -> list[Job]:
    """One job per run: the coverage checkpoints that the phases need, arms from scratch, then the phases.

    UserError names what is not valid.
    """
    first = int(sweep.base.get("seed", sweep.coverage.get("seed", TrainConfig.seed)))
    seeds = range(first, first + sweep.seeds)
    starts: dict[str, Job] = {}
    jobs = []
    for phase, given in sweep.phases.items():
        parts = PhaseConfig(**check_types(PhaseConfig, given))
        for point in grid_points({**sweep.base, **parts.base}, parts.grid, parts.arms, seeds, parts.name):
            shape = {k: v for k, v in {**sweep.coverage, **point.values}.items() if k in ENCODING}
            kept = point.values.get("start_projections", "drawn")
            start = (_start if kept == "drawn" else _ordered_start)(sweep, shape, point.values)
            starts[start.name] = start
            values = {**shape, **point.values, "stages": "hierarchy", "start": start.name, "start_projections": kept}
            jobs.append(_job(f"{point.arm}_s{point.values['seed']}", phase, point.arm, values, (start.name,)))
    scratch = [
        _job(f"{point.arm}_s{point.values['seed']}", SCRATCH, point.arm, point.values)
        for point in (grid_points(sweep.coverage, {}, sweep.from_scratch, seeds) if sweep.from_scratch else ())
    ]
    every = [*starts.values(), *scratch, *jobs]
    for name, times in Counter(job.name for job in every).items():
        if times > 1:
            raise UserError(f"name: several runs would be called {name}; give every arm another name")
    return every


def _ordered_start(sweep: SweepConfig, shape: Mapping[str, Any], point: Mapping[str, Any]) -> Job:
    """The checkpoint that covers all operations and is ordered, for the architecture of a phase's run."""
    own = {name: value for name, value in point.items() if name in ARCHITECTURE}
    seed = point["seed"]
    changed = "".join(
        f"_{k}{_word(v)}" for k, v in own.items() if k not in shape and v != getattr(ArchitectureConfig, k)
    )
    values = {**sweep.coverage, **shape, **own, **sweep.ordered, "stages": "joint", "seed": seed}
    return _job(f"{ORDERED}{changed}_s{seed}", ORDERED, f"{ORDERED}{changed}", values)


def _start(sweep: SweepConfig, shape: Mapping[str, Any], point: Mapping[str, Any]) -> Job:
    """The coverage checkpoint for encoders of a shape; its name says where the shape is not the sweep's own."""
    seed = point["seed"]
    plain = {**to_dict(ArchitectureConfig()), **sweep.coverage}
    arm = COVERAGE + "".join(f"_{k}{_word(v)}" for k, v in shape.items() if plain[k] != v)
    values = {**sweep.coverage, **shape, "stages": "coverage", "seed": seed}
    return _job(f"{arm}_s{seed}", COVERAGE, arm, values)


def _word(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)


def _job(name: str, phase: str, arm: str, values: Mapping[str, Any], needs: tuple[str, ...] = ()) -> Job:
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    if unknown := sorted(set(values) - known):
        raise UserError(f"{phase}: {unknown} are no fields of a run; see `ternary-vae train --help`")
    config = config_of(TrainConfig, values, f"experiment {name}")
    return Job(name, config, needs=needs, arm=arm, labels={"phase": phase}, together=shape_of(config))


def sweep_of_seeds(config: TrainConfig, seeds: int) -> tuple[str, SweepConfig]:
    """`train --seeds N`: the verb and the sweep of one configuration."""
    changed = {name: value for name, value in base_of(config).items() if name != "seed"}
    return "sweep", SweepConfig(coverage={"seed": config.seed}, from_scratch={"train": changed}, seeds=seeds)


def sweep_values(file: dict[str, Any], flags: dict[str, Any], of_runs: dict[str, Any]) -> dict[str, Any]:
    """A sweep's configuration from its file and from flags; what concerns coverage checkpoints goes to those runs."""
    if not file:
        raise UserError("--config: a sweep needs a file or the name of a sweep configuration, such as quick")
    for name in ("stages", "start", "start_projections"):
        if name in of_runs:
            raise UserError(f"--{name.replace('_', '-')}: a sweep's phases say how their runs start; leave it out")
    own = {k for k in of_runs if k.startswith("coverage_") and k != "coverage_weight"}
    values = {**file, **flags}
    values["coverage"] = {
        **values.get("coverage", {}), **{k: v for k, v in of_runs.items() if k in own or k in ENCODING},
    }  # fmt: skip
    values["base"] = {**values.get("base", {}), **{k: v for k, v in of_runs.items() if k not in own}}
    return values


def finetune_values(file: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """finetune's configuration: defaults < the checkpoint's architecture < the file < flags."""
    if "start" not in flags:
        raise UserError("finetune: no checkpoint is given; give a run or a checkpoint first, then the flags")
    if "stages" in flags:
        raise UserError("--stages: finetune trains the hierarchy stage of its checkpoint; leave it out, or use train")
    from ternary_vae.checkpoint import find_checkpoint, read_checkpoint

    path = find_checkpoint(flags["start"])
    stored = from_dict(TrainConfig, read_checkpoint(path).config, f"{path}/config.json")
    own = {f.name: getattr(stored, f.name) for f in dataclasses.fields(ArchitectureConfig)}
    return {**own, **file, **flags, "stages": "hierarchy"}
