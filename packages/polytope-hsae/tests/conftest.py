"""Shared by the tests: one thread, and a planted tree that is quick to work with."""

import pytest
import torch

from polytope_hsae.config import GeometryConfig
from polytope_hsae.geometry import causal_geometry, euclidean_geometry
from polytope_hsae.synthetic import unembedding
from polytope_hsae.validation import validate

torch.set_num_threads(1)


@pytest.fixture
def tree():
    """Settings of a small tree, with changes."""

    def make(**changes):
        values = {"model": "synthetic-tree", "tree_parents": 4, "tree_children": 3, "tree_dim": 24, "tree_words": 14}
        return GeometryConfig(**(values | {"n_shuffles": 19, "contexts": 8} | changes))

    return make


def gates(config):
    """Which gates the tree of the configuration passes."""
    gamma_VD, hierarchy = unembedding(config, config.split, config.seed)
    x_ND = torch.randn(config.contexts, config.tree_dim, generator=torch.Generator().manual_seed(config.seed))
    geometry, flat = causal_geometry(gamma_VD), euclidean_geometry(gamma_VD)
    return validate(gamma_VD, geometry, hierarchy, x_ND, config.n_shuffles, config.seed, config.kl_threshold, None, flat)[1]
