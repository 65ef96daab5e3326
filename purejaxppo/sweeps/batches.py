"""Which runs are trained when: rung by rung, and within a rung part by part."""

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


class Part(NamedTuple):
    """Runs side by side."""

    name: str
    group: int
    rung: int
    runs: tuple[int, ...]  # their numbers
    size: int  # with what fills the devices
    since: int  # updates that they have done before
    until: int  # updates that they have done at its end


class PartResult(NamedTuple):
    """How a part's runs ended [runs], and where metrics.csv stood."""

    updates: list[int]
    diverged_at: list[int]  # update, 0 for never
    returns: list[float | None]  # of the evaluation; None for a run that diverged
    metrics_bytes: int
    seconds: float
    unfinished: int = 0  # episodes of the evaluation that were broken off, of all runs together


Finished = list[tuple[Part, PartResult]]


def part_dir(directory: Path, part: Part) -> Path:
    """Where its checkpoints and its result are."""
    return directory / "parts" / part.name


def read_result(directory: Path, part: Part) -> PartResult | None:
    """How a part ended; None if it has not, or if that cannot be read."""
    try:
        content = read_json(part_dir(directory, part) / "result.json")
        result = PartResult(**content)
    except (CheckpointError, TypeError):
        return None
    lists = (result.updates, result.diverged_at, result.returns)
    if not all(isinstance(x, list) and len(x) == len(part.runs) for x in lists):
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
    for part, result in finished:
        if part.rung == rung - 1:
            for run, value in zip(part.runs, result.returns, strict=True):
                scores.setdefault(run // seeds, []).append(-math.inf if value is None else value)
    ranked = sorted(scores, key=lambda setting: (-interquartile_mean(np.array(scores[setting])), setting))
    return set(ranked[: plan.rungs[rung].settings])


def parts_of_rung(plan: Plan, rung: int, settings: set[int]) -> list[Part]:
    """The parts of a rung: each group's runs, in batches of one size."""
    parts = []
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
            parts.append(Part(name, g, rung, tuple(runs[first : first + size]), size, since, until))
    return parts


def begun_parts(directory: Path, plan: Plan) -> Iterable[Part]:
    """The parts that have a checkpoint, in the order in which they were trained."""
    finished: Finished = []
    for rung in range(len(plan.rungs)):
        for part in parts_of_rung(plan, rung, survivors(plan, rung, finished)):
            if list_steps(part_dir(directory, part)):
                yield part
            result = read_result(directory, part)
            if result is None:
                return
            finished.append((part, result))


def survey_parts(directory: AnyPath) -> list[dict[str, Any]]:
    """`store.survey` of a sweep's parts, as far as they have begun, each checkpoint named with its part."""
    return [
        {**row, "checkpoint": f"{part.name}/{row['checkpoint']}"}
        for part in sorted(path for path in (Path(directory) / "parts").glob("*") if path.is_dir())
        for row in survey(part)
    ]
