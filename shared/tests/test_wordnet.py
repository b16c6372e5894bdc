"""The corpus reader: on a database of a few synsets, and its counts on WordNet itself where that is there."""

import hashlib
import shutil

import nltk
import pytest
import tiny_wordnet

from studycore import paragraphs, wordnet
from studycore.errors import UserError

FETCHED = wordnet.find() is not None
needs_wordnet = pytest.mark.skipif(not FETCHED, reason="WordNet is not there; `make setup` fetches it")
CACHED = (wordnet.corpus, wordnet._entries, wordnet.documents, wordnet.noun_hierarchy, wordnet.word_counts,
          paragraphs.values, paragraphs.names)  # fmt: skip


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Debian's folder with a tiny database, and an empty nltk data folder."""
    for function in CACHED:
        function.cache_clear()
    monkeypatch.setattr(wordnet, "DEBIAN", tiny_wordnet.write(tmp_path / "debian"))
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])
    yield tmp_path
    for function in CACHED:
        function.cache_clear()


def test_debians_files_are_made_readable(tiny):
    assert wordnet.find() == tiny / "nltk_data" / "corpora" / "wordnet"
    assert wordnet.corpus().synset("dog.n.01").lexname() == "noun.animal"
    assert not (tiny / "nltk_data" / "corpora" / "wordnet" / "data.noun").is_symlink()


def test_documents(tiny):
    texts = {document.name: document.text for document in wordnet.documents()}
    assert len(texts) == 9
    assert texts["dog.n.01"] == ' dog, domestic dog: a kind that barks; "the dog barked"; "a loyal dog"'
    assert texts["run.v.01"] == " run: move fast"
    assert [d.name for d in wordnet.documents()] == sorted(texts)


def test_equal_glosses_share_a_split_and_splits_have_their_shares(tiny):
    split = {document.name: document.split for document in wordnet.documents()}
    assert split["fast.a.01"] == split["quickly.r.01"]
    drawn = [wordnet.split_of(f"gloss {number}") for number in range(20000)]
    assert {s: round(drawn.count(s) / 20000, 2) for s in set(drawn)} == {
        "train": 0.8, "reserve": 0.15, "validation": 0.05,
    }  # fmt: skip


def test_hierarchy_is_a_graph_with_instances_apart(tiny):
    nouns = wordnet.noun_hierarchy()
    assert nouns.parents["dog.n.01"] == ("animal.n.01", "pet.n.01")
    assert nouns.closure("animal.n.01") == {"animal.n.01", "pet.n.01", "dog.n.01", "person.n.01"}
    assert nouns.instances == {**dict.fromkeys(nouns.lemmas, ()), "person.n.01": ("newton.n.01",)}
    assert nouns.instances_below("animal.n.01") == {"newton.n.01"}
    assert nouns.lemmas["newton.n.01"] == ("Newton", "Isaac Newton")
    with pytest.raises(UserError, match=r"'dog' is no noun synset"):
        nouns.closure("dog")


def test_word_counts(tiny):
    assert wordnet.word_counts()["dog"] == 4
    assert wordnet.word_counts()["Newton"] == 2


def test_without_wordnet_one_sentence_says_what_fetches_it(tiny):
    shutil.rmtree(tiny / "debian")
    with pytest.raises(UserError, match=r"not found.*`make setup` fetches it"):
        wordnet.corpus()


def test_fetch_takes_what_is_there_then_debian(tiny, tmp_path):
    folder, origin = wordnet.fetch(tmp_path / "image")
    assert (folder, origin) == (tmp_path / "image" / "corpora" / "wordnet", f"from {wordnet.DEBIAN}")
    shutil.rmtree(tiny / "debian")
    assert wordnet.fetch(tmp_path / "image") == (folder, "it was there")


def test_fetch_without_a_way_says_so(tiny, monkeypatch):
    shutil.rmtree(tiny / "debian")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(nltk, "download", lambda *_, **__: False)
    with pytest.raises(UserError, match=r"neither Debian's package wordnet-base nor nltk's download.*NLTK_DATA"):
        wordnet.fetch()


def test_an_incomplete_folder_is_not_taken(tiny):
    folder = wordnet.find()
    (folder / "data.verb").unlink()
    assert wordnet.find() == folder
    assert (folder / "data.verb").exists(), "installed anew"


@needs_wordnet
def test_wordnet_itself():
    """Counts of WordNet 3.0: wnstats(7WN) for synsets and nouns."""
    nouns = wordnet.noun_hierarchy()
    assert len(wordnet.documents()) == 117659
    assert len(nouns.lemmas) == 82115
    assert sum(map(len, nouns.instances.values())) > 8000
    assert sum(len(parents) > 1 for parents in nouns.parents.values()) == 1422
    assert [name for name in nouns.closure("entity.n.01") if name in nouns.instances_below("entity.n.01")] == []
    glosses = [(d.text.split(": ", 1)[1], d.split) for d in wordnet.documents()]
    by_text = {}
    assert all(by_text.setdefault(text, split) == split for text, split in glosses)


@needs_wordnet
def test_names_are_split_and_no_name_is_a_value():
    train, held_out = set(paragraphs.names("train")), set(paragraphs.names("validation"))
    words = [word for values in paragraphs.values().values() for word in values]
    assert len(train) > 500
    assert len(held_out) > 100
    assert not train & held_out
    assert not (train | held_out) & set(words)
    assert len(words) == len(set(words))


@needs_wordnet
def test_paragraphs():
    """The answer is its span; a name or an attribute alone leaves two candidates."""
    for paragraph in paragraphs.held_out(20):
        assert len(paragraph.questions) == 6
        for question in paragraph.questions:
            end = question.answer_start + len(question.answer)
            assert paragraph.context[question.answer_start : end] == question.answer
            assert question.answer in paragraphs.values()[question.attribute]
            same = [q for q in paragraph.questions if q.name == question.name]
            assert len(same) == len([q for q in paragraph.questions if q.attribute == question.attribute]) == 2
            assert hashlib.sha256(question.name.encode()).digest()[0] < 256 / 5
        assert len({question.answer for question in paragraph.questions}) >= 5
    assert paragraphs.held_out(3) == paragraphs.held_out(20)[:3]
