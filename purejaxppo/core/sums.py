"""Sums, means and variances whose error in float32 does not grow with the number of terms or the size of the mean."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# A standard deviation below this fraction of the mean is indistinguishable from 0 in float32. Neighbouring float32
# numbers near a mean are 2**-24 to 2**-23 of it apart, and the mean itself is rounded to one of them; this floor is
# about eight such steps. It is a power of two, so that the product with it is exact wherever it is computed.
RELATIVE_FLOOR = 2.0**-20


class Sum(NamedTuple):
    """A compensated sum as two float32 arrays of one shape: the rounded value, and the remainder lost to rounding."""

    value: jax.Array
    rest: jax.Array


def empty_sum(shape: tuple[int, ...]) -> Sum:
    """Returns a sum of no terms: 0."""
    return Sum(jnp.zeros(shape), jnp.zeros(shape))


def add(total: Sum, x: jax.Array) -> Sum:
    """Adds x with about twice the precision of float32, so that a million terms are as exact as one.

    Source: Dekker 1971, "A floating-point technique for extending the available precision", with the error of the
    first addition by Knuth 1969 ("The art of computer programming", vol. 2, sec. 4.2.2), where x may be the larger.
    """
    value = total.value + x
    added = value - total.value
    lost = (total.value - (value - added)) + (x - added)
    # An infinite sum has no remainder; inf - inf would make it NaN.
    rest = jnp.where(jnp.isfinite(value), lost + total.rest, 0.0)
    # Whatever part of the remainder the value can represent is moved there: the remainder is a float32 too, and would
    # lose digits if it grew.
    nearest = value + rest
    return Sum(nearest, rest - (nearest - value))


def centre(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the deviations of x [N, ...] from its mean [N, ...], and the mean over the first axis [...].

    Both are computed relative to the first row. Equal rows then have deviations of exactly 0, and no digits are lost
    where the mean is large compared with the spread.
    """
    x = x.astype(jnp.result_type(x, jnp.float32))  # differences of unsigned integers would wrap
    shifted = x - x[:1]
    offset = jnp.mean(shifted, axis=0)
    return shifted - offset[None], x[0] + offset


class Moments(NamedTuple):
    """Mean and population variance of the rows of each shard, leaves [S, ...]."""

    mean: jax.Array
    var: jax.Array


def moments(x: jax.Array) -> Moments:
    """Returns the moments of the rows of x [S, n, ...]; equal rows have a variance of exactly 0."""

    def of_shard(rows: jax.Array) -> Moments:
        deviation, mean = centre(rows)
        return Moments(mean, jnp.mean(deviation**2, axis=0))

    return jax.vmap(of_shard)(x)


def merged(shards: Moments) -> Moments:
    """Returns the moments [...] of the rows of all shards, which have the same number of rows."""
    deviation, mean = centre(shards.mean)
    return Moments(mean, jnp.mean(shards.var, axis=0) + jnp.mean(deviation**2, axis=0))


def variance(x: jax.Array) -> jax.Array:
    """Returns the population variance of x [N, ...] over its first axis [...], exactly 0 where all rows are equal."""
    return jnp.mean(centre(x)[0] ** 2, axis=0)


def least_std(mean: jax.Array) -> jax.Array:
    """Returns the smallest standard deviation around a mean that float32 can tell from rounding."""
    return RELATIVE_FLOOR * jnp.abs(mean)
