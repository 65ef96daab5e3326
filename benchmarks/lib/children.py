"""Programs of this directory as processes of their own: the number of CPU devices and threads belongs to a process.

Nothing here imports JAX or purejaxppo, which would settle those for the children too, and would make the peak memory
that the system reports of a child that of its parent.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

HOME = Path(__file__).parent.parent.parent
PLATFORM_VARIABLE = "PUREJAXPPO_BENCHMARK_PLATFORM"


class ChildError(RuntimeError):
    """A program failed, or did not answer in time. One line that says which."""


class Child:
    """A program that answers each line of JSON with one."""

    def __init__(self, program: str, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.name = " ".join([program, *arguments])
        command = [sys.executable, "-m", f"benchmarks.workers.{program}", *arguments]
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  a pipe that nobody reads would fill
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env={**os.environ, "PYTHONPATH": path(), **(env or {})},
        )  # fmt: skip
        self.answers: queue.Queue[str | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries print as well
                self.answers.put(line)
        self.answers.put(None)

    def send(self, request: Any) -> None:
        """Asks, without waiting for the answer."""
        assert self.process.stdin
        with contextlib.suppress(OSError):  # it has ended, as `receive` will find
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()

    def receive(self, limit: float) -> Any:
        """The next answer; raises ChildError if there is none within `limit` seconds."""
        try:
            line = self.answers.get(timeout=limit)
        except queue.Empty:
            raise ChildError(f"{self.name}: no answer within {limit:.0f} s; it hangs, or the machine is busy") from None
        if line is None:
            self.errors.seek(0)
            lines = [line.strip() for line in self.errors if line.strip()]
            raise ChildError(f"{self.name}: {lines[-1] if lines else 'ended without a word'}")
        return json.loads(line)

    def ask(self, request: Any, limit: float) -> Any:
        """The answer to a request."""
        self.send(request)
        return self.receive(limit)

    def close(self) -> None:
        """Ends it, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self.reader.join()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(OSError):  # a request that nobody has read
                if file:
                    file.close()


def path() -> str:
    """PYTHONPATH of a child: this tree first."""
    return os.pathsep.join(filter(None, [str(HOME), os.environ.get("PYTHONPATH")]))


def call(program: str, *arguments: str, env: dict[str, str] | None = None, limit: float = 120.0) -> Any:
    """The JSON that a program prints on one line."""
    child = Child(program, *arguments, env=env)
    try:
        return child.receive(limit)
    finally:
        child.close()


def platform() -> str:
    """JAX's default platform: cpu, gpu or tpu."""
    known = os.environ.get(PLATFORM_VARIABLE)
    return known or call("machine_info")["platform"]
