"""What a stage trains, and its forward pass.

coverage    cross-entropy of the operations decoded from samples of encoder A's code, and its KL divergence
hierarchy   the radii of the projected code of `view`; and the cross-entropy, where encoder A or the decoder is not frozen
joint       both

What a stage leaves alone gives the same output for an operation in every step: restructured, it is computed once for all
training operations and looked up, which changes nothing but rounding.

Shapes: N operations of a batch (of this process), D latent dimensions.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from studycore.streams import generator
from ternary_vae.config import TrainConfig
from ternary_vae.losses import (
    RADIAL,
    Targets,
    Weights,
    geodesic,
    kl_divergence,
    kl_parts,
    level_moments,
    reconstruction,
)
from ternary_vae.model import Code, TernaryVAEV5_11_PartialFreeze
from ternary_vae.operations import Operations

ENCODER = {"a": "encoder_A", "b": "encoder_B"}
Rows = dict[str, Tensor]
TAU_RAMP = 0.7
"""geodesic: share of the epochs over which tau rises from 0 to 1."""


def views(config: TrainConfig, stage: str) -> tuple[str, ...]:
    """Encoders whose radii the stage's loss orders."""
    if stage == "coverage":
        return ()
    return ("a", "b") if config.view == "both" else (config.view,)


def decodes(config: TrainConfig, stage: str) -> bool:
    """Whether the stage's loss has the reconstruction in it: where encoder A or the decoder may move."""
    if stage == "hierarchy":
        return config.coverage_weight > 0 and not {"encoder_A", "decoder_A"} <= set(config.hierarchy_frozen)
    return True


def reached_parts(config: TrainConfig, stage: str) -> set[str]:
    """Parts of the model that the stage's loss depends on."""
    parts = {"encoder_A", "decoder_A"} if decodes(config, stage) else set()
    parts |= {ENCODER[view] for view in views(config, stage)}
    if stage != "coverage":
        parts.add("projection")
        if config.use_controller and config.loss == "geodesic":
            parts.add("controller")
    return parts


def trained_parts(config: TrainConfig, stage: str) -> list[str]:
    """Parts that the stage trains: reached by its loss and not frozen."""
    return sorted(reached_parts(config, stage) - set(config.frozen(stage)))


def set_trained(model: TernaryVAEV5_11_PartialFreeze, config: TrainConfig, stage: str) -> dict[str, nn.Parameter]:
    """Makes exactly the stage's parameters trainable and returns them by name."""
    parts = trained_parts(config, stage)
    used = views(config, stage)
    for name, parameter in model.named_parameters():
        part, _, rest = name.partition(".")
        wanted = part in parts
        if part == "projection":
            projections = {id(model.projection.of(view)): view for view in used}
            owner = model.projection.proj_A if rest.startswith("proj_A") else model.projection.proj_B
            wanted = wanted and id(owner) in projections
            # Losses of the radii alone never look at directions.
            wanted = wanted and (config.loss == "geodesic" or ".radius_net." in name)
        if part in ENCODER.values() and ".fc_logvar." in name:
            wanted = wanted and samples(config, stage, "a" if part == "encoder_A" else "b")
        parameter.requires_grad_(wanted)
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def set_mode(model: TernaryVAEV5_11_PartialFreeze, config: TrainConfig, stage: str) -> None:
    """Training mode for what the stage trains; the rest is left as it is in evaluation, without dropout."""
    parts = trained_parts(config, stage)
    for name, part in model.named_children():
        part.train(name in parts)


def samples(config: TrainConfig, stage: str, view: str) -> bool:
    """Whether the stage draws samples of this encoder's code: only then is its log variance part of the loss."""
    decoded = view == "a" and decodes(config, stage) and config.coverage_code == "sample"
    return decoded or (config.code == "sample" and view in views(config, stage))


def noise(config: TrainConfig, stage: str, view: str, step: int, rows: int) -> Tensor:
    """Standard normal noise for the global batch of a step [N, D], float64: a function of (seed, step)."""
    draw = generator(config.seed, "noise", stage, view, step)
    return torch.randn(rows, config.latent_dim, generator=draw, dtype=torch.float64)


