"""What is printed never ends a run, and shows what the terminal cannot."""

import errno
import io
import os
import subprocess
import sys

import pytest
from toy_study.cli import STUDY

from studycore.cli import exit_code, help_text
from studycore.errors import UserError, refused_by_system
from studycore.terminal import Output, duration, steady_output


def run(code, **more):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, **more)


def test_a_reader_that_has_gone_away_ends_nothing(tmp_path):
    """As `| head -1` does: the work is done to its end, and the exit code is that of the work."""
    code = f"""
import sys
from pathlib import Path
from studycore.cli import exit_code
def act():
    for i in range(20_000):
        print("line", i, flush=i % 100 == 0)
    Path({str(tmp_path / "done")!r}).touch()
sys.exit(exit_code("toy", act))
"""
    read, write = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    os.read(read, 10)
    os.close(read)
    assert process.communicate()[1] == b""
    assert process.returncode == 0
    assert (tmp_path / "done").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_output_that_a_full_disk_refused_is_told(tmp_path):
    code = """
import sys
from studycore.cli import exit_code
sys.exit(exit_code("toy", lambda: print("the result")))
"""
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("toy: error: standard output: No space left on device; ")


def test_letters_that_a_terminal_lacks_are_escapes():
    code = """
import sys
from studycore.cli import exit_code
from studycore.errors import UserError
def act():
    print("kappa \u03ba")
    raise UserError("na\u00efve: give another")
sys.exit(exit_code("toy", act))
"""
    done = run(code, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout) == (2, b"kappa \\u03ba\n")
    assert done.stderr == b"toy: error: na\\xefve: give another\n"


def test_the_streams_come_back_and_may_be_missing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    former = sys.stdout
    with steady_output() as lost:
        assert sys.stdout is not former
        assert sys.stderr is None
        assert lost() == ""
    assert sys.stdout is former


def test_only_a_lost_reader_is_no_failure(tmp_path):
    class Broken(io.StringIO):
        def __init__(self, number):
            super().__init__()
            self.number, self.file = number, open(tmp_path / "file", "w")  # noqa: SIM115

        def write(self, text):
            raise OSError(self.number, os.strerror(self.number))

        def fileno(self):
            return self.file.fileno()

    broken = Broken(errno.EPIPE)
    stream = Output(broken)
    assert stream.write("abc") == 3
    assert os.fstat(broken.file.fileno()).st_rdev == os.stat(os.devnull).st_rdev  # where what it still holds goes
    broken.number = errno.ENOSPC
    stream.write("what follows goes nowhere, and says nothing of why")
    assert stream.failure.errno == errno.EPIPE
    broken.file.close()


def test_what_the_system_refuses_is_one_sentence(capsys):
    def fails(error):
        def act():
            raise error

        return exit_code("toy", act), capsys.readouterr().err

    place = OSError(errno.EACCES, "Permission denied", "/there")
    assert fails(place) == (
        2,
        "toy: error: /there: Permission denied; choose another place, or change its owner or rights\n",
    )
    code, said = fails(OSError(errno.ENOSPC, "No space left on device"))
    assert code == 2
    assert said.startswith("toy: error: writing: No space left on device; free some space")
    code, said = fails(MemoryError())
    assert (code, said) == (
        2,
        "toy: error: memory: there is not enough for what it needs; make the model or the batch smaller\n",
    )
    assert fails(UserError("x: 1 is wrong; give 2")) == (2, "toy: error: x: 1 is wrong; give 2\n")
    for fault in (OSError(errno.EINVAL, "Invalid argument"), RuntimeError("shapes differ"), KeyError("x")):
        with pytest.raises(type(fault)):
            fails(fault)


@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.ENOENT, "it was moved or removed meanwhile"), (errno.ESTALE, "its disk has gone"),
        (errno.ENODEV, "its disk has gone"), (errno.EMFILE, "raise the limit (ulimit -n"),
        (errno.ENFILE, "make fewer runs at a time"), (errno.EAGAIN, "raise the limit (ulimit -n, ulimit -u)"),
        (errno.ENOMEM, "free some memory"),
    ],
)  # fmt: skip
def test_a_place_that_has_gone_and_what_there_is_too_much_of_are_one_sentence(capsys, number, mend):
    def act():
        raise OSError(number, os.strerror(number), "/there/metrics.jsonl")

    assert exit_code("toy", act) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"toy: error: /there/metrics.jsonl: {os.strerror(number)}; ") and said.count("\n") == 1
    assert mend in said


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (MemoryError("Unable to allocate 5.82 TiB for an array with shape (800000000000,) and data type float64"), "5.82 TiB"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000 bytes. Error"), "8000 bytes"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has"), "20.00 MiB"),
        (MemoryError("malloc of size 64 failed"), "what it needs"), (MemoryError(), "what it needs"),
    ],
)  # fmt: skip
def test_what_there_is_no_memory_for_is_named_by_its_size(error, size):
    mend = "make the model or the batch smaller"
    assert refused_by_system(error) == f"memory: there is not enough for {size}; {mend}"


def test_ctrl_c_outside_of_a_run_is_one_line_and_the_shells_exit_code(capsys):
    def act():
        raise KeyboardInterrupt

    assert exit_code("toy", act) == 130
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("toy: interrupted (Ctrl-C), no run was open; ") and said.err.count("\n") == 1
    assert "130 Ctrl-C" in help_text(STUDY)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (89.4, "89 s"), (90, "2 minutes"), (5399, "90 minutes"), (5400, "1.5 hours"), (36_000, "10.0 hours")],
)
def test_a_duration_has_a_unit_that_suits(seconds, said):
    assert duration(seconds) == said
