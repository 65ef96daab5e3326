"""Collecting experience with a fixed policy."""

import jax

from purejaxppo.distributions import Distribution
from purejaxppo.types import Apply, EnvState, EnvStep, Metrics, Params, Transition, VecEnv


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
    rollout at once. An episode that ends is followed by a new one, and `next_value` is always that of the old one.

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

    def step(
        carry: tuple[EnvState, jax.Array], key: jax.Array
    ) -> tuple[tuple[EnvState, jax.Array], tuple[jax.Array, jax.Array, Distribution, EnvStep]]:
        env_state, obs = carry
        key_action, key_env = jax.random.split(key)
        pi, _ = apply(params, obs)  # the value is not read, so the compiler drops the critic here
        action = pi.sample(key_action)
        env_state, result = env.step(key_env, env_state, action)
        return (env_state, result.obs), (obs, action, pi, result)

    keys = jax.random.split(key, num_steps)
    (env_state, next_obs), (obs, action, pi, result) = jax.lax.scan(step, (env_state, obs), keys)

    _, value = apply(params, obs)
    _, next_value = apply(params, result.final_obs)
    transition = Transition(
        obs=obs,
        action=action,
        pi=pi,
        log_prob=pi.log_prob(action),
        value=value,
        next_value=next_value,
        reward=result.reward,
        terminated=result.terminated,
        truncated=result.truncated,
    )
    return env_state, next_obs, transition, jax.tree.map(lambda x: x.sum(), result.info)
