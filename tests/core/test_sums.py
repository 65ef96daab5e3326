"""Sums, means and variances in float32 against float64, in programs as the compiler optimises them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxppo.core.sums import Sum, add, centre, empty_sum, variance

MILLION = 10**6


def optimized(f, *args):
    """f(*args), compiled with the optimisations that the other tests do without."""
    return jax.jit(f).lower(*args).compile({"xla_backend_optimization_level": 3})(*args)


@pytest.mark.parametrize("batching", [lambda f: f, jax.vmap], ids=["alone", "vmap"])
def test_a_million_terms_are_as_exact_as_one(batching):
    """Of one size, of alternating sign, and a few that are larger than the sum so far."""
    terms = np.float32([0.1, 1e-3, 1234.567, -7e6])
    cycle = np.float32([[1, 1, 1, 1], [1, -3, 1, 1], [1, 1, -0.3, 1], [1, 1, 1, 1]])

    def of_all(terms, cycle):
        def step(so_far, i):
            return add(so_far, terms * cycle[i % 4]), None

        return jax.lax.scan(step, empty_sum(terms.shape), jnp.arange(MILLION))[0].value

    args = (terms, cycle) if batching is not jax.vmap else (terms[None], cycle[None])
    found = np.asarray(optimized(batching(of_all), *args)).reshape(4)
    expected = (terms * cycle).astype(np.float64).sum(axis=0) * (MILLION // 4)
    np.testing.assert_allclose(found, expected, rtol=3e-7)


def test_a_term_larger_than_the_sum_does_not_swallow_it():
    so_far = empty_sum(())
    for x in (1.0, 2.0**30, 3.0, -(2.0**30)):
        so_far = add(so_far, jnp.float32(x))
    assert float(so_far.value) == 4.0


def test_an_infinite_term_makes_the_sum_infinite_and_not_nan():
    so_far = add(add(Sum(jnp.float32(1), jnp.float32(0)), jnp.float32(-jnp.inf)), jnp.float32(1))
    assert float(so_far.value) == -np.inf


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("offset", [0.0, 1.0, -1e4, 1e7])
def test_centre_and_variance(offset, scale):
    """To the last digits of what float32 holds of the rows, however large the mean is beside the spread."""
    x = (offset + scale * np.random.default_rng(1).normal(size=(500, 2))).astype(np.float32)
    exact = x.astype(np.float64)
    deviation, mean = optimized(centre, x)
    spread = exact.std(axis=0)
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=2e-7, atol=1e-6 * scale)
    assert np.all(np.abs(deviation - (exact - exact.mean(axis=0))) <= 1e-5 * spread)
    np.testing.assert_allclose(optimized(variance, x), spread**2, rtol=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1000.1, -1234567.0, 1e-30])
@pytest.mark.parametrize("rows", [1, 7, 1024])
def test_equal_rows_have_no_variance_and_their_own_mean(constant, rows):
    x = np.full((rows, 2), constant, np.float32)
    deviation, mean = optimized(centre, x)
    np.testing.assert_array_equal(deviation, 0.0)
    np.testing.assert_array_equal(mean, x[0])
