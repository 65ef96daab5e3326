"""A policy that sees normalised observations."""

from typing import Any

import jax

from purejaxppo.core.distributions import Distribution
from purejaxppo.core.normalizer import normalized_obs
from purejaxppo.core.types import Memory, Observation, Params, Policy


class Normalized:
    """The `Policy` that standardises observations by frozen statistics, and then does what another one does.

    Args:
      policy: the other one.
      stats: `Normalizer.obs`; observations stay as they are if it is None.
    """

    def __init__(self, policy: Policy, stats: Any) -> None:
        self.policy, self.stats = policy, stats

    def init(self, key: jax.Array, obs: Observation) -> Params:
        return self.policy.init(key, normalized_obs(self.stats, obs))

    def initial_memory(self, num_envs: int) -> Memory:
        return self.policy.initial_memory(num_envs)

    def act(self, params: Params, memory: Memory, obs: Observation, start: jax.Array) -> tuple[Memory, Distribution]:
        return self.policy.act(params, memory, normalized_obs(self.stats, obs), start)

    def evaluate(
        self, params: Params, memory: Memory, obs: Observation, start: jax.Array
    ) -> tuple[Distribution, jax.Array]:
        return self.policy.evaluate(params, memory, normalized_obs(self.stats, obs), start)
