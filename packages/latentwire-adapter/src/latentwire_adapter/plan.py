"""The main job as a list of jobs: the self-check, the fit, then every arm; each is made once and goes on by itself."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from latentwire_adapter.config import (
    THROUGH_MODEL,
    UNCOMPRESSED,
    EvaluateConfig,
    FitConfig,
    Phase1Config,
    Phase2Config,
    Reading,
    SelfcheckConfig,
    SuiteConfig,
    size_name,
)
from studycore.configuration import check_types
from studycore.errors import UserError
from studycore.jobs import Job, base_of, config_of, seeds_from


def config_from(cls: type, values: Mapping[str, Any], **more: Any) -> Any:
    """`cls` of those of the base's values that it has. UserError says which does not fit."""
    names = {f.name for f in dataclasses.fields(cls)}
    return config_of(cls, {name: value for name, value in values.items() if name in names} | more, "base")


def plan(suite: SuiteConfig) -> list[Job]:
    """The jobs, by seed and ratio. UserError for fields that don't fit."""
    # A ratio's name is that of its code's dimensions: with one number of dimensions for all, names would be wrong.
    own = {"ratio", "phase1", "compress_dim"}
    if unknown := sorted(set(suite.base) - ({f.name for f in dataclasses.fields(Phase2Config)} - own)):
        raise UserError(
            f"base: {unknown} are no fields of all runs; see `latentwire-adapter phase2 --help`, and give --ratios"
        )
    base = check_types(Phase2Config, suite.base)
    if base.get("objective") == "prompt_ppl" and "phase2" in suite.arms:
        raise UserError(
            "objective: prompt_ppl is what the arm phase2_ppl trains on; leave objective out, or phase2 out of arms"
        )
    checked = base | {"eval_samples": SelfcheckConfig.eval_samples}
    jobs = [
        Job("selfcheck", config_from(SelfcheckConfig, checked), verb="selfcheck"),
        # After the checks, which then have the whole machine to themselves.
        Job("fit", config_from(FitConfig, base), ("selfcheck",), verb="fit"),
    ]
    for arm in UNCOMPRESSED:
        jobs.append(Job(arm, config_from(EvaluateConfig, base, arm=arm), ("selfcheck",), arm=arm, verb="evaluate"))
    for seed in seeds_from(Reading, base, suite.seeds):
        end = f"_s{seed}" if suite.seeds > 1 else ""
        # An arm at every ratio, then the next: what is left out when time is short is an arm and not a ratio.
        for arm in ("adapter", *(arm for arm in suite.arms if arm != "adapter")):
            jobs += [job_of(base | {"seed": seed, "ratio": ratio}, arm, end) for ratio in suite.ratios_of(arm)]
    return jobs


def job_of(values: dict[str, Any], arm: str, end: str) -> Job:
    """An arm at the ratio of the values; `end` of its name tells the seed."""
    size = size_name(values["ratio"])
    trained = f"phase1_{size}{end}"
    common: dict[str, Any] = {"arm": arm, "labels": {"ratio": size}, "keep_checkpoints": False}
    if arm == "adapter":
        config = config_from(Phase1Config, {name: value for name, value in values.items() if name != "ce_weight"})
        return Job(trained, config, ("selfcheck", "fit"), verb="phase1", **common)
    needs = ("selfcheck", trained)
    if arm in THROUGH_MODEL:
        objective = {"objective": "prompt_ppl"} if arm == "phase2_ppl" else {}
        return Job(f"{arm}_{size}{end}", config_from(Phase2Config, values | objective), needs, verb="phase2", **common)
    config = config_from(EvaluateConfig, values, arm=arm)
    # Where the nearest rows are the model's own, their answers are known.
    more = ("raw",) if arm.startswith("nearest") else ()
    return Job(f"{arm}_{size}{end}", config, needs + more, verb="evaluate", **common)


def sweep_of_seeds(config: Phase1Config, seeds: int) -> tuple[str, SuiteConfig]:
    """`phase1 --seeds N`: the verb and the suite of one configuration. UserError for dimensions without a ratio."""
    if config.compress_dim is not None:
        raise UserError(
            f"compress_dim: {config.compress_dim} with --seeds does not fit; give --ratio, which names the runs"
        )
    base = {name: value for name, value in base_of(config).items() if name not in ("ratio", "compress_dim")}
    return "run", SuiteConfig(base=base, ratios=[config.ratio], arms=["linear", "adapter"], seeds=seeds)
