"""What a comparison says: its table, and its rows for CSV files."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from purejaxppo.stats import bootstrap_interval, interquartile_mean

_WINDOW = 0.02  # of a run's updates, but at least
_UPDATES = 5
_EPISODES = 5  # that have to have ended in it
RESULT_COLUMNS = ("algorithm", "seed", "evaluation_return", "diverged", "steps_to_target")


class Result(NamedTuple):
    """One algorithm's runs, seeds [R], updates [U]."""

    algorithm: str
    seeds: Sequence[int]
    env_steps: np.ndarray  # [U]
    metrics: dict[str, np.ndarray]  # each [U, R]
    returns: np.ndarray  # [R], of the final evaluation; NaN where the run diverged
    env_steps_per_second: float  # all runs together, without compilation and the first of several chunks


def steps_to_target(env_steps: np.ndarray, episode_return: np.ndarray, count: np.ndarray, target: float) -> float:
    """Environment steps until one run's training return reaches the target.

    The return is the mean over the episodes that ended in the last 2 % of the run's updates, at least 5; there have to
    be 5 such episodes.

    Args:
      env_steps: [U].
      episode_return: mean over the episodes that ended in the update [U], NaN where none did.
      count: of these episodes [U].

    Returns:
      inf if it never does.
    """
    window = min(len(env_steps), max(_UPDATES, round(_WINDOW * len(env_steps))))
    totals = np.stack([np.where(count > 0, episode_return, 0.0) * count, count])
    running = np.cumsum(np.pad(totals, ((0, 0), (window, 0))), axis=1)
    total, ended = running[:, window:] - running[:, :-window]
    reached = (ended >= _EPISODES) & (total >= target * ended)
    reached[: window - 1] = False  # one lucky update is not a mean
    return float(env_steps[np.argmax(reached)]) if reached.any() else math.inf


def table_row(result: Result, target: float | None) -> dict[str, Any]:
    """What the table and summary.json say of one algorithm; None for what cannot be said.

    A diverged run counts as the worst there is: up to a quarter of them leave an interquartile mean, more do not.
    """
    diverged = np.isnan(result.returns)
    scores = np.where(diverged, -math.inf, result.returns)
    low = high = np.asarray(math.nan)
    if len(scores) > 1:
        with np.errstate(invalid="ignore"):  # infinities among the draws
            low, high = bootstrap_interval(scores)
    row = {
        "algorithm": result.algorithm,
        "runs": len(scores),
        "diverged": int(diverged.sum()),
        "return_iqm": _finite(interquartile_mean(scores)),
        "return_low": _finite(low),
        "return_high": _finite(high),
        "env_steps_per_second": round(result.env_steps_per_second, 1),
    }
    if target is not None:
        steps = steps_per_run(result, target)
        row["steps_to_target"] = _finite(np.quantile(steps, 0.5, method="lower"))
        row["runs_at_target"] = int(np.isfinite(steps).sum())
    return row


def _finite(x: np.ndarray) -> float | None:
    return float(x) if np.isfinite(x) else None


def steps_per_run(result: Result, target: float) -> np.ndarray:
    """`steps_to_target` of every run [R]; inf for one that diverged, whatever it had reached before."""
    returns, counts = result.metrics["episode/return"].T, result.metrics["episode/count"].T
    steps = [steps_to_target(result.env_steps, *curve, target) for curve in zip(returns, counts, strict=True)]
    return np.where(np.isnan(result.returns), math.inf, steps)


def markdown_table(rows: Sequence[dict[str, Any]], target: float | None) -> str:
    """The comparison as a Markdown table."""
    head, *body = table_cells(rows, target)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ["---"] * len(head), *body])


def table_cells(rows: Sequence[dict[str, Any]], target: float | None) -> list[list[str]]:
    """Head and rows of the table, as text: IQM of the final returns, median of the env steps to the target."""
    head = ["algorithm", "runs", "IQM", "95 % interval"]
    head += [] if target is None else [f"steps to {target:g}", "reached"]
    table = [[*head, "steps/s"]]
    for row in rows:
        diverged = f" ({row['diverged']} diverged)" if row["diverged"] else ""
        cells = [row["algorithm"], f"{row['runs']}{diverged}", _number(row["return_iqm"])]
        cells.append(
            "-" if row["return_low"] is None else f"{_number(row['return_low'])} to {_number(row['return_high'])}"
        )
        if target is not None:
            steps = row["steps_to_target"]
            cells += ["-" if steps is None else f"{steps:,.0f}", f"{row['runs_at_target']} of {row['runs']}"]
        table.append([*cells, f"{row['env_steps_per_second']:,.0f}"])
    return table


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
            "diverged": math.isnan(value),
            "steps_to_target": None if steps is None or math.isinf(steps[r]) else int(steps[r]),
        }
