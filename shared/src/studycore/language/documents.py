"""Documents of a file that a user brings: .txt, .jsonl, .json or .parquet.

texts = read_documents("corpus.jsonl", "text")
"""

import unicodedata
from itertools import groupby
from pathlib import Path
from typing import Any

from studycore.errors import UserError
from studycore.files import parse_json, read_text
from studycore.foreign import check_file, reading

BYTE_ORDER_MARK = "\ufeff"
SEPARATOR = "<|endoftext|>"
"""What stands between the documents of a text file; without it, empty lines do."""


def read_documents(
    source: str, column: str = "text", flag: str = "--dataset", column_flag: str | None = None
) -> list[str]:
    """The documents of a file that are not blank, in its order.

    UserError begins with `flag` and names line and reason; `column_flag` is the setting of the column, where it can be set.
    """
    path = Path(source)
    readers = {".txt": _read_txt, ".jsonl": _read_json, ".json": _read_json, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise UserError(f"{flag}: {source} is no .txt, .jsonl or .parquet file; give one of these")
    check_file(path)
    mend = f"set {column_flag}, or mend the file" if column_flag else "mend the file"
    return [text for text in readers[path.suffix](path, column, f"{flag}: {path}", mend) if text.strip()]


def document(row: Any, column: str, where: str, mend: str = "name another column", reason: str = "") -> str:
    """The text of one row; empty where it is null. UserError names the row and what stands there instead."""
    value = row.get(column, "") if isinstance(row, dict) else row
    if isinstance(value, str) and not _is_text(value):
        raise UserError(f"{where} holds half a character (an escape such as \\ud83d without its other half); {mend}")
    if isinstance(row, str):
        return row.removeprefix(BYTE_ORDER_MARK)
    if isinstance(row, dict):
        if column in row and (value is None or isinstance(value, str)):
            return (value or "").removeprefix(BYTE_ORDER_MARK)
        reason = f"it is {_kind(value)}" if column in row else f"there are {', '.join(map(repr, row)) or 'no keys'}"
    reason = reason or f"the row is {_kind(row)}"
    raise UserError(f"{where} has no text under '{column}' ({reason}); {mend}")


def _is_text(text: str) -> bool:
    """Whether UTF-8 can write it: JSON can also hold halves of a pair of surrogates, which are no characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_read(text: str) -> str:
    """The words, for telling whether two texts are the same to a reader: equal whatever the spacing, marks that no reader
    sees, and how accents are composed."""
    return " ".join(unicodedata.normalize("NFC", text.translate(UNSEEN)).split())


UNSEEN = {0xFEFF: None, 0x200B: None}
"""Byte order mark, zero width space."""


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {bool: "a truth value", int: "a number", float: "a number", list: "an array", dict: "an object"}
    return names.get(type(value), "null" if value is None else f"a {type(value).__name__}")


def _lines(path: Path) -> list[str]:
    """Of a text file: they end at \\n or \\r\\n and nowhere else. Files that were put together have a mark before each."""
    lines = read_text(path, newline="").split("\n")
    return [line.removeprefix(BYTE_ORDER_MARK).removesuffix("\r") for line in lines]


def _read_txt(path: Path, column: str, where: str, mend: str) -> list[str]:
    """Documents between <|endoftext|>, or else between empty lines, which may hold blanks."""
    lines = _lines(path)
    if any(SEPARATOR in line for line in lines):
        return "\n".join(lines).split(SEPARATOR)
    return ["\n".join(part) for empty, part in groupby(lines, key=lambda line: not line.strip()) if not empty]


def _read_json(path: Path, column: str, where: str, mend: str) -> list[str]:
    """The objects (or strings) of a JSON array, or one on each line."""
    lines = _lines(path)
    text = "\n".join(lines).strip()
    if text.startswith("[") or path.suffix == ".json":
        whole, _ = _parsed(text)
        if isinstance(whole, list):
            return [document(row, column, f"{where} item {n}", mend) for n, row in enumerate(whole, start=1)]
        if whole is not None:
            return [document(whole, column, where, mend)]
    texts = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row, reason = _parsed(line)
            texts.append(document(row, column, f"{where} line {number}", mend, reason))
    return texts


def _parsed(text: str) -> tuple[Any, str]:
    """(the value, "") or (None, why it is no JSON). Control characters may stand in strings as they are."""
    try:
        return parse_json(text, strict=False), ""
    except (ValueError, RecursionError) as error:
        return None, f"it is not valid JSON: {error}"


def _read_parquet(path: Path, column: str, where: str, mend: str) -> list[str]:
    import pyarrow as pa
    from pyarrow import parquet

    with reading(where, "a Parquet file"):
        schema = parquet.read_schema(path)
        if column not in schema.names:
            raise UserError(f"{where} has no column '{column}', only {', '.join(schema.names)}; {mend}")
        kind = schema.field(column).type
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(
            is_of(values)
            for is_of in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
        ):
            raise UserError(f"{where}: its column '{column}' is of type {kind}, no text; {mend}")
        return [
            document(text or "", column, where, mend)
            for text in parquet.read_table(path, columns=[column])[column].to_pylist()
        ]
