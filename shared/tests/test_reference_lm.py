"""The shipped model: where it is, how it is measured, and that the package's copy is as recorded."""

import json
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import studycore.report
from studycore import execution
from studycore.claims import NotRun, as_stored
from studycore.commands import main
from studycore.errors import UserError
from studycore.language import reference_lm, study, wordnet
from studycore.language.reference_lm import FOLDER, NAME, RETRAINED, ROUNDING, compare, document_nll, locate, ngram_nll

needs_wordnet = pytest.mark.skipif(wordnet.find() is None, reason="WordNet is not there; `make setup` fetches it")


@pytest.fixture(scope="module")
def loaded():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = locate(NAME)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_other_names_stay_as_they_are():
    assert locate("roneneldan/TinyStories-8M") == "roneneldan/TinyStories-8M"


def test_a_lacking_folder_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(reference_lm, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"holds no model\.safetensors; install studycore again"):
        locate(NAME)


def test_it_is_small_and_whole():
    files = list(FOLDER.iterdir())
    assert sum(path.stat().st_size for path in files) <= 16e6
    for name in ("recipe.yaml", "training_log.jsonl", "data.json", "metrics.json", "README.md", "WORDNET-LICENSE"):
        assert FOLDER / name in files


def test_it_loads_in_single_precision(loaded):
    model, tokenizer = loaded
    assert model.dtype == torch.float32
    assert model.config.vocab_size == len(tokenizer)
    recorded = json.loads((FOLDER / "metrics.json").read_text())["metrics"]
    assert sum(q.numel() for q in model.parameters()) == recorded["parameters"]


def test_its_nouns_are_single_tokens(loaded):
    _, tokenizer = loaded
    for word in ("dog", "animal", "music", "Paris", "piano", "tree"):
        assert len(tokenizer.encode(f" {word}")) == 1


def test_it_has_learnt(loaded):
    """A sentence in WordNet's manner is likelier than the same words in another order."""
    right, wrong = document_nll(*loaded, [" kind of small dog with long hair", " hair long kind with of dog small"])
    assert right[0] < wrong[0] - 5


def test_the_record_and_the_readme_say_the_same():
    record = json.loads((FOLDER / "metrics.json").read_text())
    (claim,) = record["claims"]
    assert (claim["id"], claim["verdict"]) == ("lm_perplexity", "supported")
    assert record["metrics"]["perplexity_bigram"] < record["metrics"]["perplexity_unigram"]
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for name in ("perplexity", "perplexity_bigram", "perplexity_unigram"):
        assert f"{record['metrics'][name]:.1f}" in readme, name
    measured = "{:.3f} [{:.3f}, {:.3f}]".format(claim["measured"], *claim["interval95"])
    assert f"measured {measured} (95 % over glosses): supported" in readme


def test_nll_of_a_batch_is_that_of_each_alone(loaded):
    """Padding must not count: against one text at a time, without padding, from the definition."""
    model, tokenizer = loaded
    texts = [" dog: a pet", " a much longer text about the history of music in the city of Vienna", " x"]
    for text, (total, tokens) in zip(texts, document_nll(model, tokenizer, texts), strict=True):
        ids = torch.tensor([[0, *tokenizer.encode(text), 0]])
        with torch.no_grad():
            log_p = model(ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        assert tokens == ids.shape[1] - 1
        assert total == pytest.approx(-log_p[range(tokens), ids[0, 1:]].sum().item(), rel=1e-5)


class Letters:
    """A tokenizer of the letters a to d and the end, 0."""

    eos_token_id = 0

    def __len__(self):
        return 5

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [["_abcd".index(letter) for letter in text] for text in texts]}


def test_ngrams_against_their_definitions():
    training, texts = ["abab", "ba", "c"], ["abc", "dd"]
    unigram, bigram = ngram_nll(Letters(), training, texts)
    counts = Counter("abab0ba0c0")
    assert unigram[0] == pytest.approx(-sum(math.log((counts[x] + 1) / (10 + 5)) for x in "abc0"))

    pairs = Counter(["0a", "ab", "ba", "ab", "b0", "0b", "ba", "a0", "0c", "c0"])

    def probability(context, letter):
        kinds = {pair for pair in pairs if pair[1] == letter}
        lower = (len(kinds) + 1) / (len(pairs) + 5)
        seen = {pair: count for pair, count in pairs.items() if pair[0] == context}
        if not seen:
            return lower
        total = sum(seen.values())
        return max(pairs[context + letter] - 0.75, 0) / total + 0.75 * len(seen) / total * lower

    for context in "0abcd":
        assert sum(probability(context, letter) for letter in "0abcd") == pytest.approx(1)
    for text, got in zip(texts, bigram, strict=True):
        chain = f"0{text}0"
        assert got == pytest.approx(-sum(math.log(probability(*chain[i : i + 2])) for i in range(len(chain) - 1)))


