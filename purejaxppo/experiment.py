"""One run on the host: build, compile once, advance in chunks, log, save, evaluate, draw."""

import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from purejaxppo.checkpoint import save_checkpoint, state_sha256, write_json
from purejaxppo.config import Hyperparams, TrainConfig, validate_config, validate_hyperparams, validate_seed
from purejaxppo.envs import from_gymnax
from purejaxppo.errors import ConfigError
from purejaxppo.evaluate import evaluate_runner, evaluation_key, summarize
from purejaxppo.host_loop import Rows, Timing, check_params, train_in_chunks
from purejaxppo.logger import JsonLines, ProgressDisplay, Sink, read_metrics
from purejaxppo.networks import make_network
from purejaxppo.plot import plot_runs
from purejaxppo.restore import restore
from purejaxppo.run_dir import create_run_dir, write_inputs
from purejaxppo.train import trainer_from_config
from purejaxppo.types import RunnerState, VecEnv


def run_experiment(
    config: TrainConfig,
    hp: Hyperparams,
    seed: int,
    *,
    out: Path | None = None,
    eval_episodes: int = 128,
    allow_download: bool = False,
    console: Console | None = None,
    sinks: Sequence[Sink] = (),
) -> dict[str, Any]:
    """Trains, saves, evaluates and draws; leaves a run directory and returns its summary (`summary.json`).

    Args:
      config, hp, seed: the run.
      out: its directory; by default runs/<env>__<algorithm>__s<seed>__<UTC time>.
      eval_episodes: greedy episodes at the end.
      allow_download: let an environment fetch its data set.
      console: for progress; by default standard error.
      sinks: further receivers of metrics, each called as sink(env_steps, metrics) once per update.

    Raises:
      PureJaxPPOError: of the kind that says what went wrong; what had been written stays.
    """
    console = console or Console(stderr=True)
    validate_config(config)
    validate_hyperparams(hp)
    validate_seed(seed)
    if eval_episodes < 1:
        raise ConfigError(f"eval_episodes = {eval_episodes}; it takes at least 1.")
    with _stop_on_signal() as stopped:
        env = from_gymnax(config.env, config.num_envs, allow_download=allow_download, **dict(config.env_params))
        trainer = trainer_from_config(config, env)
        run_dir = create_run_dir(config, seed, out)
        write_inputs(run_dir, config, hp, seed)
        console.print(_headline(config, seed, run_dir), highlight=False, soft_wrap=True)

        metrics_file = run_dir / "metrics.jsonl"
        with JsonLines(metrics_file) as log, ProgressDisplay(console, config.env_steps) as progress:
            rows = Rows(config, [log, progress, *sinks])
            key = jax.random.key(seed)
            runner, timing = train_in_chunks(config, trainer, hp, key, rows, progress.start_clock, stopped)
        check_params(runner)
        save_checkpoint(run_dir, int(runner.updates) * config.batch_size, runner)
        history = read_metrics(metrics_file)
        summary = {**_summary(config, seed, runner, timing, history), "run_dir": str(run_dir)}
        if not stopped():
            summary["evaluation"] = _evaluate(config, env, runner, eval_episodes, seed, greedy=True)
        summary["exit_reason"] = stopped() or "finished"
        write_json(run_dir / "summary.json", summary)
        if any(row["episode/count"] for row in history):
            plot_runs([run_dir], run_dir / "plots" / "learning_curve.png")
    return summary


def _summary(
    config: TrainConfig, seed: int, runner: RunnerState, timing: Timing, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    updates = int(runner.updates)
    return {
        "env": config.env,
        "algorithm": config.algorithm,
        "seed": seed,
        "env_steps": updates * config.batch_size,
        "updates": updates,
        "compile_seconds": round(timing.compile_seconds, 3),
        "train_seconds": round(timing.train_seconds, 3),
        "env_steps_per_second": round(timing.env_steps_per_second, 1),
        "train_return": _recent_return(rows),
        "evaluation": None,
        "state_sha256": state_sha256(runner),
    }


def evaluate_run(
    run_dir: Path, *, episodes: int = 128, greedy: bool = True, seed: int = 0, allow_download: bool = False
) -> dict[str, float | int]:
    """Plays episodes with a saved run's final policy and frozen normalisers; returns their summary."""
    validate_seed(seed)
    if episodes < 1:
        raise ConfigError(f"episodes = {episodes}; it takes at least 1.")
    config, _, env, runner = restore(run_dir, allow_download=allow_download)
    return _evaluate(config, env, runner, episodes, seed, greedy, allow_download)


def _evaluate(
    config: TrainConfig,
    env: VecEnv,
    runner: RunnerState,
    episodes: int,
    seed: int,
    greedy: bool,
    allow_download: bool = True,
) -> dict[str, float | int]:
    network = make_network(config, env)
    copies = from_gymnax(config.env, episodes, allow_download=allow_download, **dict(config.env_params))
    play = jax.jit(lambda key, runner: evaluate_runner(key, config, copies, network.apply, runner, greedy))
    return summarize(play(evaluation_key(seed), runner))


def _recent_return(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean return of the episodes that ended in the last tenth of the updates; None if none did."""
    recent = rows[len(rows) - math.ceil(len(rows) / 10) :]
    ended = [(row["episode/return"], row["episode/count"]) for row in recent if row["episode/count"]]
    count = sum(count for _, count in ended)
    return sum(mean * count for mean, count in ended) / count if count else None


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], str | None]]:
    """Yields a function that names the signal that asked to stop, if one did. A second one aborts at once."""
    received: list[str] = []

    def note(number: int, _: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    try:
        previous = {number: signal.signal(number, note) for number in numbers}
    except ValueError:  # only the main thread may install handlers
        previous = {}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _headline(config: TrainConfig, seed: int, run_dir: Path) -> str:
    device = jax.devices()[0]
    slow = " (no accelerator)" if device.platform == "cpu" else ""
    rounded = f" (of {config.total_timesteps:,} asked for)" if config.env_steps != config.total_timesteps else ""
    return (
        f"{config.env}  {config.algorithm}  {config.env_steps:,} env steps{rounded} = {config.num_updates:,} updates "
        f"of {config.num_envs} envs x {config.num_steps} steps  device {device.device_kind}{slow}  seed {seed}  "
        f"{run_dir}"
    )
