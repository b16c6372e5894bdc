"""Hashes of what a run reads, the same on every machine: fingerprints, and parts of a split that a text alone determines."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def tensor_sha256(tensor: "Tensor") -> str:
    """Hexadecimal digest of a tensor's numbers, in order."""
    return hashlib.sha256(tensor.cpu().numpy().tobytes()).hexdigest()


def share_of(text: str, bits: int = 64, skip: int = 0) -> float:
    """A share in [0, 1) that the text alone determines: `bits` of its SHA-256, after the first `skip`, as a binary fraction.

    Equal texts fall into one part of a split, whatever stands beside them. Other bits give an independent share, so a split
    names its bits once and keeps them.
    """
    number = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
    return (number >> (256 - skip - bits)) % 2**bits / 2**bits
