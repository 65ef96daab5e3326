"""The importance-sampled policy gradient, with nothing that keeps the new policy near the old one."""

from typing import Any

import jax

from purejaxppo.algorithms.surrogate import surrogate_algorithm
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.losses import importance_surrogate
from purejaxppo.core.shards import Shards
from purejaxppo.core.types import Algorithm, Batch, Distribution, Metrics, Policy


def policy_gradient(config: TrainConfig, policy: Policy, *, shards: Shards | None = None) -> Algorithm:
    """Takes gradient steps on mean r A, an estimate whose variance grows as the policies drift apart.

    One epoch of one minibatch is the on-policy actor-critic gradient, since r = 1 there; more epochs or minibatches
    reuse data. `config`, `policy` and `shards` are those of `surrogate_algorithm`.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 6 (without the constraint that the paper adds to it).
    """

    def policy_loss(
        hp: Hyperparams, _: Any, pi: Distribution, ratio: jax.Array, batch: Batch
    ) -> tuple[jax.Array, Metrics]:
        return -importance_surrogate(ratio, batch.advantage), {}

    return surrogate_algorithm(config, policy, policy_loss, shards)
