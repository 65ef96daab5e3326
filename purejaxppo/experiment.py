"""One run on the host: build, compile once, advance in chunks, log, save, evaluate, draw."""

import dataclasses
import importlib.metadata
import math
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from purejaxppo.checkpoint import load_checkpoint, read_json, save_checkpoint, state_sha256, write_json
from purejaxppo.config import (
    Hyperparams,
    TrainConfig,
    validate_config,
    validate_hyperparams,
    validate_seed,
)
from purejaxppo.envs import from_gymnax
from purejaxppo.errors import CheckpointError, ConfigError, DivergedError
from purejaxppo.evaluate import evaluate, summarize
from purejaxppo.logger import JsonLines, ProgressDisplay, Sink, emit
from purejaxppo.networks import make_network
from purejaxppo.plot import plot_runs
from purejaxppo.train import advance, trainer_from_config
from purejaxppo.types import RunnerState, Trainer, VecEnv
from purejaxppo.wrappers import evaluation_env, observation_stats

# Environment steps per call of the compiled program, as many as wished and at least: a tenth of a second or so, and
# never so little that the host's work shows. Progress moves, and signals are heard, once per call.
_CHUNK_STEPS = {"cpu": (2**15, 2**11)}
_CHUNK_STEPS_ACCELERATOR = (2**21, 2**17)
_CHUNK_UPDATES = 64
_WATCHED = ("loss/policy", "loss/value", "entropy", "kl", "grad_norm")


class Timing(NamedTuple):
    """Seconds and speed of a training loop."""

    compile_seconds: float
    train_seconds: float  # without compilation
    env_steps_per_second: float  # steady state: without the first chunk, where there are more


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
    env = from_gymnax(config.env, config.num_envs, allow_download=allow_download, **dict(config.env_params))
    trainer = trainer_from_config(config, env)
    run_dir = _create_run_dir(config, seed, out)
    _write_inputs(run_dir, config, hp, seed)
    console.print(_headline(config, seed, run_dir), highlight=False, soft_wrap=True)

    with _stop_on_signal() as stopped, JsonLines(run_dir / "metrics.jsonl") as log:
        recent = _RecentReturn(config)
        with ProgressDisplay(console, config.env_steps) as progress:
            sinks = [log, recent, progress, *sinks]
            runner, timing = train_in_chunks(config, trainer, hp, seed, sinks, progress.start_clock, stopped)
        updates = int(runner.updates)
        env_steps = updates * config.batch_size
        save_checkpoint(run_dir, env_steps, runner)
        summary = {
            "env": config.env,
            "algorithm": config.algorithm,
            "seed": seed,
            "env_steps": env_steps,
            "updates": updates,
            "compile_seconds": round(timing.compile_seconds, 3),
            "train_seconds": round(timing.train_seconds, 3),
            "env_steps_per_second": round(timing.env_steps_per_second, 1),
            "train_return": recent.mean(),
            "evaluation": None,
            "state_sha256": state_sha256(runner),
            "exit_reason": stopped() or "finished",
            "run_dir": str(run_dir),
        }
        if not stopped():
            summary["evaluation"] = _evaluate(config, env, runner, eval_episodes, seed, greedy=True)
            summary["exit_reason"] = stopped() or "finished"
        write_json(run_dir / "summary.json", summary)
    if recent.episodes:
        plot_runs([run_dir], run_dir / "plots" / "learning_curve.png")
    return summary


