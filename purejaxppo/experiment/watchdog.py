"""Says so when nothing seems to happen any more."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

_FACTOR = 10  # times the longest wait so far


@contextmanager
def announced(say: Callable[[str], object], what: str, patience: float = 3.0, interval: float = 30.0) -> Iterator[None]:
    """Says what is being done within, if that takes longer than a few seconds, and how long it has taken, now and then.

    Args:
      say: told so, from a thread.
      what: is being done, as in `drawing the picture`.
      patience: seconds until the first line.
      interval: seconds from each line to the next.
    """
    over = threading.Event()

    def speak() -> None:
        began, wait = time.monotonic(), patience
        while not over.wait(wait):
            say(f"{what}, {time.monotonic() - began:.0f} s so far")
            wait = interval

    threading.Thread(target=speak, daemon=True, name="announced").start()
    try:
        yield
    finally:
        over.set()


class Watchdog:
    """A thread that speaks up once when the next sign of life takes much longer than all before.

    Args:
      say: told the message; called from the thread.
      patience: seconds to wait at the least.
    """

    def __init__(self, say: Callable[[str], None], patience: float = 60.0) -> None:
        self._say = say
        self._patience = patience
        self._condition = threading.Condition()
        self._what = "compiling"
        self._last = time.monotonic()
        self._longest = 0.0
        self._done = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")

    def alive(self, what: str = "an update") -> None:
        """A sign of life; `what` is awaited from now on."""
        with self._condition:
            now = time.monotonic()
            # Signs that end another kind of wait, such as compilation's, say nothing about this one.
            self._longest = max(self._longest, now - self._last) if what == self._what else 0.0
            self._what, self._last = what, now
            self._condition.notify()

    def _run(self) -> None:
        said = -1.0  # the sign of life after which there was silence
        while not self._done:
            with self._condition:
                since, what, longest = self._last, self._what, self._longest
                limit = max(self._patience, _FACTOR * longest) if since != said else None
                heard = self._heard_after(since, limit)
            if not heard:  # said without the lock: the listener may be what hangs
                self._say(_message(what, limit or 0.0, longest))
                said = since

    def _heard_after(self, since: float, seconds: float | None) -> bool:
        return self._condition.wait_for(lambda: self._done or self._last != since, timeout=seconds)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self._condition:
            self._done = True
            self._condition.notify()
        self._thread.join(timeout=1.0)  # it is a daemon, and what it tells may be what hangs


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
