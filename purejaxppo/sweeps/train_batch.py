"""A batch of a sweep: runs side by side, trained from one rung to the next; saved and resumed like a run."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from purejaxppo.devices.memory import explain, out_of_memory_explained, program_bytes
from purejaxppo.devices.vectorize import Runs, make_runs
from purejaxppo.errors import CheckpointError, OutOfMemoryError, is_out_of_memory
from purejaxppo.experiment.atomic_files import write_json
from purejaxppo.experiment.checkpoints.directory import clean, invalid_reason, list_steps
from purejaxppo.experiment.checkpoints.saver import Saver
from purejaxppo.experiment.checkpoints.store import CheckpointChoice, load_newest
from purejaxppo.experiment.chunked_loop import Chunk, advance_in_chunks
from purejaxppo.experiment.metrics_log import RepeatedFile, whole_rows
from purejaxppo.experiment.phases import Phases
from purejaxppo.experiment.progress import ProgressDisplay, remark
from purejaxppo.experiment.signals import StopRequest
from purejaxppo.experiment.watchdog import Watchdog, announced
from purejaxppo.sweeps.batches import BatchResult, RunBatch, batch_dir, read_result
from purejaxppo.sweeps.compiled_group import CompiledGroup
from purejaxppo.sweeps.directory import METRICS
from purejaxppo.sweeps.metrics_csv import MetricRows
from purejaxppo.sweeps.plan import Plan


class SweepRun(NamedTuple):
    """A sweep that is locked and ready to train."""

    directory: Path
    plan: Plan
    columns: Sequence[str]  # of the metrics
    console: Console
    progress: ProgressDisplay
    stop: StopRequest
    phases: Phases
    strict: bool = False  # refuse to fall back to an older checkpoint than the newest

    def note(self, text: str) -> None:
        """Says something beside the progress."""
        remark(self.console, text)


def train_batch(
    sweep_run: SweepRun, batch: RunBatch, begin: Callable[[], Runs], metrics_bytes: int
) -> BatchResult | None:
    """Trains a batch to its end, from its newest sound checkpoint if there is one, and evaluates it.

    Args:
      begin: gives the state to begin from if there is none.
      metrics_bytes: of metrics.csv that are of the batches before.

    Returns:
      How it ended; None if a signal has stopped it.
    """
    directory = batch_dir(sweep_run.directory, batch)
    clean(directory) if directory.exists() else directory.mkdir(parents=True)
    group = sweep_run.plan.groups[batch.group]
    runs, done, before, metrics_bytes = _start(sweep_run, batch, begin, metrics_bytes)
    hps, seeds = group.arguments(batch.runs, batch.size)
    env_steps = group.config.batch_size * len(batch.runs)  # of an update
    sweep_run.progress.skip(env_steps * (done - batch.since))
    length = sweep_run.plan.chunk(group, batch.size)
    lengths = [length] * -(-(batch.until - done) // length)
    rows = MetricRows(sweep_run.plan.sweep, batch.runs, sweep_run.columns, batch.until, np.asarray(runs.diverged))
    options = dataclasses.replace(sweep_run.plan.sweep.options, keep_best=0)  # the best of many runs is not one state
    seconds, program = before, 0
    with (
        # What is trained again, for a damaged checkpoint, leaves the rows of later batches alone.
        RepeatedFile(sweep_run.directory / METRICS, metrics_bytes) as log,
        out_of_memory_explained(lambda: explain(group.config, group.env, program)),
        Watchdog(sweep_run.note) as watchdog,
        Saver(directory, options) as saver,
    ):
        with sweep_run.stop.ending_at_once(
            f"what was saved stays; `purejaxppo resume {sweep_run.directory}` goes on from there."
        ):
            programs = {n: group.program(batch.size, n) for n in set(lengths)}  # none if only the evaluation is left
            program = max(map(program_bytes, programs.values()), default=0)
        sweep_run.phases.end("compilation")
        watchdog.alive()
        sweep_run.progress.start_clock()

        calls = {n: partial(call, hps) for n, call in programs.items()}
        for chunk in advance_in_chunks(calls, lengths, runs, done, sweep_run.stop, saver.due):
            log.write(rows(chunk))
            watchdog.alive()
            last = min(chunk.last_update, batch.until)  # the runs rest after that
            sweep_run.progress.advance((last - done) * env_steps, {"episode/return": mean_ended(chunk)})
            done, seconds = last, before + chunk.end
            if chunk.state is None:
                continue
            runs = chunk.state
            if saver.due():
                saver.save(done * group.config.batch_size, runs, _description(sweep_run, batch, log, done, seconds))
        jax.block_until_ready(runs)
        sweep_run.phases.end("training")
        description = _description(sweep_run, batch, log, done, seconds)
        saver.save_last(done * group.config.batch_size, runs, description, sweep_run.note)
        position = log.position()
    sweep_run.phases.end("saving")
    if sweep_run.stop():
        return None
    message = f"the trained states are saved; `purejaxppo resume {sweep_run.directory}` evaluates them."
    with sweep_run.stop.ending_at_once(message):
        what = f"evaluating {len(batch.runs):,} runs, each with {sweep_run.plan.sweep.options.eval_episodes:,} episodes"
        with announced(sweep_run.note, what):
            result = _result(batch, group, runs, seeds, position, seconds)
    write_json(directory / "result.json", result._asdict())
    sweep_run.phases.end("evaluation")
    return result


def _start(
    sweep_run: SweepRun, batch: RunBatch, begin: Callable[[], Runs], metrics_bytes: int
) -> tuple[Runs, int, float, int]:
    """State, updates done, seconds that they took, and bytes of metrics.csv."""
    saved = list_steps(batch_dir(sweep_run.directory, batch))
    damaged = bool(saved) and all(invalid_reason(step.path) for step in saved)
    if damaged and not sweep_run.strict:
        sweep_run.note(
            f"every checkpoint of {batch.name} is damaged ({invalid_reason(saved[0].path)}); its runs begin anew."
        )
    if saved and (sweep_run.strict or not damaged):
        which = CheckpointChoice(strict=sweep_run.strict, note=sweep_run.note)
        runs, meta = load_runs(sweep_run.directory, sweep_run.plan, batch, which)
        if whole_rows(sweep_run.directory / METRICS, meta["metrics_bytes"]) == meta["metrics_bytes"]:
            return runs, meta["updates"], meta["seconds"], meta["metrics_bytes"]
        sweep_run.note(f"{METRICS} has lost rows; the runs of {batch.name} begin anew, which makes them again.")
    return begin(), batch.since, 0.0, metrics_bytes


def load_runs(directory: Path, plan: Plan, batch: RunBatch, which: CheckpointChoice) -> tuple[Runs, dict[str, Any]]:
    """The states, on their devices, and meta.json of a batch's checkpoint; raises CheckpointError if there is none."""
    _, expected = plan.groups[batch.group].shapes(batch.size)
    runs, meta = load_newest(batch_dir(directory, batch), expected, which)
    if meta.get("sweep") != plan.fingerprint or meta.get("runs") != list(batch.runs):
        path = directory / "sweep.json"
        raise CheckpointError(f"{path} has been changed since the checkpoint was saved; change it back, or sweep anew.")
    return runs, meta


