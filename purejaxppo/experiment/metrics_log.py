"""Where a run's metrics go. A sink is any callable(env_steps, metrics), called once per update."""

import contextlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from purejaxppo.config.fields import AnyPath
from purejaxppo.errors import CheckpointError, PureJaxPPOError

Row = Mapping[str, Any]  # numbers, None, and now and then a word
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


class Terminal(Console):
    """Standard error, for what people read beside the result. If nobody reads it any more, training goes on."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"stderr": True, "markup": False, "highlight": False, "soft_wrap": True, **options})

    def on_broken_pipe(self) -> None:
        """Rich would end the process."""
        self.quiet = True


def say(console: Console, text: str) -> None:
    """A line as it is; what cannot be written is not worth a run."""
    with contextlib.suppress(OSError):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def remark(console: Console, text: str) -> None:
    """A line beside the progress, marked as the command's."""
    say(console, f"purejaxppo: {text}")


class ProgressDisplay:
    """Progress on the given console: a bar on a terminal, otherwise a plain line every few seconds."""

    def __init__(self, console: Console, total_env_steps: int, done_env_steps: int = 0) -> None:
        self._console = console
        self._before = done_env_steps
        self._total = total_env_steps
        self._start = self._shown = time.monotonic()
        self._return = math.nan
        self._steps = self._last_shown = done_env_steps
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%  {task.description}  ETA"),
                TimeRemainingColumn(),
                console=console,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task("compiling", total=total_env_steps)

    def __call__(self, env_steps: int, row: Row) -> None:
        episode_return = row["episode/return"]
        if episode_return is not None and math.isfinite(episode_return):
            self._return = episode_return
        self._steps = env_steps
        now = time.monotonic()
        if now - self._shown >= (0.25 if self._bar else 5.0):
            self._shown = now
            self._show(now)

    def advance(self, env_steps: int, row: Row) -> None:
        """Takes the row of an update that made so many env steps more."""
        self(self._steps + env_steps, row)

    def skip(self, env_steps: int) -> None:
        """Counts env steps that an earlier process made: they are done, and say nothing of the speed."""
        self._steps += env_steps
        self._before += env_steps

    def _show(self, now: float) -> None:
        """Shows where training is, unless nothing has been trained since it was shown, or at all."""
        if self._steps <= self._before or self._steps == self._last_shown:
            return
        self._last_shown = self._steps
        speed = (self._steps - self._before) / max(now - self._start, 1e-9)
        known = "no finished episode" if math.isnan(self._return) else f"return {self._return:.4g}"
        text = f"{self._steps:,} / {self._total:,} env steps  {speed:,.0f} steps/s  {known}"
        if self._bar:
            self._bar.update(self._task, completed=self._steps, description=text)
        else:
            say(self._console, f"{text}  ETA {(self._total - self._steps) / speed:.0f} s")

    def start_clock(self) -> None:
        """Training starts now, or goes on; what came before was compilation."""
        self._before = self._steps
        self._start = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        else:
            say(self._console, "compiling")
        return self

    def __exit__(self, *_: object) -> None:
        self._show(time.monotonic())
        if self._bar:
            self._bar.stop()
