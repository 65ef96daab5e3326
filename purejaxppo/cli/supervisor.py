"""A parent for a process that trains with others, which outlives that process and explains its end.

As soon as process 0 is gone, in which its coordinator lives, JAX aborts all others. It does so within C++, where no
Python can intervene: without a parent such a process would end with a trace and exit code 134.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from purejaxppo.cli.output import note
from purejaxppo.errors import ProcessError
from purejaxppo.experiment.signals import hearing_signals, tell_what_stays

_FLAGS = ("--distributed", "--coordinator", "--num-processes", "--process-id")
_PARENT = "PUREJAXPPO_PARENT"  # variable of the child: the parent's number, and a file descriptor that it reads
_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def has_others(argv: Sequence[str]) -> bool:
    """Returns whether a command's arguments are those of one of several processes."""
    return any(argument.partition("=")[0].replace("_", "-") in _FLAGS for argument in argv)


def is_child() -> bool:
    """Returns whether this process has been started by `run_in_child`. It then ends when its parent does."""
    if _PARENT not in os.environ:
        return False
    parent, told = map(int, os.environ.pop(_PARENT).split())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(ProcessError.exit_code)
    tell_what_stays(told)
    return True


def run_in_child() -> int:
    """Runs the command of this process in a child, to which signals are passed on, and returns its exit code."""
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory(prefix="purejaxppo-") as temporary:  # removed however the child ends
        environment = {**os.environ, _PARENT: f"{os.getpid()} {writer}", "TMPDIR": temporary}
        command = [sys.executable, *sys.orig_argv[1:]]
        # In a process group of its own a terminal's Ctrl-C reaches it once, from here, and not twice.
        child = subprocess.Popen(command, env=environment, pass_fds=[writer], process_group=0)
        os.close(writer)
        with hearing_signals(child.send_signal):
            code = child.wait()
    with os.fdopen(reader) as told:
        *_, what_stays = ["nothing was saved.", *told.read().splitlines()]
    if code >= 0:
        return code
    if code == -signal.SIGABRT:
        note(f"error: process 0 has ended or cannot be reached, or JAX has failed, as it says above; {what_stays}")
        return ProcessError.exit_code
    note(f"error: this process was ended by {signal.Signals(-code).name}; {what_stays}")
    return 128 - code
