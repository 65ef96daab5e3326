"""Returns and lengths of episodes, against a loop over steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxppo.core.episodes import ended_episodes, no_episodes

E = 6


def by_loop(rewards, dones):
    """(returns, lengths, number of the episodes that ended, per environment; return and length of the last one)."""
    ended, running = np.zeros((3, E)), np.zeros((2, E))
    for reward, done in zip(rewards.astype(np.float64), dones, strict=True):
        running = running + np.array([reward, np.ones(E)])
        ended = ended + np.where(done, [*running, np.ones(E)], 0)
        running = np.where(done, 0, running)
    return ended, running


@pytest.mark.parametrize("chance", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("lengths", [[1], [40], [7, 1, 25]])
def test_against_a_loop(chance, lengths):
    """Over several rollouts: episodes that began in an earlier one, several in one, and none."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(3, 2, (sum(lengths), E)).astype(np.float32)
    dones = rng.random(rewards.shape) < chance
    episodes, found = no_episodes(E), np.zeros((3, E))
    for reward, done in zip(*(np.split(x, np.cumsum(lengths)[:-1]) for x in (rewards, dones)), strict=True):
        episodes, sums = ended_episodes(episodes, reward, done)
        found += [sums[f"episode/{name}"] for name in ("return", "length", "count")]
    ended, running = by_loop(rewards, dones)
    np.testing.assert_allclose(found, ended, rtol=1e-5)
    np.testing.assert_allclose([episodes.rewards.value, episodes.length], running, rtol=1e-5, atol=1e-5)


def test_an_infinite_reward_stays_in_its_episode():
    reward = np.ones((4, 1), np.float32)
    reward[1] = np.inf
    done = np.array([0, 0, 1, 0], bool)[:, None]
    episodes, sums = ended_episodes(no_episodes(1), reward, done)
    assert np.isinf(sums["episode/return"][0])
    assert float(episodes.rewards.value[0]) == 1.0


def test_the_return_of_a_million_steps():
    """0.1 a step is 100,000; float32 added one by one would make it 100,958. The next episode begins with nothing."""
    num_steps, length = 100, 10**6
    reward = jnp.full((num_steps, 1), 0.1)

    def rollout(episodes, number):
        last = (jnp.arange(num_steps) == num_steps - 1)[:, None] & ((number + 1) * num_steps == length)
        return ended_episodes(episodes, reward, last)

    episodes, sums = jax.jit(lambda: jax.lax.scan(rollout, no_episodes(1), jnp.arange(length // num_steps)))()
    np.testing.assert_allclose(sums["episode/return"].sum(), 100_000, rtol=1e-6)
    assert sums["episode/length"].sum() == length
    np.testing.assert_array_equal(episodes.rewards.value, 0.0)
