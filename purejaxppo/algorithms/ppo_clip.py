"""PPO with the clipped surrogate objective (PPO2)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from purejaxppo.algorithms.gradient_steps import ExtraLoss
from purejaxppo.algorithms.surrogate import PolicyLoss, surrogate_algorithm
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.losses import clipped_surrogate
from purejaxppo.core.shards import Shards
from purejaxppo.core.types import Algorithm, Batch, Distribution, Metrics, Policy

Objective = Callable[[jax.Array, jax.Array, float | jax.Array], jax.Array]


def ppo_clip(
    config: TrainConfig,
    policy: Policy,
    objective: Objective = clipped_surrogate,
    *,
    shards: Shards | None = None,
    extra_loss: ExtraLoss | None = None,
) -> Algorithm:
    """Takes gradient steps on the clipped surrogate objective.

    The gradient is zero once the ratio has left [1 - eps, 1 + eps] in the direction the advantage favours; the range
    is not enforced.

    Args:
      config, policy, shards, extra_loss: as for `surrogate_algorithm`.
      objective: (ratio [B], advantage [B], clip_eps) -> scalar, to be maximised. It has to be a mean over the rows if
        these are sharded over several devices.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """

    return surrogate_algorithm(config, policy, clipped_loss(objective), shards, extra_loss)


def clipped_loss(objective: Objective = clipped_surrogate) -> PolicyLoss:
    """Returns the policy's loss of `ppo_clip`, for algorithms that take its steps on a batch of their own."""

    def policy_loss(
        hp: Hyperparams, _: Any, pi: Distribution, ratio: jax.Array, batch: Batch
    ) -> tuple[jax.Array, Metrics]:
        clipped = jnp.mean(jnp.abs(ratio - 1.0) > hp.clip_eps)
        return -objective(ratio, batch.advantage, hp.clip_eps), {"clip_fraction": clipped}

    return policy_loss