def train_in_chunks(
    config: TrainConfig,
    trainer: Trainer,
    hp: Hyperparams,
    seed: int,
    sinks: Sequence[Sink],
    on_start: Callable[[], None] = lambda: None,
    stopped: Callable[[], object] = lambda: None,
) -> tuple[RunnerState, Timing]:
    """The host loop: the same `advance` as in one jitted run, in chunks, with its state donated.

    The next chunk is always started before the last one's metrics are read, so the device does not wait for the host.
    The result does not depend on the chunks' length.

    Args:
      on_start: called between compilation and the first update.
      stopped: looked at between chunks; something true ends the loop early.

    Raises:
      DivergedError: a loss, gradient norm, entropy or KL is not finite.
    """
    hp = jax.tree.map(jnp.float32, hp)
    began = time.perf_counter()
    runner = jax.jit(trainer.init)(jax.random.key(seed), hp)
    lengths = chunk_lengths(config, jax.default_backend())
    programs = {n: _compile_advance(trainer, hp, runner, n) for n in sorted(set(lengths))}
    compile_seconds = time.perf_counter() - began

    on_start()
    clock = _Clock(config)
    sinks = list(sinks)
    in_flight: list[dict[str, jax.Array]] = []
    for length in lengths:
        if stopped():
            break
        runner, metrics = programs[length](hp, runner)
        in_flight.append(metrics)
        if len(in_flight) > 1:
            sinks = clock.report(in_flight.pop(0), sinks)
    for metrics in in_flight:
        sinks = clock.report(metrics, sinks)
    jax.block_until_ready(runner)
    return runner, clock.timing(compile_seconds)


