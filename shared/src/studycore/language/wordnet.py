"""WordNet 3.0 for the studies: finding or fetching it, and its glosses and examples as text.

Needs the extra studycore[lm] (nltk). WordNet's own files are never part of this repository; Princeton's licence, under
which texts made from them are used, is in models/wordnet-lm/WORDNET-LICENSE.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from studycore.cli import exit_code
from studycore.errors import UserError
from studycore.files import cache_folder, sha256, write_json
from studycore.foreign import reading
from studycore.hashes import share_of

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


def find() -> Path | None:
    """A folder with WordNet that nltk can read: one on nltk's data path, or made readable from Debian's; or None."""
    return _present() or (_install(DEBIAN) if _is_database(DEBIAN) else None)


def fetch(target: Path | None = None) -> tuple[Path, str]:
    """(folder, where it came from): what is there, nltk's archive unpacked, Debian's package, or nltk's own download.

    `target` is an nltk data folder to put it in; by default the first one that can be written. UserError when there is
    no way.
    """
    nltk = _nltk()
    if target is not None:
        nltk.data.path.insert(0, str(target))
    if (present := _present()) and (target is None or present == target / "corpora" / "wordnet"):
        return present, "it was there"
    for archive in (Path(root) / "corpora" / "wordnet.zip" for root in nltk.data.path):
        if _can_see(archive):
            return _unpack(archive, target), f"from {archive}"
    if _is_database(DEBIAN):
        return _install(DEBIAN, target), f"from {DEBIAN}"
    reason = "apt-get is not there"
    with tempfile.TemporaryDirectory() as scratch:
        if shutil.which("apt-get") and shutil.which("dpkg-deb"):
            command = "apt-get download wordnet-base && dpkg-deb --extract wordnet-base_*.deb ."
            try:
                done = subprocess.run(["sh", "-c", command], cwd=scratch, capture_output=True, text=True, timeout=300)
            except subprocess.TimeoutExpired:
                reason = "apt-get got no answer"
            else:
                if done.returncode == 0:
                    package = Path(scratch) / DEBIAN.relative_to("/")
                    return _install(package, target), "from Debian's package wordnet-base"
                reason = f"apt-get says: {(done.stderr.strip().splitlines() or ['nothing'])[-1]}"
        if nltk.download("wordnet", download_dir=scratch, quiet=True):
            return _unpack(Path(scratch) / "corpora" / "wordnet.zip", target), "from nltk's download"
    raise UserError(
        f"WordNet: neither Debian's package wordnet-base ({reason}) nor nltk's download can be reached; put WordNet 3.0 "
        f"into {_free_root(target) / 'corpora' / 'wordnet'}, or set NLTK_DATA to the nltk data folder that holds it"
    )


def _nltk() -> Any:
    try:
        import nltk
    except ImportError:
        raise UserError("WordNet: nltk is not installed; `pip install 'studycore[lm]'`") from None
    return nltk


def _can_see(path: Path) -> bool:
    """A file that is there; what lies in a folder that may not be searched is not."""
    try:
        return path.is_file()
    except OSError:
        return False


def _present() -> Path | None:
    """The first whole WordNet on nltk's data path. Links that leave their root are passed over: nltk refuses them."""
    for root in map(Path, _nltk().data.path):
        folder = root / "corpora" / "wordnet"
        files = [folder / name for name in (*FILES, "lexnames", "index.sense")]
        if all(_can_see(file) and file.resolve().is_relative_to(root.resolve()) for file in files):
            return folder
    return None


def _is_database(folder: Path) -> bool:
    return all(_can_see(folder / name) for name in FILES)


def _free_root(target: Path | None) -> Path:
    """An nltk data folder that can be written and holds nothing named WordNet: what somebody put there stays."""
    roots = [target] if target else [Path(path) for path in _nltk().data.path]
    for root in roots:
        try:
            (root / "corpora").mkdir(parents=True, exist_ok=True)
            if os.access(root / "corpora", os.W_OK) and not os.path.lexists(root / "corpora" / "wordnet"):
                return root
        except OSError:
            continue
    raise UserError(
        f"NLTK_DATA: in {', '.join(map(str, roots))} nothing can be written, or an incomplete corpora/wordnet is in the "
        "way; remove that, or set NLTK_DATA to a folder that can be written"
    )


def _install(database: Path, target: Path | None = None) -> Path:
    """Copies the files (nltk refuses links) and adds the two that Debian leaves out; they appear all at once."""
    folder = _free_root(target) / "corpora" / "wordnet"
    scratch = Path(tempfile.mkdtemp(prefix=".wordnet-", dir=folder.parent))
    for file in [*FILES, "cntlist.rev", "lexnames", "index.sense"]:
        if (database / file).is_file():
            shutil.copyfile(database / file, scratch / file)
    if not (scratch / "lexnames").exists():
        category = {"noun": 1, "verb": 2, "adj": 3, "adv": 4}
        lines = [f"{number:02d}\t{name}\t{category[name.split('.')[0]]}\n" for number, name in enumerate(LEXNAMES)]
        (scratch / "lexnames").write_text("".join(lines), encoding="utf-8")
    # nltk opens index.sense; where it is empty, only looking up by sense key is lost.
    (scratch / "index.sense").touch()
    scratch.chmod(0o755)
    try:
        os.replace(scratch, folder)
    except OSError:
        shutil.rmtree(scratch)
        if _present() is None:
            raise
        # Another process was first; its copy is whole.
    return folder


