"""Training one batch of a sweep's runs through a rung; it is saved and resumed like a single run.

A rung is a stage of successive halving; a sweep without that has one.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from purejaxppo.config import Hyperparams
from purejaxppo.core.types import Metrics
from purejaxppo.devices import processes
from purejaxppo.devices.memory import explain, out_of_memory_explained, program_bytes
from purejaxppo.devices.vectorize import Runs, make_runs
from purejaxppo.errors import CheckpointError, OutOfMemoryError
from purejaxppo.experiment.atomic_files import write_json
from purejaxppo.experiment.checkpoints.directory import clean, invalid_reason, list_steps
from purejaxppo.experiment.checkpoints.saver import Saver
from purejaxppo.experiment.checkpoints.state import placed_like
from purejaxppo.experiment.checkpoints.store import CheckpointChoice, load_newest, load_together
from purejaxppo.experiment.chunked_loop import Chunk, advance_in_chunks
from purejaxppo.experiment.metrics_log import AppendedFile, RepeatedFile, whole_rows
from purejaxppo.experiment.phases import Phases
from purejaxppo.experiment.progress import ProgressDisplay, remark
from purejaxppo.experiment.signals import StopRequest
from purejaxppo.experiment.watchdog import Watchdog, announced
from purejaxppo.sweeps.batches import BatchResult, RunBatch, batch_dir, read_result
from purejaxppo.sweeps.compiled_group import CompiledGroup
from purejaxppo.sweeps.directory import METRICS
from purejaxppo.sweeps.metrics_csv import SweepRows
from purejaxppo.sweeps.plan import Plan


class ActiveSweep(NamedTuple):
    """A sweep that is being trained; this process, or the first one, holds the lock of its directory."""

    directory: Path
    plan: Plan
    columns: Sequence[str]  # names of the metrics in metrics.csv
    console: Console
    progress: ProgressDisplay
    stop: StopRequest
    phases: Phases
    strict: bool = False  # refuse to fall back to an older checkpoint than the newest

    def note(self, text: str) -> None:
        """Prints a line without disturbing the progress display."""
        remark(self.console, text)

    def stopped(self) -> str | None:
        """Returns the name of the first signal that has come to any process, or None; all of them have to ask."""
        return processes.first_of(self.stop())


def train_batch(
    active_sweep: ActiveSweep, batch: RunBatch, begin: Callable[[], Runs], metrics_bytes: int
) -> BatchResult | None:
    """Trains a batch to the end of its rung, from its newest valid checkpoint if it has one, and evaluates it.

    Args:
      active_sweep: the sweep that it belongs to.
      batch: to train.
      begin: returns the runs as they enter the rung; called if there is no checkpoint.
      metrics_bytes: length of the rows of earlier batches in metrics.csv.

    Returns:
      The results of its runs; None if a signal has stopped the training.
    """
    directory = batch_dir(active_sweep.directory, batch)
    if processes.leads():
        directory.mkdir(parents=True, exist_ok=True)
        clean(directory)
    runs, seconds, position = _train(active_sweep, batch, begin, metrics_bytes)
    if active_sweep.stopped():
        return None
    message = f"the trained states are saved; `purejaxppo resume {active_sweep.directory}` evaluates them."
    with active_sweep.stop.ending_at_once(message):
        what = (
            f"evaluating {len(batch.runs):,} runs, each with {active_sweep.plan.sweep.options.eval_episodes:,} episodes"
        )
        with announced(active_sweep.note, what):
            result = _evaluate(batch, active_sweep.plan.groups[batch.group], runs, position, seconds)
    if processes.leads():
        write_json(directory / "result.json", result._asdict())
    active_sweep.phases.end("evaluation")
    return _of_leader(lambda: result)


def _of_leader(find: Callable[[], BatchResult | None]) -> BatchResult | None:
    """Returns what the first process finds: its clock and the positions in its files count."""
    found = processes.from_leader(lambda: (result := find()) and result._asdict())
    return None if found is None else BatchResult(**found)


def _train(
    active_sweep: ActiveSweep, batch: RunBatch, begin: Callable[[], Runs], metrics_bytes: int
) -> tuple[Runs, float, int]:
    """Trains a batch to the end of its rung, or to a signal, and saves it.

    Returns:
      The runs, the seconds of training since they entered the rung, and the length of metrics.csv with their rows.
    """
    sweep, group = active_sweep.plan.sweep, active_sweep.plan.groups[batch.group]
    runs, done, before, metrics_bytes = _restore_or_begin(active_sweep, batch, begin, metrics_bytes)
    hps, _ = group.arguments(batch.runs, batch.size)
    env_steps_per_update = group.config.batch_size * len(batch.runs)  # of all runs together
    active_sweep.progress.skip(env_steps_per_update * (done - batch.since))
    length = active_sweep.plan.chunk_length(group, batch.size)
    lengths = [length] * -(-(batch.until - done) // length)  # rounded up: the last call may go beyond the rung's end
    rows = SweepRows(sweep, batch.runs, active_sweep.columns, batch.until, processes.on_host(runs.diverged))
    options = dataclasses.replace(sweep.options, keep_best=0)  # the best of many runs is not one state
    seconds, program_size = before, 0
    with (
        _metrics_file(active_sweep, metrics_bytes) as log,
        out_of_memory_explained(lambda: explain(group.config, group.env, program_size)),  # its value when that happens
        Watchdog(active_sweep.note) as watchdog,
        Saver(batch_dir(active_sweep.directory, batch), options) as saver,
    ):
        with active_sweep.stop.ending_at_once(
            f"what was saved stays; `purejaxppo resume {active_sweep.directory}` goes on from there."
        ):
            programs = {n: group.program(batch.size, n) for n in set(lengths)}  # empty if only the evaluation remains
            program_size = max(map(program_bytes, programs.values()), default=0)
        active_sweep.phases.end("compilation")
        watchdog.alive()
        active_sweep.progress.start_clock()

        # The runs are donated to the next call before a chunk is logged. A chunk comes with them only if it is the last
        # one, or a checkpoint is due.
        calls = {n: partial(_call, program, hps) for n, program in programs.items()}
        for chunk in advance_in_chunks(calls, lengths, runs, done, active_sweep.stopped, lambda _: saver.due()):
            if processes.leads():
                log.write(rows(chunk))
            watchdog.alive()
            last = min(chunk.last_update, batch.until)  # after that the runs are frozen
            active_sweep.progress.advance(
                (last - done) * env_steps_per_update, {"episode/return": mean_of_chunk(chunk)}
            )
            done, seconds = last, before + chunk.end
            if chunk.state is None:
                continue
            runs = chunk.state
            if saver.due() and not chunk.last:
                saver.save(
                    done * group.config.batch_size, runs, _checkpoint_meta(active_sweep, batch, log, done, seconds)
                )
        jax.block_until_ready(runs)
        active_sweep.phases.end("training")
        meta = _checkpoint_meta(active_sweep, batch, log, done, seconds)
        saver.save_last(done * group.config.batch_size, runs, meta, active_sweep.note)
        position = log.position()
    active_sweep.phases.end("saving")
    return runs, seconds, position


def _metrics_file(active_sweep: ActiveSweep, metrics_bytes: int) -> AppendedFile:
    """Opens metrics.csv behind the rows of earlier batches, in the first process."""
    if not processes.leads():
        return AppendedFile(Path(os.devnull))
    # Not one that is truncated: a batch that is trained again has to leave the rows of later batches in place.
    return RepeatedFile(active_sweep.directory / METRICS, metrics_bytes)


def _call(program: jax.stages.Compiled, hps: Hyperparams, runs: Runs) -> tuple[Runs, Metrics]:
    """Calls a program; the metrics of all runs are then in all processes, the first of which writes them."""
    runs, metrics = program(hps, runs)
    return runs, processes.replicated(metrics)


def _restore_or_begin(
    active_sweep: ActiveSweep, batch: RunBatch, begin: Callable[[], Runs], metrics_bytes: int
) -> tuple[Runs, int, float, int]:
    """Returns the runs from a batch's newest valid checkpoint, or from `begin` if there is none.

    Returns:
      The runs, the updates that they have done, the seconds that these took, and the length of metrics.csv up to them.
    """
    if processes.from_leader(lambda: _can_be_restored(active_sweep, batch)):
        load = partial(load_runs, active_sweep.directory, active_sweep.plan, batch)
        which = CheckpointChoice(strict=active_sweep.strict, note=active_sweep.note)
        runs, meta = load_together(batch_dir(active_sweep.directory, batch), load, which)
        # The rows that were logged before the checkpoint have to be there: training goes on behind them.
        end = meta["metrics_bytes"]
        if processes.from_leader(lambda: whole_rows(active_sweep.directory / METRICS, end) == end):
            return runs, meta["updates"], meta["seconds"], end
        active_sweep.note(f"{METRICS} has lost rows; the runs of {batch.name} begin again, which makes them again.")
    return begin(), batch.since, 0.0, metrics_bytes


def _can_be_restored(active_sweep: ActiveSweep, batch: RunBatch) -> bool:
    """Returns whether a batch has a checkpoint that is worth loading, or that has to be loaded if it is damaged."""
    saved = list_steps(batch_dir(active_sweep.directory, batch))
    damaged = bool(saved) and all(invalid_reason(step.path) for step in saved)
    if damaged and not active_sweep.strict:
        active_sweep.note(
            f"every checkpoint of {batch.name} is damaged ({invalid_reason(saved[0].path)}); its runs begin again."
        )
    return bool(saved) and (active_sweep.strict or not damaged)


def load_runs(directory: Path, plan: Plan, batch: RunBatch, which: CheckpointChoice) -> tuple[Runs, dict[str, Any]]:
    """Loads a checkpoint of a batch: the runs, on their devices, and meta.json.

    Raises CheckpointError if there is none, or it belongs to another sweep.
    """
    _, expected = plan.groups[batch.group].shapes(batch.size)
    runs, meta = load_newest(batch_dir(directory, batch), expected, which)
    if meta.get("sweep") != plan.fingerprint or meta.get("runs") != list(batch.runs):
        path = directory / "sweep.json"
        raise CheckpointError(
            f"{path} has been changed since the checkpoint was saved; change it back, or start a new sweep."
        )
    return runs, meta


def finished_result(active_sweep: ActiveSweep, batch: RunBatch) -> BatchResult | None:
    """Returns the result of a batch that is finished; None if it has to be trained or evaluated.

    A batch is finished if it has a result, its rows are in metrics.csv, and its last checkpoint is valid.

    Raises CheckpointError if the checkpoint alone is missing or invalid, and `active_sweep.strict` is set.
    """
    return _of_leader(lambda: _finished_result(active_sweep, batch))


def _finished_result(active_sweep: ActiveSweep, batch: RunBatch) -> BatchResult | None:
    result = read_result(active_sweep.directory, batch)
    if result is None or whole_rows(active_sweep.directory / METRICS, result.metrics_bytes) < result.metrics_bytes:
        return None
    steps = list_steps(batch_dir(active_sweep.directory, batch))
    last = next((step.path for step in steps if step.env_steps == _final_env_steps(active_sweep.plan, batch)), None)
    reason = "its last checkpoint is missing" if last is None else invalid_reason(last)
    if reason and active_sweep.strict:
        raise CheckpointError(f"{batch.name}: {reason}; leave --strict out to train again what is lost.")
    return None if reason else result


def _checkpoint_meta(
    active_sweep: ActiveSweep, batch: RunBatch, log: AppendedFile, updates: int, seconds: float
) -> Callable[[], dict[str, Any]]:
    """Returns a function that returns a checkpoint's meta.json, to be called in the thread that saves.

    It syncs metrics.csv, which takes time.
    """
    position = log.position()

    def describe() -> dict[str, Any]:
        log.sync()  # the rows must be on the disk before a checkpoint that relies on them
        mark = {"sweep": active_sweep.plan.fingerprint, "runs": list(batch.runs)}
        return {"updates": updates, "metrics_bytes": position, "seconds": seconds, "train_return": None, **mark}

    return describe


def mean_of_chunk(chunk: Chunk) -> float | None:
    """Returns the mean of `episode/return` over a chunk's runs and updates; None if no episode ended in it."""
    returns = chunk.metrics["episode/return"]
    finite = returns[np.isfinite(returns)]
    return float(finite.mean()) if finite.size else None


