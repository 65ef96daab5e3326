"""Many runs as one program: seeds and hyperparameters side by side, each run resting by itself when it is done."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from purejaxppo.config import Hyperparams
from purejaxppo.config.fields import plain, whole
from purejaxppo.config.validate import validate_hyperparams, validate_seeds
from purejaxppo.core.checks import check_runs
from purejaxppo.core.nonfinite import keep_if_finite, no_value
from purejaxppo.core.types import LearnerState, Metrics, RunnerState, Trainer
from purejaxppo.errors import ConfigError

_NEVER = 2**31 - 1
# f(x, ...) -> f over the leading axis of x, ...
Batching = Callable[[Callable[..., Any]], Callable[..., Any]]
_RUNS = PartitionSpec("runs")


def one_by_one(f: Callable[..., Any]) -> Callable[..., Any]:
    """Batching without `vmap`: run after run, each computed by itself."""
    return lambda *xs: jax.lax.map(lambda x: f(*x), xs)


class Layout(NamedTuple):
    """Where R runs are computed; R is a multiple of the number of devices."""

    mesh: Mesh  # of one axis, "runs"
    batching: Batching  # of the runs that share a device

    @property
    def sharding(self) -> NamedSharding:
        """Of every array with R in front."""
        return NamedSharding(self.mesh, _RUNS)

    def over_runs(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """f over the leading axis R of its arguments' leaves. Nothing is exchanged: no device waits for another."""
        return jax.shard_map(self.batching(f), mesh=self.mesh, in_specs=_RUNS, out_specs=_RUNS, check_vma=False)


def layout_for(num_runs: int, exact: bool = False, devices: Sequence[jax.Device] | None = None) -> Layout:
    """The fastest layout that is safe: `jax.vmap` on an accelerator, `one_by_one` on CPU devices.

    On a CPU, one run's arrays stay in the cache, and jaxlib can wait forever in a vmapped loop on two cores.

    Args:
      num_runs: R; as many devices are used as divide it.
      exact: `one_by_one` on the first device alone, where each run has the very bits that it has by itself. A program
        for several devices passes through XLA's partitioner, after which other operations of a run may be fused, and
        other products and sums rounded as one.
      devices: to use, by default all.
    """
    devices = devices or jax.devices()
    number = 1 if exact else max(n for n in range(1, len(devices) + 1) if num_runs % n == 0)
    batching = one_by_one if exact or devices[0].platform == "cpu" else jax.vmap
    return Layout(Mesh(np.array(devices[:number]), ("runs",)), batching)


class Runs(NamedTuple):
    """R runs; every leaf has R in front. A run that has diverged, or done enough updates, rests as it is."""

    runner: RunnerState
    stop_at: jax.Array  # int32, updates that are enough
    diverged: jax.Array  # int32, update (from 1) that was not finite, of which nothing is kept; 0 if there was none

    @property
    def learner(self) -> LearnerState:
        """What learns."""
        return self.runner.learner


def grid(hp: Hyperparams, seeds: Sequence[int], **axes: Sequence[float]) -> tuple[Hyperparams, np.ndarray]:
    """Every combination of the axes' values with every seed, the seeds changing fastest: R runs.

    Args:
      hp: what is not swept.
      seeds: in [0, 2**32).
      axes: names of hyperparameters, each with the values to try.

    Returns:
      Hyperparams with leaves [R] float32, and seeds [R] uint32.

    Raises:
      ConfigError: a value or a seed out of range, a combination that contradicts itself, an axis that is empty or
        mixes None with numbers.
    """
    hp, seeds = hp.plain(), [whole(seed) for seed in seeds]
    axes = {name: [plain(value) for value in values] for name, values in axes.items()}
    for name, values in {**axes, "seeds": seeds}.items():
        if len(values) == 0:
            raise ConfigError(f"{name} has no value; give at least one.")
        if 0 < sum(value is None for value in values) < len(values):
            raise ConfigError(f"{name} is None in some runs and a number in others, two programs; split them.")
    unknown = [name for name in axes if name not in vars(hp)]
    if unknown:
        raise ConfigError(
            f"{unknown[0]} is no hyperparameter: unknown, or compiled in, which takes a trainer for each."
        )
    validate_seeds(seeds, f"seeds = {seeds} are not all different; the same run twice says nothing.")
    points = [dataclasses.replace(hp, **dict(zip(axes, values, strict=True))) for values in product(*axes.values())]
    for point in points:
        validate_hyperparams(point)
    hps = jax.tree.map(lambda *values: np.repeat(np.array(values, np.float32), len(seeds)), *points)
    return hps, np.tile(np.array(seeds, np.uint32), len(points))


