"""What an arm is: its stages, the shape of its autoencoder and whether that fits, and what it starts from.

Shapes: N activations, D width.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from polytope_hsae.config import FLAT, TrainConfig
from polytope_hsae.data import Store
from polytope_hsae.models import HierarchicalSAE, SAEConfig, build_sae
from polytope_hsae.teacher import Teacher, initialise
from studycore.models import check_fits
from studycore.streams import derive_seed, generator

SCALE_SAMPLE = 8192
Frozen = Literal["nothing", "parents", "all"]
"""What of the decoder a stage leaves as it is."""


@dataclass(frozen=True)
class Stage:
    """Steps under one rule."""

    name: str
    steps: int
    lr_factor: float
    decoder_lr_factor: float
    beta: float
    frozen: Frozen
    causal_ortho: float
    first: int
    """Steps before it."""


def stages(config: TrainConfig) -> tuple[Stage, ...]:
    """A, with frozen parents and causal orthogonality, and B; one stage of as many steps for a baseline.

    Causal orthogonality is a function of decoders alone: it says something only where one of them may move. In stage A that is
    the children's, which come to stand across the parents that the teacher gave. (The original study froze them too, so that
    the term was a constant.) A decoder that is frozen to the end has none.
    """
    a_beta = config.top_level_beta if config.stage_a_beta is None else config.stage_a_beta
    b_beta = config.top_level_beta if config.stage_b_beta is None else config.stage_b_beta
    if not config.staged:
        return (Stage("B", config.total_steps, config.stage_b_lr_mult, 1.0, b_beta, "nothing", 0.0, 0),)
    always = config.arm == "frozen_random"
    ortho = 0.0 if always or config.arm == "no_causal_ortho" else config.causal_ortho_lambda
    first: Frozen = "all" if always else "parents" if config.stage_a_freeze_decoder else "nothing"
    last: Frozen = "all" if always else "nothing"
    return (
        Stage("A", config.stage_a_steps, config.stage_a_lr_mult, 1.0, a_beta, first, ortho, 0),
        Stage("B", config.stage_b_steps, config.stage_b_lr_mult, config.stage_b_decoder_lr_mult, b_beta, last, 0.0,
              config.stage_a_steps),
    )  # fmt: skip


def shape_of(config: TrainConfig, width: int, scale: float) -> SAEConfig:
    """Flat arms have as many latents in all, and as many active at once, as hierarchical ones."""
    topk_child = min(2, config.m_low) if config.arm == "top2" else config.topk_child
    if config.arm not in FLAT:
        return SAEConfig("hierarchical", width, config.m_top, config.topk_parent, config.subspace_dim, config.m_low, topk_child, scale)  # fmt: skip
    latents = config.m_top * (1 + config.m_low)
    inner = (config.m_top, min(latents, 3 * config.m_top)) if config.arm == "matryoshka" else ()
    kind: Any = config.arm
    return SAEConfig(kind, width, latents, config.topk_parent * (1 + topk_child), config.subspace_dim, config.m_low, topk_child, scale, inner)  # fmt: skip


def check_room(config: TrainConfig, width: int, device: str) -> None:
    """UserError for an autoencoder whose training does not fit into memory."""
    shape = shape_of(config, width, 1.0)
    # What every latent (of two levels, every parent) gives for a batch, and its gradient.
    dense = 2 * 4 * config.batch_size_acts * shape.m_top
    what = f"hsae.m_top, hsae.m_low: {config.m_top} and {config.m_low} at width {width}"
    check_fits(lambda: build_sae(shape), what, "lower them", device, dense)


def _sample(store: Store, indices: np.ndarray) -> Tensor:
    """[N, D] the training activations that give scale and mean; the same at every call."""
    drawn = torch.randperm(len(indices), generator=generator(0, "scale")).numpy()[:SCALE_SAMPLE]
    return store.rows(np.sort(indices[drawn]))


def start_values(config: TrainConfig, store: Store, indices: np.ndarray) -> dict[str, Any]:
    """The model's configuration: its scale is that of the training activations."""
    x_ND = _sample(store, indices)
    scale = float((x_ND - x_ND.mean(0)).square().sum(1).mean().rsqrt())
    shape = shape_of(config, store.width, scale)
    return {**vars(shape), "inner_widths": list(shape.inner_widths)}


def start_model(
    config: TrainConfig, values: dict[str, Any], store: Store, indices: np.ndarray, teacher: Teacher | None
) -> Any:
    """A new model: its bias is the mean, its decoder the teacher's where there is one."""
    shape = SAEConfig.from_stored(values)
    model = build_sae(shape, generator(config.seed, "weights"))
    with torch.no_grad():
        model.bias.copy_(_sample(store, indices).mean(0) * shape.input_scale)
    if teacher is not None and config.taught:
        assert isinstance(model, HierarchicalSAE)
        initialise(model, teacher, config)
    return model


def probe_inputs(width: int) -> dict[str, Tensor]:
    """Fixed activations, on whose reconstruction a checkpoint is checked."""
    return {"input": torch.randn(8, width, generator=torch.Generator().manual_seed(derive_seed(0, "probe")))}


def replay_probe(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    x = inputs["input"].to(model.bias.device) / model.config.input_scale
    return {"output": model(x) * model.config.input_scale}
