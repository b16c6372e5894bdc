"""A sweep's configuration as a list of jobs: every arm, every point of the grid, every seed."""

import dataclasses
from typing import Any

from least_action.config import SweepConfig, TrainerConfig
from studycore.configuration import check_types, to_dict
from studycore.errors import UserError
from studycore.jobs import Job, grid_points


def plan(sweep: SweepConfig) -> list[Job]:
    """One job per run. UserError names the experiment that is not valid."""
    known = {f.name for f in dataclasses.fields(TrainerConfig)}
    for part, given in (("base", sweep.base), ("grid", sweep.grid), *((f"arms.{k}", v) for k, v in sweep.arms.items())):
        if not isinstance(given, dict) or set(given) - known:
            unknown = sorted(set(given) - known) if isinstance(given, dict) else given
            raise UserError(f"{part}: {unknown} are no fields of a run; see `least-action train --help`")
    first = int(sweep.base.get("seed", TrainerConfig.seed))
    jobs = []
    for point in grid_points(sweep.base, sweep.grid, sweep.arms, range(first, first + sweep.seeds), sweep.name):
        try:
            config = TrainerConfig(**check_types(TrainerConfig, point.values))
        except ValueError as error:
            raise UserError(f"experiment {point.name}: {error}") from None
        jobs.append(Job(point.name, config, arm=point.arm))
    return jobs


def sweep_of_seeds(config: TrainerConfig, seeds: int) -> tuple[str, SweepConfig]:
    """`train --seeds N`: the verb and the sweep of one configuration."""
    changed: dict[str, Any] = {k: v for k, v in to_dict(config).items() if v != getattr(TrainerConfig, k)}
    return "sweep", SweepConfig(base=changed | {"seed": config.seed}, seeds=seeds)
