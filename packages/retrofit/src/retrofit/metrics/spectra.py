"""Three conditionings, three names: of weights, of activations, and the original study's own recipe.

Shapes: O, I a matrix's outputs and inputs; k = min(O, I); N tokens, F the FFN's width.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrofit.blocks import FeedForward, Projection
from retrofit.metrics.summaries import ORIGINAL_RIDGE, RELATIVE_RIDGE
from studycore.errors import UserError
from studycore.models import evaluating

GRAM_LIMIT = 3e4
"""Largest kappa taken from the Gram matrix in float64; its error in the smallest singular value grows as kappa^2 * 1e-16."""
GRAM_RANGE = 1e-100, 1e100
"""Largest entries whose squares float64 holds with room for their sums."""


@torch.no_grad()
def singular_values(weight_OI: Tensor, name: str = "a matrix") -> Tensor:
    """All k singular values, float64, descending: eigenvalues of the smaller Gram matrix, or svdvals where it is too coarse.

    Relative error against float64 svdvals below 1e-6 for each. UserError, with the matrix's name, for NaN or infinity.
    """
    w_OI = weight_OI.detach()
    w_OI = (w_OI.cpu() if w_OI.device.type == "mps" else w_OI).double()  # mps has no float64
    low, high = map(float, w_OI.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"--model: {name} holds NaN or infinite weights; give a model whose weights are all finite")
    if GRAM_RANGE[0] < max(-low, high) < GRAM_RANGE[1]:
        rows_kn = w_OI if w_OI.shape[0] <= w_OI.shape[1] else w_OI.T
        s_k = torch.linalg.eigvalsh(lower_gram(rows_kn)).clamp_min_(0).sqrt_().flip(0)
        if 0 < s_k[0] < GRAM_LIMIT * s_k[-1]:
            return s_k
    return torch.linalg.svdvals(w_OI)


def lower_gram(rows_kn: Tensor) -> Tensor:
    """x x^T, of which only the lower triangle is right: the upper right quarter, which eigvalsh does not read, is left out."""
    k = len(rows_kn)
    half = k // 2
    gram_kk = rows_kn.new_zeros(k, k)
    torch.mm(rows_kn[:half], rows_kn[:half].T, out=gram_kk[:half, :half])
    torch.mm(rows_kn[half:], rows_kn.T, out=gram_kk[half:])
    return gram_kk


@dataclass(frozen=True)
class WeightSpectrum:
    """What the singular values s of one matrix say."""

    kappa: float
    """Condition number s_1 / s_k; infinite at a rank below k."""
    gram_kappa: float
    """Of W^T W on its smaller side: kappa squared."""
    omega: float
    """Arithmetic over geometric mean of the Gram eigenvalues s^2 (arXiv:2509.23439); 1 is perfect."""
    effective_rank: float
    """exp of the entropy of s / sum(s) (Roy and Vetterli 2007)."""
    stable_rank: float
    """sum(s^2) / s_1^2."""
    spectral_norm: float
    """s_1."""
    rank: int
    """Singular values above the largest dimension times float64's epsilon times s_1, as numpy and MATLAB count: below it
    they are rounding noise."""


def weight_spectrum(s_k: Tensor, largest_dimension: int) -> WeightSpectrum:
    """From all singular values, in float64, of a matrix whose larger side is `largest_dimension`."""
    first, last = float(s_k.max()), float(s_k.min())
    if first == 0:
        return WeightSpectrum(math.inf, math.inf, math.inf, 0.0, 0.0, 0.0, 0)
    # Over the largest: no square overflows.
    q_k = s_k / first
    rank = int((q_k > largest_dimension * torch.finfo(torch.float64).eps).sum())
    eigen_k = q_k.square()
    kappa = omega = math.inf
    if rank == len(s_k):
        kappa, omega = first / last, float(eigen_k.mean() / (2 * q_k.log().mean()).exp())
    p_k = q_k / q_k.sum()
    effective = math.exp(float(-torch.special.xlogy(p_k, p_k).sum()))
    return WeightSpectrum(kappa, kappa * kappa, omega, effective, float(eigen_k.sum()), first, rank)


def spectrum_of(projection: Projection) -> tuple[WeightSpectrum, Tensor]:
    """(what its singular values say, the singular values [k] on the CPU). UserError for NaN or infinity."""
    s_k = singular_values(projection.weight_OI, projection.name).cpu()
    return weight_spectrum(s_k, max(projection.weight_OI.shape)), s_k


def up_kappas(blocks: Sequence[FeedForward]) -> list[float]:
    """Condition numbers of the up projections."""
    return [spectrum_of(block.up)[0].kappa for block in blocks]


@dataclass
class Moments:
    """Sums over tokens of one block's features (what enters its down projection)."""

    gram_FF: Tensor
    """Sum of x x^T: float64, or float32 as the original study takes it."""
    sum_F: Tensor
    tokens: int
    largest: float = 0.0
    """The largest |x|, and where it is: a unit of F and the position of a token among all N."""
    unit: int = -1
    position: int = -1


