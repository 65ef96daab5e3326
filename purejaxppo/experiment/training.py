"""Training one run on the host: from its start or a checkpoint to the end of the budget, a signal or an error.

`train` is a loop over attempts. An attempt (`_train`) begins from a state, advances it in chunks, writes the metrics of
each chunk and saves checkpoints. If it ends by numbers that are not finite and the run allows rollbacks, the next
attempt begins from the newest valid checkpoint, with other random numbers.

A run that evaluates while it trains has chunks that end at the updates in question. The evaluation comes before the row
of its update is written, whose fields it adds to. If a signal stops it, the row is written without them and also saved
with the checkpoint as its `pending_row`: the resumed run takes it back, evaluates, and writes the whole row.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial, reduce
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from purejaxppo.config import TrainConfig
from purejaxppo.core.nonfinite import NONFINITE_RULES, NonfiniteLimit, first_nonfinite
from purejaxppo.core.types import RunnerState, Trainer, VecEnv
from purejaxppo.devices import processes, selection
from purejaxppo.devices.memory import device_bytes, explain, out_of_memory_explained, program_bytes
from purejaxppo.errors import DivergedError
from purejaxppo.experiment.checkpoints.directory import invalid_reason, list_steps
from purejaxppo.experiment.checkpoints.saver import Saver, ranking
from purejaxppo.experiment.checkpoints.store import CheckpointChoice, load_together
from purejaxppo.experiment.chunked_loop import (
    Chunk,
    Timing,
    advance_in_chunks,
    chunk_lengths,
    compile_chunks,
    remaining,
    steady_speed,
)
from purejaxppo.experiment.directory import RunSettings
from purejaxppo.experiment.evaluation import Evaluator
from purejaxppo.experiment.load_run import load_runner
from purejaxppo.experiment.metrics_log import (
    JsonLines,
    Sink,
    emit,
    json_values,
    last_rows,
    recent_return,
    row_at,
    whole_rows,
)
from purejaxppo.experiment.periodic_evaluation import PeriodicEvaluation
from purejaxppo.experiment.phases import Phases
from purejaxppo.experiment.progress import ProgressDisplay, Row, remark
from purejaxppo.experiment.signals import StopRequest
from purejaxppo.experiment.watchdog import Watchdog

RECENT = 100  # a checkpoint is ranked by the mean return over this many last updates before it


class Run(NamedTuple):
    """A run that is ready to train, and what it needs on the host; this process, or the first one, holds its lock."""

    run_dir: Path
    files: Path  # where this process writes: the run's directory, or for all but the first of several a temporary one
    settings: RunSettings
    env: VecEnv
    trainer: Trainer
    devices: Sequence[jax.Device]  # that it is trained on, of all processes
    console: Console
    stop: StopRequest
    phases: Phases
    sinks: Sequence[Sink] = ()
    evaluator: Evaluator | None = None  # of the evaluations while training, if there are any

    @property
    def metrics_file(self) -> Path:
        return self.files / "metrics.jsonl"

    def note(self, text: str) -> None:
        """Prints a message beside the progress."""
        remark(self.console, text)


class Saved(NamedTuple):
    """The content of a run's checkpoint. The default is that of no checkpoint: training begins with a new state."""

    runner: RunnerState | None = None
    updates: int = 0  # done before the checkpoint
    metrics_bytes: int = 0  # size of metrics.jsonl with their rows
    seconds: float = 0.0  # of training, without compilation
    bad_in_a_row: int = 0  # how many of the last updates were undone, since something in them was not finite
    evaluation_return: float | None = None  # of the newest evaluation while training
    pending_row: Row | None = None  # of the last update, to be written with the evaluation that a signal stopped


