"""The table of all environments, for `purejaxppo envs`."""

from typing import Any

from purejaxppo.config import TrainConfig
from purejaxppo.core.types import ActionSpace, Box, Discrete
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


def describe_actions(space: ActionSpace) -> str:
    """Returns a description of an action space: `3 discrete`, `3 x 2 discrete`, `2 continuous` or `2 x 2 continuous`.

    The numbers are the choices of one action, those of each factor, or the axes of an array.
    """
    if isinstance(space, Discrete):
        return f"{space.n} discrete"
    numbers, kind = (space.shape or (1,), "continuous") if isinstance(space, Box) else (space.sizes, "discrete")
    return f"{' x '.join(map(str, numbers))} {kind}"
