"""Metrics: one line of valid JSON per update, and sinks that may fail."""

import json
import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purejaxppo.errors import CheckpointError, ConfigError
from purejaxppo.experiment import metrics_log
from purejaxppo.experiment.metrics_log import (
    JsonLines,
    RepeatedFile,
    emit,
    last_rows,
    read_metrics,
    recent_return,
    reported_means,
    row_at,
    whole_rows,
)


def strict(text):
    """Parses JSON as the standard has it, without NaN and Infinity."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_not_finite_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with JsonLines(path) as log:
        log(8, {"update": 1, "a": 0.1, "b": math.nan, "c": math.inf, "d": -math.inf, "e": None})
        log(16, {"update": 2, "a": 1e-300})
    lines = path.read_text().splitlines()
    assert [strict(line) for line in lines] == [
        {"update": 1, "a": 0.1, "b": None, "c": None, "d": None, "e": None},
        {"update": 2, "a": 1e-300},
    ]
    assert read_metrics(path) == [strict(line) for line in lines]


def test_a_row_is_on_disk_before_the_next_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with JsonLines(path) as log:
        log(8, {"update": 1})
        assert read_metrics(path) == [{"update": 1}]


def test_a_file_that_cannot_be_written():
    with JsonLines(io_path("/dev/full")) as log, pytest.raises(CheckpointError, match="/dev/full"):
        log(8, {"update": 1})


def io_path(name):
    import pathlib

    path = pathlib.Path(name)
    if not path.exists():
        pytest.skip(f"no {name} here")
    return path


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 1}\n{"update": 2}\n{"upda')
    assert read_metrics(path) == [{"update": 1}, {"update": 2}]


def test_a_line_broken_elsewhere_is_refused_by_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 1}\n{"upda\n{"update": 3}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2"):
        read_metrics(path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
        read_metrics(path)


def test_an_empty_file_has_no_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("")
    assert read_metrics(path) == []


# --- whole rows -------------------------------------------------------------------------------------------------------

BLOCK = metrics_log._LONGEST_ROW


@pytest.mark.parametrize(
    ("content", "limit", "kept"),
    [
        (b"", 0, 0),
        (b"", 100, 0),
        (b"ab\ncd\n", 0, 0),
        (b"ab\ncd\n", 2, 0),  # just before the end of the first row
        (b"ab\ncd\n", 3, 3),
        (b"ab\ncd\n", 4, 3),
        (b"ab\ncd\n", 6, 6),
        (b"ab\ncd\n", 7, 6),  # beyond the file's end
        (b"ab\ncd\n", 2**62, 6),
        (b"ab\ncd", 5, 3),  # torn
        (b"ab\ncd", 99, 3),
        (b"abcdef", 6, 0),
        (b"\n", 1, 1),
        (b"\n\n\n", 2, 2),
        (b"ab\r\ncd", 6, 4),
        (b"a" * 5 * BLOCK, 5 * BLOCK, 0),  # no row ends anywhere
        (b"ab\n" + b"c" * 5 * BLOCK, 99 * BLOCK, 3),  # a row of many blocks, torn
        (b"ab\n" + b"c" * 5 * BLOCK + b"\n", 99 * BLOCK, 5 * BLOCK + 4),
        (b"a" * (BLOCK - 1) + b"\n" + b"c" * BLOCK, 2 * BLOCK, BLOCK),  # the newline is a block's last byte
        (b"a" * (BLOCK - 1) + b"\n" + b"c" * BLOCK, 2 * BLOCK - 1, BLOCK),  # a block's first byte
        (b"a" * BLOCK + b"\n" + b"c" * BLOCK, 2 * BLOCK, BLOCK + 1),
        (b"\n" + b"c" * 3 * BLOCK, 3 * BLOCK + 1, 1),
    ],
)
def test_whole_rows(tmp_path, content, limit, kept):
    (tmp_path / "metrics.csv").write_bytes(content)
    assert whole_rows(tmp_path / "metrics.csv", limit) == kept


@given(
    lengths=st.lists(st.integers(0, 2 * BLOCK) | st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1]), max_size=6),
    torn=st.integers(0, 3 * BLOCK),
    share=st.floats(0, 1.2),
)
def test_whole_rows_of_any_file(tmp_path_factory, lengths, torn, share):
    """Whatever crosses the blocks' boundaries, the result is the last newline before the limit."""
    content = b"".join(b"x" * length + b"\n" for length in lengths) + b"x" * torn
    limit = round(share * len(content))
    path = tmp_path_factory.getbasetemp() / "rows.csv"
    path.write_bytes(content)
    assert whole_rows(path, limit) == content[:limit].rfind(b"\n") + 1


def test_whole_rows_take_no_memory(tmp_path):
    """Of a quarter of a gigabyte, a hole before the last row, only one block is read."""
    path = tmp_path / "metrics.csv"
    with path.open("wb") as file:
        file.seek(2**28)
        file.write(b"\nend")
    tracemalloc.start()
    try:
        assert whole_rows(path, 2**40) == 2**28 + 1
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_whole_rows_of_a_file_that_is_not_there_or_no_file(tmp_path):
    assert whole_rows(tmp_path / "metrics.csv", 100) == 0
    with pytest.raises(CheckpointError, match=f"cannot read {tmp_path}"):
        whole_rows(tmp_path, 100)


