"""Documents, the guard against leaks, blocks of tokens, and the order of batches.

Training blocks are cut from one stream of documents; the tail that fills no block is left out. Validation windows hold
one token more than they predict and overlap by that one, so that each token (but the very first) is predicted exactly
once, from at most block_size - 1 tokens before it; the last window is filled up with targets that don't count.

Shapes: N blocks, T tokens of a block.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from retrofit.config import EMBEDDED_DATASET, RunConfig, check_local
from studycore.errors import UserError
from studycore.files import read_text
from studycore.streams import generator

FILE_VALIDATION_SHARE = 0.05
SEPARATOR = "<|endoftext|>"


@dataclass(frozen=True)
class Blocks:
    """Windows of tokens with the document of each target."""

    name: str
    ids_NT: Tensor
    """[N, block_size + 1]"""
    document_NT: Tensor
    """[N, block_size]: document of target t, -1 where it does not count."""
    documents: int

    def first(self, n: int | None) -> "Blocks":
        """The first n windows, under a name that says so."""
        if n is None or n >= len(self.ids_NT):
            return self
        name = f"the first {n} of {len(self.ids_NT)} blocks of {self.name}"
        return Blocks(name, self.ids_NT[:n], self.document_NT[:n], self.documents)

    @property
    def tokens(self) -> int:
        """Targets that count."""
        return int((self.document_NT >= 0).sum())


@dataclass(frozen=True)
class Data:
    """What a run reads."""

    train: Blocks
    validation: Blocks
    fingerprints: dict[str, str]
    """SHA-256 of the tokens, by split."""
    about: dict[str, Any]
    """What results must say: sources, documents, tokens, block size, stride, end-of-text policy."""


# ------------------------------------------------------------------------------------------------------- documents
def read_both(config: RunConfig) -> tuple[list[str], list[str]]:
    """(training, validation) documents as they are."""
    if config.validation_dataset is not None:
        other = validation_source(config)
        train = read_source(config, config.dataset, config.train_split, config.max_docs)
        held_out = read_source(other, other.dataset, config.validation_split, config.validation_docs)
    elif config.dataset == EMBEDDED_DATASET or not Path(config.dataset).is_file():
        train = read_source(config, config.dataset, config.train_split, config.max_docs)
        held_out = read_source(config, config.dataset, config.validation_split, config.validation_docs)
    else:
        every = read_source(config, config.dataset, "", None)
        if len(every) == 1:
            mend = (
                f"separate documents by empty lines or {SEPARATOR}" if config.dataset.endswith(".txt") else "give more"
            )
            raise UserError(
                f"--dataset: 1 document was found in '{config.dataset}', and none is left to validate on; "
                f"{mend}, or name a --validation-dataset"
            )
        chosen = [_hash_share(text) < FILE_VALIDATION_SHARE for text in every]
        train = [text for text, held in zip(every, chosen, strict=True) if not held][: config.max_docs]
        held_out = [text for text, held in zip(every, chosen, strict=True) if held][: config.validation_docs]
    for name, documents in (("training", train), ("validation", held_out)):
        if not documents:
            raise UserError(
                f"--dataset: '{config.dataset}' has no {name} documents; name another split, file or --validation-dataset"
            )
    return train, held_out


def validation_source(config: RunConfig) -> RunConfig:
    """The configuration with the dataset that is validated on as its dataset."""
    if config.validation_dataset is None:
        return config
    name, revision = config.validation_dataset_config, config.validation_dataset_revision
    return replace(config, dataset=config.validation_dataset, dataset_config=name, dataset_revision=revision)


def without_overlap(config: RunConfig, train: list[str], validation: Sequence[str]) -> list[str]:
    """The training documents, with on_overlap "drop" those alone that don't stand in validation. UserError for "stop"."""
    if config.on_overlap == "stop":
        check_overlap(train, validation)
        return train
    held_out = {document_hash(text) for text in validation}
    kept = [text for text in train if document_hash(text) not in held_out]
    if not kept:
        raise UserError(
            f"--dataset: all {len(train)} training documents stand in the validation text; give another --validation-dataset or split"
        )
    return kept


def check_overlap(train: Sequence[str], validation: Sequence[str]) -> None:
    """UserError when a document (its words, whatever the spacing) stands in both."""
    both = {document_hash(text) for text in train} & {document_hash(text) for text in validation}
    if both:
        example = next(text for text in validation if document_hash(text) in both)
        raise UserError(
            f"--dataset: {len(both)} documents stand in training and validation text, such as '{example.strip()[:60]}'; "
            "perplexity would be measured on what was trained on, so give another --validation-dataset or split, or --on-overlap drop"
        )


