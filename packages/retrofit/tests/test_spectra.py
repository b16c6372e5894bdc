"""Conditioning against float64 svdvals, closed forms, and invariances; found in every orientation."""

import math

import numpy as np
import pytest
import torch
from conftest import KINDS, tiny_model

from retrofit.blocks import Part, Projection, find_blocks, find_matrices
from retrofit.metrics.matrices import measure_activations
from retrofit.metrics.spectra import (
    Moments,
    activation_eigenvalues,
    activation_kappa,
    activation_moments,
    add_lower_gram,
    ff_gram_original,
    ff_gram_original_of_layer,
    singular_values,
    spectrum_of,
    weight_spectrum,
    without_largest,
)
from retrofit.metrics.summaries import enough_tokens, gaussian_kappa, noise_floor
from studycore.errors import UserError


def matrix(m, n, kappa, seed=0):
    """Singular values from 1 down to 1 / kappa."""
    draw = torch.Generator().manual_seed(seed)
    k = min(m, n)
    u, _ = torch.linalg.qr(torch.randn(m, k, dtype=torch.float64, generator=draw))
    v, _ = torch.linalg.qr(torch.randn(n, k, dtype=torch.float64, generator=draw))
    return u * torch.logspace(0, -math.log10(kappa), k, dtype=torch.float64) @ v.T


@pytest.mark.parametrize("shape", [(96, 24), (24, 96), (32, 32)])
@pytest.mark.parametrize("kappa", [1.0, 3.0, 1e3, 9e3, 1e5, 1e7, 1e10])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_singular_values_equal_float64_svdvals(shape, kappa, scale):
    w = matrix(*shape, kappa) * scale
    # At kappa 1e10 svdvals itself knows the smallest only to 1e-16 * 1e10.
    torch.testing.assert_close(singular_values(w), torch.linalg.svdvals(w), rtol=1e-6, atol=0)
    torch.testing.assert_close(singular_values(w.float()), torch.linalg.svdvals(w.float().double()), rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad):
    w = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    w[2, 1] = bad
    with pytest.raises(UserError, match=r"--model: h\.0\.c_fc holds NaN or infinite weights; give"):
        singular_values(w, "h.0.c_fc")


@pytest.mark.parametrize("scale", [1e-250, 1e250])
def test_squares_may_leave_float64s_range(scale):
    w = matrix(24, 8, 10.0) * scale
    torch.testing.assert_close(singular_values(w), torch.linalg.svdvals(w), rtol=1e-6, atol=0)
    big, plain = spectrum(w), spectrum(matrix(24, 8, 10.0))
    for name in ("kappa", "gram_kappa", "omega", "effective_rank", "stable_rank", "rank"):
        assert getattr(big, name) == pytest.approx(getattr(plain, name), rel=1e-6), name


def spectrum(w):
    return weight_spectrum(singular_values(w), max(w.shape))


def test_closed_forms():
    s = weight_spectrum(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64), 5)
    assert s.kappa == 4
    assert s.gram_kappa == 16
    assert s.omega == pytest.approx((16 + 4 + 1) / 3 / (64 ** (1 / 3)))
    p = [4 / 7, 2 / 7, 1 / 7]
    assert s.effective_rank == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)))
    assert s.stable_rank == pytest.approx(21 / 16)
    assert s.spectral_norm == 4
    assert s.rank == 3
    even = weight_spectrum(torch.full((5,), 3.0, dtype=torch.float64), 5)
    assert (even.kappa, even.omega) == (1, pytest.approx(1))
    assert even.effective_rank == pytest.approx(5)
    assert even.stable_rank == pytest.approx(5)
    assert spectrum(torch.ones(4, 3)).rank == 1
    assert spectrum(torch.zeros(4, 3)).rank == 0


def test_below_the_rank_kappa_is_infinite_and_nothing_is_taken_from_rounding():
    """Against numpy's ranks: equal columns, products of low rank, rows of zeros, in both orientations."""
    draw = torch.Generator().manual_seed(3)
    low = torch.randn(40, 3, generator=draw, dtype=torch.float64) @ torch.randn(
        3, 24, generator=draw, dtype=torch.float64
    )
    equal, zeros = torch.randn(40, 24, generator=draw), torch.randn(40, 24, generator=draw)
    equal[:, 5] = equal[:, 9]
    zeros[:, 7] = 0
    for w, rank in ((low, 3), (equal, 23), (zeros, 23), (torch.randn(40, 24, generator=draw), 24)):
        for each in (w, w.T, 1e6 * w, 1e-6 * w):
            found = spectrum(each)
            assert found.rank == np.linalg.matrix_rank(each.double().numpy()) == rank
            assert math.isinf(found.kappa) == math.isinf(found.gram_kappa) == math.isinf(found.omega) == (rank < 24)
            assert math.isfinite(found.effective_rank) and math.isfinite(found.stable_rank)


