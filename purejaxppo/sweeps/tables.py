"""The results of a sweep: its learning curves in bins, its table of settings, and the rows of results.csv."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from purejaxppo.core.nonfinite import Cause
from purejaxppo.errors import CheckpointError
from purejaxppo.experiment.metrics_log import reported
from purejaxppo.experiment.statistics import interquartile_mean
from purejaxppo.sweeps.scoring import (
    finite_or_none,
    number_text,
    score_cells,
    score_head,
    score_rows,
    steps_to_target,
    target_row,
    worst_if_diverged,
)
from purejaxppo.sweeps.spec import SweepSettings, value_text

_BINS = 400  # so that the window of `steps_to_target`, 2 % of a run, is 8 bins
_COLUMNS = ("run", "update", "episode/return", "episode/count")


class Outcome(NamedTuple):
    """The end of every run, each array [R] in the order of the runs' numbers."""

    env_steps: np.ndarray  # that were done: fewer than the budget if the run diverged or did not go on to a later rung
    returns: np.ndarray  # float64, mean return of the greedy final evaluation; NaN where the run diverged
    diverged_at: np.ndarray  # update, from 1, in which a number became non-finite; 0 for never
    rung: np.ndarray  # last one of successive halving that the run trained in, from 0


class Curve(NamedTuple):
    """The training episodes of one setting's runs, in bins of consecutive updates."""

    env_steps: np.ndarray  # [B], at the end of each bin
    total: np.ndarray  # [n_seeds, B], sum of the returns of the episodes that ended in the bin
    count: np.ndarray  # type: ignore[assignment]  # [n_seeds, B], of these episodes
    # Name in the environment's `info` -> [n_seeds, B], its sum over the same episodes
    reported: Mapping[str, np.ndarray] = {}  # never written to: a curve with numbers has one of its own


def read_curves(path: Path, sweep: SweepSettings) -> list[Curve]:
    """Reads the learning curves in a sweep's metrics.csv, one per setting, of at most 400 bins.

    The file is read row by row, so that no more than the curves is in memory.

    Raises CheckpointError if the file is missing, damaged or of another sweep.
    """
    updates = [config.num_updates for config, _ in sweep.settings]
    curves = [_empty_curve(config.num_updates, config.batch_size, len(sweep.seeds)) for config, _ in sweep.settings]
    for run, update, mean, count, means in _episodes(path, [u for u in updates for _ in sweep.seeds]):
        setting, i = divmod(run, len(sweep.seeds))
        b, curve = _bin(update, updates[setting]), curves[setting]
        curve.total[i, b] += mean * count
        curve.count[i, b] += count
        if means and not curve.reported:
            curve = curves[setting] = curve._replace(reported={name: np.zeros_like(curve.total) for name in means})
        for name, x in means.items():
            curve.reported[name][i, b] += x * count
    return curves


def _episodes(path: Path, updates: Sequence[int]) -> Iterator[tuple[int, int, float, int, dict[str, float]]]:
    """Yields run, update, and of the episodes that ended in it, if any, mean return, count, and what is reported.

    Args:
      path: of metrics.csv.
      updates: the budget of each run.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            try:
                yield from _checked_episodes(rows, updates)
            except (ValueError, IndexError, OverflowError, csv.Error) as error:
                raise CheckpointError(
                    f"{path}, line {rows.line_num}, is not of this sweep's metrics: {error}; remove it, and `resume` "
                    "makes it again."
                ) from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _checked_episodes(
    rows: Iterator[list[str]], updates: Sequence[int]
) -> Iterator[tuple[int, int, float, int, dict[str, float]]]:
    """Yields what `_episodes` does, or raises ValueError, IndexError or OverflowError at a row that does not fit."""
    last = [0] * len(updates)
    head = next(rows, [])
    columns = [head.index(name) for name in _COLUMNS]
    info = {name: head.index(column) for column, name in reported(head).items()}
    for row in rows:
        run_text, update_text, mean_text, count_text = (row[column] for column in columns)
        run, update = int(run_text), int(update_text)
        if len(row) != len(head) or not 0 <= run < len(updates):
            raise ValueError(f"{len(row)} of {len(head)} columns, run {run} of {len(updates)}")
        if not last[run] < update <= updates[run]:
            raise ValueError(f"update {update} after update {last[run]} of {updates[run]}")
        last[run] = update
        # In the update in which a run diverged, the mean may be infinite.
        if mean_text and math.isfinite(mean := float(mean_text)):
            means = {name: float(row[column] or math.nan) for name, column in info.items()}
            yield run, update, mean, int(float(count_text)), means


def read_causes(path: Path) -> list[Cause]:
    """Reads the causes of divergence in a sweep's metrics.csv. Raises CheckpointError if it is missing or damaged."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [Cause(int(row["update"]), row["nonfinite"]) for row in csv.DictReader(file) if row["nonfinite"]]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise CheckpointError(f"cannot read {path}: {error!r}; remove it, and `resume` makes it again.") from error


