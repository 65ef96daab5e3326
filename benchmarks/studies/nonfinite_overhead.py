"""Measures the cost of the check for non-finite numbers: training with it against training without it.

python -m benchmarks.studies.nonfinite_overhead --shapes 64x128 4x128 --repetitions 31
"""

import statistics
import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.lib.report import add_shapes, parser, sizes
from benchmarks.trainers.compiled import CompiledBlock
from benchmarks.trainers.ours import make_training, warm_block
from benchmarks.trainers.protocol import Settings
from purejaxppo.core.nonfinite import nonfinite


def arm(shape: str, updates: int, guarded: bool) -> CompiledBlock:
    """Returns a block of updates; without the guard, the metric `nonfinite` is a constant."""
    settings = Settings(**sizes(shape), updates_per_block=updates)

    def nothing(_: Any) -> Any:
        return jnp.zeros((), jnp.int32)

    if guarded:
        return warm_block(settings)
    with mock.patch("purejaxppo.train.nonfinite", nothing):
        return warm_block(settings)


def measure(shape: str, repetitions: int, seconds: float) -> None:
    """Prints the ratio of neighbouring blocks, each twice per repetition and in both orders."""
    updates = max(1, round(16 * seconds / arm(shape, 16, True).time()))
    guarded, bare = arm(shape, updates, True), arm(shape, updates, False)
    update = min(guarded.time() for _ in range(5)) / updates
    share = alone(shape) / update
    print(f"{shape}: the check alone takes {share:.2%} of an update of {1000 * update:.3g} ms", flush=True)
    ratios = []
    for _ in range(repetitions):
        first = guarded.time(), bare.time()
        second = bare.time(), guarded.time()
        ratios.append((first[0] + second[1]) / (first[1] + second[0]))
    low, _, high = statistics.quantiles(ratios, n=4)
    print(f"{shape}, {updates} updates per block: {statistics.median(ratios):.4f} times the time without "
          f"(quartiles {low:.4f} to {high:.4f}, {min(ratios):.3f}..{max(ratios):.3f})", flush=True)  # fmt: skip


def alone(shape: str, times: int = 300) -> float:
    """Returns the seconds per update of the check alone, by `times` checks in one scan that carries all it sees."""
    settings = Settings(**sizes(shape))
    _, runner = make_training(settings).state
    seen = {
        "observation": jnp.ones((settings.num_steps, *runner.obs.shape)),
        "reward": jnp.ones((settings.num_steps, settings.num_envs)),
        "parameter": runner.learner.params,
        "optimizer_state": runner.learner.opt_state,
    }

    def check(carry: Any, _: None) -> tuple[Any, None]:
        bits = nonfinite(carry)  # always 0; but the compiler cannot know, and so repeats it
        return jax.tree.map(lambda x: x + bits.astype(x.dtype), carry), None

    program = jax.jit(lambda carry: jax.lax.scan(check, carry, length=times)[0]).lower(seen).compile()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(program(seen))
        seconds.append(time.perf_counter() - start)
    return min(seconds) / times


def main() -> None:
    options = parser(__doc__)
    add_shapes(options, ["64x128", "4x128"])
    options.add_argument("--repetitions", type=int, default=31)
    options.add_argument("--seconds", type=float, default=0.5, help="per timed block")
    arguments = options.parse_args()
    for name in arguments.shapes:
        measure(name, arguments.repetitions, arguments.seconds)


if __name__ == "__main__":
    main()
