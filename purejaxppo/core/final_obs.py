"""The last observations of truncated episodes, which a rollout keeps for the bootstrap of their values.

Only they are kept, in slots: an environment truncates at most once in every `truncation_gap` steps, so a rollout needs
few. The last observation of every step would double the stored observations, and take another pass of the critic over
the whole rollout.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.core.types import EnvStep


class FinalObs(NamedTuple):
    """The last observations so far."""

    slots: jax.Array  # [K, E, ...], in the order of the truncations
    used: jax.Array  # int32 [E]


def no_final_obs(obs: jax.Array, num_steps: int, truncation_gap: int) -> FinalObs:
    """Returns empty slots for the truncations of `num_steps` steps of environments with observations obs [E, ...]."""
    num_slots = 1 + (num_steps - 1) // truncation_gap
    return FinalObs(jnp.zeros((num_slots, *obs.shape), obs.dtype), jnp.zeros(len(obs), jnp.int32))


def keep_final_obs(final_obs: FinalObs, result: EnvStep) -> FinalObs:
    """Returns the slots with the last observations of the episodes that a step truncated."""
    slots, used = final_obs
    # Each environment writes to its next free slot, or out of bounds, which mode="drop" ignores: shapes stay static,
    # and there is no branch. A step that also terminated needs no bootstrap value.
    truncated_only = result.truncated & ~result.terminated
    slot = jnp.where(truncated_only, used, len(slots))
    slots = slots.at[slot, jnp.arange(len(used))].set(result.final_obs, mode="drop")
    return FinalObs(slots, used + truncated_only)


def next_values(
    value: jax.Array, last_value: jax.Array, final_values: jax.Array, terminated: jax.Array, truncated: jax.Array
) -> jax.Array:
    """Returns the value of each step's successor in its own episode [T, E]; 0 where the episode terminated.

    Args:
      value: [T, E] of the observations.
      last_value: [E] of the observation after the last step.
      final_values: [K, E] of `FinalObs.slots`.
      terminated, truncated: bool [T, E].
    """
    truncated_only = truncated & ~terminated
    # The number of truncations before a step is the slot that the rollout wrote to. Steps that are not truncated read
    # some slot as well, hence the minimum, and do not use what they read.
    slot = jnp.cumsum(truncated_only, axis=0) - truncated_only
    next_row_value = jnp.concatenate([value[1:], last_value[None]])
    final_value = jnp.take_along_axis(final_values, jnp.minimum(slot, len(final_values) - 1), axis=0)
    return jnp.where(terminated, 0.0, jnp.where(truncated_only, final_value, next_row_value))
