"""Training of the reference language model `studycore/wordnet-lm`: recipe, tokenizer, batches, loop.

A GPT-NeoX model (rotary positions, one block after the other, tied embeddings) learns WordNet's glosses.

Shapes: R rows of a step, T tokens of a row, N = R (T - 1) targets of a step, V tokens of the vocabulary, C of them that a
step's loss takes in, D width.
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
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from studycore.checkpoints import load_latest, rebuild, save_checkpoint
from studycore.configuration import differences, from_dict, read_yaml, to_dict, to_yaml
from studycore.devices import choose_device, describe, set_threads
from studycore.errors import Stopped, UserError
from studycore.files import read_json, write_json
from studycore.language import reference_lm, wordnet
from studycore.runs import create_run, environment_changes, now, open_run, read_manifest, recording
from studycore.stopping import stop_on_signals
from studycore.streams import derive_seed, generator

STUDY, VERB = "studycore", "reference-lm"
END = "<|endoftext|>"


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the model."""

    seed: int = 0
    """Seed of weights, order, dropout and the tokens that a step's loss takes in."""
    word_count: int = 20
    """Words that stand so often in the training text are one token, with their leading space ..."""
    noun_count: int = 7
    """... and single-word nouns of WordNet already when they stand so often."""
    pieces: int = 1500
    """Parts of those words that are no token."""
    hidden_size: int = 256
    """Width."""
    layers: int = 4
    """Blocks."""
    heads: int = 4
    """Attention heads in a block."""
    dropout: float = 0.0
    """On the embeddings and on each block's two outputs."""
    block: int = 160
    """Tokens in a row."""
    rows: int = 16
    """Rows in a step."""
    steps: int = 2400
    """Updates."""
    exact_steps: int = 400
    """The last updates, whose loss takes in the whole vocabulary ..."""
    sampled: int = 2048
    """... while the others take in so many tokens of it (the mean of a random number, slightly fewer)."""
    learning_rate: float = 3e-3
    """AdamW's, at its highest."""
    warm_up: int = 100
    """Updates of linear warm-up; a cosine to zero follows."""
    weight_decay: float = 0.1
    """AdamW's, for matrices."""
    clip: float = 1.0
    """Bound of the gradient's norm."""
    eval_every: int = 400
    """Updates between evaluations on a part of the held-out glosses."""
    checkpoint_every: int = 100
    """Updates between checkpoints."""

    def __post_init__(self) -> None:
        least = dict.fromkeys(("hidden_size", "layers", "heads", "rows", "steps", "eval_every", "checkpoint_every"), 1)
        least |= {"block": 2, "sampled": 1, "exact_steps": 0, "warm_up": 0}
        least |= {"pieces": 300, "noun_count": 1, "word_count": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name}: {getattr(self, name)} is too few; give at least {bound}")
        if self.hidden_size % self.heads:
            raise ValueError(
                f"heads: {self.heads} does not divide hidden_size {self.hidden_size}; choose one that does"
            )


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
    """A Unigram tokenizer over bytes whose vocabulary is chosen: frequent words, nouns, and pieces of all others."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False)
    counts: Counter[str] = Counter()
    for text in wordnet.texts("train"):
        counts.update(part for part, _ in bytes_of.pre_tokenize_str(text))
    chosen = {word for word, count in counts.items() if count >= recipe.word_count}
    nouns = {f"Ġ{noun}" for noun in wordnet.nouns() if noun.isalpha()}
    chosen |= {word for word in nouns if counts[word] >= recipe.noun_count}
    rare = {word: count for word, count in counts.items() if word not in chosen}

    trainer = trainers.UnigramTrainer(
        vocab_size=recipe.pieces, initial_alphabet=bytes_of.alphabet(), show_progress=False
    )
    learner = Tokenizer(models.Unigram())
    learner.train_from_iterator((word for word, count in sorted(rare.items()) for _ in range(count)), trainer)
    learnt = json.loads(learner.to_str())["model"]["vocab"]
    total = sum(counts.values())
    scores = {word: math.log(counts[word] / total) for word in sorted(chosen)}
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
    return PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token=END, eos_token=END, pad_token=END, model_max_length=512
    )


# ------------------------------------------------------------------------------------------------------------ data
class Batches:
    """Rows of token ids, functions of (seed, step): the documents in each epoch's order, cut into rows."""

    def __init__(self, recipe: Recipe, tokenizer: Any):
        self.recipe = recipe
        ids = [[0, *row] for row in tokenizer(wordnet.texts("train"), add_special_tokens=False)["input_ids"]]
        self.lengths = np.array([len(row) for row in ids])
        self.flat = np.concatenate([np.array(row) for row in ids])
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.blocks = len(self.flat) // recipe.block

        counts = np.bincount(self.flat, minlength=len(tokenizer)) + 1.0
        share = counts**0.75 / (counts**0.75).sum()
        self.inclusion = torch.from_numpy(np.minimum(recipe.sampled * share, 1)).float()
        """[V]: probability that a sampled step's loss takes a token in; the power is word2vec's (Mikolov et al. 2013)."""

    @lru_cache(maxsize=2)  # noqa: B019 - one object, as long as the run
    def epoch(self, number: int) -> np.ndarray:
        """[blocks, T]: all documents of this epoch, each after an end-of-text token; the last, short row is left out."""
        order = torch.randperm(len(self.starts), generator=generator(self.recipe.seed, "text", number)).numpy()
        lengths = self.lengths[order]
        offsets = np.repeat(self.starts[order] - (np.cumsum(lengths) - lengths), lengths)
        flat = self.flat[np.arange(len(offsets)) + offsets]
        return flat[: self.blocks * self.recipe.block].reshape(self.blocks, self.recipe.block)

    def rows(self, step: int) -> Tensor:
        """[R, T]: the ids of this step."""
        at = [divmod(step * self.recipe.rows + row, self.blocks) for row in range(self.recipe.rows)]
        return torch.from_numpy(np.stack([self.epoch(epoch)[block] for epoch, block in at]))

    def taken(self, step: int) -> Tensor | None:
        """[C]: the tokens that this step's loss takes in, each at random by its probability; None: all of them."""
        if step >= self.recipe.steps - self.recipe.exact_steps:
            return None
        draw = torch.rand(len(self.inclusion), generator=generator(self.recipe.seed, "sampled", step))
        return (draw < self.inclusion).nonzero()[:, 0]


