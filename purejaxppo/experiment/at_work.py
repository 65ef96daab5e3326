"""A run's or a sweep's directory while it is trained: who holds its lock, and where each process writes and prints."""

import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from purejaxppo.devices import processes
from purejaxppo.errors import ConfigError
from purejaxppo.experiment.atomic_files import write_text
from purejaxppo.experiment.lock import locked
from purejaxppo.experiment.progress import Terminal


def console_of(console: Console | None) -> Console:
    """Returns where a command prints, by default to standard error: of several processes the first one does."""
    return (console or Terminal()) if processes.leads() else Terminal(quiet=True)


@contextlib.contextmanager
def at_work(run_dir: Path) -> Iterator[Path]:
    """Holds the directory of a run or sweep within the context, and yields the directory that this process writes to.

    Of several processes the first one has the lock, and writes to the run's directory. The others read checkpoints
    there, and do all else as the first one does, with a copy of a run's metrics in a directory that is removed.

    Raises:
      RunDirInUseError, CheckpointError: as `locked` does.
      ConfigError: the processes do not see the same directory.
    """
    with contextlib.ExitStack() as stack:
        if processes.leads():
            stack.enter_context(locked(run_dir))
            files = run_dir
        else:
            files = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="purejaxppo-")))
        _check_shared(run_dir)
        if files != run_dir and (run_dir / "metrics.jsonl").exists():
            shutil.copy(run_dir / "metrics.jsonl", files)
        processes.exchange("")  # all have their copy before the first one goes on writing
        going_on = f"`purejaxppo resume {run_dir}` goes on from its last checkpoint, if it has one."
        stack.enter_context(processes.together(going_on))
        yield files


def _check_shared(run_dir: Path) -> None:
    """Raises ConfigError unless a file that the first process writes is there for all of them."""
    if processes.number() == 1:
        return
    text = processes.from_leader(lambda: f"{socket.gethostname()} {time.time()} {os.getpid()}")
    path = run_dir / f"processes.tmp-{text.split()[-1]}"  # a temporary file's name, in case it is left behind
    if processes.leads():
        write_text(path, text)
    processes.exchange("")
    found = path.read_text() if path.exists() else ""
    blind = [i for i, seen in enumerate(processes.exchange(found)) if seen != text]
    if processes.leads():
        path.unlink(missing_ok=True)
    if blind:
        raise ConfigError(
            f"process {blind[0]} does not see the directory {run_dir} of process 0; put it on a file system that all "
            f"of them share."
        )
