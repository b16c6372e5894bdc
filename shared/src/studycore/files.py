"""Writing so that a crash leaves either the old file or the new one, and JSON without NaN."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studycore.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes | str | Iterable[bytes]) -> None:
    """Replaces `path` as a whole, durably; of parts, once all are there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # A name in another encoding than UTF-8 holds what UTF-8 cannot: it is written as an escape.
    encoded = data.encode(errors="backslashreplace") if isinstance(data, str) else data
    try:
        with open(temporary, "wb") as file:
            file.writelines([encoded] if isinstance(encoded, bytes) else encoded)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def copied(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Copies on the CPU, each in one piece, without gradients."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"]) -> None:
    """A safetensors file of copies on the CPU. OSError when it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    copies = copied(tensors)
    size = sum(tensor.nbytes for tensor in copies.values())
    try:
        save_file(copies, path)
    except SafetensorError as error:  # which is the library's for whatever the system says
        full = shutil.disk_usage(path.parent).free < size
        number = errno.ENOSPC if full else errno.EIO
        raise OSError(number, f"cannot be written ({os.strerror(number) if full else error})", str(path)) from None


def write_json(path: Path, value: Any) -> None:
    """Atomic; ValueError for NaN or infinity."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """UserError when it is missing, can't be read or is not JSON, or when a key stands twice in one of its objects."""
    try:
        return parse_json(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not valid JSON ({error}); restore it or start the run again") from None


def parse_json(text: str, strict: bool = True) -> Any:
    """The value that a JSON text holds. ValueError where it is none, and for a key that stands twice in one object, of
    which the standard library takes the last; with `strict` also for control characters within strings."""
    return json.loads(text, strict=strict, object_pairs_hook=_each_key_once)


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"'{twice}' stands there twice in one object")
    return values


def cache_folder() -> Path:
    """Where the studies keep what can be made or fetched again: studycore in XDG_CACHE_HOME, by default in ~/.cache."""
    named = os.environ.get("XDG_CACHE_HOME")  # by its specification, a relative path is not heeded
    return (Path(named) if named and Path(named).is_absolute() else Path.home() / ".cache") / "studycore"


LOCAL = (".txt", ".jsonl", ".json", ".parquet")
"""What names of files end in that no hub has."""


def check_local(flag: str, name: str) -> None:
    """UserError for what can only be a local path (./x, /x, ~/x, x.jsonl) and is not there: no hub is asked for it."""
    if (name.startswith((".", "/", "~")) or Path(name).suffix in LOCAL) and not Path(name).exists():
        whence = (
            "" if Path(name).is_absolute() else ", which is meant from where the command is called or the run began"
        )
        raise UserError(f"{flag}: '{name}': there is no such file or folder; check the path{whence}")


def check_output_file(path: str | Path, flag: str = "--output", ours: Collection[str] = ()) -> None:
    """Makes the folder of the file that the work will end with. UserError when the file could not be written there.

    `ours`: keys of the JSON object that will be written. Then a file that is there is replaced only if it is empty or holds
    such an object, from an earlier call; any other is somebody's, and a UserError.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{flag}: '{path}' is a folder; name a file in it")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{flag}: '{path}' is a link or a device, and would be replaced; name an ordinary file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag}: '{path}' cannot be written ({error.strerror}); choose another place") from None
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UserError(f"{flag}: '{path}' cannot be written; choose another place, or change its rights")
    if ours and path.is_file() and path.stat().st_size:
        try:
            held = read_json(path)
        except UserError:
            held = None
        if not (isinstance(held, dict) and set(ours) <= set(held)):
            raise UserError(
                f"{flag}: '{path}' is there and no earlier output of this command; move it, or name another"
            )


def read_text(path: Path, newline: str | None = None) -> str:
    """A file in UTF-8, without its byte order mark; `newline` as for open: None makes every end of a line a \\n.

    UserError when it is missing, can't be read or is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            text = file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; check the name") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check what it is and whose") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no text in UTF-8 ({error.reason}); restore it or save it as UTF-8") from None
    if "\0" in text:  # another encoding without its mark, or what a crash left of a file
        raise UserError(f"{path}: holds NUL bytes, as UTF-16 does and damaged files do; restore it or save it as UTF-8")
    return text


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
