"""The feed-forward (FFN) blocks of a causal language model: their projections in one orientation, and the norm before them.

Shapes: I inputs of a projection, O its outputs; D the model's width, F the block's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from studycore.errors import UserError


@dataclass(frozen=True)
class Part:
    """A parameter, or the part of it that is one linear map."""

    parameter: nn.Parameter
    transposed: bool = False
    """Stored as [.., I, O]."""
    expert: int | None = None
    """Index of the matrix in a parameter that holds several."""
    rows: slice | None = None
    """Those of the outputs, where one matrix holds several maps."""

    def of(self, tensor: Tensor) -> Tensor:
        """The same part of a tensor of the parameter's shape (its gradient, a moment), [O, I]: a view."""
        matrix = tensor if self.expert is None else tensor[self.expert]
        matrix = matrix.T if self.transposed else matrix
        return matrix if self.rows is None else matrix[self.rows]

    @property
    def values(self) -> Tensor:
        return self.of(self.parameter)


@dataclass(frozen=True)
class Projection:
    """A linear map inside a model."""

    name: str
    weight: Part
    bias: Part | None = None
    module: nn.Module | None = None
    """The module that computes this map and no other, or None."""

    @property
    def weight_OI(self) -> Tensor:
        """A view of the weight, whatever way it is stored."""
        return self.weight.values


@dataclass(frozen=True)
class FeedForward:
    """One block: down(act(up(x))), or down(act(gate(x)) * up(x)) when it is gated. Each expert of a mixture is a block."""

    name: str
    up: Projection
    down: Projection
    gate: Projection | None
    norm: nn.Module | None
    """The norm whose output goes into this block and nowhere else, and whose output is gain * x (+ bias); or None."""

    @property
    def has_features(self) -> bool:
        """Whether what enters the down projection can be seen: an expert's runs through no module of its own."""
        return self.down.module is not None

    @property
    def projections(self) -> list[Projection]:
        return [self.up, *([self.gate] if self.gate else []), self.down]


@dataclass(frozen=True)
class Roles:
    """The names of the linear maps of a block, in the module that holds them."""

    up: str
    down: str
    gate: str | None = None
    """`up` again where one map computes both: the gate's outputs, then up's."""


KINDS = (
    Roles("c_fc", "c_proj"),  # GPT-2, GPT-Neo
    Roles("dense_h_to_4h", "dense_4h_to_h"),  # GPT-NeoX, Falcon
    Roles("fc1", "fc2"),  # OPT, whose layers hold them themselves
    Roles("up_proj", "down_proj", "gate_proj"),  # Llama, Mistral, Qwen2 and 3, Gemma 2 and 3
    Roles("gate_up_proj", "down_proj", "gate_up_proj"),  # Phi-3
)
NORMS = {
    "gpt2": ("ln_2",),
    "gpt_neo": ("ln_2",),
    "gpt_neox": ("post_attention_layernorm",),  # parallel residual or not
    "llama": ("post_attention_layernorm",),
    "mistral": ("post_attention_layernorm",),
    "qwen2": ("post_attention_layernorm",),
    "qwen3": ("post_attention_layernorm",),
    "phi3": ("post_attention_layernorm",),
    "opt": ("final_layer_norm",),
    "falcon": ("ln_mlp", "post_attention_layernorm"),  # neither where attention and block share one norm
}
"""Model type -> names, in a layer, of the norm that feeds only its block. Gemma's gain is 1 + weight; others norm elsewhere."""


def find_blocks(model: Any) -> list[FeedForward]:
    """The FFN blocks in order of depth, experts one by one. UserError when there is none of a known kind."""
    modules = dict(model.named_modules())
    blocks: list[FeedForward] = []
    for name, module in modules.items():
        blocks += experts_of(name, module)
        for roles in KINDS:
            if (block := _block(name, module, roles, _norm(model.config, modules, name))) is not None:
                blocks.append(block)
    if not blocks:
        known = "; ".join("/".join(dict.fromkeys(n for n in (r.up, r.down, r.gate) if n)) for r in KINDS)
        raise UserError(
            f"--model: {type(model).__name__} has no feed-forward blocks of a known kind ({known}); use such a model"
        )
    return blocks


