"""Random streams that are functions of (seed, names): resuming needs no saved random state."""

import hashlib
from functools import lru_cache

import numpy as np
import torch


def derive_seed(seed: int, *names: object) -> int:
    """A 63-bit seed from a seed and names (a purpose, a step, a rank), each text or an int; the same on every machine."""
    # repr of anything else may hold an address, or differ between a NumPy integer and the int that equals it.
    assert all(type(part) in (int, str) for part in (seed, *names)), (seed, *names)
    text = repr((seed, *names)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def generator(seed: int, *names: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator for one purpose. Streams of different names are independent of each other's use."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))


def batch_indices(count: int, size: int, seed: int, step: int) -> np.ndarray:
    """[size] examples among `count` that make the batch of a step, a function of (seed, step).

    Positions step * size and on in the epochs' orders, laid end to end: each epoch takes every example once, and a batch
    may reach over its end.
    """
    parts = []
    position, end = step * size, (step + 1) * size
    while position < end:
        epoch, place = divmod(position, count)
        taken = min(end - position, count - place)
        parts.append(_order(count, seed, epoch)[place : place + taken])
        position += taken
    return np.concatenate(parts)


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    order: np.ndarray = torch.randperm(count, generator=generator(seed, "order", epoch)).numpy()
    return order
