"""A Llama model of a few thousand weights, drawn at random, and the GGUF file that llama.cpp's converter would write of it."""

import hashlib
import zipfile

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

from studycore.language.smollm2 import Packaged

SPECIAL = ["<end>", "<start>", "<stop>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ hello", "Ċ Ċ", "Ġ Ġ", "1 2"]
TEMPLATE = "{% for message in messages %}<start>{{ message['content'] }}<stop>{% endfor %}"


def alphabet():
    """GPT-2's letters for the 256 bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


TOKENS = [*SPECIAL, *alphabet(), *(merge.replace(" ", "") for merge in MERGES)]
ROWS = 320
TOKENS += [f"<unused {number}>" for number in range(ROWS - len(TOKENS))]


def model(tied=True):
    """Grouped heads (4 over 2), and heads of another size than the width would give."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=ROWS, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=32, max_position_embeddings=128, rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 5e4}, tie_word_embeddings=tied,
            initializer_range=0.3, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        )
    ).eval()  # fmt: skip


def interleaved(weight, heads):
    """Rows of each head in GGUF's order, 0, D/2, 1, D/2 + 1, ..., by their numbers."""
    size = len(weight) // heads
    order = [head * size + half * size // 2 + i for head in range(heads) for i in range(size // 2) for half in (0, 1)]
    return weight[order]


def tensors(of):
    """GGUF's name -> array, with the rows of queries and keys in GGUF's order."""
    config, state, found = of.config, of.state_dict(), {}
    found["token_embd.weight"] = state["model.embed_tokens.weight"]
    found["output_norm.weight"] = state["model.norm.weight"]
    if not config.tie_word_embeddings:
        found["output.weight"] = state["lm_head.weight"]
    for block in range(config.num_hidden_layers):
        ours, theirs = f"blk.{block}", f"model.layers.{block}"
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        found[f"{ours}.attn_norm.weight"] = state[f"{theirs}.input_layernorm.weight"]
        found[f"{ours}.attn_q.weight"] = interleaved(state[f"{theirs}.self_attn.q_proj.weight"], heads)
        found[f"{ours}.attn_k.weight"] = interleaved(state[f"{theirs}.self_attn.k_proj.weight"], groups)
        found[f"{ours}.attn_v.weight"] = state[f"{theirs}.self_attn.v_proj.weight"]
        found[f"{ours}.attn_output.weight"] = state[f"{theirs}.self_attn.o_proj.weight"]
        found[f"{ours}.ffn_norm.weight"] = state[f"{theirs}.post_attention_layernorm.weight"]
        for name in ("gate", "up", "down"):
            found[f"{ours}.ffn_{name}.weight"] = state[f"{theirs}.mlp.{name}_proj.weight"]
    return {name: tensor.detach().numpy() for name, tensor in found.items()}


def quantise(of, kind):
    """Rounds the matrices of a model to what a type of tensors can hold."""
    with torch.no_grad():
        for parameter in of.parameters():
            if parameter.ndim == 2:
                stored = gguf.quants.quantize(parameter.numpy(), kind)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(stored, kind)))
    return of


def write(path, of, kind=Type.F32, architecture="llama", tokenizer="gpt2", before="smollm", leave_out=(), **added):
    """The file; `added` are tensors besides or instead of the model's, with __ for a point, `leave_out` names to omit."""
    config, writer = of.config, gguf.GGUFWriter(path, architecture)
    fields = {
        "vocab_size": ROWS, "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim, "rope.dimension_count": config.head_dim,
    }  # fmt: skip
    for name, value in fields.items():
        if name not in leave_out:
            writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32(f"{architecture}.rope.freq_base", config.rope_parameters["rope_theta"])
    if "scaled" in added:
        writer.add_string(f"{architecture}.rope.scaling.type", added.pop("scaled"))
    if "experts" in added:
        writer.add_uint32(f"{architecture}.expert_count", added.pop("experts"))
    writer.add_string("general.name", "Tiny")
    writer.add_string("general.license", "cc0-1.0")
    writer.add_tokenizer_model(tokenizer)
    writer.add_tokenizer_pre(before)
    if "tokens" not in leave_out:
        writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (ROWS - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    for name, number in (("bos", 1), ("eos", 2), ("unknown", 0), ("padding", 2)):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    writer.add_bool("tokenizer.ggml.add_bos_token", added.pop("adds_bos", False))
    writer.add_chat_template(TEMPLATE)
    stored = tensors(of) | {name.replace("__", "."): array for name, array in added.items()}
    for name, array in stored.items():
        if name in leave_out:
            continue
        if array.ndim == 2 and kind != Type.F32:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(array, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def wheel(folder, file):
    """A wheel with the file in it, and what is pinned of it."""
    folder.mkdir()
    path = folder / "tiny_gguf-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(file, "tiny_gguf/tiny.gguf")
        info = "tiny_gguf-1.0.dist-info"
        archive.writestr(f"{info}/LICENSE", "Do what you like.\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")

    def digest(of):
        return hashlib.sha256(of.read_bytes()).hexdigest()

    return Packaged(
        name="studycore/tiny", requirement="tiny-gguf==1.0", wheel_sha256=digest(path), file="tiny_gguf/tiny.gguf",
        file_sha256=digest(file), licence="tiny_gguf-1.0.dist-info/LICENSE", origin="Drawn at random.", megabytes=1,
    )  # fmt: skip
