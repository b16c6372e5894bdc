"""The experiment's settings. Importing this module must stay cheap: no torch."""

from dataclasses import dataclass
from typing import Literal

@dataclass(frozen=True)
class TrainerConfig:
    p: int = 113
    operation: str = "add"
    train_frac: float = 0.3
    data_seed: int = 42
    seed: int = 42
    model_type: str = "routed"
    hidden_dim: int = 128
    n_layers: int = 4
    n_heads: int = 4
    routing_heads: int = 4
    freeze_gates: bool = False
    tie_embeddings: bool = False
    residual_norm: str = "layernorm"
    sphere_temperature: float = 10.0
    activation: str = "gelu"
    mlp_bias: bool = True
    init_std: float = 0.02
    dtype: str = "float32"
