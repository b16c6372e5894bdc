"""Models, tokenizers and datasets that others published: from the Hugging Face hub, from a folder, or of studycore's own.

model, commit = load_model("studycore/smollm2-135m-instruct")
tokenizer = load_tokenizer("studycore/smollm2-135m-instruct")
rows = hub_rows("rajpurkar/squad", split="train", columns=("question", "context"))

What is loaded is checked: what is missing, left over, of another shape or type, not finite, or does not compute is told in
one sentence that begins with the setting's name, `flag`.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studycore.errors import UserError
from studycore.files import check_local, read_json
from studycore.foreign import check_file, check_tensors, reading
from studycore.language.embedded import locate
from studycore.language.progress import without_bars
from studycore.models import evaluating

PROBE_TOKENS = 12


def load_model(
    name: str,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    flag: str = "--model",
    adapt: Callable[[Any], None] = lambda config: None,
) -> tuple[Any, str | None]:
    """(causal language model in that precision, in evaluation mode, the hub's commit or None).

    `adapt` may change its configuration before it is built. UserError when there is no such model, when its files can't be
    read, lack weights, hold others than its configuration asks for or weights that are not finite, or when it does not
    compute.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import cached_file

    place, source = _place(name, flag), f"{flag}: '{name}'"
    is_local = Path(place).exists()
    if is_local:
        _check_files(Path(place))
        _check_types(source, Path(place))
    else:
        print(f"loading the model {name} from the Hugging Face hub")
    with reading(source, "a causal language model", MEND), _quiet(bars=is_local):
        config = AutoConfig.from_pretrained(place, revision=revision)
        _check_kind(source, config)
        adapt(config)
        try:
            both: Any = AutoModelForCausalLM.from_pretrained(
                place, revision=revision, config=config, dtype=dtype, output_loading_info=True,
                # What does not fit is told by _check_complete.
                ignore_mismatched_sizes=True,
            )  # fmt: skip
        except AssertionError:
            # Of torch's, for a row that the embedding lacks; architectures that do not use the row are none the worse.
            _check_padding(source, config)
            raise
        model, loaded = both
        folder = Path(place) if is_local else Path(str(cached_file(place, "config.json", revision=revision))).parent
    _check_complete(source, model, loaded)
    _check_types(source, folder, model)
    check_tensors({**dict(model.named_parameters()), **dict(model.named_buffers())}, source)
    with reading(source, "a model that computes", MEND), _quiet():
        logits_2TV = _logits_with_two_ends(model)
    if not bool(logits_2TV.isfinite().all()):
        raise UserError(
            f"{source}: gives logits that are not finite, from weights that are; check how it was converted"
        )
    one_TV, other_TV = logits_2TV[:, :-1]
    if float((one_TV - other_TV).abs().max()) > 1e-3 * float(one_TV.abs().max()):
        raise UserError(
            f"{source}: its logits depend on the tokens that follow, so it predicts none; give a causal model"
        )
    return model, getattr(config, "_commit_hash", None)


MEND = "give a hub id, or a folder whose files are whole and belong together"
WEIGHT_FILES = (
    ("model*.safetensors", "model.safetensors.index.json"),
    ("pytorch_model*.bin", "pytorch_model.bin.index.json"),
)
"""Of the first kind that is there, transformers reads the weights."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip


@contextmanager
def _quiet(bars: bool = False) -> Iterator[None]:
    """Silences transformers inside the block, whose warnings one sentence of ours replaces; with `bars` its progress bars too."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with without_bars() if bars else nullcontext():
            yield
    finally:
        logging.set_verbosity(level)


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads weights from."""
    for pattern, _ in WEIGHT_FILES:
        if files := sorted(folder.glob(pattern)):
            return files
    return []


def _check_files(folder: Path) -> None:
    """UserError for a file of the model's folder that is empty, cannot be read or only points to the real one."""
    indices = (folder / index for _, index in WEIGHT_FILES)
    for file in (folder / "config.json", *weight_files(folder), *filter(Path.exists, indices)):
        check_file(file)
    read_json(folder / "config.json")  # transformers' own reader takes the last of two equal keys


def _check_kind(source: str, config: Any) -> None:
    """UserError unless it is a plain language model: a multimodal model's text part alone, or quantised weights without their
    scales, would be a different model."""
    if config.get_text_config() is not config:
        raise UserError(f"{source}: is a {config.model_type} model of more than text; give a model of text alone")
    if quantised := getattr(config, "quantization_config", None):
        method = quantised.get("quant_method", "some method") if isinstance(quantised, Mapping) else quantised
        raise UserError(f"{source}: its weights are quantised ({method}); give them in float32, bfloat16 or float16")


def _check_padding(source: str, config: Any) -> None:
    """UserError for a padding id outside the vocabulary."""
    padding, size = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    if isinstance(padding, int) and isinstance(size, int) and not -size <= padding < size:
        raise UserError(
            f"{source}: pad_token_id is {padding} in its config.json, and its vocabulary has {size} tokens; give one of these, or null"
        )


def _check_complete(source: str, model: Any, loaded: Mapping[str, Any]) -> None:
    """UserError for weights that transformers has drawn at random, and for those in the files that the model does not take.

    A tied weight is its twin's; transformers itself leaves out what the model declares that it ignores
    (_keys_to_ignore_on_load_unexpected).
    """
    missing = sorted(set(loaded["missing_keys"]) - set(getattr(model, "all_tied_weights_keys", {})))
    unexpected = sorted(loaded["unexpected_keys"])
    prefix = next((p for p in PREFIXES if unexpected and all(key.startswith(p) for key in unexpected)), "")
    if missing and prefix:
        raise UserError(f"{source}: its weights are under names that begin with '{prefix}'; save the model inside")
    shapes = sorted(
        ((key, "x".join(map(str, there)), "x".join(map(str, own))) for key, there, own in loaded["mismatched_keys"])
    )
    if shapes:
        key, there, own = shapes[0]
        raise UserError(
            f"{source}: has {key} of shape {there} where its config.json asks for {own}{_more(shapes)}; {RESTORE}"
        )
    for keys, what in (
        (missing, "lacks"),
        (unexpected, "holds weights that a model of its config.json does not take:"),
    ):
        if keys:
            raise UserError(f"{source} {what} {keys[0]}{_more(keys)}; {RESTORE}")
    ends = [e.weight for e in (model.get_input_embeddings(), model.get_output_embeddings()) if e is not None]
    if len(ends) == 2 and getattr(model.config, "tie_word_embeddings", False) and ends[0] is not ends[1]:
        raise UserError(
            f"{source}: its config.json ties the embeddings, and its files hold two that differ; set tie_word_embeddings to false there"
        )


PREFIXES = ("module.", "_orig_mod.", "model._orig_mod.", "base_model.model.")
"""What wrappers (data parallelism, torch.compile, adapters) put before the names of a model's weights."""
RESTORE = "restore its files, which must belong together"


def _more(keys: Sequence[Any]) -> str:
    return f" and {len(keys) - 1} more weights" if len(keys) > 1 else ""


def _check_types(source: str, folder: Path, model: Any = None) -> None:
    """UserError for weights whose numbers mean nothing without scales, which loading in float32 would pass over.

    Before there is a model, whole numbers pass: masks and positions are made of them.
    """
    own = dict(model.named_parameters()) if model is not None else {}

    def is_weight(name: str) -> bool:
        return any(name == key or name.endswith(f".{key}") or key.endswith(f".{name}") for key in own)

    for file in weight_files(folder):
        with reading(f"{source}: {file.name}", "weights"):
            kinds = _types_in(file)
        for name, kind in kinds.items():
            if kind not in KINDS and (kind not in WHOLE or is_weight(name)):
                raise UserError(f"{source}: {name} is stored as {kind}; give the weights in one of {', '.join(KINDS)}")


KINDS = ("float16", "bfloat16", "float32", "float64")
WHOLE = ("bool", "uint8", "int8", "int16", "int32", "int64")
"""What masks and positions that are stored beside the weights are made of."""


def _types_in(file: Path) -> dict[str, str]:
    """Name -> type of every tensor in a file of weights, or why it has no plain values."""
    if file.suffix == ".bin":
        # Files of torch before 1.6 are no archives.
        held = torch.load(file, weights_only=True, mmap=zipfile.is_zipfile(file), map_location="cpu")
        return {name: _type_of(value) for name, value in held.items() if isinstance(value, Tensor)}
    from safetensors import safe_open

    names = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "BOOL": "bool", "U8": "uint8"}
    names |= {f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)}
    with safe_open(file, "pt") as opened:
        kinds = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    return {name: names.get(kind, kind) for name, kind in kinds.items()}


