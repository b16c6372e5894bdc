"""What each parameter is for, and therefore whether weight decay applies to it: one rule for all models.

Roles: "embedding" (token tables and the MLPs' first layer, which on one-hot inputs is the same thing), "position",
"norm", "bias", "gate" (everything that only computes routing weights), "unembedding", "matrix" (all other weights).
A tied embedding counts as "embedding".
"""

from typing import Literal

from torch import nn

DECAYED = {
    "matrices": frozenset({"matrix", "unembedding"}),
    "all": frozenset({"embedding", "position", "norm", "bias", "unembedding", "matrix"}),
}
"""Weight-decay rules by name: "matrices" spares embeddings, biases and norms; "all" spares nothing but gates.

Gates are spared by both unless that is asked for: decay pulls them to uniform weights, where nothing is routed.
"""


class InputLinear(nn.Linear):
    """A linear layer on one-hot inputs."""


class PositionTable(nn.Embedding):
    """A table of learned position vectors."""


class GateLinear(nn.Linear):
    """A linear layer that only serves to compute routing weights.

    `start`: "default" as other layers; "small": Xavier with gain 0.1 and bias 0; "zero": everything 0.
    """

    def __init__(self, width: int, out: int, start: Literal["default", "small", "zero"] = "default"):
        super().__init__(width, out)
        self.start = start


class HeadsDown(nn.Linear):
    """The R down-projections F -> D of parallel heads side by side, without bias; each starts as a layer of its own."""

    def __init__(self, n_heads: int, hidden: int, width: int):
        super().__init__(n_heads * hidden, width, bias=False)
        self.fan_in = hidden


class Unembedding(nn.Linear):
    """The output layer."""


_ROLE_OF_MODULE: tuple[tuple[type[nn.Module], str], ...] = (
    (PositionTable, "position"),
    (nn.Embedding, "embedding"),
    (GateLinear, "gate"),
    (nn.LayerNorm, "norm"),
    (nn.RMSNorm, "norm"),
)
_ROLE_OF_WEIGHT: tuple[tuple[type[nn.Module], str], ...] = ((InputLinear, "embedding"), (Unembedding, "unembedding"))


def parameter_roles(model: nn.Module) -> dict[str, str]:
    """The role of every parameter by name, from the type of the module that owns it."""
    roles = {}
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            role = next((role for kind, role in _ROLE_OF_MODULE if isinstance(module, kind)), None)
            if role is None and "bias" in name:
                role = "bias"
            if role is None:
                role = next((role for kind, role in _ROLE_OF_WEIGHT if isinstance(module, kind)), "matrix")
            roles[f"{prefix}.{name}" if prefix else name] = role
    return roles


def decayed_parameters(model: nn.Module, rule: str, decay_gates: bool = False) -> set[str]:
    """Names of the parameters that weight decay applies to under `rule`, a key of DECAYED, gates where asked for."""
    decayed = DECAYED[rule] | ({"gate"} if decay_gates and rule == "all" else set())
    return {name for name, role in parameter_roles(model).items() if role in decayed}