def test_compare_sees_what_differs():
    recorded = {"perplexity": 100.0, "vocabulary": 12}
    assert compare(recorded, recorded, ROUNDING) == []
    assert compare(recorded | {"perplexity": 100.005}, recorded, ROUNDING) == []
    assert compare(recorded | {"perplexity": 100.5}, recorded, ROUNDING) == [
        "perplexity is 100.5000, recorded 100.0000"
    ]
    assert compare(recorded | {"perplexity": math.nan}, recorded, ROUNDING)
    assert compare(recorded | {"vocabulary": 11}, recorded, RETRAINED) == ["vocabulary is 11, recorded 12"]
    assert compare({"perplexity": 100.0}, recorded, RETRAINED)
    assert compare(recorded | {"perplexity": 103.0}, recorded, RETRAINED) == []
    assert compare(recorded | {"perplexity": 106.0}, recorded, RETRAINED)


def test_a_retrained_model_of_another_quality_is_refused(monkeypatch, tmp_path, capsys):
    """`train` with the default recipe compares with the record; the training itself is left out here."""
    recorded = json.loads((FOLDER / "metrics.json").read_text())

    def as_if(change):
        def make_run(_study, verb, recipe, folder, *_):
            (folder / "model").mkdir(parents=True, exist_ok=True)
            metrics = recorded["metrics"] | change
            (folder / "model" / "metrics.json").write_text(json.dumps({"metrics": metrics}))

        monkeypatch.setattr(execution, "make_run", make_run)
        monkeypatch.setattr(studycore.report, "print_report", lambda folder: None)
        monkeypatch.setattr(sys, "argv", ["studycore", "reference-lm", "train", "--output-dir", str(tmp_path / "run")])
        return main()

    assert as_if({}) == 0
    assert as_if({"perplexity": 5000.0}) == 2
    assert "not of the recorded quality: perplexity is 5000" in capsys.readouterr().err


def test_the_claim_against_a_bootstrap_by_hand():
    """Perplexities that differ by a factor in every gloss; half of the documents are twice as long."""
    documents = np.array([[tokens * 2.0, tokens * (2.0 + math.log(2)), tokens] for tokens in (5, 10) * 20])
    (claim,) = reference_lm.judge(documents, [as_stored(reference_lm.CLAIMS[0])])
    assert claim["measured"] == pytest.approx(0.5)
    assert claim["interval95"] == pytest.approx([0.5, 0.5])
    assert (claim["verdict"], claim["n"], claim["registered"]) == ("supported", 40, True)
    documents[:, 0] += 0.5 * documents[:, 2]  # the ratio is then 0.82
    assert reference_lm.judge(documents, [])[0]["verdict"] == "refuted"
    documents[::2, 0] -= 1.5 * documents[::2, 2]  # now a part of the glosses is far better than the others
    (claim,) = reference_lm.judge(documents, [])
    low, high = claim["interval95"]
    assert low < claim["measured"] < high
    assert claim["measured"] == pytest.approx(
        math.exp((documents[:, 0] - documents[:, 1]).sum() / documents[:, 2].sum())
    )
    with pytest.raises(NotRun, match="there are 0"):
        reference_lm.CLAIMS[0].measure.compute(pd.DataFrame())


def test_another_wordnet_is_said(monkeypatch):
    monkeypatch.setattr(wordnet, "fingerprint", lambda: "another")
    with pytest.raises(UserError, match=r"not the 3\.0 that the figures were measured on"):
        study.verify()


@needs_wordnet
def test_verify_equals_the_record(monkeypatch, capsys):
    """The full measurement on all held-out glosses."""
    monkeypatch.setattr(sys, "argv", ["studycore", "reference-lm", "verify"])
    assert main() == 0, capsys.readouterr().err
    assert "equal to what is recorded" in capsys.readouterr().out


def test_info_and_mistakes(monkeypatch, capsys):
    for arguments, code, words in (
        (["info"], 0, str(Path(FOLDER))),
        (["verify", "--fast"], 2, "takes no flags"),
        (["paint"], 2, "paint"),
        (["train", "--heads", "3"], 2, "heads: 3 does not divide"),
    ):
        monkeypatch.setattr(sys, "argv", ["studycore", "reference-lm", *arguments])
        assert main() == code
        captured = capsys.readouterr()
        assert words in captured.out + captured.err
