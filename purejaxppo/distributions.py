"""Action distributions as pytrees: parameters with a batch shape [...] in front, five methods, nothing else.

All probabilities are in nats. `sample`, `log_prob` and `mode` speak of the action as it is *stored*, in the policy's
units; `wrappers.action_bound` brings it to the bounds, clipped or squashed by tanh, for the environment.
"""

import math
from typing import NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_HERMITE_NODES, _HERMITE_WEIGHTS = np.polynomial.hermite_e.hermegauss(24)


class Distribution(Protocol):
    """What every policy's distribution can do; a pytree."""

    def sample(self, key: jax.Array) -> jax.Array: ...
    def log_prob(self, action: jax.Array) -> jax.Array: ...
    def entropy(self) -> jax.Array: ...
    def kl(self, other: Self) -> jax.Array: ...
    def mode(self) -> jax.Array: ...


class Categorical(NamedTuple):
    """One of A actions with probability softmax(logits); an action is an integer [...]."""

    logits: jax.Array  # [..., A]

    def sample(self, key: jax.Array) -> jax.Array:
        """Draws actions [...] (int32)."""
        return jax.random.categorical(key, self.logits)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """log p(action) [...] of actions [...]."""
        log_p = jax.nn.log_softmax(self.logits)
        # A sum over a one-hot mask, not a gather: A is small, and its gradient is a product, not a scatter.
        chosen = jax.nn.one_hot(action, self.logits.shape[-1], dtype=log_p.dtype)
        return jnp.sum(jnp.where(chosen > 0, log_p, 0.0), axis=-1)

    def entropy(self) -> jax.Array:
        """-sum_a p(a) log p(a)  [...]."""
        log_p = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def kl(self, other: "Categorical") -> jax.Array:
        """KL(self || other) = sum_a p(a) (log p(a) - log q(a))  [...]."""
        log_p, log_q = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

    def mode(self) -> jax.Array:
        """The most probable action [...]."""
        return jnp.argmax(self.logits, axis=-1)


class DiagGaussian(NamedTuple):
    """Independent normal per action dimension; an action is a vector [..., A], not limited to the bounds."""

    mean: jax.Array  # [..., A]
    log_std: jax.Array  # [..., A]

    def sample(self, key: jax.Array) -> jax.Array:
        """Draws actions [..., A]."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_std) * noise

    def log_prob(self, action: jax.Array) -> jax.Array:
        """log density [...] of actions [..., A], summed over the dimensions."""
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * z**2 - self.log_std - _LOG_SQRT_2PI, axis=-1)

    def entropy(self) -> jax.Array:
        """sum_i log(sigma_i sqrt(2 pi e))  [...]."""
        return jnp.sum(self.log_std + _LOG_SQRT_2PI + 0.5, axis=-1)

    def kl(self, other: "DiagGaussian") -> jax.Array:
        """KL(self || other) = sum_i log(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2  [...]."""
        log_ratio = self.log_std - other.log_std
        shift = (self.mean - other.mean) * jnp.exp(-other.log_std)
        return jnp.sum(0.5 * (jnp.exp(2 * log_ratio) + shift**2 - 1) - log_ratio, axis=-1)

    def mode(self) -> jax.Array:
        """The mean [..., A]."""
        return self.mean


class TanhDiagGaussian(NamedTuple):
    """tanh(u) in (-1, 1) with u normal per dimension; the action that is stored is u itself, *before* tanh.

    Storing u keeps the log-probability exact where tanh saturates, and no inverse is ever taken. The density is that
    of tanh(u); the constant scale from (-1, 1) to the environment's bounds is left out: it cancels in every ratio.
    """

    mean: jax.Array  # [..., A]
    log_std: jax.Array  # [..., A]

    @property
    def _gaussian(self) -> DiagGaussian:
        return DiagGaussian(self.mean, self.log_std)

    def sample(self, key: jax.Array) -> jax.Array:
        """Draws u [..., A], the action before tanh."""
        return self._gaussian.sample(key)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """log density [...] of tanh(u) at u = action [..., A]: log N(u) - sum_i log(1 - tanh(u_i)^2)."""
        return self._gaussian.log_prob(action) - jnp.sum(_log_tanh_slope(action), axis=-1)

    def entropy(self) -> jax.Array:
        """H(u) + sum_i E[log(1 - tanh(u_i)^2)]  [...].

        The expectation has no closed form: it is one-dimensional per action, so 24-point Gauss-Hermite quadrature
        gives it without sampling (error below 1e-3 nats up to sigma = 2).
        """
        nodes, weights = (jnp.asarray(x, self.mean.dtype) for x in (_HERMITE_NODES, _HERMITE_WEIGHTS))
        u = self.mean[..., None] + jnp.exp(self.log_std)[..., None] * _like_last(nodes, self.mean.ndim + 1)
        expected = jnp.sum(_log_tanh_slope(u) * _like_last(weights, u.ndim), axis=-1) / math.sqrt(2 * math.pi)
        return self._gaussian.entropy() + jnp.sum(expected, axis=-1)

    def kl(self, other: "TanhDiagGaussian") -> jax.Array:
        """KL(self || other) [...]: that of the Gaussians, since tanh is a bijection applied to both."""
        return self._gaussian.kl(other._gaussian)

    def mode(self) -> jax.Array:
        """The mean of u [..., A]: the median action, as the density of tanh(u) may peak at the bounds."""
        return self.mean


def _log_tanh_slope(u: jax.Array) -> jax.Array:
    """log(1 - tanh(u)^2), element by element, without the cancellation that the plain formula has for large |u|."""
    return 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))


def _like_last(x: jax.Array, ndim: int) -> jax.Array:
    """A vector as the last of `ndim` axes."""
    return x.reshape((1,) * (ndim - 1) + (-1,))
