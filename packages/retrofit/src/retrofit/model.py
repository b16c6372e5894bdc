"""Loading a causal language model from the hub, a folder, or the one that comes with the studies; saving and rebuilding it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retrofit.config import check_local
from studycore.errors import UserError

PROBE_TOKENS = 12


def locate(name: str) -> str:
    """What from_pretrained takes. UserError for a model of studycore's that has not been fetched."""
    from studycore.language import embedded

    return embedded.locate(name)


def load_model(name: str, revision: str | None = None, dropout: float = 0.0) -> tuple[Any, str | None]:
    """(model in float32 with that dropout everywhere, the hub's commit or None).

    The dropout that its configuration had is in `model.own_dropout`, for save_model. UserError when there is no such
    model, or weights that its configuration asks for are missing or of another shape.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    place = _place(name)
    quiet = not logging.is_progress_bar_enabled()
    if Path(place).exists():
        logging.disable_progress_bar()
    else:
        print(f"loading the model {name} from the Hugging Face hub")
    try:
        config = AutoConfig.from_pretrained(place, revision=revision)
        own_dropout = dropout_of(config)
        _set(config, dict.fromkeys(own_dropout, dropout))
        both: Any = AutoModelForCausalLM.from_pretrained(
            place, revision=revision, config=config, dtype=torch.float32, output_loading_info=True
        )
        model, loaded = both
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(
            f"--model: '{name}' cannot be loaded: {_first_sentence(error)}; give a hub id or a folder"
        ) from None
    finally:
        if not quiet:
            logging.enable_progress_bar()
    _check_complete(name, model, loaded)
    model.own_dropout = own_dropout
    return model, getattr(config, "_commit_hash", None)


def _check_complete(name: str, model: Any, loaded: Mapping[str, Any]) -> None:
    """UserError for weights that transformers has drawn at random; a tied one is its twin's."""
    missing = sorted(set(loaded["missing_keys"]) - set(getattr(model, "all_tied_weights_keys", {})))
    mismatched = sorted(key if isinstance(key, str) else key[0] for key in loaded["mismatched_keys"])
    for keys, what in ((missing, "lacks"), (mismatched, "has another shape of")):
        if keys:
            more = f" and {len(keys) - 1} more weights" if len(keys) > 1 else ""
            raise UserError(f"--model: '{name}' {what} {keys[0]}{more}; restore its weight files")


def dropout_of(config: Any) -> dict[str, float]:
    """The dropout rates in a transformers configuration, by key."""
    return {
        key: value
        for key, value in config.to_dict().items()
        if ("dropout" in key or "pdrop" in key) and isinstance(value, float | int) and not isinstance(value, bool)
    }


def _set(config: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        setattr(config, key, value)


def save_model(model: Any, tokenizer: Any, folder: Path, own_dropout: Mapping[str, float]) -> None:
    """An ordinary Hugging Face folder; `own_dropout`, what load_model found, stands in its configuration again."""
    from transformers.utils import logging

    enabled, used = logging.is_progress_bar_enabled(), dropout_of(model.config)
    logging.disable_progress_bar()
    _set(model.config, own_dropout)
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    finally:
        _set(model.config, used)
        if enabled:
            logging.enable_progress_bar()


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """UserError when the model has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(_place(name), revision=revision)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"--model: '{name}' has no tokenizer that can be loaded: {_first_sentence(error)}; put its tokenizer files beside it"
        ) from None


def _place(name: str) -> str:
    check_local("--model", name)
    place = locate(name)
    if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        raise UserError(f"--model: the folder '{name}' holds no config.json; give a Hugging Face model folder")
    return place


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0].rstrip(".")[:240]


def context_of(model: Any) -> int:
    """Positions that the model knows."""
    known = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    return int(known or 2**31)


def weights_fingerprint(model: Any) -> str:
    """SHA-256 of all weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------------------- checkpoints
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
    return {"input_ids": (torch.arange(PROBE_TOKENS) * 37 % model.config.vocab_size)[None]}


def replay_probe(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Logits after the fixed sequence."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"].to(device), use_cache=False).logits[:, -1].float()
    model.train(was_training)
    return {"output_logits": logits}
