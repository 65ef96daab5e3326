"""Small files that are, after a crash at any moment, whole or absent; and reading them back."""

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
    """Writes JSON by `write_text`; NumPy's scalars are written as numbers."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, default=lambda scalar: scalar.item()) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a whole text by `whole_file`."""
    with whole_file(path) as file:
        file.write(text)


def write_bytes(path: Path, content: bytes | bytearray) -> None:
    """Writes whole bytes by `whole_file`."""
    with whole_file(path) as file:
        file.buffer.write(content)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A file to write that is, after a crash at any moment, either the old one or the new one.

    Raises CheckpointError if it cannot be written.
    """
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
    """Raises CheckpointError for a file that is missing, unreadable or not a JSON object."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"cannot read {path}: it holds no JSON object.")
    return content


def is_file(path: Path) -> bool:
    """Whether there is such a file; not if there cannot be one, since the name is too long or holds a NUL."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_temporary(path: Path) -> bool:
    """Whether a file is one that `whole_file` had not finished when its process was killed."""
    return _TEMPORARY.search(path.name) is not None


def sync(path: Path) -> None:
    """Waits until a file's content, or a directory's entries, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
