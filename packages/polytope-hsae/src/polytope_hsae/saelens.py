"""A hierarchical autoencoder in SAELens: an architecture of its own, with the codes that the model has.

    from polytope_hsae.saelens import register

    register()                                  # needs sae-lens 6, in an environment of its own
    sae = sae_lens.SAE.load_from_disk("flat")   # what `model.to_flat().save("flat")` wrote

No architecture of SAELens' own knows that a child waits for its parent. Shapes: B batch, F latents in all, M parents, L children.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from polytope_hsae.models import ARCHITECTURE
from studycore.errors import UserError


@cache
def register() -> Any:
    """The class, which SAE.load_from_disk knows from now on. UserError without sae-lens."""
    try:
        import sae_lens  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise UserError("sae-lens: is not installed; `pip install sae-lens`, in an environment of its own") from None
    base_config: Any = sae_lens.SAEConfig
    base: Any = sae_lens.SAE

    @dataclass
    class HierarchicalConfig(base_config):  # type: ignore[misc]
        """Of cfg.json; see polytope_hsae.models.SAEConfig."""

        m_top: int = 1
        topk_parent: int = 1
        m_low: int = 1
        topk_child: int = 1
        input_scale: float = 1.0

        @classmethod
        def architecture(cls) -> str:
            return ARCHITECTURE

    class HierarchicalSAELens(base[HierarchicalConfig]):  # type: ignore[misc]
        """For evaluation: parents by top-k, then the best children of each that is on."""

        def initialize_weights(self) -> None:
            super().initialize_weights()
            self.b_enc = nn.Parameter(torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device))
            self.norm = nn.Parameter(torch.ones(self.cfg.d_sae, dtype=self.dtype, device=self.device))

        def encode(self, x: Tensor) -> Tensor:
            """[B, F] codes of activations as they are."""
            m, low = self.cfg.m_top, self.cfg.m_low
            pre_BF = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc) / self.norm
            parent_BM, child_BML = pre_BF[..., :m], pre_BF[..., m:].unflatten(-1, (m, low))
            on_BM = _chosen(parent_BM, self.cfg.topk_parent) & (parent_BM > 0)
            child_BML = child_BML * (_chosen(child_BML, self.cfg.topk_child) & on_BM[..., None])
            codes_BF = torch.relu(torch.cat([parent_BM * on_BM, child_BML.flatten(-2)], -1))
            return self.hook_sae_acts_post(codes_BF * self.norm / self.cfg.input_scale)  # type: ignore[no-any-return]

        def decode(self, feature_acts: Tensor) -> Tensor:
            """[B, D]."""
            out = self.hook_sae_recons(feature_acts @ self.W_dec + self.b_dec)
            return self.reshape_fn_out(self.run_time_activation_norm_fn_out(out), self.d_head)  # type: ignore[no-any-return]

    sae_lens.register_sae_class(ARCHITECTURE, HierarchicalSAELens, HierarchicalConfig)
    return HierarchicalSAELens


def _chosen(pre: Tensor, count: int) -> Tensor:
    """Which are among the `count` largest of the last dimension."""
    return torch.zeros_like(pre, dtype=torch.bool).scatter(-1, pre.topk(count, dim=-1).indices, True)
