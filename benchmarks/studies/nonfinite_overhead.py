"""What looking for numbers that are not finite costs: training with it against training without, in alternation.

python benchmarks/guard.py --shapes 64x128 4x128 --repetitions 31
"""

import argparse
import statistics
import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.lib.work import Block, Work, ours
from purejaxppo.guard import nonfinite


def arm(shape: str, updates: int, guarded: bool) -> Block:
    """A compiled block of updates; without the guard, the metric `nonfinite` is a constant."""
    envs, steps = map(int, shape.split("x"))
    work = Work("CartPole-v1", envs, steps)

    def nothing(_: Any) -> Any:
        return jnp.zeros((), jnp.int32)

    if guarded:
        return Block(ours(work), updates)
    with mock.patch("purejaxppo.train.nonfinite", nothing):
        return Block(ours(work), updates)


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
    """Seconds per update of the check by itself, as often as that in one scan; everything it sees is carried along."""
    envs, steps = map(int, shape.split("x"))
    _, runner = ours(Work("CartPole-v1", envs, steps)).state
    seen = {
        "observation": jnp.ones((steps, *runner.obs.shape)),
        "reward": jnp.ones((steps, envs)),
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["64x128", "4x128"], help="environments x steps")
    parser.add_argument("--repetitions", type=int, default=31)
    parser.add_argument("--seconds", type=float, default=0.5, help="per timed block")
    arguments = parser.parse_args()
    for shape in arguments.shapes:
        measure(shape, arguments.repetitions, arguments.seconds)


if __name__ == "__main__":
    main()
