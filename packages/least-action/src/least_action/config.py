"""The settings of a run and of a sweep. Importing this module must stay cheap: no torch."""

from dataclasses import dataclass, field
from typing import Any, Literal

import studycore.options
from studycore.bounds import (
    AtLeast2,
    AtLeast3,
    BelowOne,
    Layers,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seeds,
    check_bounds,
)

QUESTION = "When does a network that has memorised modular arithmetic come to generalise, and what speeds it up?"
TRANSFORMERS = ("transformer", "routed_transformer")
S5_ELEMENTS = 120
OPERATIONS = {
    "add": "addition", "subtract": "subtraction", "multiply": "multiplication", "divide": "division", "compose": "composition in S5",
}  # fmt: skip
"""In words."""
SPECTRA_LEFT_OUT = "Spectra of S5 are left out: its group does not commute, so that its irreducible representations have more than one dimension, and a power by frequency is not defined."
MEASURING = (
    "epochs", "stop_after_grok", "log_every", "sensitivity_every", "checkpoint_every", "compute_weight_curvature",
    "weight_curvature_interval", "curvature_probes", "metric_samples", "compute_optimizer_metrics",
)  # fmt: skip
"""Fields of a run that say what is measured when and for how long, and leave the path of its training alone."""


@dataclass(frozen=True)
class TrainerConfig:
    """Everything that determines a run's numbers. ValueError names the field, its value and the mend."""

    p: AtLeast3 = 113
    """Modulus; a prime for multiply and divide; 120, the number of its elements, for compose."""
    operation: Literal["add", "subtract", "multiply", "divide", "compose"] = "add"
    """What is learnt: (a operation b) mod p, or the composition of permutations of five things (the group S5)."""
    train_frac: float = 0.3
    """Fraction of all pairs that is for training."""
    data_seed: int | None = 42
    """Seed of the split; null: follows `seed`, so that seeds differ in the split as well."""
    seed: int = 42
    """Seed of initialisation, batch order and metric probes."""

    model_type: Literal["baseline", "routed", "transformer", "routed_transformer"] = "routed"
    """baseline: MLP; routed: MLP with routed heads; transformer; routed_transformer: matched to transformer."""
    hidden_dim: PositiveInt = 128
    """Width (d_model of a transformer)."""
    n_layers: Layers = 4
    """Layers or blocks."""
    n_heads: PositiveInt = 4
    """Attention heads of a transformer, routing heads of a routed MLP (1: the single-head ablation)."""
    routing_heads: PositiveInt = 4
    """Heads of a routed transformer's feed-forward part."""
    freeze_gates: bool = False
    """Keeps a routed transformer's gates uniform: the control that is the dense transformer in another guise."""
    tie_embeddings: bool = False
    """A transformer reads classes with the token table's first p rows."""
    residual_norm: Literal["layernorm", "rmsnorm", "none"] = "layernorm"
    """Norm before a transformer's sublayers."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Non-linearity of MLPs and feed-forward parts."""
    mlp_bias: bool = True
    """Biases of the baseline MLP."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of a transformer's initial weights."""

    epochs: PositiveInt = 50000
    """Passes over the training pairs; with full batches also the number of updates."""
    batch_size: PositiveInt | None = None
    """Pairs per update over all processes; null: full batch."""
    lr: PositiveFloat = 1e-3
    """Learning rate after warm-up."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay (Loshchilov and Hutter 2019)."""
    weight_decay_rule: Literal["matrices", "all"] = "matrices"
    """matrices: embeddings, biases and norms are spared; all: everything decays (Nanda et al. 2023)."""
    decay_gates: bool = False
    """Lets the rule "all" decay routing gates too: that holds them near uniform, so that nothing is routed."""
    optimizer: Literal["adamw"] = "adamw"
    """AdamW; the recipe may replace it for some parameters."""
    beta1: BelowOne = 0.9
    """AdamW's first moment decay."""
    beta2: BelowOne = 0.98
    """AdamW's second moment decay."""
    eps: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    grad_clip: PositiveFloat | None = None
    """Largest norm of the whole gradient; null: no clipping."""
    warmup_epochs: NonNegativeInt = 0
    """Epochs over which the learning rate rises linearly from 0."""
    lr_after_99: PositiveFloat | None = None
    """Learning rate from the first evaluation with 0.99 test accuracy on, so that what is learnt stays; null: lr."""
    recipe: Literal[
        "none", "bounded_sphere", "constrained_norm", "orthograd", "orthograd_stablemax", "grokfast", "muon"
    ] = "none"
    """One acceleration recipe; recipes.py gives each with its source."""
    sphere_temperature: PositiveFloat = 10.0
    """bounded_sphere: logits are this times a cosine."""
    constrained_norm_alpha: PositiveFloat = 0.8
    """constrained_norm: the weights' norm is held at this times its start."""
    grokfast_alpha: BelowOne = 0.98
    """grokfast: decay of the gradient's moving average."""
    grokfast_lambda: NonNegativeFloat = 2.0
    """grokfast: weight of the moving average that is added."""

    routing_regularizer: Literal["entropy", "sparsity", "gini", "consistency", "information"] | None = "entropy"
    """Regulariser of routing weights (routed models only; ignored by the others, as in every configuration here)."""
    lambda_routing: NonNegativeFloat = 0.01
    """Its weight in the loss."""
    lambda_spectral: NonNegativeFloat = 0.0
    """Weight of the spectral smoothness loss."""
    spectral_interval: PositiveInt = 100
    """Updates between two uses of the spectral smoothness loss."""
    lambda_jacobian: NonNegativeFloat = 0.0
    """Weight of the input Jacobian's norm in the loss."""

    dtype: Literal["float32", "float64"] = "float32"
    """Of weights and activations."""
    loss_dtype: Literal["float32", "float64"] = "float64"
    """In which the cross-entropy is computed."""
    forward: Literal["restructured", "plain"] = "restructured"
    """restructured: exact, over the finite input set (distinct_inputs.py); plain: every token of every pair."""

    eval_every: PositiveInt = 10
    """Epochs between evaluations of loss and accuracy on all pairs."""
    log_every: PositiveInt = 100
    """Epochs between console lines and rows with spectra, progress measures and norms; a multiple of eval_every."""
    sensitivity_every: PositiveInt | None = None
    """Epochs between rows with the input's Jacobian and Hessian; a multiple of eval_every; null: every evaluation."""
    checkpoint_every: PositiveInt = 5000
    """Epochs between checkpoints."""
    compute_weight_curvature: bool = True
    """Gradient norm, weight Hessian trace and Fisher trace, at intervals and where an event may begin."""
    weight_curvature_interval: PositiveInt = 100
    """Epochs between them; a multiple of eval_every."""
    curvature_probes: AtLeast2 = 10
    """Rademacher probes of the Hessian traces; at least 2, for a standard error."""
    metric_samples: AtLeast2 = 256
    """Held-out pairs for input sensitivity and training pairs for the Fisher trace, drawn once."""
    compute_optimizer_metrics: bool = True
    """Adam's dynamics in rows at log_every."""
    event_window: PositiveInt = 5
    """Consecutive evaluations for which an accuracy must hold to count as an event."""
    stop_after_grok: NonNegativeInt | None = None
    """Ends the run this many epochs after it grokked (0.99); null: runs on."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.p > LARGEST_P:
            size = 48 * self.p**2 / 2**40  # pairs and their split, as int64
            raise ValueError(
                f"p: {self.p} has {float(self.p) ** 2:.3g} pairs, {size:,.0f} TiB; give at most {LARGEST_P}"
            )
        if self.operation == "compose" and self.p != S5_ELEMENTS:
            raise ValueError(f"p: {self.p} is not the number of elements of S5; compose needs p {S5_ELEMENTS}")
        if self.operation == "compose" and self.lambda_spectral:
            raise ValueError(
                f"lambda_spectral: {self.lambda_spectral} needs a commutative group; set it to 0 for compose"
            )
        if self.operation in ("multiply", "divide") and not is_prime(self.p):
            raise ValueError(
                f"p: {self.p} is not prime, which {self.operation} needs; {next_prime(self.p)} is the next prime"
            )
        n_pairs = self.p * (self.p - 1 if self.operation == "divide" else self.p)
        n_train = training_pairs(self.train_frac, n_pairs)
        if self.batch_size is not None and self.batch_size > n_train:
            raise ValueError(
                f"batch_size: {self.batch_size} exceeds the {n_train} training pairs; use null for full batch"
            )
        if self.model_type in TRANSFORMERS and self.hidden_dim % self.n_heads:
            raise ValueError(f"n_heads: {self.n_heads} does not divide hidden_dim {self.hidden_dim}")
        if self.model_type == "routed_transformer" and 4 * self.hidden_dim % self.routing_heads:
            raise ValueError(
                f"routing_heads: {self.routing_heads} does not divide the feed-forward width {4 * self.hidden_dim}"
            )
        if self.recipe == "bounded_sphere" and self.model_type not in TRANSFORMERS:
            raise ValueError(f"recipe: bounded_sphere needs a transformer, model_type is '{self.model_type}'")
        if self.freeze_gates and self.model_type != "routed_transformer":
            raise ValueError(f"freeze_gates: true needs model_type routed_transformer, it is '{self.model_type}'")
        if self.tie_embeddings and self.model_type not in TRANSFORMERS:
            raise ValueError(f"tie_embeddings: true needs a transformer, model_type is '{self.model_type}'")
        for name in ("log_every", "weight_curvature_interval", "sensitivity_every"):
            if (getattr(self, name) or 0) % self.eval_every:
                raise ValueError(f"{name}: {getattr(self, name)} is no multiple of eval_every {self.eval_every}")

    @property
    def stream_norm(self) -> str:
        """How a transformer's residual stream is normalised: residual_norm, or "sphere" by recipe."""
        return "sphere" if self.recipe == "bounded_sphere" else self.residual_norm

    @property
    def split_seed(self) -> int:
        return self.seed if self.data_seed is None else self.data_seed


