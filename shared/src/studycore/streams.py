"""Random streams that are functions of (seed, names): resuming needs no saved random state."""

import hashlib

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