def _evaluate(batch: RunBatch, group: CompiledGroup, runs: Runs, metrics_bytes: int, seconds: float) -> BatchResult:
    """Plays the final evaluation of a batch and returns its result. Raises OutOfMemoryError."""
    count = len(batch.runs)
    _, seeds = group.arguments(batch.runs, batch.size)
    too_large = f"out of memory in the evaluation of {batch.name}; start a new sweep with fewer --eval-episodes."
    with out_of_memory_explained(lambda: OutOfMemoryError(too_large)):
        returns, unfinished = group.evaluate(seeds, runs)
    updates, diverged = processes.on_host((runs.runner.updates, runs.diverged))
    return BatchResult(
        updates=updates[:count].tolist(),
        diverged_at=diverged[:count].tolist(),
        returns=[float(x) if np.isfinite(x) else None for x in returns[:count]],
        metrics_bytes=metrics_bytes,
        seconds=seconds,
        unfinished=int(unfinished[:count].sum()),
    )


def new_runs(plan: Plan, batch: RunBatch) -> Runs:
    """Returns the initial states of a batch's runs, for the first rung."""
    group = plan.groups[batch.group]
    hps, seeds = group.values(batch.runs, batch.size)
    return make_runs(group.trainer, hps, seeds, _stop_at(batch), group.layout(batch.size))


