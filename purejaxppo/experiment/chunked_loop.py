"""The host loop: compile once, advance in chunks, turn device metrics into rows."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.nonfinite import GUARDS, advice, first_nonfinite
from purejaxppo.core.types import Params, RunnerState, Trainer
from purejaxppo.devices.memory import program_bytes
from purejaxppo.errors import DivergedError
from purejaxppo.experiment.metrics_log import Sink, emit
from purejaxppo.train import advance

# Env steps x epochs x parameters per call of the compiled program: measured to be about a second, so that launching it
# and reporting on it, some 5 to 10 ms, do not show. Progress moves, and signals are heard, once per call.
_CHUNK_WORK = {"cpu": 1e10}
_CHUNK_WORK_ACCELERATOR = 1e11
_CHUNK_UPDATES = 64
State = TypeVar("State")


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
    metrics: dict[str, np.ndarray]  # each [updates], or [R, updates] for R runs

    @property
    def last_update(self) -> int:
        """Counted from 1."""
        return self.first_update + self.metrics["learning_rate"].shape[-1] - 1


class Hooks(NamedTuple):
    """What the host does while training goes on. Nothing of it changes the result."""

    report: Callable[[Chunk], object]  # each chunk's metrics, in order
    on_start: Callable[[int], object] = lambda _: None  # between compilation and the first update: the program's bytes
    stopped: Callable[[], object] = lambda: None  # looked at between chunks; something true ends the loop early
    save_due: Callable[[], bool] = lambda: False  # looked at between chunks
    save: Callable[[int, Any], object] = lambda *_: None  # the updates done, and the state after them


class Program(NamedTuple):
    """A compiled call."""

    advance: Callable[[Any], tuple[Any, dict[str, jax.Array]]]  # state, which is given away -> (state, metrics)
    bytes: int  # that it needs at a time


class Loop(NamedTuple):
    """What is advanced in chunks: the state of one run, or of many."""

    compile: Callable[[Any, int], Program]  # (state, updates of a call) -> program
    lengths: Callable[[Any], Sequence[int]]  # of the state to begin from: how many updates each chunk is to have
    done: Callable[[Any], int]  # updates that lie behind the state to begin from
    env_steps: int  # per update, of all runs together


def train_in_chunks(
    config: TrainConfig, trainer: Trainer, hp: Hyperparams, start: Callable[[], RunnerState], hooks: Hooks
) -> tuple[RunnerState, Timing]:
    """`advance_in_chunks` for one run: the same `advance` as in one jitted call, with its state donated."""
    hp = jax.tree.map(jnp.float32, hp)

    def lengths(runner: RunnerState) -> Sequence[int]:
        return _remaining(chunk_lengths(config, runner.learner.params, jax.default_backend()), int(runner.updates))

    def compile(runner: RunnerState, num_updates: int) -> Program:
        program = _compile_advance(trainer, hp, runner, num_updates)
        return Program(lambda runner: program(hp, runner), program_bytes(program))

    loop = Loop(compile, lengths, lambda runner: int(runner.updates), config.batch_size)
    return advance_in_chunks(loop, start, hooks)


def advance_in_chunks(loop: Loop, start: Callable[[], State], hooks: Hooks) -> tuple[State, Timing]:
    """The host loop. The next chunk is always started before the last one's metrics are read, so the device does not
    wait for the host; only a save waits until everything before it is done and reported.

    Args:
      start: gives the state to begin from.
    """
    began = time.perf_counter()
    state = start()
    done, lengths = loop.done(state), loop.lengths(state)
    programs = {n: loop.compile(state, n) for n in sorted(set(lengths))}
    compile_seconds = time.perf_counter() - began

    hooks.on_start(max((program.bytes for program in programs.values()), default=0))
    first_second = time.perf_counter()
    ends = [0.0]
    in_flight: list[dict[str, jax.Array]] = []

    def receive() -> None:
        nonlocal done
        metrics = {name: np.asarray(x) for name, x in in_flight.pop(0).items()}  # waits for this chunk alone
        ends.append(time.perf_counter() - first_second)
        chunk = Chunk(done + 1, ends[-2], ends[-1], metrics)
        hooks.report(chunk)
        done = chunk.last_update

    for length in lengths:
        if hooks.stopped():
            break
        state, metrics = programs[length].advance(state)
        in_flight.append(metrics)
        if len(in_flight) > 1:
            receive()
        if hooks.save_due():
            receive()
            hooks.save(done, state)
    while in_flight:
        receive()
    jax.block_until_ready(state)
    return state, Timing(compile_seconds, ends[-1], _steady_speed(lengths, ends, loop.env_steps))


def _remaining(lengths: Sequence[int], done: int) -> list[int]:
    """What is left of the chunks when so many updates are done.

    The boundaries stay where they were, so that a resumed run goes on with the very programs of the one before.
    """
    left = []
    for length in lengths:
        skipped = min(length, done)
        done -= skipped
        left += [length - skipped] * (length > skipped)
    return left


def _steady_speed(lengths: Sequence[int], ends: Sequence[float], steps: int) -> float:
    """Environment steps per second after the first of several chunks; `ends` begins with 0."""
    done = len(ends) - 1
    first = min(1, done - 1)
    return steps * sum(lengths[first:done]) / (ends[-1] - ends[first]) if done else 0.0


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


def _compile_advance(trainer: Trainer, hp: Hyperparams, runner: RunnerState, num_updates: int) -> jax.stages.Compiled:
    program = jax.jit(lambda hp, runner: advance(trainer, hp, runner, num_updates), donate_argnums=1)
    return program.lower(hp, runner).compile()


class Rows:
    """Turns the chunks of one run into rows for its sinks, one per update.

    A row whose update was not finite has the field `nonfinite`, which says what. Raises DivergedError for one, or under
    `on_nonfinite = skip` for as many in a row that no further attempt is likely to help.

    Args:
      seconds: of training before the first chunk, in a run that was resumed.
      bad: updates just before it, in a row, that were undone.
    """

    def __init__(self, config: TrainConfig, sinks: Sequence[Sink], seconds: float = 0.0, bad: int = 0) -> None:
        self._batch_size = config.batch_size
        self._patience = GUARDS[config.on_nonfinite].patience
        self._sinks = list(sinks)
        self._seconds = seconds
        self._bad = bad

    def __call__(self, chunk: Chunk) -> None:
        columns = {name: x.tolist() for name, x in chunk.metrics.items()}
        length = len(columns["learning_rate"])
        for i in range(length):
            row = {name: column[i] for name, column in columns.items()}
            update = chunk.first_update + i
            env_steps = update * self._batch_size
            quantity = first_nonfinite(row.pop("nonfinite"))
            self._check(quantity, update, env_steps)
            seconds = self._seconds + chunk.begin + (chunk.end - chunk.begin) * (i + 1) / length
            row["episode/count"] = int(row["episode/count"])
            row = {"update": update, "env_steps": env_steps, "seconds": round(seconds, 4), **row}
            self._sinks = emit(self._sinks, env_steps, {**row, "nonfinite": quantity} if quantity else row)

    def _check(self, quantity: str | None, update: int, env_steps: int) -> None:
        self._bad = self._bad + 1 if quantity else 0
        if quantity and self._bad >= self._patience:
            times = f" in {self._bad} updates in a row, each undone" if self._bad > 1 else ""
            raise DivergedError(
                f"{quantity} is not finite at update {update} ({env_steps} env steps){times}. "
                f"{advice([quantity], learnt=self._bad < update)}",
                update,
            )
