"""The reference model's training: on a corpus of a few hundred made-up glosses, in seconds."""

import json
import math
from random import Random

import pytest
import torch
from torch.nn.functional import cross_entropy

from studycore.checkpoints import load_checkpoint, restore_optimizer, steps
from studycore.claims import as_stored
from studycore.cli import main
from studycore.errors import Stopped, UserError
from studycore.execution import make_run
from studycore.language import reference_lm, study, training, wordnet
from studycore.language.recipe import Options, Recipe
from studycore.language.study import STUDY, VERB
from studycore.language.training import Batches, create_model, learning_rate, loss_of
from studycore.metrics_log import read_rows
from studycore.run_folder import read_manifest

WORDS = [a + b for a in ("ba", "de", "ki", "lo", "mu", "ra", "so", "tu") for b in ("na", "pi", "ro", "ste", "vun", "x")]
RECIPE = Recipe(
    word_count=40, noun_count=5, pieces=300, hidden_size=32, layers=2, heads=2, block=96, rows=4, steps=6, exact_steps=2,
    sampled=60, warm_up=2, eval_every=3, checkpoint_every=2,
)  # fmt: skip


@pytest.fixture
def corpus(monkeypatch):
    """Documents and nouns that need no WordNet."""
    random = Random(1)
    rare = ["".join(random.choices(WORDS, k=2)) for _ in range(300)]
    glosses = [" ".join([*random.choices(WORDS, k=8), random.choice(rare)]) for _ in range(600)]
    documents = [wordnet.Document(f"d{i}", f" {g.split()[0]}: {g}", wordnet.split_of(g)) for i, g in enumerate(glosses)]
    monkeypatch.setattr(wordnet, "documents", lambda: tuple(documents))
    monkeypatch.setattr(wordnet, "nouns", lambda: frozenset(WORDS))


@pytest.fixture
def tokenizer(corpus):
    return training.train_tokenizer(RECIPE)


def test_chosen_words_are_one_token_and_any_text_comes_back(tokenizer):
    for word in WORDS:
        assert len(tokenizer.encode(f" {word}")) == 1, word
    for text in (" 'tis  naïve… 你好 1,000%", "bana badepi\n\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("<|endoftext|>") == [0]


def test_batches_are_functions_of_the_step(tokenizer):
    one, other = Batches(RECIPE, tokenizer), Batches(RECIPE, tokenizer)
    for step in (3, 0, 2):
        assert torch.equal(one.rows(step), other.rows(step))
        assert torch.equal(one.taken(step), other.taken(step))
    assert not torch.equal(one.rows(0), one.rows(1))
    assert not torch.equal(one.taken(0), one.taken(1))
    assert [one.taken(step) is None for step in (3, 4, 5)] == [False, True, True]


def test_an_epoch_goes_through_the_steps_row_by_row(tokenizer):
    batches = Batches(RECIPE, tokenizer)
    rows = torch.cat([batches.rows(step) for step in range(2 * batches.blocks // RECIPE.rows)])
    for epoch in (0, 1):
        part = rows[epoch * batches.blocks : (epoch + 1) * batches.blocks]
        assert torch.equal(part, torch.from_numpy(batches.epoch(epoch))[: len(part)])


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
    assert text in wordnet.texts("train")


def test_the_loss_equals_plain_cross_entropy(tokenizer):
    """In float64: over the whole vocabulary, and from a part of it that happens to be the whole."""
    model = create_model(RECIPE, len(tokenizer)).double()
    ids = Batches(RECIPE, tokenizer).rows(0)
    logits = model(ids, use_cache=False).logits[:, :-1]
    plain = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    certain = torch.ones(len(tokenizer)).double()
    for taken in (None, torch.arange(len(tokenizer))):
        torch.testing.assert_close(loss_of(model, ids, taken, certain), plain, rtol=1e-12, atol=0)


def test_the_sampled_sum_over_the_vocabulary_is_unbiased(tokenizer):
    """exp of one target's loss is the estimated sum over exp of the target's logit: its mean over draws is the exact one."""
    model = create_model(RECIPE, len(tokenizer)).double()
    model.get_output_embeddings().weight.data *= 20  # far from uniform
    batches = Batches(RECIPE, tokenizer)
    ids = batches.rows(0)[:1, :2]
    inclusion = batches.inclusion.double()
    assert inclusion.min() > 0
    assert inclusion.sum() <= RECIPE.sampled < len(tokenizer)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        exact = loss_of(model, ids, None, inclusion).exp()
        draws = [
            loss_of(
                model, ids, (torch.rand(len(inclusion), generator=generator) < inclusion).nonzero()[:, 0], inclusion
            )
            for _ in range(2000)
        ]
    ratios = torch.stack(draws).exp() / exact
    assert ratios.std() > 0.01
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / math.sqrt(len(ratios))


def test_learning_rate():
    recipe = Recipe(steps=1000, warm_up=100, learning_rate=1.0)
    assert learning_rate(recipe, 0) == pytest.approx(0.01)
    assert learning_rate(recipe, 99) == 1.0
    assert learning_rate(recipe, 550) == pytest.approx(0.5)
    assert learning_rate(recipe, 1000) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 3}, "heads: 3 does not divide hidden_size 256"),
        ({"steps": 0}, "steps: 0 does not fit; give an int of 1 or more"),
        ({"block": 1}, "block: 1 does not fit; give an int of 2 or more"),
        ({"pieces": 299}, "pieces: 299 does not fit; give at least 300"),
    ],
)
def test_recipes_that_make_no_sense(changes, words):
    with pytest.raises(ValueError, match=words):
        Recipe(**changes)


