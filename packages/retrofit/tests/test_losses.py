"""Penalties: both sides agree, gradients by finite differences and autograd, once per update."""

import pytest
import torch
from conftest import tiny_model

from retrofit.blocks import find_blocks
from retrofit.losses import (
    compute_gram_loss,
    gram_penalty,
    gram_penalty_gradient,
    penalty_of_blocks,
    scale_free_penalty,
    scale_free_penalty_gradient,
)

SHAPES = [(9, 4), (4, 9), (5, 5)]
PAIRS = [(gram_penalty, gram_penalty_gradient), (scale_free_penalty, scale_free_penalty_gradient)]


def weight(shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_small_side_gives_the_originals_value_and_gradient(shape):
    w = weight(shape).requires_grad_()
    big = (w @ w.T - torch.eye(shape[0], dtype=torch.float64)).square().sum()
    (gradient,) = torch.autograd.grad(big, w)
    value, ours = gram_penalty_gradient(w)
    torch.testing.assert_close(value, big.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(ours, gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gram_penalty(w).detach(), value, rtol=1e-13, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("value_of", "gradient_of"), PAIRS)
def test_gradients_by_finite_differences(shape, value_of, gradient_of):
    w = weight(shape)
    _, gradient = gradient_of(w)
    step = 1e-6
    for i in range(shape[0]):
        for j in range(shape[1]):
            up, down = w.clone(), w.clone()
            up[i, j] += step
            down[i, j] -= step
            slope = (value_of(up) - value_of(down)) / (2 * step)
            assert float(gradient[i, j]) == pytest.approx(float(slope), rel=1e-6, abs=1e-6)


def test_zero_at_their_targets_and_scale_free():
    q, _ = torch.linalg.qr(weight((9, 4)))
    assert float(gram_penalty(q.T)) == pytest.approx(0, abs=1e-20)
    assert float(gram_penalty(q)) == pytest.approx(5)  # the constant floor m - n
    assert float(scale_free_penalty(7 * q)) == pytest.approx(0, abs=1e-20)
    w = weight((9, 4))
    assert float(scale_free_penalty(3 * w)) == pytest.approx(float(scale_free_penalty(w)))
    _, gradient = scale_free_penalty_gradient(w)
    assert float((gradient * w).sum()) == pytest.approx(0, abs=1e-10)  # no pull on the norm


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_the_penalty_of_a_model_is_the_originals(kind):
    """0.01 times the mean over layers of the up projections' penalty; in the parameter's own orientation."""
    model = tiny_model(kind)
    blocks = find_blocks(model)
    big_side = [(w @ w.T - torch.eye(len(w))).square().sum() for w in (b.up.weight_OI for b in blocks)]
    total = 0.01 * compute_gram_loss(model)
    assert total.item() == pytest.approx(0.01 * sum(big_side).item() / len(blocks), rel=1e-5)
    total.backward()
    value, parts = penalty_of_blocks(blocks, 0.01, gram_penalty_gradient)
    assert float(value) == pytest.approx(total.item(), rel=1e-6)
    assert len(parts) == len(blocks)
    for parameter, gradient in parts:
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)
