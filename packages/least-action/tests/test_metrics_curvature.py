"""Curvature against autograd, dense Hessians and exhaustive enumeration. N samples, P classes, W weights."""

import itertools
import math
import warnings

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from least_action.config import TrainerConfig
from least_action.data import Pairs, all_pairs
from least_action.metrics import curvature
from least_action.metrics.curvature import (
    compute_fisher_trace,
    compute_gradient_norm,
    compute_hessian_trace,
    compute_jacobian_norm,
    compute_jacobian_norm_original,
    compute_weight_hessian_trace,
    rademacher,
)
from least_action.model import PairModel, create_model
from studycore.streams import generator

torch.set_num_threads(1)
P = 5
TYPES = ["baseline", "routed", "transformer", "rms", "sphere", "routed_transformer"]
SETTINGS = {
    "rms": {"model_type": "transformer", "residual_norm": "rmsnorm"},
    "sphere": {"model_type": "transformer", "recipe": "bounded_sphere"},
    "no norm": {"model_type": "transformer", "residual_norm": "none"},
}
loss_fn = F.cross_entropy


def small_model(model_type: str, activation: str = "gelu", **settings: object) -> PairModel:
    """Float64, hidden 4, scaled up so that derivatives of all orders are far from rounding."""
    settings = {"p": P, "hidden_dim": 4, "n_layers": 1, "n_heads": 2, "routing_heads": 2} | settings
    settings |= SETTINGS.get(model_type, {"model_type": model_type})
    config = TrainerConfig(activation=activation, dtype="float64", seed=3, **settings)
    model = create_model(config)
    stream = generator(1, "scale")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=stream, dtype=torch.float64), alpha=0.5)
    return model


def some_pairs(n: int, p: int = P) -> Pairs:
    return all_pairs(p, "add")[torch.randperm(p * p, generator=generator(0, "some"))[:n]]


def inputs(model: PairModel, pairs: Pairs) -> Tensor:
    return model.plain_inputs(pairs.a_N, pairs.b_N)


