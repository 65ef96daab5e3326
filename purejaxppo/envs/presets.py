"""Access to the tuned settings of an environment from Python, with checked names."""

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.config import TrainConfig
from purejaxppo.config.presets import PRESETS
from purejaxppo.config.resolve import resolve
from purejaxppo.core.types import Hyperparams  # where it becomes a pytree
from purejaxppo.envs.registry import refuse_unknown_env


def preset(env: str, algorithm: str = "ppo_clip") -> tuple[TrainConfig, Hyperparams]:
    """Returns the settings that the command line has for an environment and an algorithm, unless flags change them.

    They are tuned, or the defaults for an environment without a preset. That has to be one that is known: a misspelt
    name is an error.

    Raises:
      ConfigError: an unknown algorithm.
      EnvError: an unknown environment.
    """
    ALGORITHMS.lookup(algorithm)
    if env not in PRESETS:
        refuse_unknown_env(env)
    return resolve(env, {"algorithm": algorithm})
