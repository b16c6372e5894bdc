"""Transports: what must stay, stays to rounding; optimizer moments go along; the original study's does what its formula says."""

from statistics import median

import pytest
import torch
from conftest import FOLDABLE, KINDS, tiny_model

from retrofit.blocks import find_blocks
from retrofit.metrics.spectra import up_kappas
from retrofit.transports import glt_ffn, glt_fold, glt_matrix, glt_permute, gradient_less_transport

IDS = torch.randint(0, 64, (3, 20), generator=torch.Generator().manual_seed(5))


def outputs(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def draw(layer, width):
    return torch.randperm(width, generator=torch.Generator().manual_seed(layer))


def uneven(model, spread=3.0):
    """Columns of the up projections by e^(spread N(0, 1)), undone in the norm: another parameterisation of the function."""
    random = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for block in find_blocks(model):
            scale = (torch.randn(16, generator=random) * spread).exp().to(block.up.weight_OI)
            for projection in (block.up, block.gate):
                if projection is not None:
                    projection.weight_OI.mul_(scale[None, :])
            block.norm.weight.div_(scale)
            if getattr(block.norm, "bias", None) is not None:
                block.norm.bias.div_(scale)
    return model


@pytest.mark.parametrize("kind", FOLDABLE)
@pytest.mark.parametrize("transport", ["fold", "permute"])
def test_the_function_stays(kind, transport):
    model = uneven(tiny_model(kind).double())
    before = outputs(model)
    norms = [b.up.weight_OI.norm().item() for b in find_blocks(model)]
    weights = [b.up.weight_OI.clone() for b in find_blocks(model)]
    if transport == "fold":
        glt_fold(find_blocks(model))
    else:
        glt_permute(find_blocks(model), draw)
    assert float((outputs(model) - before).abs().max() / before.abs().max()) < 1e-12
    for block, norm, old in zip(find_blocks(model), norms, weights, strict=True):
        assert not torch.equal(block.up.weight_OI, old)
        if block.gate is None:
            assert block.up.weight_OI.norm().item() == pytest.approx(norm)


@pytest.mark.parametrize("kind", KINDS)
def test_folding_equalises_columns_and_restores_kappa(kind):
    """Issue: five times or more on a model with uneven scales."""
    model = uneven(tiny_model(kind).double())
    kappa = lambda: median(up_kappas(find_blocks(model)))  # noqa: E731
    before = kappa()
    glt_fold(find_blocks(model))
    assert kappa() < before / 5
    for block in find_blocks(model):
        readers = [block.up.weight_OI, *([block.gate.weight_OI] if block.gate else [])]
        if block.gate is None:
            columns = torch.cat(readers).norm(dim=0)
        else:
            columns = readers[0].norm(dim=1)  # a gated block's rows come last
        torch.testing.assert_close(columns, columns.mean().expand_as(columns), rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_perplexity_moves_by_less_than_a_hundredth_of_a_percent_in_float32(kind):
    model = uneven(tiny_model(kind), spread=1.5)
    loss = lambda: torch.nn.functional.cross_entropy(outputs(model)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())  # noqa: E731
    before = loss()
    kappa = median(up_kappas(find_blocks(model)))
    glt_fold(find_blocks(model))
    assert abs((loss() - before).exp().item() - 1) < 1e-4
    after = median(up_kappas(find_blocks(model)))
    assert after < kappa / 5


def trained(model, steps, at=None, transport=None):
    """Adam for some steps, with the transport before step `at`; per-step losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    losses = []
    for step in range(steps):
        if step == at:
            transport(model, optimizer)
        logits = model.train()(IDS).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo", "llama"])
def test_adams_trajectory_is_the_same_after_a_permutation(kind):
    """With the moments taken along; without them it is another one."""

    def model():
        made = tiny_model(kind).double()
        for module in made.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if hasattr(made.config, "attn_pdrop"):
            for block in made.transformer.h:
                block.attn.attn_dropout.p = 0.0
        return made

    plain = trained(model(), 12)
    carried = trained(model(), 12, 5, lambda m, o: glt_permute(find_blocks(m), draw, o))
    left = trained(model(), 12, 5, lambda m, o: glt_permute(find_blocks(m), draw))
    assert carried == pytest.approx(plain, rel=1e-10)
    assert left[:6] == pytest.approx(plain[:6], rel=1e-10)
    assert abs(left[7] - plain[7]) > 1e-7


def test_moments_go_by_the_inverse_map_of_the_weights():
    """After a fold the moments are those that would have been gathered in the new coordinates."""
    model = uneven(tiny_model("gpt_neo").double(), spread=1.0)
    moved = uneven(tiny_model("gpt_neo").double(), spread=1.0)
    glt_fold(find_blocks(moved))
    states = []
    for each in (model, moved):
        optimizer = torch.optim.AdamW(each.parameters(), lr=0.0, weight_decay=0.0)
        for _ in range(3):
            each.eval()(IDS, labels=IDS).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        states.append((each, optimizer))
    glt_fold(find_blocks(model), states[0][1])
    for (name, p), q in zip(model.named_parameters(), moved.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
        for key in ("exp_avg", "exp_avg_sq"):
            one, other = states[0][1].state[p][key], states[1][1].state[q][key]
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-14, msg=f"{name} {key}")


def test_the_originals_step_on_one_matrix():
    w = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = glt_matrix(w)
    rows = w / w.norm(dim=1, keepdim=True)
    expected = rows / rows.norm(dim=0, keepdim=True)
    torch.testing.assert_close(out, expected * w.norm() / expected.norm(), rtol=1e-6, atol=0)
    assert float(out.norm()) == pytest.approx(float(w.norm()), rel=1e-7)


def test_the_originals_transport_touches_every_matrix_and_glt_ffn_only_the_up_projections():
    for transport, of in ((gradient_less_transport, lambda m: m), (glt_ffn, find_blocks)):
        model = tiny_model("gpt2")
        before = {name: p.clone() for name, p in model.named_parameters()}
        transport(of(model))
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        if transport is gradient_less_transport:
            assert changed == {name for name, p in before.items() if p.ndim == 2}
        else:
            assert changed == {f"transformer.h.{i}.mlp.c_fc.weight" for i in range(2)}


def test_zero_columns_are_left_alone():
    model = tiny_model("gpt_neox").double()
    with torch.no_grad():
        find_blocks(model)[0].up.weight_OI[:, 3] = 0
    before = outputs(model)
    glt_fold(find_blocks(model))
    assert torch.isfinite(outputs(model)).all()
    torch.testing.assert_close(outputs(model), before, rtol=1e-10, atol=1e-10)
