"""Advantage estimation over a rollout, backwards in time."""

import chex
import jax
import jax.numpy as jnp

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.scan import scan_over_time
from purejaxppo.core.types import Trajectory


def estimate(config: TrainConfig, hp: Hyperparams, trajectory: Trajectory) -> tuple[jax.Array, jax.Array]:
    """Returns the advantages and the value targets [T, E] of a rollout, as `config.value_target` has them."""
    estimator, t = ESTIMATORS[config.value_target], trajectory
    return estimator(t.reward, t.value, t.next_value, t.terminated, t.truncated, hp.gamma, hp.gae_lambda)


def gae(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: float | jax.Array,
    gae_lambda: float | jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns generalised advantage estimates, exact at both kinds of episode end, and value targets.

        delta_t = r_t + gamma (1 - terminated_t) V(s_{t+1}) - V(s_t)
        A_t     = delta_t + gamma lambda (1 - done_t) A_{t+1},      done = terminated | truncated

    After a terminated step there is nothing: its successor has value 0. After a truncated one the episode would have
    continued unseen: the successor's value is bootstrapped, and the sum ends there. Both flags at once count as
    terminated.

    Args:
      reward: r_t  [T, E], reward units.
      value: V(s_t)  [T, E].
      next_value: V(s_{t+1}) [T, E], s_{t+1} being the last observation of the *same* episode, never the first of
        the next one.
      terminated: bool [T, E], the task itself ended.
      truncated: bool [T, E], a time limit ended the episode.
      gamma: discount, scalar.
      gae_lambda: lambda, scalar.

    Returns:
      advantage [T, E] and value target `advantage + value` [T, E], both in reward units.

    Source: Schulman et al. 2016, "High-dimensional continuous control using generalized advantage estimation",
    arXiv:1506.02438, eq. 16; the flags are this project's reading of it for truncated episodes.
    """
    chex.assert_equal_shape([reward, value, next_value, terminated, truncated])
    chex.assert_rank(reward, 2)
    delta = reward + gamma * jnp.where(terminated, 0.0, next_value) - value
    decay = jnp.where(terminated | truncated, 0.0, gamma * gae_lambda)

    advantage = _discounted_sum(delta, decay)
    return advantage, advantage + value


def rewards_to_go(
    reward: jax.Array, next_value: jax.Array, terminated: jax.Array, truncated: jax.Array, gamma: float | jax.Array
) -> jax.Array:
    """Returns the discounted rewards up to the episode's end, bootstrapped at a truncation and at the rollout's end.

        G_t = r_t + gamma (1 - terminated_t) (V(s_{t+1}) if truncated_t or t = T - 1 else G_{t+1})

    This is the Monte-Carlo value target: that of GAE at lambda = 1, whatever lambda the advantage is estimated with.

    Args:
      reward: r_t  [T, E], reward units.
      next_value: V(s_{t+1}) [T, E], of the last observation of the *same* episode.
      terminated, truncated: bool [T, E], as in `gae`.
      gamma: discount, scalar.

    Returns:
      G [T, E], reward units.

    Source: Williams 1992, "Simple statistical gradient-following algorithms", with the bootstrap of `gae`.
    """
    chex.assert_equal_shape([reward, next_value, terminated, truncated])
    chex.assert_rank(reward, 2)
    continues = jnp.logical_not(terminated | truncated).at[-1].set(False)  # the rollout's last step has no next row

    reward_or_bootstrap = reward + gamma * jnp.where(terminated | continues, 0.0, next_value)
    return _discounted_sum(reward_or_bootstrap, jnp.where(continues, gamma, 0.0))


def _discounted_sum(x: jax.Array, decay: jax.Array) -> jax.Array:
    """Returns y_t = x_t + decay_t y_{t+1}, computed backwards in time from y_T = 0; all [T, E]."""

    def backward(y_next: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x_t, decay_t = step
        y_t = x_t + decay_t * y_next
        return y_t, y_t

    _, y = scan_over_time(backward, jnp.zeros_like(x[0]), (x, decay), unroll=16, reverse=True)
    return y


def _gae_with_rewards_to_go(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: float | jax.Array,
    gae_lambda: float | jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the advantage of `gae` with `rewards_to_go` as the value target."""
    advantage, _ = gae(reward, value, next_value, terminated, truncated, gamma, gae_lambda)
    return advantage, rewards_to_go(reward, next_value, terminated, truncated, gamma)


# TrainConfig.value_target -> function that computes the advantages and value targets [T, E] of a rollout.
ESTIMATORS = {"gae": gae, "rewards_to_go": _gae_with_rewards_to_go}
