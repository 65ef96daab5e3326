"""The gated recurrent unit's derivatives, against those that JAX makes of the formulas of its docstring, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxppo.core.target import compiling_for
from purejaxppo.policies.gated_unit import states_by_hand, unroll

L, B, H = 6, 3, 4


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def arguments():
    """Returns kernel, bias, h, x and start: one sequence begins at once, one never does, the third in its middle."""
    rng = np.random.default_rng(0)
    start = np.zeros((L, B), bool)
    start[0, 0] = start[3, 2] = True
    shapes = [(H, 3 * H), (H,), (B, H), (L, B, 3 * H)]
    return [*(jnp.asarray(rng.normal(size=shape)) for shape in shapes), jnp.asarray(start)]


def by_formula(kernel, bias, h, x, start):
    u_r, u_z, u_n = jnp.split(kernel, 3, axis=1)
    states = []
    for t in range(L):
        x_r, x_z, x_n = jnp.split(x[t], 3, axis=1)
        h = jnp.where(start[t][:, None], 0.0, h)
        r, z = jax.nn.sigmoid(x_r + h @ u_r), jax.nn.sigmoid(x_z + h @ u_z)
        h = (1 - z) * jnp.tanh(x_n + r * (h @ u_n + bias[None])) + z * h
        states.append(h)
    return jnp.stack(states)


def weighted(states):
    """A function of all states whose gradient is another one for each."""
    return jnp.sum(jnp.sin(jnp.arange(1.0, states.size + 1).reshape(states.shape)) * states**2)


@pytest.mark.parametrize("target", ["cpu", "gpu", "tpu"])
def test_the_states_on_every_platform(target):
    with compiling_for(target):
        np.testing.assert_allclose(unroll(*arguments()), by_formula(*arguments()), rtol=1e-12)


@pytest.mark.parametrize(("target", "by_hand"), [("cpu", False), ("gpu", True), ("tpu", True)])
def test_the_derivative_is_written_out_for_accelerators(target, by_hand):
    with compiling_for(target):
        jaxpr = str(jax.make_jaxpr(lambda *a: unroll(*a))(*arguments()))
    assert ("custom_vjp_call" in jaxpr) == by_hand


def test_the_derivatives_by_weights_bias_first_state_and_inputs():
    *floats, start = arguments()
    ours, expected = (
        jax.jit(jax.grad(lambda *floats, f=f: weighted(f(*floats, start)), argnums=(0, 1, 2, 3)))(*floats)
        for f in (states_by_hand, by_formula)
    )
    for name, a, b in zip(("kernel", "bias", "h", "x"), ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12, err_msg=name)
    assert np.all(np.asarray(ours[2])[0] == 0)  # an episode begins with the first step: the state before is forgotten


def test_a_gradient_can_be_differentiated_forwards():
    """As trpo does for its products with the Fisher matrix."""
    kernel, *others = arguments()
    ours, expected = (
        jax.linearize(jax.grad(lambda kernel, f=f: weighted(f(kernel, *others))), kernel)[1](jnp.cos(kernel))
        for f in (states_by_hand, by_formula)
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)


def test_over_many_runs_at_once():
    *floats, start = arguments()
    gradient = jax.grad(lambda *floats: weighted(states_by_hand(*floats, start)), argnums=(0, 1, 2, 3))
    several = [jnp.stack([x, 0.5 * x]) for x in floats]
    for i in range(2):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-10, atol=1e-12),
            jax.vmap(gradient)(*several),
            gradient(*(x[i] for x in several)),
        )