def document_hash(text: str) -> str:
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()


def _hash_share(text: str) -> float:
    return int(document_hash(text)[:13], 16) / 16**13


def read_source(config: Any, source: str, split: str, limit: int | None) -> list[str]:
    """Up to `limit` documents of a split of the embedded corpus, a file, or a hub dataset or folder."""
    if source == EMBEDDED_DATASET:
        return _embedded(split, limit)
    check_local("--dataset", source)
    path = Path(source)
    if path.is_file():
        documents = {".txt": _read_txt, ".jsonl": _read_jsonl, ".json": _read_jsonl, ".parquet": _read_parquet}
        if path.suffix not in documents:
            raise UserError(f"--dataset: {source} is no .txt, .jsonl or .parquet file; give one of these")
        return [text for text in documents[path.suffix](path, config.text_column) if text.strip()][:limit]
    return _read_hub(config, source, split, limit)


def _embedded(split: str, limit: int | None) -> list[str]:
    """Glosses that the embedded model has not seen, shuffled once and for all (they come sorted by name)."""
    from studycore.language import wordnet

    own: wordnet.Split = "validation" if split == "validation" else "reserve"
    texts = wordnet.texts(own)
    order = torch.randperm(len(texts), generator=generator(0, "embedded documents", own)).tolist()
    # Equal texts under two names would count twice.
    return list(dict.fromkeys(texts[i] for i in order))[:limit]


def _read_txt(path: Path, column: str) -> list[str]:
    """Documents between <|endoftext|>, or else between empty lines."""
    text = read_text(path)
    return text.split(SEPARATOR) if SEPARATOR in text else text.split("\n\n")


def _read_jsonl(path: Path, column: str) -> list[str]:
    texts = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            raise UserError(f"--dataset: {path} line {number} has no text under '{column}'; set --text-column")
        texts.append(row[column])
    return texts


def _read_parquet(path: Path, column: str) -> list[str]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        names = parquet.read_schema(path).names
        if column not in names:
            raise UserError(f"--text-column: {path} has no column '{column}'; there are {', '.join(names)}")
        return [text for text in parquet.read_table(path, columns=[column])[column].to_pylist() if text]
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"--dataset: {path} is no Parquet file that can be read ({error}); restore it") from None


def _read_hub(config: Any, source: str, split: str, limit: int | None) -> list[str]:
    """A dataset of the hub, or a folder in its form, streamed so that no more than is used is fetched."""
    import datasets

    if not Path(source).exists():
        print(f"reading the dataset {source} ({split}) from the Hugging Face hub")
    try:
        rows = datasets.load_dataset(
            source, config.dataset_config, split=split, streaming=True, revision=config.dataset_revision
        )
        if rows.column_names is not None and config.text_column not in rows.column_names:
            raise UserError(
                f"--text-column: {source} has no column '{config.text_column}'; there are {', '.join(rows.column_names)}"
            )
        wanted = (row[config.text_column] for row in rows)
        return list(islice((text for text in wanted if text and text.strip()), limit))
    except UserError:
        raise
    except Exception as error:  # datasets raises its own, huggingface_hub's and httpx's errors
        if not _is_users(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--dataset: '{source}' ({split}) cannot be read: {reason}; check the name, the split and the network"
        ) from None


def hub_commit(source: str, revision: str | None) -> str | None:
    """The commit that a hub dataset's revision is now; None for what is no hub dataset, and without a network."""
    if source == EMBEDDED_DATASET or Path(source).exists():
        return None
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(source, revision=revision).sha
    except Exception as error:  # huggingface_hub raises its own and httpx's errors
        if not _is_users(error):
            raise
        return None


def _is_users(error: Exception) -> bool:
    names = {cls.__module__.split(".")[0] for cls in type(error).__mro__}
    return bool({"datasets", "huggingface_hub", "httpx", "httpx2"} & names) or isinstance(error, OSError | ValueError)