class StageForward(nn.Module):
    """One stage's forward pass: per-operation rows, from which the loss is made once they are gathered."""

    def __init__(self, model: TernaryVAEV5_11_PartialFreeze, config: TrainConfig, stage: str, training: Operations):
        super().__init__()
        self.model, self.config, self.stage = model, config, stage
        self.views = views(config, stage)
        self.decodes = decodes(config, stage)
        plain = config.forward == "plain"
        frozen = set(ENCODER.values()) - set(trained_parts(config, stage))
        needed = {"a"} if self.decodes else set()
        needed |= {"a", "b"} if plain else set(self.views)
        self.plain, self.needed = plain, sorted(needed)
        self.tables: dict[str, Code] = {}
        if not plain:
            with torch.no_grad():
                model.eval()
                for view in self.needed:
                    if ENCODER[view] in frozen:
                        self.tables[view] = model.encode(training.x_NM, view)
                set_mode(model, config, stage)

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
            sampled = samples(self.config, self.stage, view)
            if sampled:
                rows[f"kl_{view}"] = kl_parts(code)
            if view == "a" and (self.decodes or self.plain):
                decoded_sample = self.config.coverage_code == "sample" and "a" in noise_ND
                z_ND = code.sample(noise_ND["a"].to(code.mu_ND)) if decoded_sample else code.mu_ND
                rows["ce"] = reconstruction(self.model.decoder_A(z_ND), batch.target_NM)
            if view in self.views or (self.plain and self.stage != "coverage"):
                z_ND = (
                    code.sample(noise_ND[view].to(code.mu_ND))
                    if self.config.code == "sample" and view in noise_ND
                    else code.mu_ND
                )
                projection = self.model.projection.of(view)
                if self.config.loss == "geodesic" or self.plain:
                    point = projection(z_ND)
                    rows |= {f"rho_{view}": point.rho_N, f"norm_{view}": point.norm_N, f"z_{view}": point.z_hyp_ND}
                else:
                    rows[f"rho_{view}"], rows[f"norm_{view}"] = projection.radius(z_ND)
        return rows


class StageLoss:
    """The loss of a stage from the gathered rows of a batch."""

    def __init__(self, config: TrainConfig, stage: str, variance_L: Tensor, device: str, controller: nn.Module | None):
        self.config, self.stage = config, stage
        self.targets = Targets(*(t.to(device) for t in Targets.of(config, variance_L)))
        self.weights = Weights.of(config)
        self.controller = controller if "controller" in reached_parts(config, stage) else None
        self.trained = trained_parts(config, stage)

    def __call__(self, rows: Rows, batch: Operations, step: int, epoch: int) -> Rows:
        """The terms, weighted; their sum is the loss."""
        config, parts = self.config, {}
        scales = self._controlled(rows)
        if decodes(config, self.stage):
            parts["coverage"] = config.coverage_weight * rows["ce"].mean()
        kl_weight = config.kl_weight * min(1.0, (epoch + 1) / max(1, config.kl_warmup_epochs))
        for view, encoder in ENCODER.items():
            if f"kl_{view}" in rows and encoder in self.trained:
                kl = kl_divergence(rows[f"kl_{view}"], config.free_bits)
                parts[f"kl_{view}"] = kl_weight * scales.get(f"beta_{view.upper()}", 1.0) * kl
        for view in views(config, self.stage):
            r_N = rows[f"rho_{view}" if config.radius == "hyperbolic" else f"norm_{view}"]
            if config.loss == "geodesic":
                found = geodesic(
                    rows[f"z_{view}"], r_N, batch.v_N, batch.index_N, self._pairs(step, len(r_N)).to(r_N.device),
                    self.targets, config, scales.get("tau", min(1.0, (epoch + 1) / (TAU_RAMP * config.epochs))),
                    (scales.get("weight_geodesic", 1.0), config.radial_weight * scales.get("weight_radial", 1.0),
                     config.rank_loss_weight),
                )  # fmt: skip
            else:
                found = RADIAL[config.loss](r_N, batch.v_N, batch.place_N, self.targets, self.weights)
            parts |= {f"{name}_{view}" if config.view == "both" else name: value for name, value in found.items()}
        return parts

    def _pairs(self, step: int, rows: int) -> Tensor:
        return torch.randint(rows, (2, self.config.n_pairs), generator=generator(self.config.seed, "pairs", step))

    def _controlled(self, rows: Rows) -> dict[str, Tensor]:
        """The controller's weights from the batch's statistics: mean and spread of radii, means of what else there is."""
        if self.controller is None:
            return {}
        statistics = []
        for view in ("a", "b"):
            # By the stage, not by what is there: the plain forward pass gives more rows.
            r_N = rows[f"rho_{view}"] if view in views(self.config, self.stage) else None
            statistics += [torch.tensor(0.0), torch.tensor(0.0)] if r_N is None else [r_N.mean(), r_N.std()]
            statistics.append(rows[f"kl_{view}"].sum(1).mean() if f"kl_{view}" in rows else torch.tensor(0.0))
        statistics += [rows["ce"].mean() if self.stage == "joint" else torch.tensor(0.0), torch.tensor(1.0)]
        like = next(self.controller.parameters())
        stacked = torch.stack([value.detach().to(like) for value in statistics])
        weights: dict[str, Tensor] = self.controller(stacked)
        return weights


def first_variances(r_N: Tensor, v_N: Tensor, trits: int) -> Tensor:
    """Population variance of the radius within each level [L], float64, over all operations."""
    return level_moments(r_N.double(), v_N, trits + 1)[2]
