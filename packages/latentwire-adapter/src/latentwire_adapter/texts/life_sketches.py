"""Short life sketches in plain English, with questions whose answer is a span, in the format of SQuAD 1.1.

A paragraph tells five to eight facts about one invented person, in an order and in wordings that vary, with pronouns and a
sentence now and then that states no fact. Names, values and wordings of the three splits are disjoint: a value belongs to
a split by the hash of its text, whatever list it stands in. Paragraph `i` of a split is a function of (split, i).
"""

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from random import Random
from typing import Any, Literal

import yaml

from studycore.hashes import share_of

Split = Literal["train", "development", "validation"]
SPLITS: tuple[Split, ...] = ("train", "development", "validation")
SHARES = {"train": 0.5, "development": 0.2, "validation": 0.3}
SPLIT_BITS = 48
"""Bits of a text's hash that say where it belongs; with other bits it would be another split."""
WORDINGS: Mapping[str, tuple[int, ...]] = {"train": (0, 1), "development": (2,), "validation": (3, 4)}
"""Which of a fact's wordings, and of its questions, a split has."""
FACTS = (5, 5, 5, 5, 6, 6, 7, 8)
"""Facts of a paragraph, one of these numbers."""

# {S} {s}: the person's name or a pronoun, at the start of a sentence and inside it; {P} {p}: the possessive; {O}: her or
# him; {v}: the value; {a}: the value after a or an. {n} in a question is the full name.
FACT: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "year": ("year", (
        "{S} was born in {v}.", "In {v} {s} came into the world.", "{P} year of birth is {v}.",
        "{S} was born in the year {v}.", "It was in {v} that {s} was born.",
    ), (
        "In which year was {n} born?", "In which year did {n} come into the world?", "What is the year of birth of {n}?",
        "In what year was {n} born?", "What is the year in which {n} was born?",
    )),
    "country": ("country", (
        "{P} parents came from {v}.", "{P} family has its roots in {v}, a country far away.", "{P} home country is {v}.",
        "{S} comes from {v}, the country of {p} parents.", "The country where {p} parents were born is {v}.",
    ), (
        "Which country did the parents of {n} come from?", "In which country does the family of {n} have its roots?",
        "What is the home country of {n}?", "Which country does {n} come from?", "In which country were the parents of {n} born?",
    )),
    "trade": ("trade", (
        "{S} works as {a}.", "{S} earns a living as {a}.", "{P} job is that of {a}.", "{S} has a job as {a}.", "{S} works as {a} by day.",
    ), (
        "What does {n} work as?", "As what does {n} earn a living?", "What is the job of {n}?", "What job does {n} have?",
        "What does {n} work as by day?",
    )),
    "town": ("town", (
        "{S} lives in {v}.", "{P} home is in the city of {v}.", "{S} lives in the city of {v}.", "{P} house stands in the city of {v}.",
        "The city {s} moved to is {v}.",
    ), (
        "In which city does {n} live?", "In which city is the home of {n}?", "Which city does {n} live in?",
        "In which city does the house of {n} stand?", "Which city did {n} move to?",
    )),
    "instrument": ("instrument", (
        "{S} plays the {v}.", "At school {s} learned to play the {v}.", "{P} favourite instrument is the {v}.",
        "{S} plays the {v} in a small band.", "In the evening {s} plays the {v}.",
    ), (
        "Which instrument does {n} play?", "Which instrument did {n} learn to play at school?", "What is the favourite instrument of {n}?",
        "Which instrument does {n} play in a small band?", "What instrument does {n} play in the evening?",
    )),
    "animal": ("animal", (
        "{S} keeps {a} as a pet.", "{P} favourite animal is the {v}.", "{S} has a pet, {a}.", "{S} has {a} for a pet.", "{P} pet is {a}.",
    ), (
        "Which animal does {n} keep as a pet?", "What is the favourite animal of {n}?", "What pet does {n} have?",
        "Which animal does {n} have for a pet?", "Which animal is the pet of {n}?",
    )),
    "language": ("language", (
        "{S} speaks {v}.", "{S} grew up speaking {v}.", "{P} mother tongue is {v}.", "At home {s} speaks {v}.",
        "The language {s} speaks best is {v}.",
    ), (
        "Which language does {n} speak?", "Which language did {n} grow up speaking?", "Which language is the mother tongue of {n}?",
        "Which language does {n} speak at home?", "Which language does {n} speak best?",
    )),
    "food": ("food", (
        "{P} favourite food is {v}.", "{S} loves to eat {v}.", "{S} eats {v} for supper.", "The food {s} likes best is {v}.",
        "{P} usual dinner is {v}.",
    ), (
        "What is the favourite food of {n}?", "Which food does {n} love to eat?", "Which food does {n} eat for supper?",
        "Which food does {n} like best?", "What is the usual dinner of {n}?",
    )),
    "drink": ("drink", (
        "{S} drinks {v} every morning.", "{P} favourite drink is {v}.", "{S} drinks {v} after work.",
        "With breakfast {s} drinks {v}.", "{S} always drinks {v}.",
    ), (
        "What does {n} drink every morning?", "What is the favourite drink of {n}?", "What does {n} drink after work?",
        "What does {n} drink with breakfast?", "What does {n} always drink?",
    )),
    "hobby": ("hobby", (
        "{P} hobby is {v}.", "In {p} free time {s} enjoys {v}, an old hobby.", "{P} hobby at weekends is {v}.",
        "The hobby {s} enjoys most is {v}.", "{S} has taken up {v} as a hobby.",
    ), (
        "What is the hobby of {n}?", "Which hobby does {n} enjoy in free time?", "What is the hobby of {n} at weekends?",
        "Which hobby does {n} enjoy most?", "What has {n} taken up as a hobby?",
    )),
    "colour": ("colour", (
        "{P} front door is painted {v}.", "{P} house is painted {v}.", "{P} kitchen is painted {v}.", "{P} garden gate is painted {v}.",
        "The colour of {p} house is {v}.",
    ), (
        "What colour is the front door of {n} painted?", "What colour is the house of {n} painted?", "What colour is the kitchen of {n} painted?",
        "What colour is the garden gate of {n} painted?", "What is the colour of the house of {n}?",
    )),
    "vehicle": ("vehicle", (
        "{P} vehicle is {a}.", "{S} owns {a}, a fine vehicle.", "{P} favourite vehicle is the {v}.",
        "The vehicle {s} drives is {a}.", "{S} travels to work by {v}.",
    ), (
        "What is the vehicle of {n}?", "Which vehicle does {n} own?", "What is the favourite vehicle of {n}?",
        "Which vehicle does {n} drive?", "By which vehicle does {n} travel to work?",
    )),
    "plant": ("plant", (
        "{S} grows {v} behind the house.", "{P} garden is full of {v}.", "The plants on {p} balcony are {v}.",
        "The plants in {p} garden are {v}.", "The plants that {s} grows are {v}.",
    ), (
        "Which plants does {n} grow behind the house?", "Which plants is the garden of {n} full of?", "Which plants are on the balcony of {n}?",
        "Which plants are in the garden of {n}?", "Which plants does {n} grow?",
    )),
    "subject": ("subject", (
        "{S} studied {v} at university.", "{S} holds a degree in {v}.", "{P} best subject at school was {v}.",
        "At college {s} studied {v}.", "{S} has studied {v} for years.",
    ), (
        "What did {n} study at university?", "In which subject does {n} hold a degree?", "What was the best subject of {n} at school?",
        "What did {n} study at college?", "What has {n} studied for years?",
    )),
    "keepsake": ("keepsake", (
        "{P} grandmother gave {O} {a}.", "{S} inherited {a}.", "The present from {p} uncle was {a}.", "The gift from {p} father was {a}.",
        "The birthday present from {p} sister was {a}.",
    ), (
        "What did the grandmother of {n} give as a present?", "What did {n} inherit?", "What was the present from the uncle of {n}?",
        "What was the gift from the father of {n}?", "What was the birthday present from the sister of {n}?",
    )),
}  # fmt: skip
"""Fact -> (list of its values, five wordings, five questions)."""
FILLERS = (
    "It is a quiet life.", "The neighbours speak well of {O}.", "Friends often come to visit.", "The days are long and full.",
    "Many people know {O} by sight.", "{S} rarely complains.", "There is always something to do.", "{S} has many friends.",
)  # fmt: skip


