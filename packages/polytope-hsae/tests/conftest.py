"""Shared by the tests: one thread, planted trees that are quick to work with, and jobs made in this process."""

import os
from pathlib import Path

import pytest
import torch

from polytope_hsae.cli import STUDY
from polytope_hsae.config import ActivationConfig, GeometryConfig, TrainConfig
from polytope_hsae.geometry import causal_geometry, euclidean_geometry
from polytope_hsae.head import Head
from polytope_hsae.synthetic import unembedding
from polytope_hsae.validation import validate
from studycore.execution import make_run
from studycore.options import TrainOptions

torch.set_num_threads(1)
SMALL = {"model": "synthetic-tree", "tree_parents": 4, "tree_children": 3, "tree_dim": 24, "tree_words": 14}
CPU = TrainOptions(device="cpu", threads=1)


@pytest.fixture
def tree():
    """Settings of a small tree, with changes."""

    def make(**changes):
        return GeometryConfig(**(SMALL | {"n_shuffles": 19, "contexts": 8} | changes))

    return make


def gates(config):
    """Which gates the tree of the configuration passes."""
    gamma_VD, hierarchy = unembedding(config, config.split, config.seed)
    x_ND = torch.randn(config.contexts, config.tree_dim, generator=torch.Generator().manual_seed(config.seed))
    geometry, flat = causal_geometry(gamma_VD), euclidean_geometry(gamma_VD)
    return validate(
        Head(gamma_VD), geometry, hierarchy, x_ND, config.n_shuffles, config.seed, config.kl_threshold, None, flat
    )[1]


def job(verb: str, config, folder: Path, needs=None, resume=False) -> Path:
    """A job, made or gone on with in this process."""
    make_run(STUDY, verb, config, folder, CPU, resume=resume, needs=needs, quiet=True)
    return folder


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """{"geometry", "activations"}: finished jobs of a small planted tree."""
    place = tmp_path_factory.mktemp("planted")
    here = os.getcwd()
    os.chdir(place)  # the shards' cache lies under runs/
    try:
        geometry = job("geometry", GeometryConfig(**SMALL, n_shuffles=19, contexts=8), place / "geometry")
        activations = ActivationConfig(**SMALL, token_budget=3000)
        return {
            "geometry": geometry,
            "activations": job("activations", activations, place / "activations", {"geometry": geometry}),
        }
    finally:
        os.chdir(here)


@pytest.fixture
def small():
    """A configuration of a small autoencoder, with changes."""

    def make(**changes):
        values = {"m_top": 8, "topk_parent": 2, "m_low": 4, "subspace_dim": 3, "batch_size_acts": 128, "lr": 5e-3, "stage_a_steps": 6,
                  "stage_b_steps": 14, "val_every": 5, "val_size": 300, "test_size": 450, "log_every": 1, "checkpoint_every": 4,
                  "dead_after_tokens": 600, "biorth_sample": 6, "seed": 1}  # fmt: skip
        return TrainConfig(**(values | changes))

    return make
