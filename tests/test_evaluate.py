"""Evaluation: exactly one episode per environment, frozen normalisers, and a summary checked by hand."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_policy import policy_of
from probe_envs import match

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.distributions import Categorical
from purejaxppo.core.normalizer import RunningStats
from purejaxppo.core.types import Box, Discrete, EnvStep, VecEnv
from purejaxppo.evaluate import LONGEST_EPISODE, Episodes, begin_play, evaluate, evaluate_runner, most_steps
from purejaxppo.evaluate import play as play_on
from purejaxppo.experiment.evaluation import summarize
from purejaxppo.policies.normalized import Normalized
from purejaxppo.train import trainer_from_config

E = 4


def countdown(num_envs=E, endless=False, step_limit=None):
    """Environment e plays episodes of e + 1 steps and earns 10^t in step t; every second one ends by truncation."""
    number = jnp.arange(num_envs, dtype=jnp.int32)

    def observe(time):
        return (100.0 + time)[:, None]

    def reset(key):
        time = jnp.zeros(num_envs, jnp.int32)
        return time, observe(time)

    def step(key, time, action):
        reward = 10.0**time
        last = (time == number) & (not endless)
        following = jnp.where(last, 0, time + 1)
        even = number % 2 == 0
        return following, EnvStep(observe(following), observe(time + 1), reward, last & even, last & ~even, {})

    return VecEnv(reset, step, Box((1,)), Discrete(2), num_envs, step_limit)


def indifferent(params, obs):
    return Categorical(jnp.zeros((*obs.shape[:-1], 2))), obs[..., 0]


INDIFFERENT = policy_of(indifferent)


def play(env, policy=INDIFFERENT, seed=0, **options):
    run = jax.jit(lambda key: evaluate(key, env, policy, None, **options))
    return jax.device_get(run(jax.random.key(seed)))


def test_every_environment_contributes_exactly_its_first_episode():
    """Short ones are not counted twice, and both kinds of end are an end."""
    episodes = play(countdown())
    np.testing.assert_array_equal(episodes.episode_length, [1, 2, 3, 4])
    np.testing.assert_array_equal(episodes.episode_return, [1, 11, 111, 1111])
    assert episodes.finished.all()


def test_the_return_of_a_long_episode():
    """0.1 a step; float32 added one by one would be off by 0.5 after 300,000 of them."""

    def step(key, time, action):
        never = jnp.zeros(E, bool)
        obs = jnp.zeros((E, 1))
        return time, EnvStep(obs, obs, jnp.full(E, 0.1), never, never, {})

    env = VecEnv(lambda key: ((), jnp.zeros((E, 1))), step, Box((1,)), Discrete(2), E)
    np.testing.assert_allclose(play(env, max_steps=300_000).episode_return, 30_000, rtol=1e-7)


def test_an_endless_environment_is_broken_off_and_reported():
    episodes = play(countdown(endless=True), max_steps=3)
    np.testing.assert_array_equal(episodes.episode_length, 3)
    np.testing.assert_array_equal(episodes.episode_return, 111)
    assert not episodes.finished.any()
    assert summarize(episodes)["unfinished"] == E


def test_the_time_limit_is_the_environments_own_unless_given():
    assert play(countdown(endless=True, step_limit=2)).episode_length.tolist() == [2] * E
    assert play(countdown(endless=True, step_limit=2), max_steps=1).episode_length.tolist() == [1] * E
    part = play(countdown(), max_steps=2)
    assert part.finished.tolist() == [True, True, False, False]
    assert summarize(part)["unfinished"] == 2


def test_an_environment_without_any_limit_ends_after_10000_steps():
    number = 2
    env = countdown(number, endless=True)
    poor = env._replace(step=lambda key, state, action: without_reward(env.step(key, state, action)))
    episodes = play(poor)
    np.testing.assert_array_equal(episodes.episode_length, 10_000)
    assert summarize(episodes) == {
        "episodes": 2,
        "return_mean": 0.0,
        "return_std": 0.0,
        "return_iqm": 0.0,
        "length_mean": 10_000.0,
        "unfinished": 2,
    }


@pytest.mark.parametrize(
    ("limit", "steps"),
    [(None, 10_000), (1, 1), (500, 500), (100_000, 100_000), (100_001, 100_000), (2 * 10**9, 100_000)],
)
def test_no_limit_keeps_an_evaluation_from_its_end(limit, steps):
    assert most_steps(countdown(step_limit=limit)) == steps


def test_every_registered_environment_has_its_own_limit_within_the_bound():
    names = set(gymnax.registration.registered_envs) - {"MNISTBandit-bsuite"}  # which would fetch its data set
    limits = {name: gymnax.make(name)[1].max_steps_in_episode for name in names}
    assert len(limits) > 20
    assert max(limits.values()) <= LONGEST_EPISODE


def without_reward(state_and_step):
    state, step = state_and_step
    return state, step._replace(reward=jnp.zeros_like(step.reward))


def test_greedy_takes_the_mode_and_sampled_does_not():
    """A policy that prefers the right action, weakly: greedy is always right, samples are about two times of three."""
    number = 600

    def apply(params, obs):
        return Categorical(obs * jnp.log(2.0) * jnp.array([[-0.5, 0.5]])), obs[..., 0]

    assert play(match(number), policy_of(apply)).episode_return.mean() == 1.0
    sampled = play(match(number), policy_of(apply), greedy=False).episode_return.mean()
    assert sampled == pytest.approx(2 / 3, abs=4 * (2 / 9 / number) ** 0.5)


def test_same_key_same_episodes():
    env = match(50)
    run = jax.jit(lambda key: evaluate(key, env, INDIFFERENT, None, greedy=False).episode_return)
    one, again, other = (np.asarray(run(jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


# --- the normaliser ---------------------------------------------------------------------------------------------------


def threshold(params, obs):
    """Right in `match` only for standardised observations: an offset has to be taken off first."""
    return Categorical(jnp.concatenate([-obs, obs], axis=-1)), obs[..., 0]


THRESHOLD = policy_of(threshold)


def shifted(env):
    """Observations at 50 +- 2 instead of +-1."""

    def move(step):
        return step._replace(obs=50 + 2 * step.obs, final_obs=50 + 2 * step.final_obs)

    def reset(key):
        state, obs = env.reset(key)
        return state, 50 + 2 * obs

    def step(key, state, action):
        state, result = env.step(key, state, action)
        return state, move(result)

    return env._replace(reset=reset, step=step)


def test_statistics_are_used_and_left_alone():
    """Perfect with the training's statistics, chance without; the state has no statistics that could move."""
    env = shifted(match(64))
    stats = RunningStats(jnp.array([50.0]), jnp.array([4.0]), jnp.float32(1000))
    assert play(env, Normalized(THRESHOLD, stats)).episode_return.mean() == 1.0
    assert 0.3 < play(env, Normalized(THRESHOLD, None)).episode_return.mean() < 0.7
    begun = begin_play(jax.random.key(0), env, Normalized(THRESHOLD, stats))
    assert jax.tree.structure(begun) == jax.tree.structure(begin_play(jax.random.key(0), env, THRESHOLD))