def load_saved(run: Run, strict: bool = False) -> Saved:
    """Loads the newest valid checkpoint of a run; the empty `Saved` if none has ever been saved.

    Args:
      run: whose directory is read.
      strict: take the newest checkpoint or none, instead of falling back to an older one.

    Raises:
      CheckpointError: there are checkpoints, but none of them can be used.
    """
    if not processes.from_leader(lambda: bool(list_steps(run.run_dir))):
        return Saved()
    load = partial(load_runner, run.run_dir, run.settings, run.trainer)
    runner, meta = load_together(run.run_dir, load, CheckpointChoice(strict=strict, note=run.note))
    kept = whole_rows(run.metrics_file, meta["metrics_bytes"])
    if kept < meta["metrics_bytes"]:
        run.note(f"{run.metrics_file} has lost rows since the checkpoint was saved; it goes on without them.")
    newest, pending = meta.get("evaluation_return"), meta.get("pending_row")
    if pending and (again := row_at(run.metrics_file, kept)) and again[0].items() > pending.items():
        # An earlier command has evaluated it already, and saved nothing after that.
        newest, kept, pending = again[0].get("evaluation/return"), again[1], None
    rows = last_rows(run.metrics_file, kept, RECENT) if kept else []
    rows += [pending] if pending else []
    # JSON has no NaN; sinks get the row that they would have got.
    pending = pending and {name: math.nan if value is None else value for name, value in pending.items()}
    bad = len(list(takewhile(lambda row: "nonfinite" in row, reversed(rows))))
    return Saved(runner, meta["updates"], kept, meta["seconds"], bad, newest, pending)


def train(run: Run, saved: Saved) -> tuple[RunnerState, Timing]:
    """Trains to the end of the budget or to a signal, with rollbacks under `on_nonfinite = rollback`.

    Args:
      run: what to train.
      saved: where to begin.

    Returns:
      The last state, which is saved, and the `Timing` since the run's beginning, over all commands that trained it.

    Raises:
      DivergedError: something is not finite, and `on_nonfinite` does not allow to go on; the state is not saved.
      OutOfMemoryError: the device has too little memory; the message has the sizes.
      CheckpointError: a checkpoint or a metric cannot be written.
    """
    # The updates at which attempts from the present checkpoint have failed. They are counted per checkpoint: progress
    # that reached a newer one starts the count again. They also change the key of the next attempt, see `_first_state`.
    failed_at: list[int] = []
    while True:
        try:
            return _attempt(run, saved, failed_at)
        except DivergedError as error:
            run.phases.end("training")
            processes.exchange("")  # the first one has saved what it was about to save
            rollbacks = NONFINITE_RULES[run.settings.config.on_nonfinite].rollbacks
            if not rollbacks:
                raise _with_last_good(run, error) from None
            before, saved = saved.updates, load_saved(run)
            failed_at = [*(failed_at if saved.updates == before else []), error.update]
            if len(failed_at) > rollbacks:
                raise _with_last_good(run, error) from None
            run.note(f"{error} Rolled back to {saved.updates * run.settings.config.batch_size} env steps.")


def _with_last_good(run: Run, error: DivergedError) -> DivergedError:
    """Returns the error with the path of the newest valid checkpoint, and how to go on from it."""
    steps = [step for step in list_steps(run.run_dir) if invalid_reason(step.path) is None]
    good = f"the last good checkpoint is {steps[0].path}" if steps else "there is no good checkpoint"
    advice = f"; `purejaxppo resume {run.run_dir} --on-nonfinite skip` goes on from there" if steps else ""
    return DivergedError(f"{error} It was not saved; {good}{advice}.", error.update)


