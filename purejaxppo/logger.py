"""Where a run's metrics go. A sink is any callable(env_steps, metrics), called once per update."""

import contextlib
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from purejaxppo.errors import CheckpointError, PureJaxPPOError

Row = Mapping[str, float | int | None]
Sink = Callable[[int, Row], None]


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


class JsonLines:
    """One JSON object per line; what is not finite is null. Raises CheckpointError when the file cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("w", encoding="utf-8", buffering=1)
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error}") from error

    def __call__(self, env_steps: int, row: Row) -> None:
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        try:
            self._file.write(json.dumps(clean) + "\n")
        except OSError as error:
            raise CheckpointError(f"cannot write {self._path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Closing flushes once more; on a full disk the error has been raised already.
        with contextlib.suppress(OSError):
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a torn last line, as a crash leaves it, is left out.

    Raises CheckpointError for a file that is missing or broken elsewhere.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
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


class ProgressDisplay:
    """Progress on the given console: a bar on a terminal, otherwise a plain line every few seconds."""

    def __init__(self, console: Console, total_env_steps: int) -> None:
        self._console = console
        self._total = total_env_steps
        self._start = self._shown = time.monotonic()
        self._return = math.nan
        self._steps = 0
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

    def _show(self, now: float) -> None:
        speed = self._steps / max(now - self._start, 1e-9)
        known = "no finished episode" if math.isnan(self._return) else f"return {self._return:.4g}"
        text = f"{self._steps:,} / {self._total:,} env steps  {speed:,.0f} steps/s  {known}"
        if self._bar:
            self._bar.update(self._task, completed=self._steps, description=text)
        else:
            remaining = (self._total - self._steps) / speed if speed else math.nan
            self._console.print(f"{text}  ETA {remaining:.0f} s", highlight=False, soft_wrap=True)

    def start_clock(self) -> None:
        """Training starts now; what came before was compilation."""
        self._start = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._steps:
            self._show(time.monotonic())
        if self._bar:
            self._bar.stop()
