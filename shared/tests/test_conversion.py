"""GGUF to a Hugging Face folder: against the model that the file was written from, and files that are not what they should be."""

import errno
import json
import sys

import numpy as np
import pytest
import tiny_gguf
import torch
from gguf import GGMLQuantizationType as Type

from studycore.commands import main
from studycore.errors import UserError
from studycore.language import conversion
from studycore.language.conversion import convert, weight_name


def load(folder):
    from transformers import AutoModelForCausalLM

    loaded, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not (found["missing_keys"] or found["unexpected_keys"] or found["mismatched_keys"])
    return loaded.eval()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(the model, its file, the folder made of it)."""
    place = tmp_path_factory.mktemp("plain")
    of = tiny_gguf.model()
    file = tiny_gguf.write(place / "tiny.gguf", of)
    convert(file, place / "made", licence="free\n", origin="Drawn at random.")
    return of, file, place / "made"


@pytest.mark.parametrize(("kind", "tied"), [(Type.F32, True), (Type.Q8_0, False), (Type.Q4_1, True)])
def test_logits_are_those_of_the_model_that_the_file_was_written_from(tmp_path, kind, tied):
    of = tiny_gguf.model(tied)
    if kind != Type.F32:
        tiny_gguf.quantise(of, kind)
    convert(tiny_gguf.write(tmp_path / "tiny.gguf", of, kind), tmp_path / "made")
    made = load(tmp_path / "made")
    ids = torch.arange(90).view(2, 45) * 7 % tiny_gguf.ROWS
    with torch.no_grad():
        expected, got = of(ids).logits, made(ids).logits
    assert expected.std() > 0.5
    assert (expected - got).abs().max() <= 1e-5
    assert (made.lm_head.weight is made.model.embed_tokens.weight) == tied
    for name, parameter in of.named_parameters():
        assert torch.equal(parameter, made.get_parameter(name)), name


def test_the_configuration(plain):
    of, _, folder = plain
    made = load(folder)
    for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
        "bos_token_id", "eos_token_id", "pad_token_id",
    ):  # fmt: skip
        assert getattr(made.config, name) == getattr(of.config, name), name
    assert made.dtype == torch.float32
    assert made.generation_config.do_sample is False
    assert not set(json.loads((folder / "generation_config.json").read_text())) & {"temperature", "top_p", "top_k"}


def test_half_precision_is_rounded_once_and_computed_with_in_single(plain, tmp_path):
    of, file, _ = plain
    convert(file, tmp_path / "made", "float16")
    made = load(tmp_path / "made")
    assert made.dtype == torch.float32
    for name, parameter in of.named_parameters():
        assert torch.equal(parameter.half().float(), made.get_parameter(name)), name


def test_values_that_half_precision_cannot_hold_are_refused(tmp_path):
    of = tiny_gguf.model()
    with torch.no_grad():
        of.model.norm.weight[3] = 1e5
    file = tiny_gguf.write(tmp_path / "tiny.gguf", of)
    with pytest.raises(
        UserError, match=r"--dtype: .*float16 cannot hold the values of output_norm.weight; take float32"
    ):
        convert(file, tmp_path / "made", "float16")


def test_the_tokenizer(plain):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(plain[2])
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token) == (
        "<start>", "<stop>", "<stop>", "<end>",
    )  # fmt: skip
    assert len(tokenizer) == tiny_gguf.ROWS
    assert tokenizer.model_max_length == 128
    assert tokenizer.tokenize("hello hello<stop>") == ["hello", "Ġhello", "<stop>"]
    # Each digit alone, and what is before it as if the text ended there: both line feeds, both spaces are one token.
    assert tokenizer.tokenize("12\n\n1  2") == ["1", "2", "ĊĊ", "1", "ĠĠ", "2"]
    assert tokenizer("hello")["input_ids"] == [tiny_gguf.TOKENS.index("hello")], "nothing is added"
    for text in ("Zürich, 12.5 %\n\n  ½ 東京", "<start>hello<stop>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert chat == "<start>hello<stop>"


def test_other_tokenizers(plain, tmp_path):
    from transformers import AutoTokenizer

    for kind, before, text, tokens in (
        ("gpt2", "gpt-2", "12\n\n1", ["<start>", "12", "Ċ", "Ċ", "1"]),
        ("gpt2", "llama-bpe", "12 hello", ["12", "Ġhello"]),
    ):
        file = tiny_gguf.write(tmp_path / f"{before}.gguf", plain[0], tokenizer=kind, before=before, adds_bos=True)
        convert(file, tmp_path / before)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / before)
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.convert_ids_to_tokens(ids)[-len(tokens) :] == tokens


def test_what_the_folder_says_of_itself(plain, tmp_path):
    folder = plain[2]
    card = (folder / "README.md").read_text()
    for words in ("# Tiny", "Drawn at random.", "Licence: cc0-1.0", "No tensor is quantised", "Stored here as float32"):
        assert words in card
    assert (folder / "LICENSE").read_text() == "free\n"
    record = json.loads((folder / conversion.RECORD).read_text())
    assert {path.name for path in folder.iterdir()} - {conversion.RECORD} == set(record["sizes"])
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    of = tiny_gguf.quantise(tiny_gguf.model(), Type.Q4_1)
    convert(tiny_gguf.write(tmp_path / "tiny.gguf", of, Type.Q4_1), tmp_path / "made")
    assert "a 4-bit quantisation of the published weights" in (tmp_path / "made" / "README.md").read_text()


def test_names():
    assert weight_name("blk.11.attn_output.weight") == "model.layers.11.self_attn.o_proj.weight"
    assert weight_name("output.weight") == "lm_head.weight"
    for name in (
        "blk.0.attn_q.bias",
        "blk.x.attn_q.weight",
        "rope_freqs.weight",
        "blk.0.ffn_gate_exps.weight",
        "blk.0",
    ):
        assert weight_name(name) is None


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"architecture": "qwen2"}, "its architecture is qwen2, and only llama is known"),
        ({"leave_out": ["block_count"]}, r"llama.block_count is missing"),
        ({"leave_out": ["tokens"]}, r"tokenizer.ggml.tokens is missing"),
        ({"leave_out": ["token_embd.weight"]}, "token_embd.weight is missing"),
        ({"leave_out": ["blk.1.ffn_up.weight"]}, r"lacks model.layers.1.mlp.up_proj.weight"),
        ({"blk__2__ffn_up__weight": np.ones((96, 64))}, r"has no place for model.layers.2.mlp.up_proj"),
        ({"rope_freqs__weight": np.ones(16)}, "rope_freqs.weight has no place in a plain Llama model"),
        ({"blk__0__attn_q__bias": np.ones(128)}, "attn_q.bias has no place in a plain Llama model"),
        ({"blk__0__attn_k__weight": np.ones((96, 64))}, "attn_k.weight has 96 rows, not 64, 2 heads of 32"),
        ({"blk__0__ffn_up__weight": np.ones((96, 32))}, r"shape \[96, 32\], and its fields say \[96, 64\]"),
        ({"output_norm__weight": np.full(64, np.nan)}, "output_norm.weight holds numbers that are not finite"),
        ({"scaled": "yarn"}, "llama.rope.scaling.type is yarn"),
        ({"experts": 4}, "llama.expert_count is 4"),
        ({"before": "viking"}, "its tokenizer is gpt2 with the pre-tokenizer viking, which is not known"),
        ({"tokenizer": "rwkv"}, "its tokenizer is rwkv"),
    ],
)
def test_a_file_of_something_else_gets_one_sentence(plain, tmp_path, how, words):
    file = tiny_gguf.write(tmp_path / "tiny.gguf", plain[0], **how)
    refused(file, words)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.999])
def test_a_file_that_ends_early_gets_one_sentence(plain, tmp_path, share):
    whole = plain[1].read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(whole[: int(len(whole) * share)])
    refused(tmp_path / "tiny.gguf", "cannot be read as GGUF .*; fetch it again")


def test_other_bytes_and_no_file_get_one_sentence(tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(np.random.default_rng(0).bytes(5000))
    refused(tmp_path / "tiny.gguf", "cannot be read as GGUF .*; fetch it again")
    refused(tmp_path / "none.gguf", "there is no such file")


def test_a_type_of_tensors_that_cannot_be_read_gets_one_sentence(plain, tmp_path, monkeypatch):
    import gguf

    def refuse(data, kind):
        raise NotImplementedError(f"{kind.name} is not implemented")

    monkeypatch.setattr(gguf, "dequantize", refuse)
    refused(plain[1], "is of type F32, which gguf cannot read", tmp_path / "made")


def refused(file, words, folder=None):
    folder = folder or file.parent / "made"
    with pytest.raises(UserError, match=words) as caught:
        convert(file, folder)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    assert not folder.exists()
    assert not list(folder.parent.glob(f".{folder.name}*")), "no scratch folder is left"


def test_a_folder_that_is_there_stays(plain, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine").touch()
    with pytest.raises(UserError, match="made is there already; remove it or name another"):
        convert(plain[1], tmp_path / "made")
    assert (tmp_path / "made" / "mine").exists()


@pytest.mark.parametrize("place", ["tokenizer", "_weights", "put_in_place"])
def test_a_full_disk_gets_one_sentence(plain, tmp_path, monkeypatch, place):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(conversion, place, full)
    with pytest.raises(UserError, match=r"no room, [\d,]+ MB are free; free some space"):
        convert(plain[1], tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_the_command(plain, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, code, words in (
        (["convert", str(plain[1])], 0, "the model is in tiny"),
        (["convert", str(plain[1])], 2, "tiny is there already"),
        (["convert", str(plain[1]), "--output-dir", "half", "--dtype", "float16"], 0, "the model is in half"),
        (["convert", str(plain[1]), "--dtype", "int8"], 2, "int8"),
        (["convert"], 2, "FILE"),
        ([], 2, "action"),
    ):
        monkeypatch.setattr(sys, "argv", ["studycore", "language", *arguments])
        captured = (main(), capsys.readouterr())
        assert captured[0] == code, captured
        assert words in captured[1].out + captured[1].err
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.6 * (
        tmp_path / "tiny" / "model.safetensors"
    ).stat().st_size
