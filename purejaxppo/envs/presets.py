"""Tuned settings of an environment for Python programs, with the names checked."""

from typing import Any

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.config.presets import PRESETS, tuned_settings
from purejaxppo.config.validate import validate_algorithm
from purejaxppo.envs.gymnax_adapter import refuse_unknown


def preset(env: str, algorithm: str = "ppo_clip") -> dict[str, Any]:
    """Returns the tuned settings of an environment, field -> value, for `TrainConfig` and `Hyperparams`.

    They are empty for an environment that has none. To tell that from a misspelt name, gymnax is asked.

    Raises:
      ConfigError: an unknown algorithm.
      EnvError: an environment that gymnax does not know; one of your own has no preset.
    """
    validate_algorithm(algorithm, ALGORITHMS)
    if env not in PRESETS:
        refuse_unknown(env)
    return tuned_settings(env, algorithm)
