"""WordNet 3.0 for the studies: finding or fetching it, its glosses and examples as text, and its noun hierarchy.

Needs the extra studycore[lm] (nltk). WordNet's own files are never part of this repository; Princeton's licence, under
which texts made from them are used, is in models/wordnet-lm/WORDNET-LICENSE.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from studycore.errors import UserError

DEBIAN = Path("/usr/share/wordnet")
"""Where Debian's package wordnet-base puts the database."""

FILES = tuple(f"{kind}.{pos}" for kind in ("data", "index") for pos in ("noun", "verb", "adj", "adv")) + tuple(
    f"{pos}.exc" for pos in ("noun", "verb", "adj", "adv")
)
LEXNAMES = [
    "adj.all",
    "adj.pert",
    "adv.all",
    "noun.Tops",
    "noun.act",
    "noun.animal",
    "noun.artifact",
    "noun.attribute",
    "noun.body",
    "noun.cognition",
    "noun.communication",
    "noun.event",
    "noun.feeling",
    "noun.food",
    "noun.group",
    "noun.location",
    "noun.motive",
    "noun.object",
    "noun.person",
    "noun.phenomenon",
    "noun.plant",
    "noun.possession",
    "noun.process",
    "noun.quantity",
    "noun.relation",
    "noun.shape",
    "noun.state",
    "noun.substance",
    "noun.time",
    "verb.body",
    "verb.change",
    "verb.cognition",
    "verb.communication",
    "verb.competition",
    "verb.consumption",
    "verb.contact",
    "verb.creation",
    "verb.emotion",
    "verb.motion",
    "verb.perception",
    "verb.possession",
    "verb.social",
    "verb.stative",
    "verb.weather",
    "adj.ppl",
]
"""Lexicographer files by number, as the manual page lexnames(5WN) lists them; Debian ships no file of them."""

Split = Literal["train", "reserve", "validation"]


@dataclass(frozen=True)
class Document:
    """One synset as text."""

    name: str
    """The synset's, such as dog.n.01; for what it is in WordNet."""
    text: str
    split: Split


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
        found, todo = {name}, [name]
        while todo:
            new = [child for child in self.children.get(todo.pop(), ()) if child not in found]
            found.update(new)
            todo += new
        return found

    def instances_below(self, name: str) -> set[str]:
        """Every instance of `name` or of a kind below it."""
        return {instance for kind in self.closure(name) for instance in self.instances.get(kind, ())}


def find() -> Path | None:
    """A folder with WordNet that nltk can read: one on nltk's data path, or made readable from Debian's; or None."""
    import nltk

    for root in map(Path, nltk.data.path):
        folder = root / "corpora" / "wordnet"
        # Absent in an unpacked archive or a folder of somebody else's: then it is not one that can be read.
        if all((folder / name).is_file() for name in (*FILES, "lexnames", "index.sense")):
            return folder
    return _install(DEBIAN) if _is_database(DEBIAN) else None


def fetch(target: Path | None = None) -> tuple[Path, str]:
    """(folder, where it came from): what is there, Debian's package installed or downloaded, or nltk's own download.

    `target` is an nltk data folder to put it in; by default the first one that can be written. UserError when there is
    no way.
    """
    import nltk

    if target is not None:
        nltk.data.path.insert(0, str(target))
    there = target / "corpora" / "wordnet" if target else None
    if (found := find()) and (there is None or found == there):
        return found, "it was there"
    if _is_database(DEBIAN):
        return _install(DEBIAN, target), f"from {DEBIAN}"
    with tempfile.TemporaryDirectory() as scratch:
        if shutil.which("apt-get") and shutil.which("dpkg-deb"):
            command = "apt-get download wordnet-base && dpkg-deb --extract wordnet-base_*.deb ."
            done = subprocess.run(["sh", "-c", command], cwd=scratch, capture_output=True)
            if done.returncode == 0:
                return _install(Path(scratch) / DEBIAN.relative_to("/"), target), "from Debian's package wordnet-base"
        folder = _writable_data_folder(target)
        if nltk.download("wordnet", download_dir=str(folder), quiet=True):
            shutil.unpack_archive(folder / "corpora" / "wordnet.zip", folder / "corpora")
            return folder / "corpora" / "wordnet", "from nltk's download"
    raise UserError(
        "WordNet: neither Debian's package wordnet-base nor nltk's download can be reached; put WordNet 3.0 into "
        f"{folder / 'corpora' / 'wordnet'}, or set NLTK_DATA to the nltk data folder that holds it"
    )


