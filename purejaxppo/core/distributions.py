"""Action distributions: pytrees of parameters with leading batch axes [...], and six methods.

Log-probabilities, entropies and KL divergences are in nats. `sample`, `log_prob` and `mode` are about the action as it
is *stored*, in the policy's units; `envs.wrappers.action_bound` maps it to the environment's bounds.

A draw is made in two parts: `noise`, which does not depend on the parameters' values, and `sample`, which is a function
of the noise. A rollout can then make the noise of all its steps at once, before its loop.
"""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Distribution(Protocol):
    """The interface of a policy's distribution, which has to be a pytree."""

    def noise(self, key: jax.Array) -> jax.Array: ...
    def sample(self, noise: jax.Array) -> jax.Array: ...
    def log_prob(self, action: jax.Array) -> jax.Array: ...
    def entropy(self) -> jax.Array: ...
    def kl(self, other: Self) -> jax.Array: ...
    def mode(self) -> jax.Array: ...


class Categorical(NamedTuple):
    """A distribution over A actions with probabilities softmax(logits); an action is an integer [...].

    A logit of -inf masks its action: the action is never drawn, and since 0 log 0 = 0 it adds nothing to the entropy,
    the KL divergence or their derivatives. At least one logit has to be finite.
    """

    logits: jax.Array  # [..., A]

    def masked(self, mask: jax.Array) -> "Categorical":
        """Returns the distribution over those actions alone that mask (bool [..., A]) allows, at least one."""
        return Categorical(jnp.where(mask, self.logits, -jnp.inf))

    def noise(self, key: jax.Array) -> jax.Array:
        """Draws standard Gumbel noise [..., A]."""
        return jax.random.gumbel(key, self.logits.shape, self.logits.dtype)

    def sample(self, noise: jax.Array) -> jax.Array:
        """Returns the actions [...] (int32) that `noise` chooses: argmax(logits + noise) has these probabilities.

        Source: Gumbel 1954, "Statistical theory of extreme values and some practical applications".
        """
        return jnp.argmax(self.logits + noise, axis=-1).astype(jnp.int32)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Returns log p(action) [...] of actions [...]."""
        log_p = jax.nn.log_softmax(self.logits)
        # A sum over a one-hot mask instead of a gather: A is small, and the gradient is a product instead of a scatter.
        chosen = jax.nn.one_hot(action, self.logits.shape[-1], dtype=log_p.dtype)
        return jnp.sum(jnp.where(chosen > 0, log_p, 0.0), axis=-1)

    def entropy(self) -> jax.Array:
        """Returns -sum_a p(a) log p(a)  [...]."""
        log_p = jax.nn.log_softmax(_finite(self.logits))
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def kl(self, other: "Categorical") -> jax.Array:
        """Returns KL(self || other) = sum_a p(a) (log p(a) - log q(a))  [...].

        It is infinite if `other` masks an action that `self` does not.
        """
        log_p = jax.nn.log_softmax(_finite(self.logits))
        p = jnp.exp(log_p)
        log_q = jax.nn.log_softmax(_finite(other.logits, where=p == 0))
        return jnp.sum(p * (log_p - log_q), axis=-1)

    def mode(self) -> jax.Array:
        """Returns the most probable action [...]."""
        return jnp.argmax(self.logits, axis=-1)


class MultiCategorical(NamedTuple):
    """F independent categorical distributions, the factors of an action; an action is a vector of integers [..., F].

    log p(a) = sum_f log p_f(a_f), and so entropy and KL divergence are sums over the factors as well. Each factor is
    masked by itself, as in `Categorical`; a mask that depends on another factor's choice cannot be expressed.
    """

    factors: tuple[Categorical, ...]  # F of them, with logits [..., A_f]

    def masked(self, mask: jax.Array) -> "MultiCategorical":
        """Returns the distribution without the choices that mask (bool [..., sum_f A_f], side by side) forbids."""
        parts = split_last(mask, self.sizes)
        return MultiCategorical(tuple(pi.masked(part) for pi, part in zip(self.factors, parts, strict=True)))

    def noise(self, key: jax.Array) -> jax.Array:
        """Draws standard Gumbel noise [..., sum_f A_f], that of the factors side by side."""
        logits = self.logits
        return jax.random.gumbel(key, logits.shape, logits.dtype)

    def sample(self, noise: jax.Array) -> jax.Array:
        """Returns the actions [..., F] (int32) that `noise` chooses, in every factor by itself."""
        parts = split_last(noise, self.sizes)
        return jnp.stack([pi.sample(part) for pi, part in zip(self.factors, parts, strict=True)], axis=-1)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Returns log p(action) [...] of actions [..., F]."""
        return _total(pi.log_prob(action[..., i]) for i, pi in enumerate(self.factors))

    def entropy(self) -> jax.Array:
        """Returns sum_f H(p_f)  [...]."""
        return _total(pi.entropy() for pi in self.factors)

    def kl(self, other: "MultiCategorical") -> jax.Array:
        """Returns KL(self || other) = sum_f KL(p_f || q_f)  [...]."""
        return _total(p.kl(q) for p, q in zip(self.factors, other.factors, strict=True))

    def mode(self) -> jax.Array:
        """Returns the most probable action [..., F], that of every factor."""
        return jnp.stack([pi.mode() for pi in self.factors], axis=-1)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The factors' numbers of choices A_f."""
        return tuple(pi.logits.shape[-1] for pi in self.factors)

    @property
    def logits(self) -> jax.Array:
        """The factors' logits side by side [..., sum_f A_f]."""
        return jnp.concatenate([pi.logits for pi in self.factors], axis=-1)