@contextmanager
def _features(blocks: Sequence[FeedForward], each: Any) -> Iterator[None]:
    """Calls `each(layer, x)` with the input of every down projection while the block lasts."""

    def hook(layer: int) -> Any:
        return lambda module, args: each(layer, args[0].detach().flatten(0, -2))

    handles = []
    for layer, block in enumerate(blocks):
        assert block.down.module is not None, f"{block.name} has no features that can be seen"
        handles.append(block.down.module.register_forward_pre_hook(hook(layer)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def activation_moments(
    model: Any,
    blocks: Sequence[FeedForward],
    ids_NB: Tensor,
    batch: int = 16,
    dtype: torch.dtype = torch.float64,
    progress: Callable[[int], None] = lambda tokens: None,
) -> list[Moments]:
    """Sums over all tokens of `ids_NB` by block (of those that have features), in evaluation mode and the model's precision.

    One pass over the model; `progress` hears of every `batch` rows how many tokens they are.
    """
    moments: dict[int, Moments] = {}

    def add(layer: int, x_NF: Tensor) -> None:
        # mps has no float64
        kind = torch.float32 if x_NF.device.type == "mps" else dtype
        n, width = x_NF.shape
        if layer not in moments:
            moments[layer] = Moments(x_NF.new_zeros(width, width, dtype=kind), x_NF.new_zeros(width, dtype=kind), 0)
        m = moments[layer]
        low_F, high_F = x_NF.aminmax(dim=0)
        size_F = torch.maximum(-low_F, high_F)
        if float(size_F.max()) > m.largest:
            m.unit = int(size_F.argmax())
            m.largest, m.position = float(size_F.max()), m.tokens + int(x_NF[:, m.unit].abs().argmax())
        x_NF = x_NF.to(kind)
        add_lower_gram(m.gram_FF, x_NF)
        m.sum_F += x_NF.sum(0)
        m.tokens += n

    with evaluating(model) as device, _features(blocks, add):
        for part in ids_NB.split(batch):
            # The output layer is not needed.
            model.base_model(input_ids=part.to(device), use_cache=False)
            progress(part.numel())
    for m in moments.values():
        m.gram_FF = m.gram_FF.tril() + m.gram_FF.tril(-1).T
    return [moments[layer] for layer in range(len(blocks))]


STRIPS = 4
"""Parts of a Gram matrix's rows, each computed up to the diagonal's end: (STRIPS + 1) / (2 STRIPS) of its work."""


def add_lower_gram(gram_FF: Tensor, x_NF: Tensor) -> None:
    """Adds x^T x to `gram_FF`, of which only the lower triangle is then right."""
    width = len(gram_FF)
    for strip in range(STRIPS):
        first, end = strip * width // STRIPS, (strip + 1) * width // STRIPS
        gram_FF[first:end, :end].addmm_(x_NF[:, first:end].T, x_NF[:, :end])


def activation_eigenvalues(moments: Moments, centred: bool, ridge: float = RELATIVE_RIDGE) -> Tensor:
    """[F] of the (co)variance, E[x x^T] or with the mean taken off, plus ridge * mean eigenvalue * I; ascending."""
    gram_FF = moments.gram_FF.double().cpu() / moments.tokens
    if centred:
        mean_F = moments.sum_F.double().cpu() / moments.tokens
        gram_FF = gram_FF - mean_F[:, None] * mean_F[None, :]
    gram_FF = gram_FF + ridge * gram_FF.diagonal().mean() * torch.eye(len(gram_FF), dtype=torch.float64)
    return torch.linalg.eigvalsh(gram_FF)


def without_largest(e_F: Tensor, left_out: int = 0) -> float:
    """Condition number from ascending eigenvalues, without the directions of the `left_out` largest."""
    return float(e_F[-1 - left_out] / e_F[0]) if e_F[0] > 0 else math.inf


def activation_kappa(moments: Moments, centred: bool, ridge: float = RELATIVE_RIDGE) -> float:
    """Condition number of `activation_eigenvalues`."""
    return without_largest(activation_eigenvalues(moments, centred, ridge))


@torch.no_grad()
def ff_gram_of_windows(
    model: Any,
    blocks: Sequence[FeedForward],
    ids_NB: Tensor,
    batch: int = 16,
    progress: Callable[[int], None] = lambda tokens: None,
) -> tuple[list[float], Tensor]:
    """(by layer, largest over smallest eigenvalue of E[x x^T] + 1e-5 I in float64; what each window gives to both).

    The latter, [layers, N, 2], is the mean over a window's tokens of the squared projection on the eigenvector of the
    largest and on that of the smallest eigenvalue: its mean over windows is the eigenvalue without the ridge. Two passes
    over the model, with `progress` as in activation_moments.
    """
    kappas, ends, moments = [], [], activation_moments(model, blocks, ids_NB, batch, progress=progress)
    for m in moments:
        e_F, vectors_FF = torch.linalg.eigh(m.gram_FF.double().cpu() / m.tokens)
        kappas.append(float((e_F[-1] + ORIGINAL_RIDGE) / (e_F[0].clamp_min(0) + ORIGINAL_RIDGE)))
        ends.append(vectors_FF[:, [-1, 0]].to(m.gram_FF))
    del moments
    squares: list[list[Tensor]] = [[] for _ in blocks]

    def project(layer: int, x_NF: Tensor) -> None:
        squares_N2 = (x_NF.to(ends[layer].dtype) @ ends[layer]).square()
        squares[layer].append(squares_N2.view(-1, ids_NB.shape[1], 2).mean(1).double().cpu())

    with evaluating(model) as device, _features(blocks, project):
        for part in ids_NB.split(batch):
            model.base_model(input_ids=part.to(device), use_cache=False)
            progress(part.numel())
    return kappas, torch.stack([torch.cat(parts) for parts in squares])


def ff_gram_original_of_layer(moments: Moments) -> float:
    """The original study's recipe for one layer: float32, uncentred, + 1e-5 I, largest over smallest eigenvalue.

    An absolute ridge falls when activations shrink, and few tokens raise the value: for reproduction only. Infinite where
    float32 rounds the smallest eigenvalue to zero or below.
    """
    gram_FF = moments.gram_FF.float() / moments.tokens
    gram_FF = gram_FF + ORIGINAL_RIDGE * torch.eye(len(gram_FF), device=gram_FF.device)
    e_F = torch.linalg.eigvalsh(gram_FF)
    return float(e_F[-1] / e_F[0]) if e_F[0] > 0 else math.inf


def ff_gram_original(moments: Sequence[Moments]) -> float:
    """Arithmetic mean over layers, as the original study reports it."""
    return sum(map(ff_gram_original_of_layer, moments)) / len(moments)
