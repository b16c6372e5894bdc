"""Made-up runs with a known truth, for the tests of claims, comparisons and reports."""

import dataclasses
import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from studycore.configuration import config_hash, read_yaml, to_dict, to_yaml
from studycore.files import sha256
from ternary_vae.columns import columns_of, planned
from ternary_vae.config import SweepConfig, TrainConfig
from ternary_vae.history import history_metrics
from ternary_vae.stages import stages_of

CEILING = 0.8320502954
SEEDS = range(5)


@dataclass(frozen=True)
class FabricatedRun:
    """What the folder of a finished run in a sweep would hold."""

    name: str
    phase: str
    arm: str
    config: TrainConfig
    rows: list[dict[str, Any]]
    metrics: dict[str, Any]
    seconds: float = 1.0
    arrays: dict[str, Any] = field(default_factory=dict)

    @property
    def results(self):
        return {**self.metrics, **history_metrics(self.rows)}


def table(runs, failed=(), unfinished=()):
    """The table of runs as a record has it, of which those that are not done are listed."""
    made = pd.DataFrame(
        [
            {
                "run": one.name, "arm": one.arm, "seed": one.config.seed, "folder": f"/nowhere/{one.name}",
                "phase": one.phase, **columns_of(one.name, one.config, one.rows, one.results, one.seconds),
            }
            for one in runs
        ]
    )  # fmt: skip
    made.attrs["missing"] = [
        {
            **planned(one.name, one.config), "phase": one.phase, "seed": one.config.seed, "run": one.name, "arm": one.arm,
            "failed": which is failed,
        }
        for which in (failed, unfinished)
        for one in which
    ]  # fmt: skip
    return made


STEP_EPOCHS = 10
"""Epochs of the step schedule's first rate, which is the constant one's: until then the runs are the same."""


def on_one_trajectory(runs):
    """The runs, of which those with the step schedule are those that stop early until the rate first falls."""
    early = {one.config.seed: one.rows for one in runs if one.arm == "sweep3_early_stop_p5"}
    return [
        dataclasses.replace(one, rows=[*shared[: STEP_EPOCHS + 1], *one.rows[len(shared[: STEP_EPOCHS + 1]) :]])
        if one.arm == "sweep3_step_decay" and (shared := early.get(one.config.seed))
        else one
        for one in runs
    ]


def sweep_of(runs):
    """A sweep's configuration with the phases and arms of the runs."""
    phases, scratch = {}, {}
    for one in runs:
        if one.config.stages == "hierarchy":
            phases.setdefault(one.phase, {"arms": {}})["arms"][one.arm] = {}
        elif one.phase == "from scratch":
            fraction = one.config.train_fraction
            scratch[one.arm] = {"stages": one.config.stages} | ({} if fraction == 1 else {"train_fraction": fraction})
    return SweepConfig(phases=phases, from_scratch=scratch)


MANIFEST = {
    "schema_version": 2, "study": "ternary-vae", "version": "0.1.0", "argv": ["ternary-vae"],
    "state": "done", "reason": "", "git": {"commit": None, "dirty": None}, "versions": {}, "data_fingerprints": {},
    "devices": {"device": "cpu", "threads": 1, "world_size": 1}, "seeds": [0], "resumed": [],
}  # fmt: skip


