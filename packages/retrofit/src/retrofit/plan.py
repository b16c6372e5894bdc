"""A comparison as a list of jobs: the start that all arms share, then every arm and seed."""

from retrofit.config import START, CompareConfig, RunConfig
from studycore.configuration import build
from studycore.jobs import Job, base_of, config_of, seeds_from


def plan(compare: CompareConfig) -> list[Job]:
    """The start, then seed by seed every arm; what follows geometry's norms after it. UserError for fields that don't fit."""
    base, seeds = compare.base, seeds_from(RunConfig, compare.base, compare.seeds)
    start = config_of(RunConfig, base | {"method": "none", "save_model": False}, "base")
    jobs = [Job(START, start, keep_checkpoints=False)]
    for seed in seeds:
        save = compare.save_models == "all" or (compare.save_models == "first" and seed == seeds[0])
        for arm in sorted(compare.arms, key=lambda arm: arm == "norm_matched"):
            values, needs = base | {"method": arm, "seed": seed, "save_model": save}, [START]
            if arm == "norm_matched":
                values["norm_reference"] = f"../geometry_s{seed}"
                needs.append(f"geometry_s{seed}")
            config = config_of(RunConfig, values, "base")
            jobs.append(Job(f"{arm}_s{seed}", config, tuple(needs), arm=arm, keep_checkpoints=False))
    return jobs


def comparison_of_seeds(config: RunConfig, seeds: int) -> tuple[str, CompareConfig]:
    """`run --seeds N`: the verb and the comparison of one method. UserError for a method that cannot stand alone."""
    base = {name: value for name, value in base_of(config).items() if name not in ("method", "save_model")}
    saved = "all" if config.save_model else "none"
    values = {"base": base, "arms": [config.method], "seeds": seeds, "save_models": saved}
    return "compare", build(CompareConfig, values)
