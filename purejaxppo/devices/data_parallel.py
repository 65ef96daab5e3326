"""One run over several CPU devices: each has a share of the environments, and of every minibatch's rows.

What is computed stays the same but for the order of sums: random numbers, shuffles and statistics are those of one
device. The first update therefore agrees to rounding, and later ones ever less (docs/architecture.md has figures); the
same bits again take the same number of devices.
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
from purejaxppo.devices.cpu import shares
from purejaxppo.envs.gymnax_adapter import from_gymnax
from purejaxppo.policies.networks import make_network
from purejaxppo.train import make_trainer, trainer_from_config

_ENVS = "envs"
_WORD_BYTES = 4

# Rows that a CPU device of a spread run differentiates at a time. 2048 x 32 (8,192 rows per device and minibatch)
# trained 1.18 times as fast in blocks of 512 as in one piece (1.13 in blocks of 1,024, 1.08 of 2,048); 64 x 128, with
# 1,024 rows, 1.03 times.
ROWS_PER_BLOCK = 512


def devices_for(config: TrainConfig) -> list[jax.Device]:
    """Where a single run is computed: on several CPU devices if each has enough to do, else on the first device."""
    devices = jax.devices()
    return devices[: shares(config, len(devices)) if devices[0].platform == "cpu" else 1]


def spread_trainer(config: TrainConfig, env: VecEnv | None = None) -> Trainer:
    """`trainer_from_config`, over `devices_for(config)`. Jit it; `vmap` does not go with it.

    Raises ConfigError or EnvError for what cannot be built.
    """
    validate_config(config)
    devices = devices_for(config)
    if len(devices) == 1:
        return trainer_from_config(config, env)
    env = env or from_gymnax(config.env, config.num_envs, **dict(config.env_params))
    network = make_network(config, env)
    mesh = mesh_of(devices)
    algorithm = make_algorithm(config, network.apply, split_rows(mesh))
    return _placed(make_trainer(config, env, network, algorithm, gather_rows(mesh)), config, mesh)


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    """Of one axis, the environments."""
    return Mesh(np.array(devices), (_ENVS,))


def env_shardings(num_envs: int, mesh: Mesh, env_state: Any) -> Any:
    """Arrays with the environments in front are shared out, others are everywhere.

    Statistics that happen to have that length are shared out too, which changes nothing but where they lie.
    """
    everywhere, shared = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(_ENVS))
    return jax.tree.map(lambda x: shared if x.shape[:1] == (num_envs,) else everywhere, env_state)


def _placed(trainer: Trainer, config: TrainConfig, mesh: Mesh) -> Trainer:
    """Keeps the environments shared out, and everything else on every device."""

    def shardings(runner: RunnerState) -> RunnerState:
        env_state, obs = env_shardings(config.num_envs, mesh, (runner.env_state, runner.obs))
        everywhere = NamedSharding(mesh, PartitionSpec())
        return jax.tree.map(lambda _: everywhere, runner)._replace(env_state=env_state, obs=obs)

    def keep(runner: RunnerState) -> RunnerState:
        return jax.lax.with_sharding_constraint(runner, shardings(runner))

    def update(hp: Hyperparams, runner: RunnerState) -> tuple[RunnerState, Metrics]:
        runner, metrics = trainer.update(hp, keep(runner))
        return keep(runner), metrics

    return Trainer(
        init=lambda key, hp: keep(trainer.init(key, hp)),
        update=update,
        place=lambda runner: jax.device_put(runner, shardings(runner)),
    )


def split_rows(mesh: Mesh) -> Split:
    """Each device computes its share of the rows [N, ...], all of which it has; N is a multiple of their number."""

    def shared(f: OfRows, combine: Callable[[Any], Any]) -> OfRows:
        def of_share(params: Params, rows: Batch) -> Any:
            size, rest = divmod(_count(rows), mesh.size)
            if rest:
                raise ValueError(f"{_count(rows)} rows cannot be shared out equally over {mesh.size} devices.")
            start = jax.lax.axis_index(_ENVS) * size
            return combine(f(params, jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), rows)))

        return jax.shard_map(of_share, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)

    # The shares being equal, the mean of their means is that of all.
    return Split(mean=lambda f: shared(_by_blocks(f), _mean), each=lambda f: shared(f, _concatenate))


def gather_rows(mesh: Mesh) -> Callable[[Batch], Batch]:
    """Each device's block of rows, [N / devices, ...], to every device, [N, ...].

    Which of them a minibatch takes is then nobody else's business.
    """
    rows = PartitionSpec(_ENVS)
    return jax.shard_map(_concatenate, mesh=mesh, in_specs=(rows,), out_specs=PartitionSpec(), check_vma=False)


def _by_blocks(f: OfRows) -> OfRows:
    """f, which returns means over rows, as the mean over blocks of rows that fit a core's cache."""

    def mean_of_blocks(params: Params, rows: Batch) -> Any:
        number = blocks(_count(rows))
        if number == 1:
            return f(params, rows)
        pieces = jax.tree.map(lambda x: x.reshape(number, -1, *x.shape[1:]), rows)
        shape = jax.eval_shape(f, params, jax.tree.map(lambda x: x[0], pieces))

        def add(total: Any, block: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, f(params, block)), None

        total, _ = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape), pieces)
        return jax.tree.map(lambda x: x / number, total)

    return mean_of_blocks


def _count(rows: Batch) -> int:
    return rows.advantage.shape[0]


def _mean(tree: Any) -> Any:
    """The mean over the devices, in one exchange, as waiting for each other is what an exchange costs."""
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.lax.pmean(flat, _ENVS))


def _concatenate(tree: Any) -> Any:
    """Leaves [n, ...] of all devices behind one another, [devices * n, ...]; those of 32 bits in one exchange."""
    leaves, structure = jax.tree.flatten(tree)
    words = {
        i: jax.lax.bitcast_convert_type(x, jnp.uint32) for i, x in enumerate(leaves) if x.dtype.itemsize == _WORD_BYTES
    }
    flat, unravel = ravel_pytree(words)
    gathered = jax.vmap(unravel)(jax.lax.all_gather(flat, _ENVS))

    def of_all(i: int, x: jax.Array) -> jax.Array:
        if i not in gathered:
            return jax.lax.all_gather(x, _ENVS, tiled=True)
        return jax.lax.bitcast_convert_type(gathered[i].reshape(-1, *x.shape[1:]), x.dtype)

    return jax.tree.unflatten(structure, [of_all(i, x) for i, x in enumerate(leaves)])


def blocks(rows: int) -> int:
    """The number of equal blocks, of half of ROWS_PER_BLOCK to all of it, in so many rows; 1 if none divides them."""
    numbers = range(-(-rows // ROWS_PER_BLOCK), 2 * rows // ROWS_PER_BLOCK + 1)
    return next((number for number in numbers if rows % number == 0), 1)
