"""Each term of the loss by its definition."""

import torch

from polytope_hsae.losses import (
    biorthogonality_original,
    causal_orthogonality,
    causal_orthogonality_original,
    off_diagonal_biorthogonality,
    reconstruction,
)


def test_reconstruction_is_the_mean_of_squared_errors():
    assert float(reconstruction(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2))) == 2.5


def test_off_diagonal_biorthogonality_is_zero_for_orthogonal_rows_and_ignores_the_diagonal():
    chosen = torch.arange(3)
    assert float(off_diagonal_biorthogonality(2 * torch.eye(3), 5 * torch.eye(3), chosen)) == 0
    e = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    # Off the diagonal: cosines of (1, 0) with (1, 1), twice.
    torch.testing.assert_close(off_diagonal_biorthogonality(e, e, torch.arange(2)), torch.tensor(0.5))


def test_the_original_biorthogonality_counts_the_diagonal():
    assert float(biorthogonality_original(2 * torch.eye(3), torch.eye(3))) == 3


def test_causal_orthogonality_is_that_of_what_a_child_adds():
    parents = torch.tensor([[1.0, 0.0]])
    across, along = torch.tensor([[[0.0, 3.0]]]), torch.tensor([[[2.0, 0.0]]])
    assert float(causal_orthogonality(parents, across, torch.eye(2))) == 0
    assert float(causal_orthogonality(parents, along, torch.eye(2))) == 1
    assert float(causal_orthogonality(parents, along.expand(1, 3, 2), torch.eye(2))) == 3
    # The original study takes the difference for the child itself, so that a perfect one is punished.
    assert float(causal_orthogonality_original(parents, across, torch.eye(2))) == 1


def test_the_metric_decides_what_is_orthogonal():
    parents, child = torch.tensor([[1.0, 1.0]]), torch.tensor([[[1.0, -1.0]]])
    assert float(causal_orthogonality(parents, child, torch.eye(2))) == 0
    assert float(causal_orthogonality(parents, child, torch.diag(torch.tensor([2.0, 1.0])))) > 0.1
