"""A GGUF file with a Llama model in it becomes an ordinary Hugging Face folder.

    convert(Path("model.gguf"), Path("model"))
    model = AutoModelForCausalLM.from_pretrained("model")

GGUF stores the rows of the query and key projections in the order of the original Llama code, whose rotary embedding turns
neighbouring dimensions (2i, 2i + 1); transformers turns (i, i + D/2), so the rows of each head go back (`unpermute`).
Su et al. (2021), "RoFormer", equation 34, is the neighbouring form.

Shapes: V tokens of the vocabulary, H heads, D dimensions of a head, I inputs of a projection.
"""

import errno
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from studycore.errors import UserError
from studycore.files import sha256, sync_folder, write_json
from studycore.language.progress import without_bars

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""Of the folders that `convert` writes; a change of what it computes raises it, and fetched models are made again."""
RECORD = "conversion.json"
"""Written last: what the folder was made of, and the size of every other file in it."""

StorageType = Literal["float16", "float32"]

TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's names of tensors -> transformers' names, without the ending .weight."""

EXACT = ("F32", "F16", "BF16")
"""Types of tensors that are not quantised."""
DIGITS_APART = ("smollm", "starcoder", "refact", "codeshell")
"""Pre-tokenizers that part every digit from the rest before GPT-2's rule; transformers' own reader leaves that out."""
LIKE_GPT2 = ("gpt-2", "default")
READ_BY_TRANSFORMERS = ("llama-bpe", "llama3", "llama-v3", "qwen2", "tekken")


# ---------------------------------------------------------------------------------------------------------- the file
def convert(
    file: Path, folder: Path, dtype: StorageType = "float32", licence: str | None = None, origin: str = ""
) -> None:
    """Makes `folder`, which appears all at once, from a GGUF file of architecture llama.

    `dtype` is how the weights are stored; the configuration says float32, so that they are computed with in single
    precision. `licence` is the text of a file LICENSE, `origin` a sentence for the README. UserError for a file that is
    damaged or holds something else than plain Llama, and where there is no room.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output-dir: {folder} is there already; remove it or name another")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            made = Path(scratch) / folder.name
            made.mkdir()
            _write(file, made, dtype, licence, origin)
            put_in_place(made, folder)
    except OSError as error:
        raise no_room(error, folder.parent) or error from None


def put_in_place(made: Path, folder: Path) -> None:
    """Renames `made` to `folder`, durably: after a crash either is whole."""
    for path in made.iterdir():
        path.chmod(0o644)  # transformers writes weights for their owner alone, and a model may be installed for all
        with open(path, "rb") as written:
            os.fsync(written.fileno())
    sync_folder(made)
    os.replace(made, folder)
    sync_folder(folder.parent)


def no_room(error: OSError, folder: Path) -> UserError | None:
    """The sentence for a full disk or a used-up quota; None for another error."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    free = shutil.disk_usage(folder).free / 1e6
    return UserError(f"{folder}: no room, {free:,.0f} MB are free; free some space or choose another folder")


