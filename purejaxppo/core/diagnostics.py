"""Diagnostics of an update over its batch: how far the policy moved, and how well the value function fits."""

import jax
import jax.numpy as jnp

from purejaxppo.core.sums import centre, least_std, variance
from purejaxppo.core.types import Apply, Batch, Metrics, Params, Split, single_device


def drift(apply: Apply, params: Params, batch: Batch, split: Split = single_device) -> Metrics:
    """Measures how far the policy of `params` has moved from the one that acted, over a whole batch.

    Args:
      apply: (params, obs) -> (pi, value).
      params: after the update.
      batch: with the policy that acted.
      split: maps the policy over devices; the default runs it on one.

    Returns:
      `kl`, the exact mean KL(old || new) in nats, and the metrics of `importance_weights`.
    """
    pi = split.each(lambda params, rows: apply(params, rows.obs)[0])(params, batch)
    log_ratio = pi.log_prob(batch.action) - batch.log_prob
    return {"kl": jnp.mean(batch.pi.kl(pi)), **importance_weights(log_ratio)}


def importance_weights(log_ratio: jax.Array) -> Metrics:
    """Returns statistics of the weights r_i = exp(log_ratio_i) over a batch [N].

    `ratio/mean` is 1 in expectation for fresh actions, and only nearly 1 for the batch's own, which took part in
    choosing the policy. `ratio/std` and `ratio/max` show the variance that importance sampling pays for reusing data.
    `kl_k3` = mean((r - 1) - log r) >= 0 estimates KL(old || new) in nats from the actions alone (Schulman 2020,
    "Approximating KL divergence"). A weight that overflows float32 makes all of them infinite or NaN but the effective
    sample size.
    """
    ratio = jnp.exp(log_ratio)
    return {
        "kl_k3": jnp.mean(jnp.expm1(log_ratio) - log_ratio),
        "ratio/mean": jnp.mean(ratio),
        "ratio/std": jnp.sqrt(variance(ratio)),
        "ratio/max": jnp.max(ratio),
        "ratio/effective_sample_size": effective_sample_size(log_ratio),
    }


def effective_sample_size(log_ratio: jax.Array) -> jax.Array:
    """Returns (sum_i r_i)^2 / (N sum_i r_i^2), a fraction in [1/N, 1], of weights given by their logarithm [N].

    Source: Kong 1992, "A note on importance sampling using standardized weights"; Owen 2013, "Monte Carlo theory,
    methods and examples", ch. 9 (both without the 1/N).
    """
    # The scale cancels, so the weights are divided by the largest one and cannot overflow.
    weight = jnp.exp(log_ratio - jnp.max(log_ratio))
    return jnp.mean(weight) ** 2 / jnp.mean(weight**2)


def explained_variance(value: jax.Array, target: jax.Array) -> jax.Array:
    """Returns 1 - Var(target - value) / Var(target) over a batch [N]; 0 if the target is constant up to rounding."""
    deviation, mean = centre(target)
    spread = jnp.mean(deviation**2)
    varies = spread > least_std(mean) ** 2
    return jnp.where(varies, 1.0 - variance(target - value) / jnp.where(varies, spread, 1.0), 0.0)
