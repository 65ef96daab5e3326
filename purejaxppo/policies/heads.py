"""Heads: the last layer of a policy, for every kind of action."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from purejaxppo.config import TrainConfig
from purejaxppo.core.distributions import (
    Categorical,
    DiagGaussian,
    MultiCategorical,
    TanhDiagGaussian,
    split_last,
)
from purejaxppo.core.types import ActionSpace, Discrete, MultiDiscrete
from purejaxppo.errors import ConfigError, EnvError
from purejaxppo.policies.layers import Dense


def policy_head(config: TrainConfig, space: ActionSpace) -> Callable[[bool], nn.Module]:
    """Returns the function that makes the head for a kind of actions, for features that are feature-major or not."""
    if isinstance(space, Discrete | MultiDiscrete):
        if config.action_distribution != "gaussian":
            number = space.n if isinstance(space, Discrete) else " x ".join(map(str, space.sizes))
            raise ConfigError(
                f"action_distribution {config.action_distribution} is for continuous actions, but {config.env} has "
                f"{number} discrete ones; leave it out."
            )
        if isinstance(space, MultiDiscrete):
            return lambda columns: MultiCategoricalHead(space.sizes, columns)
        return lambda columns: CategoricalHead(space.n, columns)
    if config.action_distribution == "gaussian":
        return lambda columns: GaussianHead(space.shape, DiagGaussian, columns)
    if not space.bounded().all():
        raise EnvError(
            f"action_distribution tanh_gaussian needs finite action bounds, but {config.env} has none; use gaussian."
        )
    return lambda columns: GaussianHead(space.shape, TanhDiagGaussian, columns)


class CategoricalHead(nn.Module):
    """A categorical policy, nearly uniform at initialisation (gain 0.01)."""

    num_actions: int
    columns: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> Categorical:
        logits = Dense(self.num_actions, 0.01, self.columns)(x)
        return Categorical(logits.T if self.columns else logits)


class MultiCategoricalHead(nn.Module):
    """Independent categorical policies, one per factor, nearly uniform at initialisation (gain 0.01)."""

    sizes: tuple[int, ...]
    columns: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> MultiCategorical:
        logits = Dense(sum(self.sizes), 0.01, self.columns)(x)  # one product for all factors
        logits = logits.T if self.columns else logits
        return MultiCategorical(tuple(Categorical(part) for part in split_last(logits, self.sizes)))


class GaussianHead(nn.Module):
    """A Gaussian policy: the mean depends on the features (gain 0.01), log_std is a free parameter that starts at 0.

    Its action is flat, [..., A], whatever the shape of the environment's.
    """

    action_shape: tuple[int, ...]
    distribution: type[DiagGaussian] | type[TanhDiagGaussian]
    columns: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> DiagGaussian | TanhDiagGaussian:
        size = math.prod(self.action_shape)
        mean = Dense(size, 0.01, self.columns)(x)
        mean = mean.T if self.columns else mean
        log_std = self.param("log_std", nn.initializers.zeros, (size,))
        return self.distribution(mean, jnp.broadcast_to(log_std, mean.shape))
