"""Sums, means and variances whose error in float32 does not grow with the number of terms or the size of the mean."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Of a mean: what float32 cannot tell from no spread at all. Numbers near a mean lie 2**-24 to 2**-23 of it apart, and
# the mean itself is rounded to one of them; eight such steps are not mistaken for a standard deviation. A power of two,
# so that the product is exact wherever it is computed.
RELATIVE_FLOOR = 2.0**-20


class Sum(NamedTuple):
    """A sum as two float32 arrays of one shape, for `total` to read: the plain sum, and what rounding left out."""

    plain: jax.Array
    rest: jax.Array


def empty_sum(shape: tuple[int, ...]) -> Sum:
    """Returns the sum of nothing."""
    return Sum(jnp.zeros(shape), jnp.zeros(shape))


def add(to: Sum, x: jax.Array) -> Sum:
    """Adds x and keeps the error of the addition, so that a million terms are as exact as one.

    Source: Knuth 1969, "The art of computer programming", vol. 2, sec. 4.2.2 (the error of an addition whose second
    term may be the larger); Neumaier 1974, "Rundungsfehleranalyse einiger Verfahren zur Summation endlicher Summen".
    """
    plain = to.plain + x
    added = plain - to.plain
    return Sum(plain, to.rest + ((to.plain - (plain - added)) + (x - added)))


def total(of: Sum) -> jax.Array:
    """Returns the sum's nearest float32; an infinite one has no rest that could be told (inf - inf is NaN)."""
    return jnp.where(jnp.isfinite(of.plain), of.plain + of.rest, of.plain)


def centre(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits x [N, ...] into its deviations from the mean [N, ...] and the mean over the first axis [...].

    Both are taken relative to the first row: of equal rows every deviation is exactly 0, and a mean that is large
    beside the spread costs no digits.
    """
    shifted = x - x[:1]
    offset = jnp.mean(shifted, axis=0)
    return shifted - offset[None], x[0] + offset


def variance(x: jax.Array) -> jax.Array:
    """Returns the population variance of x [N, ...] over its first axis [...], exactly 0 where all rows are equal."""
    return jnp.mean(centre(x)[0] ** 2, axis=0)


def least_std(mean: jax.Array) -> jax.Array:
    """Returns the standard deviation around a mean below which float32 shows rounding and not spread."""
    return RELATIVE_FLOOR * jnp.abs(mean)