@dataclass(frozen=True)
class SweepConfig:
    """Runs to make: every arm x every point of the grid x every seed."""

    base: dict[str, Any] = field(default_factory=dict)
    """TrainerConfig fields that all runs share."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """TrainerConfig fields with the values to combine."""
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Named changes to base, each compared with the others."""
    arm_grids: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    """Grids of single arms, by their names, in place of `grid`."""
    name: str = ""
    """Experiment names as a template over fields, such as "p{p}_lr{lr}_wd{weight_decay}"."""
    seeds: Seeds = 1
    """Seeds per configuration, counted up from base's seed."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not (self.base or self.grid or self.arms):
            raise ValueError("--config: a sweep needs a file or the name of a sweep configuration, such as quick")
        if unknown := sorted(set(self.arm_grids) - set(self.arms)):
            raise ValueError(f"arm_grids: '{unknown[0]}' is none of the arms {', '.join(self.arms) or '(none)'}")


@dataclass(frozen=True)
class TrainOptions(studycore.options.TrainOptions):
    """Flags of `train`."""

    extra_epochs: NonNegativeInt = 0
    """Epochs beyond the configuration's; with --resume a finished run goes on."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints that stay, besides the best; more let the explorer go back through the training."""

    @property
    def extends(self) -> bool:
        return self.extra_epochs > 0


LARGEST_P = 2**20


def training_pairs(train_frac: float, n_pairs: int) -> int:
    """How many of the pairs are for training. ValueError where none would be, or none for testing."""
    n_train = round(train_frac * n_pairs)
    if not 0 < n_train < n_pairs:
        raise ValueError(
            f"train_frac: {train_frac} of the {n_pairs} pairs leaves {n_train} for training and "
            f"{n_pairs - n_train} for testing; choose it so that both are at least 1"
        )
    return n_train


def is_prime(n: int) -> bool:
    return n > 1 and all(n % k for k in range(2, int(n**0.5) + 1))


def next_prime(n: int) -> int:
    return n if is_prime(n) else next_prime(n + 1)
