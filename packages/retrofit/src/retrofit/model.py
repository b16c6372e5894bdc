"""retrofit's side of a loaded model: its dropout, and saving it as an ordinary Hugging Face folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studycore.language import pretrained
from studycore.language.progress import without_bars


def load_model(name: str, revision: str | None = None, dropout: float = 0.0) -> tuple[Any, str | None]:
    """(model in float32 with that dropout everywhere, no layer left out at random, the hub's commit or None).

    The dropout that its configuration had is in `model.own_dropout`, for save_model. UserError as pretrained.load_model.
    """
    own_dropout: dict[str, float] = {}

    def adapt(config: Any) -> None:
        own_dropout.update(dropout_of(config))
        _set(config, dict.fromkeys(own_dropout, dropout) | ({"layerdrop": 0.0} if "layerdrop" in own_dropout else {}))

    model, commit = pretrained.load_model(name, revision, adapt=adapt)
    model.own_dropout = own_dropout
    return model, commit


def dropout_of(config: Any) -> dict[str, float]:
    """The dropout rates in a transformers configuration, by key; also OPT's of whole layers."""
    return {
        key: value
        for key, value in config.to_dict().items()
        if ("dropout" in key or "pdrop" in key or key == "layerdrop")
        and isinstance(value, float | int)
        and not isinstance(value, bool)
    }


def _set(config: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        setattr(config, key, value)


def save_model(model: Any, tokenizer: Any, folder: Path, own_dropout: Mapping[str, float]) -> None:
    """An ordinary Hugging Face folder; `own_dropout`, what load_model found, stands in its configuration again."""
    used = dropout_of(model.config)
    _set(model.config, own_dropout)
    try:
        with without_bars():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    finally:
        _set(model.config, used)
