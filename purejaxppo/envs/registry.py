"""The environment that a configuration names."""

from purejaxppo.config import TrainConfig
from purejaxppo.core.types import VecEnv
from purejaxppo.envs.gymnax_adapter import from_gymnax


def make_env(config: TrainConfig, num_envs: int | None = None, *, allow_download: bool = False) -> VecEnv:
    """Returns copies of the environment that `config` names, with its parameters.

    Args:
      config: with `env` and `env_params`.
      num_envs: E, by default that of the config.
      allow_download: permits an environment to download its data set.

    Raises:
      EnvError: an unknown environment or parameter, or one that does not fit.
    """
    number = config.num_envs if num_envs is None else num_envs
    return from_gymnax(config.env, number, allow_download=allow_download, **dict(config.env_params))
