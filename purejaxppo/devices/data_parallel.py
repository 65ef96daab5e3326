"""Data parallelism: one run over several devices, each of which holds some of the run's shards.

The result is that of one device but for the order of sums: random numbers, shuffles and statistics are the same. The
first update therefore agrees up to rounding, and the difference grows with further updates. Bitwise identical results
take the same number of devices.

Environments and their rows are sharded, everything else is replicated. No row travels: devices exchange what `Shards`
sums. For an algorithm of gradient steps that is one flat vector per step and at most three per update.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from purejaxppo.algorithms import make_algorithm
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.config.validate import validate_config
from purejaxppo.core.check_env import check_step
from purejaxppo.core.shards import Shards
from purejaxppo.core.types import Batch, Metrics, Params, RunnerState, Trainer, VecEnv
from purejaxppo.devices import processes, selection
from purejaxppo.devices.cpu import num_devices_for
from purejaxppo.envs.registry import make_env
from purejaxppo.errors import ConfigError, EnvError
from purejaxppo.policies.registry import make_policy
from purejaxppo.train import make_trainer, trainer_from_config

_ENVS = "envs"

# Rows that a device differentiates at a time. 2048 x 32 (8,192 rows per device and minibatch) trained 1.18 times as
# fast in pieces of 512 rows as in one (1.13 in pieces of 1,024, 1.08 of 2,048); 64 x 128, with 1,024 rows, 1.03
# times.
ROWS_PER_PIECE = 512


# Rows of a minibatch from which a further accelerator pays. On an H100 a gradient step of 65,536 rows takes 0.16 ms for
# its bytes and 0.08 for its launches, which do not become fewer (docs/scaling.md). A model: it was not run on several.
ROWS_PER_ACCELERATOR = 2**15


def devices_for(config: TrainConfig, before: int | None = None) -> list[jax.Device]:
    """Returns the devices to train a single run on: those that were chosen, by default as many as have enough to do.

    Args:
      config: of the run.
      before: how many it was trained on, if it is resumed: on as many its results stay bitwise the same.
    """
    there = selection.devices()
    if selection.were_chosen() or processes.number() > 1:
        return there
    if before and before <= len(there) and config.shard_count % before == 0:
        return there[:before]
    rows = None if there[0].platform == "cpu" else ROWS_PER_ACCELERATOR
    return there[: num_devices_for(config, len(there), rows)]


def spread_trainer(
    config: TrainConfig, env: VecEnv | None = None, devices: Sequence[jax.Device] | None = None
) -> Trainer:
    """Returns the trainer of `trainer_from_config`, data-parallel over `devices`, by default `devices_for(config)`.

    It has to be jitted, and cannot be vmapped.

    Raises:
      ConfigError: settings from which no trainer can be built, or devices that cannot share the shards equally.
      EnvError: an environment from which none can be built, or one that cannot be stepped in parts.
    """
    validate_config(config)
    on = devices_for(config) if devices is None else list(devices)
    if on == selection.devices()[:1]:
        return trainer_from_config(config, env)
    if not on or len(set(on)) < len(on):
        raise ConfigError("devices has to hold at least one device, and none of them twice, as jax.devices()[:2] does.")
    if config.shard_count % len(on):
        raise ConfigError(_not_shared(config, len(on)))
    return _trainer_on(mesh_of(on), config, env)


def _not_shared(config: TrainConfig, number: int) -> str:
    """Returns the error for devices that cannot share the shards of a run, with the nearest number that can."""
    shards = config.shard_count
    fewer = max(n for n in range(1, number) if shards % n == 0)
    more = next((n for n in range(number, config.num_envs + 1) if n % number == 0 and config.num_envs % n == 0), None)
    rather = f", or --num-shards {more}, with which it is another run" if more else ""
    return f"{number} devices cannot share num_shards = {shards} equally; use {fewer} of them{rather}."


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    """Returns the mesh of the devices, whose one axis is that of the environments."""
    return Mesh(np.array(devices), (_ENVS,))


def _trainer_on(mesh: Mesh, config: TrainConfig, env: VecEnv | None) -> Trainer:
    # An accelerator has no such cache, and takes all rows at once.
    in_pieces = _by_pieces if mesh.devices.flat[0].platform == "cpu" else lambda f: f
    shards = Shards(config.shard_count, mesh.size, lambda: jax.lax.axis_index(_ENVS), _all_sum, in_pieces)
    env = env or make_env(config)
    policy = make_policy(config, env)
    algorithm = make_algorithm(config, policy, shards)
    if algorithm.shards is None:  # a plugin's, which would learn something else on each of several devices
        if processes.number() > 1:
            raise ConfigError(f"algorithm {config.algorithm} takes no shards, so one process has to train it.")
        return trainer_from_config(config, env)
    _check_rows(env, mesh.size)
    trainer = make_trainer(config, env, policy, algorithm)

    def shardings(runner: RunnerState) -> RunnerState:
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), partition_specs(runner))

    def update(hp: Hyperparams, runner: RunnerState) -> tuple[RunnerState, Metrics]:
        specs, everywhere = partition_specs(runner), PartitionSpec()
        # check_vma=False, as JAX does not infer that parameters which follow from sums are replicated.
        on_mesh = jax.shard_map(
            trainer.update, mesh=mesh, in_specs=(everywhere, specs), out_specs=(specs, everywhere), check_vma=False
        )
        return on_mesh(hp, runner)

    def init(key: jax.Array, hp: Hyperparams) -> RunnerState:
        runner = trainer.init(key, hp)  # as on one device, so that it begins with the same bits
        return jax.lax.with_sharding_constraint(runner, shardings(runner))

    return Trainer(init, update, place=lambda runner: jax.tree.map(processes.place, runner, shardings(runner)))


def partition_specs(runner: RunnerState) -> RunnerState:
    """Returns how each leaf is sharded: what belongs to environments along these, everything else is replicated."""

    def along_envs(tree: Any) -> Any:
        return jax.tree.map(lambda _: PartitionSpec(_ENVS), tree)

    # The statistics of a normaliser are those of all environments; only the running returns belong to some of them.
    replicated = jax.tree.map(lambda _: PartitionSpec(), runner)
    return replicated._replace(
        env_state=along_envs(runner.env_state),
        obs=along_envs(runner.obs),
        memory=along_envs(runner.memory),
        episodes=along_envs(runner.episodes),
        env_ids=PartitionSpec(_ENVS),
        normalizer=replicated.normalizer._replace(discounted=along_envs(runner.normalizer.discounted)),
    )


def _check_rows(env: VecEnv, devices: int) -> None:
    """Raises EnvError unless the environments can be stepped in `devices` parts, each with its rows of the state."""
    # Shapes alone: nothing is reset.
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), env.num_envs))
    state, _ = jax.eval_shape(env.reset, keys)
    shared = [x.shape for x in jax.tree.leaves(state) if x.shape[:1] != (env.num_envs,)]
    if shared:
        raise EnvError(
            f"the environment's state has a leaf of shape {list(shared[0])}, which does not begin with num_envs = "
            f"{env.num_envs}; give each environment a row of its own, or train on one device (--devices 1)."
        )
    # The rows that a device will see. An environment may step any number of them, but only if it asks the keys for it.
    part = env._replace(num_envs=env.num_envs // devices)
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((part.num_envs, *x.shape[1:]), x.dtype), state)
    try:
        check_step(part, rows)
    except EnvError as error:
        raise EnvError(
            f"the environment cannot step {part.num_envs} of its {env.num_envs} copies on a device of their own: "
            f"{error} Take their number from the keys, or train on one device (--devices 1)."
        ) from error


def _by_pieces(f: Callable[..., Any]) -> Callable[..., Any]:
    """Returns f, which computes means over rows, as the mean over pieces, as many rows as fit into a core's cache."""

    def mean_of_pieces(params: Params, rows: Batch) -> Any:
        sequences = len(rows.advantage)  # or rows
        number = pieces_of(sequences, max(1, ROWS_PER_PIECE * sequences // rows.advantage.size))
        if number == 1:
            return f(params, rows)
        pieces = jax.tree.map(lambda x: x.reshape(number, -1, *x.shape[1:]), rows)
        # A scan that adds up the pieces' results, as in gradient accumulation: one piece at a time stays in the cache.
        # It starts from zeros of their shape.
        shape = jax.eval_shape(f, params, jax.tree.map(lambda x: x[0], pieces))

        def add(total: Any, piece: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, f(params, piece)), None

        total, _ = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape), pieces)
        return jax.tree.map(lambda x: x / number, total)

    return mean_of_pieces


def _all_sum(tree: Any) -> Any:
    """Returns the sum over the devices, by one all-reduce of a flat vector.

    Most of the cost of a collective is that devices wait for each other, so one for all leaves beats one per leaf.
    """
    flat, unravel = ravel_pytree(tree)  # mixed types are promoted, and cast back afterwards
    return unravel(jax.lax.psum(flat, _ENVS))


def pieces_of(rows: int, most: int = ROWS_PER_PIECE) -> int:
    """Returns the number of equal pieces to cut `rows` rows into.

    Pieces have between half of `most` and all of it; if no such number divides the rows, there is one piece.
    """
    numbers = range(-(-rows // most), 2 * rows // most + 1)
    return next((number for number in numbers if rows % number == 0), 1)
