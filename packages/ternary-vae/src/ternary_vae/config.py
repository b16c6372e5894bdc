"""The settings of a model, a run and a sweep. Importing this module must stay cheap: no torch."""

from dataclasses import dataclass, field
from typing import Any, Literal

from studycore.bounds import (
    AtLeast2,
    BelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seeds,
    Share,
    check_bounds,
)

QUESTION = (
    "A hyperbolic VAE over all ternary operations: does it cover them, and do its radii follow the 3-adic hierarchy?"
)
COVERAGE, ORDERED, SCRATCH = "coverage", "ordered", "from scratch"
"""The phases of a sweep's runs that make checkpoints, without order and with it, and of its arms that start without one."""
COMPONENTS = ("encoder_A", "encoder_B", "decoder_A", "projection", "controller")
"""What a stage may freeze: the names of the model's parts."""
ENCODING = (
    "trits",
    "latent_dim",
    "encoder_sizes",
    "decoder_sizes",
    "decode",
    "geometry",
    "activation",
    "encoder_norm",
    "encoder_dropout",
    "use_controller",
    "dtype",
)
"""Fields that a coverage checkpoint must share with what starts from it."""
BOUNDARY = 1e-5
"""Relative distance that radii keep from the ball's boundary: what geoopt's float64 projection keeps."""


def largest_max_radius(c: float) -> float:
    """The Euclidean norm that a maximum radius must stay below at curvature c."""
    return (1 - BOUNDARY) / c**0.5


