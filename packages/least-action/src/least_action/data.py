"""Modular arithmetic as a finite data set: all pairs (a, b) of residues, split once at random.

Shapes: N pairs, P residues. A pair is two integers in 0..p-1; `a_N`, `b_N`, `y_N` are int64.
Division leaves out b = 0 (no inverse), so it has p(p-1) pairs instead of p^2. `compose` is the group S5 (Power et al.
2022): its 120 permutations in lexicographic order take the place of residues.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from least_action.config import TrainerConfig, training_pairs
from studycore.hashes import tensor_sha256
from studycore.streams import generator


@dataclass(frozen=True)
class Pairs:
    """Inputs and labels of some of the pairs."""

    a_N: Tensor
    b_N: Tensor
    y_N: Tensor

    def __len__(self) -> int:
        return len(self.y_N)

    def to(self, device: torch.device | str) -> "Pairs":
        return Pairs(self.a_N.to(device), self.b_N.to(device), self.y_N.to(device))

    def __getitem__(self, index: Tensor | slice) -> "Pairs":
        return Pairs(self.a_N[index], self.b_N[index], self.y_N[index])


def answer(a_N: Tensor, b_N: Tensor, p: int, operation: str) -> Tensor:
    """(a op b) mod p; division multiplies by the inverse b^(p-2) (Fermat), so p must be prime there."""
    if operation == "add":
        return (a_N + b_N) % p
    if operation == "subtract":
        return (a_N - b_N) % p
    if operation == "multiply":
        return (a_N * b_N) % p
    if operation == "divide":
        inverse_P = torch.tensor([pow(int(b), p - 2, p) for b in range(p)])
        return (a_N * inverse_P[b_N]) % p
    if operation == "compose":
        return composition_table()[a_N, b_N]
    raise ValueError(f"operation: '{operation}' is none of add, subtract, multiply, divide, compose")


def composition_table() -> Tensor:
    """[120, 120] int64, the index of the permutation "first b, then a", with permutations in lexicographic order."""
    permutations = torch.tensor(list(itertools.permutations(range(5))))
    composed_AB5 = permutations[:, permutations]
    place = 5 ** torch.arange(4, -1, -1)
    # Lexicographic order is the order of the permutations read as numbers in base 5.
    return torch.searchsorted((permutations * place).sum(dim=-1), (composed_AB5 * place).sum(dim=-1))


def all_pairs(p: int, operation: str) -> Pairs:
    """Every pair for which the operation is defined, ordered by a, then b."""
    b_range = torch.arange(1 if operation == "divide" else 0, p)
    a_N, b_N = (grid.reshape(-1) for grid in torch.meshgrid(torch.arange(p), b_range, indexing="ij"))
    return Pairs(a_N, b_N, answer(a_N, b_N, p, operation))


class ModularArithmeticDataset:
    """The pairs as one-hot vectors [one_hot(a), one_hot(b)] of width 2p, for the MLPs.

    `train_frac` of the pairs, rounded, are for training; the split depends on (data_seed, p, operation) alone.
    """

    def __init__(self, p: int, operation: str = "add", train_frac: float = 0.3, data_seed: int = 42):
        self.p, self.operation = p, operation
        self.pairs = all_pairs(p, operation)
        n_train = training_pairs(train_frac, len(self.pairs))
        order = torch.randperm(len(self.pairs), generator=generator(data_seed, "split", p, operation))
        # Sorted, so that reductions over the pairs run in one order whatever the shuffle.
        self.train_index, self.test_index = order[:n_train].sort().values, order[n_train:].sort().values
        self.train, self.test = self.pairs[self.train_index], self.pairs[self.test_index]

    def inputs(self, pairs: Pairs) -> Tensor:
        """[N, 2p] float32."""
        return pair_one_hot(pairs.a_N, pairs.b_N, self.p).float()

    def get_train(self) -> tuple[Tensor, Tensor]:
        """(inputs, labels) of the training pairs."""
        return self.inputs(self.train), self.train.y_N

    def get_test(self) -> tuple[Tensor, Tensor]:
        """(inputs, labels) of the held-out pairs."""
        return self.inputs(self.test), self.test.y_N

    def get_all(self) -> tuple[Tensor, Tensor]:
        """(inputs, labels) of every pair, ordered by a, then b."""
        return self.inputs(self.pairs), self.pairs.y_N


class SequenceArithmeticDataset(ModularArithmeticDataset):
    """The pairs as token sequences [a, op, b, =], for the transformers; op is token p, = is token p + 1."""

    def inputs(self, pairs: Pairs) -> Tensor:
        """[N, 4] int64."""
        return pair_tokens(pairs.a_N, pairs.b_N, self.p)


def pair_one_hot(a_N: Tensor, b_N: Tensor, p: int) -> Tensor:
    """[N, 2p] int64: the one-hot vectors of a and of b, side by side."""
    return torch.cat([F.one_hot(a_N, p), F.one_hot(b_N, p)], dim=-1)


def pair_tokens(a_N: Tensor, b_N: Tensor, p: int) -> Tensor:
    """[N, 4] int64: the sequence a, op, b, =."""
    op_N, eq_N = torch.full_like(a_N, p), torch.full_like(a_N, p + 1)
    return torch.stack([a_N, op_N, b_N, eq_N], dim=-1)


def create_dataset(config: TrainerConfig) -> ModularArithmeticDataset:
    """Tokens for transformers, one-hot vectors for MLPs; the same pairs and split for both."""
    one_hot = config.model_type in ("baseline", "routed")
    kind = ModularArithmeticDataset if one_hot else SequenceArithmeticDataset
    return kind(config.p, config.operation, config.train_frac, config.split_seed)


def memory_of(config: TrainerConfig) -> int:
    """Bytes that a run holds at least: the pairs, twice, and the logits of one batch with their gradient."""
    n_pairs, number = config.p**2, 8 if "float64" in (config.dtype, config.loss_dtype) else 4
    batch = config.batch_size or round(config.train_frac * n_pairs)
    return 2 * n_pairs * 3 * 8 + 2 * batch * config.p * number


def fingerprint(data: ModularArithmeticDataset) -> str:
    """SHA-256 of the training pairs and their labels, in order."""
    rows_N3 = torch.stack([data.train.a_N, data.train.b_N, data.train.y_N], dim=-1)
    return tensor_sha256(rows_N3)


def batches(train: Pairs, config: TrainerConfig, epoch: int, rank: int, world: int) -> Iterator[tuple[Pairs, float]]:
    """This rank's part of each batch of an epoch, with the factor that makes the ranks' mean loss the batch's.

    Full batches keep their order, smaller ones are shuffled by (seed, epoch).
    """
    if config.batch_size is None:
        order = torch.arange(len(train))
    else:
        order = torch.randperm(len(train), generator=generator(config.seed, "batches", epoch))
    for batch in order.to(train.y_N.device).split(config.batch_size or len(train)):
        part = train if world == 1 and config.batch_size is None else train[batch[rank::world]]
        yield part, len(part) * world / len(batch)


def batches_per_epoch(train: Pairs, config: TrainerConfig) -> int:
    """Updates that an epoch makes."""
    return -(-len(train) // (config.batch_size or len(train)))
