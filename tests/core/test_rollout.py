"""The rollout: which value follows each step, and that what it stores belongs together."""

import functools

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_policy import policy_of
from probe_envs import walk

from purejaxppo.core.distributions import Categorical
from purejaxppo.core.rollout import rollout
from purejaxppo.core.types import Actors, Box, Discrete, EnvStep, VecEnv
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


POLICY = policy_of(apply)
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


def fresh(env, key):
    """Environments whose episodes have just begun."""
    return Actors(*env.reset(jax.random.split(key, E)), memory=(), start=jnp.ones(E, bool))


def play(env, num_steps, key=6):
    """(first obs, actors after it, trajectory, log of (action, EnvStep)) of one rollout from a fresh state."""
    env = recorded(env, num_steps)
    key_reset, key_rollout = jax.random.split(jax.random.key(key))
    actors = fresh(env, key_reset)
    last, trajectory = rollout(key_rollout, env, POLICY, PARAMS, actors, IDS, num_steps)
    _, _, log = last.env_state
    return actors.obs, last, trajectory, log


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
    _, _, trajectory, (_, step) = played
    _, value = apply(PARAMS, step.final_obs)
    np.testing.assert_allclose(trajectory.next_value, np.where(step.terminated, 0.0, value), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(trajectory.next_obs, step.final_obs)
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
    trajectory, step = walked(0)
    _, value = walk_apply(None, step.final_obs)
    np.testing.assert_allclose(trajectory.next_value, np.where(step.terminated, 0.0, value), rtol=1e-5, atol=1e-6)
    cut = step.truncated & ~step.terminated
    assert len(set(cut.sum(axis=0).tolist())) > 1
    assert (step.terminated & step.truncated).any()


def walk_apply(params, obs):
    return Categorical(jnp.zeros((*obs.shape[:-1], 2))), obs[..., 0] + 100 * obs[..., 1]


@pytest.fixture(scope="module")
def walked():
    """seed -> (trajectory, steps) of 23 steps of walking."""

    @jax.jit
    def run(seed):
        env = recorded(walk(E), 23)
        actors = fresh(env, jax.random.key(1))
        last, trajectory = rollout(jax.random.key(seed), env, policy_of(walk_apply), None, actors, IDS, 23)
        _, _, (_, step) = last.env_state
        return trajectory, step

    return lambda seed: jax.device_get(run(seed))


def test_what_is_stored_belongs_together():
    """Observation, action, distribution, log-probability, value, reward and flags of one and the same step."""
    obs, last, trajectory, (action, step) = cartpole_rollouts(40, 1)[7]
    np.testing.assert_array_equal(trajectory.obs[0], obs)
    np.testing.assert_array_equal(trajectory.obs[1:], step.obs[:-1])
    np.testing.assert_array_equal(last.obs, step.obs[-1])
    done = step.terminated | step.truncated
    np.testing.assert_array_equal(trajectory.start, np.concatenate([np.ones((1, E), bool), done[:-1]]))
    np.testing.assert_array_equal(last.start, done[-1])
    assert trajectory.memory == last.memory == ()
    np.testing.assert_array_equal(trajectory.action, action)
    for name in ("reward", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(trajectory, name), getattr(step, name))
    pi, value = apply(PARAMS, trajectory.obs)
    np.testing.assert_allclose(trajectory.value, value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trajectory.pi.logits, pi.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trajectory.log_prob, pi.log_prob(trajectory.action), rtol=1e-4, atol=1e-5)
    assert len(np.unique(trajectory.action)) == 2


def test_actions_follow_the_policy():
    """Over 40 x 5 draws at known probabilities: the mean of (action - p) / sd is near 0, and no step repeats."""
    _, _, trajectory, _ = cartpole_rollouts(40, 1)[40]
    p = np.asarray(jax.nn.softmax(trajectory.pi.logits)[..., 1])
    z = (trajectory.action - p) / np.sqrt(p * (1 - p))
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert not all(np.array_equal(trajectory.action[0], row) for row in trajectory.action)


def test_what_an_environment_reports_is_kept_of_every_step():
    env = walk(E)

    def step(draws, state, action):
        state, result = env.step(draws, state, action)
        return state, result._replace(info={"coins": result.reward * 2})

    actors, policy = fresh(env, jax.random.key(1)), policy_of(walk_apply)
    _, trajectory = rollout(jax.random.key(0), env._replace(step=step), policy, None, actors, IDS, 23)
    np.testing.assert_array_equal(trajectory.info["coins"], 2 * trajectory.reward)


def test_a_rollout_goes_on_where_the_last_one_stopped():
    """Nothing is reset in between: the first observation, and episodes that began before."""
    env = from_gymnax("CartPole-v1", E, max_steps_in_episode=8)

    def run():
        between, first = rollout(jax.random.key(1), env, POLICY, PARAMS, fresh(env, jax.random.key(0)), IDS, 5)
        _, second = rollout(jax.random.key(2), env, POLICY, PARAMS, between, IDS, 5)
        return between, first, second

    between, first, second = jax.device_get(jax.jit(run)())
    np.testing.assert_array_equal(second.obs[0], between.obs)
    assert not first.truncated.any()
    assert not second.start[0].any()
    # Cut off after 8 steps of which 5 were made in the first rollout.
    np.testing.assert_array_equal(np.argmax(second.truncated, axis=0), 2)


def test_a_rollout_is_a_function_of_its_key(walked):
    one, again, other = walked(1), walked(1), walked(2)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert not np.array_equal(one[0].action, other[0].action)