def _block(name: str, module: nn.Module, roles: Roles, norm: nn.Module | None) -> FeedForward | None:
    """The block that the module holds under these names, or None."""
    up, down, gate = (getattr(module, part, None) if part else None for part in (roles.up, roles.down, roles.gate))
    if not (_is_linear(up) and _is_linear(down)) or (roles.gate and not _is_linear(gate)):
        return None
    fused, width = gate is up, _whole("", down).weight_OI.shape[1]
    if _whole("", up).weight_OI.shape[0] != (2 * width if fused else width):
        return None
    last = _whole(f"{name}.{roles.down}", down)
    if fused:
        of_gate, of_up = _halves(_whole(f"{name}.{roles.up}", up), concatenated=True)
        return FeedForward(name, of_up, last, of_gate, norm)
    of_gates = _whole(f"{name}.{roles.gate}", gate) if gate is not None else None
    return FeedForward(name, _whole(f"{name}.{roles.up}", up), last, of_gates, norm)


def _whole(name: str, module: Any) -> Projection:
    """The map of a module: an nn.Linear, or transformers' Conv1D, which stores [I, O]."""
    bias = getattr(module, "bias", None)
    weight = Part(module.weight, transposed=type(module).__name__ == "Conv1D")
    return Projection(name, weight, None if bias is None else Part(bias), module)


def _halves(both: Projection, concatenated: bool) -> tuple[Projection, Projection]:
    """(gate, up) of a map that computes both, one after the other or in turns."""
    half = both.weight_OI.shape[0] // 2
    rows = (slice(half), slice(half, None)) if concatenated else (slice(0, None, 2), slice(1, None, 2))
    gate, up = (
        Projection(
            f"{both.name}.{role}",
            Part(both.weight.parameter, both.weight.transposed, both.weight.expert, own),
            None if both.bias is None else Part(both.bias.parameter, expert=both.bias.expert, rows=own),
        )
        for role, own in zip(("gate", "up"), rows, strict=True)
    )
    return gate, up


def _norm(config: Any, modules: dict[str, Any], name: str) -> nn.Module | None:
    """The norm that feeds only the block of this name: of its layer, which holds the block or is it."""
    if config.model_type == "opt" and not config.do_layer_norm_before:
        return None  # then that norm comes after the block
    for holder in (modules[name.rpartition(".")[0]], modules[name]):
        for known in NORMS.get(config.model_type, ()):
            norm = getattr(holder, known, None)
            if getattr(norm, "weight", None) is not None:
                return norm  # type: ignore[no-any-return]
    return None


