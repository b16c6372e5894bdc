"""The choice of concepts in a small WordNet: a directed acyclic graph with instances, genus names and words of two senses."""

import itertools
from types import SimpleNamespace

import pytest

from polytope_hsae import concepts
from polytope_hsae.concepts import (
    CHOOSE,
    ESTIMATE,
    TEMPLATES,
    TEST,
    choose_hierarchy,
    load_hierarchy,
    plural,
    prompts,
    split_words,
    surface_forms,
)
from polytope_hsae.config import GeometryConfig
from studycore.errors import UserError
from studycore.language import noun_hierarchy as nouns_module, wordnet
from studycore.language.noun_hierarchy import NounHierarchy

# Synset -> direct hypernyms. A hound is a mammal and a pet. Vascular plants are nearly all plants; trees hang under them by a
# short and by a long path.
PARENTS = {
    "entity": (), "animal": ("entity",), "mammal": ("animal",), "bird": ("animal",), "pet": ("animal",), "hound": ("mammal", "pet"),
    "plant": ("entity",), "vascular": ("plant",), "woody": ("vascular",), "tree": ("woody", "vascular"), "flower": ("vascular",),
    "genus": ("entity",),
    "genus_a": ("genus",), "genus_b": ("genus",), "genus_c": ("genus",), "genus_d": ("genus",),
}  # fmt: skip
WORDS = {
    "animal": ["beast", "brute", "creature", "critter"], "mammal": ["cow", "horse", "pig", "sheep"], "bird": ["crow", "hawk", "owl", "wren"],
    "pet": ["goldfish", "hamster", "parrot", "rabbit"], "hound": ["beagle", "basset", "setter", "whippet"], "plant": ["herb", "moss", "vine"],
    "tree": ["oak", "elm", "ash", "fir", "larch", "birch", "maple", "willow"],
    "flower": ["rose", "tulip", "daisy", "lily", "poppy", "violet", "iris", "oak"],
    **{f"genus_{letter}": [f"Genus {letter}", f"genus{letter}us"] for letter in "abcd"},
}  # fmt: skip
INSTANCES = {"hound": ("laika",), "bird": ("tweety",)}


class Tokenizer:
    """One token for each word of the vocabulary after a space, two for any other."""

    def __init__(self, words):
        self.ids = {word: i for i, word in enumerate(sorted(words))}
        self.words = {i: word for word, i in self.ids.items()}

    def __call__(self, texts, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [[self.ids[t.strip()]] if t.strip() in self.ids else [900, 901] for t in texts]}

    def __len__(self):
        return len(self.ids)

    def decode(self, ids):
        return " " + self.words[ids[0]]


@pytest.fixture
def small_wordnet(monkeypatch):
    names = [*PARENTS, "laika", "tweety"]
    children = {name: tuple(sorted(c for c, above in PARENTS.items() if name in above)) for name in names}
    lemmas = {name: tuple(WORDS.get(name, [])) for name in names} | {"laika": ("Laika",), "tweety": ("Tweety",)}
    graph = NounHierarchy(
        {name: PARENTS.get(name, ()) for name in names}, children, {n: INSTANCES.get(n, ()) for n in names}, lemmas
    )
    senses = {}
    for name, words in lemmas.items():
        for word in words:
            senses.setdefault(word, []).append(SimpleNamespace(name=lambda name=name: name))

    class Corpus:
        def synsets(self, word, pos):
            return senses.get(word, [])

        def synset(self, name):
            return SimpleNamespace(definition=lambda: f"what a {name} is")

    monkeypatch.setattr(nouns_module, "noun_hierarchy", lambda: graph)
    monkeypatch.setattr(wordnet, "corpus", lambda: Corpus())
    monkeypatch.setattr(concepts, "irregular_plurals", lambda: {"sheep": "sheep"})
    monkeypatch.setattr(concepts, "LARGEST", 0.7)


def vocabulary():
    """Plain forms of all single words but the genera's, and some forms of other kinds."""
    plain = {word for words in WORDS.values() for word in words if " " not in word and not word.startswith("genus")}
    return Tokenizer([*plain, "Cow", "cows", "Laika", "Tweety", "oaks"])


def choose(**changes):
    values = {
        "min_vocab_count": 4,
        "parents": 4,
        "max_children_per_parent": 4,
        "senses": "all",
        "split": [0.5, 0.25, 0.25],
    }
    return choose_hierarchy(vocabulary(), GeometryConfig(**(values | changes)))


def text_of(hierarchy, concept):
    return {hierarchy.text[token] for part in concept.words for token in part}


def test_the_graphs_shortest_path_to_each_child_is_recorded(small_wordnet):
    hierarchy, counts = choose()
    plant = next(parent for parent in hierarchy.parents if parent.name == "plant")
    paths = {child.name: path for child, path in zip(plant.children, plant.paths, strict=True)}
    # What is nearly the parent itself is passed; trees are found below it, not along woody plants, which are no second child.
    assert paths == {"tree": ("plant", "vascular", "tree"), "flower": ("plant", "vascular", "flower")}
    assert counts["parents"] == len(hierarchy.parents) == 2
    for parent in hierarchy.parents:
        for child, path in zip(parent.children, parent.paths, strict=True):
            assert (path[0], path[-1]) == (parent.name, child.name)
            assert all(one in PARENTS[other] for one, other in itertools.pairwise(path))


