"""Adam metrics against what torch's AdamW does to the weights, and in closed form for constant gradients."""

import math

import pytest
import torch
from torch import Tensor

from least_action.metrics.optimizer import AdamMetrics, compute_adam_metrics
from studycore.streams import generator

LR, BETA1, BETA2, EPS, DECAY = 3e-3, 0.9, 0.98, 1e-3, 0.7  # a large eps, so that where it stands matters


def run_adamw(steps: int, decay: float = DECAY) -> tuple[dict[str, Tensor], dict[str, Tensor], AdamMetrics]:
    """(weights before the last step, after it, metrics) with one decayed and one undecayed matrix."""
    stream = generator(0, "adam")
    shapes = {"decayed": (4, 3), "spared": (5,)}
    parameters = {
        name: torch.randn(shape, generator=stream, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }
    groups = [
        {"params": [parameters["decayed"]], "weight_decay": decay},
        {"params": [parameters["spared"]], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(BETA1, BETA2), eps=EPS)
    for _ in range(steps):
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        for parameter in parameters.values():
            parameter.grad = 0.01 * torch.randn(parameter.shape, generator=stream, dtype=torch.float64)
        optimizer.step()
    state = {name: optimizer.state[parameter] for name, parameter in parameters.items()}
    metrics = compute_adam_metrics(
        before,
        {name: state[name]["exp_avg"] for name in shapes},
        {name: state[name]["exp_avg_sq"] for name in shapes},
        int(state["decayed"]["step"]),
        LR,
        BETA1,
        BETA2,
        EPS,
        decay,
        {"decayed", "a frozen one"},
    )
    return before, {name: parameter.detach() for name, parameter in parameters.items()}, metrics


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_metrics_are_those_of_the_real_step(steps):
    before, after, metrics = run_adamw(steps)
    decay_part = LR * DECAY * before["decayed"]
    gradient_part = {
        "decayed": before["decayed"] - decay_part - after["decayed"],
        "spared": before["spared"] - after["spared"],
    }
    moves = torch.cat([part.reshape(-1).abs() for part in gradient_part.values()]) / LR
    assert metrics.adam_ratio_mean == pytest.approx(moves.mean().item(), rel=1e-9)
    assert metrics.adam_ratio_max == pytest.approx(moves.max().item(), rel=1e-9)
    expected = (gradient_part["decayed"].norm() / decay_part.norm()).item()
    assert metrics.update_decay_ratio == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("step", [1, 5, 400])
@pytest.mark.parametrize("gradient", [1e-6, 1e-3, 2.0])
def test_constant_gradient_in_closed_form(step, gradient):
    """m_hat = g and v_hat = g^2 at every step."""
    w, g = torch.tensor([3.0, 4.0], dtype=torch.float64), torch.tensor([gradient, -gradient], dtype=torch.float64)
    m, v = (1 - BETA1**step) * g, (1 - BETA2**step) * g**2
    metrics = compute_adam_metrics({"w": w}, {"w": m}, {"w": v}, step, LR, BETA1, BETA2, 1e-8, DECAY, {"w"})
    rate, ratio = LR / (gradient + 1e-8), gradient / (gradient + 1e-8)
    assert (metrics.effective_lr_mean, metrics.effective_lr_max) == pytest.approx((rate, rate), rel=1e-9)
    assert (metrics.adam_ratio_mean, metrics.adam_ratio_max) == pytest.approx((ratio, ratio), rel=1e-9)
    assert metrics.update_decay_ratio == pytest.approx(ratio * math.sqrt(2) / (DECAY * 5), rel=1e-9)
    root = math.sqrt(v[0].item() + 1e-8)
    assert metrics.effective_lr_mean_original == metrics.effective_lr_max_original == pytest.approx(root, rel=1e-9)
    ratio_original = m[0].item() / root
    assert (
        metrics.adam_ratio_mean_original == metrics.adam_ratio_max_original == pytest.approx(ratio_original, rel=1e-9)
    )
    assert metrics.update_decay_ratio_original == pytest.approx(
        ratio_original * math.sqrt(2) / math.sqrt(DECAY * 25), rel=1e-9
    )
    assert metrics.effective_lr_mean_original >= 1e-4  # the floor that the published curve shows


def test_means_and_maxima_run_over_all_weights():
    w = {"a": torch.ones(1), "b": torch.ones(3)}
    m = {"a": torch.tensor([1.0]), "b": torch.tensor([0.0, 0.0, -4.0])}
    v = {"a": torch.tensor([1.0]), "b": torch.tensor([4.0, 4.0, 4.0])}
    metrics = compute_adam_metrics(w, m, v, 10**6, 1.0, 0.9, 0.98, 0.0, 0.5, {"b"})
    assert (metrics.effective_lr_mean, metrics.effective_lr_max) == pytest.approx((2.5 / 4, 1.0))
    assert (metrics.adam_ratio_mean, metrics.adam_ratio_max) == pytest.approx((3 / 4, 2.0))
    assert metrics.update_decay_ratio == pytest.approx(2 / (0.5 * math.sqrt(3)))
    # The original's numerator has the undecayed parameter, too, and its denominator the root of the decay.
    assert metrics.update_decay_ratio_original == pytest.approx(math.sqrt(1 + 4) / math.sqrt(0.5 * 3))
    assert metrics.effective_lr_max_original == pytest.approx(2.0)
    assert metrics.adam_ratio_mean_original == pytest.approx(3 / 4)


def test_no_ratio_without_decay():
    _, _, metrics = run_adamw(2, decay=0.0)
    assert metrics.update_decay_ratio is None and metrics.update_decay_ratio_original is None
    one = {"w": torch.ones(2)}
    metrics = compute_adam_metrics(one, one, one, 1, LR, BETA1, BETA2, EPS, DECAY, set())
    assert metrics.update_decay_ratio is None and metrics.update_decay_ratio_original is None


def test_incomplete_states_are_refused():
    one = {"w": torch.ones(2)}
    with pytest.raises(ValueError, match="names"):
        compute_adam_metrics(one, one, {}, 1, LR, BETA1, BETA2, EPS, DECAY, {"w"})
    with pytest.raises(ValueError, match="names"):
        compute_adam_metrics({}, {}, {}, 1, LR, BETA1, BETA2, EPS, DECAY, {"w"})
    with pytest.raises(ValueError, match="step: 0"):
        compute_adam_metrics(one, one, one, 0, LR, BETA1, BETA2, EPS, DECAY, {"w"})
