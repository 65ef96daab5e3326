"""The environment that a configuration names: a registered one, or gymnax's."""

from collections.abc import Callable
from typing import Any

from purejaxppo.config import TrainConfig
from purejaxppo.config.registry import Registry
from purejaxppo.core.check_env import check_env
from purejaxppo.core.faults import describe
from purejaxppo.core.types import VecEnv
from purejaxppo.envs.gymnax_adapter import from_gymnax, refuse_unknown, registered_envs
from purejaxppo.errors import EnvError

ENVS: Registry[Callable[..., VecEnv]] = Registry("env", {})


def register_env(name: str, factory: Callable[..., VecEnv]) -> None:
    """Makes an environment of one's own known by name, to settings, flags and saved runs.

    Args:
      name: no gymnax environment's; one's own may be registered again.
      factory: `factory(num_envs, **env_params)` returns the copies, with the parameters of the setting `env_params`.
    """
    ENVS.register(name, factory)


def known_envs() -> list[str]:
    """Returns the names of all environments, gymnax's first."""
    return [*registered_envs(), *ENVS.names()]


def refuse_unknown_env(name: str) -> None:
    """Raises EnvError, with a suggestion, for a name that is neither registered nor a gymnax environment's."""
    if name not in ENVS:
        refuse_unknown(name, known_envs())


def make_env(config: TrainConfig, num_envs: int | None = None, *, allow_download: bool = False) -> VecEnv:
    """Returns copies of the environment that `config` names, with its parameters.

    Args:
      config: with `env` and `env_params`.
      num_envs: E, by default that of the config.
      allow_download: permits an environment of gymnax to download its data set.

    Raises:
      EnvError: an unknown environment or parameter, or one that does not fit.
    """
    number = config.num_envs if num_envs is None else num_envs
    if config.env in ENVS:
        return _registered(config.env, number, dict(config.env_params))
    refuse_unknown_env(config.env)
    return from_gymnax(config.env, number, allow_download=allow_download, **dict(config.env_params))


def _registered(name: str, num_envs: int, env_params: dict[str, Any]) -> VecEnv:
    if name in registered_envs():  # not asked when it is registered, as that imports gymnax
        raise EnvError(f"{name} is registered, but is also the name of a gymnax environment; register another name.")
    try:
        env = ENVS.lookup(name)(num_envs, **env_params)
    except EnvError:
        raise
    except Exception as error:
        given = "".join(f", {field}={value!r}" for field, value in env_params.items())
        raise EnvError(f"{name} cannot be built by its factory({num_envs}{given}): {describe(error)}.") from error
    if not isinstance(env, VecEnv):
        raise EnvError(f"{name}'s factory returns a {type(env).__name__}; it has to be a VecEnv.")
    if env.num_envs != num_envs:
        raise EnvError(f"{name}'s factory returns {env.num_envs} copies for num_envs = {num_envs}; make that many.")
    check_env(env, name)
    return env
