"""The host loop: compiled programs advance a state in chunks of updates, whose metrics the host reads meanwhile."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.types import Params, RunnerState, Trainer
from purejaxppo.train import advance

# Env steps x epochs x parameters per call of the compiled program: measured to be about a second, so that launching it
# and reporting on it, some 5 to 10 ms, do not show. Progress moves, and signals are heard, once per call.
_CHUNK_WORK = {"cpu": 1e10}
_CHUNK_WORK_ACCELERATOR = 1e11
_CHUNK_UPDATES = 64


class Timing(NamedTuple):
    """Seconds and speed of a training loop."""

    compile_seconds: float
    train_seconds: float  # without compilation
    env_steps_per_second: float  # steady state: without the first chunk, where there are more


class Chunk(NamedTuple):
    """The updates of one call of a compiled program."""

    first_update: int  # counted from 1
    begin: float  # seconds since the first update began
    end: float
    metrics: dict[str, np.ndarray]  # each [updates], or [R, updates] for R runs
    state: Any = None  # after the last update; None if the next chunk has been started, to which it is donated

    @property
    def last_update(self) -> int:
        """The number of the chunk's last update, counted from 1."""
        return self.first_update + self.metrics["learning_rate"].shape[-1] - 1


def advance_in_chunks(
    programs: Mapping[int, Callable[[Any], tuple[Any, Mapping[str, jax.Array]]]],
    lengths: Iterable[int],
    state: Any,
    updates: int,
    stop: Callable[[], object] = lambda: False,
    wants_state: Callable[[], bool] = lambda: False,
) -> Iterator[Chunk]:
    """Advances a state and yields each chunk when its metrics have arrived.

    The next chunk is started before a chunk is yielded, so that the device computes while the host reports. Only the
    last chunk, and one after which the host wants the state, is finished and yielded before anything else is started.

    Args:
      programs: updates of a chunk -> compiled call: state, which is donated -> (state, metrics).
      lengths: updates of each chunk, in order.
      state: to begin from.
      updates: that lie behind it.
      stop: asked before each chunk is started; something true ends the loop, with the state of the chunk before.
      wants_state: asked before each chunk is started; if true, the chunk before is yielded with its state.
    """
    running: Mapping[str, jax.Array] | None = None
    began, end = time.perf_counter(), 0.0

    def finish(metrics: Mapping[str, jax.Array], state: Any) -> Chunk:
        nonlocal updates, end
        arrays = {name: np.asarray(x) for name, x in metrics.items()}  # waits for this chunk, and no later one
        begin, end = end, time.perf_counter() - began
        chunk = Chunk(updates + 1, begin, end, arrays, state)
        updates = chunk.last_update
        return chunk

    for length in lengths:
        if running is not None and (stop() or wants_state()):
            yield finish(running, state)
            running = None
        if stop():
            break
        state, metrics = programs[length](state)
        if running is not None:
            yield finish(running, None)
        running = metrics
    if running is not None:
        yield finish(running, state)


def steady_speed(first: Chunk | None, last: Chunk | None, env_steps: int) -> float:
    """Returns environment steps per second, without the first chunk where there are several; 0 if there is none.

    Args:
      first, last: of the chunks since the loop began.
      env_steps: of an update, of all runs together.
    """
    if first is None or last is None:
        return 0.0
    if first.last_update == last.last_update:
        return env_steps * (last.last_update - first.first_update + 1) / last.end
    return env_steps * (last.last_update - first.last_update) / (last.end - first.end)


def compile_chunks(
    trainer: Trainer, hp: Hyperparams, runner: RunnerState, lengths: Iterable[int]
) -> dict[int, jax.stages.Compiled]:
    """Compiles `advance` for every length, as (hyperparameters, state) -> (state, metrics) with the state donated.

    Args:
      hp: of float32 arrays, as the programs will get them.
    """
    return {length: _compile_advance(trainer, hp, runner, length) for length in sorted(set(lengths))}


def _compile_advance(trainer: Trainer, hp: Hyperparams, runner: RunnerState, num_updates: int) -> jax.stages.Compiled:
    program = jax.jit(lambda hp, runner: advance(trainer, hp, runner, num_updates), donate_argnums=1)
    return program.lower(hp, runner).compile()


def chunk_lengths(config: TrainConfig, params: Params, backend: str) -> list[int]:
    """How many updates each call of the compiled program makes; they sum to config.num_updates.

    `params` may be those of several runs, which are computed on one device.

    All chunks have one length if num_updates has a divisor of about the right size; otherwise the last one is
    shorter, at the price of a second compilation.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    work = config.batch_size * config.num_epochs * size
    wish = int(work_per_call(backend) / work)
    wish = max(1, min(wish, _CHUNK_UPDATES, config.num_updates))
    even = [n for n in range(max(1, wish // 16), 2 * wish + 1) if config.num_updates % n == 0]
    length = min(even, key=lambda n: max(n / wish, wish / n), default=wish)
    whole, rest = divmod(config.num_updates, length)
    return [length] * whole + [rest] * (rest > 0)


def work_per_call(backend: str) -> float:
    """Env steps x epochs x parameters of a call on one device that takes about a second."""
    return _CHUNK_WORK.get(backend, _CHUNK_WORK_ACCELERATOR)


def remaining(lengths: Sequence[int], done: int) -> list[int]:
    """Returns what is left of the chunks when so many updates are done.

    The boundaries stay where they were, so that a resumed run goes on with the very programs of the one before.
    """
    left = []
    for length in lengths:
        skipped = min(length, done)
        done -= skipped
        left += [length - skipped] * (length > skipped)
    return left