def _write(file: Path, folder: Path, dtype: StorageType, licence: str | None, origin: str) -> None:
    import torch
    from safetensors import SafetensorError
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    reader = _open(file)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    if fields.get("general.architecture") != "llama":
        raise UserError(
            f"{file}: its architecture is {fields.get('general.architecture', 'not said')}, and only llama is known; "
            "give a file of that architecture"
        )
    stored = {tensor.name: tensor for tensor in reader.tensors}
    values = _configuration(file, fields, stored)
    config = LlamaConfig(**values)
    state = _weights(file, stored, config, getattr(torch, dtype))
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    _check_names(file, state, model.state_dict())
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    special = {k: values[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(do_sample=False, **special)
    try:
        with without_bars():
            model.save_pretrained(folder)
    except SafetensorError as error:  # its only way to say that the disk is full
        raise OSError(errno.ENOSPC if "No space left" in str(error) else errno.EIO, str(error), str(folder)) from None
    config.dtype = torch.float32  # of the computation; the other call has put the type of the stored weights there
    config.save_pretrained(folder)
    tokenizer(file, fields).save_pretrained(folder)
    kinds = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    digest = sha256(file)
    (folder / "README.md").write_text(_card(file, fields, kinds, digest, dtype, origin), encoding="utf-8")
    if licence is not None:
        (folder / "LICENSE").write_text(licence, encoding="utf-8")
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    record = {"format": FORMAT, "sha256": digest, "dtype": dtype, "tensor_types": dict(kinds), "sizes": sizes}
    write_json(folder / RECORD, record)


def _open(file: Path) -> Any:
    """gguf's reader of the file."""
    from gguf import GGUFReader

    if not file.is_file():
        raise UserError(f"{file}: there is no such file; check the name")
    try:
        return GGUFReader(file)
    # What the reader says of bytes that are none of GGUF's, or that end too early.
    except (ValueError, IndexError, KeyError, OverflowError, TypeError, MemoryError) as error:
        said = " ".join(str(error).split())[:120]
        raise UserError(f"{file}: cannot be read as GGUF ({said}); fetch it again") from None


def _configuration(file: Path, fields: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """What LlamaConfig takes. UserError for a lacking field and for what a plain Llama does not have."""

    def field(name: str, default: Any = None) -> Any:
        value = fields.get(f"llama.{name}", default)
        if value is None:
            raise UserError(f"{file}: its field llama.{name} is missing; fetch it again")
        return value

    def decimal(name: str, default: Any = None) -> float:
        """The shortest decimal number of a float32: 1e-05, not 9.999999747378752e-06."""
        return float(str(np.float32(field(name, default))))

    if field("expert_count", 0):
        raise UserError(f"{file}: llama.expert_count is {field('expert_count')}; only models without experts are known")
    if (scaling := field("rope.scaling.type", "none")) != "none":
        raise UserError(f"{file}: llama.rope.scaling.type is {scaling}; only plain rotary embeddings are known")
    if "token_embd.weight" not in stored:
        raise UserError(f"{file}: its tensor token_embd.weight is missing; fetch it again")
    heads = int(field("attention.head_count"))
    head_dim = int(field("attention.key_length", field("embedding_length") // heads))
    if (turned := int(field("rope.dimension_count", head_dim))) != head_dim:
        raise UserError(f"{file}: llama.rope.dimension_count is {turned}; only {head_dim}, the whole head, is known")
    ids = {
        f"{key}_token_id": fields.get(f"tokenizer.ggml.{name}_token_id")
        for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    return {
        "vocab_size": int(stored["token_embd.weight"].shape[-1]),
        "hidden_size": int(field("embedding_length")),
        "intermediate_size": int(field("feed_forward_length")),
        "num_hidden_layers": int(field("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(field("attention.head_count_kv", heads)),
        "head_dim": head_dim,
        "max_position_embeddings": int(field("context_length")),
        "rms_norm_eps": decimal("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_type": "default", "rope_theta": decimal("rope.freq_base", 10000.0)},
        "tie_word_embeddings": "output.weight" not in stored,
        "attention_bias": False,
        "mlp_bias": False,
        "architectures": ["LlamaForCausalLM"],
        **ids,
    }


def _weights(file: Path, stored: Mapping[str, Any], config: Any, dtype: Any) -> dict[str, "Tensor"]:
    """Every tensor of the file, dequantised, under transformers' name."""
    import torch
    from gguf import dequantize

    weights = {}
    for name, tensor in stored.items():
        kind = tensor.tensor_type.name
        try:
            values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        except (NotImplementedError, KeyError):
            raise UserError(
                f"{file}: its tensor {name} is of type {kind}, which gguf cannot read; give another"
            ) from None
        if not bool(torch.isfinite(values).all()):
            raise UserError(f"{file}: its tensor {name} holds numbers that are not finite; fetch it again")
        key = weight_name(name)
        if key is None:
            raise UserError(f"{file}: its tensor {name} has no place in a plain Llama model; give a file without it")
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if f".{part}." in key:
                if len(values) != heads * config.head_dim:
                    raise UserError(
                        f"{file}: its tensor {name} has {len(values)} rows, not {heads * config.head_dim}, {heads} heads "
                        f"of {config.head_dim}; fetch it again"
                    )
                values = unpermute(values, heads)
        weights[key] = values.to(dtype)
        if not bool(torch.isfinite(weights[key]).all()):
            raise UserError(f"--dtype: {dtype} cannot hold the values of {name}; take float32")
    return weights


def weight_name(name: str) -> str | None:
    """transformers' name of a GGUF tensor, blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight, or None."""
    match name.split("."):
        case [part, "weight"] if part in TOP:
            return f"{TOP[part]}.weight"
        case ["blk", number, part, "weight"] if number.isdigit() and part in IN_BLOCK:
            return f"model.layers.{number}.{IN_BLOCK[part]}.weight"
    return None


def unpermute(weight: "Tensor", heads: int) -> "Tensor":
    """Rows of a projection [H D, I] from the order 0, D/2, 1, D/2 + 1, ... in each head to 0, 1, 2, ..."""
    pairs = weight.view(heads, len(weight) // heads // 2, 2, -1)
    return pairs.transpose(1, 2).reshape(weight.shape)


def _check_names(file: Path, state: Mapping[str, "Tensor"], wanted: Mapping[str, "Tensor"]) -> None:
    """UserError unless names and shapes are those of the model."""
    for names, what in ((wanted.keys() - state.keys(), "lacks"), (state.keys() - wanted.keys(), "has no place for")):
        if names:
            raise UserError(f"{file}: {what} {min(names)}, by its own count of blocks; fetch it again")
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"{file}: {name} has the shape {list(tensor.shape)}, and its fields say {list(wanted[name].shape)}; "
                "fetch it again"
            )


# ----------------------------------------------------------------------------------------------------- the tokenizer
def tokenizer(file: Path, fields: Mapping[str, Any]) -> Any:
    """The file's tokenizer with its chat template.

    One of GPT-2's kind is built here from tokens and merges. Others are left to transformers, as far as it knows them.
    """
    from transformers import AutoTokenizer

    kind, before = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    if kind == "gpt2" and before in DIGITS_APART + LIKE_GPT2:
        return _byte_pairs(file, fields, digits_apart=before in DIGITS_APART)
    if kind == "llama" or (kind == "gpt2" and before in READ_BY_TRANSFORMERS):
        return AutoTokenizer.from_pretrained(file.absolute().parent, gguf_file=file.name)
    raise UserError(
        f"{file}: its tokenizer is {kind} with the pre-tokenizer {before}, which is not known; give another file"
    )


def _byte_pairs(file: Path, fields: Mapping[str, Any], digits_apart: bool) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    def field(name: str) -> Any:
        if (value := fields.get(f"tokenizer.ggml.{name}")) is None:
            raise UserError(f"{file}: its field tokenizer.ggml.{name} is missing; fetch it again")
        return value

    tokens: list[str] = field("tokens")
    merges = [tuple(merge.split(" ")) for merge in field("merges")]
    built = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=bool(fields.get("tokenizer.ggml.add_space_prefix", False)))
    digits = [pre_tokenizers.Digits(individual_digits=True)] if digits_apart else []
    built.pre_tokenizer = pre_tokenizers.Sequence([*digits, bytes_of])
    built.decoder = decoders.ByteLevel()
    # 3 marks control tokens, such as the end of the text, and 4 what a user has added; neither is ever cut.
    for kind, special in ((3, True), (4, False)):
        marked = [token for token, its in zip(tokens, field("token_type"), strict=True) if its == kind]
        added = [AddedToken(token, normalized=False, special=special) for token in marked]
        (built.add_special_tokens if special else built.add_tokens)(added)
    names = {
        f"{key}_token": tokens[number]
        for key, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (number := fields.get(f"tokenizer.ggml.{name}_token_id")) is not None
    }
    start, end = (
        [names[f"{key}_token"]] if fields.get(f"tokenizer.ggml.add_{key}_token", False) else []
        for key in ("bos", "eos")
    )
    if start or end:
        built.post_processor = processors.TemplateProcessing(
            single=[*start, "$A", *end], special_tokens=[(token, tokens.index(token)) for token in {*start, *end}]
        )
    else:
        built.post_processor = processors.ByteLevel(trim_offsets=True)
    made = PreTrainedTokenizerFast(
        tokenizer_object=built,
        model_max_length=int(fields["llama.context_length"]),
        clean_up_tokenization_spaces=False,
        **names,
    )
    made.chat_template = fields.get("tokenizer.chat_template")
    return made


# ---------------------------------------------------------------------------------------------------------- the card
def _card(file: Path, fields: Mapping[str, Any], kinds: Mapping[str, int], digest: str, dtype: str, origin: str) -> str:
    """README.md: what the folder was made of."""
    name = fields.get("general.name", file.stem)
    licence = fields.get("general.license", "not said in the file")
    listed = ", ".join(f"{count} of type {kind}" for kind, count in sorted(kinds.items()))
    quantised = {kind: count for kind, count in kinds.items() if kind not in EXACT}
    if quantised:
        most = max(quantised, key=lambda kind: quantised[kind])
        bits = f"a {most[1]}-bit quantisation" if most[1:2].isdigit() else "a quantisation"
        quality = f"Mostly {most}: this is {bits} of the published weights, and not those weights themselves."
    else:
        quality = "No tensor is quantised."
    lines = [
        f"# {name}",
        "",
        *([origin, ""] if origin else []),
        f"Made by `studycore language convert` from the GGUF file `{file.name}` (sha256 {digest}).",
        "",
        f"- Publisher: {fields.get('general.organization', 'not said in the file')}",
        f"- Licence: {licence}",
        f"- Tensors in the file: {listed}. {quality}",
        f"- Stored here as {dtype}; computed with in float32 unless another type is asked for.",
    ]
    return "\n".join(lines) + "\n"
