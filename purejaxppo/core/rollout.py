"""Collecting experience with a fixed policy."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.core.distributions import Distribution
from purejaxppo.core.types import Apply, EnvState, Metrics, Params, Transition, VecEnv

# env_state, obs [E, ...], buffer of final observations [slots, E, ...], next free slot [E]
_Carry = tuple[EnvState, jax.Array, jax.Array, jax.Array]


class _StepRecord(NamedTuple):
    """What the scan stores of every step."""

    obs: jax.Array
    action: jax.Array
    pi: Distribution
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    info: Metrics


def rollout(
    key: jax.Array,
    env: VecEnv,
    apply: Apply,
    params: Params,
    env_state: EnvState,
    obs: jax.Array,
    env_ids: jax.Array,
    num_steps: int,
) -> tuple[EnvState, jax.Array, Transition, Metrics]:
    """Steps the environments `num_steps` times with actions sampled from the policy.

    Only the policy and the environment run inside the scan; the value function is evaluated afterwards, on the whole
    rollout at once. GAE bootstraps from the last observation of a truncated episode, which the auto-reset replaces. It
    goes into a buffer with one slot per possible truncation, instead of being stored for every step.

    Args:
      key: consumed.
      env: E environments.
      apply: (params, obs) -> (pi, value).
      params: of the network.
      env_state, obs: where the last rollout stopped.
      env_ids: int32 [E]; an environment's random numbers depend on `key` and its own number alone.
      num_steps: T, static.

    Returns:
      The environments' state and observation [E, ...] to go on from, the transitions [T, E, ...], and the sums over
      all steps and environments of what the environment reported in `info`.
    """
    # An environment truncates at most once in every `truncation_gap` steps, so a rollout holds at most this many.
    num_slots = 1 + (num_steps - 1) // env.truncation_gap

    # vmap over environments: otherwise XLA's partitioner inserts a collective for the scatter.
    @partial(jax.vmap, in_axes=(1, 0, 0), out_axes=1)
    def store_final_obs(final_obs: jax.Array, slot: jax.Array, obs: jax.Array) -> jax.Array:
        return final_obs.at[slot].set(obs, mode="drop")

    def step(carry: _Carry, draws: tuple[jax.Array, Any]) -> tuple[_Carry, _StepRecord]:
        env_state, obs, final_obs, slot = carry
        noise, env_draws = draws
        pi, _ = apply(params, obs)  # the value is not used, so the compiler removes the critic from the scan
        action = pi.sample(noise)
        env_state, result = env.step(env_draws, env_state, action)

        # Each environment writes to its next free slot, or out of bounds, which mode="drop" ignores: shapes stay
        # static, and there is no branch. A step that also terminated needs no bootstrap value.
        truncated_only = result.truncated & ~result.terminated
        write_slot = jnp.where(truncated_only, slot, num_slots)
        final_obs = store_final_obs(final_obs, write_slot, result.final_obs)
        carry = (env_state, result.obs, final_obs, slot + truncated_only)
        record = _StepRecord(obs, action, pi, result.reward, result.terminated, result.truncated, result.info)
        return carry, record

    final_obs = jnp.zeros((num_slots, *obs.shape), obs.dtype)
    start = (env_state, obs, final_obs, jnp.zeros(env.num_envs, jnp.int32))
    draws = _draw(key, env, apply(params, obs)[0], env_ids, num_steps)
    (env_state, next_obs, final_obs, _), steps = jax.lax.scan(step, start, draws)

    # The successors' values are those of the next row, but for two kinds of observation that are no row of the
    # rollout: the one after the last step, and those in the buffer. Both take one further pass of the critic.
    value = _values(apply, params, steps.obs)
    extra_value = _values(apply, params, jnp.concatenate([next_obs[None], final_obs]))
    transition = Transition(
        obs=steps.obs,
        action=steps.action,
        pi=steps.pi,
        log_prob=steps.pi.log_prob(steps.action),
        value=value,
        next_value=_next_value(value, extra_value[0], extra_value[1:], steps.terminated, steps.truncated),
        reward=steps.reward,
        terminated=steps.terminated,
        truncated=steps.truncated,
    )
    return env_state, next_obs, transition, jax.tree.map(lambda x: x.sum(), steps.info)


def _draw(key: jax.Array, env: VecEnv, pi: Distribution, env_ids: jax.Array, num_steps: int) -> tuple[jax.Array, Any]:
    """Returns the noise of all actions and the draws of all environment steps, leaves [T, E, ...].

    JAX's generator is a loop of small operations on a CPU, and several kernels on a GPU: one call for all steps costs a
    fraction of one call in each of them. `pi` is any distribution of the rollout; its values are not used.
    """

    def of_one_step(key: jax.Array) -> tuple[jax.Array, Any]:
        keys = jax.vmap(lambda env_id: jax.random.split(jax.random.fold_in(key, env_id)))(env_ids)
        return jax.vmap(lambda pi, key: pi.noise(key))(pi, keys[:, 0]), env.draw(keys[:, 1])

    return jax.vmap(of_one_step)(jax.random.split(key, num_steps))


def _values(apply: Apply, params: Params, obs: jax.Array) -> jax.Array:
    """Returns the values [T, E] of observations [T, E, ...].

    The network sees them in environment-major order: its flat rows are then sharded as the environments are, and no
    device needs another's.
    """
    _, value = apply(params, obs.swapaxes(0, 1))
    return value.T


def _next_value(
    value: jax.Array, last_value: jax.Array, final_values: jax.Array, terminated: jax.Array, truncated: jax.Array
) -> jax.Array:
    """Returns the value of each step's successor in its own episode [T, E]; 0 where the episode terminated.

    Args:
      value: [T, E] of the observations.
      last_value: [E] of the observation after the last step.
      final_values: [K, E] of the last observations of truncated episodes, in the order of their truncation.
      terminated, truncated: bool [T, E].
    """
    truncated_only = truncated & ~terminated
    # The number of truncations before a step is the slot that the scan wrote to. Steps that are not truncated read
    # some slot as well, hence the minimum, and do not use what they read.
    slot = jnp.cumsum(truncated_only, axis=0) - truncated_only
    next_row_value = jnp.concatenate([value[1:], last_value[None]])
    final_value = jnp.take_along_axis(final_values, jnp.minimum(slot, final_values.shape[0] - 1), axis=0)
    return jnp.where(terminated, 0.0, jnp.where(truncated_only, final_value, next_row_value))