# ----------------------------------------------------------------------------------------------------------- model
def create_model(recipe: Recipe, vocabulary: int) -> Any:
    """The untrained model, drawn from the recipe's seed."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(derive_seed(recipe.seed, "weights"))
    return GPTNeoXForCausalLM(
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


def loss_of(model: Any, ids_RT: Tensor, taken_C: Tensor | None, inclusion_V: Tensor) -> Tensor:
    """Mean negative log-likelihood (nats) of each token from those before it in its row.

    More than half of the arithmetic is that of V logits a target. With `taken_C` the softmax's sum over the vocabulary is
    estimated without bias from the target and the tokens taken in, each weighing one over its probability of being
    taken (Horvitz and Thompson 1952; sampled softmax: Bengio and Senécal 2008, Blanc and Rendle 2018).
    """
    hidden_ND = model.base_model(ids_RT, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    target_N = ids_RT[:, 1:].flatten()
    matrix_VD = model.get_output_embeddings().weight
    if taken_C is None:
        return nn.functional.cross_entropy(hidden_ND @ matrix_VD.T, target_N)
    own_N = (hidden_ND * matrix_VD[target_N]).sum(1)
    others_NC = hidden_ND @ matrix_VD[taken_C].T - inclusion_V[taken_C].log()
    others_NC = others_NC.masked_fill(taken_C == target_N[:, None], -math.inf)
    return (torch.cat([own_N[:, None], others_NC], 1).logsumexp(1) - own_N).mean()


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < recipe.warm_up:
        return recipe.learning_rate * (step + 1) / recipe.warm_up
    share = (step - recipe.warm_up) / max(recipe.steps - recipe.warm_up, 1)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


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
        optimizer.state[parameters[name]][entry] = tensor.to(parameters[name].device)


def replay(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The probe's logits, without dropout."""
    training = model.training
    with torch.no_grad():
        logits = model.eval()(inputs["input_ids"].to(model.device), use_cache=False).logits
    model.train(training)
    return {"output_logits": logits.cpu()}