def finished_result(sweep_run: SweepRun, batch: RunBatch) -> BatchResult | None:
    """How a batch ended, if it has: its rows are there, and its last checkpoint is, sound.

    Raises CheckpointError if it is not and `sweep_run.strict`.
    """
    result = read_result(sweep_run.directory, batch)
    if result is None or whole_rows(sweep_run.directory / METRICS, result.metrics_bytes) < result.metrics_bytes:
        return None
    steps = list_steps(batch_dir(sweep_run.directory, batch))
    last = next((step.path for step in steps if step.env_steps == _env_steps(sweep_run.plan, batch)), None)
    reason = "its last checkpoint is missing" if last is None else invalid_reason(last)
    if reason and sweep_run.strict:
        raise CheckpointError(f"{batch.name}: {reason}; leave --strict out to train again what is lost.")
    return None if reason else result


def _description(
    sweep_run: SweepRun, batch: RunBatch, log: RepeatedFile, updates: int, seconds: float
) -> Callable[[], dict[str, Any]]:
    """Returns what makes a checkpoint's meta.json. What takes time is left to the thread that saves."""
    position = log.position()

    def describe() -> dict[str, Any]:
        log.sync()  # a checkpoint must not be on the disk before the rows that it counts on
        mark = {"sweep": sweep_run.plan.fingerprint, "runs": list(batch.runs)}
        return {"updates": updates, "metrics_bytes": position, "seconds": seconds, "train_return": None, **mark}

    return describe


