"""How many threads and devices XLA makes of the CPU's cores. Settled before JAX uses its first device."""

import contextlib
import os

_SAFE = 4  # threads with which no vmapped training loop has been seen to hang; see docs/architecture.md


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_given = "NPROC" in os.environ  # which is where XLA's CPU client reads the number of threads
if not _given and cpu_cores() < _SAFE:
    os.environ["NPROC"] = str(_SAFE)


def use_all_cores() -> None:
    """Starts JAX with a CPU device for each core and one thread, for runs to be spread over (`spread.py`, `runs.py`).

    Before anything else uses JAX; later it changes nothing. JAX_NUM_CPU_DEVICES and NPROC of the environment stand. A
    program that stays on one device has one thread then: faster if it is small, slower if it is large
    (benchmarks/log.md).

    Raises whatever JAX does if it cannot start.
    """
    import jax

    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # JAX has started already
            jax.config.update("jax_num_cpu_devices", cpu_cores())
    before = os.environ.get("NPROC")
    if not _given:
        os.environ["NPROC"] = "1"
    try:
        jax.devices()
    finally:  # for the processes that this one starts
        os.environ.pop("NPROC", None)
        os.environ.update({} if before is None else {"NPROC": before})
