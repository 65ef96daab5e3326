"""The lock of a run directory, in which one process trains at a time.

The lock is `flock`'s, not the existence of a file: the kernel releases it when its process dies, however that happens.
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from purejaxppo.errors import CheckpointError, RunDirInUseError

LOCK = "run.lock"


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Holds the directory's lock within the context.

    Raises:
      RunDirInUseError: another process has it, named by pid and host.
      CheckpointError: the lock file cannot be written.
    """
    path = run_dir / LOCK
    try:
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunDirInUseError(_in_use(run_dir)) from error
        except OSError:
            pass  # a file system without locks, where two writers cannot be prevented
        with contextlib.suppress(OSError):  # a full disk; the content is for messages only, the lock holds without it
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield


def check_free(run_dir: Path) -> None:
    """Raises RunDirInUseError if another process holds the directory's lock; changes nothing."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), (run_dir / LOCK).open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunDirInUseError(_in_use(run_dir)) from error
        except OSError:
            pass  # a file system without locks, as above


def _in_use(run_dir: Path) -> str:
    try:
        owner = json.loads((run_dir / LOCK).read_text(encoding="utf-8"))
        who = f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        who = "another process"
    return f"{run_dir} is in use by {who}; wait until it has ended, stop it, or choose another directory."
