"""Documents of files of every kind: lines, marks, columns, and what is said of rows without text."""

import json

import pytest

from studycore.errors import UserError
from studycore.language.documents import as_read, read_documents

TEXTS = [f"w{i} w{i + 1} w{i + 2}" for i in range(50)]
MARKS = ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r")
"""What str.splitlines takes for the end of a line, besides \\n."""


def write(folder, kind):
    if kind == "jsonl":
        path = folder / "t.jsonl"
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    elif kind == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        path = folder / "t.parquet"
        parquet.write_table(pa.table({"text": TEXTS, "n": list(range(50))}), path)
    elif kind == "stories":
        path = folder / "s.txt"
        path.write_text("\n<|endoftext|>\n".join(TEXTS))
    else:
        path = folder / "p.txt"
        path.write_text("\n\n".join(TEXTS))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "stories", "paragraphs"])
def test_local_files_give_the_same_documents(tmp_path, kind):
    found = read_documents(str(write(tmp_path, kind)))[:20]
    assert [t.strip() for t in found] == TEXTS[:20]


@pytest.mark.parametrize("mark", MARKS, ids=ascii)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_a_line_ends_at_a_newline_and_nowhere_else(tmp_path, mark, end):
    texts = [*TEXTS[:4], f"w1 w2{mark}w3 w4", f"{mark}w5", *TEXTS[4:9]]
    rows = [json.dumps({"text": t}, ensure_ascii=False).replace("\\r", "\r").replace("\\f", "\f") for t in texts]
    rows = [row.replace("\\u000b", "\x0b").replace("\\u001c", "\x1c") for row in rows]
    assert sum(mark in row for row in rows) == 2  # as it is, not as an escape
    (tmp_path / "a.jsonl").write_bytes(end.join(rows).encode())
    (tmp_path / "a.json").write_bytes(f"[{f',{end}'.join(rows)}]".encode())
    (tmp_path / "a.txt").write_bytes((end * 2).join(texts).encode())
    assert read_documents(str(tmp_path / "a.jsonl")) == texts
    assert read_documents(str(tmp_path / "a.json")) == texts
    assert read_documents(str(tmp_path / "a.txt")) == texts


@pytest.mark.parametrize("kind", ["jsonl", "stories", "paragraphs"])
def test_byte_order_marks_are_no_text_also_where_files_were_put_together(tmp_path, kind):
    path = write(tmp_path, kind)
    content, mark = path.read_bytes(), b"\xef\xbb\xbf"
    between = {"jsonl": b"", "stories": b"\n<|endoftext|>\n", "paragraphs": b"\n\n"}[kind]
    path.write_bytes(mark + content + between + mark + content)
    found = read_documents(str(path))
    assert [text.strip() for text in found] == [*TEXTS, *TEXTS]