def train(recipe: Recipe, folder: Path, options: TrainOptions, argv: Sequence[str] = (), resume: bool = False) -> Path:
    """Trains in the new `folder`, or goes on with the run there, exports folder/model and measures it.

    UserError for what can't be run; Stopped when a signal came, after saving.
    """
    from tqdm import tqdm
    from transformers import AutoTokenizer

    # ---- set-up
    device, reason = choose_device(options.device)
    set_threads(options.threads)
    print(f"reference-lm trains on {device} ({reason}), {torch.get_num_threads()} threads", flush=True)
    data = {"wordnet": wordnet.fingerprint()}
    if resume and (folder / "manifest.json").exists():
        if changed := differences(read_yaml(folder / "config.yaml"), to_dict(recipe)):
            raise UserError(f"{folder}: its recipe is another: {'; '.join(changed)}; start a new run for this one")
        if read_manifest(folder)["state"] == "done":
            print(f"{folder} is finished")
            return folder
        run = open_run(folder)
        if run.manifest["data_fingerprints"] != data:
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
            data=data,
            source=Path(__file__),
            libraries=("nltk", "tokenizers", "transformers"),
        )

    with stop_on_signals() as stop, recording(run):
        # ---- data
        if not (folder / "tokenizer" / "tokenizer.json").exists():
            shutil.rmtree(folder / "tokenizer-new", ignore_errors=True)
            train_tokenizer(recipe).save_pretrained(folder / "tokenizer-new")
            (folder / "tokenizer-new").replace(folder / "tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        batches = Batches(recipe, tokenizer)
        held_out = wordnet.texts("validation")[:500]

        # ---- model and optimizer
        config = {"recipe": to_dict(recipe), "vocabulary": len(tokenizer)}
        checkpoint = load_latest(folder / "checkpoints") if resume else None
        if checkpoint:
            model = rebuild(checkpoint, lambda stored: create_model(recipe, stored["vocabulary"]), replay, config)
        else:
            model = create_model(recipe, len(tokenizer))
        model.to(device).train()
        inclusion = batches.inclusion.to(device)
        matrices = [q for q in model.parameters() if q.ndim > 1]
        others = [q for q in model.parameters() if q.ndim == 1]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        # Steps are small: their squared gradients want a longer memory than the 0.95 of large ones.
        optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.99), fused=True)
        if checkpoint:
            restore_optimizer(model, optimizer, checkpoint.optimizer)
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
                perplexity = reference_lm.perplexity(reference_lm.document_nll(model, tokenizer, held_out))
                model.train()
                run.metrics.append({"step": step, "perplexity": perplexity})
                left = (time.monotonic() - started) / max(step - first, 1) * (recipe.steps - step)
                about = f"; about {left / 60:.0f} minutes left" if step > first else ""
                bar.write(f"step {step}: perplexity {perplexity:.4g}{about}", file=sys.stdout)
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
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step)
            taken = batches.taken(step)
            torch.manual_seed(derive_seed(recipe.seed, "dropout", step))
            loss = loss_of(model, batches.rows(step).to(device), None if taken is None else taken.to(device), inclusion)
            if not torch.isfinite(loss):
                raise UserError(
                    f"learning_rate: {recipe.learning_rate} made the loss {loss.item()} at step {step}; lower it"
                )
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            optimizer.zero_grad()
            # log
            if step % 50 == 0:
                run.metrics.append({"step": step, "loss": loss.item(), "gradient_norm": norm.item()})
            bar.update(1)
        bar.close()

        # ---- record; a signal before its end leaves the last checkpoint, from which resuming writes it
        if not stop:
            run.metrics.compact()
            export(model, tokenizer, folder)
            write_record(folder)
        if stop:
            run.finish("stopped", f"stopped by {stop.name} at step {step}")
            again = f"studycore reference-lm train --resume --output-dir {folder}"
            raise Stopped(f"stopped by {stop.name} at step {step}; continue with: {again}")
        run.finish("done", f"reached step {step}")
    return folder