def test_the_tolerance_is_the_larger_side_times_epsilon():
    """On both sides of it, and exactly there, where numpy does not count either."""
    eps = torch.finfo(torch.float64).eps
    for size in (4, 4096):
        for factor, rank in ((0.5, 1), (1.0, 1), (2.0, 2)):
            found = weight_spectrum(torch.tensor([3.0, 3.0 * factor * size * eps], dtype=torch.float64), size)
            assert found.rank == rank
            assert math.isinf(found.kappa) == (rank == 1)


def test_a_gaussian_matrix_has_the_kappa_of_theory():
    w = torch.randn(2048, 512, generator=torch.Generator().manual_seed(0))
    assert spectrum(w).kappa == pytest.approx(gaussian_kappa(2048, 512), rel=0.05)
    assert gaussian_kappa(512, 2048) == pytest.approx(3)


def test_tokens_must_be_as_many_as_the_width_and_more_lower_the_noise_floor():
    assert enough_tokens(64, 64)
    assert not enough_tokens(63, 64)
    assert noise_floor(4096, 1024) == pytest.approx(9)
    assert noise_floor(64, 64) == math.inf
    x = torch.randn(2048, 128, generator=torch.Generator().manual_seed(0))
    assert activation_kappa(moments(x), centred=False) == pytest.approx(noise_floor(2048, 128), rel=0.1)


def test_a_projections_rank_is_counted_by_its_larger_side():
    """A singular value between 2 and 1,024 times epsilon, in both orientations."""
    w = torch.zeros(2, 1024, dtype=torch.float64)
    w[0, 0], w[1, 1] = 1, 100 * torch.finfo(torch.float64).eps
    for each in (w, w.T):
        spectrum, s_k = spectrum_of(Projection("w", Part(torch.nn.Parameter(each.contiguous()))))
        assert (spectrum.rank, spectrum.kappa) == (1, math.inf)
        assert s_k.tolist() == pytest.approx([1, float(w[1, 1])])


@pytest.mark.parametrize("kind", KINDS)
def test_projections_are_found_in_the_right_orientation(kind):
    model = tiny_model(kind)
    blocks = find_blocks(model)
    width = 40 if kind == "llama" else 64
    assert len(blocks) == 2
    for block in blocks:
        assert block.up.weight_OI.shape == (width, 16)
        assert block.down.weight_OI.shape == (16, width)
        assert (block.gate is not None) == (kind == "llama")
        assert block.norm is not None
        assert block.up.weight.transposed == (kind == "gpt2")
        x = torch.randn(3, 16)
        torch.testing.assert_close(block.up.module(x), x @ block.up.weight_OI.T + block.up.bias.values)
    names = [m.name for m in find_matrices(model)]
    assert not any("wte" in n or "embed" in n or "lm_head" in n for n in names)
    more = find_matrices(model, embeddings=True)
    assert len({id(m.weight.parameter) for m in more}) == len(more) > len(names)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama"])
def test_activation_moments_are_those_of_what_enters_the_down_projection(kind):
    """Written out by hand, block by block."""
    model = tiny_model(kind).eval()
    ids = torch.randint(0, 64, (5, 12), generator=torch.Generator().manual_seed(2))
    found = activation_moments(model, find_blocks(model), ids, batch=2)
    for layer, block in enumerate(find_blocks(model)):
        inputs = []
        handle = block.norm.register_forward_hook(lambda m, a, out, inputs=inputs: inputs.append(out.detach()))
        with torch.no_grad():
            model(ids)
        handle.remove()
        x = inputs[0].flatten(0, 1)
        mlp = dict(model.named_modules())[block.name]
        act = mlp.act if hasattr(mlp, "act") else mlp.act_fn
        h = act(block.gate.module(x)) * block.up.module(x) if block.gate else act(block.up.module(x))
        h = h.detach().double()
        assert found[layer].tokens == 60
        torch.testing.assert_close(found[layer].gram_FF, h.T @ h, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[layer].sum_F, h.sum(0), rtol=1e-5, atol=1e-5)


