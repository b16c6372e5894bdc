"""Routing, numerics and norms in closed form. N samples, R heads, P classes."""

import math

import pytest
import torch

import least_action.metrics as metrics
from least_action.config import TrainerConfig
from least_action.data import all_pairs
from least_action.metrics.model_properties import (
    compute_layer_weight_norms,
    compute_representation_norm,
    decayed_weight_norm,
    total_weight_norm,
)
from least_action.metrics.numerics import find_slingshots, logit_scale, softmax_collapse
from least_action.metrics.routing import dominant_head, head_utilization, path_signatures, routing_entropy
from least_action.model import create_model
from least_action.model.parameter_roles import decayed_parameters
from studycore.streams import generator

torch.set_num_threads(1)


def test_routing_entropy_in_nats():
    assert routing_entropy(torch.tensor([[1.0, 0.0], [0.0, 1.0]])) == 0
    assert routing_entropy(torch.full((3, 4), 0.25)) == pytest.approx(math.log(4))
    mixed = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    assert routing_entropy(mixed) == pytest.approx(math.log(2) / 2)


def test_head_use_and_dominant_heads():
    weights_NR = torch.tensor([[0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [0.5, 0.5, 0.0]])
    assert head_utilization(weights_NR).tolist() == pytest.approx([1.3 / 3, 1.7 / 3, 0])
    assert dominant_head(weights_NR).tolist() == [0, 1, 0]


def test_path_signatures_count_paths_over_layers():
    first = torch.eye(2)[[0, 0, 1, 1]]
    second = torch.eye(3)[[2, 2, 2, 0]]
    paths = path_signatures([first, second])  # (0, 2) twice, (1, 2), (1, 0)
    assert paths.distinct == 3
    assert paths.entropy == pytest.approx(1.5 * math.log(2))
    one = path_signatures([torch.full((5, 4), 0.25)])
    assert (one.distinct, one.entropy) == (1, 0)
    with pytest.raises(ValueError, match="no layer"):
        path_signatures([])


def test_softmax_collapse_depends_on_the_precision():
    logits_NP = torch.tensor([[0.0, -30.0, -40.0], [0.0, -5.0, -5.0], [50.0, 0.0, 0.0], [1.0, 1.0, -99.0]]).double()
    assert softmax_collapse(logits_NP, torch.float32) == 0.5  # rows 0 and 2: e^-30, e^-50 < 2^-24
    assert softmax_collapse(logits_NP, torch.float64) == 0.25  # row 2: e^-50 < 2^-53
    assert softmax_collapse(logits_NP, torch.bfloat16) == 0.5
    assert softmax_collapse(logits_NP - 9, torch.bfloat16) == 0.5  # e^-5 > 2^-8 still counts
    assert softmax_collapse(torch.randn(50, 11, generator=generator(0, "noise")), torch.float32) == 0


def test_softmax_collapse_is_where_the_gradient_vanishes():
    logits_NP = torch.tensor([[0.0, -200.0], [0.0, -10.0]]).requires_grad_()
    torch.nn.functional.cross_entropy(logits_NP, torch.tensor([0, 0]), reduction="sum").backward()
    assert (logits_NP.grad[:, 0] == 0).tolist() == [True, False]
    assert softmax_collapse(logits_NP, torch.float32) == 0.5


def test_logit_scale_ignores_what_the_softmax_ignores():
    logits_NP = torch.tensor([[3.0, -3.0], [1.0, -1.0]])
    assert logit_scale(logits_NP) == pytest.approx(math.sqrt(5))
    assert logit_scale(logits_NP + torch.tensor([[100.0], [-7.0]])) == pytest.approx(math.sqrt(5))
    assert logit_scale(torch.full((2, 3), 4.0)) == 0


def decaying(steps: int) -> torch.Tensor:
    return torch.exp(-0.01 * torch.arange(steps).double())


def test_slingshots_are_found_once_each():
    losses = decaying(600)
    losses[200:205] *= torch.tensor([12.0, 80.0, 30.0, 9.0, 14.0])  # dips below the threshold and returns
    losses[400:403] *= torch.tensor([5.0, 50.0, 2.0])
    assert find_slingshots(losses, window=50) == [200, 401]
    assert find_slingshots(losses.tolist(), window=50, factor=60) == [201]
    # Two excursions with a return between them.
    losses = torch.ones(100)
    losses[[40, 43]] = 20.0
    assert find_slingshots(losses, window=50) == [40, 43]
    # A rise that lasts is one event, also when the window has forgotten the low.
    losses = torch.ones(100)
    losses[40:] = 20.0
    assert find_slingshots(losses, window=10) == [40]


def test_no_slingshots_in_noise_or_slow_growth():
    noise = torch.randn(600, generator=generator(0, "noise")).double()
    assert find_slingshots(decaying(600) * torch.exp(0.3 * noise), window=50) == []
    assert find_slingshots(decaying(600).flip(0), window=50) == []  # tenfold takes 230 steps
    assert find_slingshots(1e-9 * noise.abs(), window=50) == []  # all below the floor
    assert find_slingshots([1.0] * 49 + [9.99], window=10) == []
    assert find_slingshots([1.0] * 49 + [10.0], window=10) == [49]
    assert find_slingshots([], window=3) == []


def test_slingshot_arguments():
    for arguments in ({"window": 0}, {"window": 5, "factor": 1.0}, {"window": 5, "floor": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            find_slingshots([1.0], **arguments)
    with pytest.raises(ValueError, match="index 1"):
        find_slingshots([1.0, math.nan], window=2)


@pytest.mark.parametrize("model_type", ["baseline", "routed", "transformer", "routed_transformer"])
def test_norms(model_type):
    config = TrainerConfig(p=5, hidden_dim=4, n_layers=2, n_heads=2, routing_heads=2, model_type=model_type, seed=1)
    model, pairs = create_model(config), all_pairs(5, "add")
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    assert total_weight_norm(model) == pytest.approx(flat.norm().item(), rel=1e-5)
    layers = compute_layer_weight_norms(model)
    assert set(layers) == {name for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    assert sum(norm**2 for norm in layers.values()) == pytest.approx(total_weight_norm(model) ** 2)
    head = math.hypot(model.head.weight.detach().norm(), model.head.bias.detach().norm())
    assert layers["head"] == pytest.approx(head, rel=1e-5)
    names = decayed_parameters(model, "matrices")
    decayed = torch.cat([model.get_parameter(name).detach().reshape(-1) for name in names])
    assert decayed_weight_norm(model, names) == pytest.approx(decayed.norm().item(), rel=1e-5)
    assert decayed_weight_norm(model, set()) == 0
    with pytest.raises(KeyError):
        decayed_weight_norm(model, {"head.wieght"})
    x = model.plain_inputs(pairs.a_N, pairs.b_N)
    expected = model.get_representation(x).norm(dim=-1).mean().item()
    assert compute_representation_norm(model, pairs.a_N, pairs.b_N) == pytest.approx(expected, rel=1e-5)


def test_exports_exist():
    assert all(hasattr(metrics, name) for name in metrics.__all__)
    assert metrics.__all__ == sorted(metrics.__all__)