def make_runs(
    trainer: Trainer,
    hps: Hyperparams,
    seeds: jax.typing.ArrayLike,
    stop_at: jax.typing.ArrayLike = _NEVER,
    layout: Layout | None = None,
) -> Runs:
    """The first states of R runs, each that of `trainer.init(jax.random.key(seed), hp)`.

    Args:
      trainer: of one run.
      hps: leaves [R].
      seeds: [R].
      stop_at: updates after which a run rests, one number or [R].
      layout: by default `layout_for(R)`.

    Raises:
      ConfigError: hyperparameters and seeds that are not of equally many runs, or out of range.
    """
    check_runs(hps, seeds)
    return _make_runs(trainer, hps, seeds, stop_at, layout)


@partial(jax.jit, static_argnames=("trainer", "layout"))
def _make_runs(
    trainer: Trainer,
    hps: Hyperparams,
    seeds: jax.typing.ArrayLike,
    stop_at: jax.typing.ArrayLike,
    layout: Layout | None,
) -> Runs:
    seeds = jnp.asarray(seeds, jnp.uint32)
    layout = layout or layout_for(len(seeds))

    def make(hp: Hyperparams, seed: jax.Array, stop_at: jax.Array) -> Runs:
        return Runs(trainer.init(jax.random.key(seed), hp), stop_at, jnp.zeros((), jnp.int32))

    stop_at = jnp.broadcast_to(jnp.asarray(stop_at, jnp.int32), seeds.shape)
    return layout.over_runs(make)(hps, seeds, stop_at)


@partial(jax.jit, static_argnames=("trainer", "num_updates", "layout"), donate_argnames="runs")
def advance_runs(
    trainer: Trainer, hps: Hyperparams, runs: Runs, num_updates: int, layout: Layout | None = None
) -> tuple[Runs, Metrics]:
    """`num_updates` (static) updates of every run that does not rest; the memory of `runs` is given away.

    Returns:
      The runs, and metrics [R, num_updates]: `no_value()` and 0 where a run rests.
    """
    layout = layout or layout_for(len(runs.stop_at))

    def advance(hp: Hyperparams, run: Runs) -> tuple[Runs, Metrics]:
        return jax.lax.scan(lambda run, _: _update(trainer, hp, run), run, length=whole(num_updates))

    return layout.over_runs(advance)(hps, runs)


def _update(trainer: Trainer, hp: Hyperparams, run: Runs) -> tuple[Runs, Metrics]:
    """One update of one run."""
    resting = (run.diverged > 0) | (run.runner.updates >= run.stop_at)

    def work(run: Runs) -> tuple[Runs, Metrics]:
        runner, metrics = trainer.update(hp, run.runner)
        diverged = jnp.where(metrics["nonfinite"] != 0, runner.updates, 0)
        return Runs(keep_if_finite(metrics, run.runner, runner), run.stop_at, diverged), metrics

    def rest(run: Runs) -> tuple[Runs, Metrics]:
        _, metrics = jax.eval_shape(work, run)
        return run, jax.tree.map(_nothing, metrics)

    return jax.lax.cond(resting, rest, work, run)


def _nothing(x: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.full(x.shape, no_value() if jnp.issubdtype(x.dtype, jnp.floating) else 0, x.dtype)
