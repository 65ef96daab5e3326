"""What the update rules share: minibatch gradient steps, and the loss of those that take nothing else."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.diagnostics import drift
from purejaxppo.core.losses import clipped_value_loss, standardize, value_loss
from purejaxppo.core.minibatch import fold_minibatches, until
from purejaxppo.core.optimizer import make_optimizer
from purejaxppo.core.types import Algorithm, Apply, Batch, Distribution, LearnerState, Metrics, Params, Split, whole

Gradient = Callable[[Params, Batch], tuple[Params, Metrics]]
# (hp, algo_state, pi, ratio [B], minibatch) -> (loss, its own metrics)
PolicyLoss = Callable[[Hyperparams, Any, Distribution, jax.Array, Batch], tuple[jax.Array, Metrics]]


def _keep(advantage: jax.Array) -> jax.Array:
    return advantage


# What is done to the advantages of a batch, and to those of a minibatch.
_NORMALIZERS = {"minibatch": (_keep, standardize), "batch": (standardize, _keep), "off": (_keep, _keep)}


def surrogate_algorithm(config: TrainConfig, apply: Apply, policy_loss: PolicyLoss, split: Split = whole) -> Algorithm:
    """The update rule that takes minibatch gradient steps on  policy loss + vf_coef * value loss - ent_coef * entropy.

    Args:
      config: counts and the place of advantage normalisation.
      apply: (params, obs) -> (pi, value).
      policy_loss: what distinguishes one member of the family from the next.
      split: how rows are shared out, by default not at all.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 9 and algorithm 1. Deviations, all common practice: Adam with
    eps 1e-5 and a global-norm clip, advantages standardised, optional value clipping, optional stop at a target KL.
    """
    per_batch, per_minibatch = _NORMALIZERS[config.normalize_advantage]

    def init(hp: Hyperparams, params: Params) -> LearnerState:
        return LearnerState(params, make_optimizer(hp).init(params), ())

    def update(key: jax.Array, hp: Hyperparams, learner: LearnerState, batch: Batch) -> tuple[LearnerState, Metrics]:
        def loss(params: Params, minibatch: Batch) -> tuple[jax.Array, Metrics]:
            pi, value = apply(params, minibatch.obs)
            ratio = jnp.exp(pi.log_prob(minibatch.action) - minibatch.log_prob)
            policy, metrics = policy_loss(hp, learner.algo_state, pi, ratio, minibatch)
            critic = critic_loss(hp, value, minibatch)
            entropy = jnp.mean(pi.entropy())
            metrics = {
                **metrics,
                "loss/policy": policy,
                "loss/value": critic,
                "entropy": entropy,
                "minibatch_kl": jnp.mean(minibatch.pi.kl(pi)),
                "ratio_deviation": jnp.mean(jnp.abs(ratio - 1.0)),
            }
            return policy + hp.vf_coef * critic - hp.ent_coef * entropy, metrics

        def gradient(params: Params, minibatch: Batch) -> tuple[Params, Metrics]:
            # By the statistics of all rows, before each device takes its share.
            minibatch = minibatch._replace(advantage=per_minibatch(minibatch.advantage))
            return split.mean(jax.grad(loss, has_aux=True))(params, minibatch)

        batch = batch._replace(advantage=per_batch(batch.advantage))
        learner, steps = gradient_steps(key, config, hp, learner, batch, gradient)
        del steps["minibatch_kl"]
        deviation = steps.pop("ratio_deviation")[0, 0]
        metrics = {**jax.tree.map(jnp.mean, steps), "ratio/first_minibatch_deviation": deviation}
        return learner, {**metrics, **drift(apply, learner.params, batch, split)}

    return Algorithm(init, update)


def gradient_steps(
    key: jax.Array, config: TrainConfig, hp: Hyperparams, learner: LearnerState, batch: Batch, gradient: Gradient
) -> tuple[LearnerState, Metrics]:
    """Adam's steps along `gradient` over config.num_epochs shuffles of the batch into config.num_minibatches.

    With `hp.target_kl`, the steps end where the metric `minibatch_kl` exceeds it; a gradient without that metric needs
    hp.target_kl = None.

    Returns:
      The learner, and the gradient's metrics and `grad_norm` (before clipping) of each step [epochs, minibatches],
      taken before it; those of skipped steps included.
    """
    optimizer = make_optimizer(hp)

    def step(learner: LearnerState, minibatch: Batch) -> tuple[LearnerState, Metrics]:
        grads, metrics = gradient(learner.params, minibatch)
        updates, opt_state = optimizer.update(grads, learner.opt_state, learner.params)
        params = optax.apply_updates(learner.params, updates)
        return learner._replace(params=params, opt_state=opt_state), {**metrics, "grad_norm": optax.tree.norm(grads)}

    counts = config.num_epochs, config.num_minibatches
    target_kl = hp.target_kl
    if target_kl is None:
        return fold_minibatches(key, step, learner, batch, *counts)
    gated = until(lambda metrics: metrics["minibatch_kl"] > target_kl, step)
    (learner, _), steps = fold_minibatches(key, gated, (learner, jnp.array(True)), batch, *counts)
    return learner, steps


def critic_loss(hp: Hyperparams, value: jax.Array, batch: Batch) -> jax.Array:
    """The value loss over a minibatch, clipped if hp.vf_clip_eps says so."""
    if hp.vf_clip_eps is None:
        return value_loss(value, batch.target)
    return clipped_value_loss(value, batch.target, batch.value, hp.vf_clip_eps)
