"""Activations with their labels, read through memory maps in any order: training draws across documents.

In a text an activation predicts the next token, and its label is the concept of that token; the last activation of a prompt has
the label of its own token. Shapes: N activations, D width, P concepts.
"""

from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytope_hsae.concepts import ESTIMATE, Hierarchy, load_hierarchy
from polytope_hsae.config import AGAIN, ActivationConfig
from studycore.devices import check_memory
from studycore.errors import UserError
from studycore.files import read_json, read_text, sha256
from studycore.foreign import reading
from studycore.run import Run
from studycore.streams import generator

CONTEXT = 10
"""Tokens before one that its context shows."""
TOKEN_BYTES = 64
"""Memory that a token's numbers take at least until they are written: itself, the next, its document and its split."""

TRAIN, CHOOSE, TEST = 0, 1, 2
"""The splits."""


def sum_of(path: Path) -> Path:
    """The file beside a shard that holds the SHA-256 of its bytes."""
    return path.with_suffix(".sha256")


def recorded(path: Path) -> str:
    """The SHA-256 of a shard as it was written; "" where none stands beside it."""
    return read_text(sum_of(path)) if sum_of(path).is_file() else ""


def fault_of(path: Path, numbers: int, expected: str) -> str:
    """What is wrong with a shard of so many numbers and that SHA-256; "" for nothing."""
    if not path.is_file():
        return "the shard is gone"
    there = path.stat()
    if there.st_size != 4 * numbers:
        return f"the shard has {there.st_size:,} bytes where {4 * numbers:,} were written"
    return "" if _digest(path, there.st_size, there.st_mtime_ns) == expected else "the shard has changed since it was written"  # fmt: skip


@cache
def _digest(path: Path, size: int, written: int) -> str:
    """Of a file's bytes, read once in a process while size and time of writing stay."""
    return sha256(path)


class Store:
    """The activations of a finished job, by memory map. UserError for a folder that is none, and for a changed shard."""

    def __init__(self, folder: Path, hierarchy: Hierarchy):
        from safetensors.numpy import load_file

        self.folder, self.hierarchy = folder, hierarchy
        with reading(folder, "activations", AGAIN):
            index = read_json(folder / "index.json")
            self.width: int = index["width"]
            self.texts: list[str] = index.get("prompts", [])
            self.arrays = load_file(folder / "arrays.safetensors")
            self.places = [Path(index["cache"]) / f"{shard['key']}.f32" for shard in index["shards"]]
            self.starts = np.cumsum([0, *(shard["rows"] for shard in index["shards"])])
            sums = [shard["sha256"] for shard in index["shards"]]
            labels = len(self.arrays["split"])
        if labels != len(self):
            raise UserError(f"{folder}: has labels of {labels} activations and shards of {len(self)}; {AGAIN}")
        for path, rows, expected in zip(self.places, np.diff(self.starts), sums, strict=True):
            if wrong := fault_of(path, int(rows) * self.width, expected):
                raise UserError(f"{path}: {wrong}; remove {folder}, and it is captured again")
        self.maps = [np.memmap(path, np.float32, "r").reshape(-1, self.width) for path in self.places]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def rows(self, indices: np.ndarray) -> Tensor:
        """[n, D] activations."""
        x_nD = np.empty((len(indices), self.width), np.float32)
        shard = np.searchsorted(self.starts, indices, "right") - 1
        for number in np.unique(shard):
            chosen = shard == number
            x_nD[chosen] = self.maps[number][indices[chosen] - self.starts[number]]
        return torch.from_numpy(x_nD)

    def split(self, which: int) -> np.ndarray:
        """Indices of a split."""
        return np.flatnonzero(self.arrays["split"] == which)

    def prompts(self, which: int) -> np.ndarray:
        """Indices of a split's prompts; none of a planted tree."""
        every = self.split(which)
        return every[self.arrays["document"][every] < 0] if "document" in self.arrays else every[:0]

    def sample(self, which: int, count: int) -> np.ndarray:
        """Up to `count` indices of a split without its prompts, always the same, in order."""
        every = np.setdiff1d(self.split(which), self.prompts(which), assume_unique=True)
        order = torch.randperm(len(every), generator=generator(0, "sample", which)).numpy()
        return np.sort(every[order[:count]])

    @cached_property
    def _labels(self) -> np.ndarray:
        """[N, P] child that is on (their number for the parent alone), -1 where the parent is off."""
        if "child" in self.arrays:
            return self.arrays["child"]
        labels = self.hierarchy.labels()
        table = np.full(
            (max([0, *labels, int(self.arrays["word"].max())]) + 2, len(self.hierarchy.parents)), -1, np.int8
        )
        for token, (p, c) in labels.items():
            table[token, p] = c
        return table[self.arrays["word"]]  # a missing next token, -1, reads the last row, which has no label

    def labels(self, indices: np.ndarray) -> Tensor:
        """[n, P] child that is on with its parent (the number of children for the parent alone), -1 where it is off."""
        return torch.from_numpy(self._labels[indices].astype(np.int64))

    def held_out(self, indices: np.ndarray) -> Tensor:
        """[n] whether no concept's vector was estimated from the word of the label; all of a planted tree's."""
        if "child" in self.arrays:
            return torch.ones(len(indices), dtype=torch.bool)
        known = np.array(sorted(self.hierarchy.labels(ESTIMATE)))
        return torch.from_numpy(~np.isin(self.arrays["word"][indices], known))

    @property
    def next_tokens(self) -> np.ndarray | None:
        """[N] of a language model, -1 where there is none."""
        return self.arrays.get("next") if "child" not in self.arrays else None

    def context(self, index: int, before: int = CONTEXT) -> str:
        """The text up to an activation's token, and the next one in brackets; a prompt; of a planted tree its labels."""
        if "child" in self.arrays:
            on = [(p, int(c)) for p, c in enumerate(self._labels[index]) if c >= 0]
            names = [(self.hierarchy.parents[p], c) for p, c in on]
            return ", ".join(p.name if c == len(p.children) else p.children[c].name for p, c in names)
        start = index
        document = self.arrays["document"]
        if document[index] < 0:
            return self.texts[-1 - document[index]]
        while start > max(0, index - before) and document[start - 1] == document[index]:
            start -= 1
        text = self._tokenizer.decode(self.arrays["token"][start : index + 1].tolist(), skip_special_tokens=True)
        following = int(self.arrays["next"][index])
        return text + (f" [{self._tokenizer.decode([following]).strip()}]" if following >= 0 else "")

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder / "tokenizer")


def folder_of(run: Run, job: str) -> Path:
    """Of a finished job that this one needs: from the phase's plan, or from the flag of that name. UserError for none."""
    return run.folder_of(job, getattr(run.options, job, None), need=job, holds="results.json")


def open_store(geometry: Path, activations: Path) -> Store:
    """Of the folders of the two jobs."""
    return Store(activations, load_hierarchy(geometry / "concepts.json"))


def check_budget(config: ActivationConfig) -> None:
    """UserError for more activations than memory holds the numbers of."""
    size = TOKEN_BYTES * config.token_budget
    check_memory(size, f"data.token_budget: the tokens and labels of {config.token_budget:,} activations", "lower it")
