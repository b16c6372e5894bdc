"""A comparison as a list of jobs: the start that all arms share, the tuning of the rate, then every arm and seed."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from retrofit.config import START, SWEPT, TUNING, CompareConfig, RunConfig
from studycore.configuration import build
from studycore.jobs import Job, base_of, config_of, in_a_name, seeds_from


def plan(compare: CompareConfig) -> list[Job]:
    """The start and the tuning runs, then seed by seed every arm; what follows geometry's norms after it.

    UserError for fields that don't fit.
    """
    base, seeds = compare.base, seeds_from(RunConfig, compare.base, compare.seeds)
    start = config_of(RunConfig, base | {"method": "none", "save_model": False}, "base")
    tuning = list(tuning_jobs(compare))
    jobs = [Job(START, start, keep_checkpoints=False), *tuning]
    for seed in seeds:
        save = compare.save_models == "all" or (compare.save_models == "first" and seed == seeds[0])
        for arm, variant, changes in sorted(variants(compare), key=lambda of: of[0] == "norm_matched"):
            values = base | {"method": arm, "seed": seed, "save_model": save} | changes
            needs = [START, *(job.name for job in tuning)]
            if tuning:
                values["tuned"] = [f"../{job.name}" for job in tuning]
            if arm == "norm_matched":
                values["norm_reference"] = f"../geometry_s{seed}"
                needs.append(f"geometry_s{seed}")
            config = config_of(RunConfig, values, "base")
            jobs.append(Job(f"{variant}_s{seed}", config, tuple(needs), arm=variant, keep_checkpoints=False))
    return jobs


def tuning_jobs(compare: CompareConfig) -> Iterator[Job]:
    """Continued training at every rate that is tried, evaluated on tuning text alone: see RunConfig.validate_on."""
    for lr in compare.lrs:
        changes = {"method": "standard", "lr": lr, "validate_on": "tuning", "save_model": False}
        if compare.tuning_steps is not None:
            changes["num_steps"] = compare.tuning_steps
        without = {"activation_tokens": 0, "headline_tokens": 0}
        config = config_of(RunConfig, compare.base | changes | without, "base")
        config = replace(config, eval_interval=max(config.num_steps, 1))
        yield Job(f"tune_lr{in_a_name(lr)}", config, arm=TUNING, keep_checkpoints=False)


def variants(compare: CompareConfig) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(method, name among the arms, changes of the base): several of a method whose weight of the penalty varies."""
    for arm in compare.arms:
        if arm in SWEPT and compare.weights:
            for weight in compare.weights:
                yield arm, f"{arm}_w{in_a_name(weight)}", {"gram_weight": weight}
        else:
            yield arm, arm, {}


def sweep_of_seeds(config: RunConfig, seeds: int) -> tuple[str, CompareConfig]:
    """`run --seeds N`: the verb and the comparison of one method. UserError for a method that cannot stand alone."""
    base = {name: value for name, value in base_of(config).items() if name not in ("method", "save_model")}
    saved = "all" if config.save_model else "none"
    values = {"base": base, "arms": [config.method], "seeds": seeds, "save_models": saved}
    return "compare", build(CompareConfig, values)
