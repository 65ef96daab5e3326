"""Collecting experience with a fixed policy."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.core.distributions import Distribution
from purejaxppo.core.scan import scan_over_time
from purejaxppo.core.types import Actors, Memory, Metrics, Observation, Params, Policy, Trajectory, VecEnv


class _StepRecord(NamedTuple):
    """What the scan stores of every step."""

    obs: Observation
    memory: Memory
    action: jax.Array
    pi: Distribution
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    next_obs: Observation
    info: Metrics


def rollout(
    key: jax.Array,
    env: VecEnv,
    policy: Policy,
    params: Params,
    actors: Actors,
    env_ids: jax.Array,
    num_steps: int,
) -> tuple[Actors, Trajectory]:
    """Steps the environments `num_steps` times with actions sampled from the policy.

    Only the policy and the environment run inside the scan; the value function is evaluated afterwards, on the whole
    rollout at once. The successor of a step is the next observation of its own episode, also where the auto-reset has
    replaced it with another one's first.

    Args:
      key: consumed.
      env: E environments.
      policy, params: which act.
      actors: where the last rollout stopped.
      env_ids: int32 [E]; an environment's random numbers depend on `key` and its own number alone.
      num_steps: T, static.

    Returns:
      Where the next rollout begins, and the trajectory [T, E, ...].
    """

    def step(actors: Actors, draws: tuple[Any, Any]) -> tuple[Actors, _StepRecord]:
        noise, env_draws = draws
        memory, pi = policy.act(params, actors.memory, actors.obs, actors.start)
        action = pi.sample(noise)
        # Its successor is `final_obs`: after an end, `obs` is the first observation of the next episode.
        env_state, (obs, final_obs, reward, terminated, truncated, info) = env.step(env_draws, actors.env_state, action)
        record = _StepRecord(actors.obs, actors.memory, action, pi, reward, terminated, truncated, final_obs, info)
        return Actors(env_state, obs, memory, terminated | truncated), record

    _, pi = policy.act(params, actors.memory, actors.obs, actors.start)
    draws = _draw(key, env, pi, env_ids, num_steps)
    last, steps = scan_over_time(step, actors, draws, unroll=8)

    # An episode starts in the row after an end. The scan would store it also for policies that never ask.
    start = jnp.concatenate([actors.start[None], (steps.terminated | steps.truncated)[:-1]])
    value = _value(policy, params, actors.memory, steps.obs, start)
    trajectory = Trajectory(
        obs=steps.obs,
        action=steps.action,
        pi=steps.pi,
        log_prob=steps.pi.log_prob(steps.action),
        value=value,
        next_value=_next_value(policy, params, steps, value, last, env.truncation_gap),
        reward=steps.reward,
        terminated=steps.terminated,
        truncated=steps.truncated,
        next_obs=steps.next_obs,
        start=start,
        memory=steps.memory,
        info=steps.info,
    )
    return last, trajectory


def _value(policy: Policy, params: Params, memory: Memory, obs: Observation, start: jax.Array) -> jax.Array:
    """Returns the values [T, E] of observations [T, E, ...], the first of which were seen with `memory` [E, ...]."""
    if not jax.tree.leaves(memory):  # then the order of rows is of no account
        return policy.evaluate(params, memory, obs, start)[1]
    sequences = jax.tree.map(lambda x: x.swapaxes(0, 1), (obs, start))
    return policy.evaluate(params, memory, *sequences)[1].T


def _next_value(
    policy: Policy, params: Params, steps: _StepRecord, value: jax.Array, last: Actors, truncation_gap: int
) -> jax.Array:
    """Returns the value of each step's successor in its own episode [T, E]; 0 where the episode terminated.

    They are the values of the next row, but for two kinds of observation that are no row of the rollout: the one after
    the last step, and those of truncated episodes, of which there is one in every `truncation_gap` steps at most. One
    further pass of the critic has both, with the memory of that moment.
    """
    num_steps, num_envs = value.shape
    # Both flags count as terminated: the successor's value is 0 then, and nothing is to be bootstrapped.
    truncated, slots = steps.truncated & ~steps.terminated, 1 + (num_steps - 1) // truncation_gap
    # The steps [K, E] of each environment's truncations; num_steps, which is out of bounds, where there are fewer.
    cut = jax.vmap(lambda ends: jnp.nonzero(ends, size=slots, fill_value=num_steps)[0], 1, 1)(truncated)
    envs = jnp.arange(num_envs)

    def extra(end: jax.Array, successors: jax.Array) -> jax.Array:
        return jnp.concatenate([end[None], successors.at[cut, envs].get(mode="clip")])

    # What is remembered after a step is stored as what was remembered before the next one, where the policy has not yet
    # cleared it: it clears its memory when it sees that an episode starts.
    def after(memory: jax.Array, end: jax.Array) -> jax.Array:
        return jnp.concatenate([memory[1:], end[None]])

    obs = jax.tree.map(extra, last.obs, steps.next_obs)
    memory = jax.tree.map(lambda end, before: extra(end, after(before, end)), last.memory, steps.memory)
    # Sequences of one step, none of which begins an episode.
    each = jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), obs)
    remembered = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), memory)
    _, extra_value = policy.evaluate(params, remembered, each, jnp.zeros(((1 + slots) * num_envs, 1), jnp.bool_))
    extra_value = extra_value.reshape(1 + slots, num_envs)
    next_value = jnp.concatenate([value[1:], extra_value[:1]]).at[cut, envs].set(extra_value[1:], mode="drop")
    return jnp.where(steps.terminated, 0.0, next_value)


def _draw(key: jax.Array, env: VecEnv, pi: Distribution, env_ids: jax.Array, num_steps: int) -> tuple[Any, Any]:
    """Returns the noise of all actions and the draws of all environment steps, leaves [T, E, ...].

    JAX's generator is a loop of small operations on a CPU, and several kernels on a GPU: one call for all steps costs a
    fraction of one call in each of them. `pi` is any distribution of the rollout; its values are not used.
    """

    def of_one_step(key: jax.Array) -> tuple[Any, Any]:
        # By the environment's own number: neither a device nor the count of environments changes its numbers.
        keys = jax.vmap(lambda env_id: jax.random.split(jax.random.fold_in(key, env_id)))(env_ids)
        return jax.vmap(lambda pi, key: pi.noise(key))(pi, keys[:, 0]), env.draw(keys[:, 1])

    return jax.vmap(of_one_step)(jax.random.split(key, num_steps))
