"""The settings of the whole study, in the sections of its files, and those of each job. Cheap to import: no torch.

A file has sections (`hsae: {m_top: 16}`); a job has flat fields. PATHS says which field each key gives; a key that is
neither there nor in REFUSED is no key.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
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
from studycore.errors import UserError
from studycore.options import TrainOptions

QUESTION = (
    "Do concepts form a hierarchy in the unembedding, and does an autoencoder that starts from it keep it better than "
    "one that starts at random?"
)
SYNTHETIC = "synthetic-tree"
"""The "model" that is no language model: a planted tree of concepts with exact ground truth."""
DEFAULT = "smollm2"
"""The configuration that is read without --config."""
AGAIN = "remove that folder, and its job is made again, or name that of another"
"""What to do about a folder of a job that cannot be read."""
FLAT = ("topk", "batchtopk", "matryoshka")
BASELINES = ("random", *FLAT)
CONTROLS = (
    "random_staged",
    "random_teacher",
    "frozen_random",
    "no_causal_ortho",
    "euclidean",
    "top2",
    "random_projectors",
    "tied",
)
ARMS = (*BASELINES, "teacher", *CONTROLS)
ABLATIONS = {
    "euclidean_vs_causal": "euclidean",
    "topk_1_vs_2": "top2",
    "no_teacher_init": "random",
    "remove_teacher_init": "random",
    "drop_causal_ortho": "no_causal_ortho",
    "randomize_projectors": "random_projectors",
}
"""The original study's names of ablations -> arms."""


# ------------------------------------------------------------------------------------------------ what jobs are given
@dataclass(frozen=True)
class SourceFields:
    """Where unembedding and activations come from."""

    model: str = "studycore/wordnet-lm"
    """Hub id or folder of a causal language model, one that comes with the studies, or synthetic-tree."""
    model_revision: str | None = None
    """Commit or branch of a hub model; null: the newest."""
    tree_parents: AtLeast2 = 8
    """synthetic-tree: parents."""
    tree_children: AtLeast2 = 4
    """synthetic-tree: children of each parent."""
    tree_dim: AtLeast2 = 64
    """synthetic-tree: width of the residual stream."""
    tree_words: AtLeast2 = 40
    """synthetic-tree: words of each child, and half as many that a parent has beside its children's."""
    tree_noise: NonNegativeFloat = 0.5
    """synthetic-tree: length of the noise of words and activations, beside parents of length 1."""
    tree_child_scale: NonNegativeFloat = 0.8
    """synthetic-tree: length of what a child adds to its parent; 0 with tree_parent_scale 0: pure noise."""
    tree_parent_scale: NonNegativeFloat = 1.0
    """synthetic-tree: length of a parent."""
    tree_seed: NonNegativeInt = 0
    """synthetic-tree: which tree."""


@dataclass(frozen=True)
class GeometryConfig(SourceFields):
    """Phase 1: concepts, causal geometry, concept vectors, tests against nulls."""

    parents: AtLeast2 = 16
    """Parent concepts."""
    max_children_per_parent: AtLeast2 = 8
    """Children of each parent at most; a parent has two or more."""
    min_vocab_count: PositiveInt = 50
    """Single-token words that a concept has at least."""
    senses: Literal["all", "first"] = "all"
    """Whether a word counts for all its senses (Park et al.) or for the most frequent one alone."""
    split: list[float] = field(default_factory=lambda: [0.7, 0.15, 0.15])
    """Shares of a concept's words: for estimating, for choosing, for testing."""
    shrinkage: BelowOne = 0.0
    """Of the unembedding's covariance towards its mean eigenvalue."""
    lda_shrinkage: BelowOne | None = None
    """Of each concept's covariance; null: Ledoit and Wolf's own."""
    angle_threshold_deg: PositiveFloat = 80.0
    """The original study's threshold of the median causal angle."""
    kl_threshold: PositiveFloat = 0.1
    """Largest median divergence, in nats, of the softmax over sibling words when their parent is added."""
    n_shuffles: PositiveInt = 100
    """Draws of each null distribution; a gate's smallest p-value is 1 / (draws + 1)."""
    contexts: PositiveInt = 64
    """Contexts whose logits show ratio invariance."""
    seed: NonNegativeInt = 0
    """Seed of word splits and null draws."""

    def __post_init__(self) -> None:
        check_bounds(self)
        _check_split(self.split)
        if self.lda_shrinkage == 0:
            raise ValueError("lda_shrinkage: 0 leaves the covariance of few words singular; give a share above 0, or null")  # fmt: skip


