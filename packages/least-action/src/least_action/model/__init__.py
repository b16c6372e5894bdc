"""The networks (networks.py), their routing, and what makes a pass over the finite input set cheap."""

from least_action.model.networks import (
    BaselineMLP,
    GrokTransformer,
    OneHotModel,
    Output,
    PairForward,
    PairModel,
    RoutedNetwork,
    build_model,
    count_trained_values,
    create_model,
    probe_inputs,
    replay_probe,
    total_norm,
    trainable_parameters,
    unstarted,
)

__all__ = [
    "BaselineMLP",
    "GrokTransformer",
    "OneHotModel",
    "Output",
    "PairForward",
    "PairModel",
    "RoutedNetwork",
    "build_model",
    "count_trained_values",
    "create_model",
    "probe_inputs",
    "replay_probe",
    "total_norm",
    "trainable_parameters",
    "unstarted",
]