def declares_experts(module: Any) -> bool:
    """Whether the module holds the matrices of several experts in one parameter each, and says how they lie there.

    transformers (5) writes `has_gate`, `is_transposed` and `is_concatenated` into modules whose experts it may compute
    by other kernels. What does not say it is left out, and named: see left_out.
    """
    said = [getattr(module, name, None) for name in ("has_gate", "is_transposed", "is_concatenated")]
    if not all(isinstance(value, bool) for value in said):
        return False
    held = [getattr(module, name, None) for name in ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")]
    return all(isinstance(parameter, nn.Parameter) and parameter.ndim == 3 for parameter in held)


def experts_of(name: str, module: Any) -> Iterator[FeedForward]:
    """The blocks of a module that declares its experts; nothing of another one. No norm feeds one of them alone."""
    if not declares_experts(module):
        return

    def of_expert(expert: int, part: str) -> Projection:
        bias = getattr(module, f"{part}_bias", None)
        return Projection(
            f"{name}.{expert}.{part}",
            Part(getattr(module, part), module.is_transposed, expert),
            None if bias is None else Part(bias, expert=expert),
        )

    for expert in range(len(module.down_proj)):
        own, down = f"{name}.{expert}", of_expert(expert, "down_proj")
        if module.has_gate:
            gate, up = _halves(of_expert(expert, "gate_up_proj"), module.is_concatenated)
            yield FeedForward(own, up, down, gate, None)
        else:
            yield FeedForward(own, of_expert(expert, "up_proj"), down, None, None)


def find_matrices(model: Any, embeddings: bool = False) -> list[Projection]:
    """Every linear map, and on request every embedding, in order; a tied weight once.

    Gate and up projections that are stored as one, and the experts of a mixture, are maps of their own.
    """
    tables = {id(e.weight) for e in (model.get_input_embeddings(), model.get_output_embeddings()) if e is not None}
    of_blocks: dict[int, list[Projection]] = {}
    for block in find_blocks(model):
        for projection in block.projections:
            of_blocks.setdefault(id(projection.weight.parameter), []).append(projection)
    seen: set[int] = set()
    matrices = []
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in seen:
                continue
            if id(parameter) in of_blocks:
                held = of_blocks[id(parameter)]
            elif isinstance(module, nn.Embedding) or (_is_map(module) and id(parameter) in tables):
                held = [_whole(name, module)] if embeddings else []
            elif _is_map(module) and parameter is module.weight:
                held = [_whole(name, module)]
            else:
                continue
            seen.add(id(parameter))
            matrices += held
    return matrices


def roles_of_matrices(model: Any) -> dict[str, str]:
    """Name -> role of every matrix, embeddings too."""
    parts = {
        getattr(b, part).name: part for b in find_blocks(model) for part in ("up", "down", "gate") if getattr(b, part)
    }
    maps = {matrix.name for matrix in find_matrices(model)}

    def role(name: str) -> str:
        if name not in maps:
            return "embeddings"
        return parts.get(name, "attention" if "attn" in name or "attention" in name else "other")

    return {matrix.name: role(matrix.name) for matrix in find_matrices(model, embeddings=True)}


def weights_by_role(model: Any) -> dict[str, list[Part]]:
    """Every linear map and embedding by its role (up, down, gate, attention, embeddings, other), a tied weight once."""
    roles = roles_of_matrices(model)
    by_role: dict[str, list[Part]] = {}
    for matrix in find_matrices(model, embeddings=True):
        by_role.setdefault(roles[matrix.name], []).append(matrix.weight)
    return by_role


def _is_linear(module: Any) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _is_map(module: Any) -> bool:
    """Whether the module's weight is a linear map: those that route tokens to experts are no nn.Linear."""
    weight = getattr(module, "weight", None)
    routes = type(module).__name__.lower().endswith("router") and isinstance(weight, nn.Parameter) and weight.ndim == 2
    return _is_linear(module) or routes


@dataclass(frozen=True)
class LeftOut:
    """Weights with two or more dimensions of which it is not known what maps they are: nothing is done to them or with them."""

    names: tuple[str, ...]
    share: float
    """Of all weights with two or more dimensions, embeddings included."""
    layers: int = 0
    """Layers in which no feed-forward block was found."""
    unseen: int = 0
    """Blocks whose activations can't be measured: experts, which run through no modules of their own."""

    @property
    def of_weights(self) -> str:
        """Empty when all are looked at."""
        said = []
        if self.names:
            many = f"{len(self.names)} parameters such as " if len(self.names) > 1 else ""
            said.append(
                f"{100 * self.share:.3g} % of the matrix weights ({many}{self.names[0]}) are of no known kind: "
                "neither measured, penalised nor transported."
            )
        if self.layers:
            said.append(f"{self.layers} of the layers have no feed-forward block of a known kind.")
        return " ".join(said)

    @property
    def of_activations(self) -> str:
        """Empty when those of all blocks are measured."""
        return f"Activations of {self.unseen} experts are not measured." if self.unseen else ""

    @property
    def sentences(self) -> str:
        return " ".join(filter(None, (self.of_weights, self.of_activations)))


def left_out(model: Any) -> LeftOut:
    """What find_matrices and find_blocks do not find in a model."""
    blocks, matrices = find_blocks(model), find_matrices(model, embeddings=True)
    known = {id(matrix.weight.parameter) for matrix in matrices}
    # The biases of several experts lie in one matrix.
    biases = {id(p.bias.parameter) for block in blocks for p in block.projections if p.bias is not None}
    weights = {name: p for name, p in model.named_parameters() if p.ndim > 1 and id(p) not in biases}
    others = {name: parameter for name, parameter in weights.items() if id(parameter) not in known}
    share = sum(map(torch.numel, others.values())) / sum(map(torch.numel, weights.values()))
    depths = {next((int(part) for part in block.name.split(".") if part.isdigit()), 0) for block in blocks}
    layers = getattr(model.config, "num_hidden_layers", None) or len(depths)
    unseen = sum(not block.has_features for block in blocks)
    return LeftOut(tuple(others), share, max(layers - len(depths), 0), unseen)


@torch.no_grad()
def up_norms(blocks: list[FeedForward]) -> list[float]:
    """Frobenius norms of the up projections."""
    return torch.stack(torch._foreach_norm([b.up.weight_OI for b in blocks])).tolist()
