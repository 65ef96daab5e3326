"""Atomic writes of small files, which are complete or absent after a crash, and reading them back."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from purejaxppo.config.fields import AnyPath
from purejaxppo.errors import CheckpointError

_TEMPORARY = re.compile(r"\.tmp-\d+$")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically; NumPy scalars become numbers. Raises CheckpointError."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, default=lambda scalar: scalar.item()) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically. Raises CheckpointError."""
    with whole_file(path) as file:
        file.write(text)


def write_bytes(path: Path, content: bytes | bytearray) -> None:
    """Writes a binary file atomically. Raises CheckpointError."""
    with whole_file(path) as file:
        file.buffer.write(content)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Opens a file for writing; after a crash at any moment, `path` is either the old file or the complete new one.

    Raises CheckpointError if it cannot be written.
    """
    # Written under a temporary name and renamed, which POSIX makes atomic. The content is synced before the rename:
    # otherwise a power failure could leave the new name with an empty file. The directory is synced after it, so that
    # the rename itself is on the disk.
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise CheckpointError(f"cannot write {path}: {error}") from error


def read_json(path: AnyPath) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises CheckpointError if it is missing, unreadable or not a JSON object."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"cannot read {path}: it holds no JSON object.")
    return content


def is_file(path: Path) -> bool:
    """Returns whether the file exists; False for a name that no file can have (too long, or with a NUL)."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_temporary(path: Path) -> bool:
    """Returns whether a file is a temporary one of `whole_file`, left by a process that was killed while writing."""
    return _TEMPORARY.search(path.name) is not None


def sync(path: Path) -> None:
    """Waits until a file's content, or a directory's entries, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
