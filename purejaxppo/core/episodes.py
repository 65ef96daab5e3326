"""Returns and lengths of the episodes that ended in a rollout, computed after it.

The loop over steps knows nothing of episodes. For each environment, all that its ended episodes collected is what the
first of them had before the rollout, and every reward up to the last end.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.core.sums import Sum, add, empty_sum


class Episodes(NamedTuple):
    """The running episode of each environment, so far."""

    rewards: Sum  # [E] compensated, so that a long episode's return is as exact as a short one's
    length: jax.Array  # int32 [E], steps


def no_episodes(num_envs: int) -> Episodes:
    """Returns episodes that have just begun."""
    return Episodes(empty_sum((num_envs,)), jnp.zeros(num_envs, jnp.int32))


def ended_episodes(episodes: Episodes, reward: jax.Array, done: jax.Array) -> tuple[Episodes, dict[str, jax.Array]]:
    """Returns the running episodes after a rollout, and sums over the episodes that ended in it, leaves [E].

    Args:
      episodes: running before it.
      reward: [T, E].
      done: bool [T, E], whether the step ended an episode.
    """
    steps = jnp.arange(1, len(reward) + 1, dtype=jnp.int32)[:, None]
    last_end = jnp.max(jnp.where(done, steps, 0), axis=0)  # steps up to the last end; 0 if no episode ended
    ended, before_end = last_end > 0, steps <= last_end[None]
    collected = add(episodes.rewards, jnp.sum(jnp.where(before_end, reward, 0.0), axis=0))
    sums = {
        "episode/return": jnp.where(ended, collected.value, 0.0),
        "episode/length": jnp.where(ended, episodes.length + last_end, 0).astype(jnp.float32),
        "episode/count": jnp.sum(done, axis=0, dtype=jnp.float32),
    }
    rewards, length = jax.tree.map(lambda x: jnp.where(ended, 0, x), (episodes.rewards, episodes.length))
    since = jnp.sum(jnp.where(before_end, 0.0, reward), axis=0)
    return Episodes(add(rewards, since), length + len(reward) - last_end), sums