@dataclass(frozen=True)
class ActivationConfig(SourceFields):
    """Activations of the final norm, which the unembedding reads, with their labels."""

    source: str = "studycore/wordnet"
    """Texts: studycore/wordnet, a .txt or .jsonl file, or a hub dataset (`name` or `name:configuration`)."""
    token_budget: PositiveInt = 60_000
    """Activations, one of each prompt included; a few less where texts begin alike."""
    window_length: AtLeast2 = 64
    """Tokens that the model sees at once."""
    shard_size_tokens: PositiveInt = 16_384
    """Activations in one file."""
    batch_size: PositiveInt = 16
    """Windows that go through the model at once."""
    prompts_per_concept: NonNegativeInt = 8
    """Prompts whose last token, and last activation, is a word of the concept, for each child."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of the language model."""
    data_split: list[float] = field(default_factory=lambda: [0.7, 0.15, 0.15])
    """Shares of documents: for training, for choosing, for testing."""
    seed: NonNegativeInt = 0
    """Seed of the documents' order and of the prompts."""

    def __post_init__(self) -> None:
        check_bounds(self)
        _check_split(self.data_split)


@dataclass(frozen=True)
class SaeFields:
    """A sparse autoencoder's shape."""

    m_top: PositiveInt = 64
    """Parent latents."""
    topk_parent: PositiveInt = 8
    """Parents that are active at once."""
    subspace_dim: PositiveInt = 4
    """Dimensions of each parent's subspace, in which its children lie."""
    m_low: PositiveInt = 8
    """Children of each parent."""
    topk_child: PositiveInt = 1
    """Children that are active in an active parent at most."""


