"""A sweep of 50 runs against the same runs one after another in the plain loop, and how far their numbers are apart.

    python benchmarks/sweep.py [--arms 10] [--seeds 5] [--epochs 10]

Both start from the same coverage checkpoints, in float64, and evaluate and save alike. The plain loop computes encoders,
decoder and projections in every step, one run after the other on all threads; the sweep computes what is frozen once
and trains runs of one shape as one batched model, in one process per core. The floor is the arithmetic of the sweep's
steps and evaluations at the rate of one large matrix product on the same cores.
"""

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import torch

from studycore.devices import cores
from ternary_vae.config import RunOptions, SweepConfig, SweepOptions
from ternary_vae.operations import Batches, Operations
from ternary_vae.sweep import COVERAGE, plan_sweep, run_sweep
from ternary_vae.train import train

WANTED = 4.0
"""Least ratio of the plain loop's seconds to the sweep's."""
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


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    sweep = sweep_of(options.arms, options.seeds, options.epochs)
    planned = plan_sweep(sweep)
    runs = {name: run.config for name, run in planned.items() if run.phase != COVERAGE}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for name, run in planned.items():
            if run.phase == COVERAGE:
                train(run.config, root / "plain" / name, RunOptions(device="cpu", threads=cores()), quiet=True)
                shutil.copytree(root / "plain" / name, root / "sweep" / name)

        began = time.perf_counter()
        run_sweep(sweep, root / "sweep", SweepOptions(device="cpu"), ["benchmark"])
        stacked = time.perf_counter() - began

        began = time.perf_counter()
        # The peer is spared what the sweep does besides training: metrics of the end, and the report.
        with patch("ternary_vae.train.write_run_results"), patch("ternary_vae.train.run_metrics"):
            for name, config in runs.items():
                alone = dataclasses.replace(config, forward="plain")
                train(alone, root / "plain" / name, RunOptions(device="cpu", threads=cores()), quiet=True)
        plain = time.perf_counter() - began

        apart = max(
            abs(one[key] - other[key])
            for name in runs
            for one, other in zip(rows(root / "sweep" / name), rows(root / "plain" / name), strict=True)
            for key in one
            if isinstance(one[key], float) and one["step"] <= STEPS
        )
    operations = Operations.all(9)
    steps = options.epochs * Batches(operations.v_N, 9, 512, 0.0, 0).steps_per_epoch
    multiplications = 16 * 32 + 32
    flops = len(runs) * multiplications * 2 * (3 * options.epochs + options.epochs + 1) * len(operations)
    floor = flops / (matmul_rate(1) * cores())
    ratio = plain / stacked
    print(f"{len(runs)} runs of {steps} steps, {cores()} cores")
    print(f"plain loop, one after another  {plain:8.1f} s")
    print(f"sweep, with its report         {stacked:8.1f} s")
    print(f"ratio                          {ratio:8.2f}   wanted: {WANTED} or more")
    print(f"floor of the sweep's arithmetic{floor:8.2f} s  at {matmul_rate(1) / 1e9:.0f} GFLOP/s a core, float64")
    print(f"largest difference of any number in the first {STEPS} steps: {apart:.1e}   wanted: {CLOSE} or less")
    return 0 if ratio >= WANTED and apart <= CLOSE else 1


if __name__ == "__main__":
    sys.exit(main())
