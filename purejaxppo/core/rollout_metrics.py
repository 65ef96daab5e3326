"""What is measured of a rollout: for the normalisers, for the metrics, and whether its numbers are finite.

Each device measures its own shards; `Shards.gather` then tells all of them about all shards, in one exchange.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.config import Hyperparams
from purejaxppo.core.diagnostics import explained_variance
from purejaxppo.core.nonfinite import marks, no_value
from purejaxppo.core.normalizer import Normalizer, discounted_returns
from purejaxppo.core.shards import Shards
from purejaxppo.core.sums import Moments, merged, moments
from purejaxppo.core.types import Batch, Metrics, Transition


class RolloutStats(NamedTuple):
    """What is measured of each shard's part of a rollout, leaves [S]."""

    sums: Metrics  # of what the environments reported, and of the episodes that ended
    obs: Moments | None
    returns: Moments | None  # of discounted returns
    target: Moments
    error: Moments  # of target - value
    obs_marks: jax.Array  # 0, or NaN where a number is not finite
    reward_marks: jax.Array


def measure_rollout(
    hp: Hyperparams,
    shards: Shards,
    normalizer: Normalizer,
    transition: Transition,
    last_obs: jax.Array,
    batch: Batch,
    sums: Metrics,
) -> tuple[RolloutStats, jax.Array | None]:
    """Returns what is measured of this device's shards, and the discounted returns to go on from."""
    returns, discounted = None, normalizer.discounted
    if discounted is not None:
        done = transition.terminated | transition.truncated
        all_returns, discounted = discounted_returns(transition.reward, done, discounted, hp.gamma)
        returns = moments(shards.by_shard(all_returns.T.ravel()))
    obs = shards.by_shard(transition.obs.swapaxes(0, 1))
    # A terminated step's successor has value 0, whatever the environment returned.
    unread = transition.terminated.reshape(transition.terminated.shape + (1,) * (last_obs.ndim - 1))
    successors = shards.by_shard(jnp.where(unread, 0, transition.next_obs).swapaxes(0, 1))
    return RolloutStats(
        sums=jax.tree.map(lambda x: jnp.sum(shards.by_shard(x), axis=1), sums),
        obs=None if normalizer.obs is None else moments(obs.reshape(shards.local, -1, *last_obs.shape[1:])),
        returns=returns,
        target=moments(shards.by_shard(batch.target)),
        error=moments(shards.by_shard(batch.target - batch.value)),
        obs_marks=marks(obs) + marks(shards.by_shard(last_obs)) + marks(successors),
        reward_marks=marks(shards.by_shard(transition.reward.T)),
    ), discounted


def rollout_metrics(hp: Hyperparams, stats: RolloutStats) -> Metrics:
    """Returns the metrics of a rollout.

    They are the sums of what the environments reported; the number, mean return and mean length of the episodes that
    ended (`no_value()` if none did); the critic's fit; and the learning rate.
    """
    sums = jax.tree.map(jnp.sum, stats.sums)
    count = sums["episode/count"]

    def mean(total: jax.Array) -> jax.Array:
        return jnp.where(count > 0, total / jnp.maximum(count, 1.0), no_value())

    return {
        **sums,
        "episode/return": mean(sums["episode/return"]),
        "episode/length": mean(sums["episode/length"]),
        "explained_variance": explained_variance(merged(stats.error), merged(stats.target)),
        "learning_rate": jnp.asarray(hp.learning_rate, jnp.float32),
    }
