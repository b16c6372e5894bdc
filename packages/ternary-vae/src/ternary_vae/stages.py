"""The stages of a training, made once from its configuration, and which runs may be trained together. No torch.

coverage    cross-entropy of the operations decoded from samples of encoder A's code, and its KL divergence
hierarchy   the radii of the projected code of `view`; and the cross-entropy, where encoder A or the decoder is not frozen
joint       both
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from studycore.configuration import config_hash, to_dict
from ternary_vae.config import TrainConfig
from ternary_vae.schedules import coverage_rate, learning_rate

ENCODER = {"a": "encoder_A", "b": "encoder_B"}
PER_RUN = (
    "seed", "projection_seed", "start", "curvature", "max_radius", "lr", "scheduler", "step_epochs", "step_gamma",
    "warmup_epochs", "weight_decay", "early_stopping_patience", "epochs", "hierarchy_weight", "richness_weight",
    "separation_weight", "outer_radius", "inner_radius",
    # These reach nothing that a run of radii alone trains.
    "coverage_weight", "coverage_epochs", "coverage_patience", "coverage_lr", "coverage_scheduler", "coverage_frozen",
    "encoder_a_lr", "encoder_b_lr", "kl_weight", "kl_warmup_epochs", "free_bits", "n_pairs", "rank_loss_weight",
    "radial_weight",
)  # fmt: skip
"""Fields in which runs that are trained together may differ."""


@dataclass(frozen=True)
class Stage:
    """What a stage of one run trains, on what, and how fast."""

    name: str
    """coverage, hierarchy or joint."""
    is_last: bool
    epochs: int
    """Most epochs."""
    trained: tuple[str, ...]
    """Parts of the model that the stage's loss depends on and that it does not freeze."""
    views: tuple[str, ...]
    """Encoders, "a" and "b", whose projected codes the loss orders; none where the stage orders no radii."""
    decodes: bool
    """Whether the reconstruction is in the loss: where encoder A or the decoder may move."""
    sampled: tuple[str, ...]
    """Encoders whose code is sampled; only then is the log variance part of the loss."""
    controlled: bool
    """Whether the controller weighs the loss's terms."""
    rate: Callable[[int, int], float]
    """(update, updates per epoch) -> learning rate."""
    rate_field: str
    """The setting to lower when the loss is not finite."""
    rate_factors: Mapping[str, float]
    """Part of the model -> its factor on the rate; 1 where not named."""
    scored_by: tuple[str, ...]
    """What the best checkpoint is chosen by: coverage, order, or the sum of both."""
    covered_patience: int | None
    """Ends the stage after so many evaluations in a row with every training operation right; None: runs on."""
    patience: int | None
    """Ends it after so many evaluations without a better one; None: runs on."""


def stages_of(config: TrainConfig) -> tuple[Stage, ...]:
    """The stages of a run, in their order."""
    return tuple(_stage(config, name, name == config.stage_names[-1]) for name in config.stage_names)


def _stage(config: TrainConfig, name: str, is_last: bool) -> Stage:
    frozen, of_radii = set(config.frozen(name)), name != "coverage"
    views: tuple[str, ...] = () if not of_radii else ("a", "b") if config.view == "both" else (config.view,)
    decodes = name != "hierarchy" or (config.coverage_weight > 0 and not {"encoder_A", "decoder_A"} <= frozen)
    controlled = of_radii and config.use_controller and config.loss == "geodesic"
    reached = {ENCODER[view] for view in views} | ({"encoder_A", "decoder_A"} if decodes else set())
    reached |= ({"projection"} if of_radii or config.decode == "ball" else set()) | (
        {"controller"} if controlled else set()
    )
    sampled = {"a"} if decodes and config.coverage_code == "sample" else set()
    sampled |= set(views) if config.code == "sample" else set()
    return Stage(
        name=name, is_last=is_last, epochs=config.epochs if of_radii else config.coverage_epochs,
        trained=tuple(sorted(reached - frozen)), views=views, decodes=decodes, sampled=tuple(sorted(sampled)),
        controlled=controlled, rate=partial(learning_rate if of_radii else coverage_rate, config),
        rate_field="lr" if of_radii else "coverage_lr",
        rate_factors={"encoder_A": config.encoder_a_lr, "encoder_B": config.encoder_b_lr} if of_radii else {},
        scored_by={"coverage": ("coverage",), "hierarchy": ("order",), "joint": ("order", "coverage")}[name],
        covered_patience=None if of_radii else config.coverage_patience,
        patience=config.early_stopping_patience if is_last else None,
    )  # fmt: skip


def not_stackable(config: TrainConfig) -> str | None:
    """Why a run trains more than the radius net of one projection on fixed codes; None when that is all it trains."""
    if config.stages != "hierarchy":
        return "it has other stages than hierarchy"
    if not {*ENCODER.values(), "decoder_A"} <= set(config.hierarchy_frozen):
        return "its encoders or decoder are not frozen"
    if config.loss == "geodesic":
        return f"the loss {config.loss} looks at more than radii"
    if config.view == "both":
        return "it orders both views"
    if config.projection_dropout:
        return "dropout in the projections"
    if config.train_fraction < 1:
        return "it trains on a part of the operations"
    if config.valuations == "shuffled":
        return "its valuations are its own"
    return "forward: plain was asked for" if config.forward == "plain" else None


def shape_of(config: TrainConfig) -> str:
    """The same for runs that may be trained together; empty for a run that must be trained alone."""
    if not_stackable(config):
        return ""
    return config_hash({name: value for name, value in to_dict(config).items() if name not in PER_RUN})
