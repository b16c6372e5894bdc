"""Arms and seeds as jobs."""

from studycore.configuration import check_types, to_dict
from studycore.jobs import Job, grid_points
from toy_study.config import Config, Sweep


def plan(sweep):
    jobs, first = [], int(sweep.base.get("seed", Config.seed))
    for point in grid_points(sweep.base, {}, sweep.arms, range(first, first + sweep.seeds)):
        config, before = Config(**check_types(Config, point.values)), sweep.goes_on_from.get(point.arm)
        needs = (point.name.replace(point.arm, before),) if before else ()
        jobs.append(Job(point.name, config, needs, point.arm, together="fits" if sweep.together else ""))
    return jobs


def sweep_of_seeds(config, seeds):
    return "sweep", Sweep(base=to_dict(config), seeds=seeds)
