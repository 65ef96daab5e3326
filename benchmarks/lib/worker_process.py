"""Worker processes, which answer each line of JSON on their standard input with one on their standard output.

Trainers and measurements run in processes of their own because the number of CPU devices and threads and the peak
memory belong to a process. This file has both ends of the protocol and imports the standard library alone: trainers of
other projects have environments without purejaxppo, and a driver that imported JAX would add its own memory to the
peak that the system reports of its workers.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import GIVEN_THREADS

HOME = Path(__file__).parents[2]
PLATFORM_VARIABLE = "PUREJAXPPO_BENCHMARK_PLATFORM"
Message = dict[str, Any]


class WorkerError(Exception):
    """A worker could not be started, failed, or did not answer in time.

    Attributes:
      reason: what happened, in one line without the worker's name, which the message puts before it.
    """

    def __init__(self, worker: str, reason: str) -> None:
        super().__init__(f"{worker}: {reason}")
        self.reason = reason


class WorkerProcess:
    """The driver's end of a worker. It is a context manager that leaves no process behind.

    Attributes:
      started: `time.perf_counter()` when the process was started.
      answered: the same when its last answer arrived, which may be long before the answer is read.
    """

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115, since a pipe nobody reads fills up
        self.started = self.answered = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr, text=True, bufsize=1,
            env=environment() if env is None else env,
            start_new_session=True,  # so that it can be ended with all that it has started
        )  # fmt: skip
        self.answers: queue.Queue[tuple[float, str]] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries may print before `answer_channel` is called
                self.answers.put((time.perf_counter(), line))
        self.answers.put((time.perf_counter(), ""))

    def ready(self, limit: float) -> Message:
        """Returns the first message of a trainer, with `ready_s`, the seconds since its process was started."""
        answer = self.receive(limit)
        return {"ready_s": self.answered - self.started, **answer}

    def wait(self, limit: float) -> None:
        """Waits until the next answer could be received, or until the process has ended; at most `limit` seconds."""
        end = time.perf_counter() + limit
        while self.answers.empty() and time.perf_counter() < end:
            time.sleep(0.05)

    def ask(self, request: Message, limit: float) -> Message:
        """Sends a request and returns the answer; raises what `receive` raises."""
        assert self.process.stdin
        with contextlib.suppress(OSError):  # it has ended; `receive` finds out why
            self.process.stdin.write(json.dumps(request) + "\n")
        return self.receive(limit)

    def receive(self, limit: float) -> Message:
        """Returns the next answer.

        Raises:
          WorkerError: there is none within `limit` seconds, or the worker has ended. It is ended in both cases.
        """
        try:
            self.answered, line = self.answers.get(timeout=max(limit, 0))
        except queue.Empty:
            self.end()
            raise WorkerError(self.name, f"no answer within {limit:.0f} s") from None
        if not line:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=2)  # it is ending, and may still write why
            self.end()
            raise WorkerError(self.name, f"ended: {self._last_words()}")
        return json.loads(line)

    def _last_words(self) -> str:
        self.stderr.seek(0)
        lines = [line.strip() for line in self.stderr if line.strip()]
        return lines[-1][:300] if lines else f"exit code {self.process.returncode}"

    def end(self) -> None:
        """Kills the process and those it has started, and waits until it is gone."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.reader.join(timeout=5)
        for pipe in (self.process.stdin, self.process.stdout, self.stderr):
            with contextlib.suppress(OSError):  # a request that nobody has read
                if pipe:
                    pipe.close()


def environment(**variables: str) -> dict[str, str]:
    """Returns a worker's environment variables: those that this program was given, overridden by the arguments.

    This tree comes first on the worker's path, and no directory of compiled programs is passed on.
    """
    given = {k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "NPROC")}
    threads = {"NPROC": GIVEN_THREADS} if GIVEN_THREADS else {}
    path = os.pathsep.join(filter(None, [str(HOME), os.environ.get("PYTHONPATH")]))
    return {**given, **threads, "PYTHONPATH": path, **variables}


def safe_threads() -> dict[str, str]:
    """Returns the variables with which jaxlib's CPU client does not hang in a vmapped loop on two or three cores."""
    return {} if GIVEN_THREADS or (os.cpu_count() or 1) >= 4 else {"NPROC": "4"}


def module_command(module: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """Returns the command that runs a module of this tree; -P, as trainers/rejax.py must not hide rejax itself."""
    return [python, "-P", "-m", module, *arguments]


def call(worker: str, *arguments: str, limit: float = 120.0, env: Mapping[str, str] | None = None) -> Message:
    """Returns the one answer of a program of workers/, started with these arguments and environment variables."""
    command = module_command(f"benchmarks.workers.{worker}", *arguments)
    with WorkerProcess(worker, command, environment(**(env or {}))) as process:
        return process.receive(limit)


def platform() -> str:
    """Returns JAX's default platform: cpu, gpu or tpu."""
    return os.environ.get(PLATFORM_VARIABLE) or call("machine_info")["platform"]


def end_workers_when_terminated() -> None:
    """Makes SIGTERM, too, leave through the context managers, since workers have sessions of their own."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def answer_channel() -> Callable[[Message], None]:
    """Returns the function with which a worker answers; all else that it prints goes to standard error from now on."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return lambda answer: print(json.dumps(answer), file=out)
