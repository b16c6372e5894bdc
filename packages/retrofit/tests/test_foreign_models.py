"""Model folders with something wrong in them: one sentence that names the file or weight, the reason and the mend."""

import json
import math
import shutil

import pytest
import torch
from conftest import save_tokenizer, tiny_model
from safetensors.torch import load_file, save_file

from retrofit.cli import main
from retrofit.metrics.evaluation import perplexity_row
from retrofit.metrics.perplexity import Evaluation
from retrofit.model import load_model
from studycore.errors import UserError
from studycore.language.pretrained import load_tokenizer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made("llama"), tmp_path / "model")


def rewrite(change):
    """What changes the weights."""

    def act(folder):
        tensors = load_file(folder / "model.safetensors")
        save_file(change(tensors) or tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return act


def as_bin(change):
    """The same, into a file of torch.save."""

    def act(folder):
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(change(tensors) or tensors, folder / "pytorch_model.bin")

    return act


def set_config(**values):
    def act(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return act


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def put(name, make):
    return lambda tensors: tensors.update({name: make(tensors[name])})


def at(value, *place):
    """A tensor with one of its values replaced."""

    def change(tensor):
        tensor[place] = value
        return tensor

    return change


UP = "model.layers.1.mlp.up_proj.weight"
BROKEN = {
    "pointer instead of weights": (write("model.safetensors", POINTER), ["model.safetensors", "git lfs pull"]),
    "pointer instead of the configuration": (write("config.json", POINTER), ["config.json", "git lfs pull"]),
    "empty weights": (write("model.safetensors", b""), ["model.safetensors", "is empty"]),
    "empty configuration": (write("config.json", b""), ["config.json", "is empty"]),
    "cut off": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:999]), ["cannot be read"]),
    "a key twice": (lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace("{", '{"vocab_size": 9,', 1)), ["config.json", "'vocab_size' stands there twice"]),
    "no JSON": (write("config.json", b"{hidden_size: 16}"), ["config.json"]),
    "a list": (write("config.json", b"[1, 2]"), ["cannot be read as a causal language model"]),
    "text for a number": (set_config(hidden_size="16"), ["hidden_size", "expected int, got str"]),
    "null": (set_config(vocab_size=None), ["vocab_size"]),
    "fraction of a layer": (set_config(num_hidden_layers=1.5), ["num_hidden_layers"]),
    "negative": (set_config(hidden_size=-16), ["cannot be read"]),
    "no heads": (set_config(num_attention_heads=0), ["cannot be read"]),
    "unknown activation": (set_config(hidden_act="wish"), ["wish"]),
    "unknown kind": (set_config(model_type="wish"), ["wish"]),
    "rope of words": (set_config(rope_parameters={"rope_type": "default", "rope_theta": "big"}), ["cannot be read"]),
    "padding outside": (set_config(pad_token_id=64), ["pad_token_id is 64 in its config.json", "has 64 tokens"]),
    "padding far outside": (set_config(pad_token_id=10**6), ["pad_token_id is 1000000"]),
    "more layers than weights": (set_config(num_hidden_layers=3), ["lacks model.layers.2", "and 11 more weights"]),
    "fewer layers than weights": (set_config(num_hidden_layers=1), ["does not take: model.layers.1", "and 11 more weights"]),
    "another vocabulary": (set_config(vocab_size=60), ["lm_head.weight of shape 64x16", "asks for 60x16"]),
    "quantised": (set_config(quantization_config={"quant_method": "fp8"}), ["quantised (fp8)"]),
    "a weight that nobody takes": (
        rewrite(lambda t: t.update({"model.layers.0.mlp.extra.weight": torch.ones(2)})),
        ["does not take: model.layers.0.mlp.extra.weight; restore"],
    ),
    "lacks": (rewrite(lambda t: {k: v for k, v in t.items() if k != UP}), [f"lacks {UP}; restore"]),
    "a wrapper's names": (rewrite(lambda t: {f"module.{k}": v for k, v in t.items()}), ["begin with 'module.'"]),
    "a compiler's names": (rewrite(lambda t: {f"_orig_mod.{k}": v for k, v in t.items()}), ["begin with '_orig_mod.'"]),
    "a whole checkpoint": (as_bin(lambda t: {"state_dict": t, "step": 3}), ["--model"]),
    "ends that differ": (set_config(tie_word_embeddings=True), ["ties the embeddings", "tie_word_embeddings"]),
    "float8": (rewrite(put(UP, lambda w: w.to(torch.float8_e4m3fn))), [UP, "F8_E4M3", "float32"]),
    "whole numbers": (rewrite(put(UP, lambda w: (100 * w).to(torch.int8))), [UP, "int8"]),
    "complex": (as_bin(put(UP, lambda w: w.to(torch.complex64))), [UP, "complex64"]),
    "sparse": (as_bin(put(UP, torch.Tensor.to_sparse)), [UP, "sparse_coo"]),
    "meta": (as_bin(put(UP, lambda w: w.to("meta"))), [UP, "meta"]),
    "NaN in an embedding": (rewrite(put("model.embed_tokens.weight", at(math.nan, 7, 3))), ["model.embed_tokens.weight holds NaN"]),
    "NaN in a norm": (rewrite(put("model.norm.weight", at(math.nan, 3))), ["model.norm.weight holds NaN"]),
    "infinity in a bias": (rewrite(put("model.layers.0.mlp.up_proj.bias", at(-math.inf, 0))), ["mlp.up_proj.bias holds NaN or inf"]),
    "infinity in the head": (rewrite(put("lm_head.weight", at(math.inf, 0, 0))), ["lm_head.weight holds NaN or infinity"]),
    "weights too large": (rewrite(put("lm_head.weight", lambda w: w * 1e38 / w.abs().max())), ["logits that are not finite"]),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_model_is_refused_in_one_sentence(folder, what):
    damage, named = BROKEN[what]
    damage(folder)
    with pytest.raises(UserError) as caught:
        load_model(str(folder))
    said = str(caught.value)
    assert said.startswith(("--model: ", str(folder))), said
    assert "\n" not in said
    for word in named:
        assert word in said, said


