"""The losses: functions from arrays over a minibatch [B] to a scalar."""

import chex
import jax
import jax.numpy as jnp

from purejaxppo.core.sums import Moments, least_std


def clipped_surrogate(ratio: jax.Array, advantage: jax.Array, clip_eps: float | jax.Array) -> jax.Array:
    """Returns mean_i min(r_i A_i, clip(r_i, 1 - eps, 1 + eps) A_i), to be maximised.

    Args:
      ratio: pi_theta(a|s) / pi_old(a|s)  [B].
      advantage: [B].
      clip_eps: eps, scalar.

    Source: Schulman et al. 2017, "Proximal policy optimization algorithms", arXiv:1707.06347, eq. 7.
    """
    chex.assert_equal_shape([ratio, advantage])
    clipped = jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps)
    return jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))


def importance_surrogate(ratio: jax.Array, advantage: jax.Array) -> jax.Array:
    """Returns mean_i r_i A_i, to be maximised: the importance-sampled policy objective, without a bound on the ratio.

    Args:
      ratio: pi_theta(a|s) / pi_old(a|s)  [B].
      advantage: [B].

    Source: Schulman et al. 2015, "Trust region policy optimization", arXiv:1502.05477, eq. 14 (which drops the ratio
    of the state distributions).
    """
    chex.assert_equal_shape([ratio, advantage])
    return jnp.mean(ratio * advantage)


def kl_penalized_surrogate(
    ratio: jax.Array, advantage: jax.Array, kl: jax.Array, kl_coef: float | jax.Array
) -> jax.Array:
    """Returns mean_i (r_i A_i - beta KL_i), to be maximised.

    Args:
      ratio: pi_theta(a|s) / pi_old(a|s)  [B].
      advantage: [B].
      kl: KL(pi_old(.|s) || pi_theta(.|s))  [B], nats.
      kl_coef: beta, scalar, per nat.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 8.
    """
    chex.assert_equal_shape([ratio, advantage, kl])
    return jnp.mean(ratio * advantage - kl_coef * kl)


def value_loss(value: jax.Array, target: jax.Array) -> jax.Array:
    """Returns 1/2 mean_i (V_i - target_i)^2 over a minibatch [B], in squared reward units."""
    chex.assert_equal_shape([value, target])
    return 0.5 * jnp.mean((value - target) ** 2)


def clipped_value_loss(
    value: jax.Array, target: jax.Array, old_value: jax.Array, clip_eps: float | jax.Array
) -> jax.Array:
    """Returns 1/2 mean_i max((V_i - target_i)^2, (clip(V_i, V_old,i - eps, V_old,i + eps) - target_i)^2) over [B].

    Source: OpenAI Baselines' ppo2; not in the PPO paper. Andrychowicz et al. 2021 (arXiv:2006.05990) found no gain.
    """
    chex.assert_equal_shape([value, target, old_value])
    near = old_value + jnp.clip(value - old_value, -clip_eps, clip_eps)
    return 0.5 * jnp.mean(jnp.maximum((value - target) ** 2, (near - target) ** 2))


def standardize(x: jax.Array, moments: Moments) -> jax.Array:
    """Returns (x - mean) / (std + 1e-8), with scalar moments.

    The standard deviation is at least the smallest one that float32 can tell from rounding around the mean, so that
    equal numbers give 0, and their rounding errors do not become +-1.
    """
    mean, var = moments
    return (x - mean) / (jnp.maximum(jnp.sqrt(var), least_std(mean)) + 1e-8)
