"""The sparse step against a dense one written out, its gradients, export, and files."""

import pytest
import torch

from polytope_hsae.models import HierarchicalSAE, SAEConfig, SparseAutoencoder, build_sae, dense_codes, dense_decoder
from polytope_hsae.sparse import Order, sparse_decode, sparse_encode
from studycore.errors import UserError

CONFIG = SAEConfig("hierarchical", 7, 10, 3, subspace_dim=2, m_low=4, topk_child=1, input_scale=0.5)


def model_of(config=CONFIG, seed=0):
    draw = torch.Generator().manual_seed(seed)
    model = build_sae(config, draw)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=draw)
    model.normalise()
    return model


def inputs(n=9, width=7):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(1))


def dense_forward(model, x_BD):
    """(x^, from parents alone), sample by sample and child by child, as the module's text says."""
    config, found, tops = model.config, [], []
    for x in x_BD:
        pre = model.encoder @ (x - model.bias.detach()) + model.encoder_bias
        top = pre.topk(config.topk_parent).indices
        x_top = model.bias + sum(torch.relu(pre[j]) * model.decoder[j] for j in top)
        x_hat = x_top
        for j in top:
            y = model.down[j] @ (x - model.bias.detach())
            low = model.low_encoder[j] @ y + model.low_bias[j]
            for i in low.topk(config.topk_child).indices:
                x_hat = x_hat + (pre[j] > 0) * torch.relu(low[i]) * (model.low_decoder[j, i] @ model.up[j])
        found.append(x_hat)
        tops.append(x_top)
    return torch.stack(found), torch.stack(tops)


@pytest.mark.parametrize("topk_child", [1, 2])
def test_the_hierarchical_step_is_the_one_written_out(topk_child):
    from dataclasses import replace

    model, x_BD = model_of(replace(CONFIG, topk_child=topk_child)), inputs()
    never = (torch.zeros(10, dtype=torch.bool), torch.zeros(40, dtype=torch.bool))
    output = model.train_forward(x_BD, never)
    expected, top = dense_forward(model, x_BD)
    torch.testing.assert_close(output.x_hat, expected)
    torch.testing.assert_close(output.x_hat_top, top)
    target = torch.randn(x_BD.shape, generator=torch.Generator().manual_seed(2))
    names = [name for name, _ in model.named_parameters()]
    ours = torch.autograd.grad(((output.x_hat - target) ** 2).sum(), list(model.parameters()))
    theirs = torch.autograd.grad(((expected - target) ** 2).sum(), list(model.parameters()))
    for name, one, other in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, msg=name, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(x_BD / 0.5) * 0.5, output.x_hat)


