"""Concepts from WordNet's nouns: words that are single tokens, parents and their children, prompts.

WordNet is a directed acyclic graph; a child is one of the nearest kinds below its parent that have enough words, and the
path that led to it is recorded. Instances (Paris) are no kinds. Words that belong to two chosen siblings or two chosen
parents are left out, so that a word has one label.
"""

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from polytope_hsae.config import AGAIN, GeometryConfig
from studycore.errors import UserError
from studycore.files import read_json, read_text, write_json
from studycore.foreign import reading
from studycore.streams import generator

ESTIMATE, CHOOSE, TEST = 0, 1, 2
"""The parts of a concept's words: for estimating vectors, for choosing latents, for testing."""
TEMPLATES = (
    "She told me about the", "They were talking about the", "He had never seen the", "We know little about the",
    "Everyone had heard of the", "It was all about the", "There was nothing like the", "I had always wanted the",
    "Nobody had thought of the", "They had forgotten about the", "He would not speak of the", "She kept thinking of the",
    "You should have seen the", "At last we came upon the", "None of them knew the", "Then somebody mentioned the",
)  # fmt: skip
"""What stands before a concept's word; one that holds a word of a concept itself is not used."""
LARGEST = 0.05
"""A parent holds at most this share of all words: entity and the like are no concepts to compare."""

Words = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Tokens for estimating, choosing, testing."""


@dataclass(frozen=True)
class Child:
    """A concept below a parent."""

    name: str
    about: str
    words: Words


@dataclass(frozen=True)
class Parent:
    """A concept with its children; `words` are those that no child has."""

    name: str
    about: str
    words: Words
    children: tuple[Child, ...]
    paths: tuple[tuple[str, ...], ...]
    """Of each child, the synsets from the parent to it."""

    def part(self, which: int, without: int | None = None) -> list[int]:
        """All words of a part, those of the children too, but for the child `without`."""
        others = [child.words[which] for i, child in enumerate(self.children) if i != without]
        return [*self.words[which], *(token for tokens in others for token in tokens)]


@dataclass(frozen=True)
class Hierarchy:
    """Parents and the text of their tokens."""

    parents: tuple[Parent, ...]
    text: Mapping[int, str]

    def labels(self, part: int | None = None) -> dict[int, tuple[int, int]]:
        """Token -> (parent, child), the child being the number of children for a word that is no child's."""
        parts = range(3) if part is None else [part]
        labels: dict[int, tuple[int, int]] = {}
        for p, parent in enumerate(self.parents):
            for which in parts:
                labels |= dict.fromkeys(parent.words[which], (p, len(parent.children)))
                for c, child in enumerate(parent.children):
                    labels |= dict.fromkeys(child.words[which], (p, c))
        return labels

    def save(self, path: Path) -> None:
        """JSON, which `load_hierarchy` reads."""
        write_json(path, {"parents": [asdict(p) for p in self.parents], "text": {str(k): v for k, v in self.text.items()}})  # fmt: skip


def load_hierarchy(path: Path) -> Hierarchy:
    """What `save` wrote. UserError for another file."""

    def words(values: Any) -> Words:
        estimate, choose, test = (tuple(part) for part in values)
        return estimate, choose, test

    stored = read_json(path)
    with reading(path, "concepts", AGAIN):
        parents = tuple(
            Parent(
                p["name"], p["about"], words(p["words"]),
                tuple(Child(c["name"], c["about"], words(c["words"])) for c in p["children"]),
                tuple(tuple(path) for path in p["paths"]),
            )
            for p in stored["parents"]
        )  # fmt: skip
        return Hierarchy(parents, {int(k): v for k, v in stored["text"].items()})


def split_words(tokens: Iterable[int], shares: Sequence[float], seed: int, name: str) -> Words:
    """The tokens in three parts by shares, drawn by (seed, name); each has one where there are three."""
    ordered = sorted(tokens)
    order = torch.randperm(len(ordered), generator=generator(seed, "words", name)).tolist()
    drawn = [ordered[i] for i in order]
    last = max(1, round(shares[2] * len(drawn)))
    middle = max(1, round(shares[1] * len(drawn)))
    return tuple(drawn[last + middle :]), tuple(drawn[last : last + middle]), tuple(drawn[:last])


