"""Answers with the facts that a figure depends on: machine, devices, versions, environment variables, commit."""

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.lib.worker_process import answer_channel

HERE = Path(__file__).parent


def cpu_name() -> str:
    """Returns the model's name."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "")
    return models[0].strip() if models else platform.processor() or platform.machine()


def commit() -> str | None:
    """Returns the commit that is checked out, with -dirty if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    answer = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def machine_info() -> dict[str, Any]:
    """Returns all of it. Starts JAX."""
    given = dict(os.environ)  # the package sets NPROC when it is imported

    import jax

    from purejaxppo.devices.machine import find_machine

    found = find_machine()
    del found["requirements"]
    kind, backend = jax.devices()[0].device_kind, jax.default_backend()
    return {
        **found,
        "environment": {k: v for k, v in found["environment"].items() if k in given},
        "platform": backend,
        "device": kind if backend != "cpu" else cpu_name(),
        "cpu": cpu_name(),
        "load_average": os.getloadavg(),
        "precision": {
            "dtype": "float32",
            "matmul": getattr(jax.config, "jax_default_matmul_precision", None) or "default",
        },
        "commit": commit(),
    }


if __name__ == "__main__":
    answer_channel()(machine_info())