OPTIONS = Options(device="cpu", threads=1)
FLAGS = [f"--{name}={value}" for name, value in RECIPE.__dict__.items()] + ["--device=cpu", "--threads=1"]


def quiet_train(folder, resume=False):
    make_run(STUDY, VERB, RECIPE, folder, OPTIONS, resume=resume)
    return folder


def test_killed_and_resumed_is_bitwise_the_same(corpus, tmp_path, monkeypatch):
    """Cut off after step 4's batch was asked for: what was saved at step 2 or 4 continues to the same bits."""
    whole = quiet_train(tmp_path / "whole")
    rows, cut = Batches.rows, []

    def cut_off(self, step):
        if step == 5 and not cut:
            cut.append(step)
            raise KeyboardInterrupt
        return rows(self, step)

    monkeypatch.setattr(Batches, "rows", cut_off)
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
    assert [claim["id"] for claim in recorded["claims"]] == ["lm_perplexity"]
    assert recorded["metrics"]["perplexity"] > recorded["metrics"]["perplexity_bigram"], "6 steps teach nothing"
    for name in ("recipe.yaml", "training_log.jsonl", "data.json", "README.md", "WORDNET-LICENSE"):
        assert (whole / "model" / name).is_file()
    metrics, documents = reference_lm.measure(whole / "model")
    assert reference_lm.compare(metrics, recorded["metrics"], reference_lm.ROUNDING) == []

    # The claim was registered when the run began, and run, record and a new measurement judge it alike.
    assert json.loads((whole / "claims.json").read_text()) == [as_stored(claim) for claim in reference_lm.CLAIMS]
    results = json.loads((whole / "results.json").read_text())
    assert results["metrics"] == recorded["metrics"]
    assert results["claims"] == recorded["claims"] == reference_lm.judge(documents, [as_stored(reference_lm.CLAIMS[0])])
    (claim,) = recorded["claims"]
    assert claim["measured"] == pytest.approx(metrics["perplexity"] / metrics["perplexity_bigram"])
    assert (claim["verdict"], claim["n"]) == ("refuted", metrics["validation_documents"])
    assert f"{metrics['perplexity_bigram']:.1f}" in (whole / "report.md").read_text()