# ------------------------------------------------------------------------------------------------------- WordNet's words
@lru_cache(maxsize=1)
def irregular_plurals() -> dict[str, str]:
    """Base -> plural, from WordNet's own list of exceptions."""
    from studycore.language import wordnet

    lines = read_text(wordnet.folder_or_error() / "noun.exc").splitlines()
    return {parts[1]: parts[0] for parts in map(str.split, reversed(lines)) if len(parts) == 2}


def plural(word: str) -> str:
    """By WordNet's exceptions, else by the rules of spelling."""
    if word in irregular_plurals():
        return irregular_plurals()[word]
    if re.search(r"(s|x|z|ch|sh)$", word):
        return f"{word}es"
    return f"{word[:-1]}ies" if re.search(r"[^aeiou]y$", word) else f"{word}s"


def surface_forms(word: str) -> list[str]:
    """Plain, capitalised, plural, both."""
    forms = (word, word[:1].upper() + word[1:], plural(word), plural(word)[:1].upper() + plural(word)[1:])
    return list(dict.fromkeys(forms))


def single_tokens(tokenizer: Any, words: Iterable[str]) -> dict[str, list[int]]:
    """Word -> tokens of its forms that are one token after a space; words without one are left out."""
    forms = {word: surface_forms(word) for word in sorted(set(words)) if " " not in word}
    # A form that no token spells is not one; the tokenizer says whether it makes that token of the others.
    spelt = {tokenizer.decode([i]).strip() for i in range(len(tokenizer))}
    flat = [(word, form) for word, group in forms.items() for form in group if form in spelt]
    tokens: dict[str, list[int]] = {}
    for start in range(0, len(flat), 65536):
        part = flat[start : start + 65536]
        for (word, form), ids in zip(
            part, tokenizer([f" {form}" for _, form in part], add_special_tokens=False)["input_ids"], strict=True
        ):
            if len(ids) == 1 and tokenizer.decode(ids).strip() == form:
                tokens.setdefault(word, []).append(ids[0])
    return tokens


def tokens_of_synsets(tokenizer: Any, senses: str) -> dict[str, set[int]]:
    """Noun synset -> single tokens of its own words and of all kinds below it.

    With `senses` "first" a word counts for the synset of its most frequent sense alone.
    """
    from studycore.language import wordnet
    from studycore.language.noun_hierarchy import noun_hierarchy

    nouns = noun_hierarchy()
    tokens = single_tokens(tokenizer, (lemma for lemmas in nouns.lemmas.values() for lemma in lemmas))
    corpus = wordnet.corpus()

    @cache
    def first(word: str) -> str:
        synsets = corpus.synsets(word, "n")
        return synsets[0].name() if synsets else ""

    instances = {name for group in nouns.instances.values() for name in group}
    own: dict[str, set[int]] = {}
    for name, lemmas in nouns.lemmas.items():
        counted = [w for w in lemmas if w in tokens and (senses == "all" or first(w) == name)]
        own[name] = set() if name in instances else {token for word in counted for token in tokens[word]}
    tokens_below: dict[str, set[int]] = {}

    def below(name: str) -> set[int]:
        if name not in tokens_below:
            tokens_below[name] = own[name].union(*(below(child) for child in nouns.children[name]))
        return tokens_below[name]

    for name in nouns.lemmas:
        below(name)
    return tokens_below


