"""TernaryVAE: the model that is decoded and ordered in one point of the ball, and V5.11 of the original study.

decode ball  one encoder and one projection: the mean point is exp_0 of a distance and a direction, the posterior a wrapped
             normal distribution around it, the prior one around the origin; the decoder reads log_0 of the point
decode code  V5.11: two encoders, one decoder that reads encoder A's code, projections of the codes into the ball beside it,
             an optional controller

Shapes: N operations, M trits, D latent dimensions, H width of a projection.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studycore.streams import generator
from ternary_vae.bands import prior_std
from ternary_vae.config import ArchitectureConfig
from ternary_vae.data import trits_of
from ternary_vae.hyperbolic import displace, to_euclidean, to_hyperbolic, wrapped_kl

LOGVAR_RANGE = (-10.0, 2.0)
"""The log variance is clamped to it (V5.12.4)."""
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
PROBE_OPERATIONS = 32


class Code(NamedTuple):
    """What an encoder says of operations: the mean [N, D] and log variance [N, D] of a normal distribution."""

    mu_ND: Tensor
    logvar_ND: Tensor

    def sample(self, noise_ND: Tensor) -> Tensor:
        """mu + sigma * noise (Kingma and Welling 2014)."""
        return self.mu_ND + noise_ND * torch.exp(self.logvar_ND / 2)


class Latent(NamedTuple):
    """What is decoded [N, D], and the KL divergence from the prior [N, K], nats: of every dimension, or of the whole."""

    decoded_ND: Tensor
    kl_NK: Tensor
    point: "Point | None" = None
    """Of decode ball: the mean point."""


class Point(NamedTuple):
    """Points of the ball: hyperbolic distance from the origin [N], Euclidean norm [N], unit direction [N, D]."""

    rho_N: Tensor
    norm_N: Tensor
    direction_ND: Tensor

    @property
    def z_hyp_ND(self) -> Tensor:
        return self.norm_N[:, None] * self.direction_ND


def kl_parts(code: Code) -> Tensor:
    """KL divergence from the standard normal distribution [N, D], nats (Kingma and Welling 2014, appendix B)."""
    mu_ND, logvar_ND = code
    return (mu_ND.square() + logvar_ND.exp() - 1 - logvar_ND) / 2


class Encoder(nn.Module):
    """Trits [N, M] to a Code."""

    def __init__(self, config: ArchitectureConfig):
        super().__init__()
        layers: list[nn.Module] = []
        width = config.trits
        for size in config.encoder_sizes:
            layers.append(nn.Linear(width, size))
            if config.encoder_norm:
                layers.append(nn.LayerNorm(size))
            layers.append(ACTIVATIONS[config.activation]())
            if config.encoder_dropout:
                layers.append(nn.Dropout(config.encoder_dropout))
            width = size
        self.encoder = nn.Sequential(*layers)
        self.fc_mu, self.fc_logvar = nn.Linear(width, config.latent_dim), nn.Linear(width, config.latent_dim)

    def forward(self, x_NM: Tensor) -> Code:
        h_NH = self.encoder(x_NM)
        return Code(self.fc_mu(h_NH), self.fc_logvar(h_NH).clamp(*LOGVAR_RANGE))


class Decoder(nn.Module):
    """Latent codes [N, D] to logits over -1, 0, 1 of each trit [N, M, 3]."""

    def __init__(self, config: ArchitectureConfig):
        super().__init__()
        layers: list[nn.Module] = []
        width = config.latent_dim
        for size in config.decoder_sizes:
            layers += [nn.Linear(width, size), ACTIVATIONS[config.activation]()]
            width = size
        self.decoder = nn.Sequential(*layers, nn.Linear(width, 3 * config.trits))
        self.trits = config.trits

    def forward(self, z_ND: Tensor) -> Tensor:
        logits: Tensor = self.decoder(z_ND)
        return logits.unflatten(-1, (self.trits, 3))


class HyperbolicProjection(nn.Module):
    """Latent codes [N, D] to points of the Poincare ball.

    direction = normalise(z + MLP(z)), the MLP's last layer starting at 0. The radius is the largest one times
    sigmoid(MLP(z)): as a hyperbolic distance, mapped by exp_0, so that the curvature is part of the function; or, with
    radius "euclidean", as a norm, as the original study had it.
    """

    def __init__(self, config: ArchitectureConfig):
        super().__init__()
        self.c, self.max_radius, self.hyperbolic = config.curvature, config.max_radius, config.radius == "hyperbolic"
        self.flat = config.geometry == "euclidean"
        self.dtype = DTYPES[config.projection_dtype]
        d, h, narrow = config.latent_dim, config.hidden_dim, max(32, config.hidden_dim // 2)
        dropout = [nn.Dropout(config.projection_dropout)] if config.projection_dropout else []
        direction: list[nn.Module] = []
        radius: list[nn.Module] = []
        for k in range(config.n_projection_layers):
            direction += [nn.Linear(h if k else d, h), nn.LayerNorm(h), nn.SiLU(), *dropout]
            radius += [nn.Linear(narrow if k else d, narrow), nn.SiLU(), *dropout]
        self.direction_net = nn.Sequential(*direction, nn.Linear(h, d))
        self.radius_net = nn.Sequential(*radius, nn.Linear(narrow, 1))
        self.to(self.dtype)

    def radius(self, z_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Distance from the origin and Euclidean norm, each [N]; in flat space they are the same."""
        share_N = torch.sigmoid(self.radius_net(z_ND.to(self.dtype)).squeeze(-1))
        if self.flat:
            rho_N = to_hyperbolic(torch.as_tensor(self.max_radius, dtype=share_N.dtype), self.c).to(share_N) * share_N
            return rho_N, rho_N
        return radii_of_share(
            share_N,
            self.c,
            torch.as_tensor(self.max_radius, dtype=share_N.dtype, device=share_N.device),
            self.hyperbolic,
        )

    def forward(self, z_ND: Tensor) -> Point:
        z_ND = z_ND.to(self.dtype)
        direction_ND = F.normalize(z_ND + self.direction_net(z_ND), dim=-1)
        return Point(*self.radius(z_ND), direction_ND)


