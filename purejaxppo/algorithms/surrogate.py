"""Minibatch gradient steps, which all update rules share, and the loss of ppo_clip, ppo_kl and policy_gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.diagnostics import drift
from purejaxppo.core.losses import clipped_value_loss, standardize, value_loss
from purejaxppo.core.minibatch import fold_minibatches, stop_early
from purejaxppo.core.optimizer import make_optimizer
from purejaxppo.core.types import (
    Algorithm,
    Apply,
    Batch,
    Distribution,
    LearnerState,
    Metrics,
    Params,
    Split,
    single_device,
)


class GradientStep(NamedTuple):
    """What is measured on a minibatch, before the step that is taken on it."""

    metrics: Metrics  # reported as means over all steps of an update
    kl: jax.Array  # mean KL(old || new), nats; above hp.target_kl it ends the update
    ratio_deviation: jax.Array  # mean |r - 1|


# (params, minibatch) -> (gradient, what was measured)
Gradient = Callable[[Params, Batch], tuple[Params, GradientStep]]
# (hp, algo_state, pi, ratio [B], minibatch) -> (loss, metrics)
PolicyLoss = Callable[[Hyperparams, Any, Distribution, jax.Array, Batch], tuple[jax.Array, Metrics]]


def _identity(advantage: jax.Array) -> jax.Array:
    return advantage


# normalize_advantage -> (function of the batch's advantages, function of each minibatch's advantages)
_NORMALIZERS = {
    "minibatch": (_identity, standardize),
    "batch": (standardize, _identity),
    "off": (_identity, _identity),
}


def surrogate_algorithm(
    config: TrainConfig, apply: Apply, policy_loss: PolicyLoss, split: Split = single_device
) -> Algorithm:
    """Returns an update rule of minibatch gradient steps on policy loss + vf_coef * value loss - ent_coef * entropy.

    Args:
      config: counts of epochs and minibatches, and the kind of advantage normalisation.
      apply: (params, obs) -> (pi, value).
      policy_loss: the loss of the policy, in which the algorithms of the family differ.
      split: runs the gradient and `diagnostics.drift` on several devices; on one by default.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 9 and algorithm 1. Deviations, all common practice: Adam with
    eps 1e-5 and a global-norm clip, advantages standardised, optional value clipping, optional stop at a target KL.
    """
    per_batch, per_minibatch = _NORMALIZERS[config.normalize_advantage]

    def init(hp: Hyperparams, params: Params) -> LearnerState:
        return LearnerState(params, make_optimizer(hp).init(params), ())

    def update(key: jax.Array, hp: Hyperparams, learner: LearnerState, batch: Batch) -> tuple[LearnerState, Metrics]:
        def loss(params: Params, minibatch: Batch) -> tuple[jax.Array, GradientStep]:
            pi, value = apply(params, minibatch.obs)
            ratio = jnp.exp(pi.log_prob(minibatch.action) - minibatch.log_prob)
            policy, metrics = policy_loss(hp, learner.algo_state, pi, ratio, minibatch)
            critic = critic_loss(hp, value, minibatch)
            entropy = jnp.mean(pi.entropy())
            measured = GradientStep(
                {**metrics, "loss/policy": policy, "loss/value": critic, "entropy": entropy},
                kl=jnp.mean(minibatch.pi.kl(pi)),
                ratio_deviation=jnp.mean(jnp.abs(ratio - 1.0)),
            )
            return policy + hp.vf_coef * critic - hp.ent_coef * entropy, measured

        def gradient(params: Params, minibatch: Batch) -> tuple[Params, GradientStep]:
            # Standardised over the whole minibatch, before its rows are sharded: the loss is then a mean over rows,
            # and the mean of the devices' gradients is the gradient.
            minibatch = minibatch._replace(advantage=per_minibatch(minibatch.advantage))
            return split.mean(jax.grad(loss, has_aux=True))(params, minibatch)

        batch = batch._replace(advantage=per_batch(batch.advantage))
        learner, steps = gradient_steps(key, config, hp, learner, batch, gradient)
        metrics = jax.tree.map(jnp.mean, steps.metrics)
        metrics["ratio/first_minibatch_deviation"] = steps.ratio_deviation[0, 0]  # 0 up to rounding
        return learner, {**metrics, **drift(apply, learner.params, batch, split)}

    return Algorithm(init, update)


def gradient_steps(
    key: jax.Array, config: TrainConfig, hp: Hyperparams, learner: LearnerState, batch: Batch, gradient: Gradient
) -> tuple[LearnerState, GradientStep]:
    """Takes Adam's steps along `gradient`, over config.num_epochs shuffles of the batch into config.num_minibatches.

    If `hp.target_kl` is set, the steps stop early once the minibatch's `kl` exceeds it.

    Args:
      key: consumed by the shuffles.
      config: counts of epochs and minibatches.
      hp: with the learning rate, the gradient's maximum norm and target_kl.
      learner: parameters and optimizer state to start from.
      batch: N rows.
      gradient: (params, minibatch) -> (gradient, what was measured).

    Returns:
      The learner, and what was measured, with `grad_norm` (before clipping) among the metrics, leaves [epochs,
      minibatches], including the steps that were discarded.
    """
    optimizer = make_optimizer(hp)

    def step(learner: LearnerState, minibatch: Batch) -> tuple[LearnerState, GradientStep]:
        grads, measured = gradient(learner.params, minibatch)
        updates, opt_state = optimizer.update(grads, learner.opt_state, learner.params)
        params = optax.apply_updates(learner.params, updates)
        measured = measured._replace(metrics={**measured.metrics, "grad_norm": optax.tree.norm(grads)})
        return learner._replace(params=params, opt_state=opt_state), measured

    counts = config.num_epochs, config.num_minibatches
    target_kl = hp.target_kl
    if target_kl is None:
        return fold_minibatches(key, step, learner, batch, *counts)
    masked_step = stop_early(lambda measured: measured.kl > target_kl, step)
    (learner, _), steps = fold_minibatches(key, masked_step, (learner, jnp.array(True)), batch, *counts)
    return learner, steps


def critic_loss(hp: Hyperparams, value: jax.Array, batch: Batch) -> jax.Array:
    """Returns the value loss over a minibatch, clipped if hp.vf_clip_eps is set."""
    if hp.vf_clip_eps is None:
        return value_loss(value, batch.target)
    return clipped_value_loss(value, batch.target, batch.value, hp.vf_clip_eps)
