"""Drift, importance weights and explained variance against NumPy in float64 and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_once import QUICKLY
from hand_batch import make_batch, make_policy

from purejaxppo.core import diagnostics
from purejaxppo.core.diagnostics import diagnose, drift_metrics, shard_drift
from purejaxppo.core.shards import Shards
from purejaxppo.core.sums import merged, moments


@jax.jit
def importance_weights(log_ratio):
    """What is said of the weights exp(log_ratio) [N] of one shard."""
    metrics = drift_metrics(shard_drift(jnp.zeros((1, 1)), log_ratio[None]))
    return {name: x for name, x in metrics.items() if name != "kl"}


def effective_sample_size(log_ratio):
    return importance_weights(log_ratio)["ratio/effective_sample_size"]


@jax.jit
def explained_variance(value, target):
    error, target = (merged(moments(x[None])) for x in (target - value, target))
    return diagnostics.explained_variance(error, target)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        pytest.param([1, 1, 1, 1], 1.0, id="equal"),
        pytest.param([7, 7], 1.0, id="equal-but-not-1"),
        pytest.param([3, 1], 0.8, id="16 / (2 * 10)"),
        pytest.param([1, 2, 3], 36 / 42, id="36 / (3 * 14)"),
        pytest.param([5], 1.0, id="one"),
        pytest.param([1, 0, 0, 0], 0.25, id="one-of-four"),
    ],
)
def test_effective_sample_size_by_hand(weights, expected):
    with np.errstate(divide="ignore"):
        log_ratio = np.log(np.asarray(weights, np.float32))
    np.testing.assert_allclose(effective_sample_size(jnp.asarray(log_ratio)), expected, rtol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 80.0, 1000.0, -1000.0])
def test_effective_sample_size_does_not_overflow(shift):
    """The scale of the weights cancels, also where exp(1000) or its square is infinite."""
    log_ratio = jnp.asarray([0.0, np.log(3.0)], jnp.float32) + shift
    np.testing.assert_allclose(effective_sample_size(log_ratio), 0.8, rtol=2e-4)
    np.testing.assert_allclose(effective_sample_size(jnp.asarray([shift, 500.0 + abs(shift)])), 0.5)


def test_importance_weights():
    """Each statistic as NumPy has it in float64."""
    log_ratio = (0.4 * np.random.default_rng(0).normal(size=100)).astype(np.float32)
    ratio = np.exp(log_ratio.astype(np.float64))
    expected = {
        "kl_k3": (ratio - 1 - np.log(ratio)).mean(),
        "ratio/mean": ratio.mean(),
        "ratio/std": ratio.std(),
        "ratio/max": ratio.max(),
        "ratio/effective_sample_size": ratio.sum() ** 2 / (100 * (ratio**2).sum()),
    }
    found = importance_weights(jnp.asarray(log_ratio))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_importance_weights_of_the_policy_that_acted():
    found = importance_weights(jnp.zeros(8))
    assert {name: float(x) for name, x in found.items()} == {
        "kl_k3": 0.0,
        "ratio/mean": 1.0,
        "ratio/std": 0.0,
        "ratio/max": 1.0,
        "ratio/effective_sample_size": 1.0,
    }


def test_drift_from_one_policy_to_another():
    """The KL is old || new, not the other way about; k3 from many actions comes near it."""
    policy, params = make_policy()
    _, others = make_policy(seed=1)
    batch = make_batch(policy, params, rows=1024)
    measure = jax.jit(functools.partial(diagnose, policy), static_argnums=2, compiler_options=QUICKLY)
    found = measure(others, batch, Shards())
    new, _ = jax.jit(policy.evaluate, compiler_options=QUICKLY)(others, (), batch.obs, batch.start)
    log_p, log_q = (np.asarray(jax.nn.log_softmax(pi.logits), np.float64) for pi in (batch.pi, new))
    expected = (np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()
    reverse = (np.exp(log_q) * (log_q - log_p)).sum(axis=1).mean()
    np.testing.assert_allclose(found["kl"], expected, rtol=1e-4)
    assert abs(expected - reverse) > 0.05 * expected
    assert float(found["kl_k3"]) == pytest.approx(expected, rel=0.15)
    assert float(found["ratio/mean"]) == pytest.approx(1.0, abs=0.15)
    error, target = (np.asarray(x, np.float64) for x in (batch.target - batch.value, batch.target))
    np.testing.assert_allclose(found["explained_variance"], 1 - error.var() / target.var(), rtol=1e-4)
    by_shard = measure(others, batch, Shards(8))
    for name in found:
        np.testing.assert_allclose(by_shard[name], found[name], rtol=1e-4, err_msg=name)
    at_home = measure(params, batch, Shards())
    assert abs(at_home["kl"]) < 1e-6
    assert abs(at_home["ratio/max"] - 1) < 1e-5
    assert at_home["explained_variance"] == found["explained_variance"]  # of the values before the update


def test_explained_variance():
    """1 for the target itself, also shifted; 0 for a constant value; otherwise 1 - Var(error) / Var(target)."""
    value, target = np.random.default_rng(4).normal(size=(2, 100)).astype(np.float32)
    np.testing.assert_array_equal(explained_variance(jnp.asarray(target), jnp.asarray(target)), 1.0)
    np.testing.assert_allclose(explained_variance(jnp.asarray(target + 2), jnp.asarray(target)), 1.0, atol=1e-6)
    np.testing.assert_allclose(explained_variance(jnp.zeros(100), jnp.asarray(target)), 0.0, atol=1e-6)
    expected = 1 - np.var(np.float64(target) - value) / np.var(np.float64(target))
    np.testing.assert_allclose(explained_variance(jnp.asarray(value), jnp.asarray(target)), expected, rtol=1e-5)
    assert expected < 0


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, -7.3, 100.1])
def test_explained_variance_of_a_constant_target(constant):
    """0 by definition, also where the mean of equal float32 numbers is not quite that number."""
    values = jnp.asarray(np.random.default_rng(5).normal(size=1000), jnp.float32)
    for size in (7, 100, 1000):
        assert float(explained_variance(values[:size], jnp.full(size, constant))) == 0.0


@pytest.mark.parametrize("offset", [1.0, 1e3, -1e5])
def test_explained_variance_far_from_zero(offset):
    """A large mean costs no digits, and targets that differ in their last bit alone count as constant."""
    rng = np.random.default_rng(6)
    target = (offset + rng.normal(size=1000)).astype(np.float32)
    value = (target + 0.5 * rng.normal(size=1000)).astype(np.float32)
    expected = 1 - np.var(np.float64(target) - value) / np.var(np.float64(target))
    np.testing.assert_allclose(explained_variance(jnp.asarray(value), jnp.asarray(target)), expected, rtol=1e-5)
    rounding = np.where(np.arange(1000) % 2, np.float32(offset), np.nextafter(np.float32(offset), np.float32(0)))
    assert float(explained_variance(jnp.zeros(1000), jnp.asarray(rounding))) == 0.0


def test_equal_weights_have_no_standard_deviation():
    """Exactly, also where their mean is rounded."""
    assert float(importance_weights(jnp.full(1000, 0.3))["ratio/std"]) == 0.0


@pytest.mark.parametrize(("function", "arguments"), [(explained_variance, 2), (effective_sample_size, 1)])
def test_no_dtype_is_promoted_silently(function, arguments):
    """float32 in, a float32 scalar out, where JAX refuses mixed types."""
    with jax.numpy_dtype_promotion("strict"):
        assert jax.eval_shape(function, *[jnp.ones(4)] * arguments).dtype == jnp.float32
