"""The rollout: which value follows each step, and that what it stores belongs together."""

import functools

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probe_envs import walk

from purejaxppo.core.distributions import Categorical
from purejaxppo.core.rollout import rollout
from purejaxppo.core.types import Box, Discrete, EnvStep, VecEnv
from purejaxppo.envs.gymnax_adapter import from_gymnax

E = 5
LIMITS = (1, 3, 7, 40)
# One step, which is the edge, and longer than every limit; shorter than some is between the two.
LENGTHS = (1, pytest.param(5, marks=pytest.mark.slow), 40)
IDS = jnp.arange(E)


def apply(params, obs):
    """A policy and a value that tell any two observations apart."""
    features = jnp.tanh(obs @ params)
    return Categorical(jnp.stack([features[..., 0], -features[..., 0]], axis=-1)), jnp.sum(jnp.sin(9 * features), -1)


PARAMS = jax.random.normal(jax.random.key(42), (4, 6)) * jnp.array([0.3, 0.3, 2.0, 0.3])[:, None]


def recorded(env, num_steps):
    """The environment, with every step that it returned kept in its state as a log [T, E, ...]."""

    def reset(keys):
        inner, obs = env.reset(keys)
        action = jnp.zeros(env.num_envs, jnp.int32)
        step = jax.eval_shape(lambda keys: env.step(env.draw(keys), inner, action), keys)[1]
        log = jax.tree.map(lambda x: jnp.zeros((num_steps, *x.shape), x.dtype), (action, step))
        return (inner, jnp.zeros((), jnp.int32), log), obs

    def step(draws, state, action):
        inner, time, log = state
        inner, result = env.step(draws, inner, action)
        log = jax.tree.map(lambda all_, one: all_.at[time].set(one), log, (action, result))
        return (inner, time + 1, log), result

    return env._replace(reset=reset, step=step)


def play(env, num_steps, key=6):
    """(first obs, next obs, transition, info sums, log of (action, EnvStep)) of one rollout from a fresh state."""
    env = recorded(env, num_steps)
    key_reset, key_rollout = jax.random.split(jax.random.key(key))
    state, obs = env.reset(jax.random.split(key_reset, E))
    (_, _, log), next_obs, transition, info = rollout(key_rollout, env, apply, PARAMS, state, obs, IDS, num_steps)
    return obs, next_obs, transition, info, log


def cartpole(limit):
    """CartPole with a time limit that may be traced; no promise about truncations."""
    env, params = gymnax.make("CartPole-v1")
    params = params.replace(max_steps_in_episode=limit)

    def reset(keys):
        obs, state = jax.vmap(env.reset, in_axes=(0, None))(keys, params)
        return state, obs

    def step(keys, state, action):
        result = jax.vmap(env.step, in_axes=(0, 0, 0, None))(keys, state, action, params)
        obs, state, reward, terminated, truncated, info = result
        return state, EnvStep(obs, info["final_observation"], reward, terminated, truncated, {})

    return VecEnv(reset, step, Box((4,)), Discrete(2), E)


@functools.cache
def cartpole_rollouts(num_steps, gap):
    """Limit -> `play` with this truncation_gap, for every limit of LIMITS at once."""
    run = jax.jit(jax.vmap(lambda limit: play(cartpole(limit)._replace(truncation_gap=gap), num_steps)))
    together = jax.device_get(run(jnp.array(LIMITS)))
    return {limit: jax.tree.map(lambda x, i=i: x[i], together) for i, limit in enumerate(LIMITS)}


