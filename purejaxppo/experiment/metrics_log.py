"""Where a run's metrics go. A sink is any callable(env_steps, metrics), called once per update."""

import contextlib
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from purejaxppo.config.fields import AnyPath
from purejaxppo.errors import CheckpointError, PureJaxPPOError
from purejaxppo.experiment.progress import Row

Sink = Callable[[int, Row], None]
_LONGEST_ROW = 1024  # bytes, about twice what there is
_MEND = "free some space and `purejaxppo resume` the run."


def emit(sinks: Sequence[Sink], env_steps: int, row: Row) -> list[Sink]:
    """Gives a row to every sink; returns the sinks that still work. A foreign one that raises is dropped, by name."""
    working = []
    for sink in sinks:
        try:
            sink(env_steps, row)
            working.append(sink)
        except PureJaxPPOError:
            raise
        except Exception as error:
            warnings.warn(f"metrics sink {sink!r} raised {error!r} and is left out from here on", stacklevel=2)
    return working


class AppendedFile:
    """A file that grows row by row, and can go on after a row in its middle.

    Args:
      path: of the file.
      keep: bytes of what is there to go on after.
      cut: whether the rest of it is cut off.

    Raises:
      CheckpointError: the file cannot be written.
    """

    def __init__(self, path: Path, keep: int = 0, cut: bool = True) -> None:
        self._path = path
        try:
            # Unbuffered: a row is in the file, whole or torn, before the next one is made.
            self._file = path.open("r+b" if keep else "wb", buffering=0)
            if keep and cut:
                self._file.truncate(keep)
            self._file.seek(keep)
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error}") from error

    def write(self, text: str) -> None:
        """Adds whole rows. Raises CheckpointError."""
        content = text.encode()
        try:
            written = self._file.write(content)
        except OSError as error:
            raise CheckpointError(f"cannot write {self._path}: {error}; {_MEND}") from error
        if written != len(content):
            raise CheckpointError(f"cannot write {self._path}: no space left; {_MEND}")

    def position(self) -> int:
        """Bytes written, from the file's beginning."""
        return self._file.tell()

    def sync(self) -> None:
        """Waits until what is written is on the disk. Raises OSError."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class RepeatedFile(AppendedFile):
    """A file whose rows may come again: equal ones stay, with all that follows; from the first other one it is cut."""

    def __init__(self, path: Path, keep: int) -> None:
        super().__init__(path, keep, cut=False)

    def write(self, text: str) -> None:
        """Adds whole rows, unless they are there. Raises CheckpointError."""
        content, position = text.encode(), self.position()
        try:
            if self._file.read(len(content)) == content:
                return
            self._file.seek(position)
            self._file.truncate()
        except OSError as error:
            raise CheckpointError(f"cannot write {self._path}: {error}; {_MEND}") from error
        super().write(text)


class JsonLines(AppendedFile):
    """One JSON object per line; what is not finite is null."""

    def __call__(self, env_steps: int, row: Row) -> None:
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self.write(f"{json.dumps(clean)}\n")


def whole_rows(path: Path, limit: int) -> int:
    """How many of a metrics file's first `limit` bytes are there and end in a whole row."""
    try:
        with path.open("rb") as file:
            end = min(limit, file.seek(0, os.SEEK_END))
            while end > 0:  # backwards: the file may be larger than the memory
                begin = max(0, end - _LONGEST_ROW)
                file.seek(begin)
                newline = file.read(end - begin).rfind(b"\n")
                if newline >= 0:
                    return begin + newline + 1
                end = begin
            return 0
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def read_metrics(path: AnyPath) -> list[dict[str, Any]]:
    """The rows of a metrics file; a torn last line, as a crash leaves it, is left out.

    Raises CheckpointError for a file that is missing or broken elsewhere.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise CheckpointError(f"{path}, line {number}, is not JSON: {error}") from error
    return rows


def recent_return(path: Path, limit: int, updates: int) -> float | None:
    """Mean return of the episodes that ended in the last updates within a metrics file's first `limit` bytes."""
    return mean_return(last_rows(path, limit, updates))


def last_rows(path: Path, limit: int, updates: int) -> list[dict[str, Any]]:
    """The last rows within a metrics file's first `limit` bytes; what is not a row is left out."""
    begin = max(0, limit - updates * _LONGEST_ROW)
    with path.open("rb") as file:
        file.seek(begin)
        lines = file.read(limit - begin).splitlines()
    rows = []
    for line in lines[-updates:]:
        with contextlib.suppress(ValueError):  # the first may be torn
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and {"episode/return", "episode/count"} <= row.keys()]


def mean_return(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean return over the episodes that ended in these updates; None if none did.

    An update that was undone, for rewards that were not numbers, has a count but no return.
    """
    pairs = [(row["episode/return"], row["episode/count"]) for row in rows]
    ended = [(mean, count) for mean, count in pairs if count and mean is not None]
    count = sum(count for _, count in ended)
    return sum(mean * count for mean, count in ended) / count if count else None