def radii_of_share(share_N: Tensor, c: Tensor | float, max_radius: Tensor, hyperbolic: bool) -> tuple[Tensor, Tensor]:
    """Hyperbolic distance and Euclidean norm [N] from the share in (0, 1) of the largest radius."""
    if hyperbolic:
        rho_N = to_hyperbolic(max_radius, c) * share_N
        return rho_N, to_euclidean(rho_N, c)
    norm_N = max_radius * share_N
    return to_hyperbolic(norm_N, c), norm_N


class DualProjection(nn.Module):
    """A projection for the code of each encoder; without dual, one for both."""

    def __init__(self, config: ArchitectureConfig):
        super().__init__()
        self.proj_A = HyperbolicProjection(config)
        two = config.use_dual_projection and config.decode == "code"
        self.proj_B = HyperbolicProjection(config) if two else None

    def of(self, view: str) -> HyperbolicProjection:
        return self.proj_B if view == "b" and self.proj_B is not None else self.proj_A


class DifferentiableController(nn.Module):
    """Eight statistics of a batch to the weights of the loss's terms (V5.11), all differentiable.

    rho: mixing of the two codes, in (0, 0.5); weight_geodesic above 0.1; weight_radial above 0; beta_A, beta_B above 0.5
    (factors on the KL divergence); tau in (0, 1): from the radial to the geodesic part. The losses that read them are
    named in losses.py.
    """

    NAMES = ("rho", "weight_geodesic", "weight_radial", "beta_A", "beta_B", "tau")

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Linear(8, 32), nn.LayerNorm(32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 6))
        self.net = nn.Sequential(*layers)

    def forward(self, statistics_8: Tensor) -> dict[str, Tensor]:
        o = self.net(statistics_8)
        values = (
            torch.sigmoid(o[0]) / 2, F.softplus(o[1]) + 0.1, F.softplus(o[2]),
            F.softplus(o[3]) + 0.5, F.softplus(o[4]) + 0.5, torch.sigmoid(o[5]),
        )  # fmt: skip
        return dict(zip(self.NAMES, values, strict=True))


