"""The settings of every verb. Importing this module must stay cheap: no torch."""

from dataclasses import dataclass, field
from typing import Any, Literal

import studycore.options
from studycore.bounds import BelowOne, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Seeds, check_bounds
from studycore.files import check_output_file

QUESTION = "How much of a prompt survives when each token's embedding is compressed and rebuilt, so that questions on it are still answered?"
EMBEDDED_MODEL = "studycore/smollm2-135m-instruct"
EMBEDDED_DATASET = "studycore/life-sketches"
FIT_TEXT = "studycore/wordnet"
UNCOMPRESSED = ("ids", "raw", "question_only", "shuffled")
"""Arms that need no compressor."""
COMPRESSED = ("linear", "nearest", "nearest_int4", "adapter", "int8", "int4", "fewer", "adapter_paragraph")
"""Arms of one ratio."""
THROUGH_MODEL = ("phase2", "phase2_ppl")
"""Arms that the verb phase2 trains: on the objective of the settings, and on the prompt's perplexity."""
GOOD, PARTIAL = 70.0, 50.0
"""The original study's bands of F1: validated from the first on, helped from the second on."""


def size_name(ratio: float) -> str:
    """A ratio in names of jobs and in tables: 8.0 is 8x."""
    return f"{ratio:g}x"


@dataclass(frozen=True)
class Reading:
    """Which model reads what, and how it is asked. ValueError names the field, its value and the mend."""

    model: str = EMBEDDED_MODEL
    """Hub id or folder of a causal language model; studycore/... come with the studies."""
    model_revision: str | None = None
    """Commit or branch of a hub model; null: the newest."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the language model; the adapter is always float32."""
    dataset: str = EMBEDDED_DATASET
    """rajpurkar/squad, rajpurkar/squad_v2 or another hub dataset of that form, or a file in SQuAD's JSON format."""
    dataset_revision: str | None = None
    """Commit or branch of a hub dataset; null: the newest."""
    split: str = "validation"
    """Split whose questions are scored; of a JSON file, which has none, all are."""
    eval_samples: PositiveInt = 400
    """Questions that are scored."""
    questions_per_paragraph: PositiveInt = 4
    """At most so many questions of a paragraph are scored: paragraphs are the independent units."""
    examples: NonNegativeInt = 4
    """Paragraphs of worked examples before the question, from the training split; none of their answers is scored."""
    chat_template: bool = False
    """Puts the prompt into the model's chat template."""
    max_length: PositiveInt = 512
    """Tokens of paragraph and question; the paragraph is cut to fit, the question and its cue never."""
    max_new_tokens: PositiveInt = 16
    """Tokens of an answer at most; it ends at the end of the line."""
    eval_batch_size: PositiveInt = 32
    """Questions that are answered together."""
    scope: Literal["prompt", "paragraph"] = "prompt"
    """What is compressed: the whole prompt as in the original study, or the paragraph alone."""
    data_seed: NonNegativeInt = 0
    """Seed of the choice of questions and examples, the same for all arms and seeds."""
    seed: NonNegativeInt = 0
    """Seed of random projections, of the adapter and the order of its rows."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class FitConfig(Reading):
    """What the compressor is fitted on."""

    samples: PositiveInt = 10000
    """Training questions whose prompts are counted (each paragraph once a question, as the original study has it)."""
    fit_text: str | None = FIT_TEXT
    """More text that is counted, as SQuAD paragraphs know few words: studycore/wordnet's glosses; null: none."""
    compress_method: Literal["pca", "random"] = "pca"
    """Principal components, or a random projection."""
    fit_text_share: BelowOne = 0.1
    """Share of the whole count that `fit_text` has: it is to show other words, not to outweigh what is compressed."""
    alpha: NonNegativeFloat = 1.0
    """A token type weighs count^alpha in the compressor's fit; 1 is every position once."""
    held_out_types: BelowOne = 0.1
    """Share of the token types that no fit sees, drawn among all but the most frequent."""
    always_seen: NonNegativeInt = 500
    """The most frequent token types, which are never held out: any text would show them."""
    pca_samples: PositiveInt | None = None
    """Of `samples`, how many the compressor's counts are of; null: all, since counting costs the same."""
    input_dim: PositiveInt | None = None
    """Dimensions of the model's embeddings, as the original study states them: another number than the model's is refused;
    null: the model's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pca_samples is not None and self.pca_samples > self.samples:
            raise ValueError(f"pca_samples: {self.pca_samples} exceeds the {self.samples} samples; give at most these")


@dataclass(frozen=True)
class Phase1Config(FitConfig):
    """Compressor and adapter at one ratio, trained on reconstruction alone."""

    ratio: PositiveFloat = 8.0
    """Dimensions of an embedding over dimensions of its code."""
    compress_dim: PositiveInt | None = None
    """Dimensions of the code; null: by the ratio."""
    adapter_form: Literal["linear_start", "original"] = "linear_start"
    """Starts at the linear inverse and keeps norms, or the original study's, whose last layer norm makes all rows alike."""
    adapter_alpha: NonNegativeFloat = 0.5
    """A token type weighs count^adapter_alpha in the adapter's training: rare types carry the answers."""
    adapter_hidden_mult: PositiveInt = 4
    """Hidden width over the code's."""
    adapter_dropout: BelowOne = 0.0
    """Dropout before the last layer; the original study has 0.1."""
    adapter_lr: PositiveFloat = 1e-3
    """Peak learning rate of AdamW; it falls along a cosine."""
    adapter_weight_decay: NonNegativeFloat = 0.01
    """AdamW's decoupled weight decay."""
    epochs: NonNegativeInt = 40
    """Passes over the token types."""
    batch_size: PositiveInt = 512
    """Token types in one update, over all processes."""
    grad_clip: PositiveFloat | None = 1.0
    """Largest norm of the gradient; null: no clipping."""
    recon_weight: PositiveFloat = 1.0
    """Weight of the reconstruction loss."""
    ce_weight: NonNegativeFloat = 0.0
    """Weight of a loss through the language model: 0 in phase 1."""
    eval_every: PositiveInt = 200
    """Updates between measurements of the reconstruction."""
    checkpoint_every: PositiveInt = 500
    """Updates between checkpoints."""
    quick_eval_samples: NonNegativeInt = 0
    """Questions that are also answered at each measurement (quick_f1); the original study's 10 showed noise alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ce_weight and type(self) is Phase1Config:
            raise ValueError(
                f"ce_weight: {self.ce_weight} is a loss through the language model; phase 1 has none, so use phase2"
            )


@dataclass(frozen=True)
class Phase2Config(Phase1Config):
    """Training of phase 1's adapter through the frozen language model."""

    phase1: str | None = None
    """Folder of the phase 1 run that is gone on from."""
    only_below: NonNegativeFloat = GOOD
    """Phase 2 is due when phase 1's F1 is below this; 101 asks for it in any case."""
    objective: Literal["prompt_ppl", "answer_ce", "kl"] = "kl"
    """The prompt's perplexity (the original study's), the answer's cross-entropy, or KL to the uncompressed model."""
    balance: Literal["running_means", "uncertainty", "gradient_norms", "fixed"] = "running_means"
    """How the two terms are weighed, besides recon_weight and ce_weight."""
    ce_weight: NonNegativeFloat = 1.0
    """Weight of the loss through the language model."""
    steps: NonNegativeInt = 60
    """Updates; after `samples` training questions they begin again."""
    phase2_batch_size: PositiveInt = 8
    """Training questions in one update, over all processes."""
    phase2_lr: PositiveFloat = 3e-4
    """Peak learning rate of AdamW."""
    log_every: PositiveInt = 5
    """Updates between rows of the log."""


