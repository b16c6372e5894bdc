"""The causal inner product of a language model's unembedding (Park, Choe, Jiang, Veitch, arXiv:2406.01506).

P(y|x) is proportional to exp(lambda(x) . gamma(y)). With Sigma the covariance of the rows gamma, unembeddings go to the
unified space by g(y) = Sigma^-1/2 (gamma(y) - mean), and residuals by l(x) = Sigma^+1/2 lambda(x): they are dual. A
concept vector v of the unified space is the step d = Sigma^-1/2 v in the residual stream, which moves the logit of y by
g(y) . v (and all logits by one same number, which no probability shows).

What of v a residual lambda has is read in the dual: l . v = lambda . Sigma^+1/2 v = lambda . Sigma d. That is the logit, but
for its mean, of a word whose unembedding is the concept's own. The product lambda . d is no reading: under a change of basis
gamma -> A gamma, lambda -> A^-T lambda, which leaves all logits as they are, it changes and lambda . Sigma d does not.

Shapes: V words, D width, N rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 8192


@dataclass(frozen=True)
class CausalGeometry:
    """The maps between unembeddings, residuals and the unified space, in float64."""

    mean_D: Tensor
    inv_sqrt_DD: Tensor
    """Sigma^-1/2."""
    sqrt_DD: Tensor
    """Sigma^+1/2, which takes residuals to l."""
    eigenvalues_D: Tensor
    """Of Sigma, ascending."""

    def unify_words(self, gamma_ND: Tensor) -> Tensor:
        """[N, D] unembeddings -> g, float64."""
        return (gamma_ND.double() - self.mean_D) @ self.inv_sqrt_DD

    def to_residuals(self, v_ND: Tensor) -> Tensor:
        """[N, D] vectors of the unified space as steps in the residual stream."""
        return v_ND @ self.inv_sqrt_DD

    def to_readers(self, v_ND: Tensor) -> Tensor:
        """[N, D] what a residual's product with says how much of each vector of the unified space it has."""
        return v_ND @ self.sqrt_DD


def causal_geometry(gamma_VD: Tensor, shrinkage: float = 0.0) -> CausalGeometry:
    """From the unembedding [V, D]: centred population covariance, accumulated in float64, eigh.

    `shrinkage` s is relative: (1 - s) Sigma + s trace(Sigma)/D I. ValueError when Sigma is singular.
    """
    count, width = gamma_VD.shape
    mean_D = torch.stack([part.double().sum(0) for part in gamma_VD.split(CHUNK)]).sum(0) / count
    sigma_DD = torch.zeros(width, width, dtype=torch.float64)
    for part in gamma_VD.split(CHUNK):
        centred = part.double() - mean_D
        sigma_DD.addmm_(centred.T, centred)
    sigma_DD /= count
    trace = sigma_DD.diagonal().mean()
    sigma_DD = (1 - shrinkage) * sigma_DD + shrinkage * trace * torch.eye(width, dtype=torch.float64)
    values_D, vectors_DD = torch.linalg.eigh(sigma_DD)
    if not float(values_D[0]) > 1e-12 * float(values_D[-1]):
        raise ValueError(
            f"shrinkage: {shrinkage} leaves the covariance of {count} words in {width} dimensions singular; raise it"
        )
    return CausalGeometry(
        mean_D, (vectors_DD * values_D.rsqrt()) @ vectors_DD.T, (vectors_DD * values_D.sqrt()) @ vectors_DD.T, values_D
    )


def euclidean_geometry(gamma_VD: Tensor) -> CausalGeometry:
    """The control: words are centred and nothing is whitened, scaled so that the mean eigenvalue is one."""
    width = gamma_VD.shape[1]
    mean_D = torch.stack([part.double().sum(0) for part in gamma_VD.split(CHUNK)]).sum(0) / len(gamma_VD)
    square = sum(float((part.double() - mean_D).square().sum()) for part in gamma_VD.split(CHUNK))
    scale = (square / len(gamma_VD) / width) ** 0.5
    eye = torch.eye(width, dtype=torch.float64)
    return CausalGeometry(mean_D, eye / scale, eye * scale, torch.full((width,), scale**2, dtype=torch.float64))


def cosine(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """[N] cosines of rows."""
    return (a_ND * b_ND).sum(-1) / (a_ND.norm(dim=-1) * b_ND.norm(dim=-1))


def angles_deg(cosines: Tensor) -> Tensor:
    """Degrees, of cosines that rounding may have put beyond 1."""
    return torch.rad2deg(torch.acos(cosines.clamp(-1, 1)))
