"""Guards around foreign files: one sentence each, and nothing said of files that are whole."""

import os

import pytest
import torch

from studycore.errors import Stopped, UserError
from studycore.foreign import check_file, check_tensors, reading


@pytest.mark.parametrize("error", [RuntimeError("two\n \x1blines."), KeyError("k"), MemoryError(), AssertionError()])
def test_an_exception_of_a_loader_becomes_one_sentence(error):
    with pytest.raises(UserError, match=r"^a\.bin: cannot be read as weights \(\w+.*\); fetch it anew") as caught, reading("a.bin", "weights"):  # fmt: skip
        raise error
    assert str(caught.value).isprintable() and f"({type(error).__name__}" in str(caught.value)
    assert ".)" not in str(caught.value)


@pytest.mark.parametrize("error", [UserError("own"), Stopped("told"), KeyboardInterrupt()])
def test_a_sentence_of_ours_and_a_stop_pass_through(error):
    with pytest.raises(type(error)) as caught, reading("a.bin", "weights"):
        raise error
    assert caught.value is error


def test_files_that_are_not_there_or_empty_or_pointers(tmp_path):
    (tmp_path / "empty.pt").touch()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / "pointer.pt").write_text(pointer)
    (tmp_path / "other.txt").write_text("version https://example.org\n")
    check_file(tmp_path / "other.txt")
    for path, said in [
        (tmp_path, "is a folder and no file"),
        (tmp_path / "none.pt", "there is no such file"),
        (tmp_path / "empty.pt", "is empty; fetch it anew"),
        (tmp_path / "pointer.pt", "is a git-lfs pointer and not the file itself; fetch that with `git lfs pull`"),
    ]:
        with pytest.raises(UserError) as caught:
            check_file(path)
        assert str(caught.value).startswith(f"{path}: {said}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read(tmp_path):
    (path := tmp_path / "locked").touch(0o000)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        check_file(path)


def test_every_byte_of_the_weights_in_an_archive_is_under_its_checksum(tmp_path):
    """torch.load itself takes the flipped bit without a word."""
    path, weights = tmp_path / "a.pt", torch.arange(1.0, 400.0)
    torch.save({"first": torch.ones(3), "model": weights}, path)
    check_file(path)
    whole = path.read_bytes()
    at = whole.find(weights.numpy().tobytes())
    for offset in (0, 4 * 200 + 2, 4 * 399 - 1):
        damaged = bytearray(whole)
        damaged[at + offset] ^= 0x10
        path.write_bytes(damaged)
        assert not torch.equal(torch.load(path, weights_only=True)["model"], weights)
        with pytest.raises(UserError, match=r"is damaged: its entry a/data/1 does not match its checksum; fetch it"):
            check_file(path)


def test_an_archive_that_was_cut_off_and_one_without_checksums(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(torch.ones(400), path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match=r"cannot be read as a zip archive \(BadZipFile: "):
        check_file(path)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(torch.ones(400), path)
    finally:
        torch.serialization.set_crc32_options(True)
    check_file(path)


SOUND = {
    "half": torch.ones(2, dtype=torch.float16), "brain": torch.ones(2, dtype=torch.bfloat16), "single": torch.ones(2),
    "double": torch.ones(2, dtype=torch.float64), "count": torch.tensor(3), "mask": torch.ones(2, 2, dtype=torch.bool),
    "nothing": torch.ones(0, 4),
}  # fmt: skip


def not_finite(at, value, dtype=torch.float32):
    tensor = torch.ones(3, 4, dtype=dtype)
    tensor[at] = value
    return tensor


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (torch.ones(2, device="meta"), "has a shape and no values"),
        (torch.eye(2).to_sparse(), "is not dense (sparse_coo); save it as a dense tensor"),
        (torch.ones(2).to(torch.float8_e4m3fn), "is of type float8_e4m3fn; convert it to one of float16, bfloat16"),
        (torch.ones(2, dtype=torch.complex64), "is of type complex64"),
        (not_finite((0, 0), float("nan")), "holds NaN or infinity; use an earlier checkpoint"),
        (not_finite((2, 3), float("inf"), torch.float16), "holds NaN or infinity"),
        (not_finite((1, 2), float("-inf"), torch.bfloat16), "holds NaN or infinity"),
    ],
)
def test_the_first_tensor_that_is_no_sound_weight_is_named(bad, said):
    check_tensors(SOUND, "a.pt")
    with pytest.raises(UserError) as caught:
        check_tensors({**SOUND, "layer.weight": bad, "later": bad}, "a.pt")
    assert str(caught.value).startswith(f"a.pt: layer.weight {said}")
