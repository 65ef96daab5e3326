"""The batches of runs that a sweep trains, one after the other, and their results on the disk.

A rung of successive halving is trained before the next one begins, since its results decide which settings go on. In a
rung, the runs of a compiled program are divided into batches of one size.
"""

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from purejaxppo.errors import CheckpointError
from purejaxppo.experiment.atomic_files import read_json
from purejaxppo.experiment.checkpoints.directory import list_steps
from purejaxppo.experiment.statistics import interquartile_mean
from purejaxppo.sweeps.plan import Plan


class RunBatch(NamedTuple):
    """Runs that share a compiled program and are trained together, through one rung."""

    name: str
    group: int  # index of their `CompiledGroup` in the plan
    rung: int
    runs: tuple[int, ...]  # numbers of the runs
    size: int  # R of the compiled program, at least len(runs); frozen copies of the last run fill the remainder
    since: int  # updates that each run has done at the beginning of the rung
    until: int  # updates that each run has done at the end of the rung


class BatchResult(NamedTuple):
    """The results of a batch's runs, in the order of `RunBatch.runs`, and the length of metrics.csv after them."""

    updates: list[int]
    diverged_at: list[int]  # update, 0 for never
    returns: list[float | None]  # mean return of the evaluation; None for a run that diverged
    metrics_bytes: int
    seconds: float  # of training, without compilation
    unfinished: int = 0  # episodes of the evaluation that were cut off before their end, summed over the runs


Finished = list[tuple[RunBatch, BatchResult]]


def batch_dir(directory: Path, batch: RunBatch) -> Path:
    """Returns the directory of a batch's checkpoints and result."""
    return directory / "parts" / batch.name


def read_result(directory: Path, batch: RunBatch) -> BatchResult | None:
    """Reads the result of a batch; returns None if it is missing or invalid."""
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
    valid = all(type(x) is int and 0 <= x < 2**63 for x in counts) and all(
        type(x) in (int, float) and abs(x) <= sys.float_info.max for x in numbers
    )
    return result if valid else None


def survivors(plan: Plan, rung: int, finished: Finished) -> set[int]:
    """Returns the settings that train in a rung, by their numbers.

    All settings train in the first rung. In a later one, those with the highest interquartile mean of the rung before
    do; a diverged run counts as -inf, and among equal settings the lower number goes on.
    """
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
    """Returns the batches of a rung, in the order in which they are trained.

    Args:
      plan: the sweep's; its sizes have to be known.
      rung: its number, from 0.
      settings: numbers of those that train in it.
    """
    batches = []
    for g, group in enumerate(plan.groups):
        runs = [run for run in group.runs if run // len(plan.sweep.seeds) in settings]
        if not runs:
            continue
        most = plan.sizes.runs[g]
        # A later rung has fewer runs, and would otherwise compute copies that fill up a batch of the first rung's size.
        size = most if rung == 0 else min(most, plan.balanced_size(len(runs), most))
        since = plan.rungs[rung - 1].updates(group.config) if rung else 0
        until = plan.rungs[rung].updates(group.config)
        for b, first in enumerate(range(0, len(runs), size)):
            name = f"rung{rung}_program{g + 1}_batch{b + 1}"
            batches.append(RunBatch(name, g, rung, tuple(runs[first : first + size]), size, since, until))
    return batches


def begun_batches(directory: Path, plan: Plan) -> Iterable[RunBatch]:
    """Yields the batches that have a checkpoint, in the order in which they were trained.

    The search ends at the first batch without a result, as the settings of later rungs are not known before.
    """
    finished: Finished = []
    for rung in range(len(plan.rungs)):
        for batch in batches_of_rung(plan, rung, survivors(plan, rung, finished)):
            if list_steps(batch_dir(directory, batch)):
                yield batch
            result = read_result(directory, batch)
            if result is None:
                return
            finished.append((batch, result))
