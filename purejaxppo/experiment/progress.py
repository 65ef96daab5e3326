"""Messages and the progress of training, on standard error."""

import contextlib
import math
import time
from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Row = Mapping[str, Any]  # metrics of an update, by name: numbers, None, or text (`nonfinite`)


class Terminal(Console):
    """A console on standard error. If its reader has gone, as with a closed pipe, it becomes silent."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"stderr": True, "markup": False, "highlight": False, "soft_wrap": True, **options})

    def on_broken_pipe(self) -> None:
        """Becomes silent; Rich's own method would end the process."""
        self.quiet = True


def say(console: Console, text: str) -> None:
    """Prints a line as it is, without markup. A line that cannot be written is dropped, as no run should end by it."""
    with contextlib.suppress(OSError):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def remark(console: Console, text: str) -> None:
    """Prints a line that begins with `purejaxppo: `, to be told from the lines of progress."""
    say(console, f"purejaxppo: {text}")


class ProgressDisplay:
    """A sink that shows progress: a bar on a terminal, otherwise a line every five seconds.

    Args:
      console: where it is shown.
      total_env_steps: env steps of the whole run, or of all runs of a sweep.
      done_env_steps: how many of them were done before.
    """

    def __init__(self, console: Console, total_env_steps: int, done_env_steps: int = 0) -> None:
        self._console = console
        self._before = done_env_steps
        self._total = total_env_steps
        self._start = self._shown = time.monotonic()
        self._return = self._evaluation = math.nan
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
        self._return = _newer(row["episode/return"], self._return)
        self._evaluation = _newer(row.get("evaluation/return"), self._evaluation)
        self._steps = env_steps
        now = time.monotonic()
        if now - self._shown >= (0.25 if self._bar else 5.0):
            self._shown = now
            self._show(now)

    def advance(self, env_steps: int, row: Row) -> None:
        """Takes the row of an update, which had `env_steps` env steps."""
        self(self._steps + env_steps, row)

    def skip(self, env_steps: int) -> None:
        """Counts env steps that an earlier process did, for the progress but not for the speed."""
        self._steps += env_steps
        self._before += env_steps

    def _show(self, now: float) -> None:
        """Shows the progress, unless it has not changed since it was last shown or since the beginning."""
        if self._steps <= self._before or self._steps == self._last_shown:
            return
        self._last_shown = self._steps
        speed = (self._steps - self._before) / max(now - self._start, 1e-9)
        known = "no finished episode" if math.isnan(self._return) else f"return {self._return:.4g}"
        known += "" if math.isnan(self._evaluation) else f"  evaluation {self._evaluation:.4g}"
        text = f"{self._steps:,} / {self._total:,} env steps  {speed:,.0f} steps/s  {known}"
        if self._bar:
            self._bar.update(self._task, completed=self._steps, description=text)
        else:
            say(self._console, f"{text}  ETA {(self._total - self._steps) / speed:.0f} s")

    def start_clock(self) -> None:
        """Measures the speed from now on; the time before was compilation."""
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


def _newer(value: float | None, known: float) -> float:
    """Returns a return if there is one and it is finite, otherwise the one that is known."""
    return known if value is None or not math.isfinite(value) else value
