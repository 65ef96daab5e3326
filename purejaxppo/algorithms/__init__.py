"""The registry of update rules: each is one file in this folder and one line in `ALGORITHMS`."""

from collections.abc import Callable

from purejaxppo.algorithms.policy_gradient import policy_gradient
from purejaxppo.algorithms.ppo_clip import ppo_clip
from purejaxppo.algorithms.ppo_kl import ppo_kl
from purejaxppo.algorithms.trpo import trpo
from purejaxppo.config import TrainConfig
from purejaxppo.config.validate import validate_algorithm
from purejaxppo.core.shards import Shards
from purejaxppo.core.types import Algorithm, Policy

ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "ppo_clip": ppo_clip,
    "ppo_kl": ppo_kl,
    "trpo": trpo,
    "policy_gradient": policy_gradient,
}


def make_algorithm(config: TrainConfig, policy: Policy, shards: Shards | None = None) -> Algorithm:
    """Returns the update rule named by `config.algorithm`; `shards` are those of the run.

    Raises ConfigError, with a suggestion, for an unknown name.
    """
    validate_algorithm(config.algorithm, ALGORITHMS)
    return ALGORITHMS[config.algorithm](config, policy, shards=shards or Shards(config.shard_count))
