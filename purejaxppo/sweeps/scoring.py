"""Scores of runs, for sweeps and comparisons: returns, steps to a target, their tables, and a comparison's CSV rows."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from purejaxppo.core.nonfinite import Cause
from purejaxppo.experiment.statistics import bootstrap_interval, interquartile_mean

# A run has reached a target when its mean return over a window has.
_WINDOW_FRACTION = 0.02  # length of the window, as a fraction of the run's updates
_WINDOW_UPDATES = 5  # its least length
_WINDOW_EPISODES = 5  # the fewest episodes that have to end in it
_ROWS_AT_ONCE = 1000  # rows whose bootstrap draws are in memory together
RESULT_COLUMNS = ("algorithm", "seed", "evaluation_return", "diverged_at", "steps_to_target")


class Result(NamedTuple):
    """The curves and final evaluations of one algorithm's R runs of U updates."""

    algorithm: str
    seeds: Sequence[int]
    env_steps: np.ndarray  # [U]
    metrics: dict[str, np.ndarray]  # each [U, R]
    returns: np.ndarray  # [R], mean returns of the final evaluation; NaN where the run diverged
    diverged_at: np.ndarray  # [R], update, from 1, in which a number became non-finite; 0 for never
    env_steps_per_second: float  # of all runs together, without compilation and the first of several chunks
    unfinished: int = 0  # episodes of the evaluation that were cut off before their end, summed over the runs
    causes: Sequence[Cause] = ()  # of the runs that diverged in training


def steps_to_target(env_steps: np.ndarray, total: np.ndarray, count: np.ndarray, target: float) -> np.ndarray:
    """Returns the env steps [...] after which each run's training return reaches the target; inf if it never does.

    The training return after an update is the mean over the episodes that ended in a window of updates: the last 2 % of
    the run's updates, at least 5 updates. At least 5 episodes have to have ended in it. The axis U of a long run
    may be bins of equally many updates, at least 400 of them, instead of single updates.

    Args:
      env_steps: [U], done after each update.
      total: [..., U], sum of the returns of the episodes that ended in each update.
      count: [..., U], number of these episodes.
      target: the return to reach.
    """
    window = min(len(env_steps), max(_WINDOW_UPDATES, round(_WINDOW_FRACTION * len(env_steps))))
    totals = np.stack([total, count])
    running = np.cumsum(np.pad(totals, [(0, 0)] * (totals.ndim - 1) + [(window, 0)]), axis=-1)
    returns, ended = running[..., window:] - running[..., :-window]
    reached = (ended >= _WINDOW_EPISODES) & (returns >= target * ended)
    reached[..., : window - 1] = False  # the window is not yet full: one lucky update is not a mean
    return np.where(reached.any(axis=-1), env_steps[np.argmax(reached, axis=-1)], math.inf)


def table_row(result: Result, target: float | None) -> dict[str, Any]:
    """Returns the entry of table.md and summary.json for one algorithm; values that are undefined are None."""
    row = {
        "algorithm": result.algorithm,
        **score_rows(result.returns[None])[0],
        "env_steps_per_second": round(result.env_steps_per_second, 1),
        **({"unfinished": result.unfinished} if result.unfinished else {}),
    }
    return row if target is None else row | target_row(steps_per_run(result, target))


def score_rows(returns: np.ndarray) -> list[dict[str, Any]]:
    """Returns the score of each row of runs in the final evaluation; values that are undefined are None.

    A diverged run counts as -inf. The interquartile mean leaves the lowest quarter out, so that it is finite if at most
    a quarter of the runs have diverged, and undefined otherwise.

    Args:
      returns: [rows, runs], NaN where the run diverged.
    """
    scores = worst_if_diverged(returns)
    middle = interquartile_mean(scores)
    low = high = np.full(len(scores), math.nan)
    if scores.shape[1] > 1:
        low, high = _intervals(scores)
    return [
        {
            "runs": scores.shape[1],
            "diverged": int(np.isnan(returns[i]).sum()),
            "return_iqm": finite_or_none(middle[i]),
            "return_low": finite_or_none(low[i]),
            "return_high": finite_or_none(high[i]),
        }
        for i in range(len(scores))
    ]


def worst_if_diverged(returns: np.ndarray) -> np.ndarray:
    """Returns the returns with -inf for diverged runs, which are NaN."""
    return np.where(np.isnan(returns), -math.inf, returns)


