"""Facts about the machine: versions, devices, memory, environment variables, the git commit of the code."""

import contextlib
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from purejaxppo.devices.cpu import cpu_cores

_PACKAGES = ("purejaxppo", "jax", "jaxlib", "flax", "optax", "gymnax", "orbax-checkpoint", "numpy")
PLATFORM_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")  # by which users choose JAX's platform
_VARIABLES = (
    "XLA_FLAGS",
    *PLATFORM_VARIABLES,
    "JAX_ENABLE_X64",
    "JAX_DEFAULT_PRNG_IMPL",
    "NPROC",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "CUDA_VISIBLE_DEVICES",
)
_NVIDIA_SECONDS = 5.0
_GIT_SECONDS = 1.0
_GIT_HOOKS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # git sets them in its hooks, for another repository
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def find_machine() -> dict[str, Any]:
    """Returns versions, requirements, devices, memory and the environment variables that matter. It never raises."""
    return {
        "versions": installed_versions(),
        "requirements": _requirements(),
        "devices": _devices(),
        "nvidia": _nvidia(),
        "cpu_cores": cpu_cores(),
        "ram_bytes": ram_bytes(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def installed_versions() -> dict[str, str | None]:
    """Returns the versions of Python, this package and its numerical dependencies; None for one that is missing."""
    return {"python": sys.version.split()[0], **{name: _version(name) for name in _PACKAGES}}


def pip_install(*what: str) -> str:
    """Returns the command line that installs packages for this Python, whichever `pip` a shell would find."""
    return shlex.join([sys.executable, "-m", "pip", "install", *what])


def code_revision(package: Path = Path(__file__).parent.parent) -> dict[str, Any]:
    """Returns the git commit of a package's code, and whether the code was changed since. It never raises.

    It takes about a second at most.

    Args:
      package: the directory of the package, this one by default.

    Returns:
      A dictionary with
      commit: the full hash of the commit that is checked out. None if git is missing, too slow or fails, or if the
        package is not part of that commit, as when it is installed into an environment inside another repository.
      dirty: whether files of the package were changed, added or removed since the commit; None if that is unknown.
    """
    deadline = time.monotonic() + _GIT_SECONDS
    commit, dirty = None, None
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        answer = _ask_git(package, deadline, "rev-parse", "HEAD", "HEAD:./__init__.py")
        commit = answer and answer.split()[0]
        if commit is not None:
            no_caches = ":(exclude,glob)**/__pycache__/**"
            command = ("status", "--porcelain", "--untracked-files=normal", "--", ".", no_caches)
            answer = _ask_git(package, deadline, *command)
            dirty = None if answer is None else bool(answer)
    return {"commit": commit, "dirty": dirty}


def _ask_git(directory: Path, deadline: float, *command: str) -> str | None:
    """Returns the output of a git command in a directory, or None if it fails. Raises TimeoutExpired, OSError."""
    environment = {name: value for name, value in os.environ.items() if name not in _GIT_HOOKS}
    git = ["git", "--no-optional-locks", "-C", str(directory), *command]
    code, text = _ask(git, max(0.0, deadline - time.monotonic()), environment)
    return text if code == 0 else None


def describe_machine(facts: dict[str, Any]) -> list[list[str]]:
    """Returns the facts of `find_machine` as the rows of a table, its head first."""
    versions, nvidia = facts["versions"], facts["nvidia"]
    devices = Counter((d["platform"], d["kind"], d["memory_bytes"]) for d in facts["devices"])
    rows = [[name, version or "missing"] for name, version in versions.items()]
    for (platform, kind, memory), number in devices.items():
        limit = f", {memory / 1e9:.1f} GB each" if memory else ""
        rows.append(["devices", f"{number} x {platform} ({kind}){limit}"])
    ram = facts["ram_bytes"]
    return [
        ["what", "found"],
        *rows,
        ["NVIDIA driver", nvidia["driver"] or nvidia["problem"] or "none"],
        ["CPU cores", str(facts["cpu_cores"])],
        ["RAM", f"{ram / 1e9:.1f} GB" if ram else "unknown"],
        *([name, value] for name, value in facts["environment"].items()),
    ]


def out_of_range(versions: dict[str, str | None], requirements: list[str]) -> list[str]:
    """Returns a line for each package that is missing or outside its required range, such as jax<0.12,>=0.10.2."""
    wrong = []
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement)[0]
        if name not in versions:
            continue
        version = versions[name]
        bounds = re.findall(r"(<|>=)\s*([\d.]+)", requirement)
        if version is None:
            wrong.append(f"{name} is missing ({requirement})")
        elif any((_order(version) < _order(bound)) != (sign == "<") for sign, bound in bounds):
            wrong.append(f"{name} {version} is not {requirement}")
    return wrong


def cuda_extra(driver: str) -> str | None:
    """Returns the extra of this package whose CUDA version an NVIDIA driver supports, or None if it is too old.

    Source: JAX's installation guide: 580 or newer for CUDA 13, 525 or newer for CUDA 12.
    """
    major = _order(driver)[0]
    return "cuda13" if major >= 580 else "cuda12" if major >= 525 else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements() -> list[str]:
    """Returns the installed package's requirements, without extras; empty if it runs from a bare source tree."""
    try:
        metadata = importlib.metadata.metadata("purejaxppo")
    except importlib.metadata.PackageNotFoundError:
        return []
    lines = metadata.get_all("Requires-Dist") or []
    return [f"python{metadata['Requires-Python']}", *(line for line in lines if ";" not in line)]


def _order(version: str) -> list[int]:
    """Returns the first three numbers of a version, for comparisons; a pre-release counts as its release."""
    return [int(number) for number in [*re.findall(r"\d+", version), 0, 0, 0][:3]]


def _devices() -> list[dict[str, Any]]:
    """Returns the devices of JAX's default platform; empty if JAX cannot start, which `purejaxppo doctor` explains."""
    with contextlib.suppress(Exception):
        import jax

        return [{"platform": d.platform, "kind": d.device_kind, "memory_bytes": memory_bytes(d)} for d in jax.devices()]
    return []


def memory_bytes(device: Any) -> int | None:
    """Returns the bytes of a device's memory that JAX may use, or None if the platform does not tell."""
    with contextlib.suppress(Exception):
        return device.memory_stats()["bytes_limit"]
    return None


def _nvidia() -> dict[str, Any]:
    """Returns the driver's version and the GPUs' names by nvidia-smi, or the problem if it exists but finds none."""
    nothing: dict[str, Any] = {"driver": None, "gpus": [], "problem": None}
    program = shutil.which("nvidia-smi")
    if program is None:
        return nothing
    try:
        code, text = _ask([program, "--query-gpu=driver_version,name", "--format=csv,noheader"], _NVIDIA_SECONDS)
    except subprocess.TimeoutExpired:
        return {**nothing, "problem": f"nvidia-smi does not answer within {_NVIDIA_SECONDS:g} s"}
    except OSError as error:
        return {**nothing, "problem": f"nvidia-smi cannot be run ({error.strerror})"}
    rows = [line.split(", ", 1) for line in text.splitlines() if ", " in line]
    if code or not rows:
        return {**nothing, "problem": f"nvidia-smi finds no usable driver or GPU (exit code {code})"}
    return {"driver": rows[0][0], "gpus": [name for _, name in rows], "problem": None}


def _ask(command: list[str], seconds: float, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Returns a command's exit code and output. Raises TimeoutExpired, even if the process cannot be killed."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        errors="replace",
        env=environment,
    )
    try:
        text, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        # `subprocess.run` would wait here for ever if the process is stuck in a broken driver.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1.0)
        if process.stdout:
            process.stdout.close()
        raise
    return process.returncode, text


def ram_bytes() -> int | None:
    """Returns the bytes of the machine's memory, or the container's limit if that is lower; None if unknown."""
    known = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not every system tells
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # no control groups, or no limit
        known.append(int(_CGROUP_LIMIT.read_text()))
    return min(known, default=None)
