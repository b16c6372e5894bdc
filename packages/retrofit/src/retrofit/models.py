"""Loading a causal language model from the hub, a folder, or the one that comes with the studies."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from retrofit.config import EMBEDDED_MODEL
from studycore.errors import UserError


def locate(name: str) -> str:
    """What from_pretrained takes."""
    if name != EMBEDDED_MODEL:
        return name
    from studycore.reference_lm import locate as packaged

    return packaged(name)


def load_model(name: str, revision: str | None = None, dropout: float = 0.0) -> tuple[Any, str | None]:
    """(model in float32 with that dropout everywhere, the hub's commit or None). UserError when there is no such model."""
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
        for key, value in config.to_dict().items():
            if ("dropout" in key or "pdrop" in key) and isinstance(value, float | int) and not isinstance(value, bool):
                setattr(config, key, dropout)
        model = AutoModelForCausalLM.from_pretrained(place, revision=revision, config=config, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--model: '{name}' cannot be loaded: {_first_sentence(error)}; give a hub id or a folder"
        ) from None
    finally:
        if not quiet:
            logging.enable_progress_bar()
    return model, getattr(config, "_commit_hash", None)


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """UserError when the model has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(_place(name), revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--model: '{name}' has no tokenizer that can be loaded: {_first_sentence(error)}; put its tokenizer files beside it"
        ) from None


def _place(name: str) -> str:
    place = locate(name)
    if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        raise UserError(f"--model: the folder '{name}' holds no config.json; give a Hugging Face model folder")
    return place


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0].rstrip(".")[:240]


def build_model(config: Mapping[str, Any]) -> Any:
    """An untrained model of a stored transformers configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(config)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))


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