def _empty_curve(updates: int, batch_size: int, seeds: int) -> Curve:
    bins = min(updates, _BINS)
    ends = -(-np.arange(1, bins + 1) * updates // bins)  # rounded up: the last update u of which _bin(u) is b
    return Curve(ends * batch_size, np.zeros((seeds, bins)), np.zeros((seeds, bins), np.int64))


def _bin(update: int, updates: int) -> int:
    """Returns the bin of an update (from 1) among this many updates; bins differ by one update at most."""
    return (update - 1) * min(updates, _BINS) // updates


def setting_rows(sweep: SweepSettings, outcome: Outcome, curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Returns the entries of table.md and summary.json, one per setting, the best first; undefined values are None.

    Settings are ordered by the last rung of successive halving that they reached, then by the interquartile mean of the
    final evaluation. Ties are decided by fewer diverged runs, a higher lower end of the interval, and fewer steps to
    the target. `env_steps` are those of the runs that did not diverge. `info` is there if the environment reports
    something of episodes: the mean over these runs of what it was at the ends of episodes in the last tenth of each.
    """
    shape = len(sweep.settings), len(sweep.seeds)
    env_steps, returns, rung = (x.reshape(shape) for x in (outcome.env_steps, outcome.returns, outcome.rung))
    scores = worst_if_diverged(returns)
    rows = []
    for s, score_row in enumerate(score_rows(returns)):
        alive = np.isfinite(scores[s])
        row = {"setting": s, "values": dict(sweep.points[s]), **score_row}
        row["env_steps"] = int(env_steps[s][alive].max()) if alive.any() else None
        steps = np.zeros(shape[1])
        if sweep.target is not None:
            steps = _steps_per_run(curves[s], env_steps[s], returns[s], sweep.target)
            row |= target_row(steps)
        info = _reported_per_run(curves[s], env_steps[s])
        if info:
            row["info"] = {name: _mean(x[alive]) for name, x in info.items()}
        row["best_run"] = s * shape[1] + int(np.lexsort((steps, -scores[s]))[0]) if alive.any() else None
        if sweep.halving is not None:
            row["rung"] = int(rung[s].max())
        rows.append(row)
    middle, alive = interquartile_mean(scores), np.isfinite(scores).sum(axis=1)

    def rank(row: dict[str, Any]) -> tuple[float, ...]:
        s, low = row["setting"], row["return_low"]
        steps = row.get("steps_to_target")
        return (-rung[s].max(), -middle[s], -alive[s], math.inf if low is None else -low, steps or math.inf)

    return sorted(rows, key=rank)


def _steps_per_run(curve: Curve, env_steps: np.ndarray, returns: np.ndarray, target: float) -> np.ndarray:
    """Returns `steps_to_target` of a setting's runs [n_seeds]; inf for a diverged run, even if it arrived before.

    Args:
      curve: of the setting.
      env_steps: [n_seeds], done by each run.
      returns: [n_seeds], of the final evaluation; NaN where the run diverged.
      target: the return to reach.
    """
    # After a run's last update, later windows hold ever fewer of its episodes: what they reach does not count.
    last = curve.env_steps[np.searchsorted(curve.env_steps, env_steps)]
    steps = steps_to_target(curve.env_steps, curve.total, curve.count, target)
    return np.where(np.isnan(returns) | (steps > last), math.inf, np.minimum(steps, env_steps))


def _reported_per_run(curve: Curve, env_steps: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what the environment reported at the ends of episodes in the last tenth of each run, means [n_seeds].

    They are NaN for a run in which no episode ended there, or in which one of the numbers was not finite.

    Args:
      curve: of the setting.
      env_steps: [n_seeds], done by each run.
    """
    last = np.searchsorted(curve.env_steps, env_steps)[:, None]  # bin
    bins = np.arange(len(curve.env_steps))
    taken = (bins <= last) & (bins > last - np.ceil((last + 1) / 10))
    count = np.sum(curve.count * taken, axis=1)
    with np.errstate(invalid="ignore"):  # 0 / 0
        return {name: np.sum(np.where(taken, x, 0), axis=1) / count for name, x in curve.reported.items()}


def _mean(x: np.ndarray) -> float | None:
    """Returns the mean of the finite numbers in x [n], or None if there is none."""
    finite = x[np.isfinite(x)]
    return float(finite.mean()) if finite.size else None


def run_columns(sweep: SweepSettings) -> list[str]:
    """Returns the columns of results.csv."""
    ends = ["env_steps", "evaluation_return", "diverged_at", "rung", "steps_to_target"]
    return ["run", "setting", "seed", *sweep.axes, *ends]


def run_rows(sweep: SweepSettings, outcome: Outcome, curves: Sequence[Curve]) -> Iterator[dict[str, Any]]:
    """Yields the rows of results.csv, one per run; undefined values and fields that a setting lacks are empty."""
    n = len(sweep.seeds)
    for s in range(len(sweep.points)):
        mine = slice(s * n, (s + 1) * n)
        steps = np.full(n, math.inf)
        if sweep.target is not None:
            steps = _steps_per_run(curves[s], outcome.env_steps[mine], outcome.returns[mine], sweep.target)
        for i, seed in enumerate(sweep.seeds):
            run = s * n + i
            yield {
                "run": run,
                "setting": s,
                "seed": seed,
                **point_cells(sweep, s),
                "env_steps": int(outcome.env_steps[run]),
                "evaluation_return": finite_or_none(outcome.returns[run]),
                "diverged_at": int(outcome.diverged_at[run]),
                "rung": int(outcome.rung[run]),
                "steps_to_target": int(steps[i]) if math.isfinite(steps[i]) else None,
            }


def point_cells(sweep: SweepSettings, setting: int) -> dict[str, str]:
    """Returns a setting's swept values as CSV cells, which are exact, and empty for a field that the setting lacks."""
    point = sweep.points[setting]
    return {axis: _exact(point[axis]) if axis in point else "" for axis in sweep.axes}


def _exact(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def settings_table(rows: Sequence[dict[str, Any]], sweep: SweepSettings) -> list[list[str]]:
    """Returns the cells of the table of settings, head and rows, from `setting_rows`; the first row has rank 1.

    There is a column of env steps only if the settings ended in different rungs, and one for each number that the
    environment reports of episodes.
    """
    halved = len({row.get("rung") for row in rows}) > 1
    info = list(dict.fromkeys(name for row in rows for name in row.get("info", {})))
    table = [["rank", *sweep.axes, *score_head(sweep.target), *(["env steps"] if halved else []), *info]]
    for rank, row in enumerate(rows, start=1):
        values = [value_text(row["values"][axis]) if axis in row["values"] else "-" for axis in sweep.axes]
        cells = [str(rank), *values, *score_cells(row, sweep.target)]
        if halved:
            cells.append("-" if row["env_steps"] is None else f"{row['env_steps']:,}")
        cells += [number_text(row.get("info", {}).get(name)) for name in info]
        table.append(cells)
    return table