@dataclass(frozen=True)
class TrainConfig(SaeFields):
    """One sparse autoencoder."""

    arm: Literal["random", "topk", "batchtopk", "matryoshka", "teacher", "random_staged", "random_teacher", "frozen_random",
                 "no_causal_ortho", "euclidean", "top2", "random_projectors", "tied"] = "random"  # fmt: skip
    """What is trained: the README's table of arms says how they differ."""
    seed: NonNegativeInt = 0
    """Seed of what is drawn at the start and of the batches' order."""
    l1_parent: NonNegativeFloat = 1e-3
    """Weight of the parents' codes in the loss."""
    l1_child: NonNegativeFloat = 1e-3
    """Weight of the children's codes in the loss."""
    l1_warmup_steps: NonNegativeInt = 0
    """Steps over which both grow to their weight."""
    biorth_lambda: NonNegativeFloat = 5e-4
    """Weight of off-diagonal bi-orthogonality of encoder and decoder."""
    biorth_sample: AtLeast2 = 256
    """Latents that this loss is taken on in a step; one has no off-diagonal."""
    causal_ortho_lambda: NonNegativeFloat = 2e-4
    """Weight of causal orthogonality of a parent and its children, in stage A, where children learn it."""
    top_level_beta: NonNegativeFloat = 0.1
    """Weight of reconstruction from parents alone, where a stage does not say its own."""
    aux_lambda: NonNegativeFloat = 1 / 32
    """Weight of reconstructing the error from latents that are dead."""
    dead_after_tokens: PositiveInt = 50_000
    """Tokens without firing after which a latent is dead."""
    lr: PositiveFloat = 3e-4
    """AdamW's learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay, of encoders."""
    grad_clip: PositiveFloat | None = 1.0
    """Largest norm of the gradient; null: no clipping."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """constant, or cosine to a tenth over the whole run."""
    lr_warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate grows to its value."""
    batch_size_acts: PositiveInt = 1024
    """Activations in one update, over all processes."""
    stage_a_steps: PositiveInt = 100
    """Steps of stage A."""
    stage_a_freeze_decoder: bool = True
    """Whether parents' decoder stays as it was initialised in stage A; children and their subspaces learn in it."""
    stage_a_lr_mult: PositiveFloat = 0.5
    """Times the learning rate, in stage A."""
    stage_a_beta: NonNegativeFloat | None = None
    """top_level_beta in stage A."""
    stage_b_steps: PositiveInt = 300
    """Steps of stage B; an arm without stages trains as many steps as both have."""
    stage_b_lr_mult: PositiveFloat = 1.0
    """Times the learning rate, in stage B."""
    stage_b_decoder_lr_mult: PositiveFloat = 0.5
    """Times the learning rate of decoders, in stage B."""
    stage_b_beta: NonNegativeFloat | None = None
    """top_level_beta in stage B."""
    energy_threshold: Share = 0.85
    """Share of the squared singular values of a teacher's child deltas that its subspace keeps at least, where it fits."""
    projectors_init: Literal["svd_from_teacher", "random"] = "svd_from_teacher"
    """Where the parents' subspaces come from in arms with a teacher."""
    val_every: PositiveInt = 50
    """Steps between evaluations on held-out activations."""
    val_size: PositiveInt = 4096
    """Held-out activations that these evaluations read."""
    log_every: PositiveInt = 20
    """Steps between rows of the training's loss."""
    checkpoint_every: PositiveInt = 200
    """Steps between checkpoints."""
    keep_last_k: PositiveInt = 2
    """Checkpoints that stay."""
    test_size: PositiveInt = 16_384
    """Test activations that metrics at the end read."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.topk_parent > self.m_top:
            raise ValueError(f"topk_parent: {self.topk_parent} is more than the {self.m_top} parents (m_top); lower it")
        if self.topk_child > self.m_low:
            raise ValueError(f"topk_child: {self.topk_child} is more than the {self.m_low} children (m_low); lower it")
        if self.arm == "no_causal_ortho" and self.causal_ortho_lambda == 0:
            raise ValueError("causal_ortho_lambda: 0 makes the arm no_causal_ortho the teacher itself; raise it, or leave the arm out")  # fmt: skip
        if self.arm == "top2" and self.topk_child >= min(2, self.m_low):
            raise ValueError(f"topk_child: {self.topk_child} makes the arm top2 the teacher itself; lower it, or leave the arm out")  # fmt: skip
        if self.arm == "random_projectors" and self.projectors_init == "random":
            raise ValueError("projectors_init: random makes the arm random_projectors the teacher itself; give svd_from_teacher, or leave the arm out")  # fmt: skip

    @property
    def flat(self) -> bool:
        """Whether the autoencoder has no hierarchy."""
        return self.arm in FLAT

    @property
    def staged(self) -> bool:
        """Whether it trains in two stages, the first with frozen parents."""
        return self.arm not in BASELINES

    @property
    def taught(self) -> bool:
        """Whether its decoder starts from vectors."""
        return self.staged and self.arm != "random_staged"

    @property
    def total_steps(self) -> int:
        return self.stage_a_steps + self.stage_b_steps


@dataclass(frozen=True)
class EvaluateConfig:
    """Phase 4 of one trained autoencoder."""

    arm: str = "random"
    """Its arm."""
    seed: NonNegativeInt = 0
    """Its seed."""
    steering_magnitudes: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])
    """Strengths of steering, in units of the latent's mean activation."""
    ce_size: PositiveInt = 2048
    """Test activations whose next token is predicted."""
    tree_contexts: NonNegativeInt = 5
    """Top contexts of each latent on the page of the feature tree."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.steering_magnitudes or not all(a > 0 for a in self.steering_magnitudes):
            raise ValueError(f"steering_magnitudes: {self.steering_magnitudes} does not fit; give numbers above 0")


def _check_split(split: list[float]) -> None:
    if len(split) != 3 or min(split) <= 0 or abs(sum(split) - 1) > 1e-9:
        raise ValueError(f"split: {split} does not fit; give three shares above 0 whose sum is 1")


@dataclass(frozen=True)
class JobOptions(TrainOptions):
    """Flags of a job that is made by itself: where what it needs lies. A phase knows."""

    geometry: str | None = None
    """Folder of a finished geometry job."""
    activations: str | None = None
    """Folder of a finished activations job."""
    autoencoder: str | None = None
    """Folder of a finished train job, for evaluate."""


# ----------------------------------------------------------------------------------------------------- the whole study
JOBS: dict[str, type] = {
    "geometry": GeometryConfig,
    "activations": ActivationConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
}
PATHS: dict[str, str] = {
    **{f"synthetic.{name}": f"tree_{name}" for name in ("parents", "children", "dim", "words", "noise", "child_scale", "parent_scale", "seed")},
    "run.seed": "seed",
    "model.name": "model",
    "model.revision": "model_revision",
    "model.dtype": "dtype",
    **{f"data.{name}": name for name in ("source", "token_budget", "window_length", "shard_size_tokens", "batch_size")},
    "data.split": "data_split",
    **{f"concepts.{name}": name for name in ("parents", "max_children_per_parent", "prompts_per_concept", "split", "senses")},
    "geometry.shrinkage": "shrinkage",
    "geometry.estimator.lda_shrinkage": "lda_shrinkage",
    "geometry.estimator.min_vocab_count": "min_vocab_count",
    "geometry.estimator.energy_threshold": "energy_threshold",
    **{f"hsae.{name}": name for name in (
        "m_top", "topk_parent", "subspace_dim", "m_low", "topk_child", "projectors_init", "l1_parent", "l1_child",
        "biorth_lambda", "biorth_sample", "causal_ortho_lambda", "top_level_beta", "aux_lambda", "dead_after_tokens")},
    **{f"training.{name}": name for name in (
        "lr", "weight_decay", "grad_clip", "batch_size_acts", "lr_schedule", "lr_warmup_steps", "l1_warmup_steps", "val_every", "val_size")},
    "training.teacher_init.stage_A.freeze_decoder": "stage_a_freeze_decoder",
    "training.teacher_init.stage_A.steps": "stage_a_steps",
    "training.teacher_init.stage_A.lr_mult": "stage_a_lr_mult",
    "training.teacher_init.stage_A.top_level_beta": "stage_a_beta",
    "training.teacher_init.stage_B.steps": "stage_b_steps",
    "training.teacher_init.stage_B.lr_mult": "stage_b_lr_mult",
    "training.teacher_init.stage_B.decoder_lr_mult": "stage_b_decoder_lr_mult",
    "training.teacher_init.stage_B.top_level_beta": "stage_b_beta",
    "eval.steering_magnitudes": "steering_magnitudes",
    "eval.ce_size": "ce_size",
    "eval.test_size": "test_size",
    "eval.tree_contexts": "tree_contexts",
    "eval.validation.angle_threshold_deg": "angle_threshold_deg",
    "eval.validation.kl_threshold": "kl_threshold",
    "eval.validation.n_shuffles": "n_shuffles",
    "eval.validation.contexts": "contexts",
    "logging.log_every": "log_every",
    "logging.checkpoint_every": "checkpoint_every",
    "logging.keep_last_k": "keep_last_k",
}  # fmt: skip
"""Key of a file -> field of the jobs that have it."""
OF_STUDY = ("training.arms", "ablate")
"""Keys that say which jobs there are."""
FIXED: dict[str, Any] = {
    "model.activation_hook": "final_residual_pre_unembed",
    "model.layers_probe": ["last"],
    "geometry.whitening": "unembedding_rows",
    "geometry.estimator.type": "lda",
    "teacher.parent_vectors": "from_final_layer",
    "teacher.child_deltas": "LDA_in_parent_subspace",
    "training.optimizer": "adamw",
    "training.baseline.init": "random",
    "training.teacher_init.stage_A.causal_ortho": True,
    "training.teacher_init.stage_B.causal_ortho": False,
    "eval.layers": ["last"],
}
"""Keys of the original study with the one value that this study implements."""
OF_LANGUAGE = (
    "model.revision", "model.dtype", "data.source", "data.window_length", "data.shard_size_tokens", "data.batch_size",
    "concepts.parents", "concepts.max_children_per_parent", "concepts.prompts_per_concept", "concepts.senses",
    "geometry.estimator.min_vocab_count",
)  # fmt: skip
"""Keys that a language model alone gives a meaning."""
REFUSED: dict[str, str] = {
    "run.budget_hours": "--dry-run tells the time; leave it out",
    "geometry.estimator.class_balance": "a concept's vector is estimated from its own words alone (Park et al.); leave it out",
    "teacher.normalize_causal": "a concept's vector keeps its length, without which its angles say nothing; leave it out",
    "teacher.map_to_layer": "only the final layer is read; leave it out",
    "hsae.router_temp": "codes keep their magnitude and are chosen by top-k without a temperature; leave it out",
    "hsae.use_tied_decoders_parent": "decoders start tied and are free afterwards; leave it out",
    "hsae.use_tied_decoders_child": "decoders start tied and are free afterwards; leave it out",
    "hsae.tie_projectors": "projectors start tied and are free afterwards; leave it out",
    "hsae.use_decoder_bias": "there always is one; leave it out",
    "hsae.use_offdiag_biorth": "bi-orthogonality always is that of the off-diagonal; leave it out",
    "training.grad_accum_steps": "give the whole batch as training.batch_size_acts",
    "training.baseline.total_steps": "arms are compared at equal steps, those of stage A and stage B; leave it out",
    "training.early_stop": "arms are compared at equal steps; leave it out",
    "eval.targets": "the thresholds stand in polytope_hsae.claims, fixed before the run; leave it out",
    "eval.metrics": "every metric is always measured; leave it out",
    "eval.probes": "every gate is always tested; leave it out",
    "logging.save_dir": "give --output-dir",
    "logging.phase_1_log": "a job's folder is named after it; leave it out",
    "logging.phase_2_log": "a job's folder is named after it; leave it out",
    "logging.phase_3_log": "a job's folder is named after it; leave it out",
    "logging.phase_4_log": "a job's folder is named after it; leave it out",
}
"""Keys of the original study that have no meaning here, and what to do instead."""


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every leaf of nested mappings, such as ("hsae.m_top", 16)."""
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and path not in REFUSED:
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


