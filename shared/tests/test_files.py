"""Files: replaced as a whole, synchronised, JSON without NaN."""

import errno
import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from studycore.errors import UserError
from studycore.files import (
    check_local,
    check_output_file,
    read_json,
    read_text,
    sha256,
    sync_folder,
    write_atomic,
    write_json,
    write_tensors,
)


def test_a_failed_replacement_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_atomic(path, "old")

    def fails(*_):
        raise OSError("no")

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, fails)
        with pytest.raises(OSError, match="no"):
            write_atomic(path, "new")
        monkeypatch.undo()
        assert path.read_text() == "old"
    write_atomic(path, b"\x00new")
    assert path.read_bytes() == b"\x00new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_content_then_name_are_made_durable(tmp_path, monkeypatch):
    done = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (done.append(os.readlink(f"/proc/self/fd/{handle}")), real_fsync(handle))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("replace"), real_replace(a, b)))
    write_atomic(tmp_path / "a", "text")
    assert done == [str(tmp_path / f".a.{os.getpid()}.tmp"), "replace", str(tmp_path)]
    sync_folder(tmp_path)
    assert done[-1] == str(tmp_path)


def test_json_without_nan(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": [1, 2.5, None, "é"]})
    assert read_json(path) == {"x": [1, 2.5, None, "é"]} == json.loads(path.read_text())
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(path, {"x": [value]})
    assert read_json(path)["x"][0] == 1


def test_what_cannot_be_read_is_named(tmp_path):
    for content, word in (
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff", "UTF-8"),
        (b"[" * 100000, "JSON"),
    ):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(UserError, match=rf"a\.json: .*{word}.*; "):
            read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": {"b": 1, "c": 2, "b": 3}, "d": [{"b": 1}, {"b": 2}]}')
    with pytest.raises(UserError, match=r"a\.json: not valid JSON \('b' stands there twice in one object\); "):
        read_json(tmp_path / "a.json")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbftext\r\n")
    assert read_text(tmp_path / "marked") == "text\n"
    assert read_text(tmp_path / "marked", newline="") == "text\r\n"
    with pytest.raises(UserError, match=r"none: there is no such file; "):
        read_text(tmp_path / "none")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_text(tmp_path)


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_the_file_of_the_end_is_checked_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "file" / "x.json", "cannot be written")):
        with pytest.raises(UserError, match=f"--output: .*{words}"):
            check_output_file(path)
    check_output_file(tmp_path / "new" / "x.json")
    assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new" / "x.json").exists()


def test_what_can_only_be_a_path_is_looked_for_and_other_names_may_be_a_hubs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.txt").touch()
    for name in ("gpt2", "owner/name", "there.txt", "./there.txt", str(tmp_path)):
        check_local("--model", name)
    for name in ("./none", "../none", "~/none", "none.txt", "none.jsonl", "none.json", "none.parquet"):
        with pytest.raises(
            UserError, match=rf"^--model: '{name}': there is no such .*; check the path, which is meant from"
        ):
            check_local("--model", name)
    with pytest.raises(UserError, match=r"^--model: '/none/x': there is no such file or folder; check the path$"):
        check_local("--model", "/none/x")


def test_a_file_of_somebody_elses_is_not_replaced_at_the_end(tmp_path):
    path = tmp_path / "x.json"
    for theirs in ("mine", "[1]", '{"metrics": 1}', '{"metrics": 1, "mine": 2}'):
        path.write_text(theirs)
        with pytest.raises(
            UserError, match=r"^output: '.*x\.json' is there and no earlier output of this command; move it"
        ):
            check_output_file(path, "output", ours=("metrics", "baselines"))
        assert path.read_text() == theirs
        check_output_file(path)  # where nothing is said of what it holds, it is not looked into
    for ours in ("", '{"baselines": 2, "metrics": 1, "more": 3}'):
        path.write_text(ours)
        check_output_file(path, ours=("metrics", "baselines"))


def test_a_link_or_a_device_is_not_replaced_at_the_end(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "x.json")
    (tmp_path / "lost.json").symlink_to(tmp_path / "none")
    for place in ("/dev/null", tmp_path / "link.json", tmp_path / "lost.json"):
        with pytest.raises(UserError, match=r"^--output: '.*' is a link or a device, and would be replaced; name an"):
            check_output_file(place, ours=("metrics",))


def test_a_folder_that_cannot_be_written_is_found_although_the_file_in_it_can(tmp_path, monkeypatch):
    """The file is replaced by a new one beside it."""
    (tmp_path / "x.json").write_text('{"metrics": 1}')
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(UserError, match=r"^--output: '.*x\.json' cannot be written; choose another place"):
        check_output_file(tmp_path / "x.json", ours=("metrics",))


@pytest.mark.parametrize("content", ["a text".encode("utf-16-le"), "a".encode("utf-32-be"), b"a text" + bytes(3000)])
def test_text_with_nul_bytes_is_none(tmp_path, content):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(
        UserError, match=r"x\.txt: holds NUL bytes, as UTF-16 does and damaged files do; .*save it as UTF-8$"
    ):
        read_text(tmp_path / "x.txt")


def test_a_name_that_is_no_utf_8_can_be_written_down(tmp_path):
    name = os.fsdecode(b"caf\xe9.txt")
    write_atomic(tmp_path / "report.md", f"read from {name}")
    assert read_text(tmp_path / "report.md") == "read from caf\\udce9.txt"
    write_json(tmp_path / "manifest.json", {"dataset": name})
    assert read_json(tmp_path / "manifest.json") == {"dataset": name}


def test_tensors_are_copies_and_a_full_disk_is_the_systems_error(tmp_path, monkeypatch):
    whole = torch.arange(6.0).reshape(2, 3)
    write_tensors(tmp_path / "t.safetensors", {"part": whole[:, 1]})
    assert torch.equal(load_file(tmp_path / "t.safetensors")["part"], whole[:, 1])
    with pytest.raises(OSError, match="cannot be written") as caught:
        write_tensors(tmp_path, {"whole": whole})
    assert caught.value.errno == errno.EIO
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_tensors(tmp_path, {"whole": whole})
    assert caught.value.errno == errno.ENOSPC
