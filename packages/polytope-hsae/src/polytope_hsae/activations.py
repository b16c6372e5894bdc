"""Activations with their labels: captured from a language model into shards named by their content, or planted.

A shard's name is the SHA-256 of the model's weights, its precision, the shard's tokens and which of them are kept. Shards lie beside the runs, so
that no activation is computed twice, whatever else of the configuration changes, and a capture that was cut off goes on.
They are written in the order of the text and read through memory maps in any order: training draws across documents. Beside
each stands the SHA-256 of its bytes, so that one that is short or has changed is made again and never read.

In a text an activation predicts the next token, and its label is the concept of that token. Of a prompt, whose last token is a
concept's word, that token's activation is kept alone, and its label is its own concept. No activation is there twice: of
what begins alike, one is kept, so that none has two labels or stands in two splits.

Shapes: N activations, D width, T tokens of a window.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from polytope_hsae import synthetic
from polytope_hsae.concepts import Hierarchy, load_hierarchy, prompts
from polytope_hsae.config import SYNTHETIC, ActivationConfig
from polytope_hsae.data import CHOOSE, TEST, TRAIN, check_budget, fault_of, folder_of, recorded, sum_of
from polytope_hsae.language import (
    check_capture,
    check_known,
    final_activations,
    load_model,
    load_tokenizer,
    pad,
)
from studycore.errors import UserError
from studycore.files import check_local, write_atomic, write_json
from studycore.hashes import share_of
from studycore.language.documents import as_read, document, read_documents
from studycore.language.pretrained import beginning, hub_rows, weights_fingerprint
from studycore.run import Run
from studycore.streams import generator

CACHE = Path("runs") / "polytope-hsae" / "cache" / "shards"
EMBEDDED = "studycore/wordnet"
SPLIT_OF_PART = (TRAIN, CHOOSE, TEST)
"""Of prompts whose word is for estimating, for choosing, for testing."""


@dataclass(frozen=True)
class Sequences:
    """What goes through the model: windows of one length, or prompts padded on the right."""

    rows: list[list[int]]
    """Tokens."""
    first: list[int]
    """Of each row, the first position whose activation is kept; all after it are."""
    following: list[int]
    """The token after each row, -1 for none."""
    split: list[int]
    documents: list[list[int]]

    def shards(self, tokens: int) -> Iterator["Sequences"]:
        """Parts of about `tokens` tokens each."""
        part, size = [], 0
        for i, row in enumerate(self.rows):
            part.append(i)
            size += len(row) - self.first[i]
            if size >= tokens or i + 1 == len(self.rows):
                yield self.take(part)
                part, size = [], 0

    def take(self, part: Sequence[int]) -> "Sequences":
        return Sequences(
            [self.rows[i] for i in part], [self.first[i] for i in part], [self.following[i] for i in part],
            [self.split[i] for i in part], [self.documents[i] for i in part],
        )  # fmt: skip

    def distinct(self) -> "Sequences":
        """Without activations that another row has: what a model makes of a token depends on the row up to it alone.

        In the order of their tokens, what a row shares with any row before it is what it shares with the last.
        """
        order = sorted(range(len(self.rows)), key=self.rows.__getitem__)
        first = list(self.first)
        for before, i in itertools.pairwise(order):
            one, other = self.rows[before], self.rows[i]
            alike = next(
                (t for t, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
            )
            first[i] = max(first[i], alike)
        trimmed = Sequences(self.rows, first, self.following, self.split, self.documents)
        return trimmed.take([i for i, row in enumerate(self.rows) if first[i] < len(row)])

    def kept(self, values: Sequence[Sequence[int]]) -> list[int]:
        """Of values for each token of each row, those whose activation is kept, one after another."""
        return [value for row, first in zip(values, self.first, strict=True) for value in row[first:]]


def capture(config: ActivationConfig, run: Run) -> None:
    """The job: every shard that is not there yet, then the labels of all."""
    hierarchy = load_hierarchy(folder_of(run, "geometry") / "concepts.json")
    if config.model == SYNTHETIC:
        _plant(config, run)
        return
    check_budget(config)
    tokenizer = load_tokenizer(config.model, config.model_revision)
    model = load_model(config.model, config.model_revision, config.dtype)
    weights = weights_fingerprint(model)
    sequences = gather(config, hierarchy, tokenizer)
    read = {token for row in sequences.rows for token in row}.union(sequences.following)
    check_known(read, model, tokenizer, f"text of {config.source}", config.model)
    shards = list(sequences.shards(config.shard_size_tokens))
    keys = [_key(weights, config.dtype, shard) for shard in shards]
    data = {"model": weights, "tokens": hashlib.sha256("".join(keys).encode()).hexdigest()}
    run.begin(data=data, hook="what the unembedding reads: the output of the final norm")
    model = run.accelerator.prepare_model(model.to(run.device), evaluation_mode=True)
    check_capture(model, torch.tensor(sequences.rows[0])[None].to(run.device))
    CACHE.mkdir(parents=True, exist_ok=True)
    width = int(model.get_output_embeddings().weight.shape[1])
    places, counts = [CACHE / f"{key}.f32" for key in keys], [len(shard.kept(shard.rows)) for shard in shards]
    for number in run.steps(len(shards), unit="shard"):
        if run.ended():
            break
        if number % run.world == run.rank and _is_due(places[number], counts[number] * width, run):
            _write(places[number], model, shards[number], config.batch_size, tokenizer.eos_token_id or 0, run)
    run.accelerator.wait_for_everyone()
    if run.is_main:
        tokenizer.save_pretrained(run.folder / "tokenizer")
        index = [
            {"key": key, "rows": rows, "sha256": recorded(path)}
            for key, rows, path in zip(keys, counts, places, strict=True)
        ]
        texts = {i: tokenizer.decode(row, skip_special_tokens=True) for row, (i, *_) in zip(sequences.rows, sequences.documents, strict=True) if i < 0}  # fmt: skip
        write_json(run.folder / "index.json", {
            "width": width, "cache": str(CACHE.absolute()), "shards": index, "prompts": [texts[-1 - i] for i in range(len(texts))],
        })  # fmt: skip
    flat = sequences.kept(sequences.rows)
    after = sequences.kept([[*row[1:], last] for row, last in zip(sequences.rows, sequences.following, strict=True)])
    split = sequences.kept([[s] * len(row) for row, s in zip(sequences.rows, sequences.split, strict=True)])
    document = sequences.kept(sequences.documents)
    word = [own if d < 0 else following for own, following, d in zip(flat, after, document, strict=True)]
    labels = hierarchy.labels()
    numbers = {"token": flat, "next": after, "word": word, "document": document}
    run.results(
        {"activations": len(flat), "shards": len(shards), "labelled": sum(t in labels for t in word),
         "prompts": sum(d < 0 for d in document), "bos": beginning(tokenizer)[1]},
        {name: torch.tensor(values, dtype=torch.int32) for name, values in numbers.items()}
        | {"split": torch.tensor(split, dtype=torch.int8)},
    )  # fmt: skip


def gather(config: ActivationConfig, hierarchy: Hierarchy, tokenizer: Any) -> Sequences:
    """Prompts, then windows of text, token_budget tokens in all. UserError when the text is too short.

    Where the tokenizer begins texts with a token, all windows and prompts begin with it, and its activation is not kept.
    Otherwise prompts and documents begin with the end of a text, where there is one.
    """
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    begin, _ = beginning(tokenizer)
    made = prompts(hierarchy, config.prompts_per_concept, config.seed)
    befores = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in {p.before for p in made}}
    rows = [[*(begin or end), *befores[p.before], p.word] for p in made]
    sequences = Sequences(
        rows, [len(row) - 1 for row in rows], [-1] * len(rows), [SPLIT_OF_PART[p.part] for p in made],
        [[-1 - i] * len(row) for i, row in enumerate(rows)],
    )  # fmt: skip
    left = config.token_budget - len(rows)
    if left < config.window_length:
        raise UserError(f"data.token_budget: {config.token_budget} leaves {left} tokens beside the prompts; raise it")
    streams: dict[int, tuple[list[int], list[int]]] = {split: ([], []) for split in (TRAIN, CHOOSE, TEST)}
    size = config.window_length - len(begin)  # tokens of the text
    for number, text in enumerate(documents(config)):
        ids = [*end, *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
        tokens, owners = streams[_split_of(text, config)]
        tokens += ids
        owners += [number] * len(ids)
        if sum(max(0, len(t) - 1) // size * size for t, _ in streams.values()) >= left:
            break
    for split, (tokens, owners) in streams.items():
        for start in range(0, (len(tokens) - 1) // size * size, size):
            if left < size:
                break
            left -= size
            sequences.rows.append([*begin, *tokens[start : start + size]])
            sequences.first.append(len(begin))
            sequences.following.append(tokens[start + size])
            sequences.split.append(split)
            sequences.documents.append([owners[start]] * len(begin) + owners[start : start + size])
    if left >= size:
        raise UserError(f"data.token_budget: the texts of {config.source} end {left} tokens before {config.token_budget}; lower it")  # fmt: skip
    return sequences.distinct()


def documents(config: ActivationConfig) -> Iterator[str]:
    """The texts, in an order drawn by the seed; of a hub dataset in its own."""
    check_local("data.source", config.source)
    if config.source == EMBEDDED:
        from studycore.language import wordnet

        texts = [document.text for document in wordnet.documents()]
    elif Path(config.source).is_file():
        texts = read_documents(config.source, flag="data.source")
    else:
        yield from _hub_texts(config.source)
        return
    for i in torch.randperm(len(texts), generator=generator(config.seed, "documents")).tolist():
        yield texts[i]


def _hub_texts(source: str) -> Iterator[str]:
    name, _, subset = source.partition(":")
    for number, row in enumerate(hub_rows(name, "train", ("text",), subset or None, flag="data.source")):
        text = document(row, "text", f"data.source: row {number} of '{source}'", "name a dataset of texts")
        if text.strip():
            yield text


def _split_of(text: str, config: ActivationConfig) -> int:
    """By a hash of the text as it is read, so that what is the same to a reader is in one split.

    Of WordNet, where no two texts differ in spacing alone, by one of the text as it stands.
    """
    shares, same = config.data_split, text if config.source == EMBEDDED else as_read(text)
    place = share_of(repr((0, "split", same)), bits=63)
    return TRAIN if place < shares[0] else CHOOSE if place < shares[0] + shares[1] else TEST


def _key(weights: str, dtype: str, shard: Sequences) -> str:
    return hashlib.sha256(f"{weights} {dtype} {shard.rows} {shard.first}".encode()).hexdigest()


def _is_due(path: Path, numbers: int, run: Run) -> bool:
    """Whether a shard is to be made: it is not there, or not as it was written."""
    wrong = fault_of(path, numbers, recorded(path))
    if wrong and path.exists():
        run.say(f"{path}: {wrong}; it is made again")
    return bool(wrong)


def _write(path: Path, model: Any, shard: Sequences, batch: int, fill: int, run: Run) -> None:
    """The shard's activations, in the order of its tokens."""

    def parts() -> Iterator[bytes]:
        for start in range(0, len(shard.rows), batch):
            run.check_stop()
            part, first = shard.rows[start : start + batch], shard.first[start : start + batch]
            ids_BT, mask_BT = pad(part, fill)
            x_BTD = final_activations(model, ids_BT.to(run.device), mask_BT.to(run.device)).cpu()
            kept_BT = mask_BT.bool() & (torch.arange(ids_BT.shape[1]) >= torch.tensor(first)[:, None])
            yield x_BTD[kept_BT].numpy().tobytes()

    _keep(path, parts())