def _attempt(run: Run, saved: Saved, failed_at: Sequence[int]) -> tuple[RunnerState, Timing]:
    """Makes one attempt, from a saved state to the end of the budget, to a signal, or to a DivergedError.

    Args:
      run: what to train.
      saved: where to begin.
      failed_at: the updates at which attempts from there have failed.
    """
    config, hp, seed, options = run.settings
    hp = jax.tree.map(np.float32, hp)
    done, seconds, program_size = saved.updates, saved.seconds, 0
    reached = f"the state after {done * config.batch_size} env steps is saved" if done else "no update had finished"
    with (
        JsonLines(run.metrics_file, saved.metrics_bytes) as log,
        ProgressDisplay(run.console, config.env_steps, done * config.batch_size) as progress,
        out_of_memory_explained(lambda: explain(config, run.env, program_size)),  # its value when that happens
        Watchdog(run.note) as watchdog,
        Saver(run.run_dir, options) as saver,
    ):

        def stop_evaluation() -> str | None:
            watchdog.alive()  # each piece of an evaluation is a sign of life
            return run.stop()

        def stop() -> str | None:
            return processes.first_of(run.stop())

        def wants_state(update: int) -> bool:
            return evaluation.due(update) or saver.due()

        evaluation = PeriodicEvaluation(
            config, options, seed, run.evaluator, saved.evaluation_return, run.note, stop_evaluation
        )
        limit = NonfiniteLimit(config.on_nonfinite, saved.bad_in_a_row)
        rows = RunRows(config, [log, progress, *run.sinks], limit, saved.seconds)

        # Nothing is computed yet that would have to be saved, so a signal ends the process, also during compilation.
        began = time.perf_counter()
        with run.stop.ending_at_once(f"{reached}; `purejaxppo resume {run.run_dir}` goes on from there."):
            state = _first_state(run, saved, failed_at)
            lengths = chunk_lengths(config, state.learner.params, jax.default_backend(), evaluation.period)
            lengths = remaining(lengths, done)
            programs = compile_chunks(run.trainer, hp, state, lengths)
            program_size = max(map(program_bytes, programs.values()), default=0)
            _check_memory(run, program_size)
            evaluation.compile(state, done)
        compile_seconds = time.perf_counter() - began
        run.phases.end("compilation")
        watchdog.alive()
        progress.start_clock()

        if saved.pending_row:
            rows.write_row(saved.pending_row, _evaluation_due(run, evaluation, state, done))
        first = chunk = None
        calls = {length: partial(call, hp) for length, call in programs.items()}
        chunks = advance_in_chunks(calls, lengths, state, done, stop, wants_state, evaluation.clock())
        for chunk in chunks:
            rows.write(chunk, _evaluation_due(run, evaluation, chunk.state, chunk.last_update))
            watchdog.alive()
            first = first or chunk._replace(state=None)
            done, seconds = chunk.last_update, saved.seconds + chunk.end
            if chunk.state is None:  # it is donated to the next chunk, which is running already
                continue
            state = chunk.state
            if saver.due() and not chunk.last:
                saver.save(done * config.batch_size, state, _description(run, done, log, seconds, rows, evaluation))
        jax.block_until_ready(state)
        run.phases.end("training")
        last = _description(run, done, log, seconds, rows, evaluation)
        saver.save_last(done * config.batch_size, state, last, run.note)
    run.phases.end("saving")
    return state, Timing(compile_seconds, seconds, steady_speed(first, chunk, config.batch_size))


def _evaluation_due(
    run: Run, evaluation: PeriodicEvaluation, state: RunnerState, update: int
) -> Callable[[], Row | None] | None:
    """Returns the evaluation for which the row of an update waits, as a function for `RunRows`; None if none is due."""
    if not evaluation.due(update):
        return None

    def evaluate() -> Row | None:
        run.phases.end("training")
        fields = evaluation.measure(state, update)
        run.phases.end("evaluation")
        return fields

    return evaluate


def _first_state(run: Run, saved: Saved, failed_at: Sequence[int]) -> RunnerState:
    """Returns the state that an attempt begins from, on its devices: the saved one, or that of a new run.

    After failures it has another key, or the attempt would only repeat them. The key depends on the checkpoint and on
    `failed_at` alone: a run that is killed and resumed fails at the same updates, and so gets the same keys.
    """
    if saved.runner is None:
        arguments = jax.random.key(run.settings.seed), jax.tree.map(np.float32, run.settings.hp)
        init = jax.jit(run.trainer.init).lower(*arguments).compile()
        _check_memory(run, program_bytes(init))
        state = init(*arguments)
    else:
        state = run.trainer.place(saved.runner)
    return state._replace(key=reduce(jax.random.fold_in, failed_at, state.key))


