"""A policy without memory, made of a network."""

from collections.abc import Callable
from typing import Any, Protocol

import jax

from purejaxppo.core.distributions import Distribution
from purejaxppo.core.types import Observation, Params


class Network(Protocol):
    """Any object with these two methods; a flax linen module is one.

    `init(key, obs)` returns the parameters, and `apply(params, obs)` the distribution and the value [...] of
    observations [..., O], which may have any leading axes.
    """

    @property
    def init(self) -> Callable[..., Params]: ...
    @property
    def apply(self) -> Callable[..., Any]: ...  # not more exact, as flax annotates it for its mutable collections


class FeedForward:
    """The `Policy` of a network, which remembers nothing: what it does follows from the observation alone."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def init(self, key: jax.Array, obs: Observation) -> Params:
        return self.network.init(key, obs)

    def initial_memory(self, num_envs: int) -> tuple[()]:
        return ()

    def act(self, params: Params, memory: Any, obs: Observation, start: jax.Array) -> tuple[Any, Distribution]:
        # The value is not used, so the compiler removes the critic from the loop over steps.
        return memory, self.network.apply(params, obs)[0]

    def evaluate(
        self, params: Params, memory: Any, obs: Observation, start: jax.Array
    ) -> tuple[Distribution, jax.Array]:
        return self.network.apply(params, obs)
