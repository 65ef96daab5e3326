"""What this very machine can do, by small programs that do nothing else. `breakdown.py` starts it; it prints JSON.

NPROC=1 python benchmarks/limits.py    one thread, on a CPU
python benchmarks/limits.py            all cores: a CPU device of one thread for each, or the accelerator

The best of several repetitions counts, not the median: a limit is what nothing exceeds.
"""

import json
import os
import time
from collections.abc import Callable
from typing import Any

SECONDS = 0.08  # per timed call, at least
REPETITIONS = 5
Step = Callable[[Any, Any], Any]  # (constant, x) -> x, of one shape


def best(step: Step, constant: Any, x: Any, rounds: int) -> float:
    """Seconds per round of x = step(constant, x), by the fastest call; every device does the same, all at once.

    Rounds depend on each other, so that none can be left out.
    """
    import jax

    program = jax.jit(lambda c, x: jax.lax.fori_loop(0, rounds, lambda _, x: step(c, x), x))
    inputs = [(jax.device_put(constant, d), jax.device_put(x, d)) for d in jax.local_devices()]

    def call() -> float:
        start = time.perf_counter()
        jax.block_until_ready([program(c, x) for c, x in inputs])
        return time.perf_counter() - start

    call()
    calls = max(REPETITIONS, min(20, round(REPETITIONS * SECONDS / call())))
    return min(call() for _ in range(calls)) / rounds


def matmul_rates(scale: int, devices: int) -> dict[str, float]:
    """FLOP per second of products with orthogonal weights, which let nothing grow, in several layouts and sizes."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    generator = np.random.default_rng(0)
    rates = {}

    def add(name: str, step: Step, width: int, shape: tuple[int, int], rows: int) -> None:
        weights = np.linalg.qr(generator.normal(size=(width, width)))[0].astype(np.float32)
        x = jnp.asarray(generator.normal(size=shape), jnp.float32)
        flop = 2.0 * width * width * rows
        rounds = max(4, min(400, round(2e9 * scale / flop)))
        rates[name] = devices * flop / best(step, weights, x, rounds)

    for rows in (2048 * scale, 16384 * scale):
        add(f"64x64 weights times {rows} columns", lambda w, x: w @ x, 64, (64, rows), rows)
        add(f"{rows} rows times 64x64 weights", lambda w, x: x @ w, 64, (rows, 64), rows)
    size = 512 if jax.default_backend() == "cpu" else 4096
    add(f"{size}x{size} times the same", lambda w, x: w @ x, size, (size, size), size)
    return rates


def measure() -> dict[str, Any]:
    """All limits; rates are of all devices together."""
    import jax
    import jax.numpy as jnp

    devices, on_cpu = jax.local_device_count(), jax.default_backend() == "cpu"
    rates = matmul_rates(1 if on_cpu else 16, devices)
    few, many = (1 << 16, 1 << 25) if on_cpu else (1 << 24, 1 << 28)

    def eight_tanh(_: Any, x: Any) -> Any:
        for _ in range(8):
            x = jnp.tanh(x)
        return x

    def four_products(w: Any, x: Any) -> Any:
        for _ in range(4):
            x = w @ x
        return x

    tanh = devices * 8 * few / best(eight_tanh, jnp.zeros(()), jnp.linspace(-3, 3, few), 16 if on_cpu else 64)
    copied = 2 * 4 * devices * many / best(lambda c, x: x * c, jnp.float32(0.9999), jnp.ones(many), 4)
    kernel = best(four_products, jnp.eye(16), jnp.ones((16, 16)), 500) / 4
    return {
        "matmul_flop_per_s": max(rates.values()), "matmul_rates": rates, "tanh_per_s": tanh, "bytes_per_s": copied,
        "kernel_s": kernel, "devices": devices, "NPROC": os.environ.get("NPROC"),
    }  # fmt: skip


if __name__ == "__main__":
    import purejaxppo

    if os.environ.get("NPROC") != "1":
        purejaxppo.use_all_cores()
    print(json.dumps(measure()))
