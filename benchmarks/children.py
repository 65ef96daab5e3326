"""Programs of this directory as processes of their own: the number of CPU devices and threads belongs to a process.

Nothing here imports JAX or purejaxppo, which would settle those for the children too, and would make the peak memory
that the system reports of a child that of its parent.
"""

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PLATFORM_VARIABLE = "PUREJAXPPO_BENCHMARK_PLATFORM"


class ChildError(RuntimeError):
    """A program failed, or did not answer in time. One line that says which."""


class Child:
    """A program that answers each line of JSON with one."""

    def __init__(self, program: str, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.name = " ".join([program, *arguments])
        command = [sys.executable, str(HERE / f"{program}.py"), *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **(env or {})}
        )

    def send(self, request: Any) -> None:
        """Asks, without waiting for the answer."""
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise self._failure() from None

    def receive(self, limit: float) -> Any:
        """The next answer; raises ChildError if there is none within `limit` seconds."""
        assert self.process.stdout
        if not select.select([self.process.stdout], [], [], limit)[0]:
            raise ChildError(f"{self.name}: no answer within {limit:.0f} s; it hangs, or the machine is busy")
        line = self.process.stdout.readline()
        if not line.startswith(("{", "[")) and not line.strip():
            raise self._failure()
        return json.loads(line)

    def ask(self, request: Any, limit: float) -> Any:
        """The answer to a request."""
        self.send(request)
        return self.receive(limit)

    def close(self) -> None:
        """Ends it, whatever it is doing."""
        self.process.kill()
        self.process.communicate()

    def _failure(self) -> ChildError:
        self.process.kill()
        _, errors = self.process.communicate()
        lines = [line for line in errors.splitlines() if line.strip()]
        return ChildError(f"{self.name}: {lines[-1].strip() if lines else 'ended without a word'}")


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
    return known or call("facts")["platform"]
