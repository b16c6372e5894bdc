"""WordNet's nouns as a hierarchy of concepts."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from studycore.errors import UserError
from studycore.language import wordnet


@dataclass(frozen=True)
class NounHierarchy:
    """WordNet's nouns as a directed acyclic graph. Instances (Paris) are kept apart from kinds (city)."""

    parents: Mapping[str, tuple[str, ...]]
    """Synset name -> its direct hypernyms; several for some 1,400 synsets, none for the root and the instances."""
    children: Mapping[str, tuple[str, ...]]
    """Synset name -> its direct hyponyms, instances not included."""
    instances: Mapping[str, tuple[str, ...]]
    """Synset name -> its direct instances."""
    lemmas: Mapping[str, tuple[str, ...]]
    """Synset name -> its words, with spaces where WordNet writes underscores."""

    def closure(self, name: str) -> set[str]:
        """`name` and every kind below it. UserError for an unknown name."""
        if name not in self.lemmas:
            raise UserError(f"'{name}' is no noun synset of WordNet; names look like dog.n.01")
        below, todo = {name}, [name]
        while todo:
            new = [child for child in self.children[todo.pop()] if child not in below]
            below.update(new)
            todo += new
        return below


@lru_cache(maxsize=1)
def noun_hierarchy() -> NounHierarchy:
    """The 82,115 noun synsets, by name."""

    def names(related: list[Any]) -> tuple[str, ...]:
        return tuple(sorted(synset.name() for synset in related))

    with wordnet.reading_it():
        synsets = sorted(wordnet.corpus().all_synsets("n"), key=lambda synset: synset.name())
        return NounHierarchy(
            parents={s.name(): names(s.hypernyms()) for s in synsets},
            children={s.name(): names(s.hyponyms()) for s in synsets},
            instances={s.name(): names(s.instance_hyponyms()) for s in synsets},
            lemmas={s.name(): tuple(lemma.replace("_", " ") for lemma in s.lemma_names()) for s in synsets},
        )