def test_lines_of_blanks_part_documents_and_lines_within_stay(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("\n \n\nw1\nw2\n \t\nw3\n\u3000\n\x0c\n  w4\n\n\n\nw5 \n")
    assert read_documents(str(path)) == ["w1\nw2", "w3", "  w4", "w5 "]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": 3}\n', "line 1 has no text under 'text' (it is a number)"),
        ('{"text": "w1"}\n{"text": ["w2"]}\n', "line 2 has no text under 'text' (it is an array)"),
        ('{"text": {"a": 1}}', "(it is an object)"),
        ('{"text": true}', "(it is a truth value)"),
        ('{"body": "w1", "id": 3}', "line 1 has no text under 'text' (there are 'body', 'id'); mend the file"),
        ("{}", "(there are no keys)"),
        ('{"text": "w1"}\n{"text": "w2', "line 2 has no text under 'text' (it is not valid JSON: Unterminated string"),
        ("w1 w2\n", "line 1 has no text under 'text' (it is not valid JSON"),
        ("3\n", "line 1 has no text under 'text' (the row is a number)"),
        ("[1, 2]", "item 1 has no text under 'text' (the row is a number)"),
        ('[{"text": "w1"}, {"text": 2}]', "item 2 has no text under 'text' (it is a number)"),
        ('[{"text": "w1"},\n{"text": "w2"}', "line 1 has no text under 'text' (it is not valid JSON"),
        ('["w1"]\n["w2"]', "line 1 has no text under 'text' (the row is an array)"),
        ('{"text": "w1"}\n' + "[" * 100_000, "line 2 has no text under 'text' (it is not valid JSON"),
    ],
)  # fmt: skip
def test_a_row_without_text_is_named_with_what_stands_there(tmp_path, content, said):
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_documents(str(path))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_json_array_is_read_and_what_is_null_or_empty_is_no_document(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    for content in (
        '[{"text": "w1"}, {"text": null}, {"text": " "}, {"text": "w2"}]', '["w1", "", "w2"]',
        '[\n  {\n    "text": "w1"\n  },\n  {"text": "w2"}]\n', '{"text": "w1"}\n\n{"text": null}\n{"text": "w2"}',
    ):  # fmt: skip
        path.write_text(content)
        assert read_documents(str(path)) == ["w1", "w2"]
    if suffix == "json":
        path.write_text('{\n "text": "w1\\n\\nw2"\n}')
        assert read_documents(str(path)) == ["w1\n\nw2"]


@pytest.mark.parametrize("kind", ["int", "list", "binary", "bool"])
def test_a_parquet_column_that_is_no_text_is_refused(tmp_path, kind):
    import pyarrow as pa
    from pyarrow import parquet

    values = {"int": [1, 2], "list": [["a"], ["b"]], "binary": [b"a", b"b"], "bool": [True, False]}[kind]
    parquet.write_table(pa.table({"text": values}), tmp_path / "t.parquet")
    with pytest.raises(
        UserError, match=r"^--dataset: .*t\.parquet: its column 'text' is of type .*, no text; mend the file"
    ):
        read_documents(str(tmp_path / "t.parquet"))


def test_texts_in_a_parquet_files_other_forms_are_read(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    for array in (
        pa.array(["w1", None, "w2"], pa.large_string()), pa.array(["w1", "", "w2"]).dictionary_encode(),
        pa.array(["\ufeffw1", "w2"]),
    ):  # fmt: skip
        parquet.write_table(pa.table({"text": array}), tmp_path / "t.parquet")
        assert read_documents(str(tmp_path / "t.parquet")) == ["w1", "w2"]


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl", "t.json", "t.parquet"])
def test_text_files_that_are_none_are_named(tmp_path, name):
    path = tmp_path / name
    for content, said in (
        (b"", "is empty; fetch it anew"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git lfs pull"),
        ("caf\xe9 w1".encode("latin-1"), "no text in UTF-8" if name != "t.parquet" else "cannot be read as a Parquet file"),
        ("w1 w2".encode("utf-16"), "no text in UTF-8" if name != "t.parquet" else "cannot be read as a Parquet file"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_documents(str(path))
        assert said in str(caught.value)
        assert str(path) in str(caught.value)


def test_the_settings_of_file_and_column_are_named_as_the_study_calls_them(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"body": "w1"}\n')
    with pytest.raises(UserError, match=r"^data\.source: .*t\.jsonl line 1 has no text .*; mend the file$"):
        read_documents(str(path), flag="data.source")
    with pytest.raises(UserError, match=r"; set --column, or mend the file$"):
        read_documents(str(path), column_flag="--column")
    with pytest.raises(UserError, match=r"^fit_text: .* is no \.txt, \.jsonl or \.parquet file"):
        read_documents(str(tmp_path / "t.csv"), flag="fit_text")


def test_what_is_the_same_to_a_reader_is_read_the_same():
    assert as_read("\ufeffcaf\u0065\u0301 \u200bau\tlait\r\n") == as_read("caf\xe9 au lait") == "caf\xe9 au lait"
    assert as_read("Cafe au lait") != as_read("cafe au lait")  # capitals are words of their own


@pytest.mark.parametrize("name", ["t.jsonl", "t.json"])
def test_a_key_that_stands_twice_in_a_row_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_text('{"text": "w1"}\n{"text": "w2", "text": "w3"}\n')
    with pytest.raises(UserError, match=r"t\.jsonl? line 2 .*: 'text' stands there twice in one object\); mend"):
        read_documents(str(path))


def test_half_a_character_in_a_row_is_named(tmp_path):
    """It would end the hashing of the text, or its tokenizer."""
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "w1 \\ud83d\\ude00"}\n{"text": "w2 \\ud83d"}\n"w3 \\ude00"\n')
    with pytest.raises(UserError, match=r"t\.jsonl line 2 holds half a character \(an escape such as \\ud83d"):
        read_documents(str(path))
    path.write_text('{"text": "w1 \\ud83d\\ude00"}\n')
    assert read_documents(str(path)) == ["w1 \U0001f600"]
    path.write_text('"w3 \\ude00"\n')
    with pytest.raises(UserError, match="line 1 holds half a character"):
        read_documents(str(path))
