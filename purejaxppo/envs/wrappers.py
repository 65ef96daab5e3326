"""Wrappers, functions from VecEnv to VecEnv: episode statistics, action bounds, normalisation by running statistics.

The running statistics are part of the environment's state: they are carried from update to update, saved with the run,
and frozen for the evaluation. A rollout stores the normalised observations that the policy saw, so a later change of
the statistics cannot move the probability ratio away from 1 before the first gradient step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.config import TrainConfig
from purejaxppo.core.sums import Sum, add, centre, empty_sum, least_std
from purejaxppo.core.types import Box, Discrete, EnvState, EnvStep, VecEnv

NORMALIZER_CLIP = 10.0  # standard deviations
NORMALIZER_EPSILON = 1e-8  # added to a variance before its square root is taken


class RunningStats(NamedTuple):
    """Mean and variance, per element, of all rows so far."""

    mean: jax.Array
    var: jax.Array
    # float32, number of rows. It saturates near 2**24 * num_envs, after which the statistics are a very slow moving
    # average.
    rows: jax.Array


def empty_stats(shape: tuple[int, ...]) -> RunningStats:
    """Returns the statistics of no rows: mean 0, and variance 1, so that division by them is defined."""
    return RunningStats(jnp.zeros(shape), jnp.ones(shape), jnp.zeros(()))


def update_stats(stats: RunningStats, x: jax.Array) -> RunningStats:
    """Returns the statistics with the rows of x [E, ...] added: those of all rows so far, up to rounding.

    Source: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances",
    in weights rather than sums, so that no quantity grows with the number of rows.
    """
    rows = stats.rows + x.shape[0]
    weight = x.shape[0] / rows
    deviation, mean_of_x = centre(x)
    delta = mean_of_x - stats.mean
    mean = stats.mean + weight * delta
    var = (1 - weight) * stats.var + weight * jnp.mean(deviation**2, axis=0) + weight * (1 - weight) * delta**2
    return RunningStats(mean, var, rows)


def standardize_by(stats: RunningStats, x: jax.Array) -> jax.Array:
    """Returns (x - mean) / std of rows x [E, ...], clipped to +-10."""
    scaled = (x - stats.mean[None]) / _std(stats)[None]
    return jnp.clip(scaled, -NORMALIZER_CLIP, NORMALIZER_CLIP)


def _std(stats: RunningStats) -> jax.Array:
    """Returns the divisor sqrt(var + 1e-8), or the least that float32 can tell from rounding around the mean."""
    # In some programs XLA rewrites a division by a square root as a product with its reciprocal, which rounds
    # differently. It does not do so behind a maximum, so all programs give the same bits.
    return jnp.maximum(jnp.sqrt(stats.var + NORMALIZER_EPSILON), least_std(stats.mean))


class _Episodes(NamedTuple):
    inner: EnvState
    episode_return: Sum  # [E] of the running episode, so far
    episode_length: jax.Array  # [E] int32, of the running episode, so far


class _NormalizedObservation(NamedTuple):
    inner: EnvState
    stats: RunningStats


class _NormalizedReward(NamedTuple):
    inner: EnvState
    stats: RunningStats
    discounted: jax.Array  # [E] discounted return of the running episode


def training_env(config: TrainConfig, env: VecEnv, gamma: float | jax.Array) -> VecEnv:
    """Returns the environment wrapped for training. Episode statistics are those of the raw rewards.

    `gamma` may be a traced value, so the trainer calls this inside the traced function, once per update; wrapping
    itself computes nothing.
    """
    env = bound_action(config, track_episodes(env))
    if config.normalize_reward:
        env = normalize_reward(env, gamma)
    if config.normalize_observation:
        env = normalize_observation(env)
    return env


def evaluation_env(config: TrainConfig, env: VecEnv, stats: RunningStats | None) -> VecEnv:
    """Returns the environment wrapped for evaluation: raw rewards, observations normalised by frozen statistics.

    If `stats` is None, observations are not normalised.
    """
    env = bound_action(config, env)
    return env if stats is None else freeze_observation(env, stats)


def track_episodes(env: VecEnv) -> VecEnv:
    """Returns the environment with each finished episode's return and length in `info`.

    They are reported in the step that ends the episode; all other steps report zeros.
    """

    def reset(keys: jax.Array) -> tuple[EnvState, jax.Array]:
        state, obs = env.reset(keys)
        return _Episodes(state, empty_sum((env.num_envs,)), jnp.zeros(env.num_envs, jnp.int32)), obs

    def step(draws: Any, state: _Episodes, action: jax.Array) -> tuple[EnvState, EnvStep]:
        inner, result = env.step(draws, state.inner, action)
        rewards, length = add(state.episode_return, result.reward), state.episode_length + 1
        done = result.terminated | result.truncated
        info = {
            **result.info,
            "episode/return": jnp.where(done, rewards.value, 0.0),
            "episode/length": jnp.where(done, length, 0).astype(jnp.float32),
            "episode/count": done.astype(jnp.float32),
        }
        rewards, length = jax.tree.map(lambda x: jnp.where(done, 0, x), (rewards, length))
        return _Episodes(inner, rewards, length), result._replace(info=info)

    return env._replace(reset=reset, step=step)


def bound_action(config: TrainConfig, env: VecEnv) -> VecEnv:
    """Returns the environment with continuous actions mapped to its bounds by `action_bound`; others are unchanged."""
    bound = action_bound(config, env.action_space)
    if bound is None:
        return env
    return env._replace(step=lambda draws, state, action: env.step(draws, state, bound(action)))


def action_bound(config: TrainConfig, space: Discrete | Box) -> Callable[[jax.Array], jax.Array] | None:
    """Returns the map from the policy's actions x [E, A] to the environment's [E, A], or None if there are no bounds.

    It is clip(centre + unit x, low, high) for `gaussian`, and the same of tanh(x) for `tanh_gaussian`, elementwise,
    with the `action_units` of the space.
    """
    if not isinstance(space, Box) or (space.low is None and space.high is None):
        return None
    low, high = (jnp.asarray(side, jnp.float32)[None] for side in space.bounds())
    centre, unit = (jnp.asarray(x)[None] for x in action_units(space))
    squash = {"gaussian": lambda x: x, "tanh_gaussian": jnp.tanh}[config.policy]
    # The clip comes last, so that rounding cannot leave the bounds.
    return lambda action: jnp.clip(centre + unit * squash(action), low, high)


def action_units(space: Box) -> tuple[np.ndarray, np.ndarray]:
    """Returns the centre [A] and the unit [A] of the environment's actions as float32.

    The policy's 0 is the centre of the bounds and its unit half of their distance, so that [-1, 1] is the whole range.
    For an element that lacks a bound they are 0 and 1: the policy's action is the environment's.
    """
    bounded = space.bounded()
    low, high = (np.where(bounded, side, end) for side, end in zip(space.bounds(), (-1.0, 1.0), strict=True))
    return ((low + high) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)


def normalize_observation(env: VecEnv) -> VecEnv:
    """Returns the environment with observations standardised by the statistics of all observations so far.

    The observations of a step enter the statistics before they are standardised; the first ones are those of reset.
    """

    def reset(keys: jax.Array) -> tuple[EnvState, jax.Array]:
        inner, obs = env.reset(keys)
        stats = update_stats(empty_stats(obs.shape[1:]), obs)
        return _NormalizedObservation(inner, stats), standardize_by(stats, obs)

    def step(draws: Any, state: _NormalizedObservation, action: jax.Array) -> tuple[EnvState, EnvStep]:
        inner, result = env.step(draws, state.inner, action)
        stats = update_stats(state.stats, result.obs)
        obs, final_obs = standardize_by(stats, result.obs), standardize_by(stats, result.final_obs)
        return _NormalizedObservation(inner, stats), result._replace(obs=obs, final_obs=final_obs)

    return env._replace(reset=reset, step=step)


def freeze_observation(env: VecEnv, stats: RunningStats) -> VecEnv:
    """Returns the environment with observations standardised by frozen statistics."""

    def reset(keys: jax.Array) -> tuple[EnvState, jax.Array]:
        state, obs = env.reset(keys)
        return state, standardize_by(stats, obs)

    def step(draws: Any, state: EnvState, action: jax.Array) -> tuple[EnvState, EnvStep]:
        state, result = env.step(draws, state, action)
        obs, final_obs = standardize_by(stats, result.obs), standardize_by(stats, result.final_obs)
        return state, result._replace(obs=obs, final_obs=final_obs)

    return env._replace(reset=reset, step=step)


def normalize_reward(env: VecEnv, gamma: float | jax.Array) -> VecEnv:
    """Returns the environment with rewards divided by the running standard deviation of the discounted return.

    Rewards are not shifted. The return of an episode's last step enters the statistics, and the next episode's return
    starts from 0.
    """

    def reset(keys: jax.Array) -> tuple[EnvState, jax.Array]:
        inner, obs = env.reset(keys)
        return _NormalizedReward(inner, empty_stats(()), jnp.zeros(env.num_envs)), obs

    def step(draws: Any, state: _NormalizedReward, action: jax.Array) -> tuple[EnvState, EnvStep]:
        inner, result = env.step(draws, state.inner, action)
        discounted = gamma * state.discounted + result.reward
        stats = update_stats(state.stats, discounted)
        reward = jnp.clip(result.reward / _std(stats), -NORMALIZER_CLIP, NORMALIZER_CLIP)
        running = jnp.where(result.terminated | result.truncated, 0.0, discounted)
        return _NormalizedReward(inner, stats, running), result._replace(reward=reward)

    return env._replace(reset=reset, step=step)


def running_stats(env_state: Any) -> list[RunningStats]:
    """Returns all running statistics in a training environment's state."""
    found = []
    while isinstance(env_state, _NormalizedObservation | _NormalizedReward):
        found.append(env_state.stats)
        env_state = env_state.inner
    return found


def observation_stats(env_state: Any) -> RunningStats | None:
    """Returns the observation statistics in a training environment's state, or None if it does not normalise them."""
    return env_state.stats if isinstance(env_state, _NormalizedObservation) else None
