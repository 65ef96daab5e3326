"""Shards on pretended devices: whose numbers they are, and that what one measured reaches all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxppo.core.shards import Shards

AXIS = "devices"


def on(devices, number):
    """The shards on each of several pretended devices, to be used under `vmap` over the axis."""
    return Shards(number, devices, lambda: jax.lax.axis_index(AXIS), lambda tree: jax.lax.psum(tree, AXIS))


@pytest.mark.parametrize(("devices", "number"), [(1, 3), (2, 6), (3, 6), (4, 4)])
def test_every_shard_is_on_one_device_and_all_of_them_know_it(devices, number):
    shards = on(devices, number)
    measured = jnp.arange(2.0 * number).reshape(devices, -1, 2).at[0, 0, 1].set(jnp.nan)
    ids, known = jax.vmap(lambda x: (shards.ids, shards.gather(x)), axis_name=AXIS)(measured)
    np.testing.assert_array_equal(np.ravel(ids), np.arange(number))
    for of_device in known:  # a NaN stays where it is
        np.testing.assert_array_equal(of_device, measured.reshape(number, 2))


def test_the_gradient_is_that_of_all_rows():
    rows, params = jnp.arange(12.0), jnp.array(3.0)

    def loss(params, rows):
        return jnp.mean(jnp.sin(params * rows)), jnp.mean(rows)

    shards = on(2, 4)
    grads, means = jax.vmap(lambda rows: shards.gradient(loss)(params, rows), axis_name=AXIS)(rows.reshape(2, 6))
    np.testing.assert_allclose(grads, jnp.full(2, jnp.mean(jnp.cos(params * rows) * rows)), rtol=1e-5)
    np.testing.assert_allclose(means, jnp.full(2, rows.mean()), rtol=1e-6)
