"""Structure of logits and weights in the characters of the group behind an operation.

In group coordinates each operation is addition in Z_n: k = i + j mod n, with i for a, j for b, k for the class. A
function of the operation's result alone then has its power in the Fourier slots (f, f) of the n x n grid, f = 1..n-1;
real functions have equal power in (f, f) and (n - f, n - f), which together are "frequency f" below, f = 1..n/2.
Slots (f, n - f) belong to functions of i - j and don't count.

Shapes: N pairs, P residues, n the group's order, I, J, K axes of length n in group coordinates, S values of i + j,
F frequencies 1..n // 2, D width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from least_action.config import is_prime
from least_action.data import Pairs
from least_action.model import GrokTransformer, OneHotModel, PairModel, RoutedNetwork


@dataclass(frozen=True)
class GroupCoordinates:
    """Residues 0..p-1 as elements of Z_n, n = p for add and subtract, n = p - 1 for multiply and divide.

    `i_P`, `j_P` and `k_P` are the coordinates of a residue as a, as b and as class, -1 for a residue outside the
    group (0, for multiply and divide). `a_I`, `b_J` and `class_K` are their inverses.
    """

    n: int
    i_P: Tensor
    j_P: Tensor
    k_P: Tensor
    a_I: Tensor
    b_J: Tensor
    class_K: Tensor


def group_coordinates(p: int, operation: str) -> GroupCoordinates:
    """Coordinates in which the operation reads k = i + j mod n.

    add: the residues themselves. subtract: j = -b. multiply: discrete logarithms to the smallest primitive root.
    divide: the same with j = -log b. Raises ValueError for an unknown operation, and for multiply and divide by a p
    that isn't prime.
    """
    if operation in ("add", "subtract"):
        n, element = p, torch.arange(p)
    elif operation in ("multiply", "divide"):
        n, element = p - 1, _powers_of_primitive_root(p)
    else:
        raise ValueError(f"operation: '{operation}' is none of add, subtract, multiply, divide")
    opposite = element[-torch.arange(n) % n] if operation in ("subtract", "divide") else element

    def inverse(element_I: Tensor) -> Tensor:
        index_P = torch.full((p,), -1)
        index_P[element_I] = torch.arange(n)
        return index_P

    coordinate_P = inverse(element)
    return GroupCoordinates(n, coordinate_P, inverse(opposite), coordinate_P, element, opposite, element)


def _powers_of_primitive_root(p: int) -> Tensor:
    """g^0, g^1, .. g^(p-2) mod p for the smallest g whose powers are all nonzero residues."""
    if not is_prime(p):
        raise ValueError(f"p: {p} is not prime, so its nonzero residues are no group under multiplication")
    for g in range(1, p):
        powers = [1]
        while (following := powers[-1] * g % p) != 1:
            powers.append(following)
        if len(powers) == p - 1:
            return torch.tensor(powers)
    raise AssertionError(f"every prime has a primitive root, but none was found for {p}")


def grid_logits(logits_NP: Tensor, pairs: Pairs, p: int, operation: str) -> Tensor:
    """Logits as a table [n, n, n] over (i, j, k); pairs and classes outside the group are left out.

    `pairs` must hold every pair of the group exactly once, in any order (ValueError otherwise).
    """
    group = group_coordinates(p, operation)
    row_of_IJ = _row_of_cell(group, pairs).to(logits_NP.device)
    return logits_NP[row_of_IJ.reshape(-1)][:, group.class_K.to(logits_NP.device)].reshape(group.n, group.n, group.n)


def _row_of_cell(group: GroupCoordinates, pairs: Pairs) -> Tensor:
    """Which of the pairs is at (i, j), [n, n] int64."""
    n = group.n
    i_N, j_N = group.i_P[pairs.a_N.cpu()], group.j_P[pairs.b_N.cpu()]
    rows = ((i_N >= 0) & (j_N >= 0)).nonzero()[:, 0]
    cells = i_N[rows] * n + j_N[rows]
    if len(cells) != n * n or (torch.bincount(cells, minlength=n * n) != 1).any():
        raise ValueError(f"pairs: each of the group's {n}^2 pairs is needed once; got {len(cells)}, not all different")
    row_of_cell = torch.empty(n * n, dtype=torch.int64)
    row_of_cell[cells] = rows
    return row_of_cell.reshape(n, n)


def centre(grid_IJK: Tensor) -> Tensor:
    """The table without what no spectrum here should see.

    Each cell's mean over classes goes first, since the softmax ignores it, then each class's mean over the grid, the
    constant.
    """
    grid_IJK = grid_IJK - grid_IJK.mean(dim=-1, keepdim=True)
    return grid_IJK - grid_IJK.mean(dim=(0, 1))


def spectral_smoothness(grid_IJK: Tensor, radius: int | None = None) -> float:
    """Share of the logits' power at low frequencies: higher is smoother.

    The power of the centred table (see `centre`) in the slots (fx, fy) of its two-dimensional Fourier transform per
    class with sqrt(fx^2 + fy^2) <= radius, frequencies in cycles per n steps, at most n / 2 by magnitude; `radius`
    defaults to n // 4. White noise scores the share of slots inside, about pi / 16 = 0.2 by default. It depends on
    the coordinates, as any smoothness does: a network that uses high frequencies scores low however regular it is
    (`character_power` doesn't). NaN for a table without any power.
    """
    return float(low_frequency_share(grid_IJK, radius))


def low_frequency_share(grid_IJK: Tensor, radius: int | None = None) -> Tensor:
    """`spectral_smoothness` as a differentiable scalar."""
    n = len(grid_IJK)
    radius = n // 4 if radius is None else radius
    power_XY = slot_power(grid_IJK)
    share: Tensor = power_XY[_within(n, radius, power_XY.device)].sum() / power_XY.sum()
    return share


def slot_power(grid_IJK: Tensor) -> Tensor:
    """Power of the centred table in each Fourier slot, summed over classes: [n, n] float64.

    Scaled so that the sum is the sum of the table's squares; slot (0, 0) has only rounding errors.
    """
    n = len(grid_IJK)
    spectrum = torch.fft.rfft2(centre(grid_IJK).permute(2, 0, 1))
    half_XY = (spectrum.real**2 + spectrum.imag**2).sum(dim=0).double() / n**2  # [n, n // 2 + 1]
    # The columns that rfft2 leaves out are the complex conjugates of the slots opposite to them.
    opposite_X = -torch.arange(n, device=half_XY.device) % n
    other_XY = half_XY[opposite_X][:, opposite_X[n // 2 + 1 :]]
    return torch.cat([half_XY, other_XY], dim=1)


def _within(n: int, radius: int, device: torch.device) -> Tensor:
    """[n, n] which slots have sqrt(fx^2 + fy^2) <= radius, frequencies signed."""
    # Integers, so that a slot on the circle itself counts as inside.
    f_X = (torch.arange(n, device=device) + n // 2) % n - n // 2
    return f_X[:, None] ** 2 + f_X**2 <= radius**2


def spectral_smoothness_original(class_AB: Tensor, radius: int) -> float:
    """Low-frequency share of the predicted class read as a real number, on the p x p grid of residues [a, b].

    The slot (0, 0), the square of the mean class, is included. Random classes score 0.79 to 0.80 at p = 113, radius
    28, and so does a perfect multiplication table: it measures the names of the classes more than the function.
    """
    power_XY = torch.fft.fft2(class_AB.double()).abs() ** 2
    return float(power_XY[_within(len(class_AB), radius, class_AB.device)].sum() / power_XY.sum())


@dataclass(frozen=True)
class CharacterPower:
    """Where the power of the centred logits is, as shares of the whole; NaN for a table without any power."""

    share_F: Tensor
    """[n // 2] float64, at index f - 1 the share of frequency f, slots (f, f) and (n - f, n - f)."""
    aligned: float
    """Their sum: the share of what depends on the operation's result only. White noise scores 1 / (n + 1)."""


def character_power(grid_IJK: Tensor) -> CharacterPower:
    """Shares of the logits' power along each character of the operation's result (table in group coordinates)."""
    centred_IJK = centre(grid_IJK)
    share_F = _direction_power(centred_IJK) / centred_IJK.square().sum(dtype=torch.float64)
    return CharacterPower(share_F, float(share_F.sum()))


def _means_along_result(grid_IJK: Tensor) -> Tensor:
    """Mean of each class's logits over the n cells with i + j = s: [S, K]."""
    n = len(grid_IJK)
    index = torch.arange(n, device=grid_IJK.device)
    # Gathered instead of scattered: one order of summation on every device.
    return grid_IJK[index[:, None], (index - index[:, None]) % n].mean(dim=0)


def _direction_power(centred_IJK: Tensor) -> Tensor:
    """[F] float64, sum over cells and classes of the square of the table's component of frequency f."""
    n = len(centred_IJK)
    # The slots (f, f) of the grid are the Fourier transform of the means along the result, so no 2-D one is needed.
    coefficient_FK = torch.fft.rfft(_means_along_result(centred_IJK).double(), dim=0)[1:]
    power_F = (coefficient_FK.real**2 + coefficient_FK.imag**2).sum(dim=1)
    # Parseval: the squares over n results sum to |coefficient|^2 / n and each result has n cells; n - f adds the same.
    both_F: Tensor = power_F * directions(n, power_F.device)
    return both_F


def directions(n: int, device: torch.device | str = "cpu") -> Tensor:
    """[F] how many real directions frequency f has: cosine and sine, but the cosine alone at n / 2."""
    f_F = torch.arange(1, n // 2 + 1, device=device)
    return torch.where(2 * f_F == n, 1, 2)


FALSE_ALARM = 1e-3
"""Largest chance that `find_key_frequencies` names any frequency for logits without structure."""


def find_key_frequencies(grid_IJK: Tensor) -> tuple[int, ...]:
    """The frequencies of the operation's result that stand out from the others of the same residue frequency.

    The power in slot (f, f) is compared with its background, the mean power of the slots (f, y) and (x, f) that
    belong neither to one operand alone (x or y = 0) nor to i - j. Null distribution: Gaussian logits, equally strong
    in all these slots, with classes correlated in any way. The heaviest tail is that of classes in step, where the
    ratio of the power to the background has an F distribution with (2, 2 b) degrees of freedom and
    P(ratio > t) = (1 + t / b)^-b, b the number of independent background slots. The threshold is the t at which this
    is FALSE_ALARM divided by the number of frequencies, doubled, because a network that embeds a and b by one random
    table u has twice the background's power in slot (f, f) (E|u^2|^2 = 2 (E|u|^2)^2 for complex Gaussian u). It is
    22 for n = 113 and for n = 12, and 175 for n = 4; groups of 2 and 3 have no background and so no key frequencies.
    At f = n / 2 it is doubled again: that slot is real, and its power exceeds 2 t means less often than a complex
    one's exceeds t. There, i + j and i - j are the same function, so this frequency can't tell a sum from a
    difference.
    """
    n = len(grid_IJK)
    power_XY = slot_power(grid_IJK).cpu()
    # Against rounding: a background of nothing but rounding errors is no measure of anything.
    floor = float(power_XY.mean()) * torch.finfo(grid_IJK.dtype).eps
    frequencies = []
    for f in range(1, n // 2 + 1):
        other = [y for y in range(1, n) if y not in (f, n - f)]
        if not other:  # a group of 2 or 3
            continue
        background = float((power_XY[f, other].mean() + power_XY[other, f].mean()) / 2)
        nyquist = 2 * f == n
        b = len(other) if nyquist else 2 * len(other)  # slot (n / 2, y) is the conjugate of (n / 2, n - y)
        threshold = 2 * b * ((n // 2 / FALSE_ALARM) ** (1 / b) - 1) * (2 if nyquist else 1)
        if float(power_XY[f, f]) > threshold * max(background, floor):
            frequencies.append(f)
    return tuple(frequencies)


@dataclass(frozen=True)
class ProgressMeasures:
    """Nanda et al. 2023 (arXiv:2301.05217, section 5), on logits and in the operation's own group."""

    key_frequencies: tuple[int, ...]
    """In 1..n // 2."""
    key_share: float
    """Share of the centred logits' power at the key frequencies."""
    restricted_loss: float
    """Loss on all pairs of the group, training and test, with nothing but each class's mean and the key
    frequencies' directions left of its logits."""
    excluded_loss: float
    """Loss on the training pairs of the group with these directions removed from the logits."""
    restricted_acc: float
    """Accuracy on all pairs of the group, of what the restricted loss is the loss of: the key frequencies alone."""
    excluded_acc: float
    """Accuracy on the held-out pairs of the group without the key frequencies: the ablation."""


def progress_measures(
    logits_all: Tensor,
    pairs_all: Pairs,
    train_mask: Tensor,
    p: int,
    operation: str,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    key_frequencies: Sequence[int] | None = None,
) -> ProgressMeasures:
    """Progress measures from the logits [N, P] of all pairs; `train_mask` [N] is true for training pairs.

    The key frequencies are those of `find_key_frequencies` unless given (to follow the final network's frequencies
    through training). Their directions, cos and sin of 2 pi f (i + j) / n, are fitted per class on all pairs, as in
    the paper, so the excluded loss has seen test inputs. Keeping each class's mean is the paper's bias correction.
    For multiply and divide, pairs with a residue 0 are left out and the softmax runs over the nonzero classes.
    `loss_fn(logits, y)` is a mean. Raises ValueError for a frequency outside 1..n // 2, or without a training pair.
    """
    group = group_coordinates(p, operation)
    n, device = group.n, logits_all.device
    grid_IJK = grid_logits(logits_all, pairs_all, p, operation)
    keys = find_key_frequencies(grid_IJK) if key_frequencies is None else tuple(key_frequencies)
    if any(not 1 <= f <= n // 2 for f in keys):
        raise ValueError(f"key_frequencies: {keys}, but the frequencies of this group are 1..{n // 2}")
    train_IJ = train_mask.to(device)[_row_of_cell(group, pairs_all).to(device)]
    if not train_IJ.any():
        raise ValueError("train_mask: no pair of the group is in it")

    index = torch.arange(n, device=device)
    result_IJ = (index[:, None] + index) % n
    spectrum_FK = torch.fft.rfft(_means_along_result(grid_IJK), dim=0)
    keep_F1 = torch.zeros(len(spectrum_FK), 1, dtype=torch.bool, device=device)
    keep_F1[list(keys)] = True
    key_part_SK = torch.fft.irfft(torch.where(keep_F1, spectrum_FK, 0), n=n, dim=0)
    restricted_SK = grid_IJK.mean(dim=(0, 1)) + key_part_SK
    excluded_IJK = grid_IJK - key_part_SK[result_IJ]
    # The restricted logits and the label depend on i + j only, and each value of it occurs equally often: the mean
    # over the n values is the mean over all n^2 pairs.
    restricted_loss = float(loss_fn(restricted_SK, index))
    key_share = float(character_power(grid_IJK).share_F[[f - 1 for f in keys]].sum())
    excluded_loss = float(loss_fn(excluded_IJK[train_IJ], result_IJ[train_IJ]))
    restricted_acc = float((restricted_SK.argmax(dim=-1) == index).double().mean())
    right_IJ = excluded_IJK.argmax(dim=-1) == result_IJ
    # Of a split without held-out pairs, the training pairs stand in.
    excluded_acc = float(right_IJ[train_IJ if train_IJ.all() else ~train_IJ].double().mean())
    return ProgressMeasures(keys, key_share, restricted_loss, excluded_loss, restricted_acc, excluded_acc)


def gini_coefficient(x: Tensor) -> Tensor:
    """Gini coefficients of the n values >= 0 along the last dimension, differentiable.

    0 if all are equal, (n - 1) / n if only one isn't 0, NaN if all are 0:
    G = 2 sum_i i x_(i) / (n sum x) - (n + 1) / n with x_(1) <= .. <= x_(n).
    """
    n = x.shape[-1]
    rank = torch.arange(1, n + 1, dtype=x.dtype, device=x.device)
    coefficient: Tensor = 2 * (rank * x.sort(dim=-1).values).sum(dim=-1) / (n * x.sum(dim=-1)) - (n + 1) / n
    return coefficient


def gini(x: Tensor) -> float:
    """`gini_coefficient` of all values of x together, as a number."""
    return float(gini_coefficient(x.detach().reshape(-1).double()))


def embedding_fourier_norms(weight_PD: Tensor, p: int, operation: str) -> Tensor:
    """Norms over D of the Fourier components of a table with one row per residue, [n - 1] float64.

    Order: cosine 1, sine 1, cosine 2, sine 2, .. ; for even n the last is the cosine n / 2, which has no sine. The
    basis is orthonormal over the group's n residues in the order of their coordinates, and the constant is left out:
    it is no frequency. The squares sum to the squared norm of the centred table. Reversing the coordinates (the b of
    subtract and divide) changes only the sines' signs, so one order serves all tables.
    """
    group = group_coordinates(p, operation)
    n = group.n
    table_ID = weight_PD.detach()[group.a_I.to(weight_PD.device)].double()
    angle_IF = 2 * math.pi / n * torch.outer(torch.arange(n), torch.arange(1, n // 2 + 1)).double()
    basis_IF2 = torch.stack([angle_IF.cos(), angle_IF.sin()], dim=-1) * (directions(n)[:, None] / n).sqrt()
    basis_IB = basis_IF2.flatten(1)[:, : n - 1].to(weight_PD.device)
    norms_B: Tensor = torch.linalg.vector_norm(basis_IB.T @ table_ID, dim=1)
    return norms_B


class WeightGinis(NamedTuple):
    """Gini coefficients of the norms of Fourier components, Nanda et al. 2023 (arXiv:2301.05217, section 5)."""

    embedding: float
    """Of W_E."""
    neuron_to_logit: float
    """Of the paper's W_L = W_U W_out, the map from the last layer's neurons to the logits."""
    unembedding: float
    """Of W_U alone, which is not the paper's measure."""


def weight_ginis(model: PairModel, operation: str) -> WeightGinis:
    """Sparsity of the weights in the operation's characters.

    The MLPs' embedding is the first layer, with the rows for a and for b of a residue side by side; the plain MLP's
    output layer reads neurons, so that its W_L is its W_U. A tied transformer's W_U is its W_E. On the sphere the rows of W_U count
    with unit length, as in the logits; that the stream is normalised between W_out and W_U is left out of W_L.
    """
    p = model.p
    if isinstance(model, GrokTransformer):
        embedding_PD = model.token.weight[:p]
        unembedding_PD = embedding_PD if model.head is None else model.head.weight
        if model.on_sphere:
            unembedding_PD = F.normalize(unembedding_PD, dim=-1)
        neuron_PM = unembedding_PD @ model.blocks[-1].get_parameter("ff.down.weight")
    elif isinstance(model, OneHotModel):
        embedding_PD = torch.cat([model.input.weight.T[:p], model.input.weight.T[p:]], dim=1)
        unembedding_PD = neuron_PM = model.get_parameter("head.weight")
        if isinstance(model, RoutedNetwork):
            neuron_PM = unembedding_PD @ model.layers[-1].get_parameter("down.weight")
    else:
        raise TypeError(f"model: no rule for the embedding of a {type(model).__name__}")
    tables = (embedding_PD, neuron_PM, unembedding_PD)
    return WeightGinis(*(gini(embedding_fourier_norms(weight_PD, p, operation)) for weight_PD in tables))
