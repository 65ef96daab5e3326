"""Which runs are trained when: rung by rung, and within a rung batch by batch."""

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from purejaxppo.config.fields import AnyPath
from purejaxppo.errors import CheckpointError
from purejaxppo.experiment.atomic_files import read_json
from purejaxppo.experiment.checkpoints.directory import list_steps, survey
from purejaxppo.experiment.statistics import interquartile_mean
from purejaxppo.sweeps.plan import Plan


class RunBatch(NamedTuple):
    """Runs side by side."""

    name: str
    group: int
    rung: int
    runs: tuple[int, ...]  # their numbers
    size: int  # with what fills the devices
    since: int  # updates that they have done before
    until: int  # updates that they have done at its end


class BatchResult(NamedTuple):
    """How a batch's runs ended [runs], and where metrics.csv stood."""

    updates: list[int]
    diverged_at: list[int]  # update, 0 for never
    returns: list[float | None]  # of the evaluation; None for a run that diverged
    metrics_bytes: int
    seconds: float
    unfinished: int = 0  # episodes of the evaluation that were broken off, of all runs together


Finished = list[tuple[RunBatch, BatchResult]]


def batch_dir(directory: Path, batch: RunBatch) -> Path:
    """Where its checkpoints and its result are."""
    return directory / "parts" / batch.name


def read_result(directory: Path, batch: RunBatch) -> BatchResult | None:
    """How a batch ended; None if it has not, or if that cannot be read."""
    try:
        content = read_json(batch_dir(directory, batch) / "result.json")
        result = BatchResult(**content)
    except (CheckpointError, TypeError):
        return None
    lists = (result.updates, result.diverged_at, result.returns)
    if not all(isinstance(x, list) and len(x) == len(batch.runs) for x in lists):
        return None
    counts = [*result.updates, *result.diverged_at, result.metrics_bytes, result.unfinished]
    numbers = [*(x for x in result.returns if x is not None), result.seconds]
    sound = all(type(x) is int and 0 <= x < 2**63 for x in counts) and all(
        type(x) in (int, float) and abs(x) <= sys.float_info.max for x in numbers
    )
    return result if sound else None


def survivors(plan: Plan, rung: int, finished: Finished) -> set[int]:
    """The settings of a rung: all in the first, then those with the best interquartile mean, the lower number first."""
    sweep = plan.sweep
    if rung == 0:
        return set(range(len(sweep.settings)))
    seeds = len(sweep.seeds)
    scores: dict[int, list[float]] = {}
    for batch, result in finished:
        if batch.rung == rung - 1:
            for run, value in zip(batch.runs, result.returns, strict=True):
                scores.setdefault(run // seeds, []).append(-math.inf if value is None else value)
    ranked = sorted(scores, key=lambda setting: (-interquartile_mean(np.array(scores[setting])), setting))
    return set(ranked[: plan.rungs[rung].settings])


def batches_of_rung(plan: Plan, rung: int, settings: set[int]) -> list[RunBatch]:
    """The batches of a rung: each group's runs, in batches of one size."""
    batches = []
    for g, group in enumerate(plan.groups):
        runs = [run for run in group.runs if run // len(plan.sweep.seeds) in settings]
        if not runs:
            continue
        most = plan.sizes.runs[g]
        size = most if rung == 0 else min(most, plan.balanced(len(runs), most))
        since = plan.rungs[rung - 1].updates(group.config) if rung else 0
        until = plan.rungs[rung].updates(group.config)
        for b, first in enumerate(range(0, len(runs), size)):
            name = f"rung{rung}_program{g + 1}_batch{b + 1}"
            batches.append(RunBatch(name, g, rung, tuple(runs[first : first + size]), size, since, until))
    return batches


def begun_batches(directory: Path, plan: Plan) -> Iterable[RunBatch]:
    """The batches that have a checkpoint, in the order in which they were trained."""
    finished: Finished = []
    for rung in range(len(plan.rungs)):
        for batch in batches_of_rung(plan, rung, survivors(plan, rung, finished)):
            if list_steps(batch_dir(directory, batch)):
                yield batch
            result = read_result(directory, batch)
            if result is None:
                return
            finished.append((batch, result))


def survey_batches(directory: AnyPath) -> list[dict[str, Any]]:
    """`store.survey` of a sweep's batches, as far as they have begun, each checkpoint named with its batch."""
    return [
        {**row, "checkpoint": f"{batch.name}/{row['checkpoint']}"}
        for batch in sorted(path for path in (Path(directory) / "parts").glob("*") if path.is_dir())
        for row in survey(batch)
    ]
