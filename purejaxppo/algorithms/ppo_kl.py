"""PPO with an adaptive penalty on the KL divergence (PPO1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.algorithms.surrogate import surrogate_algorithm
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.config.fields import KL_COEF_BOUNDS
from purejaxppo.core.losses import kl_penalized_surrogate
from purejaxppo.core.shards import Shards
from purejaxppo.core.types import (
    Algorithm,
    Batch,
    Distribution,
    LearnerState,
    Metrics,
    Params,
    Policy,
    Trajectory,
)


class KLPenalty(NamedTuple):
    """State carried from one update to the next."""

    kl_coef: jax.Array  # beta, per nat


def ppo_kl(config: TrainConfig, policy: Policy, *, shards: Shards | None = None) -> Algorithm:
    """Takes gradient steps on  mean(r A - beta KL(old || new)),  and adapts beta once per update.

    The KL is the exact one between the stored distribution and the new one, in the states of the batch. `config`,
    `policy` and `shards` are those of `surrogate_algorithm`.

    Source: Schulman et al. 2017, arXiv:1707.06347, sec. 4 and eq. 8.
    """

    def policy_loss(
        hp: Hyperparams, penalty: KLPenalty, pi: Distribution, ratio: jax.Array, batch: Batch
    ) -> tuple[jax.Array, Metrics]:
        return -kl_penalized_surrogate(ratio, batch.advantage, batch.pi.kl(pi), penalty.kl_coef), {}

    steps = surrogate_algorithm(config, policy, policy_loss, shards)

    def init(key: jax.Array, hp: Hyperparams, params: Params) -> LearnerState:
        return steps.init(key, hp, params)._replace(algo_state=KLPenalty(jnp.array(hp.kl_coef, jnp.float32)))

    def update(
        key: jax.Array, hp: Hyperparams, learner: LearnerState, trajectory: Trajectory
    ) -> tuple[LearnerState, Metrics]:
        used = learner.algo_state.kl_coef
        learner, metrics = steps.update(key, hp, learner, trajectory)
        kl_coef = adapted_kl_coef(used, metrics["kl"], hp.kl_min, hp.kl_max, hp.kl_coef_factor)
        return learner._replace(algo_state=KLPenalty(kl_coef)), {**metrics, "kl_coef": used}

    return Algorithm(init, update, steps.shards)


def adapted_kl_coef(
    kl_coef: jax.Array, kl: jax.Array, kl_min: float, kl_max: float, factor: float | jax.Array
) -> jax.Array:
    """Returns beta * factor after a mean KL above kl_max, beta / factor after one below kl_min, else beta.

    It stays within KL_COEF_BOUNDS: from 0 it could never rise again, and from either bound it returns to 1 in ten
    updates at factor 2.

    Source: Schulman et al. 2017, arXiv:1707.06347, sec. 4, with free thresholds instead of d / 1.5 and 1.5 d.
    """
    low, high = KL_COEF_BOUNDS
    changed = jnp.where(kl > kl_max, kl_coef * factor, jnp.where(kl < kl_min, kl_coef / factor, kl_coef))
    return jnp.clip(changed, low, high)