def test_nothing_of_batch_times_children_of_all_parents_is_made():
    """The largest tensor of a step: the dense pre-activations, or children of the active parents, some pairs at a time."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else [out]:
                largest = max(largest, value.numel() if isinstance(value, torch.Tensor) else 0)
            return out

    config = SAEConfig("hierarchical", 16, 64, 2, subspace_dim=2, m_low=32)
    model, x_BD = build_sae(config, torch.Generator().manual_seed(0)), inputs(128, 16)
    with Watch():
        output = model.train_forward(x_BD, (torch.zeros(64, dtype=torch.bool), torch.zeros(64 * 32, dtype=torch.bool)))
        output.x_hat.square().sum().backward()
    assert 0 < largest <= max(128 * 64, 128 * 2 * 32 * 2) < 128 * 64 * 32 / 8


def test_rows_that_a_sample_selects():
    """Both products and their gradients against dense ones; rows may be selected by none or by all."""
    draw = torch.Generator().manual_seed(3)
    x_BD, rows_FD = torch.randn(5, 4, generator=draw), torch.randn(6, 4, generator=draw, requires_grad=True)
    index_BK = torch.tensor([[0, 5], [0, 2], [0, 4], [0, 2], [0, 5]])
    for size in (1, 2):
        big_FD = torch.randn(6 * size, 4, generator=draw, requires_grad=True) if size > 1 else rows_FD
        order = Order(index_BK, 6).spread(size)
        dots = sparse_encode(x_BD, big_FD, order)
        dense = torch.einsum("bd,bkd->bk", x_BD, big_FD[order.index_BK])
        torch.testing.assert_close(dots, dense)
        weight_BK = dots.detach().clone().requires_grad_()
        out = sparse_decode(weight_BK, big_FD, order)
        expected = (weight_BK[..., None] * big_FD[order.index_BK]).sum(1)
        torch.testing.assert_close(out, expected)
        target = torch.randn(out.shape, generator=draw)
        ours = torch.autograd.grad((out * target).sum(), [weight_BK, big_FD], retain_graph=True)
        theirs = torch.autograd.grad((expected * target).sum(), [weight_BK, big_FD])
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)
        (mine,) = torch.autograd.grad((dots * weight_BK.detach()).sum(), [big_FD])
        (dense_grad,) = torch.autograd.grad((dense * weight_BK.detach()).sum(), [big_FD])
        torch.testing.assert_close(mine, dense_grad)


def test_a_child_is_on_only_with_its_parent():
    model, x_BD = model_of(), inputs(200)
    codes_NF = dense_codes(model, x_BD)
    parent_NM, child_NML = codes_NF[:, :10] > 0, codes_NF[:, 10:].view(-1, 10, 4) > 0
    assert child_NML.sum(2).max() == 1
    assert not (child_NML.any(2) & ~parent_NM).any()


def test_dense_codes_and_decoder_make_the_reconstruction():
    model, x_BD = model_of(), inputs()
    made = (dense_codes(model, x_BD) @ dense_decoder(model) + model.bias) / 0.5
    torch.testing.assert_close(made, model(x_BD))


def test_the_flat_export_reconstructs_the_same(tmp_path):
    from safetensors.torch import load_file

    model, x_BD = model_of(), inputs()
    flat = model.to_flat()
    torch.testing.assert_close(flat(x_BD), model(x_BD))
    torch.testing.assert_close(flat.W_dec.norm(dim=1), torch.ones(50))
    assert (flat.W_enc.shape, flat.b_enc.shape) == ((7, 50), (50,))
    # Parents read the input as they do in the model.
    read = torch.relu(x_BD @ flat.W_enc + flat.b_enc)[:, :10]
    codes = flat.encode(x_BD)[:, :10]
    torch.testing.assert_close(codes[codes > 0], (read * flat.norm_F[:10] ** 0)[codes > 0] / 0.5, rtol=1e-4, atol=1e-5)
    flat.save(tmp_path)
    assert set(load_file(tmp_path / "sae_weights.safetensors")) == {"W_enc", "W_dec", "b_enc", "b_dec", "norm"}


def test_the_flat_export_takes_sequences_and_says_where_it_reads(tmp_path):
    """Evaluations feed [B, T, D], and read hook and sizes from cfg."""
    import json

    flat, x_BD = model_of().to_flat("some/model", "ln_final.hook_normalized", 29), inputs()
    assert (flat.device, flat.dtype) == (x_BD.device, x_BD.dtype)
    count = len(x_BD) // 3 * 3
    x_BTD = x_BD[:count].view(3, -1, x_BD.shape[1])
    codes_BTF = flat.encode(x_BTD)
    assert torch.equal(codes_BTF.flatten(0, 1), flat.encode(x_BD[:count]))
    assert torch.equal(flat.encode(x_BD[0]), flat.encode(x_BD[:1])[0])
    torch.testing.assert_close(flat.decode(codes_BTF), flat(x_BD[:count]).view_as(x_BTD))
    cfg = flat.cfg
    assert (cfg.d_in, cfg.d_sae, cfg.hook_head_index) == (7, 50, None)
    assert (cfg.model_name, cfg.hook_name, cfg.hook_layer) == ("some/model", "ln_final.hook_normalized", 29)
    cfg.dtype = "bfloat16"  # an evaluation sets it
    flat.save(tmp_path)
    metadata = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    assert (metadata["model_name"], metadata["hook_name"]) == ("some/model", "ln_final.hook_normalized")
    assert "norm_F" in flat.state_dict(), "what is not a buffer stays behind where a model is moved"


@pytest.mark.parametrize("kind", ["hierarchical", "topk", "batchtopk", "matryoshka"])
def test_saved_models_come_back(tmp_path, kind):
    from dataclasses import replace

    model = model_of(replace(CONFIG, kind=kind, inner_widths=(4,) if kind == "matryoshka" else ())).eval()
    model.save_pretrained(tmp_path)
    other = SparseAutoencoder.from_pretrained(tmp_path)
    assert type(other) is type(model)
    assert torch.equal(other(inputs()), model(inputs()))
    if kind == "hierarchical":
        assert isinstance(HierarchicalSAE.from_pretrained(tmp_path), HierarchicalSAE)


def test_a_folder_that_does_not_fit_is_a_sentence(tmp_path):
    model_of().save_pretrained(tmp_path)
    (tmp_path / "cfg.json").write_text((tmp_path / "cfg.json").read_text().replace('"m_low": 4', '"m_low": 5'))
    with pytest.raises(UserError, match=r"cannot be read as a saved sparse autoencoder .*low_decoder"):
        SparseAutoencoder.from_pretrained(tmp_path)


def test_batchtopk_keeps_the_batchs_largest_codes():
    config = SAEConfig("batchtopk", 7, 20, 2)
    model = build_sae(config, torch.Generator().manual_seed(0)).train()
    output = model.train_forward(inputs(30), (torch.zeros(20, dtype=torch.bool),))
    value = output.codes.value.detach()
    assert int((value > 0).sum()) == 60
    assert float(model.threshold) == float(value[value > 0].min())


def test_projected_gradients_keep_rows_at_their_length():
    model, x_BD = model_of(), inputs()
    output = model.train_forward(x_BD, (torch.zeros(10, dtype=torch.bool), torch.zeros(40, dtype=torch.bool)))
    (output.x_hat - x_BD).square().sum().backward()
    model.project_gradients()
    for matrix in model.unit_matrices():
        torch.testing.assert_close((matrix.grad * matrix).sum(-1), torch.zeros(matrix.shape[:-1]), atol=1e-5, rtol=0)


def test_dead_latents_of_both_levels_get_gradients():
    model, x_BD = model_of(), inputs(200)
    codes = dense_codes(model, x_BD)
    dead = torch.ones(10, dtype=torch.bool), torch.ones(40, dtype=torch.bool)
    output = model.train_forward(x_BD, dead)
    assert len(output.aux) == 2
    (grad,) = torch.autograd.grad(output.aux[1].square().sum(), [model.low_encoder])
    assert float(grad.abs().sum()) > 0
    assert codes.shape == (200, 50)


def test_saelens_is_asked_for_where_it_is_not_installed(monkeypatch):
    import sys

    from polytope_hsae.saelens import register

    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(UserError, match="sae-lens: is not installed"):
        register()