def mean_ended(chunk: Chunk) -> float | None:
    """The mean of the returns that a chunk's updates report; None if no episode ended in it."""
    returns = chunk.metrics["episode/return"]
    ended = returns[np.isfinite(returns)]
    return float(ended.mean()) if ended.size else None


def _result(
    batch: RunBatch, group: CompiledGroup, runs: Runs, seeds: jax.Array, metrics_bytes: int, seconds: float
) -> BatchResult:
    count = len(batch.runs)
    try:
        returns, unfinished = group.evaluate(seeds, runs)
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"out of memory in the evaluation of {batch.name}; sweep anew with fewer --eval-episodes."
            ) from error
        raise
    return BatchResult(
        updates=np.asarray(runs.runner.updates)[:count].tolist(),
        diverged_at=np.asarray(runs.diverged)[:count].tolist(),
        returns=[float(x) if np.isfinite(x) else None for x in returns[:count]],
        metrics_bytes=metrics_bytes,
        seconds=seconds,
        unfinished=int(unfinished[:count].sum()),
    )


def first_state(plan: Plan, batch: RunBatch) -> Runs:
    """Of runs that have not been trained."""
    group = plan.groups[batch.group]
    hps, seeds = group.arguments(batch.runs, batch.size)
    return make_runs(group.trainer, hps, seeds, _stop_at(batch), group.layout(batch.size))


def chosen_state(directory: Path, plan: Plan, batch: RunBatch, before: Sequence[RunBatch]) -> Runs:
    """Of runs that go on, from the batches that they were in. Raises CheckpointError."""
    chosen, order = [], []
    for old in before:  # one batch at a time: all of them together may be more than the memory holds
        rows = [i for i, run in enumerate(old.runs) if run in batch.runs]
        if rows:
            runs, _ = load_runs(directory, plan, old, CheckpointChoice(env_steps=_env_steps(plan, old)))
            chosen.append(_take(runs, rows))
            order += [old.runs[i] for i in rows]
    filled = [*batch.runs, *[batch.runs[-1]] * (batch.size - len(batch.runs))]
    places = np.array([order.index(run) for run in filled])
    runs = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[places], *chosen)
    return jax.device_put(runs._replace(stop_at=_stop_at(batch)), plan.groups[batch.group].layout(batch.size).sharding)


def _take(runs: Runs, rows: Sequence[int]) -> Runs:
    index = np.array(rows)
    return jax.tree.map(lambda leaf: leaf[index], runs)


def _stop_at(batch: RunBatch) -> np.ndarray:
    """What fills the devices beyond the runs rests from the beginning."""
    return np.where(np.arange(batch.size) < len(batch.runs), batch.until, 0).astype(np.int32)


def _env_steps(plan: Plan, batch: RunBatch) -> int:
    return batch.until * plan.groups[batch.group].config.batch_size
