"""Parts by value: what a program passes to `run_experiment` and its kin in place of a name."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, Unpack, cast

import optax

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.config.registry import Registry
from purejaxppo.core.optimizer import OPTIMIZERS, SCHEDULES, Schedule
from purejaxppo.core.types import Algorithm, Policy, VecEnv
from purejaxppo.envs.registry import ENVS
from purejaxppo.errors import ConfigError
from purejaxppo.policies.registry import POLICIES


class Parts(TypedDict, total=False):
    """The parts that a function of the host takes as keyword arguments, each as a name or as what makes the part.

    What makes a part is registered under its `__name__`, as by `register_env` and its kin, whose docstrings say how it
    is called. That name stands in the settings and in all that is saved, so a program that reads them again, in this
    process or a later one, has to know the part: by the same argument, by registering it, or on the command line by
    `--plugin`.

    A new run, sweep or comparison takes a part in place of what its settings name, unless one of them names it already:
    then the others stay as they are. A saved one keeps its settings, and takes only what they name.
    """

    env: str | Callable[..., VecEnv]
    policy: str | Callable[[TrainConfig, VecEnv], Policy]
    algorithm: str | Callable[..., Algorithm]
    optimizer: str | Callable[[Hyperparams], optax.GradientTransformation]
    schedule: str | Schedule  # of the learning rate


_SOURCES: Mapping[str, tuple[str, Registry[Any]]] = {  # argument -> setting, and its registry
    "env": ("env", ENVS),
    "policy": ("policy", POLICIES),
    "algorithm": ("algorithm", ALGORITHMS),
    "optimizer": ("optimizer", OPTIMIZERS),
    "schedule": ("learning_rate_schedule", SCHEDULES),
}


def with_parts(configs: Sequence[TrainConfig], **parts: Unpack[Parts]) -> tuple[TrainConfig, ...]:
    """Returns the settings of new runs with the names of these parts, which are registered.

    Raises ConfigError for an argument that is no part, or a part without a name that can be saved.
    """
    names = _registered(parts)
    for setting, name in names.items():
        if not any(getattr(config, setting) == name for config in configs):
            configs = [dataclasses.replace(config, **cast(Any, {setting: name})) for config in configs]
    return tuple(configs)


def know_parts(configs: Sequence[TrainConfig], **parts: Unpack[Parts]) -> None:
    """Registers the parts of saved runs. Raises ConfigError for one that none of their settings names."""
    for setting, name in _registered(parts).items():
        saved = list(dict.fromkeys(str(getattr(config, setting)) for config in configs))
        if name not in saved:
            raise ConfigError(
                f"{setting} = {name} is not what was saved, {', '.join(saved)}; pass the part of that name, or leave "
                f"it out."
            )


def _registered(parts: Mapping[str, Any]) -> dict[str, str]:
    """Returns setting -> name of the parts, which are registered if they are values."""
    names = {}
    for argument, part in parts.items():
        if argument not in _SOURCES:
            raise TypeError(f"{argument} is no part of a run; those are {', '.join(_SOURCES)}.")
        setting, registry = _SOURCES[argument]
        names[setting] = registry.name_for(part)
    return names
