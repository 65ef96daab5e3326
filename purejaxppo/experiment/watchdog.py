"""Detection of hangs: messages when something takes long, or much longer than it did before."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

_FACTOR = 10  # the limit is this many times the longest interval between two signs of life so far


@contextmanager
def announced(say: Callable[[str], object], what: str, delay: float = 3.0, interval: float = 30.0) -> Iterator[None]:
    """Reports what is being done within the context, and for how long already, if it takes longer than `delay`.

    Args:
      say: called with each message, from a thread.
      what: what is being done, for example `drawing the picture`.
      delay: seconds until the first message.
      interval: seconds between two messages.
    """
    over = threading.Event()

    def speak() -> None:
        began, wait = time.monotonic(), delay
        while not over.wait(wait):
            say(f"{what}, {time.monotonic() - began:.0f} s so far")
            wait = interval

    threading.Thread(target=speak, daemon=True, name="announced").start()
    try:
        yield
    finally:
        over.set()


class Watchdog:
    """A thread that reports a hang: no sign of life for ten times the longest interval between two of them before.

    Each hang is reported once.

    Args:
      say: called with the message, from the thread.
      limit: seconds without a sign of life that are no hang in any case.
    """

    def __init__(self, say: Callable[[str], None], limit: float = 60.0) -> None:
        self._say = say
        self._limit = limit
        self._condition = threading.Condition()
        self._what = "compiling"
        self._last = time.monotonic()
        self._longest = 0.0
        self._done = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")

    def alive(self, what: str = "an update") -> None:
        """Gives a sign of life.

        Args:
          what: what will end with the next sign of life.
        """
        with self._condition:
            now = time.monotonic()
            # An interval of another kind, such as the compilation, is no measure for this one.
            self._longest = max(self._longest, now - self._last) if what == self._what else 0.0
            self._what, self._last = what, now
            self._condition.notify()

    def _run(self) -> None:
        said = -1.0  # time of the sign of life after which a hang has been reported
        while not self._done:
            with self._condition:
                since, what, longest = self._last, self._what, self._longest
                limit = max(self._limit, _FACTOR * longest) if since != said else None
                heard = self._heard_after(since, limit)
            # Outside of the lock: `say` may block, and `alive` must not wait for it.
            if not heard:
                self._say(_message(what, limit or 0.0, longest))
                said = since

    def _heard_after(self, since: float, seconds: float | None) -> bool:
        """Waits for a sign of life after the one at `since`, or for the end; returns whether one came in time."""
        return self._condition.wait_for(lambda: self._done or self._last != since, timeout=seconds)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self._condition:
            self._done = True
            self._condition.notify()
        self._thread.join(timeout=1.0)  # no longer, since `say` may block; the thread is a daemon


def _message(what: str, seconds: float, longest: float) -> str:
    if what == "compiling":
        return (
            f"still compiling after {seconds:.0f} s; this can take minutes. Smaller hidden_sizes or a machine that "
            f"does nothing else make it shorter."
        )
    before = f", where the longest wait before was {longest:.1f} s" if longest else ""
    return (
        f"no update has finished for {seconds:.0f} s{before}. If nothing else keeps the machine busy, end this with "
        f"Ctrl-C twice and `resume` the run; on a CPU, set NPROC=8 before. `py-spy dump` shows where it waits."
    )
