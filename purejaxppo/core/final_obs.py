"""The value of each step's successor, which for a truncated episode is the value of its last observation.

An environment truncates at most once in every `truncation_gap` steps, so a rollout has few such observations. The
critic is evaluated on them alone: on the successor of every step it would do twice the work.
"""

import jax
import jax.numpy as jnp


def truncated_steps(truncated: jax.Array, truncation_gap: int) -> jax.Array:
    """Returns the steps at which each environment was truncated, in their order  [K, E], int32; 0 beyond the last one.

    Args:
      truncated: bool [T, E].
      truncation_gap: static; K is the largest number of truncations that it leaves room for.
    """
    num_steps, num_envs = truncated.shape
    num_slots = 1 + (num_steps - 1) // truncation_gap
    slot = jnp.where(truncated, _earlier(truncated), num_slots)  # out of bounds, which mode="drop" ignores
    steps = jnp.broadcast_to(jnp.arange(num_steps, dtype=jnp.int32)[:, None], slot.shape)
    envs = jnp.broadcast_to(jnp.arange(num_envs)[None], slot.shape)
    return jnp.zeros((num_slots, num_envs), jnp.int32).at[slot, envs].set(steps, mode="drop")


def next_values(
    value: jax.Array, last_value: jax.Array, final_values: jax.Array, terminated: jax.Array, truncated: jax.Array
) -> jax.Array:
    """Returns the value of each step's successor in its own episode [T, E]; 0 where the episode terminated.

    Args:
      value: [T, E] of the observations.
      last_value: [E] of the observation after the last step.
      final_values: [K, E] of the last observations of the episodes that `truncated_steps` lists.
      terminated: bool [T, E].
      truncated: bool [T, E], and not also terminated.
    """
    # Steps that are not truncated read some slot as well, hence the minimum, and do not use what they read.
    slot = jnp.minimum(_earlier(truncated), len(final_values) - 1)
    next_row_value = jnp.concatenate([value[1:], last_value[None]])
    final_value = jnp.take_along_axis(final_values, slot, axis=0)
    return jnp.where(terminated, 0.0, jnp.where(truncated, final_value, next_row_value))


def _earlier(truncated: jax.Array) -> jax.Array:
    """Returns the number of truncations of an environment before each step [T, E]."""
    return jnp.cumsum(truncated, axis=0, dtype=jnp.int32) - truncated
