"""Concept vectors in the dual against the dense pseudo-inverse, at D = 2,048: seconds a concept, their ratio, agreement.

    python packages/polytope-hsae/benchmarks/concept_vectors.py [--width 2048] [--concepts 586] [--shuffles 100] [--dense 1]

The dual runs over all concepts (sizes as in WordNet: log-uniform from 50 to 3,800 words, median about 100) once and over a
few of the shuffles; the pseudo-inverse over `dense` concepts, both scaled to the whole.
"""

import argparse
import time

import torch

from polytope_hsae.estimators import concept_vector, concept_vector_pinv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--concepts", type=int, default=586)
    parser.add_argument("--shuffles", type=int, default=100)
    parser.add_argument("--dense", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    g_VD = torch.randn(16_000, options.width, generator=draw, dtype=torch.float64)
    sizes = (50 * torch.exp(-torch.rand(options.concepts, generator=draw).log() * 1.0)).clamp(max=3800).long()
    words = [torch.randperm(len(g_VD), generator=draw)[:n] for n in sizes]

    def dual() -> float:
        start = time.perf_counter()
        for chosen in words:
            concept_vector(g_VD[chosen])
        return time.perf_counter() - start

    concept_vector(g_VD[words[0]])
    once = dual()
    start = time.perf_counter()
    apart = 0.0
    for chosen in words[: options.dense]:
        dense = concept_vector_pinv(g_VD[chosen])
        apart = max(apart, float((concept_vector(g_VD[chosen]) - dense).norm() / dense.norm()))
    each = (time.perf_counter() - start) / options.dense
    print(
        f"{options.concepts} concepts of {int(sizes.min())} to {int(sizes.max())} words (median {int(sizes.median())}), D = {options.width}, one thread"
    )
    print(
        f"dual: {once / options.concepts * 1e3:.1f} ms a concept, {once:.1f} s for all, {once * (1 + options.shuffles) / 60:.1f} minutes with {options.shuffles} shuffles"
    )
    print(
        f"pseudo-inverse: {each:.1f} s a concept, {each * options.concepts * (1 + options.shuffles) / 3600:.0f} hours for the same"
    )
    print(f"ratio {each / (once / options.concepts):.0f}, relative difference {apart:.1e}")


if __name__ == "__main__":
    main()
