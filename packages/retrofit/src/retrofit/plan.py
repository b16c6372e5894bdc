"""A comparison as a list of jobs: the start that all arms share, then every arm and seed."""

from typing import Any

from retrofit.config import START, CompareConfig, RunConfig
from studycore.configuration import build, check_types, to_dict
from studycore.errors import UserError
from studycore.jobs import Job


def plan(compare: CompareConfig) -> list[Job]:
    """The start, then seed by seed every arm; what follows geometry's norms after it. UserError for fields that don't fit."""
    if unknown := sorted(set(compare.base) - set(RunConfig.__dataclass_fields__)):
        raise UserError(f"base: {unknown} are no fields of a run; see `retrofit run --help`")
    base = check_types(RunConfig, compare.base)
    first = int(base.get("seed", RunConfig.seed))
    start = run_config(base | {"method": "none", "save_model": False})
    jobs = [Job(START, start, keep_checkpoints=False)]
    for seed in range(first, first + compare.seeds):
        save = compare.save_models == "all" or (compare.save_models == "first" and seed == first)
        for arm in sorted(compare.arms, key=lambda arm: arm == "norm_matched"):
            values, needs = base | {"method": arm, "seed": seed, "save_model": save}, [START]
            if arm == "norm_matched":
                values["norm_reference"] = f"../geometry_s{seed}"
                needs.append(f"geometry_s{seed}")
            jobs.append(Job(f"{arm}_s{seed}", run_config(values), tuple(needs), arm=arm, keep_checkpoints=False))
    return jobs


def run_config(values: dict[str, Any]) -> RunConfig:
    """UserError says which field of the comparison's base does not fit."""
    try:
        return RunConfig(**values)
    except ValueError as error:
        raise UserError(f"base: {error}") from None


def comparison_of_seeds(config: RunConfig, seeds: int) -> tuple[str, CompareConfig]:
    """`run --seeds N`: the verb and the comparison of one method. UserError for a method that cannot stand alone."""
    changed = {
        k: v for k, v in to_dict(config).items() if v != getattr(RunConfig, k) and k not in ("method", "save_model")
    }
    saved = "all" if config.save_model else "none"
    values = {"base": changed | {"seed": config.seed}, "arms": [config.method], "seeds": seeds, "save_models": saved}
    return "compare", build(CompareConfig, values)
