"""Every architecture that the README lists, as a tiny model of random weights: what is found in it, what is done to it."""

import json

import numpy as np
import pytest
import torch
from conftest import FOLDABLE, MIXTURES, architectures, tiny_model, train_run

from retrofit.blocks import LeftOut, find_blocks, find_matrices, left_out
from retrofit.cli import main
from retrofit.losses import compute_gram_loss, gram_penalty_gradient, penalty_of_blocks
from retrofit.metrics.matrices import measure_weights
from retrofit.model import load_model
from retrofit.transports import fold_moves, glt_ffn, glt_matrix, glt_permute, gradient_less_transport
from studycore.errors import UserError
from studycore.metrics_log import read_rows

IDS = torch.randint(1, 64, (3, 20), generator=torch.Generator().manual_seed(5))


def owner_of(model, parameter):
    """(name, module) that holds a parameter."""
    return next(
        (name, m) for name, m in model.named_modules() if any(p is parameter for p in m.parameters(recurse=False))
    )


def by_hand(kind, owner, block, x):
    """down(act(gate(x)) * up(x)), with the projections as they were found."""
    up, down, gate = (
        (lambda h, p=p: h @ p.weight_OI.T + (0 if p.bias is None else p.bias.values)) if p else None
        for p in (block.up, block.down, block.gate)
    )
    if kind == "gpt_oss":  # clamped, 1.702 times the gate in its sigmoid, one more than up
        g = gate(x).clamp(max=owner.limit)
        return down((up(x).clamp(-owner.limit, owner.limit) + 1) * g * torch.sigmoid(1.702 * g))
    act = next(getattr(owner, name) for name in ("act", "act_fn", "activation_fn") if hasattr(owner, name))
    return down(act(gate(x)) * up(x) if gate else act(up(x)))


@pytest.mark.parametrize("kind", architectures())
def test_the_projections_compute_the_block(kind):
    """Up is up and gate is gate, in the right orientation; of experts each one's own."""
    model = tiny_model(kind).eval()
    for block in find_blocks(model):
        _, owner = owner_of(model, block.up.weight.parameter)
        with torch.no_grad():
            if block.has_features:  # Falcon adds to what the block gives in place
                seen = {}
                handles = [
                    owner.register_forward_pre_hook(lambda m, a, seen=seen: seen.update(x=a[0])),
                    block.down.module.register_forward_hook(lambda m, a, out, seen=seen: seen.update(y=out.clone())),
                ]
                model(IDS)
                for handle in handles:
                    handle.remove()
                x, y = seen["x"], seen["y"]
                owner = dict(model.named_modules())[block.name]
            else:
                x = torch.randn(7, 16, generator=torch.Generator().manual_seed(1))
                expert = torch.full((7, 1), block.up.weight.expert)
                y = owner(x, expert, torch.ones(7, 1))
            torch.testing.assert_close(by_hand(kind, owner, block, x), y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", architectures())
def test_every_matrix_weight_is_measured_once_as_numpy_does(kind):
    model = tiny_model(kind)
    rows, spectra = measure_weights(model, embeddings=True)
    biases = {id(p.bias.parameter) for b in find_blocks(model) for p in b.projections if p.bias is not None}
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in biases)
    assert sum(int(np.prod([int(n) for n in row.shape.split(" x ")])) for row in rows) == weights
    assert len({row.name for row in rows}) == len(rows) == len(spectra)
    for row, matrix in zip(rows, find_matrices(model, embeddings=True), strict=True):
        w = matrix.weight_OI.detach().double().numpy()
        assert row.kappa == pytest.approx(np.linalg.cond(w), rel=1e-9)
        assert row.rank == np.linalg.matrix_rank(w) == min(w.shape)
    nothing = left_out(model)
    assert (nothing.names, nothing.share, nothing.layers) == ((), 0, 0)
    assert bool(nothing.unseen) == (kind in MIXTURES)


