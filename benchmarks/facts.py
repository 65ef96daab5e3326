"""The machine, the versions and the commit that a figure belongs to."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("purejaxppo", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy")


def machine(device: str | None = None) -> dict[str, Any]:
    """What a figure means nothing without; a program that leaves jax to others says their device."""
    if device is None:
        import jax

        device = jax.devices()[0].device_kind
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "")
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "versions": {"python": platform.python_version(), **{n: importlib.metadata.version(n) for n in PACKAGES}},
        "commit": commit.stdout.strip() or None,
        "device": device,
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "environment": {k: os.environ[k] for k in ("XLA_FLAGS", "JAX_PLATFORMS", "NPROC") if k in os.environ},
    }
