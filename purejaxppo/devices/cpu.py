"""The number of XLA's CPU devices and threads. It has to be set before JAX uses its first device."""

import os
from typing import Any

from purejaxppo.config import TrainConfig, fields
from purejaxppo.errors import ConfigError

_SAFE_THREADS = 4  # with this many threads, no vmapped training loop has been seen to hang; see docs/architecture.md

# A minibatch's work, rows x the square of the widest layer, up to which one thread is faster than several. On two cores
# 16 x 128 of CartPole (2**21) trained 1.41 times as fast with one thread; the MinAtar presets (2**22) 0.61 times.
ONE_THREAD_WORK = 2**21


def cpu_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_nproc_was_set = "NPROC" in os.environ  # XLA's CPU client reads its number of threads from this variable
if not _nproc_was_set and cpu_cores() < _SAFE_THREADS:
    os.environ["NPROC"] = str(_SAFE_THREADS)


def use_all_cores() -> None:
    """Starts JAX with one CPU device of one thread per core, for `advance_runs` and `spread_trainer`.

    Call it before anything else uses JAX. If JAX_NUM_CPU_DEVICES or NPROC is set in the environment, it is respected.
    A program that runs on one device then has one thread, which is faster if the program is small, and slower if it is
    large (benchmarks/log.md).

    Raises:
      ConfigError: JAX has started already, with fewer CPU devices than there are cores.
      Exception: any error of JAX's if it cannot start.
    """
    import jax

    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        try:
            jax.config.update("jax_num_cpu_devices", cpu_cores())
        except RuntimeError as error:  # JAX has started already
            _refuse_few_devices(jax.devices(), error)
    before = os.environ.get("NPROC")
    if not _nproc_was_set:
        os.environ["NPROC"] = "1"
    try:
        jax.devices()
    finally:  # processes that this one starts shall not inherit the single thread
        os.environ.pop("NPROC", None)
        os.environ.update({} if before is None else {"NPROC": before})


def _refuse_few_devices(devices: list[Any], error: RuntimeError) -> None:
    """Raises ConfigError if there are fewer CPU devices than cores; on an accelerator their number does not matter."""
    if devices[0].platform == "cpu" and len(devices) < cpu_cores():
        raise ConfigError(
            f"use_all_cores() comes too late: JAX has started with {len(devices)} CPU device(s) for {cpu_cores()} "
            f"cores; call it before anything that uses JAX, as importing gymnax does."
        ) from error


def num_devices_for(config: TrainConfig, devices: int, rows: int | None = None) -> int:
    """Returns how many of `devices` devices a single run is sharded over.

    They share its shards equally, and each of several has at least `rows` rows of a minibatch; by default
    `ROWS_PER_SHARD`, from which a further CPU device of one thread pays.
    """
    most = min(devices, max(config.minibatch_size // (rows or fields.ROWS_PER_SHARD), 1))
    return max(number for number in range(1, most + 1) if config.shard_count % number == 0)


def one_thread_is_enough(config: TrainConfig, cores: int) -> bool:
    """Returns whether a single run trains faster on CPU devices of one thread than on one device of several threads."""
    work = config.minibatch_size * max(config.hidden_sizes, default=1) ** 2
    return num_devices_for(config, cores) > 1 or work <= ONE_THREAD_WORK
