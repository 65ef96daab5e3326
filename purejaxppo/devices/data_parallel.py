"""Data parallelism: one run over several CPU devices, with the environments and every minibatch's rows sharded.

The result is that of one device but for the order of sums: random numbers, shuffles and statistics are the same. The
first update therefore agrees up to rounding, and the difference grows with further updates (docs/architecture.md has
figures). Bitwise identical results take the same number of devices.

An update is laid out as follows.

1. The rollout's arrays [T, E, ...] are sharded along E. XLA's partitioner finds no collective in it.
2. The batch's rows are in environment-major order, so each device has a contiguous block of them. One all-gather
   (`gather_rows`) replicates the batch, so that every device can take the rows of any minibatch without communication.
3. Per gradient step, each device differentiates its shard of the minibatch, and one all-reduce averages the gradients
   (`split_rows`). Parameters and optimizer state are replicated, and every device updates its own copy.
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
from purejaxppo.core.types import Batch, Metrics, OfRows, Params, RunnerState, Split, Trainer, VecEnv
from purejaxppo.devices.cpu import num_devices_for
from purejaxppo.envs.gymnax_adapter import from_gymnax
from purejaxppo.policies.networks import make_network
from purejaxppo.train import make_trainer, trainer_from_config

_ENVS = "envs"
_WORD_BYTES = 4

# Rows that a device differentiates at a time. 2048 x 32 (8,192 rows per device and minibatch) trained 1.18 times as
# fast in blocks of 512 rows as in one piece (1.13 in blocks of 1,024, 1.08 of 2,048); 64 x 128, with 1,024 rows, 1.03
# times.
ROWS_PER_BLOCK = 512


def devices_for(config: TrainConfig) -> list[jax.Device]:
    """Returns the devices to train a single run on: several CPU devices if each has enough rows, else the first one."""
    devices = jax.devices()
    return devices[: num_devices_for(config, len(devices)) if devices[0].platform == "cpu" else 1]


def spread_trainer(config: TrainConfig, env: VecEnv | None = None) -> Trainer:
    """Returns the trainer of `trainer_from_config`, data-parallel over `devices_for(config)`.

    It has to be jitted, and cannot be vmapped.

    Raises ConfigError or EnvError for settings from which no trainer can be built.
    """
    validate_config(config)
    devices = devices_for(config)
    if len(devices) == 1:
        return trainer_from_config(config, env)
    env = env or from_gymnax(config.env, config.num_envs, **dict(config.env_params))
    network = make_network(config, env)
    mesh = mesh_of(devices)
    algorithm = make_algorithm(config, network.apply, split_rows(mesh))
    return _with_shardings(make_trainer(config, env, network, algorithm, gather_rows(mesh)), config, mesh)


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    """Returns the mesh of the devices, whose one axis is that of the environments."""
    return Mesh(np.array(devices), (_ENVS,))


def env_shardings(num_envs: int, mesh: Mesh, env_state: Any) -> Any:
    """Returns the sharding of every leaf: leaves [num_envs, ...] are sharded along the environments, others replicated.

    Any leaf with leading size num_envs is sharded, statistics included; this affects placement only.
    """
    replicated, sharded = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(_ENVS))
    return jax.tree.map(lambda x: sharded if x.shape[:1] == (num_envs,) else replicated, env_state)


def _with_shardings(trainer: Trainer, config: TrainConfig, mesh: Mesh) -> Trainer:
    """Returns the trainer with its state constrained: environments sharded, everything else replicated."""

    def shardings(runner: RunnerState) -> RunnerState:
        of_envs = {"env_state": runner.env_state, "obs": runner.obs, "env_ids": runner.env_ids}
        of_envs |= {"normalizer": runner.normalizer}
        replicated = NamedSharding(mesh, PartitionSpec())
        return jax.tree.map(lambda _: replicated, runner)._replace(**env_shardings(config.num_envs, mesh, of_envs))

    def constrain(runner: RunnerState) -> RunnerState:
        return jax.lax.with_sharding_constraint(runner, shardings(runner))

    # Constrained on the way in and on the way out: the partitioner would otherwise be free to choose another sharding
    # for the result, and the next update would start from that one.
    def update(hp: Hyperparams, runner: RunnerState) -> tuple[RunnerState, Metrics]:
        runner, metrics = trainer.update(hp, constrain(runner))
        return constrain(runner), metrics

    return Trainer(
        init=lambda key, hp: constrain(trainer.init(key, hp)),
        update=update,
        place=lambda runner: jax.device_put(runner, shardings(runner)),
    )


def split_rows(mesh: Mesh) -> Split:
    """Returns a `Split` in which each device computes a function on its shard of the rows [N, ...].

    The rows are replicated, and N has to be a multiple of the number of devices.
    """

    def sharded(f: OfRows, combine: Callable[[Any], Any]) -> OfRows:
        def on_shard(params: Params, rows: Batch) -> Any:
            size, rest = divmod(_count(rows), mesh.size)
            if rest:
                raise ValueError(f"{_count(rows)} rows cannot be sharded equally over {mesh.size} devices.")
            # The rows are replicated: each device slices its shard out of them by its index in the mesh.
            start = jax.lax.axis_index(_ENVS) * size
            return combine(f(params, jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), rows)))

        # check_vma=False, as JAX does not infer that the result of an all-gather is replicated.
        return jax.shard_map(on_shard, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)

    # The shards are of equal size, so the mean of their means is the mean over all rows.
    return Split(mean=lambda f: sharded(_by_blocks(f), _all_mean), each=lambda f: sharded(f, _all_gather))


def gather_rows(mesh: Mesh) -> Callable[[Batch], Batch]:
    """Returns a function that replicates the batch: from one block of rows per device to all rows on every device.

    Afterwards minibatches can be gathered without communication.
    """
    rows = PartitionSpec(_ENVS)
    return jax.shard_map(_all_gather, mesh=mesh, in_specs=(rows,), out_specs=PartitionSpec(), check_vma=False)


def _by_blocks(f: OfRows) -> OfRows:
    """Returns f, which computes means over rows, as the mean over blocks of rows that fit into a core's cache."""

    def mean_of_blocks(params: Params, rows: Batch) -> Any:
        number = blocks(_count(rows))
        if number == 1:
            return f(params, rows)
        pieces = jax.tree.map(lambda x: x.reshape(number, -1, *x.shape[1:]), rows)
        # A scan that adds up the blocks' results, as in gradient accumulation. It starts from zeros of their shape.
        shape = jax.eval_shape(f, params, jax.tree.map(lambda x: x[0], pieces))

        def add(total: Any, block: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, f(params, block)), None

        total, _ = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape), pieces)
        return jax.tree.map(lambda x: x / number, total)

    return mean_of_blocks


