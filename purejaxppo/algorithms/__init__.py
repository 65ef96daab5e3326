"""The registry of update rules: one file each, one line here."""

from collections.abc import Callable

from purejaxppo.algorithms.ppo_clip import ppo_clip
from purejaxppo.config import TrainConfig, suggestion
from purejaxppo.errors import ConfigError
from purejaxppo.types import Algorithm, Apply

ALGORITHMS: dict[str, Callable[[TrainConfig, Apply], Algorithm]] = {
    "ppo_clip": ppo_clip,
}


def make_algorithm(config: TrainConfig, apply: Apply) -> Algorithm:
    """The update rule named by `config.algorithm`. Raises ConfigError, with a suggestion, for an unknown name."""
    if config.algorithm not in ALGORITHMS:
        raise ConfigError(
            f"algorithm {config.algorithm!r} is unknown; choose from {', '.join(ALGORITHMS)}."
            f"{suggestion(config.algorithm, ALGORITHMS)}"
        )
    return ALGORITHMS[config.algorithm](config, apply)
