"""Access to the tuned settings of an environment from Python, with checked names."""

from typing import Any

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.config.presets import PRESETS, tuned_settings
from purejaxppo.config.validate import validate_algorithm
from purejaxppo.envs.gymnax_adapter import refuse_unknown


def preset(env: str, algorithm: str = "ppo_clip") -> dict[str, Any]:
    """Returns the tuned settings of an environment, field -> value, for `TrainConfig` and `Hyperparams`.

    The result is empty for an environment without a preset, which has to be one that gymnax knows: a misspelt name is
    an error.

    Raises:
      ConfigError: an unknown algorithm.
      EnvError: an environment that gymnax does not know, such as one of your own, which has no preset.
    """
    validate_algorithm(algorithm, ALGORITHMS)
    if env not in PRESETS:
        refuse_unknown(env)
    return tuned_settings(env, algorithm)
