"""Models: their size, evaluation that leaves no trace, and their folders."""

import json

import pytest
import torch
from torch import nn

from studycore.errors import UserError
from studycore.models import check_fits, count_parameters, evaluating, load_module, save_module


def build(values):
    return nn.Sequential(nn.Linear(3, values["width"]), nn.Dropout(0.5))


def test_a_shared_parameter_counts_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert count_parameters(model) == 3 * 3 + 2 * 3


@pytest.mark.parametrize(
    ("width", "activations", "size"),
    [(10**6, 0, "16,391 GiB"), (10**10, 0, "34,359,738,368 GiB"), (100, 2**50, "1,048,576 GiB")],
    ids=["weights", "too many to count", "activations"],
)
def test_what_does_not_fit_is_refused_with_its_size_and_nothing_is_allocated_or_drawn(width, activations, size):
    before = torch.get_rng_state()
    with pytest.raises(UserError, match=rf"^width: 7: weights, .* take {size} of memory and .* are free; lower it$"):
        check_fits(lambda: nn.Linear(width, int(1.1 * width)), "width: 7", "lower it", "cpu", activations)
    check_fits(lambda: nn.Linear(100, 100), "width: 7", "lower it", "cpu", 2**10)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_gradients_and_two_moments_are_counted(monkeypatch):
    counted = []
    monkeypatch.setattr("studycore.models.check_memory", lambda size, *said: counted.append(size))
    check_fits(lambda: nn.Linear(10, 7), "width: 7", "lower it", "cpu", 5)
    check_fits(lambda: nn.Linear(10, 7).double(), "width: 7", "lower it", "cpu")
    assert counted == [4 * 77 * 4 + 5, 4 * 77 * 8]


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_leaves_the_mode_as_it_was_also_after_an_error(training):
    model = build({"width": 2}).train(training)
    with evaluating(model) as device:
        assert not model[1].training and device == torch.device("cpu")
        assert not model(torch.ones(1, 3)).requires_grad
    assert model[1].training is training and model(torch.ones(1, 3)).requires_grad
    with pytest.raises(ZeroDivisionError), evaluating(model):
        raise ZeroDivisionError
    assert model.training is training


def test_a_saved_module_comes_back_and_one_that_does_not_fit_is_a_sentence(tmp_path):
    model = build({"width": 2})
    save_module(model, tmp_path / "made", {"width": 2}, "c.json", "w.safetensors")
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"c.json", "w.safetensors"}
    again = load_module(tmp_path / "made", build, "a toy", "c.json", "w.safetensors")
    assert torch.equal(again[0].weight, model[0].weight) and torch.equal(again[0].bias, model[0].bias)
    with pytest.raises(UserError, match=r"config\.json"):
        load_module(tmp_path / "made", build, "a toy")
    for values in ({"width": 3}, {"other": 2}):
        (tmp_path / "made" / "c.json").write_text(json.dumps(values))
        with pytest.raises(UserError, match="cannot be read as a toy"):
            load_module(tmp_path / "made", build, "a toy", "c.json", "w.safetensors")