def _is_database(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _writable_data_folder(target: Path | None) -> Path:
    import nltk

    for root in [target] if target else [Path(p) for p in nltk.data.path]:
        try:
            (root / "corpora").mkdir(parents=True, exist_ok=True)
            if os.access(root / "corpora", os.W_OK):
                return root
        except OSError:
            continue
    raise UserError(
        f"NLTK_DATA: none of {', '.join(nltk.data.path)} can be written; set NLTK_DATA to a folder that can"
    )


def _install(database: Path, target: Path | None = None) -> Path:
    """Copies the files (nltk refuses links) and adds the two that Debian leaves out; they appear all at once."""
    folder = _writable_data_folder(target) / "corpora" / "wordnet"
    scratch = Path(tempfile.mkdtemp(prefix=".wordnet-", dir=folder.parent))
    for file in [*FILES, "cntlist.rev"]:
        if (database / file).is_file():
            shutil.copyfile(database / file, scratch / file)
    category = {"noun": 1, "verb": 2, "adj": 3, "adv": 4}
    lines = [f"{number:02d}\t{name}\t{category[name.split('.')[0]]}\n" for number, name in enumerate(LEXNAMES)]
    (scratch / "lexnames").write_text("".join(lines))
    (scratch / "index.sense").touch()  # nltk opens it; empty, only its look-up by sense key is lost
    scratch.chmod(0o755)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(scratch, folder)
    return folder


@lru_cache(maxsize=1)
def corpus() -> Any:
    """nltk's WordNetCorpusReader over the folder found. UserError when there is none."""
    try:
        import nltk
        from nltk.corpus.reader import WordNetCorpusReader
    except ImportError:
        raise UserError("WordNet: nltk is not installed; `pip install 'studycore[lm]'`") from None
    folder = find()
    if folder is None:
        raise UserError("WordNet: not found on nltk's data path (NLTK_DATA) nor from Debian; `make setup` fetches it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the multilingual wordnets are not there
        return WordNetCorpusReader(nltk.data.find("corpora/wordnet"), None)


@dataclass(frozen=True)
class _Entry:
    """What one pass over nltk's reader takes from a synset."""

    name: str
    pos: str
    lemmas: tuple[str, ...]
    gloss: str
    parents: tuple[str, ...]
    children: tuple[str, ...]
    instances: tuple[str, ...]


@lru_cache(maxsize=1)
def _entries() -> tuple[_Entry, ...]:
    def names(related: list[Any]) -> tuple[str, ...]:
        return tuple(sorted(synset.name() for synset in related))

    found = []
    for pos in "nvar":
        for s in corpus().all_synsets(pos):
            noun = pos == "n"
            found.append(
                _Entry(
                    name=s.name(),
                    pos=pos,
                    lemmas=tuple(lemma.replace("_", " ") for lemma in s.lemma_names()),
                    gloss=s.definition() + "".join(f'; "{example}"' for example in s.examples()),
                    parents=names(s.hypernyms()) if noun else (),
                    children=names(s.hyponyms()) if noun else (),
                    instances=names(s.instance_hyponyms()) if noun else (),
                )
            )
    return tuple(sorted(found, key=lambda entry: entry.name))


@lru_cache(maxsize=1)
def documents() -> tuple[Document, ...]:
    """Every synset as text, " dog, domestic dog: a member of the genus ...; "the dog barked all night"", by name.

    Starts with a space, so that its first word is the token that it is inside a sentence. Splits (80 % train, 15 %
    reserve, 5 % validation) go by a hash of definition and examples: equal glosses are in one split, and a synset's
    split does not depend on the others.
    """
    return tuple(Document(e.name, f" {', '.join(e.lemmas)}: {e.gloss}", split_of(e.gloss)) for e in _entries())


def split_of(gloss: str) -> Split:
    """Where a gloss belongs."""
    share = int.from_bytes(hashlib.sha256(gloss.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.80 else "reserve" if share < 0.95 else "validation"


@lru_cache(maxsize=1)
def noun_hierarchy() -> NounHierarchy:
    """The 82,115 noun synsets."""
    nouns = [entry for entry in _entries() if entry.pos == "n"]
    return NounHierarchy(
        parents={e.name: e.parents for e in nouns},
        children={e.name: e.children for e in nouns},
        instances={e.name: e.instances for e in nouns},
        lemmas={e.name: e.lemmas for e in nouns},
    )


@lru_cache(maxsize=1)
def word_counts() -> Mapping[str, int]:
    """How often each word (letters only, case kept) stands in the documents."""
    counts: Counter[str] = Counter()
    for document in documents():
        counts.update("".join(c if c.isalpha() else " " for c in document.text).split())
    return counts


def fingerprint() -> str:
    """sha256 over names, texts and splits of all documents."""
    digest = hashlib.sha256()
    for document in documents():
        digest.update(repr((document.name, document.text, document.split)).encode())
    return digest.hexdigest()


def main() -> None:
    """`python -m studycore.wordnet [FOLDER]`: fetches WordNet for the studies that read it (`make setup`, the images)."""
    parser = argparse.ArgumentParser(prog="python -m studycore.wordnet", description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="an nltk data folder to put it in")
    try:
        folder, origin = fetch(parser.parse_args().folder)
    except UserError as error:
        sys.exit(f"studycore.wordnet: error: {error}")
    print(f"WordNet is in {folder} ({origin})")


if __name__ == "__main__":
    main()
