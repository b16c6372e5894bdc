"""A planted tree of concepts: an unembedding and activations whose parents and children are known exactly.

In a frame of its own, a word of child c of parent p is e_p + 0.8 e_c + noise, and an activation is the sum of the parents and
children that are on, each with its strength, + noise. An invertible map M with condition number 10 then makes words
gamma = M g + shift and activations x = M^-T l, so that logits are those of the frame and only the causal inner product
sees the tree as it was planted.

Shapes: P parents, C children of each, D width, N activations.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polytope_hsae.concepts import Child, Hierarchy, Parent, split_words
from polytope_hsae.config import SourceFields
from studycore.devices import check_memory
from studycore.streams import generator

FILLERS = 3
"""Words of no concept, for each word of one."""


@dataclass(frozen=True)
class Tree:
    """The planted directions, and the map from the tree's frame."""

    parents_PD: Tensor
    children_PCD: Tensor
    map_DD: Tensor


def check_tree(source: SourceFields) -> None:
    """UserError for a tree whose directions and words do not fit into memory."""
    p, c, d = source.tree_parents, source.tree_children, source.tree_dim
    words = (1 + FILLERS) * p * (source.tree_words // 2 + c * source.tree_words)
    # Directions, two maps and what makes them; words, their noise and their image under the map.
    size = 8 * d * (p * (1 + c) + 6 * d + 3 * words)
    what = f"synthetic.parents, children, words, dim: {words:,} words of {p} parents and {c} children each in {d} dimensions"
    check_memory(size, what, "lower them")


def check_activations(source: SourceFields, count: int, field: str) -> None:
    """UserError for activations that do not fit into memory, in the name of the field that says how many."""
    # Of each: what is on, child and strengths of every parent; itself, its noise and its image under the map.
    size = 8 * count * (5 * source.tree_parents + 3 * source.tree_dim)
    check_memory(size, f"{field}: {count:,} activations of the planted tree", "lower it")


def plant(source: SourceFields) -> Tree:
    """The tree: orthonormal directions where they fit, else random unit vectors. UserError for one that is too large."""
    check_tree(source)
    p, c, d = source.tree_parents, source.tree_children, source.tree_dim
    draw = generator(source.tree_seed, "tree")
    raw = torch.randn(max(d, p * (1 + c)), d, generator=draw, dtype=torch.float64)
    basis = torch.linalg.qr(raw[:d].T)[0].T if p * (1 + c) <= d else raw / raw.norm(dim=1, keepdim=True)
    left, right = (torch.linalg.qr(torch.randn(d, d, generator=draw, dtype=torch.float64))[0] for _ in range(2))
    scales = torch.logspace(-0.5, 0.5, d, dtype=torch.float64)
    return Tree(basis[:p], basis[p : p * (1 + c)].view(p, c, d), (left * scales) @ right)


def unembedding(source: SourceFields, split: list[float], seed: int) -> tuple[Tensor, Hierarchy]:
    """([V, D] float32, the hierarchy of its words)."""
    tree = plant(source)
    draw = generator(source.tree_seed, "words")
    rows, parents, start = [], [], 0
    for p, e_p in enumerate(tree.parents_PD):
        own = list(range(start, start + source.tree_words // 2))
        rows.append((source.tree_parent_scale * e_p).expand(len(own), -1))
        start += len(own)
        children = []
        for c, e_c in enumerate(tree.children_PCD[p]):
            tokens = list(range(start, start + source.tree_words))
            rows.append((source.tree_parent_scale * e_p + source.tree_child_scale * e_c).expand(len(tokens), -1))
            start += len(tokens)
            children.append(Child(f"p{p}.c{c}", "planted", split_words(tokens, split, seed, f"p{p}.c{c}")))
        parents.append(Parent(f"p{p}", "planted", split_words(own, split, seed, f"p{p}"), tuple(children), ()))
    g_VD = torch.cat([*rows, torch.zeros(FILLERS * start, source.tree_dim, dtype=torch.float64)])
    noise = torch.randn(g_VD.shape, generator=draw, dtype=torch.float64) * source.tree_noise / source.tree_dim**0.5
    gamma_VD = (g_VD + noise) @ tree.map_DD.T + torch.randn(source.tree_dim, generator=draw, dtype=torch.float64)
    names = {token: f"w{token}" for token in range(start)}
    return gamma_VD.float(), Hierarchy(tuple(parents), names)


def activations(
    source: SourceFields, count: int, seed: int, field: str = "data.token_budget"
) -> tuple[np.ndarray, np.ndarray]:
    """([N, D] float32, [N, P] int8: the child that is on with its parent, C for the parent alone, -1 where it is off).

    One to three parents are on; nine of ten have a child with them; strengths are uniform from 0.5 to 1.5. UserError in the
    name of `field` for more than fit into memory.
    """
    check_activations(source, count, field)
    tree = plant(source)
    p, c = tree.children_PCD.shape[:2]
    draw = generator(source.tree_seed, "activations", seed)
    order = torch.rand(count, p, generator=draw).argsort(1)
    on_NP = order < torch.randint(1, min(3, p) + 1, (count, 1), generator=draw)
    child_NP = torch.randint(0, c, (count, p), generator=draw)
    child_NP[torch.rand(count, p, generator=draw) < 0.1] = c
    strength = torch.rand(2, count, p, generator=draw, dtype=torch.float64) + 0.5
    l_ND = source.tree_parent_scale * (strength[0] * on_NP) @ tree.parents_PD
    for k in range(c):
        weight = strength[1] * (on_NP & (child_NP == k))
        l_ND += source.tree_child_scale * weight @ tree.children_PCD[:, k]
    l_ND += torch.randn(l_ND.shape, generator=draw, dtype=torch.float64) * source.tree_noise / source.tree_dim**0.5
    x_ND = l_ND @ torch.linalg.inv(tree.map_DD)
    child_NP[~on_NP] = -1
    return x_ND.float().numpy(), child_NP.to(torch.int8).numpy()