# ---------------------------------------------------------------------------------------------------------- record
def export(model: Any, tokenizer: Any, folder: Path) -> None:
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
    for name in ("README.md", "WORDNET-LICENSE"):
        shutil.copyfile(reference_lm.FOLDER / name, target / name)
    for file in target.iterdir():
        file.chmod(0o644)  # transformers writes weights for their owner alone, and this folder is installed for all
    shutil.rmtree(folder / "model", ignore_errors=True)
    target.replace(folder / "model")


def write_record(folder: Path) -> None:
    """Measures folder/model: metrics.json beside the weights, and the run's results.json and report."""
    from studycore.figures import new_figure, save_figure
    from studycore.metrics import read_rows
    from studycore.report import Picture, Report, Table, claims_text, write_report, write_results

    metrics, claim = reference_lm.measure(folder / "model")
    write_json(folder / "model" / "metrics.json", {"metrics": metrics, "claims": [claim]})
    write_results(folder, STUDY, VERB, metrics, [claim])
    print(claims_text([claim]))

    rows = read_rows(folder / "metrics.jsonl")
    figure, axes = new_figure()
    axes.plot(*zip(*((row["step"], row["loss"]) for row in rows if "loss" in row), strict=True), label="training loss")
    held_out = [(row["step"], math.log(row["perplexity"])) for row in rows if "perplexity" in row]
    axes.plot(*zip(*held_out, strict=True), marker="o", markersize=3, label="500 held-out glosses")
    axes.set(xlabel="step", ylabel="nats a token")
    axes.legend()
    report = Report(
        title="The reference language model",
        question="Has a small language model learnt WordNet's glosses?",
        answer=f"Requirement {claim['verdict']}: perplexity of held-out glosses {metrics['perplexity']:.1f}, "
        f"of a bigram model {metrics['perplexity_bigram']:.1f}.",
        tables=[Table("Measured", ["metric", "value"], list(metrics.items()))],
        pictures=[Picture(save_figure(figure, folder / "figures" / "training.svg"), "Loss while training.")],
    )
    print(f"report: {write_report(folder, report)}")


# --------------------------------------------------------------------------------------------------------- command
def train_command(argv: list[str]) -> None:
    """`studycore reference-lm train`: makes the model again and compares it with what is recorded.

    UserError when the default recipe gave a model of another quality than the recorded one.
    """
    from studycore.configuration import build, config_hash, parse
    from studycore.runs import list_runs, new_folder

    prog = "studycore reference-lm train"
    changed, given = parse([Recipe, TrainOptions], argv, prog, "studycore", partial=True, file=False)
    options = build(TrainOptions, given)
    folder = Path(options.output_dir) if options.output_dir else None
    if options.resume and folder and (config := folder / "config.yaml").is_file():
        changed = to_dict(from_dict(Recipe, read_yaml(config), str(config))) | changed
    recipe = build(Recipe, changed)
    if options.resume and folder is None:
        same = [
            path
            for path, manifest in list_runs(Path("runs"), STUDY)
            if (manifest["verb"], manifest["configuration_hash"]) == (VERB, config_hash(to_dict(recipe)))
            and manifest["state"] != "done"
        ]
        folder = same[-1] if same else None
        print(f"continues {folder}" if folder else "no unfinished run of this recipe under runs/; a new one begins")
    folder = folder or new_folder(Path("runs"), STUDY, VERB, to_dict(recipe))
    train(recipe, folder, options, argv, resume=options.resume)
    print(f"the model is in {folder / 'model'}")
    if recipe == Recipe():
        metrics, recorded = (read_json(f / "metrics.json")["metrics"] for f in (folder / "model", reference_lm.FOLDER))
        apart = reference_lm.compare(metrics, recorded, reference_lm.RETRAINED)
        if apart:
            raise UserError(f"{folder}: not of the recorded quality: {'; '.join(apart)}; do not ship it")
        print("of the recorded quality")
    else:
        print("of another recipe than the recorded model, so there is nothing to compare it with")