def _count(rows: Batch) -> int:
    return rows.advantage.shape[0]


def _all_mean(tree: Any) -> Any:
    """Returns the mean over the devices, by one all-reduce of a flat vector.

    Most of the cost of a collective is that devices wait for each other, so one for all leaves beats one per leaf.
    """
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.lax.pmean(flat, _ENVS))


def _all_gather(tree: Any) -> Any:
    """Returns the leaves [n, ...] of all devices, concatenated to [devices * n, ...].

    Leaves of 32 bits are gathered in one collective, for the reason given in `_all_mean`; others in one each.
    """
    leaves, structure = jax.tree.flatten(tree)
    # Floats and integers of 32 bits are reinterpreted as one type, so that they fit into one flat vector.
    words = {
        i: jax.lax.bitcast_convert_type(x, jnp.uint32) for i, x in enumerate(leaves) if x.dtype.itemsize == _WORD_BYTES
    }
    flat, unravel = ravel_pytree(words)
    gathered = jax.vmap(unravel)(jax.lax.all_gather(flat, _ENVS))  # leaves [devices, n, ...]

    def concatenated(i: int, x: jax.Array) -> jax.Array:
        if i not in gathered:
            return jax.lax.all_gather(x, _ENVS, tiled=True)
        return jax.lax.bitcast_convert_type(gathered[i].reshape(-1, *x.shape[1:]), x.dtype)

    return jax.tree.unflatten(structure, [concatenated(i, x) for i, x in enumerate(leaves)])


def blocks(rows: int) -> int:
    """Returns the number of equal blocks to cut `rows` rows into.

    Blocks have between half of ROWS_PER_BLOCK and all of it; if no such number divides the rows, there is one block.
    """
    numbers = range(-(-rows // ROWS_PER_BLOCK), 2 * rows // ROWS_PER_BLOCK + 1)
    return next((number for number in numbers if rows % number == 0), 1)
