"""Principal components from counts beside materialised embeddings, scikit-learn's way of streaming, and the floors.

    python benchmarks/fit.py

400,000 tokens, Zipf-distributed over 3,000 types, 256 dimensions, float64; each way once, in one process. Without
scikit-learn its line is left out. The floor is one pass of the Gram matrix over the types.
"""

import time
from collections.abc import Callable

import numpy as np
import torch

from latentwire_adapter.model.compressor import EmbeddingCompressor, weighted_covariance

TOKENS, TYPES, WIDTH, KEPT = 400_000, 3_000, 256, 32


def timed(name: str, work: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    began = time.perf_counter()
    outcome = work()
    seconds = time.perf_counter() - began
    print(f"{name:<36}{seconds:8.2f} s", flush=True)
    return seconds, outcome


def main() -> None:
    draw = torch.Generator().manual_seed(0)
    table_VD = torch.randn(TYPES, WIDTH, generator=draw, dtype=torch.float64)
    share_V = 1 / torch.arange(1, TYPES + 1, dtype=torch.float64) ** 1.07
    ids_N = torch.multinomial(share_V, TOKENS, replacement=True, generator=draw)

    def counted(tokens: torch.Tensor) -> torch.Tensor:
        return torch.bincount(tokens, minlength=TYPES)

    def fitted(counts_V: torch.Tensor) -> torch.Tensor:
        return EmbeddingCompressor(WIDTH, KEPT).double().fit_counts(table_VD, counts_V).projection

    def materialised() -> torch.Tensor:
        x_ND = table_VD[ids_N]
        return torch.linalg.svd(x_ND - x_ND.mean(0), full_matrices=False)[2][:KEPT].T

    ours, projection = timed("counted, and fitted from counts", lambda: fitted(counted(ids_N)))
    ten, counts_V = timed("ten times the tokens, counted", lambda: counted(ids_N.repeat(10)))
    again, _ = timed("ten times the tokens, fitted", lambda: fitted(counts_V))
    floor, _ = timed("floor: one Gram matrix of the types", lambda: table_VD.T @ table_VD)
    peer, expected = timed("materialised, singular values", materialised)
    gap = torch.linalg.norm(projection @ projection.T - expected @ expected.T)
    covariance_DD = weighted_covariance(table_VD, counted(ids_N))[1]
    exact_DD = torch.from_numpy(np.cov(table_VD[ids_N].T.numpy()))
    error = torch.linalg.norm(covariance_DD - exact_DD) / torch.linalg.norm(exact_DD)
    eigen, _ = timed("materialised, covariance", lambda: torch.linalg.eigh(torch.cov(table_VD[ids_N].T))[1])
    print(
        f"materialised / ours {peer / ours:.0f} (singular values), {eigen / ours:.0f} (covariance); subspace gap {gap:.1e}; covariance {error:.1e}"
    )
    print(
        f"once counted, ten times the tokens / ours {again / ours:.1f}; counting them {ten:.2f} s; ours / floor {ours / floor:.0f}"
    )
    try:
        from sklearn.decomposition import IncrementalPCA
    except ImportError:
        print("scikit-learn is not installed: IncrementalPCA not run")
        return
    streamed = IncrementalPCA(KEPT)
    batch = 5 * WIDTH
    whole = TOKENS // batch * batch

    def incremental() -> torch.Tensor:
        for start in range(0, whole, batch):
            streamed.partial_fit(table_VD[ids_N[start : start + batch]].numpy())
        return torch.from_numpy(streamed.components_.T)

    other, components = timed("IncrementalPCA, batches of 5 D", incremental)
    gap = torch.linalg.norm(components @ components.T - expected @ expected.T)
    print(f"IncrementalPCA / ours {other / ours:.0f}; its subspace gap {gap:.1e}")


if __name__ == "__main__":
    main()
