"""The parent of a process that trains with others: it passes signals on, and says how its child has ended."""

import os
import signal
import subprocess
import sys
import time

import pytest

from purejaxppo.cli.supervisor import has_others

# The child says that it is there, and then does what the test wants.
SCRIPT = """
import os, signal, sys, tempfile, time
from purejaxppo.cli.supervisor import is_child, run_in_child
from purejaxppo.experiment.signals import when_interrupted
if not is_child():
    sys.exit(run_in_child())
when_interrupted("something is saved.")
when_interrupted("`purejaxppo resume here` goes on.")
signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
tempfile.mkstemp()
print(os.getpid(), tempfile.gettempdir(), flush=True)
"""


def start(what):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT + what], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(parent):
    out, err = parent.communicate(timeout=60)
    return parent.returncode, out, err


@pytest.mark.parametrize(
    ("argv", "several"),
    [
        (["train", "--env", "CartPole-v1"], False),
        (["train", "--distributed"], True),
        (["sweep", "--coordinator=10.0.0.1:12345"], True),
        (["resume", "here", "--process_id", "1"], True),
        (["train", "--out", "distributed"], False),
    ],
)
def test_a_command_with_others_is_known_by_its_flags(argv, several):
    assert has_others(argv) is several


@pytest.mark.parametrize(
    ("what", "code", "says"),
    [
        ("sys.exit(3)", 3, ""),
        ("os.abort()", 75, "process 0 has ended or cannot be reached, or JAX has failed, as it says above"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "this process was ended by SIGKILL"),
    ],
)
def test_the_end_of_the_child_is_that_of_the_command(what, code, says):
    """An abort, which is JAX's when process 0 is gone, can be resumed; the child's temporary files are removed."""
    returned, out, err = ended(start(what))
    assert returned == code
    temporary = out.split()[1]
    assert "purejaxppo-" in temporary
    assert not os.path.exists(temporary)
    if says:
        (line,) = err.splitlines()
        assert line == f"purejaxppo: error: {says}; `purejaxppo resume here` goes on."
    else:
        assert err == ""


def test_a_signal_is_passed_on():
    parent = start("time.sleep(60)")
    parent.stdout.readline()
    parent.send_signal(signal.SIGTERM)
    assert ended(parent)[0] == 75


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_no_child_outlives_its_parent():
    parent = start("time.sleep(60)")
    child = int(parent.stdout.readline().split()[0])
    parent.kill()
    ended(parent)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the child is still there")
