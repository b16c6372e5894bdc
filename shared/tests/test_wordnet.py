"""The corpus reader: on a database of a few synsets, and its counts on WordNet itself where that is there."""

import shutil

import nltk
import pytest
import tiny_wordnet

from studycore.errors import UserError
from studycore.language import wordnet
from studycore.language.noun_hierarchy import noun_hierarchy

FETCHED = wordnet.find() is not None
needs_wordnet = pytest.mark.skipif(not FETCHED, reason="WordNet is not there; `make setup` fetches it")
CACHED = (wordnet.corpus, wordnet.documents, wordnet.nouns, noun_hierarchy)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Debian's folder with a tiny database, and an empty nltk data folder."""
    for function in CACHED:
        function.cache_clear()
    monkeypatch.setattr(wordnet, "DEBIAN", tiny_wordnet.write(tmp_path / "debian"))
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
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


def test_the_next_process_need_not_parse_the_database_unless_what_was_kept_is_damaged(tiny, monkeypatch):
    made = wordnet.documents()
    (kept,) = (tiny / "cache" / "studycore").glob("wordnet-*.json")
    whole = kept.read_text()

    def parses() -> int:
        """How often nltk is asked by a process that starts afresh and finds the same documents."""
        asked = []
        reader = wordnet.corpus()
        monkeypatch.setattr(reader, "all_synsets", lambda: asked.append(1) or type(reader).all_synsets(reader))
        wordnet.documents.cache_clear()
        assert wordnet.documents() == made
        return len(asked)

    assert parses() == 0
    for content in (whole.replace("barked", "bark"), whole[:-40], "[]", '{"sha256": 1}', ""):
        kept.write_text(content)
        assert parses() == 1
        assert kept.read_text() == whole
    kept.unlink()
    kept.mkdir()  # nothing can be written there
    assert parses() == 1
    database = wordnet.find() / "data.adj"
    database.write_text(database.read_text().replace("with speed", "with haste"))
    wordnet.corpus.cache_clear()
    wordnet.documents.cache_clear()
    assert " fast: with haste" in [document.text for document in wordnet.documents()]


def test_equal_glosses_share_a_split_and_splits_have_their_shares(tiny):
    split = {document.name: document.split for document in wordnet.documents()}
    assert split["fast.a.01"] == split["quickly.r.01"]
    drawn = [wordnet.split_of(f"gloss {number}") for number in range(20000)]
    assert {s: round(drawn.count(s) / 20000, 2) for s in set(drawn)} == {
        "train": 0.8, "reserve": 0.15, "validation": 0.05,
    }  # fmt: skip


def test_texts_of_a_split_and_nouns(tiny):
    found = {split: wordnet.texts(split) for split in ("train", "reserve", "validation")}
    assert sorted(text for texts in found.values() for text in texts) == sorted(
        document.text for document in wordnet.documents()
    )
    assert {"dog", "domestic dog", "Isaac Newton"} < wordnet.nouns()
    assert not {"run", "fast", "quickly"} & wordnet.nouns()


def test_hierarchy_is_a_graph_with_instances_apart(tiny):
    nouns = noun_hierarchy()
    assert nouns.parents["dog.n.01"] == ("animal.n.01", "pet.n.01")
    assert nouns.closure("animal.n.01") == {"animal.n.01", "pet.n.01", "dog.n.01", "person.n.01"}
    assert nouns.instances == {**dict.fromkeys(nouns.lemmas, ()), "person.n.01": ("newton.n.01",)}
    assert nouns.lemmas["newton.n.01"] == ("Newton", "Isaac Newton")
    assert list(nouns.lemmas) == sorted(nouns.lemmas)
    with pytest.raises(UserError, match=r"'dog' is no noun synset"):
        nouns.closure("dog")


def test_without_wordnet_one_sentence_says_what_fetches_it(tiny):
    shutil.rmtree(tiny / "debian")
    with pytest.raises(UserError, match=r"not found.*`make setup` fetches it"):
        wordnet.corpus()


