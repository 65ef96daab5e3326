"""How many threads and devices XLA makes of the CPU's cores. Settled before JAX uses its first device."""

import contextlib
import os

_SAFE = 4  # threads with which no vmapped training loop has been seen to hang; see docs/architecture.md


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_chosen_here = cpu_cores() < _SAFE and "NPROC" not in os.environ  # which is where XLA's CPU client reads their number
if _chosen_here:
    os.environ["NPROC"] = str(_SAFE)


def use_all_cores() -> None:
    """Starts JAX with a CPU device for each core, of one thread each, for the runs of `make_runs` to be spread over.

    Before anything else uses JAX; later it changes nothing. JAX_NUM_CPU_DEVICES and NPROC of the environment stand. Not
    for programs that `vmap` a training loop on a CPU: with so few threads they may hang.

    Raises whatever JAX does if it cannot start.
    """
    import jax

    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # JAX has started already
            jax.config.update("jax_num_cpu_devices", cpu_cores())
    if _chosen_here:
        os.environ["NPROC"] = str(cpu_cores())
    try:
        jax.devices()
    finally:
        if _chosen_here:
            os.environ["NPROC"] = str(_SAFE)  # for the processes that this one starts
