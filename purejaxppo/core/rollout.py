"""Collecting experience with a fixed policy."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.core.distributions import Distribution
from purejaxppo.core.types import Apply, EnvState, Metrics, Params, Transition, VecEnv

_Carry = tuple[EnvState, jax.Array]  # env_state, obs [E, ...]


class _StepRecord(NamedTuple):
    """What the scan stores of every step."""

    obs: jax.Array
    action: jax.Array
    pi: Distribution
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    next_obs: jax.Array
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
    rollout at once. The successor of a step is the next observation of its own episode, also where the auto-reset has
    replaced it with another one's first.

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
      all steps of what the environments reported in `info`, leaves [E].
    """

    def step(carry: _Carry, draws: tuple[jax.Array, Any]) -> tuple[_Carry, _StepRecord]:
        env_state, obs = carry
        noise, env_draws = draws
        pi, _ = apply(params, obs)  # the value is not used, so the compiler removes the critic from the scan
        action = pi.sample(noise)
        # Its successor is `final_obs`: after an end, `obs` is the first observation of the next episode.
        env_state, result = env.step(env_draws, env_state, action)
        record = _StepRecord(
            obs, action, pi, result.reward, result.terminated, result.truncated, result.final_obs, result.info
        )
        return (env_state, result.obs), record

    draws = _draw(key, env, apply(params, obs)[0], env_ids, num_steps)
    (env_state, last_obs), steps = jax.lax.scan(step, (env_state, obs), draws)

    _, value = apply(params, steps.obs)
    transition = Transition(
        obs=steps.obs,
        action=steps.action,
        pi=steps.pi,
        log_prob=steps.pi.log_prob(steps.action),
        value=value,
        next_value=_next_value(apply, params, steps, value, last_obs, env.truncation_gap),
        reward=steps.reward,
        terminated=steps.terminated,
        truncated=steps.truncated,
        next_obs=steps.next_obs,
    )
    return env_state, last_obs, transition, jax.tree.map(lambda x: x.sum(axis=0), steps.info)


def _next_value(
    apply: Apply, params: Params, steps: _StepRecord, value: jax.Array, last_obs: jax.Array, truncation_gap: int
) -> jax.Array:
    """Returns the value of each step's successor in its own episode [T, E]; 0 where the episode terminated.

    They are the values of the next row, but for two kinds of observation that are no row of the rollout: the one after
    the last step, and those of truncated episodes, of which there is one in every `truncation_gap` steps at most. One
    further pass of the critic has both.
    """
    num_steps, num_envs = value.shape
    # Both flags count as terminated: the successor's value is 0 then, and nothing is to be bootstrapped.
    truncated, slots = steps.truncated & ~steps.terminated, 1 + (num_steps - 1) // truncation_gap
    # The steps [K, E] of each environment's truncations; num_steps, which is out of bounds, where there are fewer.
    cut = jax.vmap(lambda ends: jnp.nonzero(ends, size=slots, fill_value=num_steps)[0], 1, 1)(truncated)
    envs = jnp.arange(num_envs)
    _, extra_value = apply(params, jnp.concatenate([last_obs[None], steps.next_obs.at[cut, envs].get(mode="clip")]))
    next_value = jnp.concatenate([value[1:], extra_value[:1]]).at[cut, envs].set(extra_value[1:], mode="drop")
    return jnp.where(steps.terminated, 0.0, next_value)


def _draw(key: jax.Array, env: VecEnv, pi: Distribution, env_ids: jax.Array, num_steps: int) -> tuple[jax.Array, Any]:
    """Returns the noise of all actions and the draws of all environment steps, leaves [T, E, ...].

    JAX's generator is a loop of small operations on a CPU, and several kernels on a GPU: one call for all steps costs a
    fraction of one call in each of them. `pi` is any distribution of the rollout; its values are not used.
    """

    def of_one_step(key: jax.Array) -> tuple[jax.Array, Any]:
        # By the environment's own number: neither a device nor the count of environments changes its numbers.
        keys = jax.vmap(lambda env_id: jax.random.split(jax.random.fold_in(key, env_id)))(env_ids)
        return jax.vmap(lambda pi, key: pi.noise(key))(pi, keys[:, 0]), env.draw(keys[:, 1])

    return jax.vmap(of_one_step)(jax.random.split(key, num_steps))
