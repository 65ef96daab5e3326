"""Actions brought to the bounds of an environment, and what the rollout stores of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_policy import policy_of

from purejaxppo.config import TrainConfig
from purejaxppo.core.distributions import DiagGaussian
from purejaxppo.core.rollout import rollout
from purejaxppo.core.types import Actors, Box, Discrete, EnvStep, MultiDiscrete, VecEnv
from purejaxppo.envs.wrappers import action_bound, action_units, bound_action

E, O = 3, 2  # noqa: E741 - the letters of types.py


def received(policy, low, high, action):
    """What an environment with these bounds receives for a row of actions [A]."""
    space = Box((len(low),), tuple(map(float, low)), tuple(map(float, high)))

    def step(key, state, action):
        zero = jnp.zeros(1)
        return state, EnvStep(action, action, zero, zero > 0, zero > 0, {})

    env = VecEnv(lambda key: ((), jnp.zeros((1, len(low)))), step, Box((len(low),)), space, 1)
    bounded = bound_action(TrainConfig(action_distribution=policy, num_envs=1), env)
    _, result = jax.jit(bounded.step)(jax.random.key(0), (), jnp.asarray(action, jnp.float32)[None])
    return np.asarray(result.obs[0])


def test_the_policy_acts_in_halves_of_the_range_around_its_middle():
    """Per dimension, with unequal bounds: 0 is the middle, -1 and 1 are the ends, and beyond them is clipped."""
    low, high = [-2, 100, 0, 5], [2, 200, 0.01, 6]
    for action, expected in (
        ([0, 0, 0, 0], [0, 150, 0.005, 5.5]),
        ([-1, -1, -1, -1], low),
        ([1, 1, 1, 1], high),
        ([0.25, -0.5, 0.5, -0.5], [0.5, 125, 0.0075, 5.25]),
        ([9, -9, 9, -9], [2, 100, 0.01, 5]),
    ):
        np.testing.assert_allclose(received("gaussian", low, high, action), np.float32(expected), rtol=1e-6)


def test_with_bounds_of_1_the_action_is_the_policys_own_bit_for_bit():
    action = np.linspace(-1.5, 1.5, 301, dtype=np.float32)
    found = received("gaussian", [-1] * 301, [1] * 301, action)
    assert found.tobytes() == np.clip(action, np.float32(-1), np.float32(1)).tobytes()


def test_an_action_that_lacks_a_bound_is_only_clipped():
    """On one side or on both, whether by infinity or by a number that stands for it; beside one that has both."""
    low, high = [-np.inf, 5, -3.4e38, 100], [-5, np.inf, 3.4e38, 200]
    np.testing.assert_array_equal(received("gaussian", low, high, [-9, 9, 7, 0]), np.float32([-9, 9, 7, 150]))
    np.testing.assert_array_equal(received("gaussian", low, high, [9, -9, -7, 0]), np.float32([-5, 5, -7, 150]))


def test_squash_is_a_scaled_tanh():
    """low + (high - low) (tanh(u) + 1) / 2, its middle at u = 0."""
    low, high, u = np.array([-2.0, 0.0, 5.0]), np.array([2.0, 1.0, 9.0]), np.array([0.0, 0.7, -1.2])
    expected = low + (high - low) * (np.tanh(u) + 1) / 2
    np.testing.assert_allclose(received("tanh_gaussian", low, high, u), expected, rtol=1e-6)


@pytest.mark.parametrize("policy", ["gaussian", "tanh_gaussian"])
def test_actions_reach_the_bounds_and_never_leave_them(policy):
    """Hundreds of pairs of bounds, at the ends, deep beyond and just before; not by one unit in the last place."""
    rng = np.random.default_rng(0)
    low, high = np.sort(np.round(rng.uniform(-3, 3, (2, 500)), 1).astype(np.float32), axis=0)
    for u in (100.0, 9.0, 5.0, 1.0, 0.0, -1.0, -5.0, -9.0, -100.0):
        found = received(policy, low, high, np.full(500, u))
        assert np.all(found >= low), u
        assert np.all(found <= high), u
        if abs(u) == 100:
            np.testing.assert_allclose(found, high if u > 0 else low, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("policy", ["gaussian", "tanh_gaussian"])
def test_discrete_and_unbounded_actions_pass_unchanged(policy):
    """There is nothing to bound."""
    for space in (Discrete(5), MultiDiscrete((2, 3)), Box((2,))):
        env = VecEnv(None, None, Box((O,)), space, E)
        assert bound_action(TrainConfig(action_distribution=policy), env) is env


GRID = Box((2, 3), ((-2.0, 100.0, 0.0), (5.0, -1.0, 3.0)), ((2.0, 200.0, 0.01), (6.0, 1.0, np.inf)))


@pytest.mark.parametrize("policy", ["gaussian", "tanh_gaussian"])
def test_an_action_of_two_axes_is_its_flat_one_reshaped(policy):
    """In row-major order, each element with its own bounds."""
    flat = Box((6,), *(tuple(np.ravel(side).tolist()) for side in GRID.bounds()))
    action = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6)), jnp.float32)
    config = TrainConfig(action_distribution=policy)
    found = action_bound(config, GRID)(action)
    assert found.shape == (4, 2, 3)
    np.testing.assert_array_equal(found.reshape(4, 6), action_bound(config, flat)(action))
    for x, y in zip(action_units(GRID), action_units(flat), strict=True):
        np.testing.assert_array_equal(x.ravel(), y)
        assert x.shape == (2, 3)


def test_an_action_of_no_axis_is_one_number():
    action = jnp.asarray([[-9.0], [0.5]])
    assert action_bound(TrainConfig(), Box((), -1.0, 3.0))(action).tolist() == [-1.0, 2.0]
    assert action_bound(TrainConfig(), Box(()))(action).tolist() == [-9.0, 0.5]


def test_an_action_without_bounds_is_reshaped_only():
    action = jnp.arange(12.0).reshape(2, 6)
    np.testing.assert_array_equal(action_bound(TrainConfig(), Box((2, 3)))(action), action.reshape(2, 2, 3))


@pytest.mark.parametrize("policy", ["gaussian", "tanh_gaussian"])
def test_the_rollout_stores_the_unbounded_action(policy):
    """The environment gets the bounded action; the learner keeps what was sampled, with its own log-probability."""
    space = Box((O,), (-0.5,) * O, (0.5,) * O)

    def step(key, state, action):
        zero = jnp.zeros(E)
        return state, EnvStep(action, action, zero, zero > 0, zero > 0, {})

    env = VecEnv(lambda key: ((), jnp.zeros((E, O))), step, Box((O,)), space, E)
    env = bound_action(TrainConfig(action_distribution=policy, num_envs=E), env)

    def apply(params, obs):
        return DiagGaussian(jnp.zeros_like(obs), jnp.ones_like(obs)), obs[..., 0]

    actors = Actors(*env.reset(jax.random.key(0)), memory=(), start=jnp.ones(E, bool))
    _, trajectory = rollout(jax.random.key(1), env, policy_of(apply), (), actors, jnp.arange(E), 20)
    stored, sent = np.asarray(trajectory.action[:-1]), np.asarray(trajectory.obs[1:])
    bound = 0.5 * (np.clip(stored, -1, 1) if policy == "gaussian" else np.tanh(stored))
    np.testing.assert_allclose(sent, bound, rtol=1e-5, atol=1e-6)
    assert np.abs(stored).max() > 1
    assert np.abs(sent).max() <= 0.5
    np.testing.assert_allclose(trajectory.log_prob, trajectory.pi.log_prob(trajectory.action), rtol=1e-6)