class TernaryVAE(nn.Module):
    """The architecture of the fields of ArchitectureConfig (those not given have its defaults, which are V5.11's).

    With decode code, encoder A carries coverage and encoder B may go on learning for the hierarchy; which parts a stage
    freezes is the run's configuration. ValueError for fields that make no model.
    """

    def __init__(self, **architecture: Any):
        super().__init__()
        self.config = ArchitectureConfig(**architecture)
        dtype = DTYPES[self.config.dtype]
        self.in_ball = self.config.decode == "ball"
        self.views = ("a",) if self.in_ball else ("a", "b")
        self.prior_std = prior_std(self.config) if self.in_ball else 1.0
        self.encoder_A = Encoder(self.config).to(dtype)
        self.encoder_B = None if self.in_ball else Encoder(self.config).to(dtype)
        self.decoder_A = Decoder(self.config).to(dtype)
        self.projection = DualProjection(self.config)
        self.controller = DifferentiableController().to(dtype) if self.config.use_controller else None

    def encode(self, x_NM: Tensor, view: str) -> Code:
        """The code of encoder "a" or "b"."""
        encoder = self.encoder_A if view == "a" else self.encoder_B
        assert encoder is not None, "decode ball has no encoder B"
        code: Code = encoder(x_NM.to(encoder.fc_mu.weight.dtype))
        return code

    def latent(self, code: Code, noise_ND: Tensor | None) -> Latent:
        """What the decoder reads of encoder A's code: its mean, or a sample by standard normal noise.

        decode ball: log_0 of the point over the prior's standard deviation; a sample's KL divergence is that of the one
        sample, and its mean over many is the divergence. Without noise it is 0.
        """
        if not self.in_ball:
            return Latent(code.mu_ND if noise_ND is None else code.sample(noise_ND.to(code.mu_ND)), kl_parts(code))
        point = self.projection.of("a")(code.mu_ND)
        if noise_ND is None:
            log_ND = point.rho_N[:, None] * point.direction_ND
            return Latent(log_ND / self.prior_std, log_ND.new_zeros(len(log_ND), 1), point)
        std_ND = self.prior_std * torch.exp(code.logvar_ND.to(point.rho_N) / 2)
        v_ND = std_ND * noise_ND.to(std_ND)
        if self.config.geometry == "euclidean":
            c, log_ND = 0.0, point.rho_N[:, None] * point.direction_ND + v_ND
        else:
            c = self.config.curvature
            log_ND = displace(point.rho_N, point.direction_ND, v_ND, c)
        kl_N = wrapped_kl(v_ND, std_ND, log_ND, self.prior_std, c)
        return Latent(log_ND / self.prior_std, kl_N[:, None], point)

    def logits(self, decoded_ND: Tensor) -> Tensor:
        """Over -1, 0, 1 of each trit [N, M, 3], from what `latent` gives or standard normal draws of the prior."""
        logits: Tensor = self.decoder_A(decoded_ND.to(next(self.decoder_A.parameters()).dtype))
        return logits

    def forward(self, x_NM: Tensor) -> dict[str, Tensor]:
        """Everything by the mean codes: mu and logvar of the encoders, the points of their views, logits of A."""
        out: dict[str, Tensor] = {}
        for view in self.views:
            code, name = self.encode(x_NM, view), view.upper()
            point = self.projection.of(view)(code.mu_ND)
            out |= {f"mu_{name}": code.mu_ND, f"logvar_{name}": code.logvar_ND}
            out |= {f"z_{name}_hyp": point.z_hyp_ND, f"rho_{name}": point.rho_N}
            if view == "a":
                out["logits"] = self.logits(self.latent(code, None).decoded_ND)
        return out


TernaryVAEV5_11_PartialFreeze = TernaryVAE
"""The class's name in the original study."""


def draw_weights(module: nn.Module, seed: int, name: str) -> None:
    """Draws a module's weights anew from a stream of its own: PyTorch's uniform initialisation of linear layers.

    Each direction net's last layer is 0, so that it starts as the identity, and each radius net's last bias, so that radii
    start in the middle.
    """
    draw = generator(seed, "weights", name)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            with torch.no_grad():
                for weight in (layer.weight, layer.bias):
                    # Drawn in float64, so that both precisions start from the same numbers.
                    drawn = torch.rand(weight.shape, generator=draw, dtype=torch.float64) * 2 * bound - bound
                    weight.copy_(drawn)
        elif isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
    for part in module.modules():
        if isinstance(part, HyperbolicProjection):
            for start in (*part.direction_net[-1].parameters(), part.radius_net[-1].get_parameter("bias")):
                nn.init.zeros_(start)


def architecture_of(config: ArchitectureConfig) -> dict[str, Any]:
    """The architecture's fields of a run's configuration."""
    return {f.name: getattr(config, f.name) for f in fields(ArchitectureConfig)}


def create_model(config: ArchitectureConfig, seed: int, projection_seed: int | None = None) -> TernaryVAE:
    """A model whose parts are drawn from (seed, part); its projections from `projection_seed` where given."""
    model = TernaryVAE(**architecture_of(config))
    for name, part in model.named_children():
        draw_weights(part, projection_seed if name == "projection" and projection_seed is not None else seed, name)
    return model


def build_model(values: Mapping[str, Any]) -> TernaryVAE:
    """The model of a checkpoint's configuration, to be filled with its weights."""
    return TernaryVAE(**{f.name: values[f.name] for f in fields(ArchitectureConfig)})


def probe_inputs(trits: int) -> dict[str, Tensor]:
    """Fixed operations, spread over the indices; the deepest one among them."""
    return {"input_index": torch.linspace(0, 3**trits - 1, PROBE_OPERATIONS, dtype=torch.float64).long()}


@torch.no_grad()
def replay_probe(model: TernaryVAE, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Logits, points of both views and hyperbolic radii of the probe's operations, as in evaluation."""
    device = next(model.parameters()).device
    parts = [(module, module.training) for module in model.modules()]
    out = model.eval()(trits_of(inputs["input_index"], model.config.trits).float().to(device))
    for module, training in parts:
        module.training = training
    return {f"output_{name}": value for name, value in out.items()}
