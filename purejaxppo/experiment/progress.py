"""What people see while something goes on: lines on standard error, and the progress of training."""

import contextlib
import math
import time
from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Row = Mapping[str, Any]  # the metrics of an update: numbers, None, and now and then a word


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
