"""Guards around reading files that others wrote: what is wrong becomes one sentence with the file, the reason and the mend.

check_file(path)
with reading(path, "a PyTorch file"):
    tensors = torch.load(path, weights_only=True)
check_tensors(tensors, path)
"""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from studycore.errors import Stopped, UserError

if TYPE_CHECKING:
    from torch import Tensor

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that stands for a large one until `git lfs pull` brings it."""
ZIP_ENTRY = b"PK\x03\x04"
"""How a zip archive begins: a .pt file of torch.save is one."""
PRECISIONS = ("float16", "bfloat16", "float32", "float64")
"""Of numbers with a fraction; float8 and quantised weights mean nothing without scales that lie elsewhere."""


MEND = "fetch it anew, or check what wrote it"


@contextmanager
def reading(path: str | Path, what: str, mend: str = MEND) -> Iterator[None]:
    """Any exception of a loader becomes a UserError: the file can't be read as `what`, and why."""
    try:
        yield
    except (UserError, Stopped):
        raise
    except Exception as error:
        said = "".join(c for c in " ".join(str(error).split()) if c.isprintable())
        reason = f"{type(error).__name__}: {said[:160]}".rstrip(" .:")
        raise UserError(f"{path}: cannot be read as {what} ({reason}); {mend}") from error


def check_file(path: str | Path) -> None:
    """UserError unless it is a file that can be read, is not empty, and no git-lfs pointer; and if it is a zip archive,
    every entry must match the checksum that the archive holds of it, which torch.load does not look at.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder and no file; give one of the files in it")
    try:
        with open(path, "rb") as file:
            beginning = file.read(len(LFS_POINTER))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; check the name") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check what it is and whose") from None
    if not beginning:
        raise UserError(f"{path}: is empty; fetch it anew")
    if beginning == LFS_POINTER:
        raise UserError(f"{path}: is a git-lfs pointer and not the file itself; fetch that with `git lfs pull`")
    if beginning.startswith(ZIP_ENTRY):
        _check_archive(path)


def _check_archive(path: Path) -> None:
    with reading(path, "a zip archive"), zipfile.ZipFile(path) as archive:
        # torch.save can be told to write none: then all of them are 0.
        has_checksums = any(entry.CRC for entry in archive.infolist())
        damaged = archive.testzip() if has_checksums else None
    if damaged is not None:
        raise UserError(f"{path}: is damaged: its entry {damaged} does not match its checksum; fetch it anew")


def check_tensors(tensors: Mapping[str, "Tensor"], path: str | Path) -> None:
    """UserError names the first tensor that is not dense, has no values, has an unknown precision, or is not finite.

    Whole numbers and truth values may stand among the tensors.
    """
    import torch

    for name, tensor in tensors.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        if tensor.is_meta:
            raise UserError(
                f"{path}: {name} has a shape and no values (a meta tensor); save it with its weights loaded"
            )
        if tensor.layout != torch.strided or tensor.is_nested:
            layout = str(tensor.layout).removeprefix("torch.")
            raise UserError(f"{path}: {name} is not dense ({layout}); save it as a dense tensor")
        if tensor.dtype.is_complex or tensor.is_quantized or (tensor.is_floating_point() and kind not in PRECISIONS):
            raise UserError(f"{path}: {name} is of type {kind}; convert it to one of {', '.join(PRECISIONS)}")
        # The extremes are not finite if anything is, and need no second tensor of this size.
        if tensor.is_floating_point() and tensor.numel() and not all(end.isfinite() for end in tensor.aminmax()):
            raise UserError(f"{path}: {name} holds NaN or infinity; use an earlier checkpoint")
