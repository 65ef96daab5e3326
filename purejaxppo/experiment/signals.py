"""Signals that ask a run to stop: SIGINT, SIGTERM and SIGUSR1 (which batch systems send before the time is up)."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import NoReturn

STOPPED = 75
INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

_NOTHING = "nothing had been written yet, so nothing is lost."
_what_stays = [_NOTHING]


def when_interrupted(what_stays: str = _NOTHING) -> None:
    """Sets what `interrupted` says from now on, in half a sentence: what stays on the disk, and what to do with it."""
    _what_stays[:] = [what_stays]


def interrupted(again: bool = False) -> str:
    """Returns what the command line says when a signal ends it at once, at any moment from its start to its end."""
    return f"interrupted{' again' * again}; {_what_stays[0]}"


class StopRequest:
    """Names the signal that asked to stop, if one did. Ctrl-C after that aborts at once, with KeyboardInterrupt."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._farewell: str | None = None
        self._code = STOPPED

    def __call__(self) -> str | None:
        return self.name

    def received(self, number: int) -> None:
        """A signal has come."""
        again, self.name = self.name is not None, self.name or signal.Signals(number).name
        if again and number == signal.SIGINT:  # a batch system's second signal is no loss of patience
            self._abort()
        if self._farewell:
            self._end(self._farewell)

    @contextmanager
    def ending_at_once(self, farewell: str, code: int = STOPPED) -> Iterator[None]:
        """Within it, the first signal ends everything: what was reached is saved already. `farewell` says so.

        A process ends with `code`: INTERRUPTED where there is nothing yet that could be resumed.
        """
        self._farewell, self._code = farewell, code  # before looking: a signal in between must not be missed
        try:
            if self.name:
                self._end(farewell)
            yield
        finally:
            self._farewell = None

    def _abort(self) -> NoReturn:
        raise KeyboardInterrupt

    def _end(self, farewell: str) -> NoReturn:
        raise KeyboardInterrupt(f"stopped by {self.name}: {farewell}")


class _ProcessStopRequest(StopRequest):
    """The same for a process of its own, which ends with an exit code.

    Never by an exception: raised while an extension module is being loaded it would be a segmentation fault.
    """

    def _abort(self) -> NoReturn:
        end_process(interrupted(again=True), INTERRUPTED)

    def _end(self, farewell: str) -> NoReturn:
        end_process(f"stopped by {self.name}: {farewell}", self._code)


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Listens while Python runs. Outside the main thread, where no handler may be installed, nothing is heard."""
    stop = StopRequest()
    with _handled(lambda number, _: stop.received(number)):
        yield stop


def listening(stop: StopRequest | None) -> AbstractContextManager[StopRequest]:
    """A request that somebody else has the say of, or else `stop_on_signal`."""
    return nullcontext(stop) if stop else stop_on_signal()


@contextmanager
def stop_process_on_signal() -> Iterator[StopRequest]:
    """Listens in a thread, so that a signal is heard in the middle of a compilation too. For the main thread."""
    stop = _ProcessStopRequest()
    reader, writer = os.pipe()
    previous, thread = _start_listening(reader, writer, stop.received)
    try:
        with _handled(_ignore):
            yield stop
    finally:
        signal.set_wakeup_fd(previous)
        os.close(writer)
        thread.join()
        os.close(reader)


def end_process_on_signal() -> None:
    """From now on the first signal ends the process, with what `interrupted` says, wherever its main thread is.

    `stop_process_on_signal` takes its place while that listens. For the main thread.
    """
    _start_listening(*os.pipe(), lambda _: end_process(f"error: {interrupted()}", INTERRUPTED))
    for number in SIGNALS:
        signal.signal(number, _ignore)


def _start_listening(reader: int, writer: int, received: Callable[[int], object]) -> tuple[int, threading.Thread]:
    """Calls `received` with the number of each signal, from a thread; returns the wakeup descriptor of before, and it.

    Python writes a signal's number to the pipe only where it has a handler.
    """
    os.set_blocking(writer, False)
    thread = threading.Thread(target=_listen, args=(reader, received), daemon=True, name="signals")
    thread.start()
    return signal.set_wakeup_fd(writer, warn_on_full_buffer=False), thread


def _listen(reader: int, received: Callable[[int], object]) -> None:
    while number := os.read(reader, 1):
        if number[0] in SIGNALS:
            received(number[0])


def _ignore(number: int, _: FrameType | None) -> None:
    """A handler for signals that are heard in a thread."""


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    try:
        previous = {number: signal.signal(number, handler) for number in SIGNALS}
    except ValueError:  # not the main thread
        previous = {}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def end_process(message: str, code: int) -> NoReturn:
    """Ends the process at once, with one line on standard error."""
    try:
        show_cursor = "\x1b[?25h\n" if os.isatty(2) else ""  # which a progress bar hides
        os.write(2, f"{show_cursor}purejaxppo: {message}\n".encode(errors="backslashreplace"))
    finally:
        os._exit(code)  # even if nobody reads that line any more