@dataclass(frozen=True)
class ArchitectureConfig:
    """Everything that the model's constructor needs. ValueError names the field, its value and the mend."""

    trits: AtLeast2 = 9
    """Trits of an operation; there are 3^trits of them."""
    latent_dim: PositiveInt = 16
    """Dimensions of the latent code."""
    encoder_sizes: list[int] = field(default_factory=lambda: [256, 128, 64])
    """Widths of each encoder's hidden layers."""
    decoder_sizes: list[int] = field(default_factory=lambda: [32, 64])
    """Widths of the decoder's hidden layers."""
    activation: Literal["relu", "silu"] = "relu"
    """Non-linearity of encoders and decoder (V5.12.4: silu)."""
    encoder_norm: bool = False
    """LayerNorm after each hidden layer of the encoders (V5.12.4)."""
    encoder_dropout: BelowOne = 0.0
    """Dropout after each hidden layer of the encoders (V5.12.4: 0.1)."""
    hidden_dim: PositiveInt = 64
    """Width of the hyperbolic projections, not of the encoders."""
    n_projection_layers: PositiveInt = 1
    """Hidden layers of each part of a projection."""
    projection_dropout: BelowOne = 0.0
    """Dropout in the projections; above 0 it moves the indices of the layers behind it."""
    use_dual_projection: bool = True
    """A projection for each encoder, or one for both."""
    use_controller: bool = False
    """A small network that weighs the loss's terms by the batch's statistics."""
    curvature: PositiveFloat = 1.0
    """c of the Poincare ball of curvature -c, as in geoopt."""
    max_radius: float = 0.95
    """Largest Euclidean norm of a point; below 1/sqrt(curvature)."""
    radius: Literal["hyperbolic", "euclidean"] = "hyperbolic"
    """What the projection gives: a hyperbolic distance from the origin, or the original study's Euclidean norm, in which
    the curvature never reaches a loss of the radii, nor their order."""
    decode: Literal["ball", "code"] = "code"
    """ball: one encoder, whose point of the ball is decoded and ordered, with a wrapped normal posterior; code: V5.11's two
    encoders, decoded from encoder A's code with a normal posterior, the points of the ball beside it."""
    geometry: Literal["hyperbolic", "euclidean"] = "hyperbolic"
    """Of decode ball: euclidean is its flat twin of equal parameters, the same distances and directions in flat space."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of encoders and decoder."""
    projection_dtype: Literal["float32", "float64"] = "float64"
    """Of projections, radii and points."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.trits > 13:
            raise ValueError(f"trits: {self.trits} are 3^{self.trits} operations; give at most 13 (1,594,323)")
        for name in ("encoder_sizes", "decoder_sizes"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least one width, each at least 1")
        limit = largest_max_radius(self.curvature)
        if not 0 < self.max_radius < limit:
            raise ValueError(
                f"max_radius: {self.max_radius} does not lie inside the ball of curvature {self.curvature}, whose radius is "
                f"{self.curvature**-0.5:.6g}; give more than 0 and less than {limit:.6g}"
            )
        if self.geometry == "euclidean" and self.decode == "code":
            raise ValueError(
                "geometry: euclidean is the twin of decode ball and changes nothing else; give decode ball"
            )
        if self.decode == "ball" and self.radius == "euclidean":
            raise ValueError("radius: decode ball takes distances; leave it hyperbolic, or give geometry euclidean")


@dataclass(frozen=True)
class TrainConfig(ArchitectureConfig):
    """Everything that determines a run's numbers. ValueError names the field, its value and the mend."""

    seed: int = 0
    """Seed of initialisation, training operations, batch order, samples and pairs."""
    projection_seed: int | None = None
    """Seed of the projections' first weights; null: follows `seed`."""
    train_fraction: Share = 1.0
    """Share of the operations that training sees."""
    start: str | None = None
    """Run or checkpoint whose weights are taken, verified first; null: from scratch."""
    start_projections: Literal["loaded", "drawn"] = "loaded"
    """Of `start`: its projections, or ones drawn anew."""

    stages: Literal["coverage_hierarchy", "coverage", "hierarchy", "joint"] = "coverage_hierarchy"
    """coverage: reconstruction; hierarchy: radii, while the parts in hierarchy_frozen stay as they are; joint: both at once."""
    coverage_epochs: PositiveInt = 100
    """Most epochs of the coverage stage."""
    coverage_patience: PositiveInt | None = 3
    """Ends the coverage stage after this many evaluations in a row with every training operation right; null: runs on."""
    coverage_lr: PositiveFloat = 2e-3
    """Learning rate of the coverage stage, after a linear warm-up."""
    coverage_scheduler: Literal["constant", "cosine"] = "constant"
    """constant, or cosine to 0 at coverage_epochs."""
    coverage_code: Literal["sample", "mean"] = "sample"
    """What the decoder sees in the coverage stage and in joint training: samples, with the KL divergence, or the mean alone."""
    coverage_frozen: list[str] = field(default_factory=list)
    """Parts that the coverage stage leaves alone."""
    epochs: PositiveInt = 60
    """Epochs of the hierarchy stage, or of joint training."""
    hierarchy_frozen: list[str] = field(default_factory=lambda: ["encoder_A", "decoder_A"])
    """Parts that the hierarchy stage leaves alone (partial freeze)."""

    batch_size: AtLeast2 = 1024
    """Operations per update, over all processes; all of them where there are fewer."""
    deep_share: BelowOne = 0.2
    """Share of a batch that is drawn from the operations of the six deepest levels."""
    lr: PositiveFloat = 2e-3
    """Learning rate of the hierarchy stage, or of joint training, after warm-up."""
    encoder_a_lr: NonNegativeFloat = 0.05
    """Factor on it for encoder A."""
    encoder_b_lr: NonNegativeFloat = 1.0
    """Factor on it for encoder B."""
    scheduler: Literal["constant", "step", "cosine"] = "cosine"
    """constant; step: times step_gamma every step_epochs; cosine: to 0 at the end."""
    step_epochs: PositiveInt = 10
    """Epochs between two steps of the step schedule."""
    step_gamma: PositiveFloat = 0.5
    """Factor of the step schedule."""
    warmup_epochs: NonNegativeInt = 0
    """Epochs over which the learning rate rises linearly."""
    weight_decay: NonNegativeFloat = 1e-4
    """Decoupled weight decay of AdamW, on every parameter (as the original study has it)."""
    grad_clip: PositiveFloat | None = 1.0
    """Largest norm of the gradient; null: no clipping."""
    early_stopping_patience: PositiveInt | None = None
    """Ends the last stage after this many evaluations without a better one (hierarchy; joint: with coverage); null: runs on."""

    kl_weight: NonNegativeFloat = 1e-3
    """Weight of the KL divergence after warm-up (beta)."""
    kl_warmup_epochs: NonNegativeInt = 10
    """Epochs over which it rises linearly."""
    free_bits: NonNegativeFloat = 0.0
    """Nats per latent dimension that the KL divergence leaves free (V5.5: 0.5)."""

    bands: Literal["wide", "even", "prior"] = "wide"
    """Where the loss ordered has the bands of the levels: wide: level 0's takes two thirds of the radii; even: all are
    equally wide; prior: each level's lies where the prior has the level's share of its mass."""
    valuations: Literal["true", "shuffled"] = "true"
    """What the loss orders radii by; shuffled: a control, valuations dealt out at random to the operations."""
    loss: Literal["ordered", "rich_hierarchy", "geodesic"] = "ordered"
    """ordered: a band for every level, on single samples; rich_hierarchy: the sweeps' loss, on level means;
    geodesic: V5.11's pairwise distances, radii and ranks."""
    view: Literal["a", "b", "both"] = "b"
    """The encoder whose projected code the loss orders and the headline metrics look at (both: looks at b)."""
    code: Literal["mean", "sample"] = "mean"
    """What the projections see in training; metrics always look at the mean."""
    hierarchy_weight: NonNegativeFloat = 5.0
    """Weight of the radii's distance from where they should be (not geodesic)."""
    coverage_weight: NonNegativeFloat = 1.0
    """Weight of the reconstruction's cross-entropy."""
    richness_weight: NonNegativeFloat = 2.0
    """Weight of the spread within levels (not geodesic)."""
    separation_weight: NonNegativeFloat = 3.0
    """Weight of the order between neighbouring levels (not geodesic)."""
    outer_radius: float = 0.9
    """Baseline losses: target of level 0, as a Euclidean norm at max_radius 0.95 (scaled with it)."""
    inner_radius: float = 0.1
    """Baseline losses: target of the deepest level."""
    n_pairs: PositiveInt = 2000
    """geodesic: random pairs per update."""
    rank_loss_weight: NonNegativeFloat = 1.0
    """geodesic: weight of the pairwise ranking."""
    radial_weight: NonNegativeFloat = 2.0
    """geodesic: weight of the radial part."""

    eval_every: PositiveInt = 1
    """Epochs between evaluations on all operations."""
    checkpoint_every: PositiveInt = 20
    """Epochs between checkpoints."""
    forward: Literal["restructured", "plain"] = "restructured"
    """restructured: what a stage leaves alone is computed once for all operations; plain: in every step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if round(self.train_fraction * 3**self.trits) < 2:
            raise ValueError(f"train_fraction: {self.train_fraction} leaves fewer than 2 operations; give more")
        if not 0 <= self.inner_radius < self.outer_radius <= 0.95:
            raise ValueError(
                f"inner_radius, outer_radius: {self.inner_radius} and {self.outer_radius} must rise and lie in [0, 0.95]"
            )
        if self.decode == "ball":
            for name, taken in (("stages", ("joint", "coverage")), ("view", ("a",)), ("code", ("mean",))):
                if (given := getattr(self, name)) not in taken:
                    raise ValueError(
                        f"{name}: {given} does not go with decode ball, whose one code is decoded and ordered; give "
                        f"{' or '.join(taken)}, or decode code"
                    )
            if self.forward == "plain" or self.use_controller:
                raise ValueError("forward, use_controller: belong to decode code; leave them out, or give decode code")
        for name in ("coverage_frozen", "hierarchy_frozen"):
            if unknown := sorted(set(getattr(self, name)) - set(COMPONENTS)):
                raise ValueError(f"{name}: {unknown} are no parts of the model; there are {', '.join(COMPONENTS)}")
        for stage in self.stage_names:
            if set(COMPONENTS) - {"controller"} <= set(self.frozen(stage)):
                raise ValueError(f"{stage}_frozen: freezes the whole model; leave a part of it free")
        if "projection" in self.hierarchy_frozen and self.stages != "coverage":
            raise ValueError("hierarchy_frozen: projection is what the hierarchy stage trains; leave it free")
        if (
            self.use_controller
            and self.loss != "geodesic"
            and "controller" not in self.hierarchy_frozen
            and self.stages != "coverage"
        ):
            raise ValueError(
                f"use_controller: nothing in the loss {self.loss} reads it; give loss geodesic, or freeze it"
            )
        for name in ("hierarchy_weight", "richness_weight", "separation_weight"):
            if self.loss == "geodesic" and getattr(self, name) != getattr(TrainConfig, name):
                raise ValueError(
                    f"{name}: {getattr(self, name)} would change nothing, the loss geodesic does not read it; give "
                    "radial_weight or rank_loss_weight"
                )
        if self.stages == "joint" and (self.coverage_frozen or self.hierarchy_frozen != ["encoder_A", "decoder_A"]):
            raise ValueError(
                "coverage_frozen, hierarchy_frozen: joint training freezes nothing; leave them out, or train in stages"
            )
        if self.stages == "hierarchy" and self.start is None:
            raise ValueError("stages: hierarchy alone needs a model to start from; give start, or coverage_hierarchy")
        if self.start is None and self.start_projections == "drawn":
            raise ValueError("start_projections: drawn means nothing without start; leave it out, or give start")

    @property
    def stage_names(self) -> tuple[str, ...]:
        return ("coverage", "hierarchy") if self.stages == "coverage_hierarchy" else (self.stages,)

    def frozen(self, stage: str) -> list[str]:
        """Parts that a stage leaves alone."""
        return {"coverage": self.coverage_frozen, "hierarchy": self.hierarchy_frozen, "joint": []}[stage]

    @property
    def shuffle_seed(self) -> int | None:
        """Seed of the valuations that a control deals out at random."""
        return self.seed if self.valuations == "shuffled" else None

    @property
    def orders_radii(self) -> bool:
        """Whether the radii are anything that was trained: a coverage stage alone leaves the projections as they were drawn."""
        return self.stages != "coverage" or (self.start is not None and self.start_projections == "loaded")


@dataclass(frozen=True)
class PhaseConfig:
    """One phase of a sweep: every arm x every point of the grid."""

    base: dict[str, Any] = field(default_factory=dict)
    """Changes to the sweep's base that the phase's runs share."""
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Named changes to base, each compared with the others."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Fields with the values to combine."""
    name: str = ""
    """Names of the grid's points as a template over fields, such as "sweep5_draw_{projection_seed}"."""


@dataclass(frozen=True)
class SweepConfig:
    """Runs to make: phases, each over every seed, from one coverage checkpoint per seed and shape; and arms from scratch."""

    coverage: dict[str, Any] = field(default_factory=dict)
    """TrainConfig fields of the runs that make the coverage checkpoints, and of the arms from scratch."""
    ordered: dict[str, Any] = field(default_factory=dict)
    """Changes to coverage of the runs that make ordered checkpoints, whose projections phases with start_projections
    loaded go on with."""
    base: dict[str, Any] = field(default_factory=dict)
    """TrainConfig fields that all phases share."""
    phases: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Phase -> its PhaseConfig: base, arms, grid, name."""
    from_scratch: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Arms that start from scratch, as changes to coverage."""
    seeds: Seeds = 5
    """Seeds per arm, counted up from base's seed."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.phases and not self.from_scratch:
            raise ValueError("phases: a sweep needs at least one phase with an arm, or arms from scratch")


@dataclass(frozen=True)
class ImportOptions:
    """What `import` asks for besides the architecture."""

    key_map: str | None = None
    """YAML file of prefixes, 'theirs: ours', that come before the built-in map; null drops what begins so."""
    view: Literal["a", "b"] = "b"
    """The encoder that the headline metrics look at."""
