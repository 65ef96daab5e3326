"""Where the peers' packages are: an environment per adapter, made by uv from the adapter's own header (PEP 723).

`UV_FIND_LINKS` and uv's other variables work as ever: on Linux torch is a CUDA build of some GB, unless that folder has
a wheel of the CPU build.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

TRAINERS = Path(__file__).parent
STAMP = "peer-stamp"


class PeerError(Exception):
    """A peer that cannot be measured, and why, in one line."""


def command(name: str, install: bool, limit: float) -> list[str]:
    """The command that starts a peer; raises PeerError if its environment is not there and cannot be made in time."""
    script = TRAINERS / f"{name}.py"
    python = interpreter(script, install, limit) if header(script) else sys.executable
    return [python, "-P", "-m", f"benchmarks.trainers.{name}"]


def header(script: Path) -> str:
    """What the script says it needs; empty where it runs in the environment at hand."""
    _, begin, rest = script.read_text().partition("# /// script\n")
    return rest.partition("# ///\n")[0] if begin else ""


def interpreter(script: Path, install: bool, limit: float) -> str:
    """The Python of the script's own environment."""
    uv = find_uv()
    stamp = hashlib.sha256(header(script).encode()).hexdigest()
    python = installed(uv, script, stamp)
    if python is None and not install:
        raise PeerError("not installed: run without --quick to install")
    if python is None:
        sync = [uv, "sync", "--quiet", "--script", str(script), "--python", sys.executable]
        run(sync, limit)
        python = run([uv, "python", "find", "--script", str(script)], 30).strip()
        (Path(python).parent.parent / STAMP).write_text(stamp)
    return python


def installed(uv: str, script: Path, stamp: str) -> str | None:
    """The Python of an environment that was made whole, from this very header."""
    found = subprocess.run([uv, "python", "find", "--offline", "--script", str(script)], capture_output=True, text=True)
    python = found.stdout.strip()
    mark = Path(python).parent.parent / STAMP
    return python if python and mark.is_file() and mark.read_text() == stamp else None


def find_uv() -> str:
    """uv of the PATH, or the one that scripts/setup.sh made."""
    own = TRAINERS.parent.parent / ".venv-uv" / "bin" / "uv"
    uv = shutil.which("uv") or (str(own) if own.exists() else None)
    if uv is None:
        raise PeerError("not installed: uv is neither on the PATH nor in .venv-uv (scripts/setup.sh makes it)")
    return uv


def run(argv: list[str], limit: float) -> str:
    """Its standard output; PeerError if it fails or takes longer."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # what it started, too
        process.communicate()
        raise PeerError(f"not installed: {limit:.0f} s were not enough") from None
    if process.returncode:
        raise PeerError(f"not installed: {' '.join(err.split())[-300:]}")
    return out