@pytest.mark.parametrize("what", ["NaN in a norm", "a weight that nobody takes", "padding outside", "empty weights"])
def test_neither_command_blames_anything_else_or_shows_a_traceback(folder, text, capsys, tmp_path, what):
    damage, named = BROKEN[what]
    damage(folder)
    flags = ["--model", str(folder), "--dataset", str(text[0]), "--device", "cpu", "--output-dir", str(tmp_path / "o")]
    for verb in (["measure"], ["run", "--method", "standard"]):
        assert main([*verb, *flags]) == 2
        (said,) = capsys.readouterr().err.strip().splitlines()
        assert all(word in said for word in named), said
        assert "lr" not in said.split()
        assert not (tmp_path / "o").exists()


def test_what_a_model_declares_that_it_ignores_may_stand_in_its_files(made, tmp_path):
    """Buffers of earlier versions of GPT-2 and GPT-NeoX, masks of whole numbers; and a tied head."""
    extra = {
        "gpt2": {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8)},
        "gpt_neox": {
            "gpt_neox.layers.1.attention.masked_bias": torch.tensor(-1e9),
            "gpt_neox.layers.1.attention.rotary_emb.inv_freq": torch.ones(2),
        },
    }
    for kind, more in extra.items():
        folder = shutil.copytree(made(kind), tmp_path / kind)
        rewrite(lambda tensors, more=more: tensors.update(more))(folder)
        load_model(str(folder))
    folder = shutil.copytree(made("gpt_neox"), tmp_path / "tied")
    rewrite(lambda t: t.update({"embed_out.weight": t["gpt_neox.embed_in.weight"].clone()}))(folder)
    assert load_model(str(folder))[0] is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_shards_load_as_before(tmp_path, dtype):
    tiny_model("llama").to(dtype).save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    model, _ = load_model(str(tmp_path))
    for name, value in model.state_dict().items():
        assert torch.equal(value, tiny_model("llama").state_dict()[name].to(dtype).float()), name


@pytest.mark.parametrize("as_archive", [True, False])
def test_files_of_torch_load_as_before(folder, made, as_archive):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=as_archive)
    loaded, same = load_model(str(folder))[0], load_model(str(made("llama")))[0]
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), same.parameters(), strict=True))


def test_a_file_or_a_model_of_more_than_text_is_no_model_folder(folder, monkeypatch):
    with pytest.raises(UserError, match=r"model\.safetensors' is a file; give the Hugging Face model folder"):
        load_model(str(folder / "model.safetensors"))
    from transformers import Gemma3Config

    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Gemma3Config(text_config={**tiny, "vocab_size": 64}, vision_config=tiny).save_pretrained(folder)
    with pytest.raises(UserError, match="is a gemma3 model of more than text; give a model of text alone"):
        load_model(str(folder))


