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
from purejaxppo.types import Params, RunnerState, Trainer

# Env steps x epochs x parameters per call of the compiled program: measured to be about a second, so that launching it
# and reporting on it, some 5 to 10 ms, do not show. Progress moves, and signals are heard, once per call.
_CHUNK_WORK = {"cpu": 1e10}
_CHUNK_WORK_ACCELERATOR = 1e11
_CHUNK_UPDATES = 64
WATCHED = ("loss/policy", "loss/value", "entropy", "kl", "grad_norm")  # not finite means diverged


class Timing(NamedTuple):
    """Seconds and speed of a training loop."""

    compile_seconds: float
    train_seconds: float  # without compilation
    env_steps_per_second: float  # steady state: without the first chunk, where there are more


class Chunk(NamedTuple):
    """The metrics of one call of the compiled program."""

    first_update: int  # counted from 1
    begin: float  # seconds since the first update began
    end: float
    metrics: dict[str, np.ndarray]  # each [updates], or [updates, R] for R runs


def train_in_chunks(
    config: TrainConfig,
    trainer: Trainer,
    hp: Hyperparams,
    key: jax.Array,
    report: Callable[[Chunk], object],
    on_start: Callable[[], None] = lambda: None,
    stopped: Callable[[], object] = lambda: None,
) -> tuple[RunnerState, Timing]:
    """The host loop: the same `advance` as in one jitted run, in chunks, with its state donated.

    The next chunk is always started before the last one's metrics are read, so the device does not wait for the host.
    The result does not depend on the chunks' length.

    Args:
      key: for `trainer.init`: one, or [R] for a trainer of R runs.
      report: called with each chunk's metrics, in order.
      on_start: called between compilation and the first update.
      stopped: looked at between chunks; something true ends the loop early.
    """
    hp = jax.tree.map(jnp.float32, hp)
    began = time.perf_counter()
    runner = jax.jit(trainer.init)(key, hp)
    lengths = chunk_lengths(config, runner.learner.params, jax.default_backend())
    programs = {n: _compile_advance(trainer, hp, runner, n) for n in sorted(set(lengths))}
    compile_seconds = time.perf_counter() - began

    on_start()
    start = time.perf_counter()
    first, ends = 1, [0.0]
    in_flight: list[dict[str, jax.Array]] = []

    def receive() -> None:
        nonlocal first
        metrics = {name: np.asarray(x) for name, x in in_flight.pop(0).items()}  # waits for this chunk alone
        ends.append(time.perf_counter() - start)
        report(Chunk(first, ends[-2], ends[-1], metrics))
        first += len(metrics["learning_rate"])

    for length in lengths:
        if stopped():
            break
        runner, metrics = programs[length](hp, runner)
        in_flight.append(metrics)
        if len(in_flight) > 1:
            receive()
    while in_flight:
        receive()
    jax.block_until_ready(runner)
    steps = config.batch_size * np.size(key)
    return runner, Timing(compile_seconds, ends[-1], _steady_speed(lengths, ends, steps))


def _steady_speed(lengths: Sequence[int], ends: Sequence[float], steps: int) -> float:
    """Environment steps per second after the first of several chunks; `ends` begins with 0."""
    done = len(ends) - 1
    first = min(1, done - 1)
    return steps * sum(lengths[first:done]) / (ends[-1] - ends[first]) if done else 0.0


def check_params(runner: RunnerState) -> None:
    """Raises DivergedError for a parameter that is not finite.

    Most of what `Rows` watches belongs to the moment before a gradient step: a value function that the very last one
    spoiled shows here alone.
    """
    # NumPy: JAX would compile a program per shape for it.
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(runner.learner.params)):
        raise DivergedError("a parameter is not finite after the last update; nothing was saved. Lower learning_rate.")


def chunk_lengths(config: TrainConfig, params: Params, backend: str) -> list[int]:
    """How many updates each call of the compiled program makes; they sum to config.num_updates.

    `params` may be those of several runs.

    All chunks have one length if num_updates has a divisor of about the right size; otherwise the last one is
    shorter, at the price of a second compilation.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    work = config.batch_size * config.num_epochs * size
    wish = int(_CHUNK_WORK.get(backend, _CHUNK_WORK_ACCELERATOR) / work)
    wish = max(1, min(wish, _CHUNK_UPDATES, config.num_updates))
    even = [n for n in range(max(1, wish // 16), 2 * wish + 1) if config.num_updates % n == 0]
    length = min(even, key=lambda n: max(n / wish, wish / n), default=wish)
    whole, rest = divmod(config.num_updates, length)
    return [length] * whole + [rest] * (rest > 0)


def _compile_advance(trainer: Trainer, hp: Hyperparams, runner: RunnerState, num_updates: int) -> Callable[..., Any]:
    program = jax.jit(lambda hp, runner: advance(trainer, hp, runner, num_updates), donate_argnums=1)
    return program.lower(hp, runner).compile()


class Rows:
    """Turns the chunks of one run into rows for its sinks, one per update.

    Raises DivergedError where a loss, gradient norm, entropy or KL is not finite.
    """

    def __init__(self, config: TrainConfig, sinks: Sequence[Sink]) -> None:
        self._batch_size = config.batch_size
        self._sinks = list(sinks)

    def __call__(self, chunk: Chunk) -> None:
        columns = {name: x.tolist() for name, x in chunk.metrics.items()}
        length = len(columns["learning_rate"])
        for i in range(length):
            update = chunk.first_update + i
            row = {name: column[i] for name, column in columns.items()}
            row["episode/count"] = int(row["episode/count"])
            env_steps = update * self._batch_size
            _check_row(update, env_steps, row)
            seconds = round(chunk.begin + (chunk.end - chunk.begin) * (i + 1) / length, 4)
            row = {"update": update, "env_steps": env_steps, "seconds": seconds, **row}
            self._sinks = emit(self._sinks, env_steps, row)


def _check_row(update: int, env_steps: int, row: dict[str, float]) -> None:
    for name in WATCHED:
        if not math.isfinite(row.get(name, 0.0)):
            raise DivergedError(
                f"{name} became {row[name]} at update {update} ({env_steps} env steps); nothing was saved. "
                f"Try a lower learning_rate, or normalize_observation and normalize_reward."
            )
