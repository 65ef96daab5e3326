"""A parent for a process that trains with others, which outlives that process and explains its end.

JAX aborts a process as soon as process 0 is gone, in which its coordinator lives, or if others do not come. It does so
within C++, where no Python can intervene: without a parent it would end with a trace and exit code 134.
"""

import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from purejaxppo.cli.arguments import Together
from purejaxppo.cli.output import note
from purejaxppo.experiment.signals import SIGNALS, STOPPED, hearing_signals

_FLAGS = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Together)}
_PARENT = "PUREJAXPPO_PARENT"  # variable of the child: the parent's number, and a file descriptor that it reads
_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
_to_parent: list[int] = []  # that descriptor, in the child


def has_others(argv: Sequence[str]) -> bool:
    """Returns whether a command's arguments are those of one of several processes."""
    return any(argument.partition("=")[0].replace("_", "-") in _FLAGS for argument in argv)


def begin_as_child() -> bool:
    """Makes this process end with its parent, if `run_in_child` has started it; returns whether it has.

    It has to handle signals already: those that came before are delivered now.
    """
    if _PARENT not in os.environ:
        return False
    parent, told = map(int, os.environ.pop(_PARENT).split())
    os.set_inheritable(told, False)  # the parent reads until nobody has it any more
    _to_parent[:] = [told]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        note("error: the process that started this one has ended.")
        os._exit(STOPPED)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return True


def explain_abort(code: int, why: str) -> None:
    """Tells the parent, if there is one, what it means if this process is aborted from now on.

    Args:
      code: with which the parent is to end.
      why: what it is to say, one line.
    """
    for told in _to_parent:
        os.write(told, f"{code} {why}\n".encode(errors="backslashreplace"))


def run_in_child() -> int:
    """Runs the command of this process in a child, to which signals are passed on, and returns its exit code."""
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory(prefix="purejaxppo-", ignore_cleanup_errors=True) as temporary:
        environment = {**os.environ, _PARENT: f"{os.getpid()} {writer}", "TMPDIR": temporary}
        command = [sys.executable, *sys.orig_argv[1:]]
        # The child has signals blocked until it handles them. In a process group of its own a terminal's Ctrl-C reaches
        # it once, from here, and not twice.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        child = subprocess.Popen(command, env=environment, pass_fds=[writer], process_group=0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.close(writer)
        with hearing_signals(child.send_signal):
            code = child.wait()
    with os.fdopen(reader) as told:
        explanations = told.read().splitlines()
    if code >= 0:
        return code
    if code == -signal.SIGABRT and explanations:
        code_of_abort, _, why = explanations[-1].partition(" ")
        note(f"error: {why}")
        return int(code_of_abort)
    note(f"error: this process was ended by {signal.Signals(-code).name}.")
    return 128 - code
