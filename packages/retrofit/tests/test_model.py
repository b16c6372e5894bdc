"""Checkpoints that are broken, and dropout that is only borrowed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from retrofit.model import dropout_of, load_model, save_model
from studycore.errors import UserError
from studycore.language.pretrained import load_tokenizer


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made("gpt2"), tmp_path / "model")


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_checkpoint_that_lacks_weights_is_refused(folder):
    rewrite(folder, lambda tensors: tensors.pop("transformer.h.0.mlp.c_fc.weight"))
    with pytest.raises(UserError, match=r"--model: '.*' lacks transformer\.h\.0\.mlp\.c_fc\.weight; restore"):
        load_model(str(folder))
    rewrite(folder, lambda tensors: tensors.pop("transformer.h.1.mlp.c_fc.weight"))
    with pytest.raises(UserError, match="and 1 more weights"):
        load_model(str(folder))


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo", "gpt_neox", "llama"])
def test_a_tied_weight_is_not_missed(made, kind):
    assert load_model(str(made(kind)))[0] is not None


def test_weights_of_another_shape_are_refused(folder):
    rewrite(folder, lambda tensors: tensors.update({"transformer.h.0.mlp.c_fc.weight": torch.zeros(16, 32)}))
    with pytest.raises(
        UserError, match=r"--model: .* has transformer\.h\.0\.mlp\.c_fc\.weight of shape 16x32 where .* asks for 16x64"
    ):
        load_model(str(folder))


def test_a_file_that_is_cut_off_is_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"--model: .*model\.safetensors: cannot be read as weights"):
        load_model(str(folder))


def test_a_library_that_is_missing_is_said(folder, monkeypatch):
    import transformers

    def lacking(*args, **kwargs):
        raise ImportError("this model needs tiktoken. Install it.")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lacking)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lacking)
    for load in (load_model, load_tokenizer):
        with pytest.raises(UserError, match=r"--model: .*needs tiktoken"):
            load(str(folder))


def test_a_saved_model_has_its_own_dropout_again(folder, tmp_path):
    path = folder / "config.json"
    original = json.loads(path.read_text()) | {"resid_pdrop": 0.3, "embd_pdrop": 0.2, "attn_pdrop": 0.0}
    path.write_text(json.dumps(original))
    model, _ = load_model(str(folder), dropout=0.05)
    assert model.config.resid_pdrop == model.config.attn_pdrop == 0.05
    save_model(model, load_tokenizer(str(folder)), tmp_path / "saved", model.own_dropout)
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert {k: saved[k] for k in dropout_of(model.config)} == {k: original[k] for k in model.own_dropout}
    assert saved["resid_pdrop"] == 0.3
    assert "own_dropout" not in saved
    assert model.config.resid_pdrop == 0.05  # as before