def test_a_kind_of_two_siblings_is_no_word_of_either(small_wordnet):
    hierarchy, _ = choose()
    animal = next(parent for parent in hierarchy.parents if parent.name == "animal")
    words = {child.name: text_of(hierarchy, child) for child in animal.children}
    assert {"mammal", "bird", "pet"} == set(words)
    assert not set(WORDS["hound"]) & (words["mammal"] | words["pet"])
    # Nor of the parent's rest, whose words no child has.
    assert not set(WORDS["hound"]) & text_of(hierarchy, animal)
    labels = hierarchy.labels()
    assert len(labels) == sum(len(part) for p in hierarchy.parents for c in [p, *p.children] for part in c.words)


def test_all_single_token_forms_count_and_instances_do_not(small_wordnet):
    hierarchy, _ = choose()
    texts = set(hierarchy.text.values())
    assert {"cow", "Cow", "cows"} <= texts
    assert not {"Laika", "Tweety"} & texts


def test_genera_do_not_crowd_in(small_wordnet):
    """They have the most direct hyponyms, and no single-token words."""
    hierarchy, _ = choose()
    assert {parent.name for parent in hierarchy.parents} == {"animal", "plant"}  # not entity, which is above both
    assert len([c for c, above in PARENTS.items() if "genus" in above]) > 3


def test_a_word_counts_for_its_first_sense_or_for_none_of_two(small_wordnet):
    by_all = choose(min_vocab_count=3)[0]
    plant = next(parent for parent in by_all.parents if parent.name == "plant")
    assert all("oak" not in text_of(by_all, child) for child in plant.children)
    first = choose(min_vocab_count=3, senses="first")[0]
    words = {c.name: text_of(first, c) for parent in first.parents for c in parent.children}
    assert "oak" in words["tree"]
    assert "oak" not in words["flower"]


def test_parents_are_not_above_one_another_and_hold_no_words_of_each_other(small_wordnet):
    hierarchy, _ = choose(min_vocab_count=3)
    every = [token for p in hierarchy.parents for c in [p, *p.children] for part in c.words for token in part]
    assert len(every) == len(set(every))
    assert "entity" not in {parent.name for parent in hierarchy.parents}


def test_too_few_parents_are_a_sentence(small_wordnet):
    with pytest.raises(UserError, match="min_vocab_count: 50 words a concept leave 0 parents"):
        choose(min_vocab_count=50)


def test_a_hierarchy_comes_back_from_its_file(small_wordnet, tmp_path):
    hierarchy, _ = choose()
    hierarchy.save(tmp_path / "concepts.json")
    assert load_hierarchy(tmp_path / "concepts.json") == hierarchy


def test_prompts_end_in_a_word_of_their_child_and_are_parted_by_it(small_wordnet):
    hierarchy, _ = choose()
    found = prompts(hierarchy, 8, 0)
    children = [child for parent in hierarchy.parents for child in parent.children]
    assert len(found) == 8 * len(children)
    for i, child in enumerate(children):
        own = found[8 * i : 8 * i + 8]
        assert all(prompt.word in child.words[prompt.part] for prompt in own)
        assert {prompt.part for prompt in own} == {ESTIMATE, CHOOSE, TEST}
    assert len({(prompt.before, prompt.word) for prompt in found}) == len(found)
    assert found == prompts(hierarchy, 8, 0) != prompts(hierarchy, 8, 1)
    # With more than there are of words and templates, each stands once.
    every = prompts(hierarchy, 10_000, 0)
    assert (
        len({(prompt.before, prompt.word) for prompt in every})
        == len(every)
        == len(TEMPLATES) * sum(len(part) for child in children for part in child.words)
    )


def test_no_template_has_a_word_of_a_concept(small_wordnet, monkeypatch):
    monkeypatch.setattr(concepts, "TEMPLATES", ("The Cow saw the", "Nobody saw the"))
    hierarchy, _ = choose()
    assert {prompt.before for prompt in prompts(hierarchy, 4, 0)} == {"Nobody saw the"}
    monkeypatch.setattr(concepts, "TEMPLATES", ("The cow saw the",))
    with pytest.raises(UserError, match=r"concepts.prompts_per_concept: every template"):
        prompts(hierarchy, 4, 0)


def test_forms_of_a_word(monkeypatch):
    monkeypatch.setattr(concepts, "irregular_plurals", lambda: {"ox": "oxen", "sheep": "sheep"})
    assert [plural(w) for w in ("ox", "box", "lily", "boy", "cow")] == ["oxen", "boxes", "lilies", "boys", "cows"]
    assert surface_forms("sheep") == ["sheep", "Sheep"]
    assert surface_forms("cow") == ["cow", "Cow", "cows", "Cows"]


def test_words_are_parted_by_shares_and_seed():
    parts = split_words(range(20), [0.5, 0.25, 0.25], 0, "x")
    assert [len(part) for part in parts] == [10, 5, 5]
    assert sorted(token for part in parts for token in part) == list(range(20))
    assert parts == split_words(reversed(range(20)), [0.5, 0.25, 0.25], 0, "x")
    assert parts != split_words(range(20), [0.5, 0.25, 0.25], 1, "x")
