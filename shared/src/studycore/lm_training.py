"""Training of the reference language model `studycore/wordnet-lm`: recipe, tokenizer, batches, loop.

A GPT-NeoX model (rotary positions, one block after the other, tied embeddings) learns three things at once: WordNet's
glosses; reading, that is answers to questions on invented facts (paragraphs.py); and copying, the second half of
repeated random sequences, which makes the attention heads that reading needs (Olsson et al. 2022). Reading takes most of
the first steps, glosses most of the others. Needs the extra studycore[lm].
"""

import json
import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from studycore import paragraphs, reference_lm, wordnet
from studycore.checkpoints import load_latest, rebuild, save_checkpoint
from studycore.configuration import differences, from_dict, read_yaml, to_dict, to_yaml
from studycore.devices import choose_device, describe, set_threads
from studycore.errors import Stopped, UserError
from studycore.files import write_json
from studycore.runs import create_run, environment_changes, now, open_run, read_manifest, recording
from studycore.stopping import stop_on_signals
from studycore.streams import derive_seed, generator

STUDY, VERB = "studycore", "reference-lm"
END = "<|endoftext|>"
PART = 512
"""Targets whose logits are in memory at a time."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the model."""

    seed: int = 0
    """Seed of weights, order and dropout."""
    word_count: int = 20
    """Words that stand so often in the training text are one token, with their leading space ..."""
    noun_count: int = 8
    """... and single-word nouns of WordNet already when they stand so often."""
    pieces: int = 1500
    """Parts of those words that are no token."""
    hidden_size: int = 256
    """Width."""
    layers: int = 4
    """Blocks."""
    heads: int = 4
    """Attention heads in a block."""
    dropout: float = 0.1
    """On the embeddings and on each block's two outputs."""
    block: int = 160
    """Tokens in a row."""
    rows: int = 48
    """Rows in a step; those that are neither glosses nor reading are copying."""
    steps: int = 3000
    """Updates."""
    first_stage: int = 1000
    """Updates that are mostly reading, in its plain wording and with every second row of it an echo."""
    first_text_rows: int = 10
    """Rows of glosses in the first stage."""
    first_reading_rows: int = 24
    """Rows of reading in the first stage."""
    text_rows: int = 32
    """Rows of glosses after it."""
    reading_rows: int = 12
    """Rows of reading after it."""
    learning_rate: float = 2e-3
    """AdamW's, at its highest."""
    warm_up: int = 200
    """Updates of linear warm-up; a cosine to a tenth follows."""
    weight_decay: float = 0.1
    """AdamW's, for matrices."""
    clip: float = 1.0
    """Bound of the gradient's norm."""
    mixed_precision: Literal["no", "bf16"] = "bf16"
    """Of the forward pass; weights and optimizer are float32."""
    eval_every: int = 500
    """Updates between evaluations on a part of the held-out material."""
    checkpoint_every: int = 250
    """Updates between checkpoints."""

    def __post_init__(self) -> None:
        least = dict.fromkeys(("hidden_size", "layers", "heads", "rows", "steps", "eval_every", "checkpoint_every"), 1)
        least |= {"block": 96, "first_stage": 0, "warm_up": 0, "pieces": 300, "noun_count": 1, "word_count": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name}: {getattr(self, name)} is too few; give at least {bound}")
        if self.hidden_size % self.heads:
            raise ValueError(
                f"heads: {self.heads} does not divide hidden_size {self.hidden_size}; choose one that does"
            )
        for text, reading in (("first_text_rows", "first_reading_rows"), ("text_rows", "reading_rows")):
            if getattr(self, text) + getattr(self, reading) > self.rows:
                raise ValueError(f"{reading}: with {text} it exceeds rows {self.rows}; lower one of them")


@dataclass(frozen=True)
class TrainOptions:
    """How the training is run; nothing here changes what is learnt."""

    output_dir: str | None = None
    """The run folder; by default a new one under runs/studycore."""
    resume: bool = False
    """Continue the newest unfinished run of this recipe, if there is one."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train."""
    threads: int | None = None
    """PyTorch's threads on a CPU; by default its own choice."""


