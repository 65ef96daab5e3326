"""Metrics: sinks, metrics.jsonl and reading it. A sink is any callable(env_steps, metrics), called once per update."""

import contextlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

from purejaxppo.config.fields import EPISODE_METRICS, AnyPath
from purejaxppo.errors import CheckpointError, PureJaxPPOError
from purejaxppo.experiment.progress import Row

Sink = Callable[[int, Row], None]
_LONGEST_ROW = 1024  # bytes; most rows have about half as many
_REMEDY = "free some space and `purejaxppo resume` the run."


def emit(sinks: Sequence[Sink], env_steps: int, row: Row) -> list[Sink]:
    """Passes a row to every sink, and returns the sinks that still work.

    A user's sink that raises is left out from then on, with a warning that names it. Errors of this package, such as a
    full disk, are raised.
    """
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
    """A file to which rows are appended, from its beginning or from a position in an existing one.

    Args:
      path: of the file.
      keep: bytes of an existing file to keep; rows are appended after them.
      truncate: whether what comes after them is removed.

    Raises:
      CheckpointError: the file cannot be written.
    """

    def __init__(self, path: Path, keep: int = 0, truncate: bool = True) -> None:
        self._path = path
        try:
            # Unbuffered, so that a kill tears no row but the last one, and `position` is that of the file itself.
            self._file = path.open("r+b" if keep else "wb", buffering=0)
            if keep and truncate:
                self._file.truncate(keep)
            self._file.seek(keep)
            self._last_row = keep
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error}") from error

    def write(self, text: str) -> None:
        """Appends whole rows. Raises CheckpointError if they cannot be written."""
        content = text.encode()
        self._last_row = self.position()
        try:
            written = self._file.write(content)
        except OSError as error:
            raise CheckpointError(f"cannot write {self._path}: {error}; {_REMEDY}") from error
        if written != len(content):
            raise CheckpointError(f"cannot write {self._path}: no space left; {_REMEDY}")

    def position(self) -> int:
        """Returns the position in the file, in bytes, after the last row that was written."""
        return self._file.tell()

    def last_row(self) -> int:
        """Returns the position in the file, in bytes, at which the row that was written last begins."""
        return self._last_row

    def sync(self) -> None:
        """Waits until all rows are on the disk. Raises OSError."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class RepeatedFile(AppendedFile):
    """A file to which rows are written that it may already contain, as when training is repeated from a checkpoint.

    While the rows equal those in the file, nothing is changed, and rows of later batches that follow them stay. At the
    first row that differs the file is truncated.

    Args:
      path: of the file.
      keep: bytes of an existing file to keep; the rows are compared with what comes after them.
    """

    def __init__(self, path: Path, keep: int) -> None:
        super().__init__(path, keep, truncate=False)

    def write(self, text: str) -> None:
        """Appends whole rows, unless the file has them here. Raises CheckpointError if they cannot be written."""
        content, position = text.encode(), self.position()
        try:
            if self._file.read(len(content)) == content:
                return
            self._file.seek(position)
            self._file.truncate()
        except OSError as error:
            raise CheckpointError(f"cannot write {self._path}: {error}; {_REMEDY}") from error
        super().write(text)


class JsonLines(AppendedFile):
    """A sink that writes one JSON object per line; numbers that are not finite become null."""

    def __call__(self, env_steps: int, row: Row) -> None:
        self.write(f"{json.dumps(json_values(row))}\n")


def json_values(row: Row) -> dict[str, Any]:
    """Returns a row with null for numbers that are not finite, which JSON does not have."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def whole_rows(path: Path, limit: int) -> int:
    """Returns the end, in bytes, of the last whole row within the first `limit` bytes of a metrics file; 0 if none is.

    Raises CheckpointError if the file cannot be read; a missing file has no row.
    """
    try:
        with path.open("rb") as file:
            return _end_of_last_row(file, min(limit, file.seek(0, os.SEEK_END)))
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _end_of_last_row(file: BinaryIO, end: int) -> int:
    while end > 0:  # block by block from the end, as the file may be larger than the memory
        begin = max(0, end - _LONGEST_ROW)
        file.seek(begin)
        newline = file.read(end - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0


def read_metrics(path: AnyPath) -> list[dict[str, Any]]:
    """Returns the rows of a metrics file, without an incomplete last line, as a crash leaves it.

    Raises CheckpointError if the file is missing or unreadable, or another line is not JSON.
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
    """Returns `mean_return` of the last `updates` rows within the first `limit` bytes of a metrics file."""
    return mean_return(last_rows(path, limit, updates))


def last_rows(path: Path, limit: int, updates: int) -> list[dict[str, Any]]:
    """Returns the last `updates` rows within the first `limit` bytes of a metrics file, without damaged ones."""
    size = updates * _LONGEST_ROW
    with path.open("rb") as file:
        while True:  # rows are longer where an environment reports much
            begin = max(0, limit - size)
            file.seek(begin)
            lines = file.read(limit - begin).splitlines()
            if begin == 0 or len(lines) > updates:
                break
            size *= 2
    rows = []
    for line in lines[-updates:]:
        with contextlib.suppress(ValueError):  # the first line may be incomplete
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and {"episode/return", "episode/count"} <= row.keys()]


def row_at(path: Path, position: int) -> tuple[dict[str, Any], int] | None:
    """Returns the row that begins at a position of a metrics file, and where it ends; None if no whole row does."""
    try:
        with path.open("rb") as file:
            file.seek(position)
            line = file.readline()
        row = json.loads(line) if line.endswith(b"\n") else None
    except (OSError, ValueError):
        return None
    return (row, position + len(line)) if isinstance(row, dict) else None


def mean_return(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns `episode_mean` of the return."""
    return episode_mean(rows, "episode/return")


def episode_mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Returns the mean of a metric `episode/...` over the episodes that ended in these updates; None if none did.

    An update that was undone because of rewards that are not finite may have a count without a return.
    """
    pairs = [(row.get(name), row["episode/count"]) for row in rows]
    ended = [(mean, count) for mean, count in pairs if count and mean is not None]
    count = sum(count for _, count in ended)
    return sum(mean * count for mean, count in ended) / count if count else None


def reported(names: Iterable[str]) -> dict[str, str]:
    """Returns, in order, what the environment reports of its episodes: name of the metric -> name in its `info`."""
    own = {f"episode/{name}" for name in EPISODE_METRICS}
    return {
        name: name.removeprefix("episode/") for name in sorted(names) if name.startswith("episode/") and name not in own
    }


def reported_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Returns `episode_mean` of all that the environment reports, by the names in its `info`."""
    return {name: episode_mean(rows, metric) for metric, name in reported(rows[-1] if rows else ()).items()}
