"""The restructured pass against the plain one: seconds per training step, and how far both are from float64.

    python benchmarks/forward.py [--steps 9] [--threads 1 2]

A step is forward, backward and AdamW on all training pairs (p = 113, 30 %). The floor is the arithmetic of the
restructured step at the rate of one large matrix product on the same threads.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from least_action.config import TrainerConfig
from least_action.data import Pairs, create_dataset
from least_action.model import PairForward, create_model
from least_action.recipes import create_optimizers

SHAPES = {
    "1 layer, no norms, ReLU (Nanda et al.)": {
        "n_layers": 1,
        "residual_norm": "none",
        "activation": "relu",
        "init_std": 0.088,
    },
    "1 layer, bounded sphere": {"n_layers": 1, "recipe": "bounded_sphere", "activation": "relu", "init_std": 0.088},
    "1 layer, pre-norm, GELU": {"n_layers": 1},
    "2 layers, pre-norm, GELU (the original's)": {"n_layers": 2},
}


def gradients(config: TrainerConfig, pairs: Pairs, restructured: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients of one pass in the configuration's precision, as float64."""
    model = create_model(config)
    logits_NP = PairForward(model, restructured)(pairs.a_N, pairs.b_N).logits_NP
    F.cross_entropy(logits_NP.double(), pairs.y_N).backward()
    found = {name: q.grad.double() for name, q in model.named_parameters() if q.grad is not None}
    return logits_NP.detach().double(), found


def error(one: tuple[Tensor, dict[str, Tensor]], truth: tuple[Tensor, dict[str, Tensor]]) -> tuple[float, float]:
    """Largest difference of logits and of gradients, relative to their maximum."""
    largest = max(g.abs().max() for g in truth[1].values())
    apart = max((one[1][name] - g).abs().max() for name, g in truth[1].items())
    return float((one[0] - truth[0]).abs().max() / truth[0].abs().max()), float(apart / largest)


def timed(step: Callable[[], None], repeats: int) -> float:
    """Median seconds."""
    step()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def stepper(config: TrainerConfig, restructured: bool) -> Callable[[], None]:
    """One training step of a fresh model."""
    model, pairs = create_model(config), create_dataset(config).train
    (optimizer,) = create_optimizers(model, config)
    forward = PairForward(model, restructured)

    def step() -> None:
        F.cross_entropy(forward(pairs.a_N, pairs.b_N).logits_NP.double(), pairs.y_N).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def floor_flops(layers: int, n: int, p: int = 113, d: int = 128) -> float:
    """Matrix arithmetic of one restructured step, 2 per multiply-add, forward and twice that backward.

    The last block and the output work on the n rows of the = position (out D^2, feed-forward 8 D^2, D P); every block
    before it on the 2 n rows of the last two positions; key and value of what follows on these, query where it is read.
    """
    products = n * (9 * d * d + d * p)
    if layers > 1:
        products += (layers - 1) * (2 * n * 9 * d * d + 2 * n * 2 * d * d) + (2 * (layers - 2) + 1) * n * d * d
    return 3 * 2 * products


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    for name, changes in SHAPES.items():
        values = {"model_type": "transformer", **changes}
        pairs = create_dataset(TrainerConfig(**values)).train
        single, double = (TrainerConfig(**values, dtype=dtype) for dtype in ("float32", "float64"))
        truth = gradients(double, pairs, restructured=False)
        print(name)
        checked = [
            ("float64 restructured against plain", double, True),
            ("float32 restructured against float64", single, True),
            ("float32 plain against float64", single, False),
        ]
        for label, config, restructured in checked:
            print(
                "  {}: logits {:.1e}, gradients {:.1e} of their maximum".format(
                    label, *error(gradients(config, pairs, restructured), truth)
                )
            )
        for threads in options.threads:
            torch.set_num_threads(threads)
            big = torch.randn(2048, 2048)
            rate = 2 * 2048**3 / timed(lambda big=big: big @ big, 5)
            plain, fast = (timed(stepper(single, restructured), options.steps) for restructured in (False, True))
            floor = floor_flops(single.n_layers, len(pairs)) / rate
            print(
                f"  {threads} threads: plain {plain * 1e3:.0f} ms, restructured {fast * 1e3:.0f} ms a step, ratio {plain / fast:.2f}; "
                f"floor {floor * 1e3:.0f} ms, {fast / floor:.1f} times the floor"
            )


if __name__ == "__main__":
    main()