@pytest.mark.parametrize("damage", ["cut off", "no text", "offsets of another version"])
def test_a_damaged_database_is_named_in_one_sentence(tiny, damage):
    wordnet.find()
    data = wordnet.find() / "data.noun"
    content = data.read_bytes()
    data.chmod(0o644)
    if damage == "cut off":
        data.write_bytes(content[: len(content) // 2])
    elif damage == "no text":
        data.write_bytes(content[:30] + b"\xff\xfe\x00" + content[33:])
    else:
        data.write_bytes(content.replace(b" n 0000", b"1 n 0000"))
    with pytest.raises(UserError, match=r"^WordNet: .*wordnet: cannot be read as WordNet's database \(.*; remove it"):
        noun_hierarchy.__wrapped__()


def test_fetch_takes_what_is_there_then_debian(tiny, tmp_path):
    folder, origin = wordnet.fetch(tmp_path / "image")
    assert (folder, origin) == (tmp_path / "image" / "corpora" / "wordnet", f"from {wordnet.DEBIAN}")
    shutil.rmtree(tiny / "debian")
    assert wordnet.fetch(tmp_path / "image") == (folder, "it was there")


def test_fetch_without_a_way_says_so(tiny, monkeypatch):
    shutil.rmtree(tiny / "debian")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(nltk, "download", lambda *_, **__: False)
    with pytest.raises(
        UserError, match=r"neither Debian's package wordnet-base .apt-get is not there. nor nltk's download.*NLTK_DATA"
    ):
        wordnet.fetch()


def test_what_somebody_put_there_stays(tiny, monkeypatch):
    """An incomplete folder is passed over, not removed; where it is in the way, one sentence says so."""
    folder = wordnet.find()
    (folder / "data.verb").unlink()
    with pytest.raises(UserError, match="incomplete corpora/wordnet is in the way"):
        wordnet.find()
    monkeypatch.setattr(nltk.data, "path", [*nltk.data.path, str(tiny / "other")])
    assert wordnet.find() == tiny / "other" / "corpora" / "wordnet"
    assert wordnet.corpus().synset("dog.n.01").name() == "dog.n.01", "reads the whole one"
    assert (folder / "data.noun").exists()


def test_links_that_nltk_refuses_are_passed_over(tiny):
    root = tiny / "nltk_data"
    (root / "corpora").mkdir(parents=True)
    whole = wordnet.fetch(tiny / "elsewhere")[0]
    (root / "corpora" / "wordnet").symlink_to(whole)
    assert wordnet.find() == whole


def test_nltks_archive_is_unpacked(tiny):
    folder, _ = wordnet.fetch(tiny / "made")
    archive = tiny / "nltk_data" / "corpora" / "wordnet"
    archive.parent.mkdir(parents=True)
    shutil.make_archive(str(archive), "zip", folder.parent, "wordnet")
    shutil.rmtree(folder)
    shutil.rmtree(tiny / "debian")
    assert wordnet.fetch()[1] == f"from {archive}.zip"
    assert len(wordnet.documents()) == 9


def test_the_first_of_several_processes_wins(tiny, monkeypatch):
    """Between looking and putting it in place another process put its copy there."""
    replace, whole = wordnet.os.replace, wordnet.fetch(tiny / "made")[0]

    def late(source, target):
        shutil.copytree(whole, target)
        replace(source, target)

    nltk.data.path.remove(str(tiny / "made"))
    monkeypatch.setattr(wordnet.os, "replace", late)
    folder = wordnet.find()
    assert folder == wordnet._present() == tiny / "nltk_data" / "corpora" / "wordnet"
    assert not list(folder.parent.glob(".wordnet-*"))


@needs_wordnet
def test_wordnet_itself():
    """Counts of WordNet 3.0 from wnstats(7WN): synsets, and unique noun strings, which fold case where ours keep it."""
    assert len(wordnet.documents()) == 117659
    assert len({noun.lower() for noun in wordnet.nouns()}) == 117798
    train, reserve, validation = (set(wordnet.texts(split)) for split in ("train", "reserve", "validation"))
    assert not train & validation
    assert not reserve & (train | validation)


@needs_wordnet
def test_the_noun_hierarchy_itself():
    """Counts of WordNet 3.0's nouns: wnstats(7WN) for the synsets."""
    nouns = noun_hierarchy()
    assert len(nouns.lemmas) == 82115
    assert len({instance for instances in nouns.instances.values() for instance in instances}) == 7730
    assert sum(not parents for parents in nouns.parents.values()) == 7726
    assert sum(len(parents) > 1 for parents in nouns.parents.values()) == 1422
    # WordNet itself calls two synsets both a kind and an instance.
    kinds = nouns.closure("entity.n.01")
    both = {instance for kind in kinds for instance in nouns.instances[kind]} & kinds
    assert both == {"enlightenment.n.03", "orion.n.02"}
