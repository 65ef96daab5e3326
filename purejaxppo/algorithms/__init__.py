"""The registry of update rules: each is one file in this folder and one line in `ALGORITHMS`, or registered."""

from collections.abc import Callable
from typing import Any

from purejaxppo.algorithms.policy_gradient import policy_gradient
from purejaxppo.algorithms.ppo_clip import ppo_clip
from purejaxppo.algorithms.ppo_kl import ppo_kl
from purejaxppo.algorithms.trpo import trpo
from purejaxppo.config import TrainConfig
from purejaxppo.config.registry import Registry
from purejaxppo.core.check_parts import check_algorithm
from purejaxppo.core.faults import faults_of
from purejaxppo.core.shards import Shards
from purejaxppo.core.types import Algorithm, Policy

ALGORITHMS: Registry[Callable[..., Algorithm]] = Registry(
    "algorithm",
    {"ppo_clip": ppo_clip, "ppo_kl": ppo_kl, "trpo": trpo, "policy_gradient": policy_gradient},
)


def register_algorithm(name: str, factory: Callable[..., Algorithm]) -> None:
    """Makes an update rule of one's own known by name, to settings, flags and saved runs.

    Args:
      name: no built-in one's; one's own may be registered again.
      factory: `factory(config, policy, *, shards)` returns the rule, with `shards` if all that it learns from passes
        through `shards.mean` or `shards.gather` (it is trained on one device otherwise).
    """
    ALGORITHMS.register(name, factory)


def make_algorithm(config: TrainConfig, policy: Policy, shards: Shards | None = None) -> Algorithm:
    """Returns the update rule named by `config.algorithm`; `shards` are those of the run.

    Raises ConfigError, with a suggestion, for an unknown name, and for a rule of one's own that raises an error, also
    when its functions are traced.
    """
    name, shards = config.algorithm, shards or Shards(config.shard_count)
    factory = ALGORITHMS.lookup(name)
    if name in ALGORITHMS.built_in():
        return factory(config, policy, shards=shards)
    with faults_of(f"algorithm {name!r}"):
        rule = factory(config, policy, shards=shards)
        check_algorithm(rule)

    def named(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with faults_of(f"algorithm {name!r}"):
                return function(*args)

        return call

    return rule._replace(init=named(rule.init), update=named(rule.update))
