"""Several algorithms side by side: the same environment, seeds and budget, one directory of results."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.checkpoint import write_json, write_text
from purejaxppo.config import Hyperparams, TrainConfig, validate_algorithm
from purejaxppo.envs import from_gymnax
from purejaxppo.evaluate import evaluate_runner, evaluation_key
from purejaxppo.host_loop import WATCHED, Chunk, train_in_chunks
from purejaxppo.logger import ProgressDisplay
from purejaxppo.networks import make_network
from purejaxppo.plot_comparison import plot_comparison
from purejaxppo.run_dir import create_dir, settings_record, write_origin
from purejaxppo.stats import bootstrap_interval, interquartile_mean
from purejaxppo.sweep import batching_for, over_seeds
from purejaxppo.train import trainer_from_config

_WINDOW = 0.02  # of a run's updates, over which a training return is averaged before it is held against the target


class Result(NamedTuple):
    """One algorithm's runs, seeds [R], updates [U]."""

    algorithm: str
    seeds: Sequence[int]
    env_steps: np.ndarray  # [U]
    metrics: dict[str, np.ndarray]  # each [U, R]
    returns: np.ndarray  # [R], of the final evaluation; NaN where the run diverged
    env_steps_per_second: float  # all runs together, without compilation and the first chunk


def compare(
    runs: Sequence[tuple[TrainConfig, Hyperparams]],
    seeds: Sequence[int],
    *,
    out: Path | None = None,
    eval_episodes: int = 128,
    target: float | None = None,
    allow_download: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains every pair of settings with every seed; leaves tables and a picture in `out`, returns the summary.

    curves.csv (a row per algorithm, seed and update), results.csv (a row per algorithm and seed), table.md,
    comparison.png, summary.json, and config.json with all settings. The first two grow as algorithms finish.

    Args:
      runs: settings, one pair per algorithm; all of one environment.
      seeds: of every one of them.
      out: new directory; by default runs/<env>__compare__<UTC time>.
      eval_episodes: greedy episodes per run at the end.
      target: return that `steps to target` asks for.

    Raises:
      PureJaxPPOError: of the kind that says what went wrong; the results of finished algorithms stay.
    """
    console = console or Console(stderr=True)
    for config, _ in runs:
        validate_algorithm(config.algorithm, ALGORITHMS)
    env_id = runs[0][0].env
    out = create_dir(out, f"{env_id}__compare")
    write_origin(out)
    write_json(
        out / "config.json",
        {"format_version": 1, "seeds": list(seeds), "runs": [settings_record(config, hp) for config, hp in runs]},
    )
    console.print(_headline(runs, seeds, out), highlight=False, soft_wrap=True)
    results = []
    for config, hp in runs:
        results.append(_train_all(config, hp, seeds, eval_episodes, allow_download, console))
        _write_csv(out / "curves.csv", [row for result in results for row in _curve_rows(result)])
        _write_csv(out / "results.csv", [row for result in results for row in _result_rows(result, target)])
    rows = [_table_row(result, target) for result in results]
    summary = {"env": env_id, "seeds": list(seeds), "target": target, "algorithms": rows, "out": str(out)}
    write_json(out / "summary.json", summary)
    write_text(out / "table.md", markdown_table(rows, target))
    plot_comparison([(r.algorithm, r.env_steps, r.metrics) for r in results], env_id, target, out / "comparison.png")
    return summary


def _train_all(
    config: TrainConfig,
    hp: Hyperparams,
    seeds: Sequence[int],
    eval_episodes: int,
    allow_download: bool,
    console: Console,
) -> Result:
    """All seeds of one algorithm in one compiled program."""
    env = from_gymnax(config.env, config.num_envs, allow_download=allow_download, **dict(config.env_params))
    copies = from_gymnax(config.env, eval_episodes, allow_download=allow_download, **dict(config.env_params))
    batching = batching_for(jax.default_backend())
    trainer = over_seeds(trainer_from_config(config, env), batching)
    console.print(f"{config.algorithm}: compiling", highlight=False)
    with ProgressDisplay(console, config.env_steps * len(seeds)) as progress:
        curves = _Curves(config, len(seeds), progress)
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
        runners, timing = train_in_chunks(config, trainer, hp, keys, curves, progress.start_clock)

    apply = make_network(config, env).apply
    play = jax.jit(batching(lambda key, runner: evaluate_runner(key, config, copies, apply, runner)))
    episodes = play(jax.vmap(evaluation_key)(jnp.asarray(seeds, jnp.uint32)), runners)
    returns = np.mean(np.asarray(episodes.episode_return, np.float64), axis=1)
    metrics = curves.collected()
    returns[_diverged(metrics)] = math.nan
    env_steps = np.arange(1, config.num_updates + 1) * config.batch_size
    return Result(config.algorithm, seeds, env_steps, metrics, returns, timing.env_steps_per_second)


class _Curves:
    """Keeps the metrics of all chunks, and shows progress with the mean return over the runs."""

    def __init__(self, config: TrainConfig, runs: int, progress: ProgressDisplay) -> None:
        self._steps_per_update = config.batch_size * runs
        self._progress = progress
        self._chunks: list[dict[str, np.ndarray]] = []

    def __call__(self, chunk: Chunk) -> None:
        self._chunks.append(chunk.metrics)
        last = chunk.first_update + len(chunk.metrics["learning_rate"]) - 1
        ended = chunk.metrics["episode/return"][np.isfinite(chunk.metrics["episode/return"])]
        mean = float(ended.mean()) if ended.size else math.nan
        self._progress(last * self._steps_per_update, {"episode/return": mean})

    def collected(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate([chunk[name] for chunk in self._chunks]) for name in self._chunks[0]}


def _diverged(metrics: dict[str, np.ndarray]) -> np.ndarray:
    """Which runs [R] had a loss, gradient, entropy or KL that is not finite."""
    watched = np.stack([metrics[name] for name in WATCHED if name in metrics])
    return ~np.isfinite(watched).all(axis=(0, 1))


def steps_to_target(env_steps: np.ndarray, episode_return: np.ndarray, target: float) -> float:
    """Environment steps until one run's training return, averaged over 2 % of its updates (at least 5), reaches it.

    Args:
      env_steps: [U].
      episode_return: [U], NaN where no episode ended.

    Returns:
      inf if it never does.
    """
    window = max(5, round(_WINDOW * len(env_steps)))
    finite = np.isfinite(episode_return)
    total = np.concatenate([np.zeros(window), np.cumsum(np.where(finite, episode_return, 0.0))])
    count = np.concatenate([np.zeros(window), np.cumsum(finite)])
    total, count = total[window:] - total[:-window], count[window:] - count[:-window]
    reached = (count > 0) & (total >= target * count)
    return float(env_steps[np.argmax(reached)]) if reached.any() else math.inf


def _table_row(result: Result, target: float | None) -> dict[str, Any]:
    """What the table and summary.json say of one algorithm; None for what cannot be said."""
    alive = result.returns[np.isfinite(result.returns)]
    low, high = bootstrap_interval(alive) if len(alive) > 1 else (None, None)
    row = {
        "algorithm": result.algorithm,
        "runs": len(result.returns),
        "diverged": len(result.returns) - len(alive),
        "return_iqm": float(interquartile_mean(alive)) if len(alive) else None,
        "return_low": None if low is None else float(low),
        "return_high": None if high is None else float(high),
        "env_steps_per_second": round(result.env_steps_per_second, 1),
    }
    if target is not None:
        steps = _steps_per_run(result, target)
        median = float(np.median(steps))
        row["steps_to_target"] = median if math.isfinite(median) else None
        row["runs_at_target"] = int(np.isfinite(steps).sum())
    return row


def _steps_per_run(result: Result, target: float) -> np.ndarray:
    curves = result.metrics["episode/return"].T
    return np.array([steps_to_target(result.env_steps, curve, target) for curve in curves])


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


def _curve_rows(result: Result) -> Iterator[dict[str, Any]]:
    names = sorted(result.metrics)
    for r, seed in enumerate(result.seeds):
        for u, env_steps in enumerate(result.env_steps):
            values = {name: float(result.metrics[name][u, r]) for name in names}
            clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
            yield {"algorithm": result.algorithm, "seed": seed, "update": u + 1, "env_steps": int(env_steps), **clean}


def _result_rows(result: Result, target: float | None) -> Iterator[dict[str, Any]]:
    steps = None if target is None else _steps_per_run(result, target)
    for r, seed in enumerate(result.seeds):
        value = float(result.returns[r])
        yield {
            "algorithm": result.algorithm,
            "seed": seed,
            "evaluation_return": None if math.isnan(value) else value,
            "diverged": math.isnan(value),
            "steps_to_target": None if steps is None or math.isinf(steps[r]) else int(steps[r]),
        }


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Columns are those of any row; what a row does not have is left empty."""
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _headline(runs: Sequence[tuple[TrainConfig, Hyperparams]], seeds: Sequence[int], out: Path) -> str:
    device = jax.devices()[0]
    slow = " (no accelerator)" if device.platform == "cpu" else ""
    each = ", ".join(f"{config.algorithm} {config.env_steps:,}" for config, _ in runs)
    count = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]} alone: no intervals, no bands"
    return f"{runs[0][0].env}  env steps per run: {each}  {count}  device {device.device_kind}{slow}  {out}"