def _type_of(tensor: Tensor) -> str:
    kind = "meta" if tensor.is_meta else tensor.dtype if tensor.layout == torch.strided else tensor.layout
    return str(kind).removeprefix("torch.")


def load_tokenizer(name: str, revision: str | None = None, flag: str = "--model") -> Any:
    """UserError when the model has none that can be read."""
    from transformers import AutoTokenizer

    place = _place(name, flag)
    for file in (Path(place) / known for known in TOKENIZER_FILES):
        if file.exists():
            check_file(file)
    mend = "put the tokenizer's files beside the model, of a version that this transformers reads"
    with reading(f"{flag}: '{name}'", "a model with a tokenizer", mend), _quiet():
        return AutoTokenizer.from_pretrained(place, revision=revision)


def _place(name: str, flag: str) -> str:
    """What from_pretrained takes. UserError for what is no folder of a model, and for a model of studycore's that has not
    been fetched."""
    check_local(flag, name)
    place = locate(name)
    if Path(place).is_file():
        raise UserError(f"{flag}: '{name}' is a file; give the Hugging Face model folder that holds it")
    if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        raise UserError(f"{flag}: the folder '{name}' holds no config.json; give a Hugging Face model folder")
    return place


def context_of(model: Any) -> int:
    """Positions that the model knows."""
    known = (getattr(model.config, name, None) for name in ("max_position_embeddings", "n_positions"))
    return next((int(positions) for positions in known if positions is not None), 2**31)


