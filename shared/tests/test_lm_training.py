"""The reference model's training: on a corpus of a few hundred made-up glosses, in seconds."""

import json
from random import Random

import pytest
import torch
from torch.nn.functional import cross_entropy

from studycore import lm_training, paragraphs, reference_lm, wordnet
from studycore.checkpoints import load_checkpoint, steps
from studycore.lm_training import Batches, Recipe, TrainOptions, WeightedLoss, create_model, learning_rate, train
from studycore.metrics import read_rows

WORDS = [a + b for a in ("ba", "de", "ki", "lo", "mu", "ra", "so", "tu") for b in ("na", "pi", "ro", "ste", "vun", "x")]
RECIPE = Recipe(
    word_count=40, noun_count=5, pieces=300, hidden_size=32, layers=2, heads=2, rows=6, steps=6, first_stage=3,
    first_text_rows=2, first_reading_rows=2, text_rows=3, reading_rows=2, warm_up=2, eval_every=3, checkpoint_every=2,
)  # fmt: skip


@pytest.fixture
def corpus(monkeypatch):
    """A corpus, a hierarchy and pools of names and values that need no WordNet."""
    random = Random(1)
    rare = ["".join(random.choices(WORDS, k=2)) for _ in range(300)]
    glosses = [" ".join([*random.choices(WORDS, k=8), random.choice(rare)]) for _ in range(600)]
    documents = [wordnet.Document(f"d{i}", f" {g.split()[0]}: {g}", wordnet.split_of(g)) for i, g in enumerate(glosses)]
    lemmas = {f"{word}.n.01": (word,) for word in WORDS}
    nouns = wordnet.NounHierarchy({}, {}, {}, lemmas)
    values = {a: tuple(f"{a}{i}x"[:-1] + "abcdefg"[i] for i in range(6)) for a in paragraphs.ATTRIBUTES}
    values = {a: tuple(v.translate(str.maketrans("", "", "0123456789")) for v in vs) for a, vs in values.items()}
    names = {"train": tuple(f"Tra{c}" for c in "abcdefgh"), "validation": tuple(f"Val{c}" for c in "abcdefgh")}
    monkeypatch.setattr(wordnet, "documents", lambda: tuple(documents))
    monkeypatch.setattr(wordnet, "noun_hierarchy", lambda: nouns)
    monkeypatch.setattr(paragraphs, "values", lambda: values)
    monkeypatch.setattr(paragraphs, "names", lambda split: names[split])
    monkeypatch.setattr(reference_lm, "QUESTIONS", 12)


@pytest.fixture
def tokenizer(corpus):
    return lm_training.train_tokenizer(RECIPE)


def test_chosen_words_are_one_token_and_any_text_comes_back(tokenizer):
    for word in (*WORDS, *paragraphs.values()["pet"], *paragraphs.names("validation")):
        assert len(tokenizer.encode(f" {word}")) == 1, word
    for text in ("Context: a\nQuestion: b?\nAnswer: c", " 'tis  naïve… 你好 1,000%", "bana badepi\n\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("<|endoftext|>") == [0]


def test_batches_are_functions_of_the_step(tokenizer):
    one, other = Batches(RECIPE, tokenizer), Batches(RECIPE, tokenizer)
    for step in (4, 0, 3):
        for mine, theirs in zip(one.batch(step), other.batch(step), strict=True):
            assert torch.equal(mine, theirs)
    assert not torch.equal(one.batch(0)[0], one.batch(1)[0])


def test_every_kind_of_row_weighs_one(tokenizer):
    batches = Batches(RECIPE, tokenizer)
    for step in (0, 5):
        text, reading = batches.rows_of(step)
        _, weight = batches.batch(step)
        for rows in (weight[:text], weight[text : text + reading], weight[text + reading :]):
            assert rows.sum().item() == pytest.approx(1)


def test_an_epoch_holds_every_document_once(tokenizer):
    batches = Batches(RECIPE, tokenizer)
    first, second = (batches.epoch(number).flatten() for number in (0, 1))
    assert (first != second).any()
    whole = torch.bincount(torch.from_numpy(batches.flat.copy()), minlength=len(tokenizer))
    for epoch in (first, second):
        counts = torch.bincount(torch.from_numpy(epoch.copy()), minlength=len(tokenizer))
        assert (counts <= whole).all()
        assert (whole - counts).sum() < RECIPE.block
    text = tokenizer.decode(first[:200]).split("<|endoftext|>")[1]
    assert text in {document.text for document in wordnet.documents() if document.split == "train"}


def test_reading_rows_weigh_answers_alone_and_copies_are_copies(tokenizer):
    batches = Batches(RECIPE, tokenizer)
    tokens, answered = batches.reading(Random(3), free=False)
    assert len(tokens) <= RECIPE.block
    answers = tokenizer.decode([tokens[at] for at in answered]).split("\n")[:-1]
    context = tokenizer.decode(tokens).split("\n")[0]
    asked = [line for line in tokenizer.decode(tokens).split("\n") if line.startswith("Question")]
    assert len(answers) == len(asked) > 1
    assert all(answer.strip() in context for answer in answers)
    ids, weight = batches.batch(0)
    row = 4
    length = int((weight[row] > 0).nonzero()[0])
    assert torch.equal(ids[row, length:], ids[row, : RECIPE.block - length])


def test_the_loss_equals_plain_cross_entropy_with_its_gradients(tokenizer):
    """In float64, against the full matrix of logits."""
    recipe = Recipe(**{**RECIPE.__dict__, "dropout": 0.0})
    model = create_model(recipe, len(tokenizer)).double()
    ids, weight = Batches(recipe, tokenizer).batch(0)
    weight = weight.double()
    loss, nll = WeightedLoss(model)(ids, weight)
    loss.backward()
    ours = {name: q.grad.clone() for name, q in model.named_parameters()}
    model.zero_grad()
    logits = model(ids, use_cache=False).logits[:, :-1]
    plain = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
    (plain * weight[:, 1:]).sum().backward()
    torch.testing.assert_close(loss, (plain * weight[:, 1:]).sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(nll, plain[weight[:, 1:] > 0].detach(), rtol=1e-12, atol=1e-12)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_learning_rate():
    recipe = Recipe(steps=1000, warm_up=100, learning_rate=1.0)
    assert learning_rate(recipe, 0) == pytest.approx(0.01)
    assert learning_rate(recipe, 99) == 1.0
    assert learning_rate(recipe, 550) == pytest.approx(0.55)
    assert learning_rate(recipe, 1000) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 3}, "heads: 3 does not divide hidden_size 256"),
        ({"steps": 0}, "steps: 0 is too few"),
        ({"text_rows": 40}, "reading_rows: with text_rows it exceeds rows 48"),
    ],
)
def test_recipes_that_make_no_sense(changes, words):
    with pytest.raises(ValueError, match=words):
        Recipe(**changes)


