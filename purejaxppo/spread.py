"""One run over several CPU devices: each has a share of the environments, and of every minibatch's rows.

What is computed stays the same but for the order of sums: random numbers, shuffles and statistics are those of one
device.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from purejaxppo.algorithms import make_algorithm
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.envs import from_gymnax
from purejaxppo.networks import make_network
from purejaxppo.train import make_trainer, trainer_from_config
from purejaxppo.tuning import shares
from purejaxppo.types import Algorithm, Apply, Batch, LearnerState, Metrics, Params, RunnerState, Trainer, VecEnv
from purejaxppo.validation import validate_config

_ENVS = "envs"


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
    return _placed(make_trainer(config, env, network, spread_algorithm(config, network.apply, mesh)), config, mesh)


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    """Of one axis, the environments."""
    return Mesh(np.array(devices), (_ENVS,))


def spread_algorithm(config: TrainConfig, apply: Apply, mesh: Mesh) -> Algorithm:
    """The update rule of `config`, each device differentiating its share of every minibatch.

    Every device gets all rows, once per update: which of them a minibatch takes is then nobody else's business.
    """
    algorithm = make_algorithm(config, apply, partial(_split_rows, mesh))

    def update(key: jax.Array, hp: Hyperparams, learner: LearnerState, batch: Batch) -> tuple[LearnerState, Metrics]:
        batch = jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec()))
        return algorithm.update(key, hp, learner, batch)

    return algorithm._replace(update=update)


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


def _split_rows(mesh: Mesh, f: Callable[[Params, Batch], Any]) -> Callable[[Params, Batch], Any]:
    """f over each device's share of the rows, averaged in one exchange; the shares being equal, that is f of all."""

    def of_share(params: Params, rows: Batch) -> Any:
        share = jax.lax.axis_index(_ENVS)
        size = rows.advantage.shape[0] // mesh.size
        rows = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, share * size, size), rows)
        flat, unravel = ravel_pytree(f(params, rows))
        return unravel(jax.lax.pmean(flat, _ENVS))

    return jax.shard_map(of_share, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
