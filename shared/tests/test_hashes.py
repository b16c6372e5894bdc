"""Shares and fingerprints: splits of today stay what they are."""

import hashlib

import pytest
import torch

from studycore.hashes import share_of, tensor_sha256

# (text, first 48 bits, first 64, bits 52 to 104): worked out from SHA-256 in the way of each split before it was shared.
KNOWN = [
    ("a small dog", 0.5162538607014966, 0.5162538607014978, 0.622223833201665),
    ("", 0.8894159948913369, 0.8894159948913374, 0.7550306169546614),
    ("naïve café", 0.15979640758821745, 0.15979640758822036, 0.07264623560925898),
]


@pytest.mark.parametrize(("text", "first_48", "first_64", "next_52"), KNOWN)
def test_a_share_is_of_the_bits_that_it_names(text, first_48, first_64, next_52):
    assert (share_of(text, 48), share_of(text), share_of(text, 52, skip=52)) == (first_48, first_64, next_52)
    assert share_of(text, 52) == int(hashlib.sha256(text.encode()).hexdigest()[:13], 16) / 16**13


def test_a_tensors_digest_is_of_its_numbers_in_order():
    x = torch.arange(6).reshape(2, 3)
    assert tensor_sha256(x) == hashlib.sha256(x.numpy().tobytes()).hexdigest()
    assert tensor_sha256(x.T) == tensor_sha256(x.T.contiguous()) != tensor_sha256(x)
