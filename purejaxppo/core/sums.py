"""Sums, means and variances whose error in float32 does not grow with the number of terms or the size of the mean."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Of a mean: what float32 cannot tell from no spread at all. Numbers near a mean lie 2**-24 to 2**-23 of it apart, and
# the mean itself is rounded to one of them; eight such steps are not mistaken for a standard deviation. A power of two,
# so that the product is exact wherever it is computed.
RELATIVE_FLOOR = 2.0**-20


class Sum(NamedTuple):
    """A sum as two float32 arrays of one shape: its nearest value, and what rounding has left out of that."""

    value: jax.Array
    rest: jax.Array


def empty_sum(shape: tuple[int, ...]) -> Sum:
    """Returns the sum of nothing."""
    return Sum(jnp.zeros(shape), jnp.zeros(shape))


def add(total: Sum, x: jax.Array) -> Sum:
    """Adds x with about twice the digits of float32, so that a million terms are as exact as one.

    Source: Dekker 1971, "A floating-point technique for extending the available precision", with the error of the
    first addition by Knuth 1969 ("The art of computer programming", vol. 2, sec. 4.2.2), where x may be the larger.
    """
    value = total.value + x
    added = value - total.value
    lost = (total.value - (value - added)) + (x - added)
    # An infinite sum has lost nothing; inf - inf would make it NaN.
    rest = jnp.where(jnp.isfinite(value), lost + total.rest, 0.0)
    # The rest is kept small by moving what it amounts to into the value: it is a float32 too, and would lose digits.
    nearest = value + rest
    return Sum(nearest, rest - (nearest - value))


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
