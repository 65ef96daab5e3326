"""The lock: one live process per run directory; dead ones leave no lock behind."""

import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from purejaxppo.errors import CheckpointError, RunDirInUseError
from purejaxppo.experiment import lock
from purejaxppo.experiment.lock import LOCK, check_free, locked

OWNER = """
import subprocess, sys
from pathlib import Path
from purejaxppo.experiment.lock import locked
with locked(Path(sys.argv[1])):
    with_child = len(sys.argv) > 2
    sleep = ["sleep", "100"]
    child = subprocess.Popen(sleep, stdout=subprocess.DEVNULL, close_fds=False) if with_child else None
    print(child.pid if child else "locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def owner(run_dir, *flags):
    """Starts a process that holds the lock until its standard input ends or it is killed; `.said` is its first line."""
    program = [sys.executable, "-c", OWNER, str(run_dir), *flags]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            process.said = process.stdout.readline().strip()
            yield process
        finally:
            process.kill()


def owner_line(run_dir):
    return json.loads((run_dir / LOCK).read_text())


def enter(run_dir):
    with locked(run_dir):
        pass


def test_a_live_owner_is_respected_and_named(tmp_path):
    """It still has the lock after others have tried to take it."""
    with owner(tmp_path) as process:
        for attempt in (enter, check_free, enter):
            with pytest.raises(RunDirInUseError) as caught:
                attempt(tmp_path)
            assert caught.value.exit_code == 6
            message = str(caught.value)
            assert f"process {process.pid} on {socket.gethostname()};" in message
            assert str(tmp_path) in message
            assert "\n" not in message
        process.stdin.close()
        assert process.wait(timeout=60) == 0
    check_free(tmp_path)
    enter(tmp_path)


def test_a_killed_owner_is_taken_over_at_once(tmp_path):
    with owner(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        assert owner_line(tmp_path)["pid"] == process.pid  # the file is left, and means nothing
        check_free(tmp_path)
        with locked(tmp_path):
            assert owner_line(tmp_path) == {"pid": os.getpid(), "host": socket.gethostname()}


def test_a_child_does_not_keep_its_dead_parents_lock(tmp_path):
    """A logger's process, for example, may outlive the run."""
    with owner(tmp_path, "with a child") as process:
        child = int(process.said)
        try:
            process.kill()
            process.wait(timeout=60)
            os.kill(child, 0)  # still there
            enter(tmp_path)
        finally:
            os.kill(child, signal.SIGKILL)


def test_released_it_can_be_had_again(tmp_path):
    """It is released after an exception too; while it is held, the same process cannot take it again either."""
    with locked(tmp_path), pytest.raises(RunDirInUseError, match=f"process {os.getpid()} "):
        enter(tmp_path)
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    enter(tmp_path)
    enter(tmp_path)


CONTENTS = {
    "empty": b"",
    "garbage": b"\xff\xfe\x00garbage",
    "half": b'{"pid": 12',
    "a list": b"[1, 2]",
    "no host": b'{"pid": 1}',
    "deep": b"[" * 100_000,
    "long": json.dumps({"pid": 10**50, "host": "x" * 1000}).encode(),
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_the_contents_do_no_harm(tmp_path, content):
    """After a dead owner they are replaced. A live owner is respected whatever they are."""
    path = tmp_path / LOCK
    path.write_bytes(content)
    check_free(tmp_path)
    assert path.read_bytes() == content
    with locked(tmp_path):
        assert owner_line(tmp_path)["pid"] == os.getpid()
        path.write_bytes(content)
        for attempt in (enter, check_free):
            with pytest.raises(RunDirInUseError, match=r"in use by (another )?process"):
                attempt(tmp_path)
    enter(tmp_path)


def test_check_free_changes_nothing(tmp_path):
    check_free(tmp_path)
    check_free(tmp_path / "absent")
    (tmp_path / "file").write_text("precious")
    check_free(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    enter(tmp_path)
    before = (tmp_path / LOCK).stat()
    check_free(tmp_path)
    with locked(tmp_path):  # it keeps no lock of its own
        pass
    assert before.st_ino == (tmp_path / LOCK).stat().st_ino


def test_nothing_is_written_into_a_directory_in_use(tmp_path):
    with owner(tmp_path) as process:
        with pytest.raises(RunDirInUseError):
            enter(tmp_path)
        assert owner_line(tmp_path)["pid"] == process.pid


@pytest.mark.parametrize(
    "place", ["no directory", "a file in the directory's place", "a directory in the file's place"]
)
def test_a_lock_that_cannot_be_written(tmp_path, place):
    run_dir = tmp_path / "run"
    if place.startswith("a file"):
        run_dir.write_text("precious")
    if place.startswith("a directory"):
        (run_dir / LOCK).mkdir(parents=True)
    with pytest.raises(CheckpointError, match=rf"^cannot write .*{LOCK}: ") as caught:
        enter(run_dir)
    assert caught.value.exit_code == 4


def test_a_full_disk_does_not_matter(tmp_path):
    """The owner's line cannot be written (here by a limit of 0 bytes per file), but the lock holds."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with locked(tmp_path):
            assert (tmp_path / LOCK).read_bytes() == b""
            for attempt in (enter, check_free):
                with pytest.raises(RunDirInUseError, match="another process"):
                    attempt(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    enter(tmp_path)


@pytest.mark.parametrize("attempt", [enter, check_free])
def test_a_file_system_without_locks(tmp_path, monkeypatch, attempt):
    """Two writers cannot be prevented there, but a run works."""
    enter(tmp_path)

    def fail(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", fail)
    attempt(tmp_path)


def test_it_is_the_kernels_lock(tmp_path):
    """Other programs (`flock run.lock ...`) respect it too."""
    with locked(tmp_path), (tmp_path / LOCK).open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