def vocabulary_of(model: Any) -> int:
    """Tokens that the model has embeddings and logits for."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return min(len(end.weight) for end in ends if end is not None)


def check_tokens(tokens: Iterable[int], tokenizer: Any, vocabulary: int, where: str, source: str) -> None:
    """UserError for a token that a model of so many has no embedding for: the tokenizer is another model's.

    `source` is the setting with its value, `where` what holds the tokens.
    """
    largest = max(tokens, default=-1)
    if largest >= vocabulary:
        raise UserError(
            f"{source}: the tokenizer knows {len(tokenizer)} tokens and the model {vocabulary}: "
            f"'{tokenizer.convert_ids_to_tokens(largest)}' (token {largest}) stands in the {where}; give the tokenizer that belongs to the model"
        )


def bos_of(tokenizer: Any, policy: str = "tokenizer", field: str = "bos") -> int | None:
    """The beginning-of-text token that every window begins with, or None: what the tokenizer does by itself decides, unless
    the policy is "always" or "never". UserError names `field` where there is no such token to begin with."""
    first: int | None = tokenizer.bos_token_id
    if policy == "always" and first is None:
        raise UserError(f"{field}: always, and the model's tokenizer has no beginning-of-text token; give never")
    by_itself = first is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [first]
    return first if policy == "always" or (policy == "tokenizer" and by_itself) else None


def beginning(tokenizer: Any, policy: str = "tokenizer") -> tuple[list[int], str]:
    """([the token that every window begins with, if any, see bos_of], what results say of it).

    Without it each activation of a model whose tokenizer puts it there by itself is one that the model never has.
    """
    first = bos_of(tokenizer, policy)
    if first is None:
        return [], "none"
    return [first], f"every window begins with '{tokenizer.convert_ids_to_tokens(first)}'"


def weights_fingerprint(model: Any) -> str:
    """SHA-256 of all weights, with their names."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def architecture_of(model: Any) -> dict[str, Any]:
    """The model's transformers configuration, every value of it: what build_model makes it from."""
    values: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return values


def build_model(architecture: Mapping[str, Any]) -> Any:
    """An untrained model of a stored transformers configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(architecture)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))


def probe_inputs(model: Any) -> dict[str, Tensor]:
    """A fixed sequence of tokens, on whose logits a checkpoint is checked when it is loaded."""
    return {"input_ids": (torch.arange(max(min(PROBE_TOKENS, context_of(model)), 1)) * 37 % vocabulary_of(model))[None]}


@torch.no_grad()
def _logits_with_two_ends(model: Any) -> Tensor:
    """Logits [2, T, V] of the fixed sequence, once with another token at its end."""
    ids_T = probe_inputs(model)["input_ids"][0]
    other_T = torch.cat([ids_T[:-1], (ids_T[-1:] + 1) % vocabulary_of(model)])
    logits: Tensor = model.eval()(input_ids=torch.stack([ids_T, other_T]), use_cache=False).logits
    return logits.float()


def replay_probe(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Logits after the fixed sequence."""
    with evaluating(model) as device:
        logits = model(input_ids=inputs["input_ids"].to(device), use_cache=False).logits[:, -1].float()
    return {"output_logits": logits}


# -------------------------------------------------------------------------------------------------------- datasets
def hub_rows(
    name: str,
    split: str,
    columns: Sequence[str],
    subset: str | None = None,
    revision: str | None = None,
    flag: str = "--dataset",
) -> Iterator[dict[str, Any]]:
    """The rows of a dataset of the hub, or of a folder in its form, streamed: no more than is used is fetched.

    UserError when there is none, or when it lacks one of the columns.
    """
    import datasets

    if not Path(name).exists():
        print(f"reading the dataset {name} ({split}) from the Hugging Face hub")
    with reading(f"{flag}: '{name}'", f"a dataset with a split '{split}'", "check the name, the split and the network"):
        rows = datasets.load_dataset(name, subset, split=split, streaming=True, revision=revision)
        there = rows.column_names
        if there is not None and (lacking := sorted(set(columns) - set(there))):
            raise UserError(f"{flag}: '{name}' has no column '{lacking[0]}'; there are {', '.join(there)}")
        yield from rows