def _intervals(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns `bootstrap_interval` of each row of scores [rows, runs], in blocks of rows to bound the memory."""
    blocks = np.array_split(scores, max(1, len(scores) // _ROWS_AT_ONCE))
    with np.errstate(invalid="ignore"):  # infinities among the draws
        ends = [bootstrap_interval(block) for block in blocks]
    low, high = np.concatenate(ends, axis=1)
    return low, high


def target_row(steps: np.ndarray) -> dict[str, Any]:
    """Returns the median of the runs' steps to the target [R], and how many of them are finite, i.e. arrived."""
    return {
        # The lower median is a run's own value; it is infinite, hence None, if fewer than half of the runs arrived.
        "steps_to_target": finite_or_none(np.quantile(steps, 0.5, method="lower")),
        "runs_at_target": int(np.isfinite(steps).sum()),
    }


def finite_or_none(x: np.ndarray | float) -> float | None:
    """Returns a number for JSON: None instead of NaN and infinity, which it does not have."""
    return float(x) if np.isfinite(x) else None


def steps_per_run(result: Result, target: float) -> np.ndarray:
    """Returns `steps_to_target` of every run [R]; inf for a diverged run, even if it had reached the target before."""
    returns, counts = result.metrics["episode/return"].T, result.metrics["episode/count"].T
    totals = np.where(counts > 0, returns, 0.0) * counts
    return np.where(np.isnan(result.returns), math.inf, steps_to_target(result.env_steps, totals, counts, target))


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown, from the cells of its head and rows."""
    head, *body = table
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ["---"] * len(head), *body])


def comparison_table(rows: Sequence[dict[str, Any]], target: float | None) -> list[list[str]]:
    """Returns the cells of a comparison's table, head and rows, from the `table_row` of each algorithm."""
    body = [[row["algorithm"], *score_cells(row, target), f"{row['env_steps_per_second']:,.0f}"] for row in rows]
    return [["algorithm", *score_head(target), "steps/s"], *body]


def score_head(target: float | None) -> list[str]:
    """Returns the names of the columns of `score_cells`."""
    return ["runs", "IQM", "95 % interval", *([] if target is None else [f"steps to {target:g}", "reached"])]


def score_cells(row: dict[str, Any], target: float | None) -> list[str]:
    """Returns the cells of a row of `score_rows`, which has also a `target_row` if there is a target."""
    diverged = f" ({row['diverged']} diverged)" if row["diverged"] else ""
    low, high = row["return_low"], row["return_high"]
    interval = "-" if low is None else f"{number_text(low)} to {number_text(high)}"
    cells = [f"{row['runs']}{diverged}", number_text(row["return_iqm"]), interval]
    if target is None:
        return cells
    steps = row["steps_to_target"]
    return [*cells, "-" if steps is None else f"{steps:,.0f}", f"{row['runs_at_target']} of {row['runs']}"]


def number_text(x: float | None) -> str:
    """Returns the cell of a number in a table, with four digits."""
    return "-" if x is None else f"{x:.4g}"


def curve_columns(results: Sequence[Result]) -> list[str]:
    """Returns the columns of curves.csv, with the metrics that any of the algorithms has."""
    return [
        "algorithm",
        "seed",
        "update",
        "env_steps",
        *sorted({name for result in results for name in result.metrics}),
    ]


def curve_rows(result: Result) -> Iterator[dict[str, Any]]:
    """Yields the rows of curves.csv, one per seed and update; values that are not finite are left empty."""
    names = sorted(result.metrics)
    for r, seed in enumerate(result.seeds):
        for u, env_steps in enumerate(result.env_steps):
            values = {name: float(result.metrics[name][u, r]) for name in names}
            clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
            yield {"algorithm": result.algorithm, "seed": seed, "update": u + 1, "env_steps": int(env_steps), **clean}


def result_rows(result: Result, target: float | None) -> Iterator[dict[str, Any]]:
    """Yields the rows of results.csv, one per seed."""
    steps = None if target is None else steps_per_run(result, target)
    for r, seed in enumerate(result.seeds):
        value = float(result.returns[r])
        yield {
            "algorithm": result.algorithm,
            "seed": seed,
            "evaluation_return": None if math.isnan(value) else value,
            "diverged_at": int(result.diverged_at[r]),
            "steps_to_target": None if steps is None or math.isinf(steps[r]) else int(steps[r]),
        }
