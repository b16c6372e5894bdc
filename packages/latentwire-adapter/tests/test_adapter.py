"""The adapter's size, forms and start."""

import pytest
import torch

from latentwire_adapter.model.adapter import Adapter
from latentwire_adapter.model.compressor import EmbeddingCompressor
from studycore.models import count_parameters


def test_the_original_sizes_have_the_original_number_of_parameters():
    with torch.device("meta"):
        assert count_parameters(Adapter(d_z=512, d_model=4096)) == 19_952_641
        assert count_parameters(Adapter(d_z=1024, d_model=4096)) == 50_366_465
        k, d, h = 72, 576, 288
        formula = 2 * k + (k * h + h) + (h * h + h) + (h * d + d) + 3 * (k * d + d) + 2 * d + 1
        assert count_parameters(Adapter(d_z=k, d_model=d)) == formula


def test_the_linear_start_is_the_linear_inverse():
    x_ND = 0.01 * torch.randn(200, 16, generator=torch.Generator().manual_seed(0)) + 0.005
    compressor = EmbeddingCompressor(16, 5).fit(x_ND)
    adapter = Adapter(5, 16).eval()
    z_NK = compressor.compress(x_ND)
    adapter.start_at_inverse(compressor, float(z_NK.square().mean().sqrt()), float(x_ND.std()))
    torch.testing.assert_close(adapter(z_NK), compressor.decompress(z_NK), rtol=1e-5, atol=1e-7)


def test_the_original_form_gives_every_row_one_norm_and_the_other_does_not():
    z_NK = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 5, 50)[:, None]
    torch.manual_seed(0)
    norms = {form: Adapter(4, 8, form=form).eval()(z_NK).norm(dim=1) for form in ("original", "linear_start")}
    assert norms["original"].std() / norms["original"].mean() < 1e-3
    assert norms["linear_start"].std() / norms["linear_start"].mean() > 0.1


@pytest.mark.parametrize("form", ["original", "linear_start"])
def test_the_row_of_a_code_by_the_formula(form):
    draw = torch.Generator().manual_seed(0)
    adapter = Adapter(4, 8, hidden_mult=2, form=form).eval()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
        adapter.code_scale.fill_(1.7)
    z = torch.randn(6, 4, generator=draw) * 1.7

    def norm(x, layer):
        spread = (x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) / (spread + 1e-5).sqrt() * layer.weight + layer.bias

    def gelu(x):
        return x * (1 + torch.erf(x / 2**0.5)) / 2

    def linear(x, layer):
        return x @ layer.weight.T + layer.bias

    n = norm(z, adapter.input_norm)
    hidden = gelu(linear(gelu(linear(n, adapter.hidden1)), adapter.hidden2))
    gate = 1 / (1 + torch.exp(-linear(z, adapter.gate)))
    y = gate * (linear(hidden, adapter.output) + linear(n, adapter.skip)) + linear(z, adapter.shift)
    last = adapter.output_norm
    expected = adapter.scale * (norm(y, last) if form == "original" else y * last.weight + last.bias)
    torch.testing.assert_close(adapter(z / 1.7), expected, rtol=1e-4, atol=1e-5)


def test_dropout_is_in_training_alone():
    adapter, z = Adapter(4, 8, dropout=0.5).train(), torch.randn(6, 4)
    assert not torch.equal(adapter(z), adapter(z))
    assert torch.equal(adapter.eval()(z), adapter(z))


def test_every_parameter_is_trained():
    for form in ("original", "linear_start"):
        adapter = Adapter(4, 8, form=form)
        adapter(torch.randn(20, 4)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters()), form


def test_positions_do_not_mix():
    adapter = Adapter(4, 8).eval()
    z_BTK = torch.randn(2, 5, 4)
    changed = z_BTK.clone()
    changed[:, 3] += 1
    before, after = adapter(z_BTK), adapter(changed)
    assert torch.equal(before[:, [0, 1, 2, 4]], after[:, [0, 1, 2, 4]])
    assert not torch.equal(before[:, 3], after[:, 3])


def test_saved_and_loaded(tmp_path):
    adapter = Adapter(4, 8, hidden_mult=2, dropout=0.3, form="original").eval()
    adapter.code_scale.fill_(3.0)
    adapter.save_pretrained(tmp_path)
    loaded = Adapter.from_pretrained(tmp_path).eval()
    z_NK = torch.randn(3, 4)
    assert torch.equal(loaded(z_NK), adapter(z_NK))
    assert loaded.arguments == adapter.arguments
    (tmp_path / "model.safetensors").write_bytes(b"x")
    from studycore.errors import UserError

    with pytest.raises(UserError, match="cannot be read as a saved Adapter"):
        Adapter.from_pretrained(tmp_path)
