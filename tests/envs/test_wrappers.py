"""The wrappers around a scripted environment, whose every number the test knows, against float64 loops."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probe_envs import walk

from purejaxppo.config import TrainConfig
from purejaxppo.core.distributions import DiagGaussian
from purejaxppo.core.rollout import rollout
from purejaxppo.core.types import Box, Discrete, EnvStep, VecEnv
from purejaxppo.envs.wrappers import (
    bound_action,
    empty_stats,
    evaluation_env,
    freeze_observation,
    normalize_observation,
    normalize_reward,
    observation_stats,
    running_stats,
    standardize_by,
    track_episodes,
    training_env,
    update_stats,
)

T, E, O = 12, 3, 2  # noqa: E741 - the letters of types.py
GAMMA = 0.9
EPSILON = 1e-8


class Script(NamedTuple):
    """What the environments return at each step; none of it depends on the action."""

    first: np.ndarray  # [E, O]
    obs: np.ndarray  # [T, E, O]
    final_obs: np.ndarray  # [T, E, O]
    reward: np.ndarray  # [T, E]
    terminated: np.ndarray  # [T, E]
    truncated: np.ndarray  # [T, E]

    @property
    def done(self):
        return self.terminated | self.truncated


def make_script(seed=0, reward_scale=3.0):
    rng = np.random.default_rng(seed)
    flags = rng.random((2, T, E)) < 0.15
    flags[:, 4, 0] = True, False  # every script has both kinds of end, and an episode of a single step
    flags[:, 5, 0] = False, True
    obs = np.array([100.0, -5.0]) + np.array([10.0, 0.1]) * rng.normal(size=(T + 1, E, O))
    final_obs = np.where((flags[0] | flags[1])[..., None], obs[1:] + rng.normal(size=(T, E, O)), obs[1:])
    reward = 1.0 + reward_scale * rng.normal(size=(T, E))
    return Script(*(x.astype(np.float32) for x in (obs[0], obs[1:], final_obs, reward)), *flags)


def scripted_env(script, action_space=Discrete(2)):  # noqa: B008 - immutable
    """A VecEnv that plays the script; its state is the time."""
    table = jax.tree.map(jnp.asarray, script)

    def step(key, time, action):
        result = EnvStep(
            table.obs[time],
            table.final_obs[time],
            table.reward[time],
            table.terminated[time],
            table.truncated[time],
            {},
        )
        return time + 1, result

    return VecEnv(lambda key: (jnp.zeros((), jnp.int32), table.first), step, Box((O,)), action_space, E)


def play(env, num_steps=T, state=None):
    """(first obs, final state, the steps [T, E, ...]); goes on from `state` if there is one."""

    def run(state):
        obs = None
        if state is None:
            state, obs = env.reset(jax.random.key(0))
        action = jnp.zeros((E, *getattr(env.action_space, "shape", ())))
        state, steps = jax.lax.scan(lambda s, _: env.step(jax.random.key(0), s, action), state, length=num_steps)
        return obs, state, steps

    return jax.jit(run)(state)


def normalize64(x, seen):
    """x by the mean and variance of the rows seen, clipped to +-10."""
    seen = np.concatenate([np.asarray(rows, np.float64) for rows in seen])
    scaled = (np.asarray(x, np.float64) - seen.mean(0)) / np.sqrt(seen.var(0) + EPSILON)
    return np.clip(scaled, -10, 10)


# --- running statistics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [7, 1, 30], [64] * 8, [1000, 3]])
def test_running_stats_equal_the_statistics_of_everything_seen(sizes):
    """Mean and (population) variance as NumPy has them over all rows at once, after every chunk."""
    rng = np.random.default_rng(0)
    stats, seen = empty_stats((2,)), []
    for size in sizes:
        x = (np.array([1000.0, -0.01]) + np.array([1.0, 0.002]) * rng.normal(size=(size, 2))).astype(np.float32)
        stats = update_stats(stats, jnp.asarray(x))
        seen.append(x.astype(np.float64))
        rows = np.concatenate(seen)
        np.testing.assert_allclose(stats.mean, rows.mean(0), rtol=1e-5)
        np.testing.assert_allclose(stats.var, rows.var(0), rtol=2e-3, atol=1e-12)
    assert float(stats.rows) == sum(sizes)


def test_running_stats_in_float64_to_the_last_digits():
    """The update itself is exact: with doubles it agrees to 1e-12."""
    rows = np.random.default_rng(1).normal(5.0, 2.0, size=(100, 3))
    with jax.enable_x64(True):
        stats = empty_stats((3,))
        for chunk in np.split(rows, [1, 4, 50]):
            stats = update_stats(stats, jnp.asarray(chunk))
    np.testing.assert_allclose(stats.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stats.var, rows.var(0), rtol=1e-12)


def test_statistics_of_nothing_change_nothing():
    """Before any data, standardising is the identity up to the clip at +-10."""
    x = jnp.asarray([[-50.0, -1.0], [0.5, 10.5]])
    np.testing.assert_allclose(standardize_by(empty_stats((2,)), x), [[-10.0, -1.0], [0.5, 10.0]], rtol=1e-6)


def test_standardized_values_are_clipped_to_10():
    """An outlier 1000 standard deviations out becomes +-10."""
    stats = update_stats(empty_stats((1,)), jnp.asarray([[-1.0], [1.0]]))
    np.testing.assert_allclose(
        standardize_by(stats, jnp.asarray([[1e3], [-1e3], [0.5]]))[:, 0], [10, -10, 0.5], rtol=1e-6
    )


def seen_one_by_one(rows):
    """(final statistics, rows [N, E, O] each normalised by what had been seen with it), in one program."""

    def see(stats, x):
        stats = update_stats(stats, x)
        return stats, standardize_by(stats, x)

    return jax.jit(lambda rows: jax.lax.scan(see, empty_stats(rows.shape[2:]), rows))(jnp.asarray(rows))


@pytest.mark.parametrize("num_envs", [1, 7, 64])
def test_a_constant_observation_is_normalised_to_zero(num_envs):
    """Exactly, whatever it is and however often it is seen; what varies beside it is normalised as ever."""
    rows = np.empty((50, num_envs, 6), np.float32)
    rows[...] = [3.0, 0.1, 1000.1, 1234567.0, -1e-3, 0.0]
    rows[..., 5] = np.random.default_rng(2).normal(size=rows.shape[:2])
    stats, normalised = seen_one_by_one(rows)
    np.testing.assert_array_equal(normalised[..., :5], 0.0)
    np.testing.assert_array_equal(stats.var[:5], 0.0)
    np.testing.assert_allclose(stats.var[5], rows[..., 5].astype(np.float64).var(), rtol=1e-4)


def test_rounding_of_an_observation_is_not_blown_up():
    """A number that changes in its last bit alone, from step to step or between environments, stays near 0."""
    rows = np.full((64, 8, 2), 1000.1, np.float32)
    rows[::2, :, 0] = np.nextafter(rows[::2, :, 0], np.float32(2000))
    rows[:, ::2, 1] = np.nextafter(rows[:, ::2, 1], np.float32(2000))
    assert np.abs(seen_one_by_one(rows)[1]).max() <= 1 / 8


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4, 1e7])
def test_observations_are_normalised_at_any_scale(scale):
    """As float64 has it, from offsets of nothing to ten million, to what the rounding of the mean allows."""
    offset = np.array([0.0, 1e-3, 1.0, 1e3, 1e7])
    rows = (offset + scale * np.random.default_rng(3).normal(size=(40, 16, 5))).astype(np.float32)
    stats, normalised = seen_one_by_one(rows)
    exact = rows.astype(np.float64).reshape(-1, 5)
    std = np.maximum(np.sqrt(exact.var(0) + EPSILON), 2.0**-20 * np.abs(exact.mean(0)))
    np.testing.assert_allclose(stats.mean, exact.mean(0), rtol=1e-6, atol=1e-5 * scale)
    expected = np.clip((exact[-16:] - exact.mean(0)) / std, -10, 10)
    np.testing.assert_allclose(normalised[-1], expected, rtol=1e-4, atol=0.25 if scale < 1 else 2e-2)


# --- observations -----------------------------------------------------------------------------------------------------


def test_observations_are_normalised_from_the_first_one_on():
    """By everything seen so far, this step's observations included; final_obs by the same statistics as obs."""
    script = make_script()
    first, state, steps = play(normalize_observation(scripted_env(script)))
    seen = [script.first]
    np.testing.assert_allclose(first, normalize64(script.first, seen), rtol=1e-3, atol=1e-3)
    for t in range(T):
        seen.append(script.obs[t])
        np.testing.assert_allclose(steps.obs[t], normalize64(script.obs[t], seen), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(steps.final_obs[t], normalize64(script.final_obs[t], seen), rtol=1e-3, atol=1e-3)
    same = ~script.done
    np.testing.assert_array_equal(np.asarray(steps.obs)[same], np.asarray(steps.final_obs)[same])
    np.testing.assert_allclose(state.stats.mean, np.concatenate(seen).mean(0), rtol=1e-5)
    assert float(state.stats.rows) == (T + 1) * E


def test_statistics_carry_over_from_one_rollout_to_the_next():
    """Two rollouts of half the length are one rollout: the statistics live in the state."""
    env = training_env(
        TrainConfig(num_envs=E, normalize_observation=True, normalize_reward=True), scripted_env(make_script()), GAMMA
    )
    _, state, whole = play(env)
    _, middle, front = play(env, 5)
    _, last, back = play(env, T - 5, middle)
    for a, b, c in zip(*map(jax.tree.leaves, (whole, front, back)), strict=True):
        np.testing.assert_allclose(a, np.concatenate([b, c]), rtol=1e-3, atol=1e-4)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_frozen_statistics_do_not_change():
    """Evaluation standardises by what training had seen, whatever it sees itself."""
    script, other = make_script(0), make_script(1)
    _, state, _ = play(normalize_observation(scripted_env(script)))
    stats = observation_stats(state)
    first, final, steps = play(freeze_observation(scripted_env(other), stats))
    seen = [script.first, *script.obs]
    np.testing.assert_allclose(first, normalize64(other.first, seen), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(steps.obs, normalize64(other.obs, seen), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(steps.final_obs, normalize64(other.final_obs, seen), rtol=1e-3, atol=1e-3)
    assert int(final) == T  # the state is the environment's own: there is nothing left to update


def test_observation_stats_are_found_or_absent():
    """None unless the training environment normalises observations; the others' statistics are not mistaken for it."""
    for observation in (False, True):
        for reward in (False, True):
            config = TrainConfig(num_envs=E, normalize_observation=observation, normalize_reward=reward)
            state, _ = training_env(config, scripted_env(make_script()), GAMMA).reset(jax.random.key(0))
            found = observation_stats(state)
            assert (found is not None) == observation
            if found is not None:
                assert found.mean.shape == (O,)


# --- rewards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_reward_normaliser_against_a_float64_loop(seed):
    """Divided by the standard deviation of all discounted returns so far.

    The return of an episode's last step is among them, and the first return of the next episode is its first reward.
    """
    script = make_script(seed)
    _, state, steps = play(normalize_reward(scripted_env(script), GAMMA))
    running, seen = np.zeros(E), []
    for t in range(T):
        for env in range(E):
            running[env] = GAMMA * running[env] + script.reward[t, env]
            seen.append(running[env])
        expected = np.clip(script.reward[t] / np.sqrt(np.var(seen) + EPSILON), -10, 10)
        np.testing.assert_allclose(steps.reward[t], expected, rtol=1e-4)
        running[script.done[t]] = 0.0
    np.testing.assert_allclose(state.discounted, running, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.stats.var, np.var(seen), rtol=1e-4)
    assert float(state.stats.rows) == T * E


def test_reward_normaliser_touches_nothing_else():
    """Observations and flags pass unchanged; the sign of a reward never changes."""
    script = make_script()
    first, _, steps = play(normalize_reward(scripted_env(script), GAMMA))
    np.testing.assert_array_equal(first, script.first)
    np.testing.assert_array_equal(steps.obs, script.obs)
    np.testing.assert_array_equal(steps.final_obs, script.final_obs)
    np.testing.assert_array_equal(steps.terminated, script.terminated)
    np.testing.assert_array_equal(steps.truncated, script.truncated)
    np.testing.assert_array_equal(np.sign(steps.reward), np.sign(script.reward))


def test_rewards_are_clipped_to_10():
    """A jackpot after a long quiet time becomes 10."""
    script = make_script()
    reward = np.full((T, E), 0.01, np.float32) * np.arange(1, E + 1)
    reward[-1] = [-1e6, 0.0, 1.0]
    _, _, steps = play(normalize_reward(scripted_env(script._replace(reward=reward.astype(np.float32))), GAMMA))
    assert np.abs(steps.reward).max() <= 10
    quiet = reward.copy()
    quiet[-1] = [0.0, 0.0, 1e6]
    _, _, steps = play(normalize_reward(scripted_env(script._replace(reward=quiet.astype(np.float32))), GAMMA))
    # One outlier among n returns is at most sqrt(n) standard deviations from zero.
    np.testing.assert_allclose(steps.reward[-1, 2], np.sqrt(T * E), rtol=0.1)
    constant = np.ones((T, E), np.float32)
    _, _, steps = play(normalize_reward(scripted_env(script._replace(reward=constant)), GAMMA))
    np.testing.assert_array_equal(steps.reward[0], 10.0)  # no spread yet


# --- episodes ---------------------------------------------------------------------------------------------------------


def test_episode_tracking_against_a_loop():
    """Return, length and count in the step that ends an episode, zeros elsewhere; unfinished ones stay in the state."""
    script = make_script()
    _, state, steps = play(track_episodes(scripted_env(script)))
    expected, length = np.zeros(E), np.zeros(E)
    for t in range(T):
        expected, length = expected + script.reward[t], length + 1
        done = script.done[t]
        np.testing.assert_allclose(steps.info["episode/return"][t], np.where(done, expected, 0), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(steps.info["episode/length"][t], np.where(done, length, 0))
        np.testing.assert_array_equal(steps.info["episode/count"][t], done)
        expected, length = np.where(done, 0, expected), np.where(done, 0, length)
    np.testing.assert_allclose(state.episode_return.value, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(state.episode_length, length)


def test_the_return_of_a_million_steps():
    """0.1 a step is 100,000; float32 added one by one would make it 100,958. The next episode begins with nothing."""
    num_steps = 10**6

    def step(key, time, action):
        time, last = time + 1, (time + 1) % (num_steps // jnp.array([1, 10])) == 0
        obs = jnp.zeros((2, 1))
        return time, EnvStep(obs, obs, jnp.full(2, 0.1), last, last, {})

    env = VecEnv(lambda key: (jnp.zeros((), jnp.int32), jnp.zeros((2, 1))), step, Box((1,)), Discrete(2), 2)
    env = track_episodes(env)

    def run(state):
        def keep_last(carry, _):
            state, seen = carry
            state, result = env.step(None, state, None)
            return (state, jnp.where(result.info["episode/count"], result.info["episode/return"], seen)), None

        return jax.lax.scan(keep_last, (state, jnp.zeros(2)), length=num_steps)[0]

    state, seen = jax.jit(run)(env.reset(None)[0])
    np.testing.assert_allclose(seen, [100_000, 10_000], rtol=1e-7)
    np.testing.assert_array_equal(state.episode_return.value, 0.0)


def test_episode_returns_are_of_raw_rewards():
    """Normalising rewards changes what is learnt from, not what is reported."""
    config = TrainConfig(num_envs=E, normalize_reward=True, normalize_observation=True)
    _, _, normalised = play(training_env(config, scripted_env(make_script()), GAMMA))
    _, _, raw = play(track_episodes(scripted_env(make_script())))
    for name in ("episode/return", "episode/length", "episode/count"):
        np.testing.assert_array_equal(normalised.info[name], raw.info[name])
    assert not np.allclose(normalised.reward, raw.reward)


def test_inner_info_is_kept():
    """What the environment reports itself travels with the episode's numbers."""
    env = scripted_env(make_script())

    def step(key, state, action):
        state, result = env.step(key, state, action)
        return state, result._replace(info={"coins": jnp.ones(E)})

    _, _, steps = play(track_episodes(env._replace(step=step)))
    assert set(steps.info) == {"coins", "episode/return", "episode/length", "episode/count"}


def test_evaluation_sees_raw_rewards():
    """No reward normalisation and no statistics of its own in the evaluation's environment."""
    script = make_script()
    config = TrainConfig(num_envs=E, normalize_reward=True)
    _, _, steps = play(evaluation_env(config, scripted_env(script), None))
    np.testing.assert_array_equal(steps.reward, script.reward)
    np.testing.assert_array_equal(steps.obs, script.obs)


# --- actions ----------------------------------------------------------------------------------------------------------


def received(policy, low, high, action):
    """What an environment with these bounds receives for a row of actions [A]."""
    space = Box((len(low),), tuple(map(float, low)), tuple(map(float, high)))

    def step(key, state, action):
        zero = jnp.zeros(1)
        return state, EnvStep(action, action, zero, zero > 0, zero > 0, {})

    env = VecEnv(lambda key: ((), jnp.zeros((1, len(low)))), step, Box((len(low),)), space, 1)
    bounded = bound_action(TrainConfig(policy=policy, num_envs=1), env)
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
    for space in (Discrete(5), Box((2,))):
        env = scripted_env(make_script(), space)
        assert bound_action(TrainConfig(policy=policy), env) is env


@pytest.mark.parametrize("policy", ["gaussian", "tanh_gaussian"])
def test_the_rollout_stores_the_unbounded_action(policy):
    """The environment gets the bounded action; the learner keeps what was sampled, with its own log-probability."""
    space = Box((O,), (-0.5,) * O, (0.5,) * O)

    def step(key, state, action):
        zero = jnp.zeros(E)
        return state, EnvStep(action, action, zero, zero > 0, zero > 0, {})

    env = VecEnv(lambda key: ((), jnp.zeros((E, O))), step, Box((O,)), space, E)
    env = bound_action(TrainConfig(policy=policy, num_envs=E), env)

    def apply(params, obs):
        return DiagGaussian(jnp.zeros_like(obs), jnp.ones_like(obs)), obs[..., 0]

    state, obs = env.reset(jax.random.key(0))
    _, _, transition, _ = rollout(jax.random.key(1), env, apply, (), state, obs, jnp.arange(E), 20)
    stored, sent = np.asarray(transition.action[:-1]), np.asarray(transition.obs[1:])
    bound = 0.5 * (np.clip(stored, -1, 1) if policy == "gaussian" else np.tanh(stored))
    np.testing.assert_allclose(sent, bound, rtol=1e-5, atol=1e-6)
    assert np.abs(stored).max() > 1
    assert np.abs(sent).max() <= 0.5
    np.testing.assert_allclose(transition.log_prob, transition.pi.log_prob(transition.action), rtol=1e-6)


@pytest.mark.parametrize("reward", [False, True])
@pytest.mark.parametrize("observation", [False, True])
def test_running_stats_are_all_that_there_are(observation, reward):
    config = TrainConfig(num_envs=3, normalize_observation=observation, normalize_reward=reward)
    state, _ = training_env(config, walk(3), 0.9).reset(jax.random.split(jax.random.key(0), 3))
    expected = [(2,)] * observation + [()] * reward
    assert [stats.mean.shape for stats in running_stats(state)] == expected