@dataclass(frozen=True)
class StudyConfig:
    """All phases. Each section is a mapping; the README's table says what its keys mean."""

    run: dict[str, Any] = field(default_factory=dict)
    """seed: the first."""
    model: dict[str, Any] = field(default_factory=dict)
    """name, revision, dtype."""
    synthetic: dict[str, Any] = field(default_factory=dict)
    """parents, children, dim, words, noise, scales, seed: for the model synthetic-tree."""
    data: dict[str, Any] = field(default_factory=dict)
    """source, token_budget, window_length, shard_size_tokens, batch_size, split."""
    concepts: dict[str, Any] = field(default_factory=dict)
    """parents, max_children_per_parent, prompts_per_concept, senses, split."""
    geometry: dict[str, Any] = field(default_factory=dict)
    """shrinkage, and estimator: lda_shrinkage, min_vocab_count, energy_threshold."""
    teacher: dict[str, Any] = field(default_factory=dict)
    """parent_vectors, child_deltas: their one value each."""
    hsae: dict[str, Any] = field(default_factory=dict)
    """Shape and losses of the hierarchical SAE."""
    training: dict[str, Any] = field(default_factory=dict)
    """arms, optimisation, and teacher_init: stage_A, stage_B."""
    eval: dict[str, Any] = field(default_factory=dict)
    """steering_magnitudes, sizes, and validation: thresholds and draws of the gates."""
    ablate: list[str] = field(default_factory=list)
    """Ablations by the original study's names, besides training.arms."""
    logging: dict[str, Any] = field(default_factory=dict)
    """log_every, checkpoint_every, keep_last_k."""
    seeds: Seeds = 3
    """Seeds of every arm, counted up from run.seed."""

    def __post_init__(self) -> None:
        check_bounds(self)
        for path, value in leaves({s: v for s, v in vars(self).items() if isinstance(v, dict)}):
            if path in REFUSED:
                raise ValueError(f"{path}: is no key here: {REFUSED[path]}")
            if path in FIXED:
                if value != FIXED[path]:
                    raise ValueError(f"{path}: {value!r} does not fit; it can be {FIXED[path]!r} alone")
            elif path not in PATHS and path not in OF_STUDY:
                near = get_close_matches(path, [*PATHS, *FIXED, *OF_STUDY], n=1)
                mend = f"did you mean '{near[0]}'?" if near else "the README's table lists those there are"
                raise ValueError(f"{path}: is no key here; {mend}")
            planted = self.model.get("name") == SYNTHETIC
            if path in OF_LANGUAGE and planted:
                raise ValueError(f"{path}: the planted tree has no such thing; leave it out, or name a language model")
            if path.startswith("synthetic.") and not planted:
                raise ValueError(f"{path}: is read with model.name {SYNTHETIC} alone; leave it out, or name that model")
        for name in self.ablate:
            if name not in ABLATIONS:
                raise ValueError(f"ablate: '{name}' is none of {', '.join(ABLATIONS)}; give some of these")
        for name in self.arms:
            if name not in ARMS:
                raise ValueError(f"training.arms: '{name}' is none of {', '.join(ARMS)}; give some of these")

    @property
    def arms(self) -> list[str]:
        """In the order of ARMS; "random", the baseline, and "teacher" always."""
        named = self.training.get("arms", [])
        if not isinstance(named, list):
            raise ValueError(f"training.arms: {named!r} is no list; give some of {', '.join(ARMS)}")
        arms = {"random", "teacher", *named, *(ABLATIONS[name] for name in self.ablate if name in ABLATIONS)}
        return [*(arm for arm in ARMS if arm in arms), *sorted(arms - set(ARMS))]

    def job(self, verb: str, **values: Any) -> Any:
        """The configuration of one job. UserError names the key that does not fit."""
        from studycore.configuration import check

        cls = JOBS[verb]
        own = {f.name for f in fields(cls)}
        sections = {s: v for s, v in vars(self).items() if isinstance(v, dict)}
        given = {PATHS[path]: (path, value) for path, value in leaves(sections) if PATHS.get(path) in own}
        checked = {}
        for name, (path, value) in given.items():
            try:
                checked[name] = check([cls], name, value)
            except UserError as error:
                raise UserError(f"{path.rpartition('.')[0]}: {error}") from None
        try:
            return cls(**{**checked, **values})
        except ValueError as error:
            raise UserError(str(error)) from None


def with_flags(file: dict[str, Any], flags: dict[str, Any], of_runs: dict[str, Any]) -> dict[str, Any]:
    """The file's sections with the flags of a training put where the file has their keys. UserError for --arm."""
    if not file:
        from studycore.configuration import find_config, read_yaml

        file = read_yaml(find_config(DEFAULT, "polytope_hsae"))
    if "arm" in of_runs:
        raise UserError("--arm: a phase trains several; list them under training.arms")
    values = {**file, **flags}
    keys = {name: path for path, name in PATHS.items()}
    for name, value in of_runs.items():
        *sections, last = keys[name].split(".")
        place = values
        for section in sections:
            place[section] = dict(place.get(section, {}))
            place = place[section]
        place[last] = value
    return values
