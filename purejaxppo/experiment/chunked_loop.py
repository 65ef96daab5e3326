"""The host loop: a compiled program computes a chunk of updates while the host reads the metrics of the one before."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.types import Params, RunnerState, Trainer
from purejaxppo.train import advance

# Work of a chunk, in env steps x epochs x parameters: about a second, as measured, so that the 5 to 10 ms for launching
# the program and reporting its metrics do not matter. The host shows progress and checks for signals once per chunk.
_CHUNK_WORK = {"cpu": 1e10}
_CHUNK_WORK_ACCELERATOR = 1e11
_CHUNK_UPDATES = 64  # at most about this many, however small an update is: metrics arrive once per call
_FEW_CHUNKS = 500  # to launch so many, at about 10 ms each, takes no longer than to compile a program


class Timing(NamedTuple):
    """Seconds and speed of training."""

    compile_seconds: float
    train_seconds: float  # without compilation
    env_steps_per_second: float  # in steady state: without the first chunk, if there are several


class Chunk(NamedTuple):
    """The updates of one call of a compiled program."""

    first_update: int  # counted from 1
    begin: float  # seconds since the first update began
    end: float
    metrics: dict[str, np.ndarray]  # each [updates], or [R, updates] for R runs
    state: Any = None  # after the last update; None if it has been donated to the next chunk
    last: bool = False  # no chunk follows, as far as is known when it is yielded

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
    wants_state: Callable[[int], bool] = lambda _: False,
    pauses: Callable[[], float] = lambda: 0.0,
) -> Iterator[Chunk]:
    """Advances a state in chunks, and yields each chunk when its metrics have arrived on the host.

    The next chunk is started before a chunk is yielded, so that the device computes while the host reports. A chunk is
    yielded with its state, and before another one is started, only if it is the last one or `wants_state`.

    Args:
      programs: for each number of updates, a compiled function state -> (state, metrics); it donates its argument.
      lengths: the number of updates of each chunk, in order.
      state: the state to begin from; it is donated.
      updates: how many updates it has had.
      stop: called before each chunk is started; if true, no further chunk is started.
      wants_state: called before each chunk is started, with the number of updates at the end of the one that is
        running; if true, that one is finished and yielded with its state first.
      pauses: returns how many seconds since the beginning are not to be counted, as the caller spent them on other work
        than training while no chunk was running.
    """
    running: Mapping[str, jax.Array] | None = None  # metrics of the chunk that was started and is not yet yielded
    began, end, started = time.perf_counter(), 0.0, updates

    def finish(metrics: Mapping[str, jax.Array], state: Any, last: bool) -> Chunk:
        nonlocal updates, end
        # Waits for this chunk alone, not for one that was started after it.
        arrays = {name: np.asarray(x) for name, x in metrics.items()}
        begin, end = end, time.perf_counter() - began - pauses()
        chunk = Chunk(updates + 1, begin, end, arrays, state, last)
        updates = chunk.last_update
        return chunk

    for length in lengths:
        # Starting the next chunk donates the state, so whoever needs it has to get it before.
        if running is not None and (stop() or wants_state(started)):
            yield finish(running, state, last=bool(stop()))
            running = None
        if stop():  # maybe only since that chunk was reported
            break
        # JAX dispatches asynchronously: the call returns at once, and the chunk before is reported while this one runs.
        state, metrics = programs[length](state)
        started += length
        if running is not None:
            yield finish(running, None, last=False)
        running = metrics
    if running is not None:
        yield finish(running, state, last=True)


def steady_speed(first: Chunk | None, last: Chunk | None, env_steps: int) -> float:
    """Returns environment steps per second, without the first chunk if there are several; 0 if there is no chunk.

    Args:
      first: the first chunk of the loop.
      last: its last chunk.
      env_steps: environment steps per update, of all runs together.
    """
    if first is None or last is None:
        return 0.0
    if first.last_update == last.last_update:
        return env_steps * (last.last_update - first.first_update + 1) / last.end
    return env_steps * (last.last_update - first.last_update) / (last.end - first.end)


def compile_chunks(
    trainer: Trainer, hp: Hyperparams, runner: RunnerState, lengths: Iterable[int]
) -> dict[int, jax.stages.Compiled]:
    """Compiles `advance` for every chunk length, as (hp, state) -> (state, metrics) with the state donated.

    Args:
      trainer: what is compiled.
      hp: float32 scalars, as the programs will get them.
      runner: a state, for its shapes and shardings.
      lengths: the number of updates of each chunk.

    Returns:
      Number of updates -> compiled program.
    """
    return {length: _compile_advance(trainer, hp, runner, length) for length in sorted(set(lengths))}


def _compile_advance(trainer: Trainer, hp: Hyperparams, runner: RunnerState, num_updates: int) -> jax.stages.Compiled:
    program = jax.jit(lambda hp, runner: advance(trainer, hp, runner, num_updates), donate_argnums=1)
    return program.lower(hp, runner).compile()


def chunk_lengths(config: TrainConfig, params: Params, backend: str, period: int = 0) -> list[int]:
    """Returns the number of updates of each chunk, at most about a second of work; they sum to config.num_updates.

    All chunks have one length if num_updates has a divisor of about the right size. Otherwise the last chunk is
    shorter, which costs a second compilation. With a period chunks end at its multiples too, and at most three lengths
    occur.

    Args:
      config: gives the work of an update and the number of updates.
      params: the parameters of one run, or of all runs that are computed on one device.
      backend: JAX's name of the platform.
      period: updates, at each multiple of which a chunk has to end; 0 if there are no such places.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    work = config.batch_size * config.num_epochs * size
    target = int(work_per_call(backend) / work)
    target = max(1, min(target, _CHUNK_UPDATES, config.num_updates))
    if not 0 < period < config.num_updates:
        return _cut(config.num_updates, _best_divisor(config.num_updates, max(1, target // 16), target) or target)
    # One length for all is best, then one for whole periods, which leaves a shorter rest after the last of them.
    # Short chunks cost time only where there are many of them.
    shortest = max(1, min(target // 16, config.num_updates // _FEW_CHUNKS))
    target = min(target, period)
    common = _best_divisor(math.gcd(period, config.num_updates), shortest, target)
    length = common or _best_divisor(period, shortest, target) or target
    whole, rest = divmod(config.num_updates, period)
    return _cut(period, length) * whole + _cut(rest, length)


def _best_divisor(number: int, shortest: int, target: int) -> int | None:
    """Returns the divisor from `shortest` to twice the target that is closest to it by ratio; None if none is there."""
    divisors = [n for n in range(shortest, 2 * target + 1) if number % n == 0]
    return min(divisors, key=lambda n: max(n / target, target / n), default=None)


def _cut(updates: int, length: int) -> list[int]:
    """Returns the lengths of chunks that sum to `updates`; only the last one may be shorter."""
    whole, rest = divmod(updates, length)
    return [length] * whole + [rest] * (rest > 0)


def work_per_call(backend: str) -> float:
    """Returns the work, in env steps x epochs x parameters, that takes one device about a second."""
    return _CHUNK_WORK.get(backend, _CHUNK_WORK_ACCELERATOR)


def remaining(lengths: Sequence[int], done: int) -> list[int]:
    """Returns the lengths of the chunks that are left after `done` updates.

    The boundaries between chunks stay where they were, so a resumed run uses the programs that an uninterrupted one
    does, which the cache of compiled programs holds.
    """
    left = []
    for length in lengths:
        skipped = min(length, done)
        done -= skipped
        left += [length - skipped] * (length > skipped)
    return left
