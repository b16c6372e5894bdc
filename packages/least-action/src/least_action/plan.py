"""A sweep's configuration as a list of jobs: every arm, every point of the grid, every seed."""

from least_action.config import SweepConfig, TrainerConfig
from studycore.jobs import Job, base_of, check_names, config_of, grid_points, seeds_from


def plan(sweep: SweepConfig) -> list[Job]:
    """One job per run. UserError names the experiment that is not valid."""
    seeds = seeds_from(TrainerConfig, sweep.base, sweep.seeds)
    points = [
        point
        for arm, changes in (sweep.arms or {"": {}}).items()
        for point in grid_points(sweep.base, sweep.arm_grids.get(arm, sweep.grid), {arm: changes}, seeds, sweep.name)
    ]
    check_names([point.name for point in points])
    return [
        Job(point.name, config_of(TrainerConfig, point.values, f"experiment {point.name}"), arm=point.arm)
        for point in points
    ]


def sweep_of_seeds(config: TrainerConfig, seeds: int) -> tuple[str, SweepConfig]:
    """`train --seeds N`: the verb and the sweep of one configuration."""
    return "sweep", SweepConfig(base=base_of(config), seeds=seeds)
