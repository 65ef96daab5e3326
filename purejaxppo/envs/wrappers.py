"""A wrapper, a function from VecEnv to VecEnv: actions are brought to the environment's bounds."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.config import TrainConfig
from purejaxppo.core.types import ActionSpace, Box, VecEnv


def bound_action(config: TrainConfig, env: VecEnv) -> VecEnv:
    """Returns the environment with the policy's actions mapped to its own by `action_bound`, if they differ."""
    bound = action_bound(config, env.action_space)
    if bound is None:
        return env
    return env._replace(step=lambda draws, state, action: env.step(draws, state, bound(action)))


def action_bound(config: TrainConfig, space: ActionSpace) -> Callable[[jax.Array], jax.Array] | None:
    """Returns the map from the policy's actions x [E, A] to the environment's [E, *shape], or None if they are equal.

    It is clip(centre + unit x, low, high) for `gaussian`, and the same of tanh(x) for `tanh_gaussian`, elementwise,
    with the `action_units` of the space. Without any bounds it is the reshape alone.
    """
    if not isinstance(space, Box):
        return None

    def shaped(action: jax.Array) -> jax.Array:
        return action.reshape(*action.shape[:-1], *space.shape)

    if space.low is None and space.high is None:
        return None if len(space.shape) == 1 else shaped
    low, high = (jnp.asarray(side, jnp.float32)[None] for side in space.bounds())
    centre, unit = (jnp.asarray(x)[None] for x in action_units(space))
    squash = {"gaussian": lambda x: x, "tanh_gaussian": jnp.tanh}[config.action_distribution]
    # The clip comes last, so that rounding cannot leave the bounds.
    return lambda action: jnp.clip(centre + unit * squash(shaped(action)), low, high)


def action_units(space: Box) -> tuple[np.ndarray, np.ndarray]:
    """Returns the centre [*shape] and the unit [*shape] of the environment's actions as float32.

    The policy's 0 is the centre of the bounds and its unit half of their distance, so that [-1, 1] is the whole range.
    For an element that lacks a bound they are 0 and 1: the policy's action is the environment's.
    """
    bounded = space.bounded()
    low, high = (np.where(bounded, side, end) for side, end in zip(space.bounds(), (-1.0, 1.0), strict=True))
    return ((low + high) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)
