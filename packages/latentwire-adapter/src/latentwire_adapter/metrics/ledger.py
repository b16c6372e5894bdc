"""What is sent for a token, and what the receiver must hold, in bits and bytes.

Floats are counted with 16 bits, as models are shipped. The honest reference is a token's number: whoever has the model has
its table, and ceil(log2 V) bits say which row is meant.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

FLOAT_BITS = 16


def bits_per_token(arm: str, dimensions: int, code: int, vocabulary: int, kept: float = 1.0) -> float:
    """Bits of a token of paragraph and question, side channels included; `kept`: share of the tokens that are sent.

    In `adapter_paragraph` and `fewer` the question is sent whole in both, and the bits are those of the paragraph's tokens.
    """
    scale = FLOAT_BITS  # int8 and int4 send the size of a step with each token
    return {
        "ids": float(math.ceil(math.log2(vocabulary))), "raw": float(FLOAT_BITS * dimensions), "linear": float(FLOAT_BITS * code),
        "nearest": float(FLOAT_BITS * code), "adapter": float(FLOAT_BITS * code), "phase2": float(FLOAT_BITS * code),
        "adapter_paragraph": float(FLOAT_BITS * code), "phase2_ppl": float(FLOAT_BITS * code),
        "int8": float(8 * code + scale), "int4": float(4 * code + scale), "nearest_int4": float(4 * code + scale), "fewer": FLOAT_BITS * dimensions * kept,
        "question_only": FLOAT_BITS * dimensions * kept, "shuffled": float(FLOAT_BITS * dimensions),
    }[arm]  # fmt: skip


def receiver_bytes(arm: str, dimensions: int, code: int, vocabulary: int, adapter_parameters: int) -> int:
    """Bytes that the receiver needs besides the model's layers to make rows of what arrives."""
    table, width = vocabulary * dimensions, FLOAT_BITS // 8
    if arm == "nearest_int4":  # its table's codes are rounded as those that arrive
        return width * table + -(-vocabulary * (4 * code + FLOAT_BITS) // 8)
    return width * {
        "ids": table, "raw": 0, "question_only": 0, "shuffled": 0, "fewer": 0, "linear": (code + 1) * dimensions,
        "nearest": table + vocabulary * code,
    }.get(arm, adapter_parameters)  # fmt: skip


def references(counts_V: Tensor, characters: float) -> dict[str, float]:
    """Bits of a token in other ways: its number, its information under the text's unigram model, its text in UTF-8."""
    p_V = counts_V[counts_V > 0].double() / counts_V.double().sum()
    return {
        "token_id_bits": float(math.ceil(math.log2(len(counts_V)))),
        "unigram_entropy_bits": float(-(p_V * p_V.log2()).sum()),
        "text_bits": 8 * characters,
    }


def ledger(arm: str, lm_shape: tuple[int, int], code: int, adapter_parameters: int, kept: float) -> Mapping[str, Any]:
    """Both, by name."""
    vocabulary, dimensions = lm_shape
    return {
        "bits_per_token": bits_per_token(arm, dimensions, code, vocabulary, kept),
        "receiver_bytes": receiver_bytes(arm, dimensions, code, vocabulary, adapter_parameters),
    }
