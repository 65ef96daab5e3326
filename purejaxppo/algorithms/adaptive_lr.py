"""A learning rate adapted to the KL divergence of each update, for any update rule that takes gradient steps."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.config import Hyperparams
from purejaxppo.config.fields import DEFAULT_TARGET_KL
from purejaxppo.core.types import Algorithm, LearnerState, Metrics, Params, Trajectory

_FACTOR = 1.5
_BOUNDS = (1e-6, 1e-2)


class KLAdaptive(NamedTuple):
    """State carried from one update to the next."""

    learning_rate: jax.Array
    inner: Any  # the wrapped algorithm's own state


def kl_adaptive(algorithm: Algorithm) -> Algorithm:
    """Returns the update rule with a learning rate that is adapted after each update (`adapted_learning_rate`).

    `target_kl` becomes the KL that the rate aims at and no longer stops an update early, as the two would counteract
    each other.
    """

    def init(key: jax.Array, hp: Hyperparams, params: Params) -> LearnerState:
        learner = algorithm.init(key, hp, params)
        return learner._replace(algo_state=KLAdaptive(jnp.array(hp.learning_rate, jnp.float32), learner.algo_state))

    def update(
        key: jax.Array, hp: Hyperparams, learner: LearnerState, trajectory: Trajectory
    ) -> tuple[LearnerState, Metrics]:
        used, inner = learner.algo_state
        target_kl = DEFAULT_TARGET_KL if hp.target_kl is None else hp.target_kl
        # The wrapped rule sees the adapted rate as its hyperparameter, and no target that would stop it early.
        hp = dataclasses.replace(hp, learning_rate=used, target_kl=None)
        learner, metrics = algorithm.update(key, hp, learner._replace(algo_state=inner), trajectory)
        learning_rate = adapted_learning_rate(used, metrics["kl"], target_kl)
        state = KLAdaptive(learning_rate, learner.algo_state)
        return learner._replace(algo_state=state), {**metrics, "learning_rate": used}

    return Algorithm(init, update, algorithm.shards)


def adapted_learning_rate(learning_rate: jax.Array, kl: jax.Array, target_kl: float | jax.Array) -> jax.Array:
    """Returns the rate divided by 1.5 after a mean KL above 2 target_kl, times 1.5 after one below target_kl / 2.

    It stays within [1e-6, 1e-2]. A rate that was outside from the start may return, but is not moved further out.

    Source: the rule of rl_games and rsl_rl (Rudin et al. 2022, arXiv:2109.11978, table 3), there per minibatch.
    """
    low, high = _BOUNDS
    slower = jnp.minimum(learning_rate, jnp.maximum(learning_rate / _FACTOR, low))
    faster = jnp.maximum(learning_rate, jnp.minimum(learning_rate * _FACTOR, high))
    return jnp.where(kl > 2 * target_kl, slower, jnp.where(kl < 0.5 * target_kl, faster, learning_rate))
