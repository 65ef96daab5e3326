"""One run over several CPU devices: each has a share of the environments, and of every minibatch's rows.

What is computed stays the same but for the order of sums: random numbers, shuffles and statistics are those of one
device.
"""

from collections.abc import Callable
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
from purejaxppo.tuning import ROWS_PER_DEVICE
from purejaxppo.types import Algorithm, Batch, LearnerState, Metrics, Params, RunnerState, Trainer, VecEnv
from purejaxppo.validation import validate_config

_ENVS = "envs"


def spread_over(config: TrainConfig, num_devices: int) -> int:
    """Of so many CPU devices, how many a run is worth spreading over: 1 if each would have too little to do.

    Normalisers need the mean over all environments at each step, for which the devices would wait too often.
    """
    if config.normalize_observation or config.normalize_reward:
        return 1
    rows = config.batch_size // config.num_minibatches
    fit = [
        n for n in range(2, num_devices + 1) if config.num_envs % n == rows % n == 0 and rows // n >= ROWS_PER_DEVICE
    ]
    return max(fit, default=1)


def spread_trainer(config: TrainConfig, env: VecEnv | None = None) -> Trainer:
    """`trainer_from_config`, over as many of JAX's CPU devices as are worth it; to be jitted, not vmapped.

    Raises ConfigError or EnvError for what cannot be built.
    """
    validate_config(config)
    devices = jax.devices()
    number = spread_over(config, len(devices)) if devices[0].platform == "cpu" else 1
    if number == 1:
        return trainer_from_config(config, env)
    env = env or from_gymnax(config.env, config.num_envs, **dict(config.env_params))
    network = make_network(config, env)
    mesh = Mesh(np.array(devices[:number]), (_ENVS,))
    algorithm = make_algorithm(config, network.apply, partial(_split_rows, mesh))
    return _placed(make_trainer(config, env, network, _with_whole_batch(algorithm, mesh)), config.num_envs, mesh)


def _placed(trainer: Trainer, num_envs: int, mesh: Mesh) -> Trainer:
    """Keeps the environments shared out, and everything else on every device."""
    everywhere, shared = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(_ENVS))

    def shardings(runner: RunnerState) -> RunnerState:
        # Statistics that happen to have that length are shared out too, which changes nothing but where they lie.
        of_envs = jax.tree.map(lambda x: shared if x.shape[:1] == (num_envs,) else everywhere, runner.env_state)
        return jax.tree.map(lambda _: everywhere, runner)._replace(env_state=of_envs, obs=shared)

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


def _with_whole_batch(algorithm: Algorithm, mesh: Mesh) -> Algorithm:
    """Gives every device all rows, once per update: which of them a minibatch takes is then nobody else's business."""

    def update(key: jax.Array, hp: Hyperparams, learner: LearnerState, batch: Batch) -> tuple[LearnerState, Metrics]:
        batch = jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec()))
        return algorithm.update(key, hp, learner, batch)

    return algorithm._replace(update=update)


def _split_rows(mesh: Mesh, f: Callable[[Params, Batch], Any]) -> Callable[[Params, Batch], Any]:
    """f over each device's share of the rows, averaged in one exchange; the shares being equal, that is f of all."""

    def of_share(params: Params, rows: Batch) -> Any:
        share = jax.lax.axis_index(_ENVS)
        size = rows.advantage.shape[0] // mesh.size
        rows = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, share * size, size), rows)
        flat, unravel = ravel_pytree(f(params, rows))
        return unravel(jax.lax.pmean(flat, _ENVS))

    return jax.shard_map(of_share, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
