"""Loops over time: the same on every kind of device, in as many steps per iteration as that wants."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxppo.core.scan import scan_over_time
from purejaxppo.core.target import compiling_for, platform


def add(total, x):
    return total + x, total * x


def loop(steps, unroll, reverse):
    return scan_over_time(add, jnp.float32(1), jnp.arange(steps, dtype=jnp.float32), unroll=unroll, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("steps", "unroll"), [(12, 4), (7, 4), (3, 8), (1, 1)])
def test_it_is_the_scan_whatever_the_steps_per_iteration(steps, unroll, reverse):
    expected = jax.lax.scan(add, jnp.float32(1), jnp.arange(steps, dtype=jnp.float32), reverse=reverse)
    for target in ("cpu", "gpu", "tpu"):
        with compiling_for(target):
            jax.tree.map(np.testing.assert_array_equal, loop(steps, unroll, reverse), expected)


def test_on_a_cpu_an_iteration_is_one_step():
    def unrolled(target):
        with compiling_for(target):
            jaxpr = jax.make_jaxpr(lambda: loop(12, 4, reverse=False))()
        (scan,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
        return scan.params["unroll"]

    assert (unrolled("cpu"), unrolled("gpu")) == (1, 4)


def test_the_target_is_the_default_device_outside():
    assert platform() == jax.default_backend()
    with contextlib.suppress(ValueError), compiling_for("tpu"):
        assert platform() == "tpu"
        raise ValueError
    assert platform() == jax.default_backend()
