"""The vector of a concept: linear discriminant of its own words, with its length (Park et al., arXiv:2406.01506, eq. 4.1).

With m the mean and C the Ledoit-Wolf covariance of a concept's n words in the unified space, the direction is C^-1 m and
the vector is the mean's projection on it: v = (m . u) u. Since C = (1 - a) S + a mu I, and S has rank below n, C^-1 m needs an
n x n system alone (Woodbury), and a and mu follow from the n x n Gram matrix.

Shapes: B batches, n words, D width.
"""

import torch
from torch import Tensor

from studycore.errors import UserError


def ledoit_wolf(gram_Bnn: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(a, mu) of C = (1 - a) S + a mu I, each [B], from the Gram matrix of centred rows (Ledoit and Wolf 2004)."""
    n = gram_Bnn.shape[-1]
    diagonal_Bn = gram_Bnn.diagonal(dim1=-2, dim2=-1)
    return _shrinkage(diagonal_Bn.sum(-1), gram_Bnn.square().sum((-2, -1)), diagonal_Bn.square().sum(-1), n, width)


def _shrinkage(trace: Tensor, square: Tensor, fourth: Tensor, n: int, width: int) -> tuple[Tensor, Tensor]:
    """The same from the trace and squared norm of the scatter matrix and the sum of the rows' norms to the fourth."""
    mu = trace / (n * width)
    distance = square / n**2 / width - mu**2
    noise = (fourth / n - square / n**2) / (width * n)
    return torch.minimum(noise, distance) / distance, mu


LEAST_SINGLE = 2**16
"""Numbers of a concept from which its products are made in single precision."""
SOLVES = 2
"""In single precision, the second of what the first has left."""


BLOCK = 256
"""Rows of a Gram matrix that one product makes, with the columns up to its last row: what is above the diagonal is its mirror."""


def _lower_gram(rows_nD: Tensor) -> tuple[Tensor, Tensor]:
    """([..., n, n] products of rows, right on and below the diagonal alone; [...] the squared norm of the whole, float64)."""
    n = rows_nD.shape[-2]
    gram = rows_nD.new_zeros(*rows_nD.shape[:-1], n)
    square = rows_nD.new_zeros(rows_nD.shape[:-2], dtype=torch.float64)
    for start in range(0, n, BLOCK):
        end = min(n, start + BLOCK)
        block = rows_nD[..., start:end, :] @ rows_nD[..., :end, :].mT
        gram[..., start:end, :end] = block
        for part, times in ((block[..., :start], 2), (block[..., start:], 1)):
            square += times * torch.linalg.vector_norm(part, dim=(-2, -1), dtype=torch.float64).square()
    return gram, square


def concept_vector(g_nD: Tensor, shrinkage: float | None = None) -> Tensor:
    """[..., D] vectors of concepts whose words are the rows of [..., n, D] (float64), in the unified space.

    `shrinkage` replaces Ledoit and Wolf's a. Of large concepts the Gram matrix and its factor are made in float32, in half the
    time, and the solution is refined by residuals in float64 (Wilkinson): each time the error falls by the
    condition number, at most 1 + D / a, times 6e-8. What is left of float32 is a relative 1e-8 or so in a.
    Words are centred once, for the Gram matrix; where they meet a vector, its product with the mean is taken off.
    """
    n, width = g_nD.shape[-2:]
    if n < 3:  # of two words Ledoit and Wolf's a is 0, and the covariance singular
        raise UserError(f"min_vocab_count: a concept has {n} words for estimating, and needs 3; raise it")
    mean_1D = g_nD.mean(-2, keepdim=True)
    dual = n <= width
    single = n * width >= LEAST_SINGLE and (shrinkage is None or shrinkage > 1e-3)
    fast_nD = g_nD.float().sub_(mean_1D.float()) if single else g_nD - mean_1D
    gram, square = _lower_gram(fast_nD if dual else fast_nD.mT)
    of_mean_n1 = g_nD @ mean_1D.mT
    mean_square = mean_1D.square().sum(-1, keepdim=True)
    squares_n = (torch.linalg.vector_norm(g_nD, dim=-1, keepdim=True).square() - 2 * of_mean_n1 + mean_square).squeeze(
        -1
    )
    a, mu = _shrinkage(squares_n.sum(-1), square, squares_n.square().sum(-1), n, width)
    a = a if shrinkage is None else torch.full_like(a, shrinkage)
    keep, ridge = ((1 - a) / n)[..., None, None], (a * mu)[..., None, None]
    gram.mul_(keep.to(gram.dtype)).diagonal(dim1=-2, dim2=-1).add_(ridge[..., 0].to(gram.dtype))
    factor = torch.linalg.cholesky(gram)  # reads what is on and below the diagonal

    def centred(right_D1: Tensor) -> Tensor:
        """X right."""
        return g_nD @ right_D1 - mean_1D @ right_D1

    def transposed(right_n1: Tensor) -> Tensor:
        """Xt right."""
        return g_nD.mT @ right_n1 - mean_1D.mT * right_n1.sum(-2, keepdim=True)

    def solve(right: Tensor) -> Tensor:
        """x of (keep X Xt + ridge I) x = right in the dual, of (keep Xt X + ridge I) x = right else."""
        solution = torch.zeros_like(right)
        rest = right
        for again in range(SOLVES if single else 1):
            if again:
                inner = centred(transposed(solution)) if dual else transposed(centred(solution))
                rest = right - keep * inner - ridge * solution
            solution = solution + torch.cholesky_solve(rest.to(factor.dtype), factor).to(right.dtype)
        return solution

    if dual:
        # C^-1 m = (m - keep Xt (keep X Xt + a mu I)^-1 X m) / (a mu); the direction needs no scale.
        direction_1D = mean_1D - keep * transposed(solve(of_mean_n1 - mean_square)).mT
    else:
        direction_1D = solve(mean_1D.mT).mT
    direction_1D = direction_1D / direction_1D.norm(dim=-1, keepdim=True)
    return ((mean_1D * direction_1D).sum(-1, keepdim=True) * direction_1D).squeeze(-2)


def concept_vector_pinv(g_nD: Tensor, symmetric: bool = True) -> Tensor:
    """The same by the dense D x D pseudo-inverse: slow, for tests and the benchmark.

    By eigenvalues where it is told that the matrix is `symmetric`, else by singular values, as `pinv` does by itself.
    """
    n, width = g_nD.shape
    mean_D = g_nD.mean(0)
    centred_nD = g_nD - mean_D
    a, mu = ledoit_wolf(centred_nD @ centred_nD.T, width)
    covariance_DD = (1 - a) * centred_nD.T @ centred_nD / n + a * mu * torch.eye(width, dtype=g_nD.dtype)
    direction_D = torch.linalg.pinv(covariance_DD, hermitian=symmetric) @ mean_D
    direction_D = direction_D / direction_D.norm()
    return (mean_D @ direction_D) * direction_D
