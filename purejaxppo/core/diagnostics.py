"""Diagnostics of an update over its batch: how far the policy moved, and how well the value function fitted."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.core.shards import Shards
from purejaxppo.core.sums import Moments, least_std, merged, moments
from purejaxppo.core.types import Batch, Metrics, Params, Policy


class ShardDrift(NamedTuple):
    """What is measured of each shard, leaves [S]."""

    kl: jax.Array
    kl_k3: jax.Array
    ratio: Moments
    largest: jax.Array  # of the logarithms of the ratios
    weight: jax.Array  # mean ratio, and mean squared ratio, in units of the largest one
    squared_weight: jax.Array


def diagnose(policy: Policy, params: Params, batch: Batch, shards: Shards) -> Metrics:
    """Measures over a whole batch how far the policy has moved from the one that acted, and how well the critic fitted.

    Args:
      policy, params: after the update.
      batch: the rows on this device, with the policy that acted, and the values before the update.
      shards: of the run.

    Returns:
      `kl`, the exact mean KL(old || new) in nats; its estimate `kl_k3` = mean((r - 1) - log r) >= 0 from the actions
      alone (Schulman 2020, "Approximating KL divergence"); and statistics of the importance weights r. `ratio/mean` is
      1 in expectation for fresh actions, and only nearly 1 for the batch's own, which took part in choosing the policy.
      `ratio/std` and `ratio/max` show the variance that importance sampling pays for reusing data. A weight that
      overflows float32 makes all of them infinite or NaN but the effective sample size. `explained_variance` is that
      of the value targets by the values.
    """
    pi, _ = policy.evaluate(params, batch.memory, batch.obs, batch.start)
    log_ratio = pi.log_prob(batch.action) - batch.log_prob
    drift = shard_drift(shards.flat(batch.pi.kl(pi)), shards.flat(log_ratio))
    fit = moments(shards.flat(batch.target - batch.value)), moments(shards.flat(batch.target))
    drift, (error, target) = shards.gather((drift, fit))  # in one exchange
    return {**drift_metrics(drift), "explained_variance": explained_variance(merged(error), merged(target))}


def shard_drift(kl: jax.Array, log_ratio: jax.Array) -> ShardDrift:
    """Measures the rows of shards [S, n]: KL(old || new) and the logarithms of the ratios."""
    largest = jnp.max(log_ratio, axis=1)
    # The scale cancels in the effective sample size, so weights are divided by the largest one and cannot overflow.
    weight = jnp.exp(log_ratio - largest[:, None])
    return ShardDrift(
        kl=jnp.mean(kl, axis=1),
        kl_k3=jnp.mean(jnp.expm1(log_ratio) - log_ratio, axis=1),
        ratio=moments(jnp.exp(log_ratio)),
        largest=largest,
        weight=jnp.mean(weight, axis=1),
        squared_weight=jnp.mean(weight**2, axis=1),
    )


def drift_metrics(measured: ShardDrift) -> Metrics:
    """Returns the metrics of all shards together."""
    ratio = merged(measured.ratio)
    largest = jnp.max(measured.largest)
    scale = jnp.exp(measured.largest - largest)
    mean, squared = jnp.mean(measured.weight * scale), jnp.mean(measured.squared_weight * scale**2)
    return {
        "kl": jnp.mean(measured.kl),
        "kl_k3": jnp.mean(measured.kl_k3),
        "ratio/mean": ratio.mean,
        "ratio/std": jnp.sqrt(ratio.var),
        "ratio/max": jnp.exp(largest),
        # (sum_i r_i)^2 / (N sum_i r_i^2), a fraction in [1 / N, 1]. Source: Kong 1992, "A note on importance sampling
        # using standardized weights"; Owen 2013, "Monte Carlo theory, methods and examples", ch. 9 (without the 1 / N).
        "ratio/effective_sample_size": mean**2 / squared,
    }


def explained_variance(error: Moments, target: Moments) -> jax.Array:
    """Returns 1 - Var(target - value) / Var(target) of a batch; 0 if the target is constant up to rounding.

    Args:
      error: scalar moments of target - value.
      target: scalar moments of the target.
    """
    varies = target.var > least_std(target.mean) ** 2
    return jnp.where(varies, 1.0 - error.var / jnp.where(varies, target.var, 1.0), 0.0)
