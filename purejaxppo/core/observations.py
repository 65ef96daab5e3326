"""Observations: an array, or a dict of arrays, three of whose keys have a meaning for the built-in parts.

- "obs" is what the policy and the value function see. In a dict without it, they see whatever has no other meaning.
- "critic" is seen by the value function alone: privileged information, which an environment has in training and
  evaluation, and which a policy that is used elsewhere does without.
- "action_mask" (bool, one per action) is false where an action is impossible.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

OBS, CRITIC, ACTION_MASK = "obs", "critic", "action_mask"


def actor_keys(keys: Mapping[str, Any]) -> list[str]:
    """Returns the keys of a dict that policy and value function see, in order."""
    return [OBS] if OBS in keys else sorted(set(keys) - {CRITIC, ACTION_MASK})


def standardized_part(obs: Any) -> Any:
    """Returns what a normaliser standardises of an observation: an array, or those arrays of a dict.

    They are the floating-point arrays that policy or value function see; None for an array of another type.
    """
    if not isinstance(obs, dict):
        return obs if jnp.issubdtype(obs.dtype, jnp.floating) else None
    keys = [*actor_keys(obs), *([CRITIC] if CRITIC in obs else [])]
    return {key: obs[key] for key in keys if jnp.issubdtype(obs[key].dtype, jnp.floating)}


def with_part(obs: Any, part: Any) -> Any:
    """Returns an observation in which `part`, of the structure of `standardized_part`, has replaced its own."""
    if isinstance(obs, dict):
        return {**obs, **part}
    return obs if part is None else part
