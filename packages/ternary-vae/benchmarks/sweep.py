"""A sweep whose runs of one shape are trained together, against the same sweep with every run in a process of its own.

    python benchmarks/sweep.py [--arms 10] [--seeds 5] [--epochs 10] [--plain]

Both start from the same coverage checkpoints, in float64, evaluate, save and report alike, and use as many processes as
there are cores. The peer computes what is frozen once as well, so the ratio is that of the one batched model. With
--plain a third sweep computes encoders, decoder and projections in every step. The floor is the arithmetic of the steps
and evaluations at the rate of one large matrix product on the same cores.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import torch

from studycore.devices import cores
from studycore.execution import make_runs
from studycore.jobs import Job
from studycore.metrics_log import read_rows
from studycore.options import SweepOptions
from studycore.run import Run
from studycore.study import Study
from ternary_vae.cli import STUDY
from ternary_vae.config import COVERAGE, SweepConfig, TrainConfig
from ternary_vae.data import Batches, Operations
from ternary_vae.plan import plan
from ternary_vae.train import train

WANTED = 1.5
"""Least ratio at which one batched model is worth its code."""
CLOSE, STEPS = 1e-8, 200
"""Largest difference of any metric or loss within this many steps."""


def sweep_of(arms: int, seeds: int, epochs: int) -> SweepConfig:
    """Learning rates and weights, as in the phases of full.yaml, in float64."""
    base = {
        "hierarchy_frozen": ["encoder_A", "encoder_B", "decoder_A", "controller"], "loss": "rich_hierarchy", "view": "a",
        "code": "sample", "batch_size": 512, "deep_share": 0.0, "scheduler": "constant", "epochs": epochs, "dtype": "float64",
    }  # fmt: skip
    changes = {f"lr_{k}": {"lr": 1e-4 * 1.5**k, "richness_weight": 1.0 + k} for k in range(arms)}
    coverage = {"dtype": "float64", "coverage_epochs": 4}
    return SweepConfig(coverage=coverage, base=base, phases={"benchmark": {"arms": changes}}, seeds=seeds)


def plan_coverage(sweep: SweepConfig) -> list[Job]:
    return [job for job in plan(sweep) if job.labels["phase"] == COVERAGE]


def plan_apart(sweep: SweepConfig) -> list[Job]:
    return [dataclasses.replace(job, together="") for job in plan(sweep)]


def plan_plain(sweep: SweepConfig) -> list[Job]:
    """Every run passes through the whole model in every step."""
    return [
        job
        if job.labels["phase"] == COVERAGE
        else dataclasses.replace(job, together="", config=dataclasses.replace(job.config, forward="plain"))
        for job in plan(sweep)
    ]


def train_whole(config: TrainConfig, run: Run) -> None:
    """The run as a whole model by itself, without the batched model of one."""
    with patch("ternary_vae.train.not_stackable", lambda config: "it is the peer"):
        train(config, run)


def study_of(planned: str, trained: str) -> Study:
    """The study with another plan and training; both are found by the workers, too."""
    one = dataclasses.replace(STUDY.verbs["train"], train=trained)  # type: ignore[arg-type]
    many = dataclasses.replace(STUDY.verbs["sweep"], plan=planned)  # type: ignore[arg-type]
    return dataclasses.replace(STUDY, verbs={**STUDY.verbs, "train": one, "sweep": many})


def seconds(sweep: SweepConfig, folder: Path, study: Study) -> float:
    began = time.perf_counter()
    make_runs(study, "sweep", sweep, folder, SweepOptions(device="cpu"), ["benchmark"])
    return time.perf_counter() - began


def matmul_rate(threads: int, n: int = 1024) -> float:
    """Floating-point operations per second of one large float64 matrix product, best of five."""
    torch.set_num_threads(threads)
    a, b = torch.rand(n, n, dtype=torch.float64), torch.rand(n, n, dtype=torch.float64)
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        a @ b
        taken.append(time.perf_counter() - began)
    return 2 * n**3 / min(taken)


def largest_difference(one: Path, other: Path, names: list[str]) -> float:
    """Of any loss or metric of the runs, within the first steps."""
    return max(
        abs(row[key] - beside[key])
        for name in names
        for row, beside in zip(*(read_rows(folder / name / "metrics.jsonl") for folder in (one, other)), strict=True)
        for key in row
        if isinstance(row[key], float) and row["step"] <= STEPS
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    sweep = sweep_of(options.arms, options.seeds, options.epochs)
    names = [job.name for job in plan(sweep) if job.labels["phase"] != COVERAGE]
    ways = {
        "together": (f"{STUDY.package}.plan:plan", "ternary_vae.train:train"),
        "apart": ("sweep:plan_apart", "sweep:train_whole"),
    }
    if options.plain:
        ways["plain"] = ("sweep:plan_plain", "ternary_vae.train:train")
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        seconds(sweep, root / "coverage", study_of("sweep:plan_coverage", "ternary_vae.train:train"))
        taken = {}
        for way, (planned, trained) in ways.items():
            for start in (root / "coverage").glob(f"{COVERAGE}_s*"):
                (root / way).mkdir(exist_ok=True)
                (root / way / start.name).symlink_to(start)
            taken[way] = seconds(sweep, root / way, study_of(planned, trained))
        apart = max(largest_difference(root / "together", root / way, names) for way in list(ways)[1:])
    operations = Operations.all(9)
    steps = options.epochs * Batches(operations.v_N, 9, 512, 0.0, 0).steps_per_epoch
    multiplications = 16 * 32 + 32
    flops = len(names) * multiplications * 2 * (3 * options.epochs + options.epochs + 1) * len(operations)
    rate = matmul_rate(1)
    ratio = taken["apart"] / taken["together"]
    print(f"{len(names)} runs of {steps} steps, {cores()} cores, each sweep with its report")
    for way, spent in taken.items():
        print(f"{way:<32}{spent:8.1f} s")
    print(f"{'ratio, apart to together':<32}{ratio:8.2f}   wanted: {WANTED} or more")
    if options.plain:
        print(f"{'ratio, plain to together':<32}{taken['plain'] / taken['together']:8.2f}")
    print(
        f"{'floor of the arithmetic':<32}{flops / (rate * cores()):8.2f} s  at {rate / 1e9:.0f} GFLOP/s a core, float64"
    )
    print(f"largest difference of any number in the first {STEPS} steps: {apart:.1e}   wanted: {CLOSE} or less")
    return 0 if ratio >= WANTED and apart <= CLOSE else 1


if __name__ == "__main__":
    sys.exit(main())
