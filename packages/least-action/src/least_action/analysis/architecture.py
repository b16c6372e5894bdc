"""Layers of a model by index, by component and in words. A layer is a module that owns parameters."""

from collections.abc import Mapping
from typing import Any

GROUPS = {
    "routing": {"gate", "state_proj", "input_proj", "state_init", "state_update"},
    "embeddings": {"token", "position", "input"},
    "attention": {"query", "key", "value", "out"},
    "norms": {"norm", "norm1", "norm2", "final_norm"},
    "output": {"head"},
}
"""Component -> names of modules, the first that a layer's path holds; other layers are feed-forward."""


def get_layer_names(config: Mapping[str, Any]) -> dict[int, str]:
    """Index -> name of each layer of the model of a configuration, such as {0: "token", 1: "position", ...}."""
    import torch

    from least_action.model import build_model

    with torch.random.fork_rng(devices=[]):
        model = build_model(dict(config))
    return dict(enumerate(dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters())))


def get_layer_groups(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """Component (embeddings, attention, feed-forward, norms, routing, output) -> indices of its layers."""
    groups: dict[str, list[int]] = {}
    for index, name in get_layer_names(config).items():
        groups.setdefault(layer_group(name), []).append(index)
    return groups


def layer_group(name: str) -> str:
    """The component of a layer."""
    return next((group for group, words in GROUPS.items() if words & set(name.split("."))), "feed-forward")


def get_layer_display_name(config: Mapping[str, Any], index: int) -> str:
    """The layer's component and name. ValueError for an index that the model does not have."""
    names = get_layer_names(config)
    if index not in names:
        raise ValueError(f"index: {index} is no layer; the model has 0 to {len(names) - 1}")
    return f"{layer_group(names[index])}: {names[index]}"
