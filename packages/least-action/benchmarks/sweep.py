"""A sweep's throughput against the plain loop: run-steps per second on this machine.

    python benchmarks/sweep.py [--device cpu] [--steps 12]

Plain loop: plain forward, one run after another, at its best thread count. Ours: one run per core with the restructured
pass (on a GPU one process). The share of the restructured pass is printed apart.
"""

import argparse
import statistics
import time
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier

import torch

from least_action.config import TrainerConfig
from least_action.losses import LeastActionLoss
from least_action.data import create_dataset
from least_action.model import PairForward, create_model
from least_action.recipes import create_optimizers
from studycore.devices import cores

SPHERE = {
    "model_type": "transformer", "n_layers": 1, "recipe": "bounded_sphere", "activation": "relu", "init_std": 0.088,
    "lr": 1e-2, "weight_decay": 1.0, "weight_decay_rule": "all", "data_seed": None,
}  # fmt: skip


def steps_per_second(
    config: TrainerConfig, restructured: bool, steps: int, device: str, barrier: Barrier | None = None
) -> float:
    """One run's steps per second, from the median step; with a barrier all processes measure at the same time."""
    model, pairs, loss = (
        create_model(config).to(device),
        create_dataset(config).train.to(device),
        LeastActionLoss(config),
    )
    (optimizer,) = create_optimizers(model, config)
    forward = PairForward(model, restructured)
    taken = []
    for step in range(steps + 2):
        if step == 2 and barrier is not None:
            barrier.wait()
        began = time.perf_counter()
        loss(forward(pairs.a_N, pairs.b_N), pairs.y_N).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return 1 / statistics.median(taken[2:])


def worker(barrier: Barrier, steps: int, seed: int, results: object) -> None:
    """One process of the sweep: one thread, the restructured pass."""
    torch.set_num_threads(1)
    results.put(steps_per_second(TrainerConfig(**SPHERE, seed=seed), True, steps, "cpu", barrier))  # type: ignore[attr-defined]


def over_processes(processes: int, steps: int) -> float:
    """Run-steps per second of all processes together."""
    context = get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    started = [context.Process(target=worker, args=(barrier, steps, seed, results)) for seed in range(processes)]
    for process in started:
        process.start()
    rates = [results.get() for _ in started]
    for process in started:
        process.join()
    return sum(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    config, best, alone = TrainerConfig(**SPHERE), {}, {}
    for threads in range(1, cores() + 1):
        torch.set_num_threads(threads)
        best[threads] = steps_per_second(config, False, options.steps, options.device)
        alone[threads] = steps_per_second(config, True, options.steps, options.device)
    plain, fast = max(best.values()), max(alone.values())
    print(f"plain loop: {plain:.2f} run-steps/s at its best ({max(best, key=lambda t: best[t])} threads)")
    print(f"restructured, one run: {fast:.2f} run-steps/s, {fast / plain:.2f} times (the share of the forward pass)")
    if options.device == "cpu":
        rate = over_processes(cores(), options.steps)
        print(
            f"{cores()} processes: {rate:.2f} run-steps/s, {rate / plain:.2f} times the plain loop, "
            f"{rate / fast:.2f} times the restructured run"
        )


if __name__ == "__main__":
    main()
