"""What determines the reference language model, without PyTorch."""

from dataclasses import dataclass
from typing import Literal

from studycore.bounds import AtLeast2, NonNegativeInt, PositiveInt, check_bounds
from studycore.options import TrainOptions


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the model."""

    seed: int = 0
    """Seed of weights, order, dropout and the tokens that a step's loss takes in."""
    word_count: PositiveInt = 20
    """Words that stand so often in the training text are one token, with their leading space ..."""
    noun_count: PositiveInt = 7
    """... and single-word nouns of WordNet already when they stand so often."""
    pieces: int = 1500
    """Parts of those words that are no token."""
    hidden_size: PositiveInt = 256
    """Width."""
    layers: PositiveInt = 4
    """Blocks."""
    heads: PositiveInt = 4
    """Attention heads in a block."""
    dropout: float = 0.0
    """On the embeddings and on each block's two outputs."""
    block: AtLeast2 = 160
    """Tokens in a row."""
    rows: PositiveInt = 16
    """Rows in a step."""
    steps: PositiveInt = 2400
    """Updates."""
    exact_steps: NonNegativeInt = 400
    """The last updates, whose loss takes in the whole vocabulary ..."""
    sampled: PositiveInt = 2048
    """... while the others take in so many tokens of it (the mean of a random number, slightly fewer)."""
    learning_rate: float = 3e-3
    """AdamW's, at its highest."""
    warm_up: NonNegativeInt = 100
    """Updates of linear warm-up; a cosine to zero follows."""
    weight_decay: float = 0.1
    """AdamW's, for matrices."""
    clip: float = 1.0
    """Bound of the gradient's norm."""
    eval_every: PositiveInt = 400
    """Updates between evaluations on a part of the held-out glosses."""
    checkpoint_every: PositiveInt = 100
    """Updates between checkpoints."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.pieces < 300:
            raise ValueError(f"pieces: {self.pieces} does not fit; give at least 300, which takes in the 256 bytes")
        if self.hidden_size % self.heads:
            raise ValueError(
                f"heads: {self.heads} does not divide hidden_size {self.hidden_size}; choose one that does"
            )


@dataclass(frozen=True)
class Options(TrainOptions):
    """Flags that change no number."""

    num_processes: Literal[1] | None = 1
    """The model is small: one process trains it."""
    seeds: Literal[1] = 1
    """It is trained once."""
