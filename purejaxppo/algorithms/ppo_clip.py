"""PPO with the clipped surrogate objective (PPO2)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from purejaxppo.algorithms.surrogate import surrogate_algorithm
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.losses import clipped_surrogate
from purejaxppo.core.types import Algorithm, Apply, Batch, Distribution, Metrics, Split, whole

Objective = Callable[[jax.Array, jax.Array, float], jax.Array]


def ppo_clip(
    config: TrainConfig, apply: Apply, objective: Objective = clipped_surrogate, *, split: Split = whole
) -> Algorithm:
    """Clipping takes the reason away to move the ratio beyond 1 +- clip_eps; nothing forbids it.

    Args:
      config, apply, split: as for `surrogate_algorithm`.
      objective: (ratio [B], advantage [B], clip_eps) -> scalar, to be maximised; a mean over the rows, if several
        devices are to share them.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """

    def policy_loss(
        hp: Hyperparams, _: Any, pi: Distribution, ratio: jax.Array, batch: Batch
    ) -> tuple[jax.Array, Metrics]:
        clipped = jnp.mean(jnp.abs(ratio - 1.0) > hp.clip_eps)
        return -objective(ratio, batch.advantage, hp.clip_eps), {"clip_fraction": clipped}

    return surrogate_algorithm(config, apply, policy_loss, split)
