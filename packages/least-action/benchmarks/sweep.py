"""A sweep's throughput against the plain loop: run-steps per second on this machine.

    python benchmarks/sweep.py [--device cpu] [--runs 8] [--steps 12]

Plain loop: plain forward, one run after another, at its best thread count. Ours: on a CPU one run per core with the
restructured pass; on a GPU all runs stacked as one model. The share of the restructured pass is printed apart. Then
stacked runs are compared with the plain loop in float64 over 200 steps.
"""

import argparse
import statistics
import time
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier

import torch
from least_action.stacked import StackedTraining

from least_action.config import TrainerConfig
from least_action.losses import LeastActionLoss
from least_action.model import create_model
from least_action.recipes import create_optimizers
from least_action.train import PairForward, create_dataset
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


def stacked(runs: int, steps: int, device: str) -> float:
    """Run-steps per second of `runs` runs as one model."""
    configs = [TrainerConfig(**SPHERE, seed=seed) for seed in range(runs)]
    training = StackedTraining(configs, [create_model(config) for config in configs], device)
    taken = []
    for step in range(steps + 2):
        began = time.perf_counter()
        training.step(step)
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return runs / statistics.median(taken[2:])


def largest_difference(steps: int = 200) -> float:
    """Weights of stacked runs against the plain loop in float64, relative to each tensor's maximum."""
    configs = [
        TrainerConfig(**SPHERE | {"lr": lr}, p=23, hidden_dim=32, dtype="float64", seed=s)
        for s, lr in enumerate((3e-4, 1e-3))
    ]
    training, worst = StackedTraining(configs, [create_model(config) for config in configs], "cpu"), 0.0
    for step in range(steps):
        training.step(step)
    for s, config in enumerate(configs):
        model, pairs, loss = create_model(config), create_dataset(config).train, LeastActionLoss(config)
        (optimizer,) = create_optimizers(model, config)
        for _ in range(steps):
            loss(PairForward(model, False)(pairs.a_N, pairs.b_N), pairs.y_N).total.backward()
            optimizer.step()
            optimizer.zero_grad()
        for name, q in model.named_parameters():
            worst = max(worst, float((training.weights[name][s] - q.detach()).abs().max() / q.detach().abs().max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=8)
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
    rates = {f"stacked {options.runs}": stacked(options.runs, options.steps, options.device)}
    if options.device == "cpu":
        rates[f"{cores()} processes"] = over_processes(cores(), options.steps)
    for name, rate in rates.items():
        print(
            f"{name}: {rate:.2f} run-steps/s, {rate / plain:.2f} times the plain loop, {rate / fast:.2f} times the restructured run"
        )
    print(f"stacked against the plain loop, float64, 200 steps: {largest_difference():.1e} of each tensor's maximum")


if __name__ == "__main__":
    main()
