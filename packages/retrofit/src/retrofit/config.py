"""The settings of a run, a comparison and a measurement. Importing this module must stay cheap: no torch."""

import math
import pkgutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import studycore.options
from studycore.bounds import BelowOne, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Seeds, check_bounds
from studycore.files import check_output_file

QUESTION = "Does geometry-aware training improve the conditioning of a pre-trained language model, and its perplexity?"
EMBEDDED_MODEL = "studycore/wordnet-lm"
EMBEDDED_DATASET = "studycore/wordnet"
ROLES = ("up", "down", "gate", "attention", "embeddings", "other")
"""Roles of weight matrices."""
START = "start"
"""The run of a comparison that only evaluates step 0; all arms take its evaluation over."""
SWEPT = ("gram", "gram_scale_free")
"""The arms whose weight of the penalty a comparison can vary."""
TUNING = "tuning"
"""What the runs are called among the arms that choose the learning rate."""


def arm_names() -> list[str]:
    """The methods that there are: one module each in retrofit/arms."""
    return sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent / "arms")]) if m.name != "base")


def arms_in_words() -> str:
    """The methods, each in quotes: one is called none."""
    return ", ".join(f"'{name}'" for name in arm_names())


def _check_finite(config: Any) -> None:
    for name, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}: {value} does not fit; give a finite number")


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run's numbers. ValueError names the field, its value and the mend."""

    method: str = ""
    """Required. What is done to the model besides training on: standard, gram, geometry, or another arm of the README's table."""
    model: str = EMBEDDED_MODEL
    """Hub id or folder of a causal language model; studycore/wordnet-lm comes with the studies."""
    model_revision: str | None = None
    """Commit or branch of a hub model; null: the newest."""
    dataset: str = EMBEDDED_DATASET
    """Hub id of a text dataset, a folder, or a .txt, .jsonl or .parquet file; studycore/wordnet needs no hub."""
    dataset_config: str | None = None
    """Name of a hub dataset's configuration."""
    dataset_revision: str | None = None
    """Commit or branch of a hub dataset; null: the newest."""
    train_split: str = "train"
    """Split of a hub dataset that is trained on."""
    validation_split: str = "validation"
    """Split of a hub dataset that perplexity is measured on."""
    validation_dataset: str | None = None
    """Another dataset to validate on; null: validation_split, or 5 % of a file's documents, chosen by their hash."""
    validation_dataset_config: str | None = None
    """Name of validation_dataset's configuration on the hub."""
    validation_dataset_revision: str | None = None
    """Commit or branch of validation_dataset on the hub; null: the newest."""
    on_overlap: Literal["stop", "drop"] = "stop"
    """What is done when training documents stand in the validation text too: stop, or drop them from training."""
    text_column: str = "text"
    """Column or key that holds a document's text."""
    max_docs: PositiveInt | None = 1000
    """Training documents that are used; null: all."""
    validation_docs: PositiveInt | None = None
    """Validation documents that are used; null: all."""
    block_size: PositiveInt = 128
    """Tokens that the model sees at once."""
    end_of_text: Literal["before", "none"] = "before"
    """Whether each document begins with the end-of-text token (none: as in the original study)."""
    bos: Literal["tokenizer", "always", "never"] = "tokenizer"
    """Whether every window begins with the beginning-of-text token; tokenizer: where the model's tokenizer puts it itself."""
    validation_blocks: PositiveInt | None = None
    """Validation blocks for the first and last perplexity; null: the whole split."""
    trajectory_blocks: PositiveInt = 64
    """The first validation blocks, for perplexity in between and for the training perplexity (as many training blocks)."""
    transport_blocks: PositiveInt = 8
    """The first validation blocks, for perplexity and KL divergence right before and after each transport."""
    activation_tokens: NonNegativeInt = 4096
    """Validation tokens, always the same, from which conditioning of activations is measured."""
    headline_tokens: NonNegativeInt = 65536
    """Validation tokens, always the same, of which ff_gram is measured at both ends; 65536 unless given, 0: not measured."""
    validate_on: Literal["validation", "tuning"] = "validation"
    """What is evaluated on; tuning: a tenth of the training documents, chosen by hash and not trained on. Default: validation."""

    num_steps: NonNegativeInt = 1000
    """Updates."""
    lr: PositiveFloat = 1e-4
    """Learning rate, after warm-up."""
    warmup_steps: NonNegativeInt = 0
    """Updates over which the learning rate rises linearly to its value; 0 unless given, as in the original study."""
    tuned: list[str] = field(default_factory=list)
    """Folders of runs that validate_on tuning, relative to this run's folder or the current one: the rate of the one that
    ends at the lowest perplexity is taken instead of lr. Empty unless given: lr holds."""
    gram_weight: NonNegativeFloat = 0.01
    """Weight of the Gram penalty."""
    glt_interval: PositiveInt = 50
    """Updates between two transports."""
    eval_interval: PositiveInt = 100
    """Updates between evaluations."""
    batch_size: PositiveInt = 16
    """Blocks in one update, over all processes and accumulated parts."""
    gradient_accumulation_steps: PositiveInt = 1
    """Parts that each process cuts its share of a batch into, to save memory; the batch stays the same."""
    num_workers: NonNegativeInt = 0
    """Processes that load batches."""
    seed: int = 0
    """Seed of the order of batches, permutations and dropout."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's decoupled weight decay, on every parameter as in the original study."""
    beta1: BelowOne = 0.9
    """AdamW's first moment decay."""
    beta2: BelowOne = 0.999
    """AdamW's second moment decay."""
    eps: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    grad_clip: PositiveFloat | None = 1.0
    """Largest norm of the cross-entropy's gradient; the penalty's is added after clipping. null: no clipping."""
    dropout: BelowOne = 0.0
    """Dropout everywhere in the model, instead of its own."""
    mixed_precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of matrix products in training and of perplexities; bf16 is faster on CPUs with AMX and on GPUs."""
    norm_reference: str | None = None
    """norm_matched: folder of the run whose weight norms are followed, relative to this run's folder or the current one."""
    checkpoint_every: PositiveInt = 100
    """Updates between checkpoints."""
    save_model: bool = True
    """Saves the retrofitted model as a Hugging Face folder, model/, at the end."""

    def __post_init__(self) -> None:
        if not self.method:
            raise ValueError(f"method: is missing; give one of {arms_in_words()}")
        if self.method not in arm_names():
            raise ValueError(f"method: '{self.method}' is no method; give one of {arms_in_words()}")
        _check_finite(self)
        check_bounds(self)
        for name in ("validation_dataset_config", "validation_dataset_revision"):
            if getattr(self, name) is not None and self.validation_dataset is None:
                raise ValueError(f"{name}: '{getattr(self, name)}' is of no validation_dataset; name one")
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps: {self.gradient_accumulation_steps} does not divide batch_size {self.batch_size}"
            )
        if self.method == "norm_matched" and self.norm_reference is None:
            raise ValueError("norm_reference: null; norm_matched follows a run's weight norms, so name its folder")

    @property
    def tokens(self) -> int:
        """Training tokens of the run."""
        return self.num_steps * self.batch_size * self.block_size


