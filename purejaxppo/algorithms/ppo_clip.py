"""PPO with the clipped surrogate objective."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.losses import clipped_surrogate, clipped_value_loss, standardize, value_loss
from purejaxppo.minibatch import fold_minibatches, until
from purejaxppo.optimizer import make_optimizer
from purejaxppo.types import Algorithm, Apply, Batch, LearnerState, Metrics, Params

Objective = Callable[[jax.Array, jax.Array, float], jax.Array]


def _keep(advantage: jax.Array) -> jax.Array:
    return advantage


# What is done to the advantages of a batch, and to those of a minibatch.
_NORMALIZERS = {"minibatch": (_keep, standardize), "batch": (standardize, _keep), "off": (_keep, _keep)}


def ppo_clip(config: TrainConfig, apply: Apply, objective: Objective = clipped_surrogate) -> Algorithm:
    """Minibatch gradient steps on  -objective + vf_coef * value loss - ent_coef * entropy.

    Args:
      config: counts and the place of advantage normalisation.
      apply: (params, obs) -> (pi, value).
      objective: (ratio [B], advantage [B], clip_eps) -> scalar, to be maximised.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 9. Deviations, all common practice: Adam with eps 1e-5 and a
    global-norm clip, advantages standardised, optional value clipping, optional stop at a target KL.
    """

    per_batch, per_minibatch = _NORMALIZERS[config.normalize_advantage]

    def loss(params: Params, hp: Hyperparams, batch: Batch) -> tuple[jax.Array, Metrics]:
        pi, value = apply(params, batch.obs)
        log_ratio = pi.log_prob(batch.action) - batch.log_prob
        ratio = jnp.exp(log_ratio)
        policy_loss = -objective(ratio, per_minibatch(batch.advantage), hp.clip_eps)
        critic_loss = _critic_loss(hp, value, batch)
        entropy = jnp.mean(pi.entropy())
        metrics = {
            "loss/policy": policy_loss,
            "loss/value": critic_loss,
            "entropy": entropy,
            "kl": jnp.mean(batch.pi.kl(pi)),
            "kl_k3": jnp.mean(ratio - 1.0 - log_ratio),
            "clip_fraction": jnp.mean(jnp.abs(ratio - 1.0) > hp.clip_eps),
            "ratio_deviation": jnp.max(jnp.abs(ratio - 1.0)),
        }
        return policy_loss + hp.vf_coef * critic_loss - hp.ent_coef * entropy, metrics

    def init(hp: Hyperparams, params: Params) -> LearnerState:
        return LearnerState(params, make_optimizer(hp).init(params), ())

    def update(key: jax.Array, hp: Hyperparams, learner: LearnerState, batch: Batch) -> tuple[LearnerState, Metrics]:
        optimizer = make_optimizer(hp)

        def step(learner: LearnerState, minibatch: Batch) -> tuple[LearnerState, Metrics]:
            grads, metrics = jax.grad(loss, has_aux=True)(learner.params, hp, minibatch)
            updates, opt_state = optimizer.update(grads, learner.opt_state, learner.params)
            params = optax.apply_updates(learner.params, updates)
            metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
            return LearnerState(params, opt_state, learner.algo_state), metrics

        batch = batch._replace(advantage=per_batch(batch.advantage))
        counts = config.num_epochs, config.num_minibatches
        target_kl = hp.target_kl
        if target_kl is None:
            learner, steps = fold_minibatches(key, step, learner, batch, *counts)
        else:
            gated = until(lambda metrics: metrics["kl"] > target_kl, step)
            (learner, _), steps = fold_minibatches(key, gated, (learner, jnp.array(True)), batch, *counts)
        deviation = steps.pop("ratio_deviation")[0, 0]
        metrics = jax.tree.map(jnp.mean, steps)
        return learner, {**metrics, "ratio/first_minibatch_deviation": deviation}

    return Algorithm(init, update)


def _critic_loss(hp: Hyperparams, value: jax.Array, batch: Batch) -> jax.Array:
    if hp.vf_clip_eps is None:
        return value_loss(value, batch.target)
    return clipped_value_loss(value, batch.target, batch.value, hp.vf_clip_eps)
