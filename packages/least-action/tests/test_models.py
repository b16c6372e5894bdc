"""Models: the restructured pass against the plain one, routing against dense, roles, initialisation."""

import math

import pytest
import torch
from torch.nn import functional as F

from least_action.data import all_pairs
from least_action.model import create_model
from least_action.model.distinct_inputs import PairIndex, Rows, join
from least_action.model.parameter_roles import decayed_parameters, parameter_roles

SHAPES = [
    *({"residual_norm": norm, "n_layers": layers} for norm in ("layernorm", "rmsnorm", "none") for layers in (1, 2, 3)),
    {"recipe": "bounded_sphere", "n_layers": 1},
    {"recipe": "bounded_sphere", "n_layers": 2},
    {"tie_embeddings": True, "n_layers": 2},
    {"model_type": "routed_transformer", "n_layers": 2},
    {"model_type": "routed_transformer", "n_layers": 1, "recipe": "bounded_sphere"},
    {"model_type": "baseline", "n_layers": 3},
    {"model_type": "baseline", "n_layers": 2, "mlp_bias": False, "activation": "relu"},
    {"model_type": "routed", "n_layers": 2, "n_heads": 3},
    {"model_type": "routed", "n_layers": 1, "n_heads": 1},
]


def both_passes(model, pairs):
    """Outputs and gradients of the loss by each pass."""
    results = []
    for restructured in (False, True):
        model.zero_grad()
        if restructured:
            output = model.forward_pairs(pairs.a_N, pairs.b_N)
        else:
            output = model.run_from_embeddings(model.get_embeddings(model.plain_inputs(pairs.a_N, pairs.b_N)))
        loss = F.cross_entropy(output.logits_NP.double(), pairs.y_N) + sum(w.square().mean() for w in output.routing)
        loss.backward()
        results.append((output, [q.grad.clone() for q in model.parameters() if q.grad is not None]))
    return results


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_restructured_pass_is_the_plain_pass(small, shape, dtype):
    tolerance = 1e-6 if dtype == "float32" else 1e-12
    model = create_model(small(p=11, dtype=dtype, init_std=0.3, **shape))
    pairs = all_pairs(11, "add")[torch.randperm(121, generator=torch.Generator().manual_seed(0))[:60]]
    (plain, plain_gradients), (fast, fast_gradients) = both_passes(model, pairs)
    pieces = zip(
        (plain.logits_NP, plain.representation_ND, *plain.routing),
        (fast.logits_NP, fast.representation_ND, *fast.routing),
        strict=True,
    )
    for one, other in pieces:
        assert (one - other).abs().max() <= tolerance * one.abs().max()
    largest = max(g.abs().max() for g in plain_gradients)
    for one, other in zip(plain_gradients, fast_gradients, strict=True):
        assert (one - other).abs().max() <= tolerance * largest


def test_plain_attention_is_causal_and_scaled(small):
    """Against attention written out by hand, position by position."""
    model = create_model(small(n_layers=1, residual_norm="none", init_std=0.5, dtype="float64"))
    x_ND = model.get_embeddings(torch.tensor([[1, 7, 4, 8]]))[0]
    block = model.blocks[0]
    q, k, v = (w(x_ND).reshape(4, 2, 4) for w in (block.query, block.key, block.value))
    rows = []
    for t in range(4):
        heads = []
        for h in range(2):
            scores = torch.stack([q[t, h] @ k[s, h] for s in range(t + 1)]) / math.sqrt(4)
            heads.append(scores.softmax(0) @ v[: t + 1, h])
        rows.append(x_ND[t] + block.out(torch.cat(heads)))
    expected = torch.stack(rows)
    expected = expected + block.ff(expected)[0]
    torch.testing.assert_close(block(x_ND[None])[0][0], expected)


def test_routed_transformer_starts_as_the_dense_one_and_stays_it_with_frozen_gates(small):
    pairs = all_pairs(7, "add")
    dense = create_model(small(dtype="float64"))
    routed = create_model(small(dtype="float64", model_type="routed_transformer"))
    frozen = create_model(small(dtype="float64", model_type="routed_transformer", freeze_gates=True))
    expected = dense.forward_pairs(pairs.a_N, pairs.b_N).logits_NP
    for model in (routed, frozen):
        torch.testing.assert_close(model.forward_pairs(pairs.a_N, pairs.b_N).logits_NP, expected, rtol=0, atol=1e-14)
    # The gate is all that it has more: (D + 1) R values per block; frozen, it has as many to train.
    trained = [sum(q.numel() for q in m.parameters() if q.requires_grad) for m in (dense, routed, frozen)]
    assert trained[1] - trained[0] == (8 + 1) * 4
    assert trained[2] == trained[0]
    optimizers = [
        torch.optim.AdamW([q for q in m.parameters() if q.requires_grad], lr=1e-2) for m in (dense, routed, frozen)
    ]
    for model, optimizer in zip((dense, routed, frozen), optimizers, strict=True):
        for _ in range(20):
            F.cross_entropy(model.forward_pairs(pairs.a_N, pairs.b_N).logits_NP, pairs.y_N).backward()
            optimizer.step()
            optimizer.zero_grad()
    after = [m.forward_pairs(pairs.a_N, pairs.b_N).logits_NP for m in (dense, routed, frozen)]
    torch.testing.assert_close(after[2], after[0], rtol=0, atol=1e-9)
    assert (after[1] - after[0]).abs().max() > 1e-4