def promoted_runs(directory: Path, plan: Plan, batch: RunBatch, before: Sequence[RunBatch]) -> Runs:
    """Returns the states of runs that go on to a later rung, from the last checkpoints of the rung before.

    Args:
      directory: of the sweep.
      plan: its plan.
      batch: to train.
      before: the batches of the rung before.

    Raises CheckpointError if one of the checkpoints cannot be used.
    """
    chosen, order = [], []
    for old in before:  # one at a time, as all batches together may not fit into memory
        rows = [i for i, run in enumerate(old.runs) if run in batch.runs]
        if rows:
            load = partial(load_runs, directory, plan, old)
            which = CheckpointChoice(env_steps=_final_env_steps(plan, old))
            runs, _ = load_together(batch_dir(directory, old), load, which)
            chosen.append(_select(processes.on_host(runs), rows))
            order += [old.runs[i] for i in rows]
    # `chosen` holds the runs in the order of the old batches; the new one has them in its own, and copies at its end.
    filled = [*batch.runs, *[batch.runs[-1]] * (batch.size - len(batch.runs))]
    index = np.array([order.index(run) for run in filled])
    runs = jax.tree.map(lambda *leaves: np.concatenate(leaves)[index], *chosen)._replace(stop_at=_stop_at(batch))
    _, expected = plan.groups[batch.group].shapes(batch.size)
    return jax.tree.map(placed_like, expected, runs)


def _select(runs: Runs, rows: Sequence[int]) -> Runs:
    return jax.tree.map(lambda leaf: leaf[rows], runs)


def _stop_at(batch: RunBatch) -> np.ndarray:
    """Returns the updates [size] after which each run is frozen: 0 for the copies that fill up the batch."""
    return np.where(np.arange(batch.size) < len(batch.runs), batch.until, 0).astype(np.int32)


def _final_env_steps(plan: Plan, batch: RunBatch) -> int:
    return batch.until * plan.groups[batch.group].config.batch_size
