"""What a comparison says: its table, and its rows for CSV files."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from purejaxppo.core.nonfinite import Cause
from purejaxppo.experiment.statistics import bootstrap_interval, interquartile_mean

_WINDOW = 0.02  # of a run's updates, but at least
_UPDATES = 5
_EPISODES = 5  # that have to have ended in it
_BLOCK = 1000  # rows whose intervals are found together
RESULT_COLUMNS = ("algorithm", "seed", "evaluation_return", "diverged_at", "steps_to_target")


class Result(NamedTuple):
    """One algorithm's runs, seeds [R], updates [U]."""

    algorithm: str
    seeds: Sequence[int]
    env_steps: np.ndarray  # [U]
    metrics: dict[str, np.ndarray]  # each [U, R]
    returns: np.ndarray  # [R], of the final evaluation; NaN where the run diverged
    diverged_at: np.ndarray  # [R], update, from 1, in which a number became non-finite; 0 for never
    env_steps_per_second: float  # all runs together, without compilation and the first of several chunks
    unfinished: int = 0  # episodes of the evaluation that were broken off, of all runs together
    causes: Sequence[Cause] = ()  # of the runs that diverged in training


def steps_to_target(env_steps: np.ndarray, total: np.ndarray, count: np.ndarray, target: float) -> np.ndarray:
    """Environment steps until each run's training return reaches the target [...]; inf if it never does.

    The return is the mean over the episodes that ended in the last 2 % of the run's updates, at least 5; there have to
    be 5 such episodes. Bins of equally many updates serve as well, at least 400 of a longer run.

    Args:
      env_steps: [U].
      total: sum of the returns of the episodes that ended in the update [..., U].
      count: of these episodes [..., U].
    """
    window = min(len(env_steps), max(_UPDATES, round(_WINDOW * len(env_steps))))
    totals = np.stack([total, count])
    running = np.cumsum(np.pad(totals, [(0, 0)] * (totals.ndim - 1) + [(window, 0)]), axis=-1)
    returns, ended = running[..., window:] - running[..., :-window]
    reached = (ended >= _EPISODES) & (returns >= target * ended)
    reached[..., : window - 1] = False  # one lucky update is not a mean
    return np.where(reached.any(axis=-1), env_steps[np.argmax(reached, axis=-1)], math.inf)


def table_row(result: Result, target: float | None) -> dict[str, Any]:
    """What the table and summary.json say of one algorithm; None for what cannot be said."""
    row = {
        "algorithm": result.algorithm,
        **score_rows(result.returns[None])[0],
        "env_steps_per_second": round(result.env_steps_per_second, 1),
        **({"unfinished": result.unfinished} if result.unfinished else {}),
    }
    return row if target is None else row | target_row(steps_per_run(result, target))


def score_rows(returns: np.ndarray) -> list[dict[str, Any]]:
    """How each row of runs did in the final evaluation; None for what cannot be said.

    A diverged run counts as the worst there is: up to a quarter of them leave an interquartile mean, more do not.

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
            "return_iqm": finite(middle[i]),
            "return_low": finite(low[i]),
            "return_high": finite(high[i]),
        }
        for i in range(len(scores))
    ]


def worst_if_diverged(returns: np.ndarray) -> np.ndarray:
    """Returns of which those of diverged runs, NaN, are -inf."""
    return np.where(np.isnan(returns), -math.inf, returns)


def _intervals(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`bootstrap_interval` of each row of scores [rows, runs], a block of rows at a time to bound the memory."""
    blocks = np.array_split(scores, max(1, len(scores) // _BLOCK))
    with np.errstate(invalid="ignore"):  # infinities among the draws
        ends = [bootstrap_interval(block) for block in blocks]
    low, high = np.concatenate(ends, axis=1)
    return low, high


def target_row(steps: np.ndarray) -> dict[str, Any]:
    """What a table says of the runs' steps to the target [R], inf for a run that did not reach it."""
    return {
        "steps_to_target": finite(np.quantile(steps, 0.5, method="lower")),
        "runs_at_target": int(np.isfinite(steps).sum()),
    }


def finite(x: np.ndarray | float) -> float | None:
    """None for what JSON has no number for."""
    return float(x) if np.isfinite(x) else None


def steps_per_run(result: Result, target: float) -> np.ndarray:
    """`steps_to_target` of every run [R]; inf for one that diverged, whatever it had reached before."""
    returns, counts = result.metrics["episode/return"].T, result.metrics["episode/count"].T
    totals = np.where(counts > 0, returns, 0.0) * counts
    return np.where(np.isnan(result.returns), math.inf, steps_to_target(result.env_steps, totals, counts, target))


def markdown_table(rows: Sequence[dict[str, Any]], target: float | None) -> str:
    """The comparison as a Markdown table."""
    return markdown(table_cells(rows, target))


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Head and rows of a table, as Markdown."""
    head, *body = table
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ["---"] * len(head), *body])


def table_cells(rows: Sequence[dict[str, Any]], target: float | None) -> list[list[str]]:
    """Head and rows of the table, as text: IQM of the final returns, median of the env steps to the target."""
    body = [[row["algorithm"], *score_cells(row, target), f"{row['env_steps_per_second']:,.0f}"] for row in rows]
    return [["algorithm", *score_head(target), "steps/s"], *body]


def score_head(target: float | None) -> list[str]:
    """Names of the columns of `score_cells`."""
    return ["runs", "IQM", "95 % interval", *([] if target is None else [f"steps to {target:g}", "reached"])]


def score_cells(row: dict[str, Any], target: float | None) -> list[str]:
    """The text of what `score_rows` and, if there is a target, `target_row` say."""
    diverged = f" ({row['diverged']} diverged)" if row["diverged"] else ""
    low, high = row["return_low"], row["return_high"]
    interval = "-" if low is None else f"{_number(low)} to {_number(high)}"
    cells = [f"{row['runs']}{diverged}", _number(row["return_iqm"]), interval]
    if target is None:
        return cells
    steps = row["steps_to_target"]
    return [*cells, "-" if steps is None else f"{steps:,.0f}", f"{row['runs_at_target']} of {row['runs']}"]


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.4g}"


def curve_columns(results: Sequence[Result]) -> list[str]:
    """Of all algorithms' curves; an algorithm's own metrics stay empty for the others."""
    return [
        "algorithm",
        "seed",
        "update",
        "env_steps",
        *sorted({name for result in results for name in result.metrics}),
    ]


def curve_rows(result: Result) -> Iterator[dict[str, Any]]:
    """One row per seed and update; what is not finite is left empty."""
    names = sorted(result.metrics)
    for r, seed in enumerate(result.seeds):
        for u, env_steps in enumerate(result.env_steps):
            values = {name: float(result.metrics[name][u, r]) for name in names}
            clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
            yield {"algorithm": result.algorithm, "seed": seed, "update": u + 1, "env_steps": int(env_steps), **clean}


def result_rows(result: Result, target: float | None) -> Iterator[dict[str, Any]]:
    """One row per seed."""
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