def test_a_parameter_of_a_known_role_has_it():
    """Of one mixture and of maps that are stored as one, all names, by hand."""
    rows, _ = measure_weights(tiny_model("qwen2_moe"), embeddings=True)
    roles = {row.name.removeprefix("model.layers.1."): (row.role, row.shape) for row in rows if ".1." in row.name[:16]}
    experts = {f"mlp.experts.{e}.{part}" for e in range(3) for part in ("gate_up_proj.up", "gate_up_proj.gate")}
    assert {name for name, (role, shape) in roles.items() if role in ("up", "gate")} == experts | {
        "mlp.shared_expert.up_proj", "mlp.shared_expert.gate_proj",
    }  # fmt: skip
    assert roles["mlp.experts.2.gate_up_proj.up"] == ("up", "24 x 16")
    assert roles["mlp.experts.0.down_proj"] == ("down", "16 x 24")
    assert roles["mlp.gate"] == ("other", "3 x 16")  # the router
    assert roles["self_attn.q_proj"][0] == "attention"
    rows, _ = measure_weights(tiny_model("phi3"))
    assert [(row.name.removeprefix("model.layers.0."), row.role, row.shape) for row in rows[:5]] == [
        ("self_attn.o_proj", "attention", "16 x 16"), ("self_attn.qkv_proj", "attention", "48 x 16"),
        ("mlp.gate_up_proj.up", "up", "40 x 16"), ("mlp.gate_up_proj.gate", "gate", "40 x 16"),
        ("mlp.down_proj", "down", "16 x 40"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", architectures())
def test_a_fold_is_known_where_a_norm_feeds_the_block_alone(kind):
    """That it keeps the function there, test_transports.py shows."""
    for block in find_blocks(tiny_model(kind)):
        if kind in FOLDABLE:
            assert fold_moves(block)
        else:
            with pytest.raises(ValueError, match=f"{block.name}: no norm feeds this block alone"):
                fold_moves(block)


@pytest.mark.parametrize("kind", [kind for kind in architectures() if kind not in FOLDABLE])
def test_hidden_units_may_be_permuted_everywhere(kind):
    """The kinds that test_transports.py leaves out."""
    model = tiny_model(kind).double().eval()
    model.config._experts_implementation = "eager"  # the others know no float64
    before = model(IDS).logits.detach()
    old = [block.down.weight_OI.clone() for block in find_blocks(model)]
    glt_permute(find_blocks(model), lambda layer, f: torch.randperm(f, generator=torch.Generator().manual_seed(layer)))
    assert float((model(IDS).logits.detach() - before).abs().max() / before.abs().max()) < 1e-12
    assert not any(torch.equal(b.down.weight_OI, w) for b, w in zip(find_blocks(model), old, strict=True))


@pytest.mark.parametrize("kind", ["phi3", "qwen2_moe", "gpt_oss"])
def test_the_penalty_of_a_part_leaves_the_rest_of_its_parameter(kind):
    """By autograd; what the gate and other experts hold has none of it."""
    model = tiny_model(kind)
    blocks = find_blocks(model)
    (0.3 * compute_gram_loss(model)).backward()
    value, parts = penalty_of_blocks(blocks, 0.3, gram_penalty_gradient)
    assert len(parts) == len({id(block.up.weight.parameter) for block in blocks})
    assert {id(p) for p, _ in parts} == {id(p) for p in model.parameters() if p.grad is not None}
    for parameter, gradient in parts:
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)
    assert float(value) == pytest.approx(0.3 * float(compute_gram_loss(model).detach()), rel=1e-6)
    for block in blocks:
        gradient = block.up.weight.parameter.grad
        assert block.up.weight.of(gradient).norm() > 0
        if block.gate.weight.parameter is block.up.weight.parameter:
            assert block.gate.weight.of(gradient).norm() == 0


@pytest.mark.parametrize("kind", ["gpt2", "phi3", "gpt_oss"])
def test_the_originals_transport_reads_a_matrix_as_outputs_by_inputs(kind):
    """Rows first, then columns: on what is stored the other way round, the result is another."""
    for transport, of in ((gradient_less_transport, lambda m: m), (glt_ffn, find_blocks)):
        model = tiny_model(kind)
        old = {m.name: m.weight_OI.detach().clone() for m in find_matrices(model)}
        transport(of(model))
        ups = {block.up.name for block in find_blocks(model)}
        whole = {"phi3": ".gate_up_proj"}.get(kind, "nothing")  # the original's takes a module's weight as it is
        for matrix in find_matrices(model):
            if transport is glt_ffn and matrix.name not in ups:
                assert torch.equal(matrix.weight_OI, old[matrix.name])
            elif transport is glt_ffn or whole not in matrix.name:
                expected = glt_matrix(old[matrix.name])
                torch.testing.assert_close(matrix.weight_OI.detach(), expected, rtol=1e-5, atol=1e-7)
                assert not torch.allclose(matrix.weight_OI, glt_matrix(old[matrix.name].T).T, rtol=1e-3)


@pytest.mark.parametrize("kind", [kind for kind in architectures() if kind not in ("gpt2", "gpt_neo", "gpt_neox")])
def test_every_architecture_trains_saves_and_loads_again(small, tmp_path, kind):
    """Also through a checkpoint; the saved folder holds what was trained, under the names of its own kind."""
    flags = {"eval_interval": 4, "checkpoint_every": 2, "glt_interval": 2}
    train_run(small(kind, method="geometry", num_steps=4, save_model=True, **flags), tmp_path / "run")
    first, *_, last = (row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "evaluation")
    assert len(last["up_kappa"]) == len(find_blocks(tiny_model(kind)))
    assert ("act_kappa_centred" in last) == (kind not in ("mixtral", "gpt_oss"))
    model, _ = load_model(str(tmp_path / "run" / "model"))
    rows, _ = measure_weights(model)
    kappas = [row.kappa for row in rows if row.role == "up"]
    assert sorted(kappas) == pytest.approx(sorted(last["up_kappa"]), rel=1e-6) != sorted(first["up_kappa"])
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["state"] == "done"
    assert ("experts are not measured" in manifest["about"]["left_out"]) == (kind in MIXTURES)


class Unknown(torch.nn.Module):
    """Experts that do not say how their matrices lie."""

    def __init__(self):
        super().__init__()
        self.w1 = torch.nn.Parameter(torch.ones(4, 16, 10))


def test_what_is_of_no_known_kind_is_named_with_its_share():
    model = tiny_model("llama")
    before = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    model.model.layers[1].mlp.more = Unknown()
    found = left_out(model)
    assert found == LeftOut(("model.layers.1.mlp.more.w1",), 640 / (before + 640))
    assert f"{100 * found.share:.3g} % of the matrix weights (model.layers.1.mlp.more.w1) are of no known kind" in (
        found.of_weights
    )
    del model.model.layers[1].mlp.up_proj
    assert "1 of the layers have no feed-forward block" in left_out(model).sentences


def test_maps_whose_shapes_do_not_fit_are_no_block():
    for kind in ("llama", "phi3"):
        model = tiny_model(kind)
        model.model.layers[0].mlp.down_proj = torch.nn.Linear(10, 16)
        assert [block.name for block in find_blocks(model)] == ["model.layers.1.mlp"]
        assert left_out(model).layers == 1


def test_it_is_said_before_the_work_in_the_table_and_in_the_results(made, tmp_path, capsys, monkeypatch):
    import retrofit.measure as module

    original = module.load_model

    def with_more(*arguments):
        model, commit = original(*arguments)
        model.model.layers[0].mlp.more = Unknown()
        return model, commit

    def planted(*arguments):
        assert "model.layers.0.mlp.more.w1" in capsys.readouterr().out
        return measure_weights(*arguments)

    monkeypatch.setattr(module, "load_model", with_more)
    monkeypatch.setattr(module, "measure_weights", planted)
    flags = ["--dataset", "null", "--device", "cpu", "--output-dir", str(tmp_path / "m")]
    assert main(["measure", str(made("llama")), *flags]) == 0
    weights = (tmp_path / "m" / "report.md").read_text().split("## Weights")[1].split("\n## ")[0]
    assert "model.layers.0.mlp.more.w1" in weights
    metrics = json.loads((tmp_path / "m" / "results.json").read_text())["metrics"]
    assert metrics["left_out"] == ["model.layers.0.mlp.more.w1"]
    assert 0 < metrics["left_out_share"] < 0.1


def test_a_mixtures_table_says_whose_activations_are_not_there(made, text, tmp_path, capsys):
    flags = ["--dataset", str(text[1]), "--block-size", "16", "--activation-tokens", "64", "--device", "cpu"]
    assert main(["measure", str(made("qwen2_moe")), *flags, "--output-dir", str(tmp_path / "m")]) == 0
    report = (tmp_path / "m" / "report.md").read_text().split("## FFN activations")[1].split("\n## ")[0]
    assert report.count("shared_expert") == 2
    assert "Activations of 6 experts are not measured." in report
    assert main(["measure", str(made("mixtral")), *flags, "--output-dir", str(tmp_path / "x")]) == 0
    report = (tmp_path / "x" / "report.md").read_text().split("## FFN activations")[1].split("\n## ")[0]
    assert "act_kappa_centred | not run" in report
    assert "Activations of 6 experts are not measured." in report


def test_an_architecture_without_known_blocks_is_refused_in_one_sentence():
    from transformers import AutoModelForCausalLM, MptConfig

    model = AutoModelForCausalLM.from_config(MptConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=16, max_seq_len=16))
    with pytest.raises(UserError, match="MptForCausalLM has no feed-forward blocks of a known kind") as caught:
        find_blocks(model)
    assert "gate_up_proj/down_proj" in str(caught.value)
