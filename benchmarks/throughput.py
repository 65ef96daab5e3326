"""Steady-state training throughput of purejaxppo against the common shape (`common_shape.py`), in one process.

The two arms alternate strictly and only the ratio of neighbouring blocks is worth quoting: what else runs on the
machine hits both. Compilation and the first call are timed apart.

    python benchmarks/throughput.py --shapes 64x128 4x128 2048x32 --repetitions 15 --out result.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common_shape
import jax
from facts import machine

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.train import advance, trainer_from_config

SHARED: dict[str, Any] = {"env": "CartPole-v1", "num_epochs": 4, "num_minibatches": 4}
UPDATES_IN_SCHEDULE = 1_000_000  # far more than any block reaches: the learning rate stays where it starts
ARMS = ("purejaxppo", "common shape")
Advance = Callable[[Any, int], tuple[Any, Any]]


class Arm:
    """One trainer, compiled for blocks of `updates` updates and carried from block to block."""

    def __init__(self, runner: Any, advance: Advance, updates: int) -> None:
        self.runner = runner
        start = time.perf_counter()
        self.block = jax.jit(advance, static_argnums=1, donate_argnums=0).lower(runner, updates).compile()
        self.compile_s = time.perf_counter() - start
        self.first_call_s = self.time()

    def time(self) -> float:
        """Seconds for one more block, its metrics included."""
        start = time.perf_counter()
        self.runner, metrics = self.block(self.runner)
        jax.block_until_ready((self.runner, metrics))
        return time.perf_counter() - start


def ours(envs: int, steps: int, seed: int, algorithm: str = "ppo_clip") -> tuple[Any, Advance]:
    """A fresh runner of purejaxppo and its `advance`."""
    budget = UPDATES_IN_SCHEDULE * envs * steps
    shape: dict[str, Any] = {"num_envs": envs, "num_steps": steps, "total_timesteps": budget}
    trainer = trainer_from_config(TrainConfig(algorithm=algorithm, **shape, **SHARED))
    hp = Hyperparams()
    runner = jax.jit(lambda key: trainer.init(key, hp))(jax.random.key(seed))
    return runner, lambda runner, updates: advance(trainer, hp, runner, updates)


def baseline(envs: int, steps: int, seed: int) -> tuple[Any, Advance]:
    """A fresh runner of the common shape and its `advance`."""
    settings = common_shape.Settings(num_envs=envs, num_steps=steps, num_updates=UPDATES_IN_SCHEDULE, **SHARED)
    train = common_shape.make_train(settings)
    runner = jax.jit(train.init)(jax.random.key(seed))
    return runner, lambda runner, updates: common_shape.advance(train, runner, updates)


def measure(shape: str, repetitions: int, seconds: float) -> dict[str, Any]:
    """All repetitions of one shape, e.g. 64x128."""
    envs, steps = map(int, shape.split("x"))
    # The slower arm sets the length of a block, on a trial that is long enough to time but short to wait for.
    trial = max(1, 100_000 // (envs * steps))
    slowest = max(Arm(*make(envs, steps, 1), trial).time() for make in (ours, baseline))
    updates = max(1, round(seconds * trial / slowest))
    arms = {name: Arm(*make(envs, steps, 0), updates) for name, make in zip(ARMS, (ours, baseline), strict=True)}
    rows = [{name: arm.time() for name, arm in arms.items()} for _ in range(repetitions)]
    ratios = [row[ARMS[1]] / row[ARMS[0]] for row in rows]
    block = envs * steps * updates
    return {
        "num_envs": envs, "num_steps": steps, **SHARED, "updates_per_block": updates,
        "compile_s": {name: arm.compile_s for name, arm in arms.items()},
        "first_call_s": {name: arm.first_call_s for name, arm in arms.items()},
        "seconds": rows,
        "median_env_steps_per_s": {name: block / statistics.median(row[name] for row in rows) for name in ARMS},
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["64x128", "4x128", "2048x32"], help="environments x steps")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.9, help="per timed block, for the slower arm")
    parser.add_argument("--out", type=Path, help="write every repetition as JSON")
    arguments = parser.parse_args()
    results = []
    print("   shape  updates    ours /s  common /s  ratio  min..max    compile s")
    for shape in arguments.shapes:
        row = measure(shape, arguments.repetitions, arguments.seconds)
        results.append(row)
        speed, ratio, compiled = row["median_env_steps_per_s"], row["ratio"], row["compile_s"]
        print(f"{shape:>8} {row['updates_per_block']:>8} {speed[ARMS[0]]:>10,.0f} {speed[ARMS[1]]:>10,.0f} "
              f"{ratio['median']:>6.3f}  {ratio['min']:.2f}..{ratio['max']:.2f}  "
              f"{compiled[ARMS[0]]:.1f} {compiled[ARMS[1]]:.1f}", flush=True)  # fmt: skip
    if arguments.out:
        arguments.out.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
