"""Signals that ask a run to stop: SIGINT, SIGTERM and SIGUSR1 (which batch systems send before the time is up).

There are two ways to listen.

- `stop_on_signal`, for a program that calls this package: Python's own handlers, which run in the main thread between
  two bytecodes. During a compilation, which is one long call into C++, they have to wait.
- `stop_process_on_signal`, for the command line: a thread reads the signals' numbers from a pipe, and so hears them
  during a compilation too. It ends the process, instead of raising an exception in the main thread.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import NoReturn

STOPPED = 75  # exit code of a run that stopped on request, and can be resumed (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # exit code of a process that was aborted (128 + SIGINT, as of a shell)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

_NOTHING_WRITTEN = "nothing had been written yet, so nothing is lost."
_what_stays = [_NOTHING_WRITTEN]  # one string, in a list so that a function can replace it
_hearers: list[Callable[[str], object]] = []  # called with it, too
_before_end: list[Callable[[int], object]] = []  # called with the exit code before `end_process` ends everything


def when_interrupted(what_stays: str = _NOTHING_WRITTEN) -> None:
    """Sets the second half of the message of `interrupted`: what is on the disk from now on, and how to use it."""
    _what_stays[:] = [what_stays]
    for hear in _hearers:
        hear(what_stays)


def hear_what_stays(hear: Callable[[str], object]) -> None:
    """Has a function called with what is on the disk, now and whenever it is set."""
    _hearers.append(hear)
    hear(*_what_stays)


def interrupted(again: bool = False) -> str:
    """Returns the message with which the command line ends when a signal ends it at once."""
    return f"interrupted{' again' * again}; {_what_stays[0]}"


class StopRequest:
    """The request to stop: called, it returns the name of the first signal that has come, or None.

    A Ctrl-C after that signal aborts at once, with KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._stop_message: str | None = None  # while `ending_at_once` is entered
        self._code = STOPPED

    def __call__(self) -> str | None:
        return self.name

    def received(self, number: int) -> None:
        """Handles a signal: the first one is noted, and ends everything within `ending_at_once`.

        Args:
          number: of the signal.
        """
        again, self.name = self.name is not None, self.name or signal.Signals(number).name
        if again and number == signal.SIGINT:  # a batch system may send further signals; only a user's Ctrl-C aborts
            self._abort()
        if self._stop_message:
            self._end(self._stop_message)

    @contextmanager
    def ending_at_once(self, stop_message: str, code: int = STOPPED) -> Iterator[None]:
        """Makes the first signal end everything at once within the context, where there is nothing to save.

        Args:
          stop_message: what is saved already, and how to go on.
          code: exit code of a process; INTERRUPTED where there is nothing yet that could be resumed.
        """
        # The message is set before the name is read. A signal that comes before the assignment is found by the test
        # below, and one that comes after it is handled by `received`; in the other order one could be missed.
        self._stop_message, self._code = stop_message, code
        try:
            if self.name:
                self._end(stop_message)
            yield
        finally:
            self._stop_message = None

    def _abort(self) -> NoReturn:
        raise KeyboardInterrupt

    def _end(self, stop_message: str) -> NoReturn:
        raise KeyboardInterrupt(f"stopped by {self.name}: {stop_message}")


class _ProcessStopRequest(StopRequest):
    """A request to stop that ends the process with an exit code.

    It never raises an exception: one that was raised while an extension module was being loaded caused a segmentation
    fault.
    """

    def _abort(self) -> NoReturn:
        end_process(interrupted(again=True), INTERRUPTED)

    def _end(self, stop_message: str) -> NoReturn:
        end_process(f"stopped by {self.name}: {stop_message}", self._code)


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Listens by Python's signal handlers. Outside the main thread, which alone may install them, nothing is heard."""
    stop = StopRequest()
    with _handled(lambda number, _: stop.received(number)):
        yield stop


def listening(stop: StopRequest | None) -> AbstractContextManager[StopRequest]:
    """Returns a context with the caller's request to stop or, if there is none, `stop_on_signal`."""
    return nullcontext(stop) if stop else stop_on_signal()


@contextmanager
def stop_process_on_signal() -> Iterator[StopRequest]:
    """Listens in a thread, so that a signal is heard during a compilation too. To be called from the main thread."""
    stop = _ProcessStopRequest()
    with hearing_signals(stop.received):
        yield stop


@contextmanager
def hearing_signals(received: Callable[[int], object]) -> Iterator[None]:
    """Calls a function with the number of each signal, in a thread, within the context. For the main thread only."""
    reader, writer = os.pipe()
    previous, thread = _start_listening(reader, writer, received)
    try:
        with _handled(_ignore):
            yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(writer)  # the thread reads the end of the pipe, and ends
        thread.join()
        os.close(reader)


def end_process_on_signal() -> None:
    """Makes the first signal end the process from now on, with the message of `interrupted`, even during a compilation.

    `stop_process_on_signal` takes precedence while it listens. To be called from the main thread.
    """
    _start_listening(*os.pipe(), lambda _: end_process(f"error: {interrupted()}", INTERRUPTED))
    for number in SIGNALS:
        signal.signal(number, _ignore)


def _start_listening(reader: int, writer: int, received: Callable[[int], object]) -> tuple[int, threading.Thread]:
    """Starts a thread that calls `received` with the number of each signal.

    Only signals that have a Python handler arrive.

    Args:
      reader, writer: the two ends of a pipe.
      received: called from the thread.

    Returns:
      The previous wakeup descriptor, and the thread.
    """
    # CPython's handler in C writes the signal's number to the wakeup descriptor at once, whatever the main thread is
    # doing; only the handler in Python waits for the next bytecode. The descriptor must not block: that write happens
    # inside a signal handler.
    os.set_blocking(writer, False)
    thread = threading.Thread(target=_listen, args=(reader, received), daemon=True, name="signals")
    thread.start()
    return signal.set_wakeup_fd(writer, warn_on_full_buffer=False), thread


def _listen(reader: int, received: Callable[[int], object]) -> None:
    while number := os.read(reader, 1):
        if number[0] in SIGNALS:
            received(number[0])


def _ignore(number: int, _: FrameType | None) -> None:
    """Does nothing: a signal needs a Python handler for its number to be written to the wakeup descriptor."""


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


def before_end(call: Callable[[int], object]) -> None:
    """Has a function called with the exit code before a signal ends the process at once."""
    _before_end.append(call)


def end_process(message: str, code: int) -> NoReturn:
    """Ends the process at once, with one line on standard error and without any cleanup."""
    try:
        show_cursor = "\x1b[?25h\n" if os.isatty(2) else ""  # a progress bar hides the cursor
        os.write(2, f"{show_cursor}purejaxppo: {message}\n".encode(errors="backslashreplace"))
        for call in _before_end:
            call(code)
    finally:
        os._exit(code)  # even if standard error is closed