def split_of(value: str) -> Split:
    """The split that a value belongs to."""
    place = share_of(value, SPLIT_BITS)
    return "train" if place < SHARES["train"] else "development" if place < 1 - SHARES["validation"] else "validation"


@cache
def values(split: Split) -> Mapping[str, tuple[str, ...]]:
    """Kind -> the values of a split."""
    read = yaml.safe_load((Path(str(resources.files(__package__))) / "lists.yaml").read_text(encoding="utf-8"))
    lists = {kind: words.split() if isinstance(words, str) else words for kind, words in read.items()}
    lists["year"] = [str(year) for year in range(1880, 2005)]
    return {kind: tuple(word for word in words if split_of(word) == split) for kind, words in lists.items()}


def with_article(word: str) -> str:
    """The word after a or an."""
    return f"an {word}" if word[0].lower() in "aeio" or word.startswith(("hour", "umb")) else f"a {word}"


def paragraph(split: Split, index: int, questions: int | None = None) -> dict[str, Any]:
    """A paragraph of SQuAD: context, and qas with id, question and answers; `questions` asks at most so many."""
    draw, there = Random(f"life sketch {split} {index}"), values(split)
    female = draw.random() < 0.5
    first = draw.choice(there["given_f" if female else "given_m"])
    name = f"{first} {draw.choice(there['family'])}"
    subject, possessive, object_ = ("she", "her", "her") if female else ("he", "his", "him")
    facts = draw.sample(sorted(FACT), draw.choice(FACTS))
    context, asked, taken = "", [], {name}
    for number, fact in enumerate(facts):
        kind, wordings, asking = FACT[fact]
        value = draw.choice([word for word in there[kind] if word not in taken])
        taken.add(value)
        way = draw.choice(WORDINGS[split])  # the question asks for what its wording says
        wording, question = wordings[way], asking[way]
        # The first sentence has the full name; later ones a pronoun, or now and then the first name.
        named = name if number == 0 else first if draw.random() < 0.25 else ""
        words = {
            "S": subject.capitalize(), "s": subject, "P": possessive.capitalize(), "p": possessive, "O": object_, "v": value,
            "a": with_article(value),
        }  # fmt: skip
        if named:  # once in a sentence: what refers back to it is a pronoun
            place = re.search(r"{([SsPp])}", wording)
            assert place is not None, wording
            words[place[1]] = f"{named}'s" if place[1] in "Pp" else named
        sentence = wording.format(**words)
        # What stands before the value holds no braces, so that its place is found where it was put in.
        before = wording.replace("{a}", "{v}" if words["a"] == value else f"{words['a'].split()[0]} {{v}}").split(
            "{v}"
        )[0]
        start = len(context) + len(before.format(**words))
        asked.append((fact, question.format(n=name), value, start))
        context += f"{sentence} "
        if draw.random() < 0.1:
            filler = draw.choice(FILLERS).format(S=subject.capitalize(), O=object_)
            context += f"{filler} "
    draw.shuffle(asked)
    qas = [
        {"id": f"{split}-{index}-{fact}", "question": text, "answers": [{"text": value, "answer_start": start}]}
        for fact, text, value, start in asked[:questions]
    ]
    return {"context": context.rstrip(), "qas": qas}


def squad(split: Split, paragraphs: int, questions: int | None = None, first: int = 0) -> dict[str, Any]:
    """Paragraphs `first` and on of the split, as a SQuAD file holds them."""
    entries = [paragraph(split, index, questions) for index in range(first, first + paragraphs)]
    return {"version": "1.1", "data": [{"title": "Life sketches", "paragraphs": entries}]}


def fingerprint() -> str:
    """SHA-256 of names, values and wordings."""
    material = [sorted(values(split).items()) for split in SPLITS], sorted(FACT.items()), FILLERS, SHARES, FACTS
    return hashlib.sha256(repr(material).encode()).hexdigest()
