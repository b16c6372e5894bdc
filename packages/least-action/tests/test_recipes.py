"""Recipes against their formulas."""

import pytest
import torch

from least_action.model import create_model
from least_action.model.parameter_roles import decayed_parameters
from least_action.recipes import (
    create_optimizers,
    grokfast_average,
    learning_rate,
    orthogonal_gradient,
    transform_gradients,
)
from studycore.checkpoints import optimizer_tensors, restore_optimizer


def test_orthogonal_gradient():
    w, g = torch.randn(5, 4), torch.randn(5, 4)
    new = orthogonal_gradient(w, g)
    assert (new * w).sum().abs() < 1e-5 * w.norm() * g.norm()
    assert new.norm() == pytest.approx(g.norm().item(), rel=1e-5)
    assert (new * g).sum() > 0
    assert torch.equal(orthogonal_gradient(torch.zeros(3), torch.ones(3)), torch.ones(3))


def test_grokfast_against_the_sum_written_out(small):
    config = small(recipe="grokfast", grokfast_alpha=0.5, grokfast_lambda=3.0)
    gradients = [torch.tensor([1.0]), torch.tensor([4.0]), torch.tensor([-2.0])]
    averages, outs = {}, []
    for g in gradients:
        new, averages = transform_gradients({"w": torch.zeros(1)}, {"w": g}, averages, config)
        outs.append(new["w"].item())
    # m: 1, 2.5, 0.25
    assert outs == [1 + 3 * 1, 4 + 3 * 2.5, -2 + 3 * 0.25]
    assert grokfast_average(torch.tensor(2.0), torch.tensor(4.0), 0.75) == 2.5


def test_warm_up_is_linear_from_zero(small):
    config = small(warmup_epochs=4, lr=0.8)
    assert [learning_rate(e, config) for e in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert learning_rate(0, small(lr=0.8)) == 0.8
    settled = small(lr=0.8, lr_after_99=0.1, warmup_epochs=4)
    assert [learning_rate(e, settled, e > 5) for e in (1, 5, 6, 9)] == pytest.approx([0.4, 0.8, 0.1, 0.1])
    assert learning_rate(9, config, True) == 0.8


@pytest.mark.parametrize("rule", ["matrices", "all"])
@pytest.mark.parametrize("recipe", ["none", "muon"])
@pytest.mark.parametrize("model_type", ["transformer", "routed"])
def test_decay_reaches_what_the_rule_names_and_nothing_else(small, rule, recipe, model_type):
    """With zero gradients and moments only decay moves a weight."""
    config = small(model_type=model_type, recipe=recipe, weight_decay_rule=rule, weight_decay=0.5, lr=0.1)
    model = create_model(config)
    with torch.no_grad():
        for q in model.parameters():
            q.fill_(1.0)
    for optimizer in create_optimizers(model, config):
        for group in optimizer.param_groups:
            for q in group["params"]:
                q.grad = torch.zeros_like(q)
        optimizer.step()
    decayed = decayed_parameters(model, rule)
    for name, q in model.named_parameters():
        # Muon decays what it updates, the weight matrices, which both rules name.
        assert torch.allclose(q, torch.full_like(q, 0.95 if name in decayed else 1.0)), name


@pytest.mark.parametrize("recipe", ["none", "muon"])
def test_optimizer_state_goes_out_and_in_by_name(small, recipe):
    config = small(recipe=recipe)
    model = create_model(config)
    optimizers = create_optimizers(model, config)

    def step():
        model.forward_pairs(torch.tensor([1, 2]), torch.tensor([3, 4])).logits_NP.square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    step()
    state, weights = optimizer_tensors(model, optimizers), {k: v.clone() for k, v in model.state_dict().items()}
    state = {name: tensor.clone() for name, tensor in state.items()}
    step()
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    model = create_model(config)
    model.load_state_dict(weights)
    optimizers = create_optimizers(model, config)
    for optimizer in optimizers:
        restore_optimizer(model, optimizer, state)
    step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    with pytest.raises(ValueError, match="no parameter"):
        restore_optimizer(model, optimizers[0], {"nothing/exp_avg": torch.zeros(1)})


def test_the_constrained_norm_is_its_share_of_the_initial_norm(small, train, tmp_path):
    """After every update, whatever the learning rate does to it."""
    from safetensors.torch import load_file

    from studycore.checkpoints import read_index

    config = small(recipe="constrained_norm", constrained_norm_alpha=0.6, epochs=10, lr=0.1)
    train(config, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    end = load_file(checkpoints / read_index(checkpoints)["last"] / "model.safetensors")
    names = [name for name, parameter in create_model(config).named_parameters() if parameter.requires_grad]
    start = torch.cat([parameter.detach().flatten() for parameter in create_model(config).parameters()]).norm()
    held = torch.cat([end[name].flatten() for name in names]).norm()
    assert held.item() == pytest.approx(0.6 * start.item(), rel=1e-5)