def check_next_value(played, limit, num_steps):
    """Against the value of every step's final_obs, computed by brute force; 0 where the episode terminated."""
    _, _, transition, _, (_, step) = played
    _, value = apply(PARAMS, step.final_obs)
    np.testing.assert_allclose(transition.next_value, np.where(step.terminated, 0.0, value), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(transition.next_obs, step.final_obs)
    # The comparison says something: ends occur, and the next episode's first observation has another value.
    cut = step.truncated & ~step.terminated
    if limit <= num_steps:
        assert cut.any()
        _, wrong = apply(PARAMS, step.obs)
        assert np.abs(value - wrong)[cut].min() > 1e-3
    if num_steps == limit == 40:
        assert step.terminated.any()
    return cut


@pytest.mark.parametrize("num_steps", LENGTHS)
@pytest.mark.parametrize("limit", LIMITS)
def test_next_value_with_room_for_a_truncation_at_every_step(limit, num_steps):
    check_next_value(cartpole_rollouts(num_steps, 1)[limit], limit, num_steps)


@pytest.mark.parametrize("num_steps", LENGTHS)
@pytest.mark.parametrize("limit", LIMITS)
def test_next_value_with_the_room_that_the_time_limit_leaves(limit, num_steps):
    """Truncations lie `limit` steps apart, so there are fewer places than steps; none may be overwritten or missed."""
    assert from_gymnax("CartPole-v1", E, max_steps_in_episode=limit).truncation_gap == limit
    # Beyond the rollout's length all gaps are one program.
    cut = check_next_value(cartpole_rollouts(num_steps, min(limit, num_steps))[limit], limit, num_steps)
    assert cut.sum(axis=0).max() <= 1 + (num_steps - 1) // limit


def test_next_value_when_environments_are_cut_at_different_times(walked):
    """A walk that also terminates: each environment counts its own truncations."""
    transition, _, step = walked(0)
    _, value = walk_apply(None, step.final_obs)
    np.testing.assert_allclose(transition.next_value, np.where(step.terminated, 0.0, value), rtol=1e-5, atol=1e-6)
    cut = step.truncated & ~step.terminated
    assert len(set(cut.sum(axis=0).tolist())) > 1
    assert (step.terminated & step.truncated).any()


def walk_apply(params, obs):
    return Categorical(jnp.zeros((*obs.shape[:-1], 2))), obs[..., 0] + 100 * obs[..., 1]


@pytest.fixture(scope="module")
def walked():
    """seed -> (transition, info sums, steps) of 23 steps of walking."""

    @jax.jit
    def run(seed):
        env = recorded(walk(E), 23)
        state, obs = env.reset(jax.random.split(jax.random.key(1), E))
        (_, _, (_, step)), _, transition, info = rollout(
            jax.random.key(seed), env, walk_apply, None, state, obs, IDS, 23
        )
        return transition, info, step

    return lambda seed: jax.device_get(run(seed))


def test_what_is_stored_belongs_together():
    """Observation, action, distribution, log-probability, value, reward and flags of one and the same step."""
    obs, next_obs, transition, _, (action, step) = cartpole_rollouts(40, 1)[7]
    np.testing.assert_array_equal(transition.obs[0], obs)
    np.testing.assert_array_equal(transition.obs[1:], step.obs[:-1])
    np.testing.assert_array_equal(next_obs, step.obs[-1])
    np.testing.assert_array_equal(transition.action, action)
    for name in ("reward", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(transition, name), getattr(step, name))
    pi, value = apply(PARAMS, transition.obs)
    np.testing.assert_allclose(transition.value, value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(transition.pi.logits, pi.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(transition.log_prob, pi.log_prob(transition.action), rtol=1e-4, atol=1e-5)
    assert len(np.unique(transition.action)) == 2


def test_actions_follow_the_policy():
    """Over 40 x 5 draws at known probabilities: the mean of (action - p) / sd is near 0, and no step repeats."""
    _, _, transition, _, _ = cartpole_rollouts(40, 1)[40]
    p = np.asarray(jax.nn.softmax(transition.pi.logits)[..., 1])
    z = (transition.action - p) / np.sqrt(p * (1 - p))
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert not all(np.array_equal(transition.action[0], row) for row in transition.action)


def test_what_an_environment_reports_is_summed_over_the_steps():
    env = walk(E)

    def step(draws, state, action):
        state, result = env.step(draws, state, action)
        return state, result._replace(info={"coins": result.reward * 2})

    state, obs = env.reset(jax.random.split(jax.random.key(1), E))
    _, _, transition, sums = rollout(jax.random.key(0), env._replace(step=step), walk_apply, None, state, obs, IDS, 23)
    np.testing.assert_allclose(sums["coins"], 2 * transition.reward.sum(axis=0), rtol=1e-6)


def test_a_rollout_goes_on_where_the_last_one_stopped():
    """Nothing is reset in between: the first observation, and episodes that began before."""
    env = from_gymnax("CartPole-v1", E, max_steps_in_episode=8)

    def run():
        state, obs = env.reset(jax.random.split(jax.random.key(0), E))
        state, between, first, _ = rollout(jax.random.key(1), env, apply, PARAMS, state, obs, IDS, 5)
        _, _, second, _ = rollout(jax.random.key(2), env, apply, PARAMS, state, between, IDS, 5)
        return between, first, second

    between, first, second = jax.device_get(jax.jit(run)())
    np.testing.assert_array_equal(second.obs[0], between)
    assert not first.truncated.any()
    # Cut off after 8 steps of which 5 were made in the first rollout.
    np.testing.assert_array_equal(np.argmax(second.truncated, axis=0), 2)


def test_a_rollout_is_a_function_of_its_key(walked):
    one, again, other = walked(1), walked(1), walked(2)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert not np.array_equal(one[0].action, other[0].action)
