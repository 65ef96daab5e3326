"""XLA's flags for NVIDIA GPUs. They have to be set before JAX uses its first device."""

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Measured on one NVIDIA H200 with jax 0.11 at 2048 x 128 (benchmarks/log.md). They choose schedules and fusions; a
# program computes the same with them.
_FLAGS = {
    # Kernels of a CUDA graph that do not depend on each other run side by side: 1.13 times as fast.
    "xla_gpu_command_buffer_scheduling_mode": "CONCURRENT",
    # XLA would compute the first layers of policy and value function as one product, and copy its halves apart again.
    "xla_gpu_dot_merger_threshold_mb": "0",
}
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg")  # Linux, and Linux within Windows
# jaxlib ends the process at a flag that it does not know, so only versions that were tried get any.
_TRIED = ((0, 10), (0, 11))


def missing_flags(environ: Mapping[str, str], jaxlib: str) -> str:
    """Returns the value of XLA_FLAGS that adds our flags to those in the environment, but for those it names itself."""
    given = environ.get("XLA_FLAGS", "")
    if tuple(int(part) for part in jaxlib.split(".")[:2] if part.isdigit()) not in _TRIED:
        return given
    ours = [f"--{name}={value}" for name, value in _FLAGS.items() if f"--{name}" not in given]
    return " ".join([*([given] if given else []), *ours])


def set_flags() -> None:
    """Sets XLA_FLAGS for the programs of this process, if there is an NVIDIA driver."""
    if any(Path(driver).exists() for driver in _DRIVERS):
        try:
            os.environ["XLA_FLAGS"] = missing_flags(os.environ, version("jaxlib"))
        except PackageNotFoundError:  # which whoever imports JAX will report
            return


set_flags()