def flat_loss(model: PairModel, pairs: Pairs):
    """The mean loss as a function of the trainable weights as one vector, and that vector."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    values = [model.get_parameter(name).detach() for name in names]
    x = inputs(model, pairs)

    def loss(flat_W: Tensor) -> Tensor:
        parts = flat_W.split([value.numel() for value in values])
        state = {name: part.reshape(value.shape) for name, part, value in zip(names, parts, values, strict=True)}
        output = functional_call(model, state, (x,))
        return loss_fn(output[0] if model.routed else output, pairs.y_N)

    return loss, torch.cat([value.reshape(-1) for value in values])


def dense_hessian(model: PairModel, pairs: Pairs) -> Tensor:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.autograd.functional.hessian(*flat_loss(model, pairs))


def dense_jacobian(model: PairModel, x: Tensor) -> Tensor:
    """[N, P, values of one input]"""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        embeddings = model.get_embeddings(x).detach()
        rows = [jacrev(lambda e: model.forward_from_embeddings(e[None])[0])(e).flatten(1) for e in embeddings]
    return torch.stack(rows).detach()


def dense_input_hessians(model: PairModel, x: Tensor) -> Tensor:
    """[N, values, values] of the argmax logit."""
    hessians = []
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for e in model.get_embeddings(x).detach():
            top = model.forward_from_embeddings(e[None])[0].argmax()

            def logit(flat: Tensor, shape: torch.Size = e.shape, top: Tensor = top) -> Tensor:
                return model.forward_from_embeddings(flat.reshape(1, *shape))[0, top]

            hessians.append(torch.autograd.functional.hessian(logit, e.reshape(-1)))
    return torch.stack(hessians)


@pytest.mark.parametrize("model_type", TYPES)
def test_gradient_norm_is_autograds(model_type):
    model, pairs = small_model(model_type), some_pairs(9)
    loss, flat_W = flat_loss(model, pairs)
    (gradient_W,) = torch.autograd.grad(loss(flat_W.requires_grad_()), flat_W)
    assert compute_gradient_norm(model, pairs, loss_fn) == pytest.approx(gradient_W.norm().item(), rel=1e-9)


@pytest.mark.parametrize("model_type", TYPES)
def test_jacobian_norm_is_exact(model_type):
    model = small_model(model_type)
    x = inputs(model, some_pairs(5))
    expected = dense_jacobian(model, x).square().sum(dim=(1, 2)).mean().item()
    assert compute_jacobian_norm(model, x, chunk=2) == pytest.approx(expected, rel=1e-9)
    with torch.no_grad():
        assert compute_jacobian_norm(model, x) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("model_type", ["baseline", "transformer"])
def test_jacobian_norm_seed_projects_on_unit_vectors(model_type):
    model = small_model(model_type)
    x = inputs(model, some_pairs(4))
    jacobian_NPE = dense_jacobian(model, x)
    stream, squares = generator(0, "probes"), []
    for _ in range(3):
        v_NP = torch.randn(4, P, generator=stream).double()
        v_NP = v_NP / v_NP.norm(dim=-1, keepdim=True)
        squares.append(torch.einsum("npe,np->ne", jacobian_NPE, v_NP).square().sum() / 4)
    expected = P * sum(squares).item() / 3
    assert compute_jacobian_norm_original(model, x, 3, generator(0, "probes")) == pytest.approx(expected, rel=1e-6)
    # Unbiased for the exact norm.
    many = compute_jacobian_norm_original(model, x, 500, generator(0, "many"))
    assert many == pytest.approx(compute_jacobian_norm(model, x), rel=0.1)


@pytest.mark.parametrize("model_type", TYPES)
def test_hessian_trace_is_the_dense_one_on_its_probes(model_type):
    model = small_model(model_type)
    x = inputs(model, some_pairs(3))
    hessian_NEE = dense_input_hessians(model, x)
    shape, stream, expected = model.get_embeddings(x).shape, generator(0, "probes"), []
    for _ in range(4):
        v_NE = rademacher(shape, hessian_NEE, stream).flatten(1)
        expected.append(torch.einsum("ne,nef,nf->", v_NE, hessian_NEE, v_NE).item() / 3)
    estimate = compute_hessian_trace(model, x, 4, generator(0, "probes"))
    assert estimate.value == pytest.approx(sum(expected) / 4, rel=1e-8)
    assert estimate.standard_error == pytest.approx(torch.tensor(expected).double().std().item() / 2, rel=1e-5)
    many = compute_hessian_trace(model, x, 200, generator(0, "many"))
    trace = hessian_NEE.diagonal(dim1=1, dim2=2).sum(dim=1).mean().item()
    assert abs(many.value - trace) < 4 * many.standard_error


def test_hessian_trace_over_all_sign_vectors_is_the_trace(monkeypatch):
    model = small_model("baseline", p=3)
    x = inputs(model, some_pairs(1, p=3))
    signs = iter(itertools.product((-1.0, 1.0), repeat=6))
    monkeypatch.setattr(curvature, "rademacher", lambda *_: torch.tensor([next(signs)], dtype=torch.float64))
    estimate = compute_hessian_trace(model, x, 64, generator(0, "unused"))
    assert estimate.value == pytest.approx(dense_input_hessians(model, x)[0].trace().item(), rel=1e-9)
    assert next(signs, None) is None


def test_hessian_trace_of_a_piecewise_linear_network_is_zero():
    model = small_model("baseline", activation="relu").requires_grad_(False)
    estimate = compute_hessian_trace(model, inputs(model, some_pairs(4)), 3, generator(0, "probes"))
    assert (estimate.value, estimate.standard_error, estimate.n) == (0.0, 0.0, 3)


@pytest.mark.parametrize("model_type", TYPES)
def test_weight_hessian_trace_is_the_dense_one_on_its_probes(model_type):
    model, pairs = small_model(model_type, freeze_gates=model_type == "routed_transformer"), some_pairs(11)
    hessian_WW = dense_hessian(model, pairs)
    shapes = [parameter.shape for parameter in model.parameters() if parameter.requires_grad]
    stream, expected = generator(0, "probes"), []
    for _ in range(3):
        v_W = torch.cat([rademacher(shape, hessian_WW, stream).reshape(-1) for shape in shapes])
        expected.append((v_W @ hessian_WW @ v_W).item())
    estimate = compute_weight_hessian_trace(model, pairs, loss_fn, 3, generator(0, "probes"))
    assert estimate.value == pytest.approx(sum(expected) / 3, rel=1e-8)
    assert estimate.standard_error == pytest.approx(torch.tensor(expected).double().std().item() / 3**0.5, rel=1e-5)
    assert estimate.n == 3


def test_weight_hessian_trace_and_its_error_have_the_theoretical_size():
    model, pairs = small_model("baseline"), some_pairs(11)
    hessian_WW = dense_hessian(model, pairs)
    estimate = compute_weight_hessian_trace(model, pairs, loss_fn, 300, generator(0, "many"))
    variance = 2 * (hessian_WW.square().sum() - hessian_WW.diagonal().square().sum()).item()
    assert estimate.standard_error == pytest.approx((variance / 300) ** 0.5, rel=0.2)
    assert abs(estimate.value - hessian_WW.trace().item()) < 4 * estimate.standard_error
    assert hessian_WW.trace().item() > 8 * estimate.standard_error


@pytest.mark.parametrize("model_type", ["baseline", "no norm"])
def test_weight_hessian_products_are_those_of_curvlinops(model_type):
    """On nets without LayerNorm, whose derivatives the library gets wrong."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit\.script", DeprecationWarning)
        from curvlinops import HessianLinearOperator

        class OnPairs(torch.nn.Module):
            def __init__(self, model: PairModel):
                super().__init__()
                self.model = model

            def forward(self, pairs_N2: Tensor) -> Tensor:
                return self.model.forward_pairs(pairs_N2[:, 0], pairs_N2[:, 1]).logits_NP

        model, pairs = small_model(model_type), some_pairs(11)
        data = [(torch.stack([pairs.a_N, pairs.b_N], dim=-1), pairs.y_N)]
        parameters = list(model.parameters())
        hessian = HessianLinearOperator(
            OnPairs(model), torch.nn.CrossEntropyLoss(), parameters, data, check_deterministic=False
        )
        stream, expected = generator(0, "probes"), []
        for _ in range(3):
            probe = [rademacher(parameter.shape, parameter, stream) for parameter in parameters]
            expected.append(sum((v * hv).sum().item() for v, hv in zip(probe, hessian @ probe, strict=True)))
    estimate = compute_weight_hessian_trace(model, pairs, loss_fn, 3, generator(0, "probes"))
    assert estimate.value == pytest.approx(sum(expected) / 3, rel=1e-8)


