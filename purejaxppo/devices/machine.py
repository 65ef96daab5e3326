"""The machine as it is found: versions, devices, memory, environment variables."""

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
PLATFORM_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")  # where JAX is to start
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
_GIT_HOOKS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # set by git in its hooks: they name another repository
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def find_machine() -> dict[str, Any]:
    """Versions, requirements, devices, memory and the environment variables that matter. Raises nothing."""
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
    """Of Python, of this package and of what it computes with; None for what is not installed as a package."""
    return {"python": sys.version.split()[0], **{name: _version(name) for name in _PACKAGES}}


def pip_install(*what: str) -> str:
    """Returns the command line that installs something for this very Python, whichever `pip` a shell would find."""
    return shlex.join([sys.executable, "-m", "pip", "install", *what])


def code_revision(package: Path = Path(__file__).parent.parent) -> dict[str, Any]:
    """Returns what git says of a package's code, within about a second; whatever goes wrong there is no error.

    Args:
      package: the directory of the package, this one by default.

    Returns:
      commit: the one that is checked out, in full. None if git is missing, too slow or refuses, and if the package is
        not part of that commit, as when it is installed into an environment that lies in some other repository.
      dirty: whether files of the package were changed, added or removed since the commit; None if that is unknown.
    """
    until = time.monotonic() + _GIT_SECONDS
    commit, dirty = None, None
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        answer = _ask_git(package, until, "rev-parse", "HEAD", "HEAD:./__init__.py")
        commit = answer and answer.split()[0]
        if commit is not None:
            no_caches = ":(exclude,glob)**/__pycache__/**"
            answer = _ask_git(package, until, "status", "--porcelain", "--untracked-files=normal", "--", ".", no_caches)
            dirty = None if answer is None else bool(answer)
    return {"commit": commit, "dirty": dirty}


def _ask_git(directory: Path, until: float, *command: str) -> str | None:
    """Returns what a git command prints in a directory, or None if it fails. Raises TimeoutExpired, OSError."""
    environment = {name: value for name, value in os.environ.items() if name not in _GIT_HOOKS}
    git = ["git", "--no-optional-locks", "-C", str(directory), *command]
    code, text = _ask(git, max(0.0, until - time.monotonic()), environment)
    return text if code == 0 else None


def describe_machine(facts: dict[str, Any]) -> list[list[str]]:
    """A table of what was found, its head first."""
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
    """What is wrong with each package that is missing or outside its range, such as jax<0.12,>=0.10.2."""
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
    """The extra whose CUDA an NVIDIA driver can run, or None if it is too old for both.

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
    """What the installed package depends on, without its extras; empty if it runs from a bare source tree."""
    try:
        metadata = importlib.metadata.metadata("purejaxppo")
    except importlib.metadata.PackageNotFoundError:
        return []
    lines = metadata.get_all("Requires-Dist") or []
    return [f"python{metadata['Requires-Python']}", *(line for line in lines if ";" not in line)]


def _order(version: str) -> list[int]:
    """The first three numbers of a version, for comparing; a pre-release counts as its release."""
    return [int(number) for number in [*re.findall(r"\d+", version), 0, 0, 0][:3]]


def _devices() -> list[dict[str, Any]]:
    """The devices of JAX's default platform; empty if JAX cannot start, which a check of the doctor's explains."""
    with contextlib.suppress(Exception):
        import jax

        return [{"platform": d.platform, "kind": d.device_kind, "memory_bytes": memory_bytes(d)} for d in jax.devices()]
    return []


def memory_bytes(device: Any) -> int | None:
    """What JAX may take of the device's memory, in bytes, where the platform tells."""
    with contextlib.suppress(Exception):
        return device.memory_stats()["bytes_limit"]
    return None


def _nvidia() -> dict[str, Any]:
    """The driver's version and the GPUs' names by nvidia-smi, and why there are none, if it is there."""
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
    """Exit code and standard output of a command. Raises TimeoutExpired, even where the process cannot be killed."""
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
        # `subprocess.run` would wait here for ever, should the process be stuck in a broken driver.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1.0)
        if process.stdout:
            process.stdout.close()
        raise
    return process.returncode, text


def ram_bytes() -> int | None:
    """The memory of the machine, or of the container if that has less, where the system tells."""
    known = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not every system tells
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # no control groups, or no limit
        known.append(int(_CGROUP_LIMIT.read_text()))
    return min(known, default=None)
