"""Atomic writes: files are complete or absent, and errors say what cannot be read or written."""

from pathlib import Path

import pytest

from purejaxppo.errors import CheckpointError
from purejaxppo.experiment import atomic_files
from purejaxppo.experiment.atomic_files import is_temporary, read_json, whole_file, write_json, write_text


def test_json_there_and_back(tmp_path):
    content = {"a": [1, 2.5, None, "é"], "b": {"c": True}}
    write_json(tmp_path / "x.json", {"old": 1})
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", {"old": 1})
    with pytest.raises(AttributeError):
        write_json(tmp_path / "x.json", {"new": object()})
    assert read_json(tmp_path / "x.json") == {"old": 1}


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"[]"])
def test_json_that_cannot_be_read(tmp_path, content):
    path = Path(tmp_path / "x.json")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.json"):
        read_json(path)


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, moment):
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    target = atomic_files.os if moment == "fsync" else Path
    monkeypatch.setattr(target, moment, fail)
    with pytest.raises(CheckpointError, match="No space left"):
        write_text(path, "new")
    assert [file.name for file in tmp_path.iterdir()] == ["x.txt"]
    assert path.read_text() == "old"


def test_until_the_end_the_old_file_stands(tmp_path):
    """A reader, or a crash, in the middle of a write finds the old file."""
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with whole_file(path) as file:
        file.write("half")
        assert path.read_text() == "old"
        (other,) = (entry for entry in tmp_path.iterdir() if entry != path)
        assert is_temporary(other)
    assert path.read_text() == "half"


@pytest.mark.parametrize(
    ("name", "is_one"), [("a.json.tmp-12", True), ("a.tmp", False), ("tmp-12", False), ("a.tmp-x", False)]
)
def test_names_of_unfinished_files(name, is_one):
    assert is_temporary(Path(name)) == is_one


def test_sync_needs_something_to_sync(tmp_path):
    atomic_files.sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        atomic_files.sync(tmp_path / "missing")