# ------------------------------------------------------------------------------------------------------- tokenizer
def train_tokenizer(recipe: Recipe) -> Any:
    """A Unigram tokenizer over bytes whose vocabulary is chosen: frequent words, nouns, names and values, pieces."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False)
    counts: Counter[str] = Counter()
    for document in wordnet.documents():
        if document.split == "train":
            counts.update(part for part, _ in bytes_of.pre_tokenize_str(document.text))
    random = Random(0)
    frame: Counter[str] = Counter()
    for _ in range(200):
        text = paragraphs.paragraph(random, "train", free_wording=True)
        for question in text.questions:
            frame.update(part for part, _ in bytes_of.pre_tokenize_str(text.prompt(question) + "\n"))
    nouns = {f"Ġ{lemma}" for lemmas in wordnet.noun_hierarchy().lemmas.values() for lemma in lemmas if lemma.isalpha()}
    chosen = {word for word, count in counts.items() if count >= recipe.word_count}
    chosen |= {word for word in nouns if counts[word] >= recipe.noun_count}
    chosen |= {word for word, count in frame.items() if count >= 100}
    spans = {word for words in paragraphs.values().values() for word in words}
    chosen |= {f"Ġ{word}" for word in (spans | set(paragraphs.names("train")) | set(paragraphs.names("validation")))}
    rare = {word: count for word, count in counts.items() if word not in chosen}

    trainer = trainers.UnigramTrainer(
        vocab_size=recipe.pieces, initial_alphabet=bytes_of.alphabet(), show_progress=False
    )
    learner = Tokenizer(models.Unigram())
    learner.train_from_iterator((word for word, count in sorted(rare.items()) for _ in range(count)), trainer)
    learnt = json.loads(learner.to_str())["model"]["vocab"]
    total = sum(counts.values())
    scores = {word: math.log(max(counts[word], 1) / total) for word in sorted(chosen)}
    share = math.log(sum(rare.values()) / total)
    for piece, score in learnt:
        scores.setdefault(piece, score + share)
    alphabet = {byte: scores.get(byte, -30.0) for byte in sorted(bytes_of.alphabet())}
    scores = {END: 0.0} | alphabet | {token: score for token, score in scores.items() if token not in alphabet}
    # A chosen word must beat its parts ("Ġto" and "y" are both more frequent than "Ġtoy").
    while True:
        model = Tokenizer(models.Unigram(list(scores.items())))
        segmented = {word: model.encode(word).tokens for word in sorted(chosen)}
        cut = {word: parts for word, parts in segmented.items() if parts != [word]}
        if not cut:
            break
        scores |= {word: sum(scores[part] for part in parts) + 0.01 for word, parts in cut.items()}
    model.pre_tokenizer, model.decoder = bytes_of, decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token=END, eos_token=END, pad_token=END, model_max_length=512
    )
    return tokenizer


# ------------------------------------------------------------------------------------------------------------ data
def create_model(recipe: Recipe, vocabulary: int) -> Any:
    """The untrained model, drawn from the recipe's seed."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(derive_seed(recipe.seed, "weights"))
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=vocabulary,
            hidden_size=recipe.hidden_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            intermediate_size=4 * recipe.hidden_size,
            max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
            use_parallel_residual=False,
            hidden_dropout=recipe.dropout,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    model.set_attn_implementation("eager")  # rows are short: fused attention's backward pass is slower on a CPU
    return model


