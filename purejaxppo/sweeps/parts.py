"""A part of a sweep: runs side by side, trained from one rung to the next; saved and resumed like a run."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from purejaxppo.errors import CheckpointError
from purejaxppo.files import write_json
from purejaxppo.host_loop import Chunk, Loop, Timing, advance_in_chunks
from purejaxppo.logger import AppendedFile, ProgressDisplay, say, whole_rows
from purejaxppo.memory import explain
from purejaxppo.runs import Runs, make_runs
from purejaxppo.signals import StopRequest
from purejaxppo.store import Which, clean, list_steps, load_newest
from purejaxppo.stretch import Stretch, train_stretch
from purejaxppo.sweeps.directory import METRICS, sweep_record
from purejaxppo.sweeps.metrics import MetricRows
from purejaxppo.sweeps.plan import Group, Plan
from purejaxppo.sweeps.schedule import Part, PartResult, part_dir


class Session(NamedTuple):
    """A sweep that is locked and ready to train."""

    directory: Path
    plan: Plan
    columns: Sequence[str]  # of the metrics
    console: Console
    progress: ProgressDisplay
    stop: StopRequest
    strict: bool = False  # refuse to fall back to an older checkpoint than the newest

    def note(self, text: str) -> None:
        """Says something beside the progress."""
        say(self.console, f"purejaxppo: {text}")


def train_part(session: Session, part: Part, begin: Callable[[], Runs], metrics_bytes: int) -> PartResult | None:
    """Trains a part to its end, from its newest sound checkpoint if there is one, and evaluates it.

    Args:
      begin: gives the state to begin from if there is none.
      metrics_bytes: of metrics.csv that are of the parts before.

    Returns:
      How it ended; None if a signal has stopped it.
    """
    directory = part_dir(session.directory, part)
    clean(directory) if directory.exists() else directory.mkdir(parents=True)
    group = session.plan.groups[part.group]
    start, done, seconds, metrics_bytes = _start(session, part, begin, metrics_bytes)
    hps, seeds = group.arguments(part.runs, part.size)
    session.progress.advance(group.config.batch_size * len(part.runs) * (done - part.since), {"episode/return": None})
    chunk = session.plan.chunk(group, part.size)
    loop = Loop(
        compile=lambda _, updates: group.advance(part.size, updates, hps),
        lengths=lambda _: [chunk] * -(-(part.until - done) // chunk),
        done=lambda _: done,
        env_steps=group.config.batch_size * len(part.runs),
    )
    # A part that is only to be evaluated leaves the rows of later ones alone.
    trained = done >= part.until
    metrics = session.directory / METRICS
    with AppendedFile(metrics, metrics.stat().st_size if trained else metrics_bytes) as log:
        stretch = _stretch(session, part, log, done, seconds, start, loop)
        runs, timing = train_stretch(stretch)
        position = metrics_bytes if trained else log.position()
    if session.stop():
        return None
    farewell = f"the trained states are saved; `purejaxppo resume {session.directory}` evaluates them."
    with session.stop.ending_at_once(farewell):
        result = _result(part, group, runs, seeds, position, timing)
    write_json(directory / "result.json", result._asdict())
    return result


def _start(session: Session, part: Part, begin: Callable[[], Runs], metrics_bytes: int) -> tuple[Runs, int, float, int]:
    """State, updates done, seconds that they took, and bytes of metrics.csv."""
    saved = list_steps(part_dir(session.directory, part))
    if saved:
        which = Which(strict=session.strict, note=session.note)
        runs, meta = load_runs(session.directory, session.plan, part, which)
        runs = jax.device_put(runs, session.plan.groups[part.group].layout(part.size).sharding)
        done, seconds, metrics_bytes = meta["updates"], meta["seconds"], meta["metrics_bytes"]
    else:
        runs, done, seconds = begin(), part.since, 0.0
    kept = whole_rows(session.directory / METRICS, metrics_bytes)
    if kept < metrics_bytes:
        session.note(f"{METRICS} has lost rows since they were written; it goes on without them.")
    return runs, done, seconds, kept


def load_runs(directory: Path, plan: Plan, part: Part, which: Which) -> tuple[Runs, dict[str, Any]]:
    """The states and meta.json of a part's checkpoint. Raises CheckpointError if none can be used."""
    _, expected = plan.groups[part.group].shapes(part.size)
    runs, meta = load_newest(part_dir(directory, part), expected, which)
    if meta.get("sweep") != fingerprint(plan) or meta.get("runs") != list(part.runs):
        path = directory / "sweep.json"
        raise CheckpointError(f"{path} has been changed since the checkpoint was saved; change it back, or sweep anew.")
    return runs, meta


