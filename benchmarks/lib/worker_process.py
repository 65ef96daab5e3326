"""A peer as a process of its own, spoken to in JSON lines (adapters/protocol.py), with a limit to every answer."""

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
from pathlib import Path
from typing import Any

from benchmarks.trainers.environments import PeerError, command

# The order of the table, ours first; the rest are other people's.
NAMES = ("ours", "common_shape", "rejax", "brax", "sbx", "sb3")
STEPPED_BY_PYTHON = ("sbx", "sb3")
GIVEN_THREADS = os.environ.get("NPROC")  # before purejaxppo is imported here, which sets it
HOME = Path(__file__).parent.parent.parent


class PeerProcess:
    """Starts on construction; `ready` waits for it. A context manager that leaves no process behind."""

    def __init__(self, argv: list[str], settings: dict[str, Any], env: dict[str, str] | None = None) -> None:
        self.started = time.perf_counter()
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed in __exit__
        self.process = subprocess.Popen(
            [*argv, json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr,
            text=True, bufsize=1, env=env or environment(), start_new_session=True,
        )  # fmt: skip
        self.answers: queue.Queue[tuple[float, str]] = queue.Queue()
        self.answered = self.started  # when the last answer came, which may be long before it is read
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.answers.put((time.perf_counter(), line))
        self.answers.put((time.perf_counter(), ""))

    def ready(self, limit: float) -> dict[str, Any]:
        """What the peer says of itself, and the seconds since its process was started."""
        answer = self._answer(limit)
        return {"ready_s": self.answered - self.started, **answer}

    def ask(self, request: dict[str, Any], limit: float) -> dict[str, Any]:
        """Its answer; raises PeerError when there is none within the limit, and the process is ended."""
        assert self.process.stdin
        with contextlib.suppress(OSError):  # it is dead; the answer says of what
            self.process.stdin.write(json.dumps(request) + "\n")
        return self._answer(limit)

    def _answer(self, limit: float) -> dict[str, Any]:
        try:
            self.answered, line = self.answers.get(timeout=max(limit, 0))
        except queue.Empty:
            self.end()
            raise PeerError(f"no answer within {limit:.0f} s") from None
        if not line:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=2)  # it is on its way out, and may have something to say
            self.end()
            raise PeerError(f"ended: {self._last_words()}")
        return json.loads(line)

    def _last_words(self) -> str:
        self.stderr.seek(0)
        lines = [line.strip() for line in self.stderr if line.strip()]
        return lines[-1][:300] if lines else f"exit code {self.process.returncode}"

    def end(self) -> None:
        """Kills it and what it started, and waits for that."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> "PeerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.reader.join(timeout=5)
        for pipe in (self.process.stdin, self.process.stdout, self.stderr):
            with contextlib.suppress(BrokenPipeError):
                if pipe:
                    pipe.close()


def start(name: str, install: bool, install_limit: float, settings: dict[str, Any]) -> PeerProcess:
    """The peer of that name; raises PeerError if it is not installed."""
    return PeerProcess(command(name, install, install_limit), settings, environment(name))


def end_peers_when_terminated() -> None:
    """Lets SIGTERM, too, leave through the context managers: a peer that hangs would outlive this program."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def environment(name: str = "") -> dict[str, str]:
    """What a peer's process sees: this program's, safe from the hang of few cores, and nothing compiled before.

    Ours chooses the number of its threads itself, as it does on the command line.
    """
    default = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # several share one accelerator
    if GIVEN_THREADS or (name != "ours" and (os.cpu_count() or 1) < 4):
        default["NPROC"] = GIVEN_THREADS or "4"
    inherited = {k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "NPROC")}
    return {**default, **inherited, "PYTHONPATH": str(HOME)}  # ours is that of this tree


def choose(names: list[str]) -> list[str]:
    """Ours first, since everyone is compared with it."""
    return ["ours", *(name for name in names if name != "ours")]
