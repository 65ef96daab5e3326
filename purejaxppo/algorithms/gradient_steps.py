"""Minibatch gradient steps, which all update rules share: advantages standardised, an optional stop at a target KL."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.config.fields import AdvantageNormalization
from purejaxppo.core.losses import clipped_value_loss, standardize, value_loss
from purejaxppo.core.minibatch import minibatch_rows, stop_early
from purejaxppo.core.optimizer import flat_norm, make_optimizer
from purejaxppo.core.shards import Shards
from purejaxppo.core.sums import merged, moments
from purejaxppo.core.types import Batch, LearnerState, Metrics, Params


class GradientStep(NamedTuple):
    """What is measured on a minibatch, before the step that is taken on it."""

    metrics: Metrics  # reported as means over all steps of an update
    kl: jax.Array  # mean KL(old || new), nats; above hp.target_kl it ends the update
    ratio_deviation: jax.Array  # mean |r - 1|


# (params, minibatch) -> (gradient, what was measured)
Gradient = Callable[[Params, Batch], tuple[Params, GradientStep]]


# (params, minibatch) -> (loss, metrics)
ExtraLoss = Callable[[Params, Batch], tuple[jax.Array, Metrics]]


def minibatch_advantages(
    kind: AdvantageNormalization, shards: Shards, advantage: jax.Array, rows: jax.Array
) -> jax.Array:
    """Returns the advantages of every minibatch [steps, B], standardised.

    They are standardised by the statistics of the whole minibatch, of all devices: the loss is then a mean over rows,
    and the mean of the devices' gradients is the gradient. As all shuffles are known before the first step, the
    statistics of all minibatches are one exchange.

    Args:
      kind: whether by the statistics of each minibatch, of the batch, or not at all.
      shards: of the run.
      advantage: [N] of the rows on this device.
      rows: [steps, B] of `minibatch_rows`.
    """
    if kind == "batch":
        advantage = standardize_batch(shards, advantage)
    taken = advantage[rows]
    if kind != "minibatch":
        return taken
    # A minibatch's rows lie shard by shard (`minibatch_rows`), so its part of each shard is a slice: [S / D, n, steps].
    by_shard = taken.reshape(len(rows), shards.local, -1).transpose(1, 2, 0)
    return jax.vmap(standardize)(taken, merged(shards.gather(moments(by_shard))))


def standardize_batch(shards: Shards, advantage: jax.Array) -> jax.Array:
    """Returns advantages [N] standardised by the statistics of the rows of all devices."""
    return standardize(advantage, merged(shards.gather(moments(shards.flat(advantage)))))


def gradient_steps(
    config: TrainConfig,
    hp: Hyperparams,
    learner: LearnerState,
    batch: Batch,
    rows: jax.Array,
    advantage: jax.Array,
    gradient: Gradient,
) -> tuple[LearnerState, GradientStep]:
    """Takes the optimizer's steps along `gradient`, one per minibatch.

    If `hp.target_kl` is set, the steps stop early once the minibatch's `kl` exceeds it.

    Args:
      config: with the optimizer.
      hp: with the learning rate, the gradient's maximum norm and target_kl.
      learner: parameters and optimizer state to start from.
      batch: N rows.
      rows: [steps, B] of `minibatch_rows`.
      advantage: [steps, B], which replaces the batch's own.
      gradient: (params, minibatch) -> (gradient, what was measured).

    Returns:
      The learner, and what was measured, with `grad_norm` (before clipping) among the metrics, leaves [steps],
      including the steps that were discarded.
    """
    optimizer = make_optimizer(config, hp)  # made here, as hp may be traced and state holds arrays alone

    def step(learner: LearnerState, drawn: tuple[jax.Array, jax.Array]) -> tuple[LearnerState, GradientStep]:
        rows, advantage = drawn
        minibatch = jax.tree.map(lambda x: x[rows], batch)._replace(advantage=advantage)
        grads, measured = gradient(learner.params, minibatch)
        updates, opt_state = optimizer.update(grads, learner.opt_state, learner.params)
        params = optax.apply_updates(learner.params, updates)
        measured = measured._replace(metrics={**measured.metrics, "grad_norm": flat_norm(grads)})
        return learner._replace(params=params, opt_state=opt_state), measured

    target_kl = hp.target_kl
    if target_kl is None:  # known when the update is traced, so such a loop has no mask
        return jax.lax.scan(step, learner, (rows, advantage))
    masked_step = stop_early(lambda measured: measured.kl > target_kl, step)
    (learner, _), steps = jax.lax.scan(masked_step, (learner, jnp.array(True)), (rows, advantage))
    return learner, steps


def fit(
    config: TrainConfig,
    shards: Shards,
    key: jax.Array,
    hp: Hyperparams,
    learner: LearnerState,
    batch: Batch,
    loss: ExtraLoss,
) -> tuple[LearnerState, Metrics]:
    """Minimises a loss beside the policy's by gradient steps over epochs and minibatches, all of which are taken.

    Args:
      config, shards: of the run.
      key: consumed.
      hp: with the learning rate and the gradient's maximum norm; its target_kl, which is the policy's, is not used.
      learner: the parameters of the loss, and their optimizer's state.
      batch: N rows.
      loss: a mean over a minibatch's rows, with metrics that are such means too.

    Returns:
      The learner, and the metrics with `grad_norm`, as means over the steps.
    """

    def measured(params: Params, minibatch: Batch) -> tuple[jax.Array, GradientStep]:
        total, metrics = loss(params, minibatch)
        unmoved = jnp.zeros(())  # no policy is meant
        return total, GradientStep(metrics, kl=unmoved, ratio_deviation=unmoved)

    rows = minibatch_rows(key, shards, len(batch.advantage), config.num_epochs, config.num_minibatches)
    hp, gradient = dataclasses.replace(hp, target_kl=None), shards.gradient(measured)
    learner, steps = gradient_steps(config, hp, learner, batch, rows, batch.advantage[rows], gradient)
    return learner, jax.tree.map(jnp.mean, steps.metrics)


def critic_loss(hp: Hyperparams, value: jax.Array, batch: Batch) -> jax.Array:
    """Returns the value loss over a minibatch, clipped if hp.vf_clip_eps is set."""
    if hp.vf_clip_eps is None:
        return value_loss(value, batch.target)
    return clipped_value_loss(value, batch.target, batch.value, hp.vf_clip_eps)