OPTIONS = TrainOptions(device="cpu", threads=1)


def quiet_train(folder, **kwargs):
    return train(RECIPE, folder, OPTIONS, **kwargs)


def test_killed_and_resumed_is_bitwise_the_same(corpus, tmp_path, monkeypatch):
    """Cut off after step 4's batch was asked for: what was saved at step 2 or 4 continues to the same bits."""
    whole = quiet_train(tmp_path / "whole")
    batch, cut = Batches.batch, []

    def cut_off(self, step):
        if step == 5 and not cut:
            cut.append(step)
            raise KeyboardInterrupt
        return batch(self, step)

    monkeypatch.setattr(Batches, "batch", cut_off)
    with pytest.raises(KeyboardInterrupt):
        quiet_train(tmp_path / "cut")
    assert not (tmp_path / "cut" / "model").exists()
    quiet_train(tmp_path / "cut", resume=True)
    assert read_rows(tmp_path / "whole" / "metrics.jsonl") == read_rows(tmp_path / "cut" / "metrics.jsonl")
    one, other = (load_checkpoint(steps(folder / "checkpoints")[-1]) for folder in (whole, tmp_path / "cut"))
    assert one.step == other.step == 6
    for name in ("model", "optimizer"):
        for key, tensor in getattr(one, name).items():
            assert torch.equal(tensor, getattr(other, name)[key]), key

    # The exported folder is an ordinary Hugging Face one, in single precision, with its record beside it.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(whole / "model")
    assert model.dtype == torch.float32
    saved = one.model["gpt_neox.embed_in.weight"]
    assert torch.equal(model.get_input_embeddings().weight, saved.half().float())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert AutoTokenizer.from_pretrained(whole / "model").encode(" bana") == AutoTokenizer.from_pretrained(
        whole / "tokenizer"
    ).encode(" bana")
    recorded = json.loads((whole / "model" / "metrics.json").read_text())
    assert {claim["id"] for claim in recorded["claims"]} == {"lm_perplexity", "lm_reading", "lm_closed_book"}
    assert recorded["metrics"]["perplexity"] > recorded["metrics"]["perplexity_bigram"], "6 steps teach nothing"
    for name in ("recipe.yaml", "training_log.jsonl", "data.json", "README.md", "WORDNET-LICENSE"):
        assert (whole / "model" / name).is_file()
    metrics, _, _ = reference_lm.measure(whole / "model")
    assert reference_lm.compare(metrics, recorded["metrics"]) == []


def test_a_finished_run_is_said_to_be_finished(corpus, tmp_path, capsys):
    folder = quiet_train(tmp_path / "run")
    before = (folder / "model" / "metrics.json").stat().st_mtime_ns
    quiet_train(folder, resume=True)
    assert f"{folder} is finished" in capsys.readouterr().out
    assert (folder / "model" / "metrics.json").stat().st_mtime_ns == before


def test_a_signal_saves_and_says_how_to_go_on(corpus, tmp_path, monkeypatch):
    """At step 4, and again while the finished model is measured: exit code 3 both times, and the run can go on."""
    import os
    import signal

    from studycore.errors import Stopped
    from studycore.runs import read_manifest

    batch, write_run = Batches.batch, reference_lm.write_run

    def at_step_4(self, step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, step)

    monkeypatch.setattr(Batches, "batch", at_step_4)
    with pytest.raises(Stopped, match=f"at step 5; continue with: .* --output-dir {tmp_path / 'run'}"):
        quiet_train(tmp_path / "run")
    assert read_manifest(tmp_path / "run")["state"] == "stopped"
    monkeypatch.setattr(Batches, "batch", batch)
    monkeypatch.setattr(reference_lm, "write_run", lambda *a: (write_run(*a), os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(Stopped):
        quiet_train(tmp_path / "run", resume=True)
    monkeypatch.setattr(reference_lm, "write_run", write_run)
    assert read_manifest(quiet_train(tmp_path / "run", resume=True))["state"] == "done"


def test_another_recipe_does_not_continue_a_run(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(Batches, "batch", lambda self, step: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        quiet_train(tmp_path / "run")
    from studycore.errors import UserError

    with pytest.raises(UserError, match=r"its recipe is another: .*steps"):
        train(Recipe(**{**RECIPE.__dict__, "steps": 7}), tmp_path / "run", OPTIONS, resume=True)
