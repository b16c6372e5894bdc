"""Shared by the tests: one thread, and small configurations."""

import pytest
import torch

from ternary_vae.config import TrainConfig
from ternary_vae.hyperbolic import ball

ball(1.0)  # imports geoopt, whose import would warn in the tests' own
torch.set_num_threads(1)


@pytest.fixture
def small():
    """A configuration of a tiny model over 27 operations, with changes."""

    def make(**changes):
        values = {
            "trits": 3, "latent_dim": 4, "encoder_sizes": [12, 8], "decoder_sizes": [8], "hidden_dim": 8, "seed": 3,
            "coverage_epochs": 6, "epochs": 6, "batch_size": 10, "coverage_lr": 1e-2, "lr": 1e-2, "kl_warmup_epochs": 2,
            "n_pairs": 40, "checkpoint_every": 4,
        }  # fmt: skip
        return TrainConfig(**(values | changes))

    return make
