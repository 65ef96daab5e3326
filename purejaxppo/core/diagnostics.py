"""What a batch says about an update: how far the policy drifted, and how well the value function fits."""

import jax
import jax.numpy as jnp

from purejaxppo.core.sums import centre, least_std, variance
from purejaxppo.core.types import Apply, Batch, Metrics, Params, Split, whole


def drift(apply: Apply, params: Params, batch: Batch, split: Split = whole) -> Metrics:
    """How far the policy of `params` has moved from the one that acted, over a whole batch.

    `kl`, the exact mean KL(old || new) in nats, and what `importance_weights` gives. The policy of the rows is computed
    as `split` shares them out, by default at once.
    """
    pi = split.each(lambda params, rows: apply(params, rows.obs)[0])(params, batch)
    log_ratio = pi.log_prob(batch.action) - batch.log_prob
    return {"kl": jnp.mean(batch.pi.kl(pi)), **importance_weights(log_ratio)}


def importance_weights(log_ratio: jax.Array) -> Metrics:
    """Statistics of the weights r_i = exp(log_ratio_i) over a batch [N].

    `ratio/mean` would be 1 in expectation for fresh actions; the batch's own took part in choosing the policy, so it is
    nearly that. `ratio/std` and `ratio/max` show the variance that importance sampling pays for reusing data; `kl_k3` =
    mean((r - 1) - log r) >= 0 estimates KL(old || new) in nats from the actions alone (Schulman 2020, "Approximating KL
    divergence"). A weight beyond float32 spoils all but the effective sample size.
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
    """(sum_i r_i)^2 / (N sum_i r_i^2) of weights given by their logarithm [N]: a fraction in [1/N, 1].

    Source: Kong 1992, "A note on importance sampling using standardized weights"; Owen 2013, "Monte Carlo theory,
    methods and examples", ch. 9 (both without the 1/N).
    """
    # The scale cancels, so the largest weight is made 1 and nothing overflows.
    weight = jnp.exp(log_ratio - jnp.max(log_ratio))
    return jnp.mean(weight) ** 2 / jnp.mean(weight**2)


def explained_variance(value: jax.Array, target: jax.Array) -> jax.Array:
    """1 - Var(target - value) / Var(target) over a batch [N]; 0 where the target is constant, but for its rounding."""
    deviation, mean = centre(target)
    spread = jnp.mean(deviation**2)
    varies = spread > least_std(mean) ** 2
    return jnp.where(varies, 1.0 - variance(target - value) / jnp.where(varies, spread, 1.0), 0.0)