@pytest.mark.parametrize("model_type", TYPES)
def test_fisher_trace_is_the_mean_squared_gradient_of_single_pairs(model_type):
    model, pairs = small_model(model_type, freeze_gates=model_type == "routed_transformer"), some_pairs(7)
    squares = []
    for n in range(7):
        loss, flat_W = flat_loss(model, pairs[n : n + 1])
        (gradient_W,) = torch.autograd.grad(loss(flat_W.requires_grad_()), flat_W)
        squares.append(gradient_W.square().sum())
    expected = torch.stack(squares)
    for chunk in (3, 64):
        estimate = compute_fisher_trace(model, pairs, loss_fn, chunk)
        assert estimate.value == pytest.approx(expected.mean().item(), rel=1e-9)
        assert estimate.standard_error == pytest.approx(expected.std().item() / math.sqrt(7), rel=1e-9)
        assert estimate.n == 7


@pytest.mark.parametrize("grad_enabled", [True, False])
@pytest.mark.parametrize("model_type", TYPES)
def test_metrics_leave_no_trace(model_type, grad_enabled):
    model, pairs = small_model(model_type), some_pairs(4)
    x = inputs(model, pairs)
    model.train()
    before, state = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    with torch.set_grad_enabled(grad_enabled):
        for _ in range(2):
            compute_gradient_norm(model, pairs, loss_fn)
            compute_jacobian_norm(model, x)
            compute_jacobian_norm_original(model, x, 2, generator(0, "a"))
            compute_hessian_trace(model, x, 2, generator(0, "b"))
            compute_weight_hessian_trace(model, pairs, loss_fn, 2, generator(0, "c"))
            compute_fisher_trace(model, pairs, loss_fn)
            assert all(module.training for module in model.modules())
            model.eval()
            compute_fisher_trace(model, pairs, loss_fn)
            assert not any(module.training for module in model.modules())
            model.train()
        assert torch.is_grad_enabled() == grad_enabled
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_too_few_probes_or_pairs():
    model, pairs = small_model("baseline"), some_pairs(4)
    x, stream = inputs(model, pairs), generator(0, "probes")
    with pytest.raises(ValueError, match="n_probes: 1"):
        compute_jacobian_norm_original(model, x, 1, stream)
    with pytest.raises(ValueError, match="n_probes: 1"):
        compute_hessian_trace(model, x, 1, stream)
    with pytest.raises(ValueError, match="n_probes: 0"):
        compute_weight_hessian_trace(model, pairs, loss_fn, 0, stream)
    with pytest.raises(ValueError, match="at least 2"):
        compute_fisher_trace(model, pairs[:1], loss_fn)
