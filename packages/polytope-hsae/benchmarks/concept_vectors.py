"""Concept vectors in the dual against the dense pseudo-inverse, at D = 2,048: seconds a concept, their ratio, agreement.

    python packages/polytope-hsae/benchmarks/concept_vectors.py [--width 2048] [--least 50] [--shuffles 100] [--turns 3]

Concepts are as large as in WordNet: as many words as each noun synset has single tokens of SmolLM2's vocabulary (all senses,
`least` or more), over random rows. In each turn the dual runs over its share of all concepts and the pseudo-inverse, which barely
depends on the size, over one: concepts at even steps from the smallest to the largest. All are scaled to the whole. The
pseudo-inverse comes by singular values, as torch's `pinv` makes it unless told more, and by eigenvalues.
"""

import argparse
import time

import torch

from polytope_hsae.concepts import tokens_of_synsets
from polytope_hsae.estimators import concept_vector, concept_vector_pinv
from polytope_hsae.language import load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--least", type=int, default=50)
    parser.add_argument("--shuffles", type=int, default=100)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    every = [len(t) for t in tokens_of_synsets(load_tokenizer("studycore/smollm2-135m-instruct"), "all").values()]
    sizes = sorted(size for size in every if size >= options.least)
    draw = torch.Generator().manual_seed(0)
    g_VD = torch.randn(max(sizes), options.width, generator=draw, dtype=torch.float64)
    words = [torch.randperm(len(g_VD), generator=draw)[:n] for n in sizes]
    concept_vector(g_VD[words[0]])
    dual = apart = 0.0
    dense = {"singular values": 0.0, "eigenvalues": 0.0}
    for turn in range(options.turns):
        start = time.perf_counter()
        for chosen in words[turn :: options.turns]:
            concept_vector(g_VD[chosen])
        dual += time.perf_counter() - start
        chosen = words[(2 * turn + 1) * len(words) // (2 * options.turns)]
        for by in dense:
            start = time.perf_counter()
            slow = concept_vector_pinv(g_VD[chosen], symmetric=by == "eigenvalues")
            dense[by] += time.perf_counter() - start
            apart = max(apart, float((concept_vector(g_VD[chosen]) - slow).norm() / slow.norm()))
    count, runs = len(words), 1 + options.shuffles
    print(
        f"{count} concepts of {sizes[0]} to {sizes[-1]} words (median {sizes[count // 2]}), D = {options.width}, one thread"
    )
    print(f"dual: {dual / count * 1e3:.1f} ms a concept, {dual:.1f} s for all, {dual * runs / 60:.1f} minutes with {options.shuffles} shuffles")  # fmt: skip
    for by, seconds in dense.items():
        each = seconds / options.turns
        print(f"pseudo-inverse by {by}: {each:.1f} s a concept, {each * count * runs / 3600:.0f} hours for the same, ratio {each * count / dual:.0f}")  # fmt: skip
    print(f"relative difference {apart:.1e} at most")


if __name__ == "__main__":
    main()
