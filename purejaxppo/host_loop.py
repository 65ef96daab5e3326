"""The host loop: compile once, advance in chunks, turn device metrics into rows."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.errors import DivergedError
from purejaxppo.logger import Sink, emit
from purejaxppo.train import advance
from purejaxppo.types import RunnerState, Trainer

# Environment steps per call of the compiled program, as many as wished and at least: fractions of a second for small
# networks (some seconds for images on a CPU), and never so little that the host's work shows. Progress moves, and
# signals are heard, once per call.
_CHUNK_STEPS = {"cpu": (2**16, 2**11)}
_CHUNK_STEPS_ACCELERATOR = (2**21, 2**17)
_CHUNK_UPDATES = 64
_WATCHED = ("loss/policy", "loss/value", "entropy", "kl", "grad_norm")


class Timing(NamedTuple):
    """Seconds and speed of a training loop."""

    compile_seconds: float
    train_seconds: float  # without compilation
    env_steps_per_second: float  # steady state: without the first chunk, where there are more


def train_in_chunks(
    config: TrainConfig,
    trainer: Trainer,
    hp: Hyperparams,
    seed: int,
    sinks: Sequence[Sink],
    on_start: Callable[[], None] = lambda: None,
    stopped: Callable[[], object] = lambda: None,
) -> tuple[RunnerState, Timing]:
    """The host loop: the same `advance` as in one jitted run, in chunks, with its state donated.

    The next chunk is always started before the last one's metrics are read, so the device does not wait for the host.
    The result does not depend on the chunks' length.

    Args:
      on_start: called between compilation and the first update.
      stopped: looked at between chunks; something true ends the loop early.

    Raises:
      DivergedError: a loss, gradient norm, entropy or KL is not finite.
    """
    hp = jax.tree.map(jnp.float32, hp)
    began = time.perf_counter()
    runner = jax.jit(trainer.init)(jax.random.key(seed), hp)
    lengths = chunk_lengths(config, jax.default_backend())
    programs = {n: _compile_advance(trainer, hp, runner, n) for n in sorted(set(lengths))}
    compile_seconds = time.perf_counter() - began

    on_start()
    clock = _Clock(config)
    sinks = list(sinks)
    in_flight: list[dict[str, jax.Array]] = []
    for length in lengths:
        if stopped():
            break
        runner, metrics = programs[length](hp, runner)
        in_flight.append(metrics)
        if len(in_flight) > 1:
            sinks = clock.report(in_flight.pop(0), sinks)
    for metrics in in_flight:
        sinks = clock.report(metrics, sinks)
    jax.block_until_ready(runner)
    _check_params(runner)
    return runner, clock.timing(compile_seconds)


def _check_params(runner: RunnerState) -> None:
    # What is watched belongs to the moment before a gradient step, so the very last step shows here alone.
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(runner.learner.params)):
        raise DivergedError("a parameter is not finite after the last update; nothing was saved. Lower learning_rate.")


def chunk_lengths(config: TrainConfig, backend: str) -> list[int]:
    """How many updates each call of the compiled program makes; they sum to config.num_updates.

    All chunks have one length if num_updates has a divisor that is long enough; otherwise the last one is shorter,
    at the price of a second compilation.
    """
    wish, least = (steps // config.batch_size for steps in _CHUNK_STEPS.get(backend, _CHUNK_STEPS_ACCELERATOR))
    wish = max(1, min(wish, _CHUNK_UPDATES, config.num_updates))
    even = next(n for n in range(wish, 0, -1) if config.num_updates % n == 0)
    length = even if even >= min(least, wish) else wish
    whole, rest = divmod(config.num_updates, length)
    return [length] * whole + [rest] * (rest > 0)


def _compile_advance(trainer: Trainer, hp: Hyperparams, runner: RunnerState, num_updates: int) -> Callable[..., Any]:
    program = jax.jit(lambda hp, runner: advance(trainer, hp, runner, num_updates), donate_argnums=1)
    return program.lower(hp, runner).compile()


class _Clock:
    """Turns chunks of device metrics into rows with counters and times, and knows the loop's speed."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._updates = 0
        self._start = time.perf_counter()
        self._ends: list[tuple[int, float]] = []  # of the first chunk and of the last: updates, seconds

    def report(self, metrics: dict[str, jax.Array], sinks: list[Sink]) -> list[Sink]:
        columns = {name: np.asarray(x).tolist() for name, x in metrics.items()}  # waits for this chunk alone
        length = len(columns["loss/policy"])
        end = time.perf_counter() - self._start
        begin = self._ends[-1][1] if self._ends else 0.0
        for i in range(length):
            self._updates += 1
            row = {name: column[i] for name, column in columns.items()}
            row["episode/count"] = int(row["episode/count"])
            env_steps = self._updates * self._config.batch_size
            self._check(env_steps, row)
            seconds = round(begin + (end - begin) * (i + 1) / length, 4)
            sinks = emit(sinks, env_steps, {"update": self._updates, "env_steps": env_steps, "seconds": seconds, **row})
        self._ends = [*self._ends[:1], (self._updates, end)]
        return sinks

    def _check(self, env_steps: int, row: dict[str, float]) -> None:
        for name in _WATCHED:
            if not math.isfinite(row[name]):
                raise DivergedError(
                    f"{name} became {row[name]} at update {self._updates} ({env_steps} env steps); nothing was saved. "
                    f"Try a lower learning_rate, or normalize_observation and normalize_reward."
                )

    def timing(self, compile_seconds: float) -> Timing:
        if not self._ends:
            return Timing(compile_seconds, 0.0, 0.0)
        updates, seconds = self._ends[-1]
        total = seconds
        if len(self._ends) > 1:
            updates, seconds = updates - self._ends[0][0], seconds - self._ends[0][1]
        return Timing(compile_seconds, total, updates * self._config.batch_size / seconds)