class Batches:
    """Rows of token ids with a weight for each target: row by row functions of (seed, step)."""

    def __init__(self, recipe: Recipe, tokenizer: Any):
        self.recipe, self.tokenizer = recipe, tokenizer
        texts = [document.text for document in wordnet.documents() if document.split == "train"]
        ids = [[0, *row] for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        self.lengths = np.array([len(row) for row in ids])
        self.flat = np.concatenate([np.array(row) for row in ids])
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.blocks = len(self.flat) // recipe.block
        words = [*paragraphs.names("train"), *(word for words in paragraphs.values().values() for word in words)]
        self.spans = torch.tensor([tokenizer.encode(f" {word}")[0] for word in words])

    @lru_cache(maxsize=2)  # noqa: B019 - one object, as long as the run
    def epoch(self, number: int) -> np.ndarray:
        """The documents in this epoch's order, cut into rows."""
        order = torch.randperm(len(self.starts), generator=generator(self.recipe.seed, "text", number)).numpy()
        lengths = self.lengths[order]
        offsets = np.repeat(self.starts[order] - (np.cumsum(lengths) - lengths), lengths)
        flat = self.flat[np.arange(len(offsets)) + offsets]
        return flat[: self.blocks * self.recipe.block].reshape(self.blocks, self.recipe.block)

    def rows_of(self, step: int) -> tuple[int, int]:
        """Rows of text and of reading."""
        r = self.recipe
        if step < r.first_stage:
            return r.first_text_rows, r.first_reading_rows
        return r.text_rows, r.reading_rows

    def text_rows_before(self, step: int) -> int:
        r = self.recipe
        return min(step, r.first_stage) * r.first_text_rows + max(step - r.first_stage, 0) * r.text_rows

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """(ids [rows, block], weight [rows, block]): weight of predicting ids[i, j] from what stands before it."""
        r = self.recipe
        text, reading = self.rows_of(step)
        copying = r.rows - text - reading
        ids, weight = torch.zeros(r.rows, r.block, dtype=torch.long), torch.zeros(r.rows, r.block)
        first = self.text_rows_before(step)
        for row in range(text):
            epoch, block = divmod(first + row, self.blocks)
            ids[row] = torch.from_numpy(self.epoch(epoch)[block])
        weight[:text, 1:] = 1 / (text * (r.block - 1)) if text else 0
        random = Random(derive_seed(r.seed, "paragraphs", step))
        answers = 0
        for row in range(text, text + reading):
            if row % (2 if step < r.first_stage else 4) == 0:
                tokens, answered = self.echo(random)
            else:
                tokens, answered = self.reading(random, free=step >= r.first_stage)
            ids[row, : len(tokens)] = torch.tensor(tokens)
            weight[row, answered] = 1.0
            answers += len(answered)
        weight[text : text + reading] /= max(answers, 1)
        draw = generator(r.seed, "copying", step)
        for row in range(text + reading, r.rows):
            length = int(torch.randint(8, 40, (), generator=draw))
            period = self.spans[torch.randint(len(self.spans), (length,), generator=draw)]
            ids[row] = period.repeat(r.block // length + 1)[: r.block]
            weight[row, length:] = 1 / ((r.block - length) * copying)
        return ids, weight

    def echo(self, random: Random) -> tuple[list[int], list[int]]:
        """Tokens of six facts, stated again and again in new orders, and where their values stand.

        Half the time they are a paragraph's facts, else six people's facts of one attribute: only the name finds the value
        among six, so attention by name is rewarded more than where the attribute alone leaves two candidates.
        """
        if random.random() < 0.5:
            asked = paragraphs.paragraph(random, "train").questions
            facts = [(question.attribute, question.name, question.answer) for question in asked]
        else:
            attribute = random.choice(sorted(paragraphs.ATTRIBUTES))
            people = random.sample(paragraphs.names("train"), 6)
            values = random.sample(paragraphs.values()[attribute], 6)
            facts = [(attribute, name, value) for name, value in zip(people, values, strict=True)]
        tokens = [0, *self.tokenizer.encode("Context:")]
        stated: list[int] = []
        while True:
            for attribute, name, value in random.sample(facts, 6):
                start = self.tokenizer.encode(f" The {attribute} of {name} is")
                rest = self.tokenizer.encode(f" {value}.")
                if len(tokens) + len(start) + len(rest) > self.recipe.block:
                    return tokens, stated[6:]
                stated.append(len(tokens) + len(start))
                tokens += start + rest

    def reading(self, random: Random, free: bool) -> tuple[list[int], list[int]]:
        """Tokens of a paragraph with as many of its questions as fit, and where its answers stand."""
        text = paragraphs.paragraph(random, "train", free)
        encode = self.tokenizer.encode
        tokens = [0, *encode(f"Context: {text.context}\n")]
        answered: list[int] = []
        for question in text.questions:
            asked = encode(text.prompt(question, context=False))
            answer = encode(f" {question.answer}\n")
            if len(tokens) + len(asked) + len(answer) > self.recipe.block:
                break
            answered += range(len(tokens) + len(asked), len(tokens) + len(asked) + len(answer))
            tokens += asked + answer
        return tokens, answered


class _LinearCrossEntropy(torch.autograd.Function):
    """Weighted cross-entropy of hidden @ weight.T, PART targets at a time, with its gradient: no [targets, vocabulary].

    The whole matrix of logits (300 MB at 5,000 targets) would be written and read four times; a part of it stays in
    the cache.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [n, d], weight [V, d], targets [n], share [n] -> (sum of share * nll, nll [n])."""
        matrix = weight.to(hidden.dtype)
        to_hidden, to_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        kind = torch.promote_types(hidden.dtype, torch.float32)
        nll = torch.empty(len(targets), dtype=kind, device=hidden.device)
        for part in torch.arange(len(targets), device=hidden.device).split(PART):
            logits = (hidden[part] @ matrix.T).to(kind)
            log_total = logits.logsumexp(1)
            nll[part] = log_total - logits.gather(1, targets[part, None])[:, 0]
            gradient = logits.sub_(log_total[:, None]).exp_()
            gradient.scatter_add_(1, targets[part, None], -torch.ones_like(gradient[:, :1]))
            gradient = gradient.mul_(share[part, None]).to(hidden.dtype)
            to_hidden[part] = gradient @ matrix
            to_weight += gradient.T @ hidden[part]
        ctx.save_for_backward(to_hidden, to_weight)
        ctx.mark_non_differentiable(nll)
        return (nll * share).sum(), nll

    @staticmethod
    def backward(ctx: Any, outer: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        to_hidden, to_weight = ctx.saved_tensors
        return to_hidden * outer.to(to_hidden.dtype), to_weight * outer, None, None


class WeightedLoss(nn.Module):
    """The model as the training step calls it: the output layer is applied only where a target has weight."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(sum of weight * nll, nll of each weighted target [targets])."""
        hidden = self.model.base_model(ids, use_cache=False).last_hidden_state[:, :-1]
        at = weight[:, 1:] > 0
        if torch.is_autocast_enabled(ids.device.type):
            hidden = hidden.to(torch.get_autocast_dtype(ids.device.type))
        matrix = self.model.get_output_embeddings().weight
        chosen = [hidden[at], ids[:, 1:][at], weight[:, 1:][at]]
        count = len(chosen[0])
        # Whole parts only: a library that compiles kernels by shape would compile one for every step's rest.
        chosen = [nn.functional.pad(x, (*(0, 0) * (x.ndim - 1), 0, -count % PART)) for x in chosen]
        with torch.autocast(ids.device.type, enabled=False):
            loss, nll = _LinearCrossEntropy.apply(chosen[0], matrix, *chosen[1:])
        return loss, nll[:count]


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then cosine to a tenth."""
    if step < recipe.warm_up:
        return recipe.learning_rate * (step + 1) / recipe.warm_up
    share = (step - recipe.warm_up) / max(recipe.steps - recipe.warm_up, 1)
    return recipe.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * min(share, 1.0))))


# -------------------------------------------------------------------------------------------------------- training
def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state under "parameter/entry"."""
    state = {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}
    return {f"{name}/{key}": value for name, entries in state.items() for key, value in entries.items()}


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        device = "cpu" if entry == "step" else parameters[name].device
        optimizer.state[parameters[name]][entry] = tensor.to(device)


def replay(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The probe's logits, without dropout."""
    training = model.training
    with torch.no_grad():
        logits = model.eval()(inputs["input_ids"].to(model.device), use_cache=False).logits
    model.train(training)
    return {"output_logits": logits.float().cpu()}


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a run folder."""
    recipe: Recipe = from_dict(Recipe, read_yaml(folder / "config.yaml"), str(folder / "config.yaml"))
    return recipe


def train(recipe: Recipe, folder: Path, options: TrainOptions, argv: Sequence[str] = (), resume: bool = False) -> Path:
    """Trains in the new `folder`, or goes on with the run there, exports folder/model and measures it.

    UserError for what can't be run; Stopped when a signal came, after saving.
    """
    from accelerate import Accelerator
    from tqdm import tqdm
    from transformers import AutoTokenizer

    # ---- set-up
    device, reason = choose_device(options.device)
    set_threads(options.threads)
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=recipe.mixed_precision)
    if accelerator.num_processes > 1:
        raise UserError("reference-lm: trains in one process, and several were started; start it without a launcher")
    print(f"reference-lm trains on {accelerator.device} ({reason}), {torch.get_num_threads()} threads")

    # ---- data
    fingerprints = {"wordnet": wordnet.fingerprint(), "paragraphs": paragraphs.fingerprint()}
    if resume and (folder / "manifest.json").exists():
        if changed := differences(read_yaml(folder / "config.yaml"), to_dict(recipe)):
            raise UserError(f"{folder}: its recipe is another: {'; '.join(changed)}; start a new run for this one")
        if read_manifest(folder)["state"] == "done":
            print(f"{folder} is finished")
            return folder
        run = open_run(folder)
        if run.manifest["data_fingerprints"] != fingerprints:
            run.close()
            raise UserError(f"{folder}: WordNet's texts are not those it began with; use the version that began it")
        if changes := environment_changes(run.manifest, describe(device)):
            print(f"reference-lm: not bitwise the same from here on: {', '.join(changes)}")
        run.update(state="running", reason="", resumed=[*run.manifest["resumed"], {"at": now()}])
    else:
        run = create_run(
            folder,
            study=STUDY,
            verb=VERB,
            config=to_dict(recipe),
            argv=list(argv),
            seeds=[recipe.seed],
            devices=describe(device),
            data=fingerprints,
            source=Path(__file__),
            libraries=("accelerate", "nltk", "tokenizers", "transformers"),
        )

    with stop_on_signals() as stop, recording(run):
        if not (folder / "tokenizer" / "tokenizer.json").exists():
            shutil.rmtree(folder / "tokenizer-new", ignore_errors=True)
            train_tokenizer(recipe).save_pretrained(folder / "tokenizer-new")
            (folder / "tokenizer-new").replace(folder / "tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        batches = Batches(recipe, tokenizer)
        held_out = reference_lm.HeldOut.read(documents=500, paragraphs_=30)

        # ---- model and optimizer
        config = {"recipe": to_dict(recipe), "vocabulary": len(tokenizer)}
        checkpoint = load_latest(folder / "checkpoints") if resume else None
        if checkpoint:
            model = rebuild(checkpoint, lambda stored: create_model(recipe, stored["vocabulary"]), replay, config)
        else:
            model = create_model(recipe, len(tokenizer))
        model.to(accelerator.device).train()
        matrices = [q for q in model.parameters() if q.ndim > 1]
        others = [q for q in model.parameters() if q.ndim == 1]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))
        if checkpoint:
            restore_optimizer(model, optimizer, checkpoint.optimizer)
        stepper, prepared = accelerator.prepare(WeightedLoss(model), optimizer)

        # ---- resume
        first = checkpoint.step if checkpoint else 0
        run.metrics.rewind(first - 1)
        run.update(parameters=sum(q.numel() for q in model.parameters()))

        # ---- loop
        probe = {"input_ids": torch.from_numpy(batches.epoch(0)[:2, :32].copy())}
        bar = tqdm(total=recipe.steps, initial=first, unit="step", disable=not sys.stderr.isatty())
        started = time.monotonic()
        for step in range(first, recipe.steps + 1):
            last = step == recipe.steps
            # evaluate
            if not stop and (last or step % recipe.eval_every == 0):
                row = reference_lm.measure_part(model, tokenizer, held_out)
                model.train()
                run.metrics.append({"step": step, **row})
                left = (time.monotonic() - started) / max(step - first, 1) * (recipe.steps - step)
                figures = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
                about = f"; about {left / 60:.0f} minutes left" if step > first else ""
                bar.write(f"step {step}: {figures}{about}", file=sys.stdout)
                sys.stdout.flush()
            # save
            if last or stop or (step > first and step % recipe.checkpoint_every == 0):
                tensors = {"model": model.state_dict(), "optimizer": optimizer_tensors(model, optimizer)}
                tensors["probe"] = probe | replay(model, probe)
                save_checkpoint(folder / "checkpoints", step, config=config, state={"step": step}, **tensors)
                run.metrics.write_part()
            # stop
            if last or stop:
                break
            # step
            for group in prepared.param_groups:
                group["lr"] = learning_rate(recipe, step)
            ids, weight = (tensor.to(accelerator.device) for tensor in batches.batch(step))
            torch.manual_seed(derive_seed(recipe.seed, "dropout", step, 0))
            loss, nll = stepper(ids, weight)
            if not torch.isfinite(loss):
                raise UserError(
                    f"learning_rate: {recipe.learning_rate} made the loss {loss.item()} at step {step}; lower it"
                )
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(model.parameters(), recipe.clip)
            prepared.step()
            prepared.zero_grad()
            # log
            if step % 50 == 0:
                means = _means(batches.rows_of(step), weight, nll)
                run.metrics.append({"step": step, "gradient_norm": float(norm), **means})
            bar.update(1)
        bar.close()

        # ---- record; a signal before its end leaves the last checkpoint, from which resuming writes it
        if not stop:
            run.metrics.compact()
            export(model, tokenizer, folder)
        if not stop:
            reference_lm.write_run(folder, recipe)
        if stop:
            run.finish("stopped", f"stopped by {stop.name} at step {step}")
            again = f"studycore reference-lm train --resume --output-dir {folder}"
            raise Stopped(f"stopped by {stop.name} at step {step}; continue with: {again}")
        run.finish("done", f"reached step {step}")
    return folder


def _means(rows: tuple[int, int], weight: Tensor, nll: Tensor) -> dict[str, float]:
    """Mean nll of the step's targets of each kind; `rows` are those of text and of reading."""
    text, reading = rows
    row = torch.arange(len(weight), device=weight.device)[:, None].expand_as(weight)[:, 1:][weight[:, 1:] > 0]
    kinds = {"text": row < text, "reading": (row >= text) & (row < text + reading), "copying": row >= text + reading}
    return {f"nll_{kind}": float(nll[at].mean()) for kind, at in kinds.items() if at.any()}


def export(model: Any, tokenizer: Any, folder: Path) -> Path:
    """folder/model: a Hugging Face folder with weights rounded to half precision, and what made them beside them.

    The configuration says float32, so that `from_pretrained` computes in single precision.
    """
    target = folder / "model-new"
    shutil.rmtree(target, ignore_errors=True)
    rounded = type(model)(model.config)
    rounded.load_state_dict(model.state_dict())
    rounded.half().save_pretrained(target)
    tokenizer.save_pretrained(target)
    for name, indent in (("tokenizer.json", None), ("config.json", 2)):
        content = json.loads((target / name).read_text())
        if name == "config.json":
            content["dtype"] = "float32"
        (target / name).write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n")
    (target / "recipe.yaml").write_text(to_yaml(read_yaml(folder / "config.yaml")))
    shutil.copyfile(folder / "metrics.jsonl", target / "training_log.jsonl")
    manifest = read_manifest(folder)
    write_json(target / "data.json", {"sha256": manifest["data_fingerprints"], "versions": manifest["versions"]})
    for file in target.iterdir():
        file.chmod(0o644)  # transformers writes weights for their owner alone, and this folder is installed for all
    shutil.rmtree(folder / "model", ignore_errors=True)
    target.replace(folder / "model")
    return folder / "model"
