"""The table of all registered environments, for `purejaxppo envs`."""

import math
from typing import Any

from purejaxppo.core.types import Box, Discrete
from purejaxppo.envs.gymnax_adapter import from_gymnax, registered_envs
from purejaxppo.errors import EnvError


def env_table(allow_download: bool = False) -> list[dict[str, Any]]:
    """Returns a row per registered id: env, observation (shape), actions, step_limit; `error` if it does not build."""
    rows: list[dict[str, Any]] = []
    for name in registered_envs():
        try:
            env = from_gymnax(name, 1, allow_download=allow_download)
        except EnvError as error:
            rows.append({"env": name, "observation": None, "actions": None, "step_limit": None, "error": str(error)})
            continue
        rows.append(
            {
                "env": name,
                "observation": _shapes(env.observation_space),
                "actions": describe_actions(env.action_space),
                "step_limit": env.step_limit,
            }
        )
    return rows


def _shapes(space: Box | dict[str, Box]) -> Any:
    """Returns the shape of the observations, or of each array of them by its key."""
    if isinstance(space, dict):
        return {key: list(box.shape) for key, box in space.items()}
    return list(space.shape)


def describe_actions(space: Discrete | Box) -> str:
    """Returns a description of an action space, for example `3 discrete` or `2 continuous`."""
    return f"{space.n} discrete" if isinstance(space, Discrete) else f"{math.prod(space.shape)} continuous"
