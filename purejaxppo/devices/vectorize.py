"""Many runs as one compiled program, over seeds and hyperparameters; a run that is done is frozen.

On an accelerator the runs of a device are vmapped, on a CPU mapped one by one with `jax.lax.map`. Over several devices
they are sharded: each device computes runs of its own, and no collective is needed.
"""

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
from purejaxppo.core.check_hyperparams import check_runs
from purejaxppo.core.nonfinite import keep_if_finite, no_value
from purejaxppo.core.types import LearnerState, Metrics, RunnerState, Trainer
from purejaxppo.devices import selection
from purejaxppo.errors import ConfigError

_NEVER = 2**31 - 1
# Maps f(x, ...) to a function over the leading axis of x, ..., as `jax.vmap` does.
Batching = Callable[[Callable[..., Any]], Callable[..., Any]]
_RUNS = PartitionSpec("runs")


def one_by_one(f: Callable[..., Any]) -> Callable[..., Any]:
    """Returns f over the leading axis of its arguments, as `jax.vmap` does, but by `jax.lax.map`: one run at a time."""
    return lambda *xs: jax.lax.map(lambda x: f(*x), xs)


class Layout(NamedTuple):
    """How R runs are mapped over devices; R is a multiple of the number of devices."""

    mesh: Mesh  # with one axis, "runs"
    batching: Batching  # over the runs of one device

    @property
    def sharding(self) -> NamedSharding:
        """Returns the sharding of every array [R, ...]."""
        return NamedSharding(self.mesh, _RUNS)

    def over_runs(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """Returns f over the leading axis R of its arguments' leaves, sharded over the devices, without collectives."""
        return jax.shard_map(self.batching(f), mesh=self.mesh, in_specs=_RUNS, out_specs=_RUNS, check_vma=False)


def layout_for(num_runs: int, exact: bool = False, devices: Sequence[jax.Device] | None = None) -> Layout:
    """Returns the fastest layout that is safe: `jax.vmap` on an accelerator, `one_by_one` on CPU devices.

    On a CPU, `jax.lax.map` keeps one run's arrays in the cache, and jaxlib can deadlock in a vmapped loop on two cores.

    Args:
      num_runs: R. The largest number of devices that divides it is used, the same of each process.
      exact: use `one_by_one` on the first device alone, where each run is bitwise identical to a single run. A program
        for several devices passes through XLA's partitioner, after which operations of a run may be fused differently,
        and a product and a sum be rounded once instead of twice.
      devices: to choose from; by default those that were chosen, or all (`devices/selection.py`).

    Raises:
      ConfigError: a process would have no run.
    """
    devices = devices or selection.devices()
    batching = one_by_one if exact or devices[0].platform == "cpu" else jax.vmap
    own = _by_process(devices)
    if exact and len(own) > 1:
        raise ConfigError(f"{len(own)} processes, but exact = True takes one device; train it in one process.")
    most = 1 if exact else len(own[0])
    each = max((n for n in range(1, most + 1) if num_runs % (n * len(own)) == 0), default=0)
    if not each:
        raise ConfigError(
            f"{len(own)} processes cannot share batches of {num_runs} runs equally, as this sweep has; train it in one."
        )
    return Layout(Mesh(np.array([device for part in own for device in part[:each]]), ("runs",)), batching)


def usable_devices() -> int:
    """Returns how many devices many runs can be sharded over: the same number of each process."""
    return sum(map(len, _by_process(selection.devices())))


def _by_process(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """Returns the devices of each process, as many of each as the one with the fewest has."""
    indices = sorted({device.process_index for device in devices})
    own = [[device for device in devices if device.process_index == index] for index in indices]
    return [part[: min(map(len, own))] for part in own]


class Runs(NamedTuple):
    """R runs; every leaf is [R, ...]. Diverged or finished runs are frozen: their state no longer changes."""

    runner: RunnerState
    stop_at: jax.Array  # int32, updates after which a run is finished
    diverged: jax.Array  # int32, update (from 1) that was not finite, whose result was discarded; 0 if there was none

    @property
    def learner(self) -> LearnerState:
        """Parameters, optimizer state and the algorithm's own state of the R runs."""
        return self.runner.learner


def grid(hp: Hyperparams, seeds: Sequence[int], **axes: Sequence[float]) -> tuple[Hyperparams, np.ndarray]:
    """Returns the hyperparameters and seeds of R runs: all combinations of the axes' values with all seeds.

    Seeds change fastest.

    Args:
      hp: the values of the hyperparameters that are not swept.
      seeds: in [0, 2**32).
      axes: names of hyperparameters, each with the values to try.

    Returns:
      Hyperparams with leaves [R] float32, and seeds [R] uint32.

    Raises:
      ConfigError: a value or a seed out of range, a combination whose values contradict each other, or an axis that is
        empty, unknown, or mixes None with numbers.
    """
    hp, seeds = hp.plain(), [whole(seed) for seed in seeds]
    axes = {name: [plain(value) for value in values] for name, values in axes.items()}
    for name, values in {**axes, "seeds": seeds}.items():
        if len(values) == 0:
            raise ConfigError(f"{name} has no value; give at least one.")
        if 0 < sum(value is None for value in values) < len(values):
            raise ConfigError(
                f"{name} is None in some runs and a number in others, which takes two programs; call grid for each."
            )
    unknown = [name for name in axes if name not in vars(hp)]
    if unknown:
        raise ConfigError(
            f"{unknown[0]} is no field of Hyperparams; a field of TrainConfig is compiled in, and takes a trainer for "
            f"each value."
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
    """Returns the initial states of R runs, each of them `trainer.init(jax.random.key(seed), hp)`.

    Args:
      trainer: of one run.
      hps: leaves [R].
      seeds: [R].
      stop_at: updates after which a run is finished, one number or [R].
      layout: `layout_for(R)` by default.

    Raises:
      ConfigError: hyperparameters or seeds out of range, or with different numbers of runs.
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
    """Advances every run that is not frozen by `num_updates` (static) updates. The buffers of `runs` are donated.

    Returns:
      The runs, and metrics [R, num_updates]; for updates of a frozen run, floats are `no_value()` and integers 0.
    """
    layout = layout or layout_for(len(runs.stop_at))

    def advance(hp: Hyperparams, run: Runs) -> tuple[Runs, Metrics]:
        return jax.lax.scan(lambda run, _: _update(trainer, hp, run), run, length=whole(num_updates))

    return layout.over_runs(advance)(hps, runs)


def _update(trainer: Trainer, hp: Hyperparams, run: Runs) -> tuple[Runs, Metrics]:
    """Advances one run by one update, unless it is frozen; a diverging run is frozen in the state before the update."""
    frozen = (run.diverged > 0) | (run.runner.updates >= run.stop_at)
    update = jax.jit(trainer.update, inline=True)  # both branches share one tracing, and the program has no call

    def advance_run(run: Runs) -> tuple[Runs, Metrics]:
        runner, metrics = update(hp, run.runner)
        diverged = jnp.where(metrics["nonfinite"] != 0, runner.updates, 0)
        return Runs(keep_if_finite(metrics, run.runner, runner), run.stop_at, diverged), metrics

    def keep_run(run: Runs) -> tuple[Runs, Metrics]:
        _, metrics = jax.eval_shape(update, hp, run.runner)
        return run, jax.tree.map(_undefined, metrics)

    # Under `jax.lax.map` only the taken branch is executed, so a frozen run costs nothing. Under `vmap` both branches
    # are computed, and the results selected.
    return jax.lax.cond(frozen, keep_run, advance_run, run)


def _undefined(x: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns a metric of the given shape for an update that was not done."""
    return jnp.full(x.shape, no_value() if jnp.issubdtype(x.dtype, jnp.floating) else 0, x.dtype)