# ---------------------------------------------------------------------------------------------------------- blocks
def load_data(config: RunConfig, tokenizer: Any, context: int) -> Data:
    """The run's blocks. UserError for a block longer than the model's context, or fewer tokens than a block."""
    if config.block_size > context:
        raise UserError(
            f"block_size: {config.block_size} is longer than the model's context of {context} tokens; give at most that"
        )
    read, held_out = read_both(config)
    train = without_overlap(config, read, held_out)
    other = validation_source(config)
    training = cut_blocks("training", train, tokenizer, config, whole=False)
    validation = cut_blocks("validation", held_out, tokenizer, config, whole=True)
    about = {
        "dataset": config.dataset,
        "dataset_commit": hub_commit(config.dataset, config.dataset_revision),
        "validation_dataset": other.dataset,
        "validation_dataset_commit": hub_commit(other.dataset, other.dataset_revision),
        "training_documents": len(train),
        "training_documents_dropped": len(read) - len(train),
        "training_tokens_available": training.tokens,
        "validation_documents": len(held_out),
        "validation_tokens_available": validation.tokens,
        "block_size": config.block_size,
        "stride": config.block_size,
        "end_of_text": config.end_of_text,
    }
    return Data(training, validation, {b.name: fingerprint(b) for b in (training, validation)}, about)


def cut_blocks(name: str, documents: Sequence[str], tokenizer: Any, config: Any, whole: bool) -> Blocks:
    """Windows over the stream of documents; with `whole` the last one is filled up, else it is left out."""
    ends = [tokenizer.eos_token_id] if config.end_of_text == "before" else []
    if None in ends:
        raise UserError("end_of_text: the model's tokenizer has no end-of-text token; give --end-of-text none")
    rows = [[*ends, *row] for row in tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]]
    stream = torch.from_numpy(np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]))
    owner = torch.from_numpy(np.repeat(np.arange(len(rows)), [len(row) for row in rows]))
    size = config.block_size
    count = (len(stream) - 1) / size
    n = int(np.ceil(count)) if whole else int(count)
    if n < 1:
        raise UserError(
            f"--dataset: the {name} documents have {len(stream)} tokens, fewer than a block of {size}; use more or longer ones"
        )
    lacking = max(n * size + 1 - len(stream), 0)
    stream = torch.cat([stream, stream.new_zeros(lacking)])
    owner = torch.cat([owner, owner.new_full((lacking,), -1)])
    ids_NT = stream[: n * size + 1].unfold(0, size + 1, size)
    document_NT = owner[1 : n * size + 1].view(n, size)
    return Blocks(name, ids_NT.contiguous(), document_NT, len(rows))


def fingerprint(blocks: Blocks) -> str:
    """SHA-256 of the tokens."""
    return hashlib.sha256(blocks.ids_NT.numpy().tobytes()).hexdigest()


# ----------------------------------------------------------------------------------------------------------- order
def update_indices(n: int, config: RunConfig, step: int) -> list[int]:
    """The blocks of update `step`: positions step * batch_size and on in the epochs' orders, laid end to end."""
    first = step * config.batch_size
    indices = []
    for position in range(first, first + config.batch_size):
        epoch, place = divmod(position, n)
        indices.append(epoch_order(n, config.seed, epoch)[place])
    return indices


_orders: dict[tuple[int, int, int], list[int]] = {}


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """A permutation of the blocks: a function of (seed, epoch)."""
    key = (n, seed, epoch)
    if key not in _orders:
        if len(_orders) > 4:
            _orders.clear()
        _orders[key] = torch.randperm(n, generator=generator(seed, "order", epoch)).tolist()
    return _orders[key]


class _Rows(Dataset[Tensor]):
    def __init__(self, ids_NT: Tensor):
        self.ids_NT = ids_NT

    def __getitem__(self, index: int) -> Tensor:
        return self.ids_NT[index]

    def __getitems__(self, indices: list[int]) -> Tensor:
        return self.ids_NT[indices]


def micro_batches(blocks: Blocks, config: RunConfig, steps: range, rank: int, world: int) -> Iterator[list[Tensor]]:
    """This process's parts of the batch of each update in `steps`, each [blocks, block_size + 1].

    UserError when the processes and parts don't divide the batch.
    """
    parts = config.gradient_accumulation_steps
    if config.batch_size % (world * parts):
        raise UserError(
            f"batch_size: {config.batch_size} is not divisible by {world} processes x {parts} parts; choose one that is"
        )
    each = config.batch_size // (world * parts)

    def order() -> Iterator[list[int]]:
        for step in steps:
            mine = update_indices(len(blocks.ids_NT), config, step)[rank::world]
            for part in range(parts):
                yield mine[part * each : (part + 1) * each]

    loader: Any = DataLoader(
        _Rows(blocks.ids_NT),
        batch_sampler=list(order()),
        num_workers=config.num_workers,
        collate_fn=_as_it_is,
        # Without a generator of its own the loader draws a seed from the global stream.
        generator=generator(config.seed, "loader"),
    )
    items = iter(loader)
    for _ in steps:
        yield [next(items) for _ in range(parts)]


def _as_it_is(batch: Any) -> Any:
    return batch
