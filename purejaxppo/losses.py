"""The scalar losses of PPO: arrays over a minibatch [B] in, one number out."""

import chex
import jax
import jax.numpy as jnp


def clipped_surrogate(ratio: jax.Array, advantage: jax.Array, clip_eps: float | jax.Array) -> jax.Array:
    """mean_i min(r_i A_i, clip(r_i, 1 - eps, 1 + eps) A_i), to be maximised.

    Args:
      ratio: pi_theta(a|s) / pi_old(a|s)  [B].
      advantage: [B].
      clip_eps: eps, scalar.

    Source: Schulman et al. 2017, "Proximal policy optimization algorithms", arXiv:1707.06347, eq. 7.
    """
    chex.assert_equal_shape([ratio, advantage])
    clipped = jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps)
    return jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))


def value_loss(value: jax.Array, target: jax.Array) -> jax.Array:
    """1/2 mean_i (V_i - target_i)^2 over a minibatch [B], in squared reward units."""
    chex.assert_equal_shape([value, target])
    return 0.5 * jnp.mean((value - target) ** 2)


def clipped_value_loss(
    value: jax.Array, target: jax.Array, old_value: jax.Array, clip_eps: float | jax.Array
) -> jax.Array:
    """1/2 mean_i max((V_i - target_i)^2, (clip(V_i, V_old,i - eps, V_old,i + eps) - target_i)^2) over [B].

    Source: OpenAI Baselines' ppo2; not in the paper. Andrychowicz et al. 2021 (arXiv:2006.05990) found no gain.
    """
    chex.assert_equal_shape([value, target, old_value])
    near = old_value + jnp.clip(value - old_value, -clip_eps, clip_eps)
    return 0.5 * jnp.mean(jnp.maximum((value - target) ** 2, (near - target) ** 2))


def standardize(x: jax.Array) -> jax.Array:
    """(x - mean) / (std + 1e-8) over all entries."""
    return (x - jnp.mean(x)) / (jnp.std(x) + 1e-8)


def explained_variance(value: jax.Array, target: jax.Array) -> jax.Array:
    """1 - Var(target - value) / Var(target) over all entries; 0 where the target is constant."""
    # The variance of equal numbers is not exactly 0 in float32, but their range is.
    varies = jnp.max(target) > jnp.min(target)
    return jnp.where(varies, 1.0 - jnp.var(target - value) / jnp.where(varies, jnp.var(target), 1.0), 0.0)
