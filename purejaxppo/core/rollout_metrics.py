"""What is measured of a rollout: for the normalisers, for the metrics, and whether its numbers are finite.

Each device measures its own shards; `Shards.gather` then tells all of them about all shards, in one exchange.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.config import Hyperparams
from purejaxppo.core.nonfinite import marks, no_value
from purejaxppo.core.normalizer import Normalizer, discounted_returns
from purejaxppo.core.observations import standardized_part
from purejaxppo.core.shards import Shards
from purejaxppo.core.sums import Moments, moments
from purejaxppo.core.types import Metrics, Observation, Trajectory


class RolloutStats(NamedTuple):
    """What is measured of each shard's part of a rollout, leaves [S]."""

    sums: Metrics  # over the episodes that ended: their number, and the sums of what is reported of them
    step_means: Metrics  # over all steps, of what the environments reported
    obs: Any  # Moments in the structure of `Normalizer.obs`
    returns: Moments | None  # of discounted returns
    obs_marks: jax.Array  # 0, or NaN where a number is not finite
    reward_marks: jax.Array


def measure_rollout(
    hp: Hyperparams,
    shards: Shards,
    normalizer: Normalizer,
    trajectory: Trajectory,
    last_obs: Observation,
    ended: Metrics,
) -> tuple[RolloutStats, jax.Array | None]:
    """Returns what is measured of this device's shards, and the discounted returns to go on from.

    Args:
      hp: with the discount of the returns.
      shards: of the run.
      normalizer: before the rollout.
      trajectory: as the environments returned it.
      last_obs: [E, ...] what follows on it.
      ended: sums over the episodes that ended, leaves [E], from `ended_episodes`.
    """
    returns, discounted = None, normalizer.discounted
    done = trajectory.terminated | trajectory.truncated
    if discounted is not None:
        all_returns, discounted = discounted_returns(trajectory.reward, done, discounted, hp.gamma)
        returns = moments(shards.by_shard(all_returns.T.ravel()))

    def by_shard(x: jax.Array) -> jax.Array:  # [T, E, ...] -> [S / D, E / S, T, ...]
        return shards.by_shard(x.swapaxes(0, 1))

    def rows(x: jax.Array) -> Moments:
        return moments(by_shard(x).reshape(shards.local, -1, *x.shape[2:]))

    def finite(obs: jax.Array, last: jax.Array, successors: jax.Array) -> jax.Array:
        # A terminated step's successor has value 0, whatever the environment returned.
        unread = trajectory.terminated.reshape(trajectory.terminated.shape + (1,) * (last.ndim - 1))
        return marks(by_shard(obs)) + marks(shards.by_shard(last)) + marks(by_shard(jnp.where(unread, 0, successors)))

    obs_marks = jax.tree.map(finite, trajectory.obs, last_obs, trajectory.next_obs)
    info = jax.tree.map(lambda x: x.astype(jnp.float32), trajectory.info)
    at_the_end = {f"episode/{name}": jnp.sum(jnp.where(done, x, 0), axis=0) for name, x in info.items()}
    return RolloutStats(
        sums=jax.tree.map(lambda x: jnp.sum(shards.by_shard(x), axis=1), {**ended, **at_the_end}),
        step_means={f"step/{name}": jnp.mean(by_shard(x), axis=(1, 2)) for name, x in info.items()},
        obs=None if normalizer.obs is None else jax.tree.map(rows, standardized_part(trajectory.obs)),
        returns=returns,
        obs_marks=jnp.sum(jnp.stack(jax.tree.leaves(obs_marks)), axis=0),
        reward_marks=marks(shards.by_shard(trajectory.reward.T)),
    ), discounted


def rollout_metrics(hp: Hyperparams, stats: RolloutStats) -> Metrics:
    """Returns the metrics of a rollout.

    They are the number, mean return and mean length of the episodes that ended (`no_value()` if none did); the learning
    rate; and of each entry of the environments' `info` the mean over all steps, `step/<name>`, and the mean over the
    episodes that ended of its value at their last step, `episode/<name>`.
    """
    sums = jax.tree.map(jnp.sum, stats.sums)
    count = sums.pop("episode/count")

    def mean(total: jax.Array) -> jax.Array:
        return jnp.where(count > 0, total / jnp.maximum(count, 1.0), no_value())

    return {
        **jax.tree.map(mean, sums),
        **jax.tree.map(jnp.mean, stats.step_means),
        "episode/count": count,
        "learning_rate": jnp.asarray(hp.learning_rate, jnp.float32),
    }