# --- sinks ------------------------------------------------------------------------------------------------------------


def test_every_sink_gets_every_row():
    seen = []
    sinks = [lambda step, row: seen.append((1, step, row)), lambda step, row: seen.append((2, step, row))]
    assert emit(sinks, 8, {"a": 1}) == sinks
    assert seen == [(1, 8, {"a": 1}), (2, 8, {"a": 1})]


def test_a_sink_that_raises_is_dropped_with_a_warning_and_the_others_go_on():
    seen = []

    def broken(step, row):
        raise RuntimeError("server is down")

    def working(step, row):
        seen.append(step)

    with pytest.warns(UserWarning, match=r"broken.*server is down"):
        left = emit([broken, working], 8, {})
    assert left == [working]
    emit(left, 16, {})
    assert seen == [8, 16]


def test_our_own_errors_are_not_swallowed():
    def full(step, row):
        raise CheckpointError("disk full")

    with pytest.raises(CheckpointError, match="disk full"):
        emit([full], 8, {})
    with pytest.raises(ConfigError):
        emit([lambda step, row: (_ for _ in ()).throw(ConfigError("x"))], 8, {})


def test_the_recent_return_leaves_out_what_is_damaged(tmp_path):
    """It is only used to rank checkpoints; a flipped bit must not make every save fail."""
    path = tmp_path / "metrics.jsonl"
    rows = [json.dumps({"episode/return": 2.0 * i, "episode/count": 1}) for i in range(4)]
    rows[2] = rows[2].replace("{", "[")
    path.write_text("\n".join([*rows, "[]", '{"update": 1}']) + "\n")
    assert recent_return(path, path.stat().st_size, 100) == (0 + 2 + 6) / 3
    assert recent_return(path, 0, 100) is None


def test_rows_may_be_long(tmp_path):
    """As they are where an environment reports much: as many of them are found, and none twice."""
    path = tmp_path / "metrics.jsonl"
    long = {f"episode/{name}": 1.0 for name in range(300)}
    rows = [{"episode/return": float(i), "episode/count": 1, **long} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    size = path.stat().st_size
    assert size > 40 * 3 * 1024
    assert last_rows(path, size, 10) == rows[-10:]
    assert last_rows(path, size, 100) == rows


def test_means_of_what_the_environment_reports():
    """Weighted by episodes, as the return's is, without the metrics that every run has."""
    own = {"episode/return": 1.0, "episode/length": 9.0, "step/won": 5.0, "loss/value": 1.0}
    rows = [
        {**own, "episode/count": 3, "episode/won": 1.0, "episode/lost": None},
        {**own, "episode/count": 1, "episode/won": 0.0, "episode/lost": None},
        {**own, "episode/count": 0, "episode/won": None, "episode/lost": None},
    ]
    assert reported_means(rows) == {"lost": None, "won": 0.75}
    assert reported_means([]) == reported_means([{**own, "episode/count": 1}]) == {}


def test_rows_that_come_again_stay_with_all_that_follows(tmp_path):
    """At the first row that differs the file is truncated."""
    path = tmp_path / "rows"
    path.write_text("head\na\nb\nc\nd\n")
    with RepeatedFile(path, 5) as file:
        file.write("a\nb\n")
        assert file.position() == 9
    assert path.read_text() == "head\na\nb\nc\nd\n"
    with RepeatedFile(path, 5) as file:
        file.write("a\n")
        file.write("x\n")
        assert file.position() == 9
        file.write("y\n")
    assert path.read_text() == "head\na\nx\ny\n"


def test_rows_after_the_end_and_after_a_torn_one_are_added(tmp_path):
    path = tmp_path / "rows"
    path.write_text("head\na\nhal")
    with RepeatedFile(path, 5) as file:
        for row in ("a\n", "half\n", "b\n"):
            file.write(row)
    assert path.read_text() == "head\na\nhalf\nb\n"


def test_a_row_is_found_by_its_position(tmp_path):
    """A torn one, one that is not JSON, and what is beyond the end or not there are none."""
    path = tmp_path / "metrics.jsonl"
    with JsonLines(path) as log:
        log(8, {"update": 1, "loss": math.nan})
        assert log.last_row() == 0
        first = log.position()
        log(16, {"update": 2})
        assert log.last_row() == first
        end = log.position()
    with JsonLines(path, end) as log:
        assert log.last_row() == end
    assert row_at(path, 0) == ({"update": 1, "loss": None}, first)
    assert row_at(path, first) == ({"update": 2}, end)
    assert row_at(path, end) is None
    path.write_text('{"update": 1}\n{"update": 2}')
    assert row_at(path, 14) is None
    assert row_at(path, 3) is None
    assert row_at(tmp_path / "none", 0) is None
