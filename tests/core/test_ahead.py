"""The scan that computes beforehand what it can is `jax.lax.scan`, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxppo.core.ahead import scan_ahead
from purejaxppo.envs.gymnax_adapter import from_gymnax

KEYS = jax.random.split(jax.random.key(3), 6)


def walk(carry, key):
    """Draws within jitted functions, one of them called twice, and constants that nothing depends on."""
    noise = jax.random.normal(key, (4,)) + jnp.arange(4.0)
    choice = jax.random.choice(jax.random.fold_in(key, 1), 5)
    carry = carry * 0.9 + noise
    return carry, {"noise": noise, "choice": choice, "sum": carry.sum(), "one": jnp.ones(2)}


def custom(carry, key):
    """A derivative rule of one's own, a literal among the results, and one that nobody reads."""
    noise = jax.nn.relu(jax.random.normal(key, (2,)))
    jax.random.permutation(key, 3)
    return jax.nn.relu(carry - noise), (1.0, jax.nn.silu(noise))


def branch(carry, key):
    high = jax.random.uniform(key) > 0.5
    carry = jax.lax.cond(high, lambda x: x + 1.0, lambda x: x * 2.0, carry)
    drawn = jax.lax.cond(high, lambda k: jax.random.uniform(k), lambda k: jax.random.normal(k), key)
    tries = jax.lax.while_loop(lambda n: jax.random.uniform(jax.random.fold_in(key, n)) < 0.8, lambda n: n + 1, 0)
    return carry, (drawn, tries)


def env_step(carry, key):
    env = from_gymnax("CartPole-v1", 3)
    state, result = env.step(key, carry, jnp.array([0, 1, 1]))
    return state, result


def is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("step", "carry"),
    [
        (walk, jnp.zeros(4)),
        (custom, jnp.ones(2)),
        (branch, jnp.array(1.0)),
        (env_step, from_gymnax("CartPole-v1", 3).reset(jax.random.key(0))[0]),
        (lambda carry, key: (key, jax.random.uniform(carry)), jax.random.key(1)),  # hands its input on
        (lambda carry, key: (carry, ()), jnp.zeros(2)),  # reads nothing
    ],
    ids=["walk", "custom", "branch", "environment", "handed on", "nothing"],
)
def test_it_is_scan(step, carry):
    found = jax.jit(lambda carry: scan_ahead(step, carry, KEYS))(carry)
    expected = jax.jit(lambda carry: jax.lax.scan(step, carry, KEYS))(carry)
    same(*jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, (found, expected)))


def test_what_the_step_closes_over_may_be_traced_and_mapped():
    def total(scale, scan):
        return scan(lambda carry, key: (carry + scale * jax.random.uniform(key), carry), 0.0, KEYS)

    scales = jnp.arange(3.0)
    same(*(jax.jit(jax.vmap(lambda s, scan=scan: total(s, scan)))(scales) for scan in (scan_ahead, jax.lax.scan)))
    same(*(jax.grad(lambda s, scan=scan: total(s, scan)[0])(2.0) for scan in (scan_ahead, jax.lax.scan)))


def test_no_random_number_is_drawn_in_the_loop():
    def body(scan):
        jaxpr = jax.make_jaxpr(lambda carry: scan(walk, carry, KEYS))(jnp.zeros(4))
        (loop,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
        return str(loop)

    assert "random_bits" in body(jax.lax.scan)
    assert "random_bits" not in body(scan_ahead)


def test_constants_are_not_kept_for_every_step():
    """They depend on neither input nor state: a row of them per step would be memory for nothing."""
    step = lambda carry, key: (carry + jax.random.uniform(key) + jnp.zeros(1000).sum(), ())  # noqa: E731
    jaxpr = jax.make_jaxpr(lambda carry: scan_ahead(step, carry, KEYS))(0.0)
    (loop,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    assert max(np.prod(x.aval.shape) for x in loop.invars) <= len(KEYS)


def test_side_effects_keep_their_order(capfd):
    def step(carry, key):
        jax.debug.print("step {}", carry, ordered=True)
        return carry + 1, jax.random.uniform(key)

    same(scan_ahead(step, 0, KEYS), jax.lax.scan(lambda carry, key: (carry + 1, jax.random.uniform(key)), 0, KEYS))
    jax.effects_barrier()
    assert capfd.readouterr().out.split() == " ".join(f"step {i}" for i in range(6)).split()
