"""An observation as a network takes it."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.config import TrainConfig
from purejaxppo.core.observations import ACTION_MASK, CRITIC, OBS, actor_keys
from purejaxppo.core.types import Box, Observation
from purejaxppo.errors import ConfigError, EnvError


class Inputs(NamedTuple):
    """An observation as a network takes it: N rows."""

    lead: tuple[int, ...]  # the axes that the rows had
    seen: jax.Array  # [N, ...] by policy and value function
    privileged: jax.Array | None  # [N, P] by the value function alone
    mask: jax.Array | None  # bool [N, A], of the actions that are possible


Space = Box | dict[str, Box]


def reader(config: TrainConfig, space: Space) -> Callable[[Observation], Inputs]:
    """Returns the function from observations [..., O] to a network's inputs.

    Raises:
      ConfigError: a shared torso of a value function that sees more.
      EnvError: the policy would see nothing.
    """
    if isinstance(space, dict) and CRITIC in space and config.shared_torso:
        raise ConfigError(
            f"shared_torso is on, but {config.env} shows the value function more than the policy ({CRITIC!r}); turn it "
            f"off."
        )

    spaces = space if isinstance(space, dict) else {OBS: space}
    keys = actor_keys(spaces)
    if not keys:
        raise EnvError(f"{config.env} shows the policy nothing: its observations have the keys {', '.join(spaces)}.")

    def rows(arrays: dict[str, jax.Array], key: str) -> jax.Array:
        x = arrays[key]
        if x.dtype == jnp.uint8:
            x = x.astype(jnp.float32) / (255 if config.scale_pixels else 1)
        return x.reshape(-1, *spaces[key].shape)

    def flat(arrays: dict[str, jax.Array], keys: Sequence[str]) -> jax.Array:
        parts = [rows(arrays, key) for key in keys]
        return jnp.concatenate([x.reshape(x.shape[0], -1) for x in parts], axis=-1)

    def privileged(arrays: dict[str, jax.Array]) -> jax.Array:
        if CRITIC in arrays:
            return flat(arrays, [CRITIC])
        # Not in training: the value is then of no account.
        return jnp.zeros((rows(arrays, keys[0]).shape[0], math.prod(spaces[CRITIC].shape)))

    def read(obs: Observation) -> Inputs:
        arrays = obs if isinstance(space, dict) else {OBS: obs}
        first = arrays[keys[0]]
        return Inputs(
            lead=first.shape[: first.ndim - len(spaces[keys[0]].shape)],
            seen=rows(arrays, keys[0]) if len(keys) == 1 else flat(arrays, keys),
            privileged=privileged(arrays) if CRITIC in spaces else None,
            mask=rows(arrays, ACTION_MASK) if ACTION_MASK in spaces else None,
        )

    return read


def is_image(space: Space) -> bool:
    """Returns whether the one array that the policy sees is a picture [H, W, C] of at least 3 x 3."""
    if isinstance(space, dict):
        keys = actor_keys(space)
        return len(keys) == 1 and is_image(space[keys[0]])
    return len(space.shape) == 3 and min(space.shape[:2]) >= 3