def moments(x):
    return Moments(x.double().T @ x.double(), x.double().sum(0), len(x))


def test_activation_kappa_does_not_depend_on_scale_and_the_originals_does():
    x = torch.nn.functional.gelu(torch.randn(4000, 12, generator=torch.Generator().manual_seed(0)))
    for centred in (True, False):
        big, small = activation_kappa(moments(x), centred), activation_kappa(moments(x * 0.01), centred)
        assert big == pytest.approx(small, rel=1e-6)
    assert ff_gram_original_of_layer(moments(x * 0.001)) < ff_gram_original_of_layer(moments(x)) / 2
    # Constant features: the mean direction is all there is.
    assert activation_kappa(moments(x + 10), centred=False) > 100 * activation_kappa(moments(x + 10), centred=True)


def test_ff_gram_original_is_the_original_studys_recipe():
    draw = torch.Generator().manual_seed(1)
    xs = [torch.randn(500, 8, generator=draw) * (i + 1) for i in range(3)]
    expected = []
    for x in xs:
        g = x.T @ x / 500 + 1e-5 * torch.eye(8)
        e = torch.linalg.eigvalsh(g)
        expected.append(float(e.max() / e.min()))
    assert ff_gram_original([moments(x) for x in xs]) == pytest.approx(sum(expected) / 3, rel=1e-4)


@pytest.mark.parametrize("width", [3, 64, 67])
def test_a_gram_matrix_in_strips_is_right_below_the_diagonal(width):
    x = torch.randn(50, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gram = torch.zeros(width, width, dtype=torch.float64)
    for part in x.split(20):
        add_lower_gram(gram, part)
    torch.testing.assert_close(gram.tril(), (x.T @ x).tril(), rtol=1e-12, atol=1e-12)


def test_the_model_is_passed_over_once_and_progress_is_told():
    model, told, calls = tiny_model("llama").eval(), [], []
    ids = torch.randint(0, 64, (5, 12), generator=torch.Generator().manual_seed(2))
    model.base_model.register_forward_pre_hook(lambda *_: calls.append(1))
    rows = measure_activations(model, ids.repeat(20, 1), progress=told.append)
    assert sum(told) == 100 * 12
    assert len(calls) == len(told) == 7
    assert all(row.act_kappa_centred >= row.act_kappa_without_largest >= 1 for row in rows)


def test_the_largest_activation_is_named_by_unit_and_token():
    """A planted one: the only place where one unit is on for one token."""
    model = tiny_model("gpt2").eval()
    blocks = find_blocks(model)
    ids = torch.randint(0, 63, (20, 12), generator=torch.Generator().manual_seed(2))
    ids[17, 5] = 63
    plain = activation_moments(model, blocks, ids)
    handle = blocks[1].down.module.register_forward_pre_hook(
        lambda module, args: (
            (args[0].index_put((torch.tensor([1]), torch.tensor([5]), torch.tensor([9])), -torch.tensor(500.0)),)
            if len(args[0]) == 4
            else None
        )
    )
    found = activation_moments(model, blocks, ids)  # the second batch has 4 rows
    handle.remove()
    assert (found[1].unit, found[1].position, found[1].largest) == (9, 17 * 12 + 5, 500.0)
    assert found[0].largest == plain[0].largest < 500
    assert int(ids.flatten()[found[1].position]) == 63
    # One direction makes the condition number: without it, it falls by more than the square of 10.
    before, after = (activation_eigenvalues(m[1], centred=True) for m in (plain, found))
    assert without_largest(before) < 100 * without_largest(before, 1)
    assert without_largest(after) > 1e4 * without_largest(after, 1)


def test_without_largest_by_hand():
    eigenvalues = torch.tensor([0.5, 1.0, 2.0, 100.0], dtype=torch.float64)
    assert [without_largest(eigenvalues, k) for k in range(4)] == [200.0, 4.0, 2.0, 1.0]
    assert without_largest(torch.tensor([0.0, 1.0])) == math.inf


def test_a_smallest_eigenvalue_that_float32_rounds_below_zero_is_infinite():
    """As it does where activations are massive; the ridge of 1e-5 is lost beside them."""
    for smallest, expected in ((1e-3, 1 / 1.01e-3), (-1e-3, math.inf)):
        gram = torch.diag(torch.tensor([smallest, 0.5, 1.0], dtype=torch.float64)) * 500
        assert ff_gram_original_of_layer(Moments(gram, gram[0], 500)) == pytest.approx(expected, rel=1e-3)
