"""The trainers by name, the environments in which they run, and how they are started.

A trainer of another project has an environment of its own, which uv makes from the header of its file (PEP 723).
`UV_FIND_LINKS` and uv's other variables work as ever: on Linux torch is a CUDA build of some GB, unless that folder has
a wheel of the CPU build.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.lib.worker_process import (
    HOME,
    WorkerError,
    WorkerProcess,
    environment,
    module_command,
    safe_threads,
)

# The order of the tables: ours first, then those of other projects, in files of these names.
NAMES = ("ours", "common_shape", "rejax", "brax", "sbx", "sb3")
STEPPED_BY_PYTHON = ("sbx", "sb3")
TRAINERS = Path(__file__).parent
STAMP = "peer-stamp"


def start(
    name: str,
    settings: Mapping[str, Any],
    install_limit: float | None = None,
    threads: Mapping[str, str] | None = None,
) -> WorkerProcess:
    """Starts a trainer.

    Args:
      name: one of NAMES.
      settings: fields of `protocol.Settings`; the others have their defaults.
      install_limit: seconds in which its environment may be made; None if it has to exist.
      threads: environment variables that choose its number of threads. By default ours chooses for itself, as on the
        command line, and the others have the number with which none hangs.

    Raises:
      WorkerError: its environment does not exist and could not be made.
    """
    python = interpreter(name, install_limit)
    if threads is None:
        threads = {} if name == "ours" else safe_threads()
    variables = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **threads}  # several share one accelerator's memory
    if python != sys.executable:
        variables["PYTHONPATH"] = str(HOME)  # other packages on the path are not for it
    command = module_command(f"benchmarks.trainers.{name}", json.dumps(settings), python=python)
    return WorkerProcess(name, command, environment(**variables))


def ours_first(names: list[str]) -> list[str]:
    """Returns the names with ours in front, since everyone is compared with it."""
    return ["ours", *(name for name in names if name != "ours")]


def interpreter(name: str, install_limit: float | None) -> str:
    """Returns the Python interpreter of a trainer's environment; raises what `start` raises."""
    script = TRAINERS / f"{name}.py"
    if not header(script):
        return sys.executable
    try:
        return own_interpreter(script, install_limit)
    except NotInstalledError as error:
        raise WorkerError(name, f"not installed: {error}") from error


def header(script: Path) -> str:
    """Returns the header (PEP 723) of a script, which lists its packages; empty if it runs in this environment."""
    _, begin, rest = script.read_text().partition("# /// script\n")
    return rest.partition("# ///\n")[0] if begin else ""


class NotInstalledError(Exception):
    """An environment does not exist and could not be made; the message is the reason in one line."""


def own_interpreter(script: Path, install_limit: float | None) -> str:
    """Returns the Python interpreter of the script's own environment, which is made if there is a time limit for it."""
    uv = find_uv()
    stamp = hashlib.sha256(header(script).encode()).hexdigest()
    python = installed(uv, script, stamp)
    if python is None and install_limit is None:
        raise NotInstalledError("run without --quick to install")
    if python is None:
        run([uv, "sync", "--quiet", "--script", str(script), "--python", sys.executable], install_limit)
        python = run([uv, "python", "find", "--script", str(script)], 30).strip()
        (Path(python).parent.parent / STAMP).write_text(stamp)
    return python


def installed(uv: str, script: Path, stamp: str) -> str | None:
    """Returns the Python interpreter of an environment that was completed from this header; None if there is none."""
    found = subprocess.run([uv, "python", "find", "--offline", "--script", str(script)], capture_output=True, text=True)
    python = found.stdout.strip()
    mark = Path(python).parent.parent / STAMP
    return python if python and mark.is_file() and mark.read_text() == stamp else None


def find_uv() -> str:
    """Returns uv of the PATH, or the one that scripts/setup.sh made."""
    own = HOME / ".venv-uv" / "bin" / "uv"
    uv = shutil.which("uv") or (str(own) if own.exists() else None)
    if uv is None:
        raise NotInstalledError("uv is neither on the PATH nor in .venv-uv (scripts/setup.sh makes it)")
    return uv


def run(command: list[str], limit: float | None) -> str:
    """Returns the command's standard output; raises NotInstalledError if it fails or takes longer."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # what it started, too
        process.communicate()
        raise NotInstalledError(f"{limit:.0f} s were not enough") from None
    if process.returncode:
        raise NotInstalledError(" ".join(err.split())[-300:])
    return out