class DiagGaussian(NamedTuple):
    """An independent normal distribution per action dimension; an action is a vector [..., A] without bounds."""

    mean: jax.Array  # [..., A]
    log_std: jax.Array  # [..., A]

    def noise(self, key: jax.Array) -> jax.Array:
        """Draws standard normal noise [..., A]."""
        return jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def sample(self, noise: jax.Array) -> jax.Array:
        """Returns the actions mean + sigma noise  [..., A]."""
        return self.mean + jnp.exp(self.log_std) * noise

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Returns the log density [...] of actions [..., A], summed over the dimensions."""
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * z**2 - self.log_std - _LOG_SQRT_2PI, axis=-1)

    def entropy(self) -> jax.Array:
        """Returns sum_i log(sigma_i sqrt(2 pi e))  [...]."""
        return jnp.sum(self.log_std + _LOG_SQRT_2PI + 0.5, axis=-1)

    def kl(self, other: "DiagGaussian") -> jax.Array:
        """Returns KL(self || other) = sum_i log(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2  [...]."""
        log_ratio = self.log_std - other.log_std
        shift = (self.mean - other.mean) * jnp.exp(-other.log_std)
        return jnp.sum(0.5 * (jnp.exp(2 * log_ratio) + shift**2 - 1) - log_ratio, axis=-1)

    def mode(self) -> jax.Array:
        """Returns the mean [..., A]."""
        return self.mean


class TanhDiagGaussian(NamedTuple):
    """tanh(u) in (-1, 1) with u normal per dimension; the stored action is u, *before* tanh.

    Storing u keeps the log-probability exact where tanh saturates, and no inverse is ever needed. The density is that
    of tanh(u). The constant scale from (-1, 1) to the environment's bounds is left out, as it cancels in every ratio.
    """

    mean: jax.Array  # [..., A]
    log_std: jax.Array  # [..., A]

    @property
    def _gaussian(self) -> DiagGaussian:
        return DiagGaussian(self.mean, self.log_std)

    def noise(self, key: jax.Array) -> jax.Array:
        """Draws standard normal noise [..., A]."""
        return self._gaussian.noise(key)

    def sample(self, noise: jax.Array) -> jax.Array:
        """Returns u = mean + sigma noise  [..., A], the actions before tanh."""
        return self._gaussian.sample(noise)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Returns the log density [...] of tanh(u) at u = action [..., A]: log N(u) - sum_i log(1 - tanh(u_i)^2)."""
        return self._gaussian.log_prob(action) - jnp.sum(_log_tanh_slope(action), axis=-1)

    def entropy(self) -> jax.Array:
        """Returns H(u) + sum_i E[log(1 - tanh(u_i)^2)]  [...], within 1e-5 nats for every mean and sigma.

        The expectation is 2 log 2 - 2 E[log(2 cosh u_i)], and log(2 cosh u) = E|u + L| with L logistic of scale 1/2:
        both sides are even, have the second derivative sech(u)^2 and approach |u|. L is a mixture of normal
        distributions (`_logistic_as_normals`), so u_i + L is one too, and each component has a known E|u_i + L|.
        The bound of the error is that of the mixture, before the rounding of float32.
        """
        stds, weights = (_like_last(jnp.asarray(x, self.mean.dtype), self.mean.ndim + 1) for x in _LOGISTIC)
        std = jnp.sqrt(jnp.exp(2 * self.log_std)[..., None] + stds**2)
        distance = jnp.sum(weights * _mean_distance(self.mean[..., None], std), axis=-1)
        return self._gaussian.entropy() + 2 * jnp.sum(math.log(2) - distance, axis=-1)

    def kl(self, other: "TanhDiagGaussian") -> jax.Array:
        """Returns KL(self || other) [...], that of the Gaussians, since the same bijection tanh is applied to both."""
        return self._gaussian.kl(other._gaussian)

    def mode(self) -> jax.Array:
        """Returns the mean of u [..., A], the median action; the density of tanh(u) may peak at the bounds instead."""
        return self.mean


def split_last(x: jax.Array, sizes: tuple[int, ...]) -> list[jax.Array]:
    """Cuts the last axis into pieces of these sizes, which add up to its length."""
    return jnp.split(x, np.cumsum(sizes)[:-1].tolist(), axis=-1)


def _total(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, terms)


def _finite(logits: jax.Array, where: jax.Array | bool = True) -> jax.Array:
    """Returns the logits with -inf replaced by a finite number so low that the probability is still 0.

    p log p and its derivatives are then 0 times a finite number, and not 0 times infinity, which is NaN.
    """
    return jnp.where(where & jnp.isneginf(logits), jnp.finfo(logits.dtype).min / 2, logits)


def _log_tanh_slope(u: jax.Array) -> jax.Array:
    """Returns log(1 - tanh(u)^2), elementwise, without the cancellation that this formula has for large |u|."""
    return 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))