def _unpack(archive: Path, target: Path | None) -> Path:
    """nltk's archive wordnet.zip, through a scratch folder."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            shutil.unpack_archive(archive, scratch)
        except (shutil.ReadError, OSError) as error:
            raise UserError(f"{archive}: cannot be unpacked ({error}); remove it") from None
        if not _is_database(Path(scratch) / "wordnet"):
            raise UserError(f"{archive}: holds no WordNet; remove it")
        return _install(Path(scratch) / "wordnet", target)


@lru_cache(maxsize=1)
def corpus() -> Any:
    """nltk's WordNetCorpusReader over the folder found. UserError when there is none."""
    nltk = _nltk()
    from nltk.corpus.reader import WordNetCorpusReader

    folder = folder_or_error()
    with reading_it(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the multilingual wordnets are not there
        return WordNetCorpusReader(nltk.data.FileSystemPathPointer(str(folder)), None)


def folder_or_error() -> Path:
    """UserError when WordNet is not there."""
    folder = find()
    if folder is None:
        raise UserError("WordNet: not found on nltk's data path (NLTK_DATA) nor from Debian; `make setup` fetches it")
    return folder


def reading_it() -> AbstractContextManager[None]:
    """Any exception of nltk's on a damaged database becomes a UserError."""
    return reading(f"WordNet: {find()}", "WordNet's database", "remove it, and `make setup` fetches it anew")


@lru_cache(maxsize=1)
def documents() -> tuple[Document, ...]:
    """Every synset as text, " dog, domestic dog: a member of the genus ...; "the dog barked all night"", by name.

    Starts with a space, so that its first word is the token that it is inside a sentence. Splits (80 % train, 15 %
    reserve, 5 % validation) go by a hash of definition and examples: glosses that are equal in both are in one split, and
    a synset's split does not depend on the others. (Where only the definition is the same, such as "attach to", splits
    may differ: 29 of the 5,893 validation documents. Definition and examples are as nltk parts them.)
    """
    folder = folder_or_error()
    with reading_it():
        digest = "".join(sha256(folder / name) for name in FILES)
    kept = cache_folder() / f"wordnet-{PARSING}-{hashlib.sha256(digest.encode()).hexdigest()[:16]}.json"
    if (documents_kept := _kept(kept)) is not None:
        return documents_kept
    collected = []
    with reading_it():
        for synset in corpus().all_synsets():
            gloss = synset.definition() + "".join(f'; "{example}"' for example in synset.examples())
            text = f" {', '.join(lemma.replace('_', ' ') for lemma in synset.lemma_names())}: {gloss}"
            collected.append(Document(synset.name(), text, split_of(gloss)))
    made = tuple(sorted(collected, key=lambda document: document.name))
    _keep(kept, made)
    return made


PARSING = 1
"""Raised when the documents that `documents` makes of the same database change: then those kept are of no use."""


def _kept(path: Path) -> tuple[Document, ...] | None:
    """The documents as an earlier process made them of the same files (nltk takes a while), if they are there and whole."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows, expected = content["documents"], content["sha256"]
        kept = tuple(Document(*row) for row in rows)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kept if _digest(kept) == expected else None


def _keep(path: Path, made: tuple[Document, ...]) -> None:
    """For the next process; where nothing can be written, it makes them again."""
    rows = [(document.name, document.text, document.split) for document in made]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"sha256": _digest(made), "documents": rows})
    except (OSError, UserError):
        return


def texts(split: Split) -> list[str]:
    """The documents' texts of one split, by name."""
    return [document.text for document in documents() if document.split == split]


@lru_cache(maxsize=1)
def nouns() -> frozenset[str]:
    """The words of all noun synsets, with spaces where WordNet writes underscores."""
    with reading_it():
        return frozenset(lemma.replace("_", " ") for s in corpus().all_synsets("n") for lemma in s.lemma_names())


def split_of(gloss: str) -> Split:
    """Where a gloss belongs."""
    share = share_of(gloss)
    return "train" if share < 0.80 else "reserve" if share < 0.95 else "validation"


def fingerprint() -> str:
    """sha256 over names, texts and splits of all documents."""
    return _digest(documents())


def _digest(of: Iterable[Document]) -> str:
    digest = hashlib.sha256()
    for document in of:
        digest.update(repr((document.name, document.text, document.split)).encode())
    return digest.hexdigest()


def main() -> int:
    """`python -m studycore.language.wordnet [FOLDER]`: fetches WordNet for the studies that read it (`make setup`, the images)."""
    parser = argparse.ArgumentParser(prog="python -m studycore.language.wordnet", description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="an nltk data folder to put it in")
    options = parser.parse_args()

    def act() -> None:
        folder, origin = fetch(options.folder)
        print(f"WordNet is in {folder} ({origin})")

    return exit_code("studycore.language.wordnet", act)


if __name__ == "__main__":
    sys.exit(main())
