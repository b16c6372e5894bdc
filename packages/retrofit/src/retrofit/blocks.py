"""The feed-forward (FFN) blocks of a causal language model: their projections in one orientation, and the norm before them.

Shapes: I inputs of a projection, O its outputs; D the model's width, F the block's.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from studycore.errors import UserError


@dataclass(frozen=True)
class Projection:
    """A linear map inside a module; `module` is an nn.Linear, or transformers' Conv1D, which stores [I, O]."""

    name: str
    module: nn.Module

    @property
    def parameter(self) -> nn.Parameter:
        return self.module.weight  # type: ignore[return-value]

    @property
    def bias(self) -> nn.Parameter | None:
        return getattr(self.module, "bias", None)

    @property
    def transposed(self) -> bool:
        return type(self.module).__name__ == "Conv1D"

    @property
    def weight_OI(self) -> Tensor:
        """A view of the weight, whatever way it is stored."""
        return self.parameter.T if self.transposed else self.parameter

    def stored(self, x_OI: Tensor) -> Tensor:
        """`x_OI` in the orientation in which the module stores its weight."""
        return x_OI.T if self.transposed else x_OI


@dataclass(frozen=True)
class FeedForward:
    """One block: down(act(up(x))), or down(act(gate(x)) * up(x)) when it is gated."""

    name: str
    up: Projection
    down: Projection
    gate: Projection | None
    norm: nn.Module | None
    """The norm whose output goes into this block and nowhere else, and whose output is gain * x (+ bias); or None."""


NAMES = {
    ("c_fc", "c_proj", None): ("ln_2",),  # GPT-2, GPT-Neo
    ("dense_h_to_4h", "dense_4h_to_h", None): ("post_attention_layernorm",),  # GPT-NeoX, parallel residual or not
    ("up_proj", "down_proj", "gate_proj"): ("post_attention_layernorm",),  # Llama, Mistral, Qwen
}
"""(up, down, gate) -> names of the norm that feeds only the block."""
PLAIN_NORMS = ("gpt2", "gpt_neo", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")
"""Model types whose norm is of that kind for sure. Gemma's gain is 1 + weight; others norm elsewhere."""


def find_blocks(model: Any) -> list[FeedForward]:
    """The FFN blocks in order of depth. UserError when there is none of a known kind."""
    modules = dict(model.named_modules())
    foldable = model.config.model_type in PLAIN_NORMS
    blocks = []
    for name, module in modules.items():
        for (up, down, gate), norms in NAMES.items():
            if not all(_is_linear(getattr(module, part, None)) for part in (up, down, gate) if part):
                continue
            parent = modules[name.rpartition(".")[0]]
            norm = next((getattr(parent, n) for n in norms if hasattr(parent, n)), None) if foldable else None
            parts = [Projection(f"{name}.{part}", getattr(module, part)) if part else None for part in (up, down, gate)]
            assert parts[0] is not None and parts[1] is not None
            blocks.append(FeedForward(name, parts[0], parts[1], parts[2], norm))
    if not blocks:
        known = "; ".join("/".join(part for part in names if part) for names in NAMES)
        raise UserError(
            f"--model: {type(model).__name__} has no feed-forward blocks of a known kind ({known}); use such a model"
        )
    return blocks


def find_matrices(model: Any, embeddings: bool = False) -> list[Projection]:
    """Every linear map, and on request every embedding, in order; a tied weight once."""
    seen: set[int] = set()
    matrices = []
    tables = {id(e.weight) for e in (model.get_input_embeddings(), model.get_output_embeddings()) if e is not None}
    for name, module in model.named_modules():
        table = isinstance(module, nn.Embedding) or (_is_linear(module) and id(module.weight) in tables)
        if not (table and embeddings) and (table or not _is_linear(module)):
            continue
        if id(module.weight) not in seen:
            seen.add(id(module.weight))
            matrices.append(Projection(name, module))
    return matrices


def _is_linear(module: Any) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


@torch.no_grad()
def up_norms(blocks: list[FeedForward]) -> list[float]:
    """Frobenius norms of the up projections."""
    return torch.stack(torch._foreach_norm([b.up.parameter for b in blocks])).tolist()