def _logistic_as_normals() -> tuple[np.ndarray, np.ndarray]:
    """Returns the standard deviations and weights [8] of a normal mixture equal to the logistic one of scale 1/2.

    The exact mixture is over standard deviations t with the density of Kolmogorov's distribution,
    8 t sum_k (-1)^(k - 1) k^2 exp(-2 k^2 t^2). As a function of log t it falls off so fast at both ends that the
    trapezoidal rule with few points is accurate to 1e-6.

    Source: Stefanski 1991, "A normal scale mixture representation of the logistic distribution".
    """
    std = np.geomspace(0.33, 2.5, 8)
    k = np.arange(1, 20)[:, None]
    density = std * np.sum((-1.0) ** (k - 1) * k**2 * np.exp(-2 * (k * std) ** 2), axis=0)
    weights = density * std  # dt = t dlog t
    return std, weights / weights.sum()


_LOGISTIC = _logistic_as_normals()


def _mean_distance(mean: jax.Array, std: jax.Array) -> jax.Array:
    """Returns E|x| of x ~ N(mean, std^2), elementwise: the mean of the folded normal distribution."""
    z = mean / (math.sqrt(2) * std)
    return math.sqrt(2 / math.pi) * std * jnp.exp(-(z**2)) + mean * jax.scipy.special.erf(z)


def _like_last(x: jax.Array, ndim: int) -> jax.Array:
    """Reshapes a vector [n] to `ndim` axes, all but the last of length 1."""
    return x.reshape((1,) * (ndim - 1) + (-1,))