def test_the_command_trains_once_and_then_says_that_it_is_finished(corpus, tmp_path, capsys, monkeypatch):
    """--resume where there is nothing to go on with begins a run, as `make reference-lm` asks for it."""
    monkeypatch.chdir(tmp_path)
    study.command(["train", "--resume", *FLAGS])
    out = capsys.readouterr().out
    assert "a new one begins" in out
    assert "REFUTED" in out
    assert "of another recipe than the recorded model" in out
    (folder,) = (tmp_path / "runs" / "studycore").iterdir()
    before = (folder / "model" / "metrics.json").stat().st_mtime_ns
    study.command(["train", "--resume", *FLAGS])
    assert f"{folder.relative_to(tmp_path)}: is finished" in capsys.readouterr().out
    assert (folder / "model" / "metrics.json").stat().st_mtime_ns == before
    assert main(STUDY, ["report", str(folder)]) == 0
    assert "REFUTED" in capsys.readouterr().out


def test_a_dry_run_times_a_step_and_writes_nothing(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study.command(["train", "--dry-run", *FLAGS])
    out = capsys.readouterr().out
    assert "hidden_size: 32" in out
    assert "6 steps of" in out
    assert not list(tmp_path.iterdir())


def test_a_signal_saves_and_resume_goes_on(corpus, tmp_path, monkeypatch):
    """A signal in step 4 is seen before step 5. One that comes while the finished model is measured changes nothing."""
    import os
    import signal

    rows, record = Batches.rows, reference_lm.record

    def at_step_4(self, step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return rows(self, step)

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return record(*arguments)

    folder = tmp_path / "run"
    monkeypatch.setattr(Batches, "rows", at_step_4)
    with pytest.raises(Stopped, match=f"stopped by SIGTERM at step 5 and saved; `studycore resume {folder}` continues"):
        quiet_train(folder)
    assert read_manifest(folder)["state"] == "stopped"
    monkeypatch.setattr(Batches, "rows", rows)
    monkeypatch.setattr(reference_lm, "record", interrupted)
    assert main(STUDY, ["resume", str(folder)]) == 0
    assert read_manifest(folder)["state"] == "done"


def test_another_recipe_does_not_continue_a_run(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(Batches, "rows", lambda self, step: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        quiet_train(tmp_path / "run")
    with pytest.raises(UserError, match=r"its configuration is another: .*steps"):
        make_run(STUDY, VERB, Recipe(**{**RECIPE.__dict__, "steps": 7}), tmp_path / "run", OPTIONS, resume=True)


def test_a_loss_that_is_not_finite_names_the_rate(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "loss_of", lambda model, *_: model.get_input_embeddings().weight.sum() * math.nan)
    with pytest.raises(UserError, match=r"learning_rate: 0\.003 made the loss nan at step 0; lower it$"):
        quiet_train(tmp_path / "run")
    assert read_manifest(tmp_path / "run")["state"] == "failed"


def test_a_step_count_is_restored_to_where_the_optimizer_wants_it():
    """The training's AdamW is fused: like a capturable one it counts on the parameter's device. "meta" stands for a GPU."""
    layer = torch.nn.Linear(2, 2, device="meta")
    for settings, place in (({}, "cpu"), ({"capturable": True}, "meta")):
        optimizer = torch.optim.AdamW(layer.parameters(), **settings)
        restore_optimizer(layer, optimizer, {"weight/step": torch.tensor(3.0), "weight/exp_avg": torch.ones(2, 2)})
        assert optimizer.state[layer.weight]["step"].device.type == place
        assert optimizer.state[layer.weight]["exp_avg"].device.type == "meta"


@pytest.mark.parametrize("flag", ["--seeds", "--num-processes"])
def test_one_process_trains_one_model(flag):
    with pytest.raises(UserError, match=r": 2 does not fit; give one of 1"):
        study.command(["train", flag, "2"])