def _description(
    run: Run, updates: int, log: JsonLines, seconds: float, rows: "RunRows", evaluation: PeriodicEvaluation
) -> Callable[[], dict[str, Any]]:
    """Returns a function that makes the content of meta.json; it is called by the thread that saves.

    The file's position is read here, before training goes on and adds rows. The slow part is left to the thread.
    """
    position, newest, pending = log.position(), evaluation.newest, rows.pending
    kept = log.last_row() if pending else position
    ranked_by = ranking(run.settings.options)

    def describe() -> dict[str, Any]:
        log.sync()  # the rows of metrics.jsonl have to be on the disk before the checkpoint that refers to them
        return {
            "updates": updates,
            "metrics_bytes": kept,
            "seconds": seconds,
            "train_return": recent_return(run.metrics_file, position, RECENT),
            "evaluation_return": newest,
            "ranked_by": ranked_by,
            **({"pending_row": json_values(pending)} if pending else {}),
            "settings": run.settings.record(),
        }

    return describe


def _check_memory(run: Run, program: int) -> None:
    """Raises OutOfMemoryError if a program needs more bytes than the device has.

    Without this check the operating system might kill the process, without any message.
    """
    if jax.default_backend() == "cpu":
        own = [device for device in run.devices if device.process_index == jax.process_index()]
        program *= len(own)  # CPU devices share the machine's memory
    available = device_bytes(selection.first())
    if available and program > available:
        raise explain(run.settings.config, run.env, program)


class RunRows:
    """Turns the chunks of one run into rows for its sinks, one per update.

    A row has the field `nonfinite`, with the name of a quantity, if that was not finite in its update.

    Args:
      config: of the run.
      sinks: they get the rows.
      limit: counts updates that are not finite, and raises if they are too many.
      seconds: of training before the first chunk, in a resumed run.
    """

    def __init__(self, config: TrainConfig, sinks: Sequence[Sink], limit: NonfiniteLimit, seconds: float = 0.0) -> None:
        self._batch_size = config.batch_size
        self._sinks = list(sinks)
        self._limit = limit
        self._seconds = seconds
        self.pending: Row | None = None  # the last row, if the evaluation that belongs to it was stopped

    def write(self, chunk: Chunk, evaluate: Callable[[], Row | None] | None = None) -> None:
        """Passes the rows of a chunk to each sink. Raises DivergedError if `limit` does.

        Args:
          chunk: from `advance_in_chunks`.
          evaluate: as in `write_row`, for the last row.
        """
        columns = {name: x.tolist() for name, x in chunk.metrics.items()}
        length = len(columns["learning_rate"])
        for i in range(length):
            row = {name: column[i] for name, column in columns.items()}
            update = chunk.first_update + i
            env_steps = update * self._batch_size
            quantity = first_nonfinite(row.pop("nonfinite"))
            self._limit.check(quantity, update, env_steps)
            seconds = self._seconds + chunk.begin + (chunk.end - chunk.begin) * (i + 1) / length
            row["episode/count"] = int(row["episode/count"])
            row = {"update": update, "env_steps": env_steps, "seconds": round(seconds, 4), **row}
            self.write_row({**row, "nonfinite": quantity} if quantity else row, evaluate if i == length - 1 else None)

    def write_row(self, row: Row, evaluate: Callable[[], Row | None] | None = None) -> None:
        """Passes a row to each sink.

        Args:
          row: of an update.
          evaluate: returns the fields that an evaluation adds to the row, or None if a signal stopped it; the row is
            then `pending`. It is None if no evaluation follows the update.
        """
        fields = evaluate() if evaluate else {}
        self.pending = row if fields is None else None
        self._sinks = emit(self._sinks, row["env_steps"], {**row, **(fields or {})})