def test_statistics_come_from_the_training_state_and_rewards_are_raw():
    config = TrainConfig(normalize_observation=True, normalize_reward=True)
    env = shifted(match(64))
    runner = trainer_from_config(config, env).init(jax.random.key(0), Hyperparams())
    assert float(runner.normalizer.obs.mean[0]) == pytest.approx(50, abs=1)
    episodes = evaluate_runner(jax.random.key(0), config, env, THRESHOLD, runner)
    assert set(np.unique(episodes.episode_return)) == {1.0}


# --- memory -----------------------------------------------------------------------------------------------------------


class Counting:
    """Remembers the number of steps of the running episode [E], and prefers action 1 from the third one on."""

    def initial_memory(self, num_envs):
        return jnp.full(num_envs, 100)  # of no effect, since an episode begins

    def act(self, params, memory, obs, start):
        memory = jnp.where(start, 0, memory) + 1
        return memory, Categorical(jnp.where(memory[:, None] > 2, jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 0.0]])))


def test_a_policy_remembers_its_episode_and_no_other():
    """Environment e plays e + 1 steps; in each beyond the second, action 1 earns 1. Whole episodes, in any pieces."""
    inner = countdown()

    def step(draws, time, action):
        time, result = inner.step(draws, time, action)
        return time, result._replace(reward=action.astype(jnp.float32))

    env = inner._replace(step=step)
    whole = play(env, Counting())
    np.testing.assert_array_equal(whole.episode_return, [0, 0, 1, 2])

    def in_pieces(key):
        begun = begin_play(key, env, Counting())
        for until in (1, 3, 9):
            begun = play_on(begun, until, env, Counting(), None)
        return begun

    found = jax.jit(in_pieces)(jax.random.key(0))
    np.testing.assert_array_equal(found.episodes.episode_return, whole.episode_return)
    np.testing.assert_array_equal(found.memory, [1, 2, 1, 4])  # after four steps: 1, 2, 3 and 4 to an episode


# --- the summary ------------------------------------------------------------------------------------------------------


def summary_of(returns, lengths=None, finished=None):
    n = len(returns)
    lengths = lengths or [1] * n
    finished = np.ones(n, bool) if finished is None else np.array(finished)
    return summarize(Episodes(jnp.array(returns, jnp.float32), jnp.array(lengths), finished))


def test_summary_by_hand():
    """Eight returns: the middle half is 3, 4, 5, 6, the outlier at 100 moves the mean alone."""
    summary = summary_of([100, 1, 2, 3, 4, 5, 6, 7], lengths=[1, 2, 3, 4, 5, 6, 7, 8])
    assert summary == {
        "episodes": 8,
        "return_mean": 16.0,
        "return_std": pytest.approx(1011.5**0.5),  # the mean of the squares is 10140 / 8, that of the returns 16
        "return_iqm": 4.5,
        "length_mean": 4.5,
    }


@pytest.mark.parametrize(
    ("returns", "iqm"),
    [([5], 5), ([1, 3], 2), ([0, 0, 9], 3), ([9, 1, 2, 0], 1.5), ([5, 4, 3, 2, 1], 3), ([0] * 6 + [8] * 3, 1.6)],
)
def test_interquartile_mean(returns, iqm):
    """A quarter of the episodes, rounded down, is left out at each end."""
    assert summary_of(returns)["return_iqm"] == pytest.approx(iqm)


def test_summary_is_plain_python():
    """Ready for JSON."""
    summary = summary_of([1, 2], finished=[True, False])
    assert {type(value) for value in summary.values()} == {int, float}
    assert summary["unfinished"] == 1


def test_a_return_that_is_not_finite_is_none():
    """JSON has no NaN, and a run must be able to finish; what does not depend on it stays."""
    bad = summary_of([1.0, 2.0, np.nan, 3.0], [1, 2, 3, 4])
    assert (bad["return_mean"], bad["return_std"], bad["return_iqm"]) == (None, None, None)
    assert (bad["episodes"], bad["length_mean"]) == (4, 2.5)
    infinite = summary_of([1.0, 2.0, 4.0, np.inf], [1, 1, 1, 1])
    assert (infinite["return_mean"], infinite["return_std"], infinite["return_iqm"]) == (None, None, 3.0)
