"""The log of metrics: append-only, readable while it is written, rewound, and made into typed Parquet."""

import json
import os

import pytest
from pyarrow import parquet

from studycore.errors import DamagedRun
from studycore.metrics_log import MetricsLog, read_rows, write_parquet

ROWS = [
    {"step": 0, "loss": 1.5, "n": 3, "ok": True, "arm": "a"},
    {"step": 10, "loss": 2, "shares": [0.5, 0.5]},
    {"step": 10, "loss": 1e-300, "n": 4, "ok": False, "arm": "é|,"},
    {"step": 20, "loss": 0.25},
]


@pytest.fixture
def log(tmp_path):
    log = MetricsLog(tmp_path)
    for row in ROWS:
        log.append(row)
    return log


def test_rows_come_back_and_each_is_there_once_it_is_written(tmp_path):
    log = MetricsLog(tmp_path)
    for count, row in enumerate(ROWS, start=1):
        before = log.path.read_bytes() if count > 1 else b""
        log.append({**row, "absent": None})
        assert log.path.read_bytes().startswith(before)
        assert read_rows(log.path) == ROWS[:count] == log.rows
    assert MetricsLog(tmp_path).rows == ROWS
    assert read_rows(tmp_path / "none") == []


def test_nan_is_refused_and_leaves_no_trace(log):
    before = log.path.read_bytes()
    for value in (float("nan"), float("inf"), [float("nan")], {"a": -float("inf")}):
        with pytest.raises(ValueError, match="JSON"):
            log.append({"step": 30, "loss": value})
    assert log.path.read_bytes() == before
    assert log.rows == ROWS


def test_steps_never_fall(log):
    with pytest.raises(AssertionError):
        log.append({"step": 19})
    with pytest.raises(KeyError):
        log.append({"loss": 1.0})
    assert read_rows(log.path) == ROWS


def test_rewinding_drops_later_rows_and_a_torn_line(tmp_path, log):
    log.write_part()
    with open(log.path, "a") as file:
        file.write('{"step": 20, "lo')
    again = MetricsLog(tmp_path)
    assert again.rows == ROWS
    again.rewind(3)
    assert read_rows(again.path) == ROWS[:3]
    again.append({"step": 11, "loss": 0.0})
    again.write_part()
    assert read_rows(again.path)[-1] == {"step": 11, "loss": 0.0}
    steps = [
        s for path in sorted((tmp_path / "history").iterdir()) for s in parquet.read_table(path)["step"].to_pylist()
    ]
    assert steps == [0, 10, 10, 11]
    # A step may have several rows, of which a part was written before the checkpoint.
    again.rewind(2)
    assert read_rows(again.path) == again.rows == ROWS[:2]
    again.rewind(0)
    assert again.path.read_bytes() == b""
    assert again.rows == []
    assert not (tmp_path / "history").exists()


def test_a_rewinding_that_fails_leaves_the_rows(tmp_path, log, monkeypatch):
    def fails(*_):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no"):
        log.rewind(0)
    assert read_rows(log.path) == ROWS


def test_parts_hold_each_row_once_and_are_gone_after_compaction(tmp_path):
    log = MetricsLog(tmp_path)
    log.write_part()
    assert not log.parts.exists()
    for row in ROWS:
        log.append(row)
        if row["step"] != 10:
            log.write_part()
    log.write_part()
    names = sorted(path.name for path in log.parts.iterdir())
    assert names == ["part-000000000-000000.parquet", "part-000000010-000001.parquet"]
    steps = [s for name in names for s in parquet.read_table(log.parts / name)["step"].to_pylist()]
    assert steps == [0, 10, 10, 20]
    path = log.compact()
    assert path == tmp_path / "history.parquet"
    assert not log.parts.exists()
    assert read_rows(log.path) == ROWS


def test_parquet_is_typed_and_absent_values_are_null(tmp_path, log):
    table = parquet.read_table(log.compact())
    assert {f.name: str(f.type) for f in table.schema} == {
        "step": "int64", "loss": "double", "n": "int64", "ok": "bool", "arm": "string", "shares": "string",
    }  # fmt: skip
    assert table["loss"].to_pylist() == [1.5, 2.0, 1e-300, 0.25]
    assert table["n"].to_pylist() == [3, None, 4, None]
    assert table["arm"].to_pylist() == ["a", None, "é|,", None]
    assert json.loads(table["shares"][1].as_py()) == [0.5, 0.5]
    first = (tmp_path / "history.parquet").read_bytes()
    log.compact()
    assert (tmp_path / "history.parquet").read_bytes() == first
    write_parquet(tmp_path / "none.parquet", [])
    assert parquet.read_table(tmp_path / "none.parquet").num_rows == 0


def test_reading_while_a_row_is_being_written(log):
    with open(log.path, "a") as file:
        for piece in ('{"step"', ": 30, ", '"loss": 3}', "\n"):
            assert read_rows(log.path) == ROWS
            file.write(piece)
            file.flush()
    assert read_rows(log.path) == [*ROWS, {"step": 30, "loss": 3}]


NOT_FINITE = ('{"step": 10, "loss": NaN}', '{"step": 10, "loss": -Infinity}')


@pytest.mark.parametrize("line", ["{", "3", '{"loss": 1}', '{"step": "x"}', "", "\x00", *NOT_FINITE])
def test_a_damaged_line_is_named(log, line):
    lines = log.path.read_text().splitlines()
    lines[1] = line
    log.path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DamagedRun, match=r"metrics.jsonl: line 2 is no row of metrics"):
        read_rows(log.path)


def test_rows_are_durable_when_a_part_is_written(tmp_path, monkeypatch):
    log, synced = MetricsLog(tmp_path), []
    log.append({"step": 0})
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")) or real(handle)
    )
    log.write_part()
    assert str(tmp_path / "metrics.jsonl") in synced
