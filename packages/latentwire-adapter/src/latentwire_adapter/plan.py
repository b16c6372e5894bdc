"""The main job as a list of jobs: the self-check, the fit, then every arm; each is made once and goes on by itself."""

import dataclasses
from typing import Any

from latentwire_adapter.config import (
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
from studycore.configuration import build, check_types
from studycore.errors import UserError
from studycore.jobs import Job, base_of, seeds_from


def fields_of(cls: type, values: dict[str, Any], **more: Any) -> Any:
    """`cls` of those values that it has. UserError says which does not fit."""
    names = {f.name for f in dataclasses.fields(cls)}
    try:
        return build(cls, {name: value for name, value in values.items() if name in names} | more)
    except UserError as error:
        raise UserError(f"base: {error}") from None


def plan(suite: SuiteConfig) -> list[Job]:
    """The jobs, by seed and ratio. UserError for fields that don't fit."""
    if unknown := sorted(
        set(suite.base) - {f.name for f in dataclasses.fields(Phase2Config)} | set(suite.base) & {"ratio", "phase1"}
    ):
        raise UserError(
            f"base: {unknown} are no fields of all runs; see `latentwire-adapter phase2 --help`, and give --ratios"
        )
    base = check_types(Phase2Config, suite.base)
    checked = base | {"eval_samples": SelfcheckConfig.eval_samples}
    jobs = [
        Job("selfcheck", fields_of(SelfcheckConfig, checked), verb="selfcheck"),
        Job("fit", fields_of(FitConfig, base), verb="fit"),
    ]
    for arm in UNCOMPRESSED:
        jobs.append(Job(arm, fields_of(EvaluateConfig, base, arm=arm), ("selfcheck",), arm=arm, verb="evaluate"))
    phase2_ratios = suite.ratios if suite.phase2_ratios is None else suite.phase2_ratios
    for seed in seeds_from(Reading, base, suite.seeds):
        end = f"_s{seed}" if suite.seeds > 1 else ""
        for ratio in suite.ratios:
            values, size = base | {"seed": seed, "ratio": ratio}, size_name(ratio)
            trained = f"phase1_{size}{end}"
            common: dict[str, Any] = {"labels": {"ratio": size}, "keep_checkpoints": False}
            of_phase1 = fields_of(Phase1Config, {k: v for k, v in values.items() if k != "ce_weight"})
            jobs.append(Job(trained, of_phase1, ("selfcheck", "fit"), arm="adapter", verb="phase1", **common))
            needs = ("selfcheck", trained)
            for arm in suite.arms:
                if arm == "phase2" and ratio in phase2_ratios:
                    jobs.append(
                        Job(
                            f"phase2_{size}{end}",
                            fields_of(Phase2Config, values),
                            needs,
                            arm=arm,
                            verb="phase2",
                            **common,
                        )
                    )
                elif arm not in ("phase2", "adapter"):
                    config = fields_of(EvaluateConfig, base | {"seed": seed}, arm=arm)
                    jobs.append(Job(f"{arm}_{size}{end}", config, needs, arm=arm, verb="evaluate", **common))
    return jobs


def suite_of_seeds(config: Phase1Config, seeds: int) -> tuple[str, SuiteConfig]:
    """`phase1 --seeds N`: the verb and the suite of one configuration."""
    base = {name: value for name, value in base_of(config).items() if name != "ratio"}
    return "run", SuiteConfig(base=base, ratios=[config.ratio], arms=["linear", "adapter"], seeds=seeds)