@dataclass(frozen=True)
class CompareConfig:
    """Arms x seeds from one start."""

    base: dict[str, Any] = field(default_factory=dict)
    """RunConfig fields that all arms share."""
    arms: list[str] = field(default_factory=lambda: ["standard", "gram", "geometry", "glt_fold"])
    """Methods that are compared."""
    seeds: Seeds = 3
    """Seeds per arm, counted up from base's seed."""
    lrs: list[float] = field(default_factory=list)
    """Learning rates at which continued training is tried on tuning text (see validate_on) before anything else; all arms
    take the best one. Empty unless given: base's lr holds."""
    tuning_steps: PositiveInt | None = None
    """Updates at each of these rates; null: as many as the arms make."""
    weights: list[float] = field(default_factory=list)
    """Weights of the penalty at each of which gram and gram_scale_free are run, and judged by the front of all of them.
    Empty unless given: base's gram_weight holds."""
    save_models: Literal["none", "first", "all"] = "first"
    """Of which runs the model is saved: of none, of each arm's first seed, of all."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if "method" in self.base:
            raise ValueError(
                f"base: method '{self.base['method']}' is for `run`; a comparison takes --arms '[standard, geometry]'"
            )
        for name in self.arms:
            if name not in arm_names() or name == "none":
                known = ", ".join(f"'{known}'" for known in arm_names() if known != "none")
                raise ValueError(f"arms: '{name}' cannot be compared; give some of {known}")
        if not self.arms or len(set(self.arms)) != len(self.arms):
            raise ValueError(f"arms: {self.arms} must name at least one method, and each once")
        for name, values in (("lrs", self.lrs), ("weights", self.weights)):
            if len(set(values)) < len(values) or not all(math.isfinite(value) and value > 0 for value in values):
                raise ValueError(f"{name}: {values} does not fit; give numbers above 0, each once")
        if self.lrs and "lr" in self.base:
            raise ValueError(
                f"lr: {self.base['lr']} is given, and lrs {self.lrs} are to be tried; leave it out, or give --lrs '[]'"
            )
        if self.tuning_steps is not None and not self.lrs:
            raise ValueError(
                f"tuning_steps: {self.tuning_steps} is of the rates in lrs, which has none; give --lrs too"
            )
        if self.weights and not ({*SWEPT} & {*self.arms} and "standard" in self.arms):
            raise ValueError(
                f"weights: {self.weights} are of {' and '.join(SWEPT)}, judged beside standard; add these to arms"
            )
        if "norm_matched" in self.arms and "geometry" not in self.arms:
            raise ValueError("arms: norm_matched follows geometry's weight norms; add geometry")


@dataclass(frozen=True)
class MeasureConfig:
    """What `measure` looks at."""

    model: str = EMBEDDED_MODEL
    """Hub id or folder of a causal language model."""
    model_revision: str | None = None
    """Commit or branch of a hub model; null: the newest."""
    embeddings: bool = False
    """Embeddings too."""
    dataset: str | None = EMBEDDED_DATASET
    """Text from which activations are measured (as for `run`); null: weights alone."""
    dataset_config: str | None = None
    """Name of a hub dataset's configuration."""
    dataset_revision: str | None = None
    """Commit or branch of a hub dataset; null: the newest."""
    validation_split: str = "validation"
    """Split of a hub dataset that is read."""
    text_column: str = "text"
    """Column or key that holds a document's text."""
    block_size: PositiveInt = 128
    """Tokens that the model sees at once."""
    end_of_text: Literal["before", "none"] = "before"
    """Whether each document begins with the end-of-text token."""
    bos: Literal["tokenizer", "always", "never"] = "tokenizer"
    """Whether every window begins with the beginning-of-text token; tokenizer: where the model's tokenizer puts it itself."""
    activation_tokens: PositiveInt = 8192
    """Tokens from which conditioning of activations is measured; fewer than the FFN's width say nothing, so none is given."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class TrainOptions(studycore.options.TrainOptions):
    """Flags of `run`."""

    output: str | None = None
    """A JSON file in the original study's form, written at the end besides results.json; an earlier one is replaced, any other file refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is not None:
            check_output_file(self.output, "output", ours=("method", "initial", "final", "trajectory"))
        if self.output is not None and self.seeds > 1:
            raise ValueError(f"output: '{self.output}' is one run's file; leave it or --seeds out")


@dataclass(frozen=True)
class MeasureOptions(studycore.options.TrainOptions):
    """Flags of `measure`, which computes in one process unless told otherwise."""

    num_processes: PositiveInt | None = 1
    """Processes; only the first one's figures are written."""