def fingerprint(plan: Plan) -> str:
    """The hash of everything that decides a sweep's result."""
    # NumPy's scalars as `write_json` writes them.
    text = json.dumps(sweep_record(plan.sweep), sort_keys=True, default=lambda scalar: scalar.item())
    return hashlib.sha256(text.encode()).hexdigest()


def _stretch(
    session: Session, part: Part, log: AppendedFile, done: int, seconds: float, start: Runs, loop: Loop
) -> Stretch:
    group = session.plan.groups[part.group]
    diverged = np.asarray(start.diverged)
    rows = MetricRows(session.plan.sweep, part.runs, session.columns, part.until, diverged)
    report = _Report(rows, log, session.progress, group.config.batch_size * len(part.runs), part.until, done)
    mark = {"sweep": fingerprint(session.plan), "runs": list(part.runs)}

    def describe(updates: int, seconds: float) -> Callable[[], dict[str, Any]]:
        position = log.position()

        def meta() -> dict[str, Any]:
            log.sync()  # a checkpoint must not be on the disk before the rows that it counts on
            done = min(updates, part.until)
            return {"updates": done, "metrics_bytes": position, "seconds": seconds, "train_return": None, **mark}

        return meta

    states = [start]  # which the loop takes out: their memory is given away
    return Stretch(
        advance=lambda hooks: advance_in_chunks(loop, states.pop, hooks),
        report=report,
        directory=part_dir(session.directory, part),
        options=dataclasses.replace(session.plan.sweep.options, keep_best=0),  # which of many runs?
        env_steps=lambda updates: min(updates, part.until) * group.config.batch_size,
        describe=describe,
        check_memory=lambda _: None,  # the plan has
        explain=lambda program: explain(group.config, group.env, program),
        progress=session.progress,
        stop=session.stop,
        farewell=f"what was saved stays; `purejaxppo resume {session.directory}` goes on from there.",
        note=session.note,
        updates=done,
        seconds=seconds,
    )


class _Report:
    """Takes each chunk's metrics to the file and to the progress."""

    def __init__(
        self, rows: MetricRows, log: AppendedFile, progress: ProgressDisplay, env_steps: int, until: int, done: int
    ) -> None:
        self._rows, self._log, self._progress = rows, log, progress
        self._env_steps = env_steps
        self._until = until
        self._done = done

    def __call__(self, chunk: Chunk) -> None:
        self._log.write(self._rows(chunk))
        done = min(chunk.last_update, self._until)
        steps = (done - self._done) * self._env_steps
        self._done = done
        self._progress.advance(steps, {"episode/return": mean_ended(chunk)})


def mean_ended(chunk: Chunk) -> float | None:
    """The mean of the returns that a chunk's updates report; None if no episode ended in it."""
    returns = chunk.metrics["episode/return"]
    ended = returns[np.isfinite(returns)]
    return float(ended.mean()) if ended.size else None


def _result(part: Part, group: Group, runs: Runs, seeds: jax.Array, metrics_bytes: int, timing: Timing) -> PartResult:
    count = len(part.runs)
    returns = group.evaluate(seeds, runs)[:count]
    return PartResult(
        updates=np.asarray(runs.runner.updates)[:count].tolist(),
        diverged_at=np.asarray(runs.diverged)[:count].tolist(),
        returns=[float(x) if np.isfinite(x) else None for x in returns],
        metrics_bytes=metrics_bytes,
        seconds=timing.train_seconds,
    )


def first_state(plan: Plan, part: Part) -> Runs:
    """Of runs that have not been trained."""
    group = plan.groups[part.group]
    hps, seeds = group.arguments(part.runs, part.size)
    stop_at = np.where(np.arange(part.size) < len(part.runs), part.until, 0).astype(np.int32)
    return make_runs(group.trainer, hps, seeds, stop_at, group.layout(part.size))


def chosen_state(directory: Path, plan: Plan, part: Part, before: Sequence[Part]) -> Runs:
    """Of runs that go on, from the parts that they were in. Raises CheckpointError."""
    trained = [old for old in before if set(old.runs) & set(part.runs)]
    states: list[Runs] = []
    place: dict[int, tuple[int, int]] = {}
    for old in trained:
        runs, _ = load_runs(directory, plan, old, Which(env_steps=_env_steps(plan, old)))
        place |= {run: (len(states), i) for i, run in enumerate(old.runs)}
        states.append(runs)
    places = [place[run] for run in part.runs] + [place[part.runs[-1]]] * (part.size - len(part.runs))
    runs = jax.tree.map(lambda *leaves: jnp.stack([leaves[s][i] for s, i in places]), *states)
    stop_at = np.where(np.arange(part.size) < len(part.runs), part.until, 0).astype(np.int32)
    return jax.device_put(runs._replace(stop_at=stop_at), plan.groups[part.group].layout(part.size).sharding)


def _env_steps(plan: Plan, part: Part) -> int:
    return part.until * plan.groups[part.group].config.batch_size
