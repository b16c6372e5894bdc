"""Losses against closed forms and derivatives against autograd."""

import math

import pytest
import torch

from least_action.data import all_pairs
from least_action.losses import (
    LeastActionLoss,
    consistency_regularizer,
    cross_entropy,
    gini_regularizer,
    information_regularizer,
    jacobian_regularizer,
    routing_loss,
    sparsity_regularizer,
    spectral_smoothness_loss,
    stablemax_cross_entropy,
)
from least_action.metrics import compute_jacobian_norm, grid_logits, mean_entropy
from least_action.model import create_model

UNIFORM, ONE_HOT = torch.full((6, 4), 0.25), torch.eye(4)[[0, 1, 2, 3, 0, 1]]


def test_routing_regularisers_at_their_ends():
    assert mean_entropy(UNIFORM) == pytest.approx(math.log(4), rel=1e-6)
    assert mean_entropy(ONE_HOT) == pytest.approx(0, abs=1e-6)
    assert sparsity_regularizer(UNIFORM) == pytest.approx(0.75)
    assert sparsity_regularizer(ONE_HOT) == 0
    assert gini_regularizer(UNIFORM) == pytest.approx(1)
    assert gini_regularizer(ONE_HOT) == pytest.approx(1 - 3 / 4)


def test_information_is_large_where_samples_use_different_heads_and_not_where_all_use_one():
    every_head, one_head = torch.eye(4).repeat(3, 1), torch.eye(4)[[2] * 12]
    assert information_regularizer(every_head) == pytest.approx(-math.log(4), abs=1e-6)
    assert information_regularizer(one_head) == pytest.approx(0, abs=1e-6)
    assert information_regularizer(UNIFORM) == pytest.approx(0, abs=1e-6)
    weights = torch.tensor([[1.0, 0.0], [0.3, 0.7]], requires_grad=True)  # a weight that has underflowed
    (gradient,) = torch.autograd.grad(information_regularizer(weights), weights)
    assert gradient.isfinite().all()


def test_consistency_is_zero_where_like_inputs_are_routed_alike():
    inputs = torch.eye(2)[[0, 0, 0, 1, 1, 1]] * 100
    assert consistency_regularizer(UNIFORM, inputs) == pytest.approx(0, abs=1e-6)
    assert consistency_regularizer(ONE_HOT, inputs) > 0.3
    with pytest.raises(ValueError, match="consistency"):
        routing_loss("consistency", [UNIFORM])


def test_consistency_by_hand():
    weights, inputs = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    e = math.e
    near, far = e / (e + 1), 1 / (e + 1)
    total = 0.0
    for i, w in enumerate(weights.tolist()):
        mean = [near * weights[i, r] + far * weights[1 - i, r] for r in range(2)]
        total += sum(w[r] * math.log(w[r] / mean[r]) for r in range(2)) / 2
    assert consistency_regularizer(weights, inputs) == pytest.approx(total, rel=1e-5)


def test_stablemax_by_hand_and_never_zero_gradient():
    logits = torch.tensor([[2.0, -1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    s = [3.0, 0.5, 1.0]
    assert stablemax_cross_entropy(logits, torch.tensor([0])).item() == pytest.approx(-math.log(s[0] / sum(s)))
    extreme = torch.tensor([[400.0, -400.0]], requires_grad=True)
    (through_stable,) = torch.autograd.grad(stablemax_cross_entropy(extreme, torch.tensor([0])), extreme)
    (through_softmax,) = torch.autograd.grad(cross_entropy(extreme, torch.tensor([0])), extreme)
    assert (through_stable != 0).all()
    assert (through_softmax == 0).all()


def test_loss_in_float64_sees_what_float32_rounds_away():
    logits, y = torch.tensor([[20.0, 0.0]]), torch.tensor([0])
    assert cross_entropy(logits, y, torch.float64) == pytest.approx(math.log1p(math.exp(-20.0)), rel=1e-9)
    assert cross_entropy(logits, y, torch.float32) == 0


def test_smoothness_loss_separates_smooth_from_rough_and_has_a_gradient():
    p = 11
    pairs = all_pairs(p, "add")
    k = torch.arange(p)
    result = (pairs.a_N + pairs.b_N)[:, None] - k
    smooth = torch.cos(2 * math.pi * result / p)
    rough = torch.cos(2 * math.pi * 5 * result / p).requires_grad_()
    assert spectral_smoothness_loss(grid_logits(smooth, pairs, p, "add")) < 0.01
    loss = spectral_smoothness_loss(grid_logits(rough, pairs, p, "add"))
    assert loss > 0.99
    noise = torch.randn(p * p, p, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: spectral_smoothness_loss(grid_logits(z, pairs, p, "add")), noise)


def test_jacobian_regulariser_is_unbiased_and_differentiable(small):
    model = create_model(small(dtype="float64", init_std=0.4))
    x = model.plain_inputs(torch.tensor([1, 2, 5]), torch.tensor([3, 6, 0]))
    stream = torch.Generator().manual_seed(0)
    draws = torch.stack([jacobian_regularizer(model, x, stream).detach() for _ in range(600)])
    exact = compute_jacobian_norm(model, x)
    assert abs(draws.mean() - exact) < 4 * draws.std() / math.sqrt(600)
    jacobian_regularizer(model, x, stream).backward()
    assert model.blocks[0].ff.up.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["entropy", "sparsity", "gini", "consistency"])
def test_least_action_loss_adds_the_weighted_parts(small, name):
    config = small(model_type="routed", n_layers=2, n_heads=4, routing_regularizer=name, lambda_routing=0.5)
    model, pairs = create_model(config), all_pairs(7, "add")
    torch.nn.init.normal_(model.layers[0].gate.gate.weight)
    output = model.forward_pairs(pairs.a_N, pairs.b_N)
    inputs = model.plain_inputs(pairs.a_N, pairs.b_N)
    parts = LeastActionLoss(config)(output, pairs.y_N, inputs)
    assert parts.routing > 0
    assert parts.total.item() == pytest.approx((parts.data + 0.5 * parts.routing).item())
    assert parts.data.item() == pytest.approx(cross_entropy(output.logits_NP, pairs.y_N).item())


def test_extra_parts_come_when_configured(small):
    config = small(lambda_spectral=2.0, spectral_interval=3, lambda_jacobian=0.1)
    model, pairs = create_model(config), all_pairs(7, "add")
    loss, grid = LeastActionLoss(config), (pairs.a_N, pairs.b_N)
    few = pairs[torch.arange(5)]
    with_both, jacobian_only = (loss.extra(model, few.a_N, few.b_N, grid, step) for step in (3, 4))
    assert with_both > jacobian_only > 0
    assert LeastActionLoss(small()).extra(model, few.a_N, few.b_N, grid, 0) is None
