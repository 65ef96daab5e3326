"""The two arms of the benchmark: how purejaxppo trains here, and the common shape (`common_shape.py`) that it is
measured against.

Each arm gets a process of its own, since the number of CPU devices and threads belongs to a process.
"""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

SHARED: dict[str, Any] = {"num_epochs": 4, "num_minibatches": 4}
UPDATES_IN_SCHEDULE = 1_000_000  # far more than any block reaches: the learning rate stays where it starts


class Work(NamedTuple):
    """What is trained: 4 epochs x 4 minibatches, and two 4-64-64 tanh towers for CartPole, unless settings differ."""

    env: str
    num_envs: int
    num_steps: int
    num_runs: int = 1
    settings: tuple[tuple[str, Any], ...] = ()  # of TrainConfig, as pairs

    @property
    def env_steps(self) -> int:
        """Of all runs, per update."""
        return self.num_runs * self.num_envs * self.num_steps

    @property
    def name(self) -> str:
        """E.g. CartPole-v1 16 runs of 4x128."""
        runs = f"{self.num_runs} runs of " if self.num_runs > 1 else ""
        return f"{self.env} {runs}{self.num_envs}x{self.num_steps}"


class Arm(NamedTuple):
    """The first state, and (state, static number of updates) -> (state, metrics)."""

    state: Any
    step: Callable[[Any, int], tuple[Any, Any]]


def ours(work: Work, seed: int = 0, **settings: Any) -> Arm:
    """purejaxppo, laid out over the devices as its own command line lays it out."""
    import jax
    import jax.numpy as jnp

    import purejaxppo
    from purejaxppo import (
        Hyperparams,
        TrainConfig,
        advance,
        advance_runs,
        grid,
        make_runs,
        spread_trainer,
        trainer_from_config,
    )
    from purejaxppo.threads import cpu_cores
    from purejaxppo.tuning import one_thread_is_enough

    shape: dict[str, Any] = {"env": work.env, "num_envs": work.num_envs, "num_steps": work.num_steps}
    budget = UPDATES_IN_SCHEDULE * work.num_envs * work.num_steps
    config = TrainConfig(total_timesteps=budget, **{**shape, **SHARED, **dict(work.settings), **settings})
    if work.num_runs > 1 or one_thread_is_enough(config, cpu_cores()):
        purejaxppo.use_all_cores()  # before the environment is built: gymnax computes when it is imported
    trainer = (trainer_from_config if work.num_runs > 1 else spread_trainer)(config)
    # The hyperparameters are arguments, as in the package's own loop, not constants of the program.
    if work.num_runs > 1:
        hps, seeds = grid(Hyperparams(), range(seed, seed + work.num_runs))
        state = hps, make_runs(trainer, hps, seeds)

        def step_runs(state: Any, updates: int) -> tuple[Any, Any]:
            runs, metrics = advance_runs(trainer, state[0], state[1], updates)
            return (state[0], runs), metrics

        return Arm(state, step_runs)
    hp = jax.tree.map(jnp.float32, Hyperparams())

    def step(state: Any, updates: int) -> tuple[Any, Any]:
        runner, metrics = advance(trainer, state[0], state[1], updates)
        return (state[0], runner), metrics

    return Arm((hp, jax.jit(trainer.init)(jax.random.key(seed), hp)), step)


def common(work: Work, seed: int = 0) -> Arm:
    """The common shape; many runs by `vmap`."""
    import jax
    import jax.numpy as jnp

    from benchmarks.trainers import common_shape

    settings = common_shape.Settings(
        env=work.env, num_envs=work.num_envs, num_steps=work.num_steps, num_updates=UPDATES_IN_SCHEDULE, **SHARED
    )
    train = common_shape.make_train(settings)
    if work.num_runs == 1:
        return Arm(
            jax.jit(train.init)(jax.random.key(seed)), lambda s, updates: common_shape.advance(train, s, updates)
        )
    keys = jax.vmap(jax.random.key)(seed + jnp.arange(work.num_runs))
    init = jax.jit(jax.vmap(train.init))
    return Arm(init(keys), lambda s, updates: jax.vmap(lambda run: common_shape.advance(train, run, updates))(s))


ARMS: dict[str, Callable[[Work], Arm]] = {"purejaxppo": ours, "common shape": common}


def environment(arm: str, many_runs: bool) -> dict[str, str]:
    """What a process of this arm is started with."""
    env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # the arms share an accelerator's memory
    if arm == "common shape" and many_runs and (os.cpu_count() or 1) < 4:
        # jaxlib's CPU client may wait forever in a vmapped loop on fewer threads. A single run has JAX's own number.
        env["NPROC"] = os.environ.get("NPROC", "4")
    return env


class Block:
    """An arm, compiled for blocks of `updates` updates and carried from block to block."""

    def __init__(self, arm: Arm, updates: int) -> None:
        import jax

        self.state = arm.state
        start = time.perf_counter()
        program = jax.jit(arm.step, static_argnums=1, donate_argnums=0)
        self.program = program.lower(arm.state, updates).compile()
        self.compile_s = time.perf_counter() - start
        self.first_call_s = self.time()

    def time(self, calls: int = 1) -> float:
        """Seconds for so many more blocks, the metrics of each included."""
        import jax

        start = time.perf_counter()
        for _ in range(calls):
            self.state, metrics = self.program(self.state)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - start
