"""The parent of a process that trains with others: it passes signals on, and says how its child has ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from purejaxppo.cli.supervisor import has_others

# The child says that it is there, and then does what the test wants.
SCRIPT = """
import os, signal, sys, tempfile, time
from purejaxppo.cli.supervisor import begin_as_child, explain_abort, run_in_child
heard = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: heard.append(number))
if not begin_as_child():
    sys.exit(run_in_child())
tempfile.mkstemp()
print(os.getpid(), tempfile.gettempdir(), flush=True)
"""
TELL = "explain_abort(2, 'nobody came.'); explain_abort(75, 'process 0 has ended; `purejaxppo resume here` goes on.');"
WAIT = "end = time.monotonic() + 60\nwhile not heard and time.monotonic() < end: time.sleep(0.05)\n"
COUNT = f"{WAIT}time.sleep(0.5); sys.exit(len(heard))"


def start(what, **options):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT + what], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
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
        (["resume", "here", "--num-processes", "2"], True),
        (["train", "--out", "distributed"], False),
    ],
)
def test_a_command_with_others_is_known_by_its_flags(argv, several):
    assert has_others(argv) is several


@pytest.mark.parametrize(
    ("what", "code", "says"),
    [
        ("sys.exit(3)", 3, ""),
        (
            f"{TELL} os.abort()",
            75,
            "process 0 has ended; `purejaxppo resume here` goes on.",
        ),
        ("os.abort()", 134, "this process was ended by SIGABRT."),
        (f"{TELL} os.kill(os.getpid(), signal.SIGKILL)", 137, "this process was ended by SIGKILL."),
    ],
)
def test_the_end_of_the_child_is_that_of_the_command(what, code, says):
    """An abort is what the child has told last; its temporary files are removed."""
    returned, out, err = ended(start(what))
    assert returned == code
    temporary = out.split()[1]
    assert "purejaxppo-" in temporary
    assert not os.path.exists(temporary)
    assert err == (f"purejaxppo: error: {says}\n" if says else "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on(number):
    parent = start(COUNT)
    parent.stdout.readline()
    parent.send_signal(number)
    assert ended(parent)[0] == 1


def test_a_signal_of_the_terminal_is_heard_once():
    """It goes to the whole group of the parent, in which the child is not: a second Ctrl-C would abort."""
    parent = start(COUNT, process_group=0)
    parent.stdout.readline()
    os.killpg(parent.pid, signal.SIGINT)
    assert ended(parent)[0] == 1


def test_a_signal_is_not_lost_while_the_child_starts():
    parent = start(COUNT)
    while not (children := subprocess.run(["pgrep", "-P", str(parent.pid)], capture_output=True, text=True).stdout):
        time.sleep(0.001)
    os.kill(int(children.split()[0]), signal.SIGTERM)
    assert ended(parent)[0] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_no_child_outlives_its_parent():
    parent = start("time.sleep(60)")
    child = int(parent.stdout.readline().split()[0])
    parent.kill()
    ended(parent)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        stat = Path(f"/proc/{child}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the child is still there")
