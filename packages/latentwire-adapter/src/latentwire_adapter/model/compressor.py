"""Codes of embeddings: principal components, exact from how often each token type stands in a text, or a projection.

An embedding is looked up, so every statistic of single tokens over a text is a sum over token types. With the table E,
counts c and N = sum(c): mean m = c'E / N and covariance (E - m)' diag(c) (E - m) / (N - 1), whatever the text's length.

Shapes: V token types, N rows, D dimensions of an embedding, K of a code.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from latentwire_adapter.model.saved import Saved
from studycore.errors import UserError
from studycore.streams import generator


def weighted_covariance(rows_VD: Tensor, weights_V: Tensor) -> tuple[Tensor, Tensor]:
    """(mean_D, covariance_DD) of the rows, each as often as its weight says; float64. UserError below two of weight.

    Rows without weight take no part. They are centred first: a second moment minus the mean's square loses digits.
    """
    used_V = weights_V > 0
    rows_UD, weights_U = rows_VD[used_V].double(), weights_V[used_V].double()
    total = weights_U.sum()
    if len(weights_U) < 2:
        raise UserError(
            f"samples: the text holds {len(weights_U)} token types, and a covariance needs 2; count more text"
        )
    mean_D = weights_U @ rows_UD / total
    centred_UD = (rows_UD - mean_D) * (weights_U / (total - 1)).sqrt()[:, None]
    return mean_D, centred_UD.T @ centred_UD


class EmbeddingCompressor(Saved):
    """z = (x - mean) P, and its best linear inverse. A dimension of "pca" comes from one fit: see `truncated`."""

    mean: Tensor
    projection: Tensor
    inverse: Tensor
    variances: Tensor

    def __init__(self, input_dim: int, output_dim: int, method: Literal["pca", "random"] = "pca", seed: int = 0):
        super().__init__()
        if not 1 <= output_dim <= input_dim:
            raise UserError(
                f"compress_dim: {output_dim} does not fit; give 1 to {input_dim}, the dimensions of an embedding"
            )
        if method not in ("pca", "random"):
            raise UserError(f"compress_method: '{method}' does not fit; give pca or random")
        self.arguments: dict[str, Any] = {
            "input_dim": input_dim,
            "output_dim": output_dim,
            "method": method,
            "seed": seed,
        }
        self.input_dim, self.output_dim, self.method, self.seed = input_dim, output_dim, method, seed
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("projection", torch.zeros(input_dim, output_dim))
        self.register_buffer("inverse", torch.zeros(output_dim, input_dim))
        self.register_buffer("variances", torch.zeros(input_dim))
        """All eigenvalues of the covariance, largest first: what is kept is a share of their whole sum."""

    def fit(self, embeddings_ND: Tensor) -> "EmbeddingCompressor":
        """From rows as they stand in a text."""
        flat_ND = embeddings_ND.reshape(-1, self.input_dim)
        return self.fit_counts(flat_ND, torch.ones(len(flat_ND), device=flat_ND.device))

    def fit_counts(self, rows_VD: Tensor, weights_V: Tensor) -> "EmbeddingCompressor":
        """From a table and the weight (such as the count) of each of its rows: the same without a row per position."""
        mean_D, covariance_DD = weighted_covariance(rows_VD, weights_V)
        values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
        if self.method == "pca":
            # Signs are arbitrary: the largest entry of each component is positive, so that a fit has one result.
            vectors_DD = vectors_DD.flip(1)
            top_D = vectors_DD.gather(0, vectors_DD.abs().argmax(0, keepdim=True))
            projection_DK = (vectors_DD * top_D.sign())[:, : self.output_dim]
            inverse_KD = projection_DK.T
        else:
            draw = generator(self.seed, "projection", self.input_dim, self.output_dim)
            normal_DK = torch.randn(self.input_dim, self.output_dim, generator=draw, dtype=torch.float64)
            projection_DK = normal_DK.to(rows_VD.device) / self.output_dim**0.5
            # The least-squares inverse of these rows: (P'CP)^-1 P'C.
            cross_KD = projection_DK.T @ covariance_DD
            inverse_KD = torch.linalg.lstsq(cross_KD @ projection_DK, cross_KD).solution
        for name, value in (("mean", mean_D), ("projection", projection_DK), ("inverse", inverse_KD)):
            getattr(self, name).copy_(value)
        self.variances.copy_(values_D.flip(0).clamp(min=0))
        return self

    @property
    def fitted(self) -> bool:
        """Whether it has been fitted or loaded."""
        return bool(self.projection.any())

    @property
    def explained_variance(self) -> float:
        """Share of the whole variance that the first components of the fit's rows keep (PCA)."""
        return float(self.variances[: self.output_dim].sum() / self.variances.sum())

    def compress(self, rows_ND: Tensor) -> Tensor:
        """Codes z_NK, of the rows' type. UserError before a fit."""
        if not self.fitted:
            raise UserError("compressor: is not fitted; call fit or fit_counts, or load one")
        return ((rows_ND.to(self.mean.dtype) - self.mean) @ self.projection).to(rows_ND.dtype)

    def decompress(self, z_NK: Tensor) -> Tensor:
        """The linear inverse, y_ND."""
        return (z_NK.to(self.mean.dtype) @ self.inverse + self.mean).to(z_NK.dtype)

    forward = compress

    def truncated(self, output_dim: int) -> "EmbeddingCompressor":
        """The same fit with fewer components: no new fit is needed. UserError for a random projection."""
        if self.method != "pca" or output_dim > self.output_dim:
            raise UserError(
                f"compress_dim: {output_dim} is not to be had of a {self.method} fit of {self.output_dim}; fit again"
            )
        other = EmbeddingCompressor(self.input_dim, output_dim, self.method, self.seed).to(self.mean)
        for name, value in (("mean", self.mean), ("variances", self.variances)):
            getattr(other, name).copy_(value)
        other.projection.copy_(self.projection[:, :output_dim])
        other.inverse.copy_(self.inverse[:output_dim])
        return other
