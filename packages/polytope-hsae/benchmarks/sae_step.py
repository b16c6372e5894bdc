"""A training step of the hierarchical autoencoder beside a flat TopK step of equal top width, in one process.

    python packages/polytope-hsae/benchmarks/sae_step.py [--width 768] [--parents 8192] [--k 32] [--batch 4096] [--steps 3]

Both are this package's own, with the same data, Adam and precision. Prints seconds, their ratio, the ratio of their floors
(FLOPs of dense and sparse products at the machine's measured rate, and bytes that the optimizer and the sparse products must
move at its measured bandwidth), and the hierarchical step with 16 and with 64 children. Beside SAELens and sparsify, where
they are installed: at equal total features and codes, at a batch of --peer-batch, which their dense codes must fit into.
Peers have an environment of their own:

    python -m venv peers && peers/bin/pip install sae-lens eai-sparsify && peers/bin/pip install --no-deps ./shared ./packages/polytope-hsae
    peers/bin/python packages/polytope-hsae/benchmarks/sae_step.py --peers-only
"""

import argparse
import os
import time
from importlib.util import find_spec

import torch

from polytope_hsae.models import SAEConfig, build_sae

SUBSPACE = 4


def step_of(config: SAEConfig, x_BD: torch.Tensor):
    """A function that makes one step."""
    model = build_sae(config, torch.Generator().manual_seed(0)).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)
    dead = tuple(torch.zeros(len(counter), dtype=torch.bool) for counter in model.counters())

    def step() -> None:
        output = model.train_forward(x_BD, dead)
        loss = (output.x_hat - x_BD).square().sum(1).mean()
        loss.backward()
        model.project_gradients()
        optimizer.step()
        optimizer.zero_grad()
        model.normalise()

    return step, sum(p.numel() for p in model.parameters())


def seconds(step, steps: int) -> float:
    """The fastest of several calls, after a warm-up call: other work on the machine only adds."""
    return turns({"": step}, steps)[""]


def turns(acts, steps: int) -> dict:
    """The least of several of each, which take turns, so that other work on the machine meets all alike."""
    times = {name: [] for name in acts}
    for turn in range(steps + 1):
        for name, act in acts.items():
            start = time.perf_counter()
            act()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: min(each) for name, each in times.items()}


def machine() -> tuple[float, float]:
    """(FLOPs a second of a matrix product, bytes a second of a copy)."""
    a = torch.randn(2048, 2048)
    copied = torch.empty(2**26)
    source = torch.randn(2**26)
    flops = 2 * 2048**3 / seconds(lambda: a @ a, 5)
    return flops, 2 * 4 * 2**26 / seconds(lambda: copied.copy_(source), 5)


def floor(o: argparse.Namespace, parameters: int, hierarchical: bool, rates: tuple[float, float]) -> float:
    """Seconds that a step cannot go below: the dense encoder; sparse products forward and backward; Adam's passes."""
    pairs = o.batch * o.k * (1 + (2 * SUBSPACE if hierarchical else 0))
    # Each selection: one product forward, two backward for decoders, one for encoders; each reads or writes a row.
    flops = 2 * o.batch * o.parents * o.width + 2 * 3 * pairs * o.width
    bytes_moved = 4 * 7 * parameters + 4 * o.batch * o.width * 4
    return flops / rates[0] + bytes_moved / rates[1]


def peers(o: argparse.Namespace) -> None:
    total = o.parents * 17
    x_BD = torch.randn(o.peer_batch, o.width)
    ours = seconds(step_of(SAEConfig("hierarchical", o.width, o.parents, o.k, SUBSPACE, 16), x_BD)[0], o.steps)
    print(f"batch {o.peer_batch}, {total:,} features in all, {2 * o.k} codes, {o.threads} threads: ours {ours:.2f} s")
    if find_spec("sparsify"):
        os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "0" if torch.cuda.is_available() else "1")
        from sparsify import SparseCoder, SparseCoderConfig

        coder = SparseCoder(o.width, SparseCoderConfig(num_latents=total, k=2 * o.k))
        optimizer = torch.optim.Adam(coder.parameters(), 1e-4)

        def step() -> None:
            coder(x_BD).fvu.backward()
            optimizer.step()
            optimizer.zero_grad()

        print(f"sparsify {seconds(step, o.steps) / ours:.1f} times ours")
    if find_spec("sae_lens"):
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.saes.sae import TrainStepInput

        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=o.width, d_sae=total, k=2 * o.k))
        optimizer = torch.optim.Adam(sae.parameters(), 1e-4)

        def step() -> None:
            data = TrainStepInput(
                sae_in=x_BD, coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
            )
            sae.training_forward_pass(data).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        print(f"SAELens {seconds(step, o.steps) / ours:.1f} times ours")
    if not (find_spec("sparsify") or find_spec("sae_lens")):
        print(
            "neither SAELens nor sparsify is installed: pip install sae-lens eai-sparsify, in an environment of their own"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (
        ("width", 768),
        ("parents", 8192),
        ("k", 32),
        ("batch", 4096),
        ("steps", 3),
        ("peer-batch", 256),
        ("threads", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--peers-only", action="store_true")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    if o.peers_only:
        peers(o)
        return
    x_BD = torch.randn(o.batch, o.width, generator=torch.Generator().manual_seed(0))
    rates = machine()
    print(
        f"D = {o.width}, {o.parents:,} parents, k = {o.k}, batch {o.batch:,}, {o.threads} threads; {rates[0] / 1e9:.0f} GFLOP/s, {rates[1] / 1e9:.1f} GB/s"
    )
    shapes = {"flat TopK": SAEConfig("topk", o.width, o.parents, o.k)}
    shapes |= {f"{n} children": SAEConfig("hierarchical", o.width, o.parents, o.k, SUBSPACE, n) for n in (16, 64)}
    made = {name: step_of(config, x_BD) for name, config in shapes.items()}
    times = turns({name: step for name, (step, _) in made.items()}, o.steps)
    parameters = {name: count for name, (_, count) in made.items()}
    least = {name: floor(o, count, name != "flat TopK", rates) for name, count in parameters.items()}
    for name, took in times.items():
        beside = f"; {took / times['flat TopK']:.2f} times flat, floors {least[name] / least['flat TopK']:.2f}"
        print(
            f"{name}: {took:.2f} s, {parameters[name] / 1e6:.0f} M parameters, floor {least[name]:.2f} s{beside if name != 'flat TopK' else ''}"
        )
    print(f"64 children over 16: {times['64 children'] / times['16 children']:.3f}")
    made.clear()
    peers(o)


if __name__ == "__main__":
    main()