@dataclass(frozen=True)
class EvaluateConfig(Reading):
    """One arm, scored."""

    arm: Literal[
        "ids",
        "raw",
        "question_only",
        "shuffled",
        "linear",
        "nearest",
        "nearest_int4",
        "adapter",
        "int8",
        "int4",
        "fewer",
        "adapter_paragraph",
    ] = "ids"
    """ids and raw: uncompressed. linear, nearest: how codes are read without an adapter. int8, int4: the adapter reads
    quantised codes; nearest_int4: the nearest row does. fewer: the paragraph's bytes in whole tokens, the rest whole;
    adapter_paragraph: the adapter's rows for the paragraph, the rest whole. question_only, shuffled: negative controls."""
    phase1: str | None = None
    """Folder of the phase 1 run whose compressor and adapter are scored."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class SelfcheckConfig(Reading):
    """What is checked before anything is trained."""

    eval_samples: PositiveInt = 4
    """Questions that the checks answer."""


@dataclass(frozen=True)
class SuiteConfig:
    """The main job: every arm at every ratio."""

    base: dict[str, Any] = field(default_factory=dict)
    """Fields of phase1 and phase2 that all share."""
    ratios: list[float] = field(default_factory=lambda: [4.0, 8.0])
    """Ratios of the dimensions."""
    arms: list[str] = field(default_factory=lambda: [*COMPRESSED, *THROUGH_MODEL])
    """Arms at every ratio, besides the uncompressed ones."""
    only: dict[str, list[float]] = field(default_factory=dict)
    """Arms that are not done at every ratio, and those of the ratios that they are done at; none leaves an arm out."""
    seeds: Seeds = 1
    """Seeds, counted up from base's seed: each its own adapters and its own arms that depend on them."""

    def __post_init__(self) -> None:
        check_bounds(self)
        known = [*COMPRESSED, *THROUGH_MODEL]
        for arm in self.arms:
            if arm not in known:
                raise ValueError(f"arms: '{arm}' is none of {', '.join(known)}; give some of these")
        if not self.ratios or len(set(self.ratios)) != len(self.ratios) or min(self.ratios) <= 1:
            raise ValueError(f"ratios: {self.ratios} does not fit; give distinct numbers above 1")
        for arm in self.only:
            if arm not in known or arm == "adapter":
                raise ValueError(
                    f"only: '{arm}' is none of the arms that can be left out at a ratio; give some of arms"
                )

    def ratios_of(self, arm: str) -> list[float]:
        """The ratios that an arm is done at."""
        return [ratio for ratio in self.ratios if ratio in self.only.get(arm, self.ratios)]


@dataclass(frozen=True)
class Options(studycore.options.TrainOptions):
    """Flags of the verbs with one run."""

    diagnostic_log: str | None = None
    """A file of JSON lines in the original study's form, besides metrics.jsonl."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.diagnostic_log is not None:
            check_output_file(self.diagnostic_log, "diagnostic_log")