def choose_hierarchy(tokenizer: Any, config: GeometryConfig) -> tuple[Hierarchy, dict[str, int]]:
    """(the hierarchy, counts of what qualified). UserError when fewer than two parents qualify."""
    from studycore.language import wordnet
    from studycore.language.noun_hierarchy import noun_hierarchy

    nouns, tokens = noun_hierarchy(), tokens_of_synsets(tokenizer, config.senses)

    @cache
    def above(name: str) -> frozenset[str]:
        """The synset and all kinds that it is one of, along every path."""
        return frozenset({name}).union(*(above(parent) for parent in nouns.parents[name]))

    def related(one: str, other: str) -> bool:
        """Whether one is above the other, or they are the same."""
        return one in above(other) or other in above(one)

    least = config.min_vocab_count
    qualified = {name for name, ids in tokens.items() if len(ids) >= least}
    every = set().union(*tokens.values())
    counts = {"synsets": len(qualified), "words": len(every)}

    def nearest(name: str) -> dict[str, tuple[str, ...]]:
        """The nearest qualified kinds below, each with its path."""
        paths: dict[str, tuple[str, ...]] = {}
        todo: deque[tuple[str, tuple[str, ...]]] = deque((child, (name, child)) for child in nouns.children[name])
        seen = {name}
        while todo:
            current, path = todo.popleft()
            if current in seen:
                continue
            seen.add(current)
            if current in qualified and len(tokens[current]) <= 0.8 * len(tokens[name]):
                paths[current] = path
            else:
                todo.extend((child, (*path, child)) for child in nouns.children[current])
        return paths

    def family(name: str, taken: set[int]) -> list[tuple[str, tuple[str, ...], set[int]]]:
        """Children with their paths and the tokens that neither siblings nor other parents have."""
        children = nearest(name)
        members: list[tuple[str, tuple[str, ...], set[int]]] = []
        for child, path in children.items():
            siblings = [tokens[other] for other in children if other != child and not related(child, other)]
            own = tokens[child].difference(taken, *siblings)
            if len(own) >= least and not any(related(child, kept) for kept, _, _ in members):
                members.append((child, path, own))
        return sorted(members, key=lambda item: (-len(item[2]), item[0]))[: config.max_children_per_parent]

    candidates = {s: family(s, set()) for s in qualified if len(tokens[s]) <= LARGEST * len(every)}
    order = sorted(
        candidates, key=lambda s: (-min(len(candidates[s]), config.max_children_per_parent), -len(tokens[s]), s)
    )
    chosen: list[Parent] = []
    taken: set[int] = set()
    for name in order:
        if len(chosen) == config.parents:
            break
        if len(candidates[name]) < 2 or any(related(name, other.name) for other in chosen):
            continue
        children = family(name, taken)
        if len(children) < 2:
            continue
        of_children = set().union(*(own for _, _, own in children))
        rest = tokens[name] - taken - set().union(*(tokens[child] for child, _, _ in children))
        if len(rest) < 3:
            continue
        taken |= tokens[name]
        about = wordnet.corpus().synset(name).definition()
        assert not of_children & rest
        chosen.append(
            Parent(
                name, about, split_words(rest, config.split, config.seed, name),
                tuple(Child(c, wordnet.corpus().synset(c).definition(), split_words(own, config.split, config.seed, c)) for c, _, own in children),
                tuple(path for _, path, _ in children),
            )
        )  # fmt: skip
    if len(chosen) < 2:
        raise UserError(
            f"min_vocab_count: {least} words a concept leave {len(chosen)} parents with two children or more; lower it"
        )
    hierarchy = Hierarchy(tuple(chosen), {})
    text = {token: tokenizer.decode([token]).strip() for token in hierarchy.labels()}
    counts |= {"parents": len(chosen), "children": sum(len(p.children) for p in chosen)}
    return Hierarchy(tuple(chosen), text), counts


@dataclass(frozen=True)
class Prompt:
    """A text whose last token is a word of a concept, which labels that token's activation."""

    before: str
    word: int
    """Token, after a space."""
    part: int
    """ESTIMATE, CHOOSE or TEST: that of the word, and so the split of the activation."""


def prompts(hierarchy: Hierarchy, per_concept: int, seed: int) -> list[Prompt]:
    """`per_concept` for each child, its parts in proportion to their words; no two alike.

    There are fewer where a part's words with all templates are fewer. UserError when every template has a concept's word.
    """
    known = {text.lower() for text in hierarchy.text.values()}
    templates = [template for template in TEMPLATES if not known & set(template.lower().split())]
    if not templates:
        raise UserError("concepts.prompts_per_concept: every template of a prompt has a word of a concept; give 0, or fewer concepts")  # fmt: skip
    chosen = []
    for parent in hierarchy.parents:
        for child in parent.children:
            total = sum(map(len, child.words))
            draw, words, made = generator(seed, "prompts", child.name), 0, 0
            for part, tokens in enumerate(child.words):
                words += len(tokens)
                count, made = round(per_concept * words / total) - made, round(per_concept * words / total)
                order = torch.randperm(len(tokens) * len(templates), generator=draw)[:count].tolist()
                chosen += [Prompt(templates[i % len(templates)], tokens[i // len(templates)], part) for i in order]
    return chosen
