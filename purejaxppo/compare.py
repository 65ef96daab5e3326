"""Several algorithms side by side: the same environment, seeds and budget, one directory of results."""

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.comparison import (
    RESULT_COLUMNS,
    Result,
    curve_columns,
    curve_rows,
    markdown_table,
    result_rows,
    table_row,
)
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.envs import from_gymnax
from purejaxppo.errors import ConfigError, DivergedError
from purejaxppo.evaluate import evaluate_runner, evaluation_key
from purejaxppo.files import whole_file, write_json, write_text
from purejaxppo.host_loop import Chunk, Hooks, train_in_chunks
from purejaxppo.logger import ProgressDisplay, Terminal, say
from purejaxppo.networks import make_network
from purejaxppo.plot_comparison import plot_comparison
from purejaxppo.run_dir import create_dir, write_origin
from purejaxppo.settings import settings_record
from purejaxppo.sweep import batching_for, over_seeds
from purejaxppo.train import trainer_from_config
from purejaxppo.types import VecEnv
from purejaxppo.validation import validate_algorithm, validate_config, validate_hyperparams, validate_seed


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
    summary.json, comparison.png, and comparison.json with all settings. All but the picture grow as algorithms finish.

    Args:
      runs: settings, one pair per algorithm; all of one environment.
      seeds: of every one of them.
      out: new directory; by default runs/<env>__compare__<UTC time>.
      eval_episodes: greedy episodes per run at the end.
      target: return that `steps to target` asks for.

    Raises:
      DivergedError: every single run diverged.
      PureJaxPPOError: of the kind that says what went wrong; the results of finished algorithms stay.
    """
    console = console or Terminal()
    _validate(runs, seeds, eval_episodes, target)
    envs = [_build(config, hp, allow_download) for config, hp in runs]
    env_id = runs[0][0].env
    out = create_dir(out, f"{env_id}__compare")
    write_origin(out)
    record = [settings_record(config, hp) for config, hp in runs]
    write_json(out / "comparison.json", {"format_version": 1, "seeds": list(seeds), "runs": record})
    say(console, _headline(runs, seeds, out))

    results: list[Result] = []
    for (config, hp), env in zip(runs, envs, strict=True):
        results.append(_train_all(config, hp, env, seeds, eval_episodes, allow_download, console))
        rows = [table_row(result, target) for result in results]
        summary = {"env": env_id, "seeds": list(seeds), "target": target, "algorithms": rows, "out": str(out)}
        _write_csv(out / "curves.csv", curve_columns(results), (row for x in results for row in curve_rows(x)))
        _write_csv(out / "results.csv", RESULT_COLUMNS, (row for x in results for row in result_rows(x, target)))
        write_text(out / "table.md", markdown_table(rows, target))
        write_json(out / "summary.json", summary)
    plot_comparison(results, env_id, target, out / "comparison.png")
    if all(np.isnan(result.returns).all() for result in results):
        raise DivergedError(f"every run diverged; the results are in {out}. Try a lower learning_rate.")
    return summary


def _validate(
    runs: Sequence[tuple[TrainConfig, Hyperparams]], seeds: Sequence[int], eval_episodes: int, target: float | None
) -> None:
    names = [config.algorithm for config, _ in runs]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"algorithms = {' '.join(names) or 'none'}: a comparison takes different ones, at least one.")
    for config, hp in runs:
        validate_algorithm(config.algorithm, ALGORITHMS)
        validate_config(config)
        validate_hyperparams(hp)
    if len({(config.env, config.env_params) for config, _ in runs}) > 1:
        raise ConfigError("the runs are of different environments; a comparison takes one.")
    if len(seeds) < 1 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds = {list(seeds)}: a comparison takes different ones, at least one.")
    if any(config.on_nonfinite != "stop" for config, _ in runs):
        raise ConfigError("a comparison counts the runs that diverge: on_nonfinite has to be stop.")
    for seed in (min(seeds), max(seeds)):
        validate_seed(seed)
    if eval_episodes < 1:
        raise ConfigError(f"eval_episodes = {eval_episodes}; it takes at least 1.")
    if target is not None and not math.isfinite(target):
        raise ConfigError(f"target = {target}; it takes a finite return.")


def _build(config: TrainConfig, hp: Hyperparams, allow_download: bool) -> VecEnv:
    """The environment, after a trial of what is built on it: what fails should fail before hours of work."""
    env = from_gymnax(config.env, config.num_envs, allow_download=allow_download, **dict(config.env_params))
    jax.eval_shape(trainer_from_config(config, env).init, jax.random.key(0), jax.tree.map(jnp.float32, hp))
    return env


def _train_all(
    config: TrainConfig,
    hp: Hyperparams,
    env: VecEnv,
    seeds: Sequence[int],
    eval_episodes: int,
    allow_download: bool,
    console: Console,
) -> Result:
    """All seeds of one algorithm in one compiled program."""
    batching = batching_for(jax.default_backend())
    trainer = over_seeds(trainer_from_config(config, env), batching)
    say(console, config.algorithm)
    with ProgressDisplay(console, config.env_steps * len(seeds)) as progress:
        curves = _Curves(config, len(seeds), progress)
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
        hp = jax.tree.map(jnp.float32, hp)
        hooks = Hooks(report=curves, on_start=lambda _: progress.start_clock())
        runners, timing = train_in_chunks(config, trainer, hp, lambda: jax.jit(trainer.init)(keys, hp), hooks)

    copies = from_gymnax(config.env, eval_episodes, allow_download=allow_download, **dict(config.env_params))
    apply = make_network(config, env).apply
    play = jax.jit(batching(lambda key, runner: evaluate_runner(key, config, copies, apply, runner)))
    episodes = play(jax.vmap(evaluation_key)(jnp.asarray(seeds, jnp.uint32)), runners)
    returns = np.mean(np.asarray(episodes.episode_return, np.float64), axis=1)
    metrics = curves.collected()
    returns[metrics.pop("nonfinite").any(axis=0)] = math.nan  # diverged
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


def _write_csv(path: Path, columns: Iterable[str], rows: Iterable[dict[str, Any]]) -> None:
    """Row by row; what a row does not have is left empty."""
    with whole_file(path) as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _headline(runs: Sequence[tuple[TrainConfig, Hyperparams]], seeds: Sequence[int], out: Path) -> str:
    device = jax.devices()[0]
    slow = " (no accelerator)" if device.platform == "cpu" else ""
    each = ", ".join(f"{config.algorithm} {config.env_steps:,}" for config, _ in runs)
    count = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]} alone: no intervals, no bands"
    return f"{runs[0][0].env}  env steps per run: {each}  {count}  device {device.device_kind}{slow}  {out}"
