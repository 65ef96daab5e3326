"""One stretch of a run's training: from a state to the end of the budget, or to a signal."""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console

from purejaxppo.core.nonfinite import GUARDS
from purejaxppo.core.types import RunnerState, Trainer, VecEnv
from purejaxppo.devices.data_parallel import devices_for
from purejaxppo.devices.memory import device_bytes, explain, program_bytes
from purejaxppo.errors import DivergedError
from purejaxppo.experiment.checkpoints.directory import fault, list_steps
from purejaxppo.experiment.checkpoints.store import Which
from purejaxppo.experiment.chunked_loop import Rows, Timing, train_in_chunks
from purejaxppo.experiment.directory import RunSettings
from purejaxppo.experiment.load_run import load_runner
from purejaxppo.experiment.metrics_log import (
    JsonLines,
    ProgressDisplay,
    Sink,
    last_rows,
    recent_return,
    remark,
    whole_rows,
)
from purejaxppo.experiment.phases import Phases
from purejaxppo.experiment.signals import StopRequest
from purejaxppo.experiment.supervisor import Stretch, train_stretch

RECENT = 100  # updates, whose episodes say how good a checkpoint is


class Run(NamedTuple):
    """A run that is locked and ready to train."""

    run_dir: Path
    settings: RunSettings
    env: VecEnv
    trainer: Trainer
    console: Console
    stop: StopRequest
    phases: Phases
    sinks: Sequence[Sink] = ()

    @property
    def metrics_file(self) -> Path:
        return self.run_dir / "metrics.jsonl"

    def note(self, text: str) -> None:
        """Says something beside the progress."""
        remark(self.console, text)


class Start(NamedTuple):
    """Where a stretch of training begins."""

    make: Callable[[], RunnerState]  # to be called once: the loop gives the state's memory away
    updates: int = 0  # done
    metrics_bytes: int = 0  # of metrics.jsonl that belong to them
    seconds: float = 0.0  # of training that they took
    bad: int = 0  # of the last of them, in a row, that were undone


def from_the_beginning(run: Run) -> Start:
    """A new run's first state."""
    _, hp, seed, _ = run.settings
    arguments = jax.random.key(seed), jax.tree.map(jnp.float32, hp)

    def make() -> RunnerState:
        program = jax.jit(run.trainer.init).lower(*arguments).compile()
        _check_memory(run, program_bytes(program))
        return program(*arguments)

    return Start(make)


def from_checkpoint(run: Run, strict: bool = False) -> Start:
    """The newest sound checkpoint; the beginning if none has ever been saved. Raises CheckpointError."""
    if not list_steps(run.run_dir):
        return from_the_beginning(run)
    runner, meta = load_runner(run.run_dir, run.settings, run.trainer, Which(strict=strict, note=run.note))
    kept = whole_rows(run.metrics_file, meta["metrics_bytes"])
    if kept < meta["metrics_bytes"]:
        run.note(f"{run.metrics_file} has lost rows since the checkpoint was saved; it goes on without them.")
    rows = last_rows(run.metrics_file, kept, RECENT) if kept else []
    bad = len(list(takewhile(lambda row: "nonfinite" in row, reversed(rows))))
    return Start(lambda: run.trainer.place(runner), meta["updates"], kept, meta["seconds"], bad)


def train_session(run: Run, start: Start) -> tuple[RunnerState, Timing]:
    """Trains to the end or to a signal, saving now and then and at the end; `Timing` counts from the run's start.

    Raises:
      DivergedError: by `on_nonfinite`; the state is not saved.
      OutOfMemoryError: with what it would have taken.
      CheckpointError: something cannot be written.
    """
    failed_at: list[int] = []  # updates, since the checkpoint that all of them started from
    while True:
        try:
            return _train(run, start)
        except DivergedError as error:
            run.phases.end("training")
            rollbacks = GUARDS[run.settings.config.on_nonfinite].rollbacks
            if not rollbacks:
                raise _with_last_good(run, error) from None
            before, start = start.updates, from_checkpoint(run)
            failed_at = [*(failed_at if start.updates == before else []), error.update]
            if len(failed_at) > rollbacks:
                raise _with_last_good(run, error) from None
            run.note(f"{error} Rolled back to {start.updates * run.settings.config.batch_size} env steps.")
            start = start._replace(make=_other_key(start.make, failed_at))


def _other_key(make: Callable[[], RunnerState], failed_at: list[int]) -> Callable[[], RunnerState]:
    """Other random numbers, which depend on where it went wrong alone: resumed runs roll back to the same."""

    def changed() -> RunnerState:
        runner = make()
        return runner._replace(key=reduce(jax.random.fold_in, failed_at, runner.key))

    return changed


def _with_last_good(run: Run, error: DivergedError) -> DivergedError:
    steps = [step for step in list_steps(run.run_dir) if fault(step.path) is None]
    good = f"the last good checkpoint is {steps[0].path}" if steps else "there is no good checkpoint"
    advice = f"; `purejaxppo resume {run.run_dir} --on-nonfinite skip` goes on from there" if steps else ""
    return DivergedError(f"{error} It was not saved; {good}{advice}.", error.update)


def _train(run: Run, start: Start) -> tuple[RunnerState, Timing]:
    config, hp, _, options = run.settings
    steps = start.updates * config.batch_size
    reached = f"the state after {steps} env steps is saved" if steps else "no update had finished"
    with (
        JsonLines(run.metrics_file, start.metrics_bytes) as log,
        ProgressDisplay(run.console, config.env_steps, steps) as progress,
    ):
        stretch = Stretch(
            advance=lambda hooks: train_in_chunks(config, run.trainer, hp, start.make, hooks),
            report=Rows(config, [log, progress, *run.sinks], start.seconds, start.bad),
            directory=run.run_dir,
            options=options,
            env_steps=lambda updates: updates * config.batch_size,
            describe=lambda updates, seconds: _description(run, updates, log, seconds),
            check_memory=partial(_check_memory, run),
            explain=partial(explain, config, run.env),
            progress=progress,
            stop=run.stop,
            farewell=f"{reached}; `purejaxppo resume {run.run_dir}` goes on from there.",
            note=run.note,
            phases=run.phases,
            updates=start.updates,
            seconds=start.seconds,
        )
        return train_stretch(stretch)


def _description(run: Run, updates: int, log: JsonLines, seconds: float) -> Callable[[], dict[str, Any]]:
    """What a checkpoint's meta.json says of the run. What takes time is left to the thread that saves."""
    position = log.position()

    def describe() -> dict[str, Any]:
        log.sync()  # a checkpoint must not be on the disk before the rows that it counts on
        return {
            "updates": updates,
            "metrics_bytes": position,
            "seconds": seconds,
            "train_return": recent_return(run.metrics_file, position, RECENT),
            "settings": run.settings.record(),
        }

    return describe


def _check_memory(run: Run, program: int) -> None:
    """A system that is short of memory may kill the process without a word: better to stop before."""
    if jax.default_backend() == "cpu":
        program *= len(devices_for(run.settings.config))  # which share the machine's memory
    available = device_bytes(jax.devices()[0])
    if available and program > available:
        raise explain(run.settings.config, run.env, program)
