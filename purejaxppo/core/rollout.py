"""Collecting experience with a fixed policy."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.core.ahead import scan_ahead
from purejaxppo.core.distributions import Distribution
from purejaxppo.core.types import Apply, EnvState, Metrics, Params, Transition, VecEnv

_Carry = tuple[EnvState, jax.Array, jax.Array, jax.Array]


class _Seen(NamedTuple):
    """What the scan keeps of every step."""

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
    num_steps: int,
) -> tuple[EnvState, jax.Array, Transition, Metrics]:
    """Steps the environments `num_steps` times with actions sampled from the policy.

    Only the policy and the environment run inside the scan; the value function is evaluated afterwards, on the whole
    rollout at once. The last observation of a truncated episode, whose value GAE needs, is seen by nobody else: it is
    put aside, in as many places per environment as there can be truncations, and not kept for every step.

    Args:
      key: consumed.
      env: E environments.
      apply: (params, obs) -> (pi, value).
      params: of the network.
      env_state, obs: where the last rollout stopped.
      num_steps: T, static.

    Returns:
      The environments' state and observation [E, ...] to go on from, the transitions [T, E, ...], and the sums over
      all steps and environments of what the environment reported in `info`.
    """
    num_places = 1 + (num_steps - 1) // env.truncation_gap

    # Each environment in its own column, so that no device has to ask another.
    @partial(jax.vmap, in_axes=(1, 0, 0), out_axes=1)
    def put(cut_obs: jax.Array, row: jax.Array, obs: jax.Array) -> jax.Array:
        return cut_obs.at[row].set(obs, mode="drop")

    def step(carry: _Carry, key: jax.Array) -> tuple[_Carry, _Seen]:
        env_state, obs, cut_obs, place = carry
        key_action, key_env = jax.random.split(key)
        pi, _ = apply(params, obs)  # the value is not read, so the compiler drops the critic here
        action = pi.sample(key_action)
        env_state, result = env.step(key_env, env_state, action)
        cut = result.truncated & ~result.terminated
        row = jnp.where(cut, place, num_places)  # a row that does not exist is dropped
        cut_obs = put(cut_obs, row, result.final_obs)
        carry = (env_state, result.obs, cut_obs, place + cut)
        return carry, _Seen(obs, action, pi, result.reward, result.terminated, result.truncated, result.info)

    cut_obs = jnp.zeros((num_places, *obs.shape), obs.dtype)
    start = (env_state, obs, cut_obs, jnp.zeros(env.num_envs, jnp.int32))
    keys = jax.random.split(key, num_steps)
    (env_state, next_obs, cut_obs, _), seen = scan_ahead(step, start, keys)

    value = _values(apply, params, seen.obs)
    edge_value = _values(apply, params, jnp.concatenate([next_obs[None], cut_obs]))
    transition = Transition(
        obs=seen.obs,
        action=seen.action,
        pi=seen.pi,
        log_prob=seen.pi.log_prob(seen.action),
        value=value,
        next_value=_next_value(value, edge_value[0], edge_value[1:], seen.terminated, seen.truncated),
        reward=seen.reward,
        terminated=seen.terminated,
        truncated=seen.truncated,
    )
    return env_state, next_obs, transition, jax.tree.map(lambda x: x.sum(), seen.info)


def _values(apply: Apply, params: Params, obs: jax.Array) -> jax.Array:
    """Of observations [T, E, ...], environment by environment, so that no device sees another's."""
    _, value = apply(params, obs.swapaxes(0, 1))
    return value.T


def _next_value(
    value: jax.Array, last_value: jax.Array, cut_value: jax.Array, terminated: jax.Array, truncated: jax.Array
) -> jax.Array:
    """The value of each step's successor in its own episode [T, E]; 0 where the episode terminated.

    Args:
      value: [T, E] of the observations.
      last_value: [E] of the observation after the last step.
      cut_value: [K, E] of the last observations of truncated episodes, in order, per environment.
      terminated, truncated: bool [T, E].
    """
    cut = truncated & ~terminated
    place = jnp.cumsum(cut, axis=0) - cut
    following = jnp.concatenate([value[1:], last_value[None]])
    own = jnp.take_along_axis(cut_value, jnp.minimum(place, cut_value.shape[0] - 1), axis=0)
    return jnp.where(terminated, 0.0, jnp.where(cut, own, following))