def test_a_model_that_sees_what_follows_is_refused(folder):
    """Its perplexity would be of tokens that it has seen."""
    from transformers import AutoModelForCausalLM, Gemma3TextConfig

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    config = Gemma3TextConfig(**sizes, vocab_size=64, num_key_value_heads=2, use_bidirectional_attention=True)
    shutil.rmtree(folder)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    with pytest.raises(UserError, match="its logits depend on the tokens that follow, so it predicts none"):
        load_model(str(folder))


def test_nothing_that_transformers_would_print_comes_beside_the_sentence(folder, capfd):
    rewrite(lambda t: t.update({"x": torch.ones(2)}))(folder)
    assert main(["measure", str(folder), "--dataset", "null", "--device", "cpu"]) == 2
    assert len(capfd.readouterr().err.strip().splitlines()) == 1


# ---------------------------------------------------------------------------------------------------------- tokenizers
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (write("tokenizer.json", POINTER), ["tokenizer.json", "git lfs pull"]),
        (write("tokenizer.json", b""), ["tokenizer.json", "is empty"]),
        (write("merges.txt", b""), ["merges.txt", "is empty"]),
        (write("special_tokens_map.json", POINTER), ["special_tokens_map.json", "git lfs pull"]),
        (write("tokenizer.json", b'{"version": "9.0", "model": {"type": "Wish", "vocab": {}}}'), ["a model with a tokenizer"]),
        (write("tokenizer_config.json", b"[]"), ["a model with a tokenizer", "put the tokenizer's files"]),
        (lambda f: [file.unlink() for file in f.glob("tokenizer*")], ["a model with a tokenizer"]),
    ],
    ids=["pointer", "empty", "empty merges", "pointer of another", "another version", "a list", "none"],
)  # fmt: skip
def test_a_tokenizer_that_cannot_be_read_is_refused_by_both_commands(folder, text, capsys, tmp_path, damage, named):
    damage(folder)
    with pytest.raises(UserError) as caught:
        load_tokenizer(str(folder))
    assert all(word in str(caught.value) for word in named), str(caught.value)
    flags = ["--model", str(folder), "--dataset", str(text[0]), "--block-size", "16", "--device", "cpu"]
    for verb in (["measure"], ["run", "--method", "gram"]):
        assert main([*verb, *flags, "--output-dir", str(tmp_path / "o")]) == 2
        (said,) = capsys.readouterr().err.strip().splitlines()
        assert named[0] in said


def test_a_tokenizer_of_another_model_is_refused_where_its_tokens_stand_in_the_text(made, text, tmp_path, capsys):
    """The words of the text have tokens up to 7; of those that it does not hold, nothing is said."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    flags = ["--dataset", str(text[0]), "--block-size", "16", "--activation-tokens", "64", "--device", "cpu"]
    for vocabulary, code in ((5, 2), (10, 0)):
        folder = tmp_path / f"of_{vocabulary}"
        config = LlamaConfig(vocab_size=vocabulary, **sizes, max_position_embeddings=64, bos_token_id=0, eos_token_id=0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        save_tokenizer(folder)
        capsys.readouterr()
        assert main(["measure", str(folder), *flags, "--output-dir", str(tmp_path / f"m{vocabulary}")]) == code
        if code:
            said = capsys.readouterr().err
            assert f"knows 62 tokens and the model {vocabulary}: 'w" in said
            assert "give the tokenizer that belongs to the model" in said


# --------------------------------------------------------------------------------------------- who is blamed, and when
def test_a_perplexity_that_is_not_finite_before_any_update_is_not_the_learning_rates_fault(small):
    from retrofit.data import load_data

    config = small()
    data = load_data(config, load_tokenizer(config.model), 64, 64)
    broken = Evaluation("x", torch.tensor([math.nan], dtype=torch.float64), torch.ones(1))
    with pytest.raises(UserError, match=r"^--model: .* perplexity that is not finite before any update") as caught:
        perplexity_row(config, data, lambda blocks: broken, end=False, updates=0)
    assert "lr" not in str(caught.value).split()
    with pytest.raises(UserError, match=r"^lr: 0.01 made a perplexity infinite"):
        perplexity_row(config, data, lambda blocks: broken, end=False, updates=3)
