"""The ternary operations, their 3-adic valuation, and the batches that training sees.

An operation of m trits is a vector in {-1, 0, 1}^m; at m = 9 there are 19,683, the truth tables of the ternary
functions of two ternary inputs. Operation n has the trits of its index in base 3, least significant first, minus one.
Its valuation is the largest k with 3^k | n (m for n = 0), which is the number of leading trits that are -1: the
hierarchy is a property of this enumeration, not of what an operation computes.

Shapes: N operations, M trits, B operations of a batch, L = M + 1 levels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from studycore.streams import generator

DEEP_TRITS = 5
"""Operations of valuation at least m - 5 are rare: 3^5 = 243 of them at every m."""


def trits_of(n_N: Tensor, trits: int) -> Tensor:
    """Indices [N] to trits in {-1, 0, 1} [N, M], least significant first."""
    powers_M = 3 ** torch.arange(trits, device=n_N.device)
    return n_N[:, None].div(powers_M, rounding_mode="floor") % 3 - 1


def valuation(n_N: Tensor, trits: int) -> Tensor:
    """Largest k with 3^k | n, for |n| < 3^m; m for n = 0."""
    powers_M = 3 ** torch.arange(1, trits + 1, device=n_N.device)
    return (n_N[..., None].abs() % powers_M == 0).sum(-1)


def tree_distance(i_N: Tensor, j_N: Tensor, trits: int) -> Tensor:
    """3 exp(-v(i - j) / 3), what V5.11 asks of the distance of two points, float64: short where i - j has a high valuation."""
    return 3 * torch.exp(-valuation(i_N - j_N, trits).double() / 3)


def place_in_level(n_N: Tensor, trits: int) -> Tensor:
    """Where an operation stands among those of its level, in [0, 1]; [N], float64.

    The trits after the leading -1s as digits of a fraction, most telling first: with n = 3^v u, u = u_0 + 3 u_1 + ...
    (u_0 in {1, 2}), the place is ((u_0 - 1) + (u_1 + u_2 / 3 + ...) / 3) / 2. The level m has one operation, at 0.5.
    """
    digits_NM = trits_of(n_N, trits) + 1
    v_N = valuation(n_N, trits)
    place_N = torch.zeros(n_N.shape, dtype=torch.float64, device=n_N.device)
    scale_N = torch.full_like(place_N, 0.5)
    for k in range(trits):
        first_N, after_N = v_N == k, v_N < k
        place_N += torch.where(first_N, digits_NM[:, k] - 1, torch.where(after_N, digits_NM[:, k], 0)) * scale_N
        scale_N = torch.where(first_N | after_N, scale_N / 3, scale_N)
    return torch.where(v_N == trits, 0.5, place_N)


@dataclass(frozen=True)
class Operations:
    """Operations as training and metrics use them."""

    index_N: Tensor
    """int64."""
    x_NM: Tensor
    """Trits as float32."""
    target_NM: Tensor
    """Classes 0, 1, 2 of the trits -1, 0, 1; int64."""
    v_N: Tensor
    """Valuations, int64."""
    place_N: Tensor
    """Place within the level, float64."""
    trits: int

    @classmethod
    def of(cls, index_N: Tensor, trits: int) -> "Operations":
        t_NM = trits_of(index_N, trits)
        return cls(index_N, t_NM.float(), t_NM + 1, valuation(index_N, trits), place_in_level(index_N, trits), trits)

    @classmethod
    def all(cls, trits: int, shuffle_seed: int | None = None) -> "Operations":
        """Every operation, by index; with a seed each has the valuation and place of another one, as a control."""
        every = cls.of(torch.arange(3**trits), trits)
        if shuffle_seed is None:
            return every
        dealt_N = torch.randperm(len(every), generator=generator(shuffle_seed, "shuffled valuations"))
        return replace(every, v_N=every.v_N[dealt_N], place_N=every.place_N[dealt_N])

    def __len__(self) -> int:
        return len(self.index_N)

    def __getitem__(self, positions_B: Tensor) -> "Operations":
        return Operations(
            self.index_N[positions_B],
            self.x_NM[positions_B],
            self.target_NM[positions_B],
            self.v_N[positions_B],
            self.place_N[positions_B],
            self.trits,
        )

    def to(self, device: str) -> "Operations":
        index_N, x_NM, target_NM = self.index_N.to(device), self.x_NM.to(device), self.target_NM.to(device)
        return Operations(index_N, x_NM, target_NM, self.v_N.to(device), self.place_N.to(device), self.trits)


def training_indices(trits: int, fraction: float, seed: int) -> Tensor:
    """Indices that training may see, sorted: all, or a random share of them drawn by `seed`."""
    total = 3**trits
    if fraction >= 1:
        return torch.arange(total)
    chosen = torch.randperm(total, generator=generator(seed, "training operations"))[: round(fraction * total)]
    return chosen.sort().values


def steps_per_epoch(n_train: int, n_deep: int, batch_size: int, deep_per_batch: int) -> int:
    """Batches that show every operation that is not deep once."""
    return max(1, -(-(n_train - n_deep) // (batch_size - deep_per_batch)))


class Batches:
    """Stratified batches: each holds `deep_share` operations of the deep levels, drawn anew, and its part of the rest.

    Positions into the training operations. A random batch of 512 at 9 trits would show valuations of 7 and more in one
    batch of five only. The batch of a step is a function of (seed, step).
    """

    def __init__(self, v_N: Tensor, trits: int, batch_size: int, deep_share: float, seed: int):
        deep_N = v_N >= max(1, trits - DEEP_TRITS)
        if deep_share == 0 or not bool(deep_N.any()) or bool(deep_N.all()):
            deep_N = torch.zeros_like(deep_N)
        self.deep, self.rest = deep_N.nonzero().squeeze(1).cpu(), (~deep_N).nonzero().squeeze(1).cpu()
        self.batch_size = min(batch_size, len(v_N))
        # At least one of each kind, or operations would never be shown.
        self.n_deep = min(max(1, round(deep_share * self.batch_size)), self.batch_size - 1, len(self.deep))
        self.seed = seed
        self.steps_per_epoch = steps_per_epoch(len(v_N), len(self.deep), self.batch_size, self.n_deep)

    def order(self, epoch: int) -> Tensor:
        """The epoch's order of what is not deep."""
        return self.rest[torch.randperm(len(self.rest), generator=generator(self.seed, "order", epoch))]

    def epoch(self, epoch: int) -> Iterator[Tensor]:
        """The batches of an epoch (counted from 0)."""
        own = self.batch_size - self.n_deep
        for k, part in enumerate(self.order(epoch).split(own)):
            yield self._with_deep(part, epoch * self.steps_per_epoch + k)

    def _with_deep(self, part: Tensor, step: int) -> Tensor:
        if self.n_deep == 0:
            return part
        drawn = torch.randperm(len(self.deep), generator=generator(self.seed, "deep", step))[: self.n_deep]
        return torch.cat([part, self.deep[drawn]])
