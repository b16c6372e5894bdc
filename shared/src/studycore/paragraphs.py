"""Reading comprehension made from WordNet: invented facts about real names, questions whose answer is a span.

A paragraph states six facts about three people: three attributes, two of them for each person and each attribute for two
people, so that neither the name nor the attribute alone finds the answer. Facts are drawn at random: nothing that a
model knows of a name helps, only the context does.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Literal

from studycore import wordnet

ATTRIBUTES = {
    "home": "city.n.01",
    "job": "worker.n.01",
    "pet": "animal.n.01",
    "food": "food.n.02",
    "drink": "beverage.n.01",
    "instrument": "musical_instrument.n.01",
    "color": "chromatic_color.n.01",
    "sport": "sport.n.01",
    "dress": "garment.n.01",
    "tree": "tree.n.01",
    "vehicle": "vehicle.n.01",
    "tool": "tool.n.01",
    "language": "language.n.01",
    "fabric": "fabric.n.01",
}
"""What is stated of a person -> the synset whose kinds (or, for cities, instances) are its values."""

CAPITALISED = ("home", "language")

MINIMUM_COUNT = 5
"""Names and values stand at least so often in WordNet's glosses."""

STATEMENTS = ("The {attribute} of {name} is {value}.", "{name} has the {attribute} {value}.")
QUESTIONS = ("What is the {attribute} of {name}?", "Which {attribute} has {name}?")
"""Wordings; the first of each is the plain one."""


@dataclass(frozen=True)
class Question:
    """One question on a paragraph; the answer is a span of the context."""

    question: str
    answer: str
    answer_start: int
    """Index of the answer's first character in the context."""
    name: str
    attribute: str


@dataclass(frozen=True)
class Paragraph:
    context: str
    questions: tuple[Question, ...]

    def prompt(self, question: Question, context: bool = True) -> str:
        """What a model continues with the answer; `context` False leaves the paragraph out."""
        start = f"Context: {self.context}\n" if context else ""
        return f"{start}Question: {question.question}\nAnswer:"


@lru_cache(maxsize=1)
def values() -> Mapping[str, tuple[str, ...]]:
    """Attribute -> its values: single words of letters, sorted; a word of two attributes belongs to the first."""
    nouns, counts = wordnet.noun_hierarchy(), wordnet.word_counts()
    found: dict[str, tuple[str, ...]] = {}
    taken = set(ATTRIBUTES)
    for attribute, synset in ATTRIBUTES.items():
        below = nouns.instances_below(synset) if attribute == "home" else nouns.closure(synset)
        words = {word for name in below for word in nouns.lemmas[name] if word.isalpha() and word.isascii()}
        words = {word for word in words if word[0].isupper() == (attribute in CAPITALISED)}
        found[attribute] = tuple(sorted(w for w in words - taken if counts.get(w, 0) >= MINIMUM_COUNT))
        taken |= set(found[attribute])
    return found


@lru_cache(maxsize=2)
def names(split: Literal["train", "validation"]) -> tuple[str, ...]:
    """Names of people that WordNet knows, four fifths for training and one fifth held out, by a hash of the name."""
    nouns, counts = wordnet.noun_hierarchy(), wordnet.word_counts()
    taken = {value for words in values().values() for value in words}
    people = {word for name in nouns.instances_below("person.n.01") for word in nouns.lemmas[name]}
    people = {w for w in people - taken if w.isalpha() and w.isascii() and w[0].isupper()}
    held_out = {name: hashlib.sha256(name.encode()).digest()[0] < 256 / 5 for name in people}
    return tuple(
        sorted(n for n in people if counts.get(n, 0) >= MINIMUM_COUNT and held_out[n] == (split == "validation"))
    )


def paragraph(random: Random, split: Literal["train", "validation"], free_wording: bool = False) -> Paragraph:
    """One paragraph with its six questions, drawn from `random`; `free_wording` draws the wordings too."""
    people = random.sample(names(split), 3)
    attributes = random.sample(sorted(ATTRIBUTES), 3)
    facts = []
    for left_out, attribute in zip(random.sample(range(3), 3), attributes, strict=True):
        owners = [person for index, person in enumerate(people) if index != left_out]
        facts += list(zip(owners, [attribute] * 2, random.sample(values()[attribute], 2), strict=True))
    random.shuffle(facts)
    context, questions = "", []
    for name, attribute, value in facts:
        statement, question = (random.choice(texts) if free_wording else texts[0] for texts in (STATEMENTS, QUESTIONS))
        start = len(context) + statement.format(name=name, attribute=attribute, value="\0").index("\0")
        context += statement.format(name=name, attribute=attribute, value=value) + " "
        asked = question.format(name=name, attribute=attribute)
        questions.append(Question(asked, value, start, name, attribute))
    random.shuffle(questions)
    return Paragraph(context.rstrip(), tuple(questions))


def held_out(number: int, free_wording: bool = False) -> list[Paragraph]:
    """The first `number` paragraphs of the one fixed series about held-out people, in the plain or in free wording."""
    return [paragraph(Random(f"held-out paragraph {index}"), "validation", free_wording) for index in range(number)]


def fingerprint() -> str:
    """sha256 over names, values, attributes and wordings."""
    material = (names("train"), names("validation"), sorted(values().items()), STATEMENTS, QUESTIONS)
    return hashlib.sha256(repr(material).encode()).hexdigest()
