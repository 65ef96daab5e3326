"""The table of all environments, for `purejaxppo envs`."""

import math
from typing import Any

from purejaxppo.config import TrainConfig
from purejaxppo.core.types import Box, Discrete
from purejaxppo.envs.registry import known_envs, make_env
from purejaxppo.errors import EnvError


def env_table(allow_download: bool = False) -> list[dict[str, Any]]:
    """Returns a row per environment: env, observation (shape), actions, step_limit; `error` if it does not build."""
    rows: list[dict[str, Any]] = []
    for name in known_envs():
        try:
            env = make_env(TrainConfig(env=name), 1, allow_download=allow_download)
        except EnvError as error:
            rows.append({"env": name, "observation": None, "actions": None, "step_limit": None, "error": str(error)})
            continue
        rows.append(
            {
                "env": name,
                "observation": list(env.observation_space.shape),
                "actions": describe_actions(env.action_space),
                "step_limit": env.step_limit,
            }
        )
    return rows


def describe_actions(space: Discrete | Box) -> str:
    """Returns a description of an action space, for example `3 discrete` or `2 continuous`."""
    return f"{space.n} discrete" if isinstance(space, Discrete) else f"{math.prod(space.shape)} continuous"
