"""How many threads and devices XLA makes of the CPU's cores. Settled before JAX uses its first device."""

import os
from typing import Any

from purejaxppo.config import TrainConfig
from purejaxppo.errors import ConfigError

_SAFE = 4  # threads with which no vmapped training loop has been seen to hang; see docs/architecture.md

# Rows of a minibatch that a CPU device has to have for a run to be spread over several. On two cores, devices of one
# thread: 64 x 128 (1,024 rows each) trained 1.25 times as fast on two as on one, 16 x 128 (256 rows each) 0.83 times.
ROWS_PER_DEVICE = 512

# Of a minibatch: rows x the square of the widest layer, up to which one thread is faster than several. On two cores
# 16 x 128 of CartPole (2**21) trained 1.41 times as fast with one; the MinAtar presets (2**22) 0.61 times.
ONE_THREAD_WORK = 2**21


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


def shares(config: TrainConfig, devices: int) -> int:
    """Over how many of so many CPU devices of one thread a single run is spread.

    Normalisers need the mean over all environments at every step, for which the devices would wait too often, and
    TRPO's step of the policy is not shared out.
    """
    if config.normalize_observation or config.normalize_reward or config.algorithm == "trpo":
        return 1
    rows = config.batch_size // config.num_minibatches
    for number in range(devices, 1, -1):
        if config.num_envs % number == rows % number == 0 and rows // number >= ROWS_PER_DEVICE:
            return number
    return 1


def one_thread_is_enough(config: TrainConfig, cores: int) -> bool:
    """Whether a single run trains faster on CPU devices of one thread than on one device of several."""
    work = config.batch_size // config.num_minibatches * max(config.hidden_sizes, default=1) ** 2
    return shares(config, cores) > 1 or work <= ONE_THREAD_WORK