def _keep(path: Path, parts: Iterable[Any]) -> None:
    """A shard of these bytes, durably: its checksum first, then the file, which appears whole."""
    digest = hashlib.sha256()

    def summed() -> Iterator[bytes]:
        for part in parts:
            digest.update(part)
            yield part
        write_atomic(sum_of(path), digest.hexdigest())  # before the shard has its name

    write_atomic(path, summed())


def _plant(config: ActivationConfig, run: Run) -> None:
    """Activations of the planted tree, as one shard."""
    x_ND, child_NP = synthetic.activations(config, config.token_budget, config.seed)
    written = x_ND.data.cast("B")
    key = hashlib.sha256(written).hexdigest()
    run.begin(data={"planted": key})
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / f"{key}.f32"
    if _is_due(path, x_ND.size, run):
        _keep(path, [written])
    shards = [{"key": key, "rows": len(x_ND), "sha256": key}]
    write_json(run.folder / "index.json", {"width": x_ND.shape[1], "cache": str(CACHE.absolute()), "shards": shards})
    place = torch.rand(len(x_ND), generator=generator(config.seed, "splits"))
    split = (place >= config.data_split[0]).to(torch.int8) + (place >= sum(config.data_split[:2])).to(torch.int8)
    run.results(
        {"activations": len(x_ND), "shards": 1, "labelled": int((child_NP >= 0).any(1).sum())},
        {"child": torch.from_numpy(child_NP), "split": split},
    )
