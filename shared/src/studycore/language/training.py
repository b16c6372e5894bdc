"""Training of the reference language model `studycore/wordnet-lm`: tokenizer, batches, model, loop.

A GPT-NeoX model (rotary positions, one block after the other, tied embeddings) learns WordNet's glosses.

Shapes: R rows of a step, T tokens of a row, N = R (T - 1) targets of a step, V tokens of the vocabulary, C of them that a
step's loss takes in, D width.
"""

import json
import math
import shutil
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from studycore.configuration import to_dict
from studycore.files import read_json, write_json
from studycore.language import reference_lm, wordnet
from studycore.language.pretrained import replay_probe
from studycore.language.recipe import Recipe
from studycore.models import count_parameters
from studycore.run import Run
from studycore.run_folder import read_manifest
from studycore.schedules import cosine, warm_up
from studycore.streams import derive_seed, generator

END = "<|endoftext|>"


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
        places = [divmod(step * self.recipe.rows + row, self.blocks) for row in range(self.recipe.rows)]
        return torch.from_numpy(np.stack([self.epoch(epoch)[block] for epoch, block in places]))

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
    after = max(step - recipe.warm_up, 0) / max(recipe.steps - recipe.warm_up, 1)
    return recipe.learning_rate * warm_up(step, recipe.warm_up) * cosine(after)


# -------------------------------------------------------------------------------------------------------- training
def train(recipe: Recipe, run: Run) -> None:
    """Trains the recipe in the open run, exports <run>/model and measures it. UserError for what can't be run."""
    # ---- set-up
    run.begin(data={"wordnet": wordnet.fingerprint()})
    tokenizer = tokenizer_of(recipe, run.folder)
    batches = Batches(recipe, tokenizer)
    held_out = wordnet.texts("validation")[:500]

    # ---- model and optimizer
    model = run.model(
        lambda values: create_model(recipe, values["vocabulary"]),
        replay_probe,
        {"input_ids": torch.from_numpy(batches.epoch(0)[:2, :32].copy())},
        values={"recipe": to_dict(recipe), "vocabulary": len(tokenizer)},
    ).train()
    inclusion = batches.inclusion.to(run.device)
    matrices = [q for q in model.parameters() if q.ndim > 1]
    others = [q for q in model.parameters() if q.ndim == 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    # Steps are small: their squared gradients want a longer memory than the 0.95 of large ones.
    optimizer = run.optimizer(torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.99), fused=True))
    run.about(parameters=count_parameters(model))

    # ---- loop
    for step in run.steps(recipe.steps):
        # evaluate
        if run.every(recipe.eval_every):
            perplexity = reference_lm.perplexity(reference_lm.document_nll(model, tokenizer, held_out))
            run.log({"perplexity": perplexity})
            run.say(f"step {step}: perplexity {perplexity:.4g}")
        # save
        if run.saving(recipe.checkpoint_every):
            run.save()
        # stop
        if run.ended():
            break
        # step
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        taken = batches.taken(step)
        # Dropout draws from the global stream: seeded anew, its masks are functions of the step.
        torch.manual_seed(derive_seed(recipe.seed, "dropout", step))
        ids = batches.rows(step).to(run.device)
        loss = loss_of(model, ids, None if taken is None else taken.to(run.device), inclusion)
        run.backward(loss, "learning_rate")
        norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        # log
        if step % 50 == 0:
            run.log({"loss": loss.item(), "gradient_norm": norm.item()})

    # ---- record; a run that is cut off here goes on from its last checkpoint and writes it then
    export(model, tokenizer, run.folder)
    run.say("measuring on all held-out glosses; a minute or two")
    metrics, documents = reference_lm.record(run.folder / "model", read_json(run.folder / "claims.json"))
    run.results(metrics, {"documents": torch.from_numpy(documents)})


def tokenizer_of(recipe: Recipe, folder: Path) -> Any:
    """The run's tokenizer: trained when the run begins, read again when it goes on."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer" / "tokenizer.json").exists():
        shutil.rmtree(folder / "tokenizer-new", ignore_errors=True)
        train_tokenizer(recipe).save_pretrained(folder / "tokenizer-new")
        (folder / "tokenizer-new").replace(folder / "tokenizer")
    return AutoTokenizer.from_pretrained(folder / "tokenizer")


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
        content = json.loads((target / name).read_text(encoding="utf-8"))
        if name == "config.json":
            content["dtype"] = "float32"
        (target / name).write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copyfile(folder / "config.yaml", target / "recipe.yaml")
    shutil.copyfile(folder / "metrics.jsonl", target / "training_log.jsonl")
    manifest = read_manifest(folder)
    write_json(target / "data.json", {"sha256": manifest["data_fingerprints"], "versions": manifest["versions"]})
    for name in ("README.md", "WORDNET-LICENSE"):
        shutil.copyfile(reference_lm.FOLDER / name, target / name)
    for file in target.iterdir():
        file.chmod(0o644)  # transformers writes weights for their owner alone, and this folder is installed for all
    shutil.rmtree(folder / "model", ignore_errors=True)
    target.replace(folder / "model")
