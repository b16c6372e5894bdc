"""What a stage trains, and its forward pass from operations to the rows of which its loss is made.

What a stage leaves alone gives the same output for an operation in every step: restructured, it is computed once for all
training operations and looked up, which changes nothing but rounding.

Shapes: N operations of a batch (of this process), D latent dimensions.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from studycore.streams import generator
from ternary_vae.config import TrainConfig
from ternary_vae.data import Operations
from ternary_vae.losses import Rows, reconstruction
from ternary_vae.model import Code, TernaryVAE, kl_parts
from ternary_vae.stages import ENCODER, Stage


def set_trained(model: TernaryVAE, config: TrainConfig, stage: Stage) -> dict[str, nn.Parameter]:
    """Makes exactly the stage's parameters trainable and returns them by name."""
    projections = {id(model.projection.of(view)) for view in stage.views}
    for name, parameter in model.named_parameters():
        part, _, rest = name.partition(".")
        is_trained = part in stage.trained
        if part == "projection":
            owner = model.projection.proj_A if rest.startswith("proj_A") else model.projection.proj_B
            # Losses of the radii alone never look at directions; a decoder of points does.
            decoded = model.in_ball and stage.decodes
            whole = config.loss == "geodesic" or decoded
            is_trained = is_trained and (id(owner) in projections or decoded) and (whole or ".radius_net." in name)
        if part in ENCODER.values() and ".fc_logvar." in name:
            is_trained = is_trained and ("a" if part == "encoder_A" else "b") in stage.sampled
        parameter.requires_grad_(is_trained)
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def set_mode(model: TernaryVAE, stage: Stage) -> None:
    """Training mode for what the stage trains; the rest is left as it is in evaluation, without dropout."""
    for name, part in model.named_children():
        part.train(name in stage.trained)


def noise(config: TrainConfig, stage: str, view: str, update: int, rows: int) -> Tensor:
    """Standard normal noise for the global batch of an update [N, D], float64: a function of (seed, update)."""
    draw = generator(config.seed, "noise", stage, view, update)
    return torch.randn(rows, config.latent_dim, generator=draw, dtype=torch.float64)


class StageForward(nn.Module):
    """One stage's forward pass: per-operation rows, from which the loss is made once they are gathered."""

    def __init__(self, model: TernaryVAE, config: TrainConfig, stage: Stage, training: Operations):
        super().__init__()
        self.model, self.config, self.stage = model, config, stage
        self.plain = config.forward == "plain"
        needed = ({"a"} if stage.decodes else set()) | ({"a", "b"} if self.plain else set(stage.views))
        self.needed = sorted(needed)
        self.tables: dict[str, Code] = {}
        if not self.plain:
            with torch.no_grad():
                model.eval()
                for view in self.needed:
                    if ENCODER[view] not in stage.trained:
                        self.tables[view] = model.encode(training.x_NM, view)
                set_mode(model, stage)

    def code(self, view: str, x_NM: Tensor, positions_N: Tensor) -> Code:
        if view in self.tables:
            table = self.tables[view]
            return Code(table.mu_ND[positions_N], table.logvar_ND[positions_N])
        return self.model.encode(x_NM, view)

    def forward(self, batch: Operations, positions_N: Tensor, noise_ND: Mapping[str, Tensor]) -> Rows:
        """Rows of this process's operations: ce, kl_<view>, rho_<view>, norm_<view>, z_<view>."""
        rows: Rows = {}
        for view in self.needed:
            code = self.code(view, batch.x_NM, positions_N)
            latent = None
            if view == "a" and (self.stage.decodes or self.plain):
                latent = self.model.latent(code, noise_ND.get("a") if self.config.coverage_code == "sample" else None)
                rows["ce"] = reconstruction(self.model.logits(latent.decoded_ND), batch.target_NM)
            if view in self.stage.sampled:
                rows[f"kl_{view}"] = kl_parts(code) if latent is None else latent.kl_NK
            if view in self.stage.views or (self.plain and self.stage.views):
                z_ND = (
                    code.sample(noise_ND[view].to(code.mu_ND))
                    if self.config.code == "sample" and view in noise_ND
                    else code.mu_ND
                )
                projection = self.model.projection.of(view)
                if latent is not None and latent.point is not None:
                    point = latent.point
                    rows |= {"rho_a": point.rho_N, "norm_a": point.norm_N, "z_a": point.z_hyp_ND}
                elif self.config.loss == "geodesic" or self.plain:
                    point = projection(z_ND)
                    rows |= {f"rho_{view}": point.rho_N, f"norm_{view}": point.norm_N, f"z_{view}": point.z_hyp_ND}
                else:
                    rows[f"rho_{view}"], rows[f"norm_{view}"] = projection.radius(z_ND)
        return rows


def gather_rows(row_N: Tensor, rows: int, accelerator: Any) -> Tensor:
    """The whole batch's rows from each process's part, in the batch's order; gradients flow into the own part only."""
    world, rank = accelerator.num_processes, accelerator.process_index
    if world == 1:
        return row_N
    most = -(-rows // world)
    padded = row_N.new_zeros(most, *row_N.shape[1:])
    padded[: len(row_N)] = row_N.detach()
    parts: Tensor = accelerator.gather(padded)
    whole = parts.unflatten(0, (world, most)).transpose(0, 1).flatten(0, 1)[:rows].clone()
    whole[rank::world] = row_N
    return whole