def test_gates_are_per_sample_and_sum_to_one(small):
    model = create_model(small(model_type="routed", n_layers=2, n_heads=3))
    torch.nn.init.normal_(model.layers[0].gate.gate.weight)
    logits, routing = model(model.plain_inputs(torch.tensor([0, 3]), torch.tensor([1, 2])))
    assert logits.shape == (2, 7)
    assert len(routing) == 2
    for weights in routing:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2))
    assert (routing[0][0] - routing[0][1]).abs().max() > 1e-3


def test_routed_layer_is_the_weighted_sum_of_its_heads(small):
    model = create_model(small(model_type="routed", n_layers=1, n_heads=3, dtype="float64"))
    layer = model.layers[0]
    torch.nn.init.normal_(layer.down_bias_RD)
    x, state = torch.randn(5, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    output, _, weights = layer(x, state)
    up, down = layer.up.weight.reshape(3, 32, 8), layer.down.weight.reshape(8, 3, 32)
    heads = [
        F.gelu(x @ up[r].T + layer.up.bias.reshape(3, 32)[r]) @ down[:, r].T + layer.down_bias_RD[r] for r in range(3)
    ]
    expected = layer.norm(x + sum(weights[:, r, None] * heads[r] for r in range(3)))
    torch.testing.assert_close(output, expected)


def test_sphere_keeps_the_stream_at_unit_length(small):
    model = create_model(small(recipe="bounded_sphere", n_layers=2, sphere_temperature=7.0))
    pairs = all_pairs(7, "add")
    output = model.forward_pairs(pairs.a_N, pairs.b_N)
    torch.testing.assert_close(output.representation_ND.norm(dim=-1), torch.ones(49))
    assert output.logits_NP.abs().max() <= 7.0


@pytest.mark.parametrize("model_type", ["baseline", "routed", "transformer", "routed_transformer"])
def test_roles_cover_every_parameter_by_what_it_is(small, model_type):
    model = create_model(small(model_type=model_type, n_layers=2))
    roles = parameter_roles(model)
    assert set(roles) == {name for name, _ in model.named_parameters()}
    for name, role in roles.items():
        if role in ("matrix", "unembedding", "embedding", "position"):
            assert name.endswith("weight"), name
        if name.endswith(".bias") and role not in ("norm", "gate"):
            assert role == "bias", name
    spared = set(roles) - decayed_parameters(model, "matrices")
    gates = {name for name, role in roles.items() if role == "gate"}
    assert bool(gates) == model_type.startswith("routed")
    assert decayed_parameters(model, "all") == set(roles) - gates
    assert decayed_parameters(model, "all", decay_gates=True) == set(roles)
    assert decayed_parameters(model, "matrices", decay_gates=True) == decayed_parameters(model, "matrices")
    assert {"embedding", "bias"} <= {roles[name] for name in spared}
    assert {roles[name] for name in decayed_parameters(model, "matrices")} == {"matrix", "unembedding"}
    # The first layer on one-hot inputs is a table, whatever its module is called.
    first = "input.weight" if model_type in ("baseline", "routed") else "token.weight"
    assert roles[first] == "embedding"


def test_initial_values_depend_on_seed_and_name_alone(small):
    one, again, other = (create_model(small(seed=s)) for s in (1, 1, 2))
    torch.manual_seed(99)
    deeper = create_model(small(seed=1, n_layers=3)).state_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(value, deeper[name])
    assert not torch.equal(one.token.weight, other.token.weight)
    # A change of these values would silently change every result.
    torch.testing.assert_close(one.token.weight[0, :3].detach(), torch.tensor(PINNED), rtol=1e-5, atol=0)


PINNED = [0.0143707, -0.0202895, -0.0324341]


@pytest.mark.parametrize("shape", [{"model_type": "baseline"}, {"model_type": "routed"}, {}], ids=str)
def test_initial_scale(small, shape):
    model = create_model(small(hidden_dim=64, init_std=0.05, **shape))
    if shape:
        bound = 1 / math.sqrt(14)
        assert model.input.weight.abs().max().item() <= bound
        assert model.input.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    else:
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and parameter.numel() > 1000:
                assert parameter.std().item() == pytest.approx(0.05, rel=0.1), name


def test_rows_know_what_they_depend_on():
    assert join("const", "a") == "a"
    assert join("a", "b") == "pair"
    assert join("const") == "const"
    pairs = PairIndex(torch.tensor([2, 0]), torch.tensor([1, 1]))
    table = torch.arange(6.0).reshape(3, 2)
    assert pairs.lift(Rows(table, "a"), "pair").tolist() == [[4, 5], [0, 1]]
    assert pairs.lift(Rows(table, "b"), "pair").tolist() == [[2, 3], [2, 3]]
    with pytest.raises(ValueError, match="can't be a function"):
        pairs.lift(Rows(table, "a"), "b")
