"""Wrappers, functions from VecEnv to VecEnv: action bounds, standardised observations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.config import TrainConfig
from purejaxppo.core.normalizer import RunningStats, standardize_by
from purejaxppo.core.types import Box, Discrete, EnvState, EnvStep, VecEnv


def evaluation_env(config: TrainConfig, env: VecEnv, stats: RunningStats | None) -> VecEnv:
    """Returns the environment wrapped for evaluation: raw rewards, observations normalised by frozen statistics.

    If `stats` is None, observations are not normalised.
    """
    env = bound_action(config, env)
    return env if stats is None else freeze_observation(env, stats)


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
    squash = {"gaussian": lambda x: x, "tanh_gaussian": jnp.tanh}[config.action_distribution]
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