def write_sweep(folder, runs, unfinished=()):
    """The folder of a sweep of these runs, and of some that were not begun: names with a phase."""
    jobs = {one.name: {"folder": one.name, "arm": one.arm, "labels": {"phase": one.phase}, "needs": []} for one in runs}
    jobs |= {name: {"folder": name, "arm": name, "labels": {"phase": "p"}, "needs": []} for name in unfinished}
    _write(folder, "sweep", sweep_of(runs), {"jobs": jobs, "failed": dict(unfinished)}, 1.0)
    for one in map(evaluated, runs):
        _write(folder / one.name, "train", one.config, {}, one.seconds)
        lines = [json.dumps(row) for row in one.rows]
        (folder / one.name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        results = {"schema_version": 1, "study": "ternary-vae", "verb": "train", "metrics": one.results, "claims": []}
        (folder / one.name / "results.json").write_text(json.dumps(results))
        if one.arrays:
            from safetensors.numpy import save_file

            save_file(one.arrays, folder / one.name / "arrays.safetensors")
    return folder


def evaluated(one):
    """The run with an evaluation wherever its configuration makes one: the last of its own stand for all that follow."""
    rows = []
    for stage in stages_of(one.config):
        own = [row for row in one.rows if row["stage"] == stage.name or (stage.name == "joint" and "hierarchy" in row)]
        ends_early = stage.patience is not None or stage.covered_patience is not None
        last = own[-1]["epoch"] if ends_early else stage.epochs
        for i, epoch in enumerate(sorted({*range(0, last, one.config.eval_every), last})):
            rows.append({**own[min(i, len(own) - 1)], "stage": stage.name, "epoch": epoch, "step": 10 * len(rows)})
    return dataclasses.replace(one, rows=rows)


def _write(folder, verb, config, more, seconds):
    folder.mkdir(parents=True)
    times = {"started": "2026-01-01T00:00:00+00:00", "seconds": seconds}
    (folder / "claims.json").write_text("[]")
    more |= {"verb": verb, "times": times, "claims_sha256": sha256(folder / "claims.json")}
    more |= {"configuration_hash": config_hash(to_dict(config))}
    (folder / "manifest.json").write_text(json.dumps(MANIFEST | more))
    (folder / "config.yaml").write_text(to_yaml(to_dict(config)))


def row(epoch, hierarchy, stage="hierarchy", coverage=0.999, **metrics):
    ordered = {
        "hierarchy": hierarchy, "hierarchy_ceiling": CEILING, "hierarchy_of_ceiling": -hierarchy / CEILING,
        "somers_d": hierarchy / CEILING, "min_level_gap": -0.2, "positive_gaps": 1, "gaps": 9, "tied_radius_share": 0.0,
        "richness": 0.002 + 0.001 * hierarchy, "richness_hyperbolic": 0.03,
    }  # fmt: skip
    return {
        "step": 10 * epoch,
        "stage": stage,
        "epoch": epoch,
        "loss_hierarchy": 0.1,
        "coverage": coverage,
        **ordered,
        **metrics,
    }


PHASES = read_yaml(Path(str(resources.files("ternary_vae"))) / "configs" / "full.yaml")["base"]
"""What every run of the phases has, beside defaults."""


def run(arm, seed, hierarchies, phase="phase", loss="rich_hierarchy", richness=None, **config):
    """A run of the hierarchy stage with these hierarchies, epoch by epoch, and with what the phases have beside `config`."""
    more = {} if richness is None else {"richness": richness}
    rows = [row(epoch, float(h), **more) for epoch, h in enumerate(hierarchies)]
    starts = {"stages": "hierarchy", "start": f"coverage_s{seed}", "start_projections": "drawn"}
    made = TrainConfig(**{**PHASES, "seed": seed, **starts, "loss": loss, **config})
    metrics = {k: v for k, v in rows[-1].items() if k not in ("step", "stage", "epoch", "loss_hierarchy")}
    return FabricatedRun(f"{arm}_s{seed}", phase, arm, made, rows, metrics)


def peak(best, epoch, final, epochs=40, start=0.3):
    """Hierarchies that fall to `best` at `epoch` and rise to `final`."""
    down = np.linspace(start, best, epoch + 1) if epoch else np.array([best])
    return [*down, *np.linspace(best, final, epochs - epoch + 1)[1:]]


_ORIGINAL = {"coverage_code": "mean", "coverage_lr": 1e-3, "batch_size": 512, "deep_share": 0.0}
PLATEAU = {
    "frozen_decoder": {**_ORIGINAL, "coverage_frozen": ["decoder_A"], "coverage_patience": None}, "mended": _ORIGINAL,
}  # fmt: skip
"""Settings of the arms that the plateaus are asked of."""


def scratch(arm, seed, coverage, **config):
    """A run of the coverage stage with these coverages, epoch by epoch."""
    rows = [
        {"step": 10 * e, "stage": "coverage", "epoch": e, "loss_reconstruction": 1.0, "coverage": c}
        for e, c in enumerate(coverage)
    ]
    made = TrainConfig(seed=seed, stages="coverage", **{**PLATEAU.get(arm, {}), **config})
    return FabricatedRun(f"{arm}_s{seed}", "from scratch", arm, made, rows, {"coverage": coverage[-1]})


REACHED = {
    "coverage": 1.0, "covered": 19_683, "operations": 19_683, "hierarchy": -0.83205029, "hierarchy_of_ceiling": 0.99999,
    "somers_d": -1.0, "somers_d_depths": -1.0, "min_level_gap": 0.004, "positive_gaps": 9, "gaps": 9, "tied_radius_share": 0.0, "richness": 0.0062,
}  # fmt: skip
"""Metrics of a run from scratch that meets every target."""


def whole(seed, changes=None, **config):
    """A run from scratch with both stages; `changes` to the metrics of one that meets every target (None: left out)."""
    metrics = {k: v for k, v in {**REACHED, **(changes or {})}.items() if v is not None}
    rows = [{"step": e, "stage": "coverage", "epoch": e, "coverage": c} for e, c in enumerate((0.0, 0.5, 1.0))]
    rows += [row(e, h, coverage=1.0) for e, h in enumerate((0.2, -0.8, -0.832))]
    return FabricatedRun(
        f"train_s{seed}", "from scratch", "train", TrainConfig(seed=seed, **config), rows, metrics, 60.0
    )


def planted_sweep(true=True, seeds=SEEDS):
    """Phases in which the original study's findings hold with a margin, or their contraries do; and the arms from scratch.

    Stopping early betters the step schedule only where it goes on beyond the first step, and then its best is not at epoch
    10 or earlier: in the world in which that holds the two are equal.
    """
    runs, from_scratch = [], []
    for seed in seeds:
        n = np.random.default_rng([seed, 7]).normal(0, 0.001, 40)

        def add(phase, arm, curve, seed=seed, **more):
            runs.append(run(arm, seed, curve, phase, **more))

        one, two = (-0.68, -0.71) if true else (-0.71, -0.68)
        add("1_curvature", "sweep_curv_1.0", peak(one + n[0], 8, -0.6), curvature=1.0, max_radius=0.7)
        add("1_curvature", "sweep_curv_2.0", peak(two + n[1], 8, -0.6), curvature=2.0, max_radius=0.7)
        lost, best_epoch = (0.05, 12) if true else (-0.05, 30)
        for name, decay, weight in (("balanced", 0.16, 5.0), ("baseline", 0.19, 2.0)):
            curve = peak(-0.75 + n[3], best_epoch, -0.75 + n[3] + decay + lost)
            add("2_weights", f"sweep2_{name}", curve, richness_weight=weight)
        early, peak_at = (-0.80, 3) if true else (-0.60, 20)
        add(
            "3_schedule",
            "sweep3_early_stop_p5",
            peak(early + n[4], peak_at, -0.55, peak_at + 5),
            early_stopping_patience=5,
            scheduler="constant",
        )
        add("3_schedule", "sweep3_step_decay", peak(-0.767 + n[5], 3, -0.677), scheduler="step")
        add("3_schedule", "sweep3_cosine", peak(-0.695 + n[6], 35 if true else 18, -0.692), scheduler="cosine")
        low, middle, high = (-0.735, -0.78, -0.82) if true else (-0.79, -0.78, -0.735)
        add("4_lr", "sweep4_lr_1e4", peak(low + n[7], 29, -0.6), lr=1e-4)
        add("4_lr", "sweep4_lr_3e4", peak(middle + n[8], 5, -0.6), lr=3e-4)
        add("4_lr", "sweep4_lr_1e3", peak(high + n[9], 1 if true else 9, -0.5), lr=1e-3)
        for k in range(8):
            begin = np.linspace(-0.6, 0.6, 8)[k]
            best = -0.72 + 0.02 * begin + 0.0005 * n[k] if true else -0.72 + 0.1 * (-1) ** k + n[k]
            phase = "5_stability" if k < 4 else "6_extended"
            of_phase = {"lr": 3e-4, "early_stopping_patience": 5} if k < 4 else {}
            add(phase, f"sweep{phase[0]}_draw_{k}", peak(best, 5, -0.5, start=begin), projection_seed=k, **of_phase)
        lasting = peak(-0.8320 + 1e-4 * n[10], 40, -0.8320) if true else peak(-0.70, 5, -0.45 + n[10])
        add("7_ordered", "sweep7_ordered", lasting, loss="ordered")
        stuck, full = [0.0, 0.2 + n[11], 0.22 + n[12]], [0.0, 0.7, 1.0]
        from_scratch.append(scratch("frozen_decoder", seed, stuck if true else full))
        from_scratch.append(scratch("mended", seed, stuck if true else full))
    return [*on_one_trajectory(runs), *from_scratch]


BEST = {
    "sweep_curv_1.0": (-0.68, -0.71), "sweep_curv_2.0": (-0.71, -0.68), "sweep_rim_1.0": (-0.68, -0.71),
    "sweep_rim_2.0": (-0.71, -0.68), "sweep3_early_stop_p5": (-0.80, -0.60), "sweep4_lr_1e4": (-0.735, -0.79),
    "sweep4_lr_3e4": (-0.78, -0.78), "sweep4_lr_1e3": (-0.82, -0.735),
}  # fmt: skip
"""Best hierarchy of an arm where the findings hold, and where their contraries do; -0.77 elsewhere."""
PEAK = {
    "sweep3_early_stop_p5": (3, 20),
    "sweep4_lr_1e3": (1, 9),
    "sweep3_cosine": (12, 18),
    "sweep3_step_decay": (12, 18),
}
"""Epoch of the best, in the same way; 12 and 30 elsewhere."""
DECAY = {"sweep2_balanced": 0.16, "sweep2_baseline": 0.19}
MISSED = {
    "covered": 19_682, "hierarchy_of_ceiling": 0.9, "min_level_gap": -0.1, "positive_gaps": 3, "tied_radius_share": 0.1,
    "richness": 0.001, "kl": 54.0, "kl_of_least": 5.4, "prior_coverage": 0.88, "coverage_sampled": 0.5,
}  # fmt: skip
"""What a run misses that fails every target."""


def of_jobs(jobs, true=True):
    """Runs as the jobs of a sweep's plan would make them: as long, with the same settings, and with one truth or its contrary."""
    runs, side = [], 0 if true else 1
    for job in jobs:
        config, arm = job.config, job.arm
        n = np.random.default_rng([config.seed, len(arm), config.projection_seed or 0]).normal(0, 0.0005)
        phase = job.labels["phase"]
        if config.stages == "coverage":
            if phase == "from scratch":
                curve = [0.0, 0.2 + n, 0.22 + n] if true else [0.0, 0.7, 1.0]
                runs.append(dataclasses.replace(scratch(arm, config.seed, curve), config=config, name=job.name))
            continue
        if config.stages == "joint":
            if phase == "from scratch":
                good = {
                    **REACHED,
                    "kl": 15.0 + n,
                    "kl_of_least": 1.5,
                    "prior_coverage": 0.995,
                    "coverage_sampled": 0.9 + n,
                }
                worse = {"kl": 14.0 if not true else 16.0, "coverage_sampled": 0.8 if true else 0.95}
                worse["prior_coverage"] = 0.98 if true else 0.999
                changes = {
                    "flat_twin": worse, "shuffled": {"hierarchy_of_ceiling": (0.11, 0.9)[side] + n},
                }.get(arm, {} if true else {**MISSED, "kl": 15.0, "coverage_sampled": 0.9, "prior_coverage": 0.985})  # fmt: skip
                one = whole(config.seed, {**good, **changes})
                runs.append(dataclasses.replace(one, config=config, name=job.name, arm=arm))
            continue
        best, best_epoch = BEST.get(arm, (-0.77, -0.77))[side] + n, PEAK.get(arm, (12, 30))[side]
        final, start = best + 0.05 + DECAY.get(arm, 0.05) * (1 if true else 0.0), 0.3
        if arm.startswith(("sweep5", "sweep6")):
            k = config.projection_seed
            start = -0.6 + 0.05 * k if true else -0.6 + 0.05 * (k * 7 % 13)
            best = -0.72 + 0.02 * start + n / 5 if true else -0.72 + 0.1 * (-1) ** (k % 3) + n
            final = best + 0.1
        if config.loss == "ordered":
            best, best_epoch, final = (-0.8320 + n / 100, 40, -0.8320) if true else (-0.70 + n, 5, -0.45 + n)
        epochs = best_epoch + 5 if config.early_stopping_patience else config.epochs
        rows = [row(epoch, float(h)) for epoch, h in enumerate(peak(best, best_epoch, final, epochs, start))]
        metrics = {k: v for k, v in rows[-1].items() if k not in ("step", "stage", "epoch", "loss_hierarchy")}
        runs.append(FabricatedRun(job.name, phase, arm, config, rows, metrics))
    return on_one_trajectory(runs)
