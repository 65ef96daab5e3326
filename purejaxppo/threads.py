"""How many threads and devices XLA makes of the CPU's cores. Settled before JAX uses its first device."""

import os
from typing import Any

from purejaxppo.errors import ConfigError

_SAFE = 4  # threads with which no vmapped training loop has been seen to hang; see docs/architecture.md


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_given = "NPROC" in os.environ  # which is where XLA's CPU client reads the number of threads
if not _given and cpu_cores() < _SAFE:
    os.environ["NPROC"] = str(_SAFE)


def use_all_cores() -> None:
    """Starts JAX with a CPU device for each core and one thread, for runs to be spread over (`spread.py`, `runs.py`).

    Call it before anything else uses JAX. JAX_NUM_CPU_DEVICES and NPROC of the environment stand. A program that stays
    on one device has one thread then: faster if it is small, slower if it is large (benchmarks/log.md).

    Raises:
      ConfigError: JAX has started already, with fewer CPU devices than there are cores.
      Exception: whatever JAX does if it cannot start.
    """
    import jax

    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        try:
            jax.config.update("jax_num_cpu_devices", cpu_cores())
        except RuntimeError as error:  # JAX has started already
            _refuse_few_devices(jax.devices(), error)
    before = os.environ.get("NPROC")
    if not _given:
        os.environ["NPROC"] = "1"
    try:
        jax.devices()
    finally:  # for the processes that this one starts
        os.environ.pop("NPROC", None)
        os.environ.update({} if before is None else {"NPROC": before})


def _refuse_few_devices(devices: list[Any], error: RuntimeError) -> None:
    """Raises ConfigError for CPU devices that are fewer than the cores; on an accelerator they do not matter."""
    if devices[0].platform == "cpu" and len(devices) < cpu_cores():
        raise ConfigError(
            f"use_all_cores() comes too late: JAX has started with {len(devices)} CPU device(s) for {cpu_cores()} "
            f"cores; call it before anything that uses JAX, as importing gymnax does."
        ) from error
