"""Answers with the limits of this machine, measured by small programs that use one resource each.

    NPROC=1 python -m benchmarks.workers.hardware_limits    one thread, on a CPU
    python -m benchmarks.workers.hardware_limits            all cores: a CPU device of one thread for each, or the
                                                            accelerator

The best of several repetitions counts, not the median: a limit is what nothing exceeds.
"""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import purejaxppo
from benchmarks.lib.hlo_kernels import count_kernels
from benchmarks.lib.worker_process import answer_channel

SECONDS = 0.08  # per timed call, at least
REPETITIONS = 5
Step = Callable[[Any, Any], Any]  # (constant, x) -> x, of one shape


class Sizes(NamedTuple):
    """The sizes of what is computed, in float32 numbers."""

    rows: tuple[int, ...]  # that meet a 64 x 64 matrix
    square: int  # side of a matrix times itself
    few: int  # that fit into a cache, for tanh
    many: int  # that do not
    flop: float  # of matrix products per call, about


CPU = Sizes((2048, 16384), 512, 1 << 16, 1 << 25, 2e9)
ACCELERATOR = Sizes((32768, 262144), 4096, 1 << 24, 1 << 28, 1e12)


def best(step: Step, constant: Any, x: Any, rounds: int) -> tuple[float, jax.stages.Compiled]:
    """Returns the seconds per round of x = step(constant, x), by the fastest call, on all devices at once.

    Rounds depend on each other, so that none can be left out. The program is that of the first device.
    """
    program = jax.jit(lambda c, x: jax.lax.fori_loop(0, rounds, lambda _, x: step(c, x), x))
    inputs = [(jax.device_put(constant, d), jax.device_put(x, d)) for d in jax.local_devices()]
    programs = [program.lower(c, x).compile() for c, x in inputs]

    def call() -> float:
        start = time.perf_counter()
        jax.block_until_ready([f(c, x) for f, (c, x) in zip(programs, inputs, strict=True)])
        return time.perf_counter() - start

    call()
    calls = max(REPETITIONS, min(20, round(REPETITIONS * SECONDS / call())))
    return min(call() for _ in range(calls)) / rounds, programs[0]


def matmul_rates(sizes: Sizes) -> dict[str, float]:
    """Returns the FLOP per second of products in several layouts; their orthogonal weights let nothing grow."""
    generator = np.random.default_rng(0)
    rates = {}

    def add(name: str, step: Step, width: int, shape: tuple[int, int], rows: int) -> None:
        weights = np.linalg.qr(generator.normal(size=(width, width)))[0].astype(np.float32)
        x = jnp.asarray(generator.normal(size=shape), jnp.float32)
        flop = 2.0 * width * width * rows
        seconds, _ = best(step, weights, x, max(4, min(400, round(sizes.flop / flop))))
        rates[name] = jax.local_device_count() * flop / seconds

    for rows in sizes.rows:
        add(f"64x64 weights times {rows} columns", lambda w, x: w @ x, 64, (64, rows), rows)
        add(f"{rows} rows times 64x64 weights", lambda w, x: x @ w, 64, (rows, 64), rows)
    side = sizes.square
    add(f"{side}x{side} times the same", lambda w, x: w @ x, side, (side, side), side)
    return rates


def small_kernel_seconds(rounds: int = 500) -> float:
    """Returns the seconds of one in a chain of kernels too small to take time of their own."""

    def four_products(w: Any, x: Any) -> Any:
        for _ in range(4):
            x = w @ x
        return x

    seconds, program = best(four_products, jnp.eye(16), jnp.ones((16, 16)), rounds)
    return seconds * rounds / max(4 * rounds, count_kernels(program.as_text() or ""))


def tanh_rate(few: int) -> float:
    """Returns the tanh per second, with four at each visit to a cached x: one alone waits for the cache."""
    scales = (1.0, 0.9, 0.8, 0.7)

    def step(_: Any, x: Any) -> Any:
        first, *others = [jnp.tanh(scale * x) for scale in scales]
        return sum(others, first) / len(scales)

    seconds, _ = best(step, jnp.zeros(()), jnp.linspace(-3, 3, few), 32)
    return jax.local_device_count() * len(scales) * few / seconds


def measure(sizes: Sizes | None = None) -> dict[str, Any]:
    """Returns all limits; rates are of all devices together."""
    devices, on_cpu = jax.local_device_count(), jax.default_backend() == "cpu"
    sizes = sizes or (CPU if on_cpu else ACCELERATOR)
    rates = matmul_rates(sizes)
    copy, _ = best(lambda c, x: x * c, jnp.float32(0.9999), jnp.ones(sizes.many), 4)
    return {
        "matmul_flop_per_s": max(rates.values()), "matmul_rates": rates, "tanh_per_s": tanh_rate(sizes.few),
        "bytes_per_s": devices * 2 * 4 * sizes.many / copy, "kernel_s": small_kernel_seconds(),
        "devices": devices, "NPROC": os.environ.get("NPROC"),
    }  # fmt: skip


if __name__ == "__main__":
    answer = answer_channel()
    if os.environ.get("NPROC") != "1":
        purejaxppo.use_all_cores()
    answer(measure())