def chunk_lengths(config: TrainConfig, backend: str) -> list[int]:
    """How many updates each call of the compiled program makes; they sum to config.num_updates.

    All chunks have one length if num_updates has a divisor that is long enough; otherwise the last one is shorter,
    at the price of a second compilation.
    """
    wish, least = (steps // config.batch_size for steps in _CHUNK_STEPS.get(backend, _CHUNK_STEPS_ACCELERATOR))
    wish = max(1, min(wish, _CHUNK_UPDATES, config.num_updates))
    even = next(n for n in range(wish, 0, -1) if config.num_updates % n == 0)
    length = even if even >= min(least, wish) else wish
    whole, rest = divmod(config.num_updates, length)
    return [length] * whole + [rest] * (rest > 0)


def evaluate_run(
    run_dir: Path, *, episodes: int = 128, greedy: bool = True, seed: int = 0, allow_download: bool = False
) -> dict[str, float | int]:
    """Plays episodes with a saved run's final policy and frozen normalisers; returns their summary."""
    validate_seed(seed)
    if episodes < 1:
        raise ConfigError(f"episodes = {episodes}; it takes at least 1.")
    config, hp = read_config(run_dir)
    env = from_gymnax(config.env, config.num_envs, allow_download=allow_download, **dict(config.env_params))
    trainer = trainer_from_config(config, env)
    expected = jax.eval_shape(trainer.init, jax.random.key(0), jax.tree.map(jnp.float32, hp))
    runner = load_checkpoint(run_dir, expected)
    return _evaluate(config, env, runner, episodes, seed, greedy, allow_download)


def read_config(run_dir: Path) -> tuple[TrainConfig, Hyperparams]:
    """The settings that a run was started with. Raises CheckpointError if the directory is not a run's."""
    path = run_dir / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{run_dir} is not a run directory: it has no config.json.")
    content = read_json(path)
    try:
        if content["format_version"] != 1:
            raise CheckpointError(f"{path} has format version {content['format_version']}; this version reads 1.")
        config = TrainConfig(**{f.name: content[f.name] for f in dataclasses.fields(TrainConfig)})
        hp = Hyperparams(**{f.name: content[f.name] for f in dataclasses.fields(Hyperparams)})
        validate_config(config)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a run's configuration: {error!r}") from error
    return config, hp


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
    copies = evaluation_env(config, copies, observation_stats(runner.env_state))
    play = jax.jit(lambda key, params: evaluate(key, copies, network.apply, params, greedy))
    # Another stream than training's own, whose key is the seed's.
    key = jax.random.fold_in(jax.random.key(seed), 0x5EED)
    return summarize(play(key, runner.learner.params))


def _compile_advance(trainer: Trainer, hp: Hyperparams, runner: RunnerState, num_updates: int) -> Callable[..., Any]:
    program = jax.jit(lambda hp, runner: advance(trainer, hp, runner, num_updates), donate_argnums=1)
    return program.lower(hp, runner).compile()


class _Clock:
    """Turns chunks of device metrics into rows with counters and times, and knows the loop's speed."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._updates = 0
        self._start = time.perf_counter()
        self._ends: list[tuple[int, float]] = []  # of the first chunk and of the last: updates, seconds

    def report(self, metrics: dict[str, jax.Array], sinks: list[Sink]) -> list[Sink]:
        columns = {name: np.asarray(x).tolist() for name, x in metrics.items()}  # waits for this chunk alone
        length = len(columns["loss/policy"])
        end = time.perf_counter() - self._start
        begin = self._ends[-1][1] if self._ends else 0.0
        for i in range(length):
            self._updates += 1
            row = {name: column[i] for name, column in columns.items()}
            row["episode/count"] = int(row["episode/count"])
            env_steps = self._updates * self._config.batch_size
            self._check(env_steps, row)
            seconds = round(begin + (end - begin) * (i + 1) / length, 4)
            sinks = emit(sinks, env_steps, {"update": self._updates, "env_steps": env_steps, "seconds": seconds, **row})
        self._ends = [*self._ends[:1], (self._updates, end)]
        return sinks

    def _check(self, env_steps: int, row: dict[str, float]) -> None:
        for name in _WATCHED:
            if not math.isfinite(row[name]):
                raise DivergedError(
                    f"{name} became {row[name]} at update {self._updates} ({env_steps} env steps); nothing was saved. "
                    f"Try a lower learning_rate, or normalize_observation and normalize_reward."
                )

    def timing(self, compile_seconds: float) -> Timing:
        if not self._ends:
            return Timing(compile_seconds, 0.0, 0.0)
        updates, seconds = self._ends[-1]
        total = seconds
        if len(self._ends) > 1:
            updates, seconds = updates - self._ends[0][0], seconds - self._ends[0][1]
        return Timing(compile_seconds, total, updates * self._config.batch_size / seconds)


class _RecentReturn:
    """A sink: mean return of the episodes that ended in the last tenth of the updates."""

    def __init__(self, config: TrainConfig) -> None:
        self._first = config.num_updates - math.ceil(config.num_updates / 10) + 1
        self._sum, self._count = 0.0, 0
        self.episodes = 0  # of the whole run

    def __call__(self, env_steps: int, row: Any) -> None:
        count = row["episode/count"]
        self.episodes += count
        if count and row["update"] >= self._first:
            self._sum += row["episode/return"] * count
            self._count += count

    def mean(self) -> float | None:
        return self._sum / self._count if self._count else None


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


def _create_run_dir(config: TrainConfig, seed: int, out: Path | None) -> Path:
    """Makes a new directory. One that holds anything is never touched."""
    if out is None:
        env = re.sub(r"[^\w.-]", "_", config.env)
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        base = Path("runs") / f"{env}__{config.algorithm}__s{seed}__{stamp}"
        out = next(p for p in (base, *(base.with_name(f"{base.name}-{i}") for i in range(2, 1000))) if not p.exists())
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise CheckpointError(f"{out} exists already and is not an empty directory; choose another --out.")
        out.mkdir(parents=True, exist_ok=True)
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot create the run directory {str(out)!r}: {error}") from error
    return out


def _write_inputs(run_dir: Path, config: TrainConfig, hp: Hyperparams, seed: int) -> None:
    fields = {**dataclasses.asdict(config), **dataclasses.asdict(hp)}
    fields["env_params"] = dict(config.env_params)
    names = ("purejaxppo", "jax", "jaxlib", "flax", "optax", "gymnax", "orbax-checkpoint", "numpy")
    device = jax.devices()[0]
    versions = {
        "python": sys.version.split()[0],
        **{name: _version(name) for name in names},
        "device": device.device_kind,
        "platform": device.client.platform_version.split("\n")[0],
    }
    try:
        write_json(run_dir / "config.json", {"format_version": 1, "seed": seed, **fields})
        write_json(run_dir / "versions.json", versions)
        (run_dir / "command.txt").write_text(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) + "\n", "utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write into the run directory {run_dir}: {error}") from error


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _headline(config: TrainConfig, seed: int, run_dir: Path) -> str:
    device = jax.devices()[0]
    slow = " (no accelerator)" if device.platform == "cpu" else ""
    rounded = f" (of {config.total_timesteps:,} asked for)" if config.env_steps != config.total_timesteps else ""
    return (
        f"{config.env}  {config.algorithm}  {config.env_steps:,} env steps{rounded} = {config.num_updates:,} updates "
        f"of {config.num_envs} envs x {config.num_steps} steps  device {device.device_kind}{slow}  seed {seed}  "
        f"{run_dir}"
    )
