"""A policy that sees normalised observations, wherever it looks at them, and statistics that rest."""

import jax.numpy as jnp
import numpy as np
import pytest

from purejaxppo.core.distributions import DiagGaussian
from purejaxppo.core.normalizer import NORMALIZER_EPSILON, RunningStats
from purejaxppo.policies.normalized import Normalized

T, E, O = 5, 3, 2  # noqa: E741 - the letters of types.py


class Showing:
    """Its distribution's mean is what it sees; its memory is the sum of what it has seen."""

    def init(self, key, obs):
        return obs

    def initial_memory(self, num_envs):
        return jnp.zeros((num_envs, O))

    def act(self, params, memory, obs, start):
        return memory + obs, DiagGaussian(obs, jnp.zeros_like(obs))

    def evaluate(self, params, memory, obs, start):
        return DiagGaussian(obs, jnp.zeros_like(obs)), obs[..., 0]


@pytest.fixture
def rows():
    """(what training had seen [N, O], observations [E, T, O] of an evaluation, some of which are far out)."""
    rng = np.random.default_rng(0)
    seen, obs = (np.array([100.0, -5.0]) + np.array([10.0, 0.1]) * rng.normal(size=(*n, O)) for n in ((50,), (E, T)))
    obs[0, 0] = 1e4
    return seen.astype(np.float32), obs.astype(np.float32)


def test_it_sees_what_training_would_have_seen(rows):
    """By mean and variance of the rows seen in training, clipped to +-10, against float64."""
    seen, obs = rows
    policy = Normalized(Showing(), RunningStats(seen.mean(0), seen.var(0), np.float32(len(seen))))
    exact = seen.astype(np.float64)
    scaled = (obs - exact.mean(0)) / np.sqrt(exact.var(0) + NORMALIZER_EPSILON)
    expected, start = np.clip(scaled, -10, 10), jnp.zeros((E, T), bool)
    assert np.abs(scaled).max() > 10
    pi, value = policy.evaluate(None, None, obs, start)
    np.testing.assert_allclose(pi.mean, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(value, expected[..., 0], rtol=1e-3, atol=1e-3)
    memory = policy.initial_memory(E)
    for t in range(T):
        memory, pi = policy.act(None, memory, obs[:, t], start[:, t])
        np.testing.assert_allclose(pi.mean, expected[:, t], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(memory, expected.sum(axis=1), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(policy.init(None, obs[:, 0]), expected[:, 0], rtol=1e-3, atol=1e-3)


def test_without_statistics_it_sees_what_there_is(rows):
    _, obs = rows
    policy = Normalized(Showing(), None)
    np.testing.assert_array_equal(policy.evaluate(None, None, obs, None)[0].mean, obs)
    np.testing.assert_array_equal(policy.act(None, policy.initial_memory(E), obs[:, 0], None)[1].mean, obs[:, 0])
