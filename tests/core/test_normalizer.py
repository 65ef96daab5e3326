"""Running statistics against float64, and normalisers that move once per rollout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxppo.core import normalizer as module
from purejaxppo.core.normalizer import (
    NORMALIZER_EPSILON,
    Normalizer,
    discounted_returns,
    empty_stats,
    init_normalizer,
    normalized_obs,
    scaled_reward,
    standardize_by,
    update_normalizer,
)
from purejaxppo.core.sums import merged, moments

T, E = 12, 3
GAMMA = 0.9


@jax.jit
def update_stats(stats, x):
    """With the rows of x [N, ...] added."""
    return module.update_stats(stats, merged(moments(x[None])), len(x))


@functools.partial(jax.jit, static_argnames="shards")
def updated(normalizer, obs, reward, done, shards=1):
    """With those of a rollout added; the environments are in this many shards."""

    def by_shard(x):
        return x.swapaxes(0, 1).reshape(shards, -1, *x.shape[2:])

    seen = None if normalizer.obs is None else moments(by_shard(obs))
    if normalizer.discounted is None:
        return update_normalizer(normalizer, seen, None, None, reward.size)
    returns, discounted = discounted_returns(reward, done, normalizer.discounted, GAMMA)
    return update_normalizer(normalizer, seen, moments(by_shard(returns)), discounted, reward.size)


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
    std = np.maximum(np.sqrt(exact.var(0) + NORMALIZER_EPSILON), 2.0**-20 * np.abs(exact.mean(0)))
    np.testing.assert_allclose(stats.mean, exact.mean(0), rtol=1e-6, atol=1e-5 * scale)
    expected = np.clip((exact[-16:] - exact.mean(0)) / std, -10, 10)
    np.testing.assert_allclose(normalised[-1], expected, rtol=1e-4, atol=0.25 if scale < 1 else 2e-2)


# --- observations -----------------------------------------------------------------------------------------------------


def rollout_of(seed):
    """(obs [T, E, 2], reward [T, E], done [T, E]) with a different scale in each element."""
    rng = np.random.default_rng(seed)
    obs = np.array([100.0, -5.0]) + np.array([10.0, 0.1]) * rng.normal(size=(T, E, 2))
    return obs.astype(np.float32), rng.normal(1.0, 3.0, (T, E)).astype(np.float32), rng.random((T, E)) < 0.2


def test_before_the_first_rollout_observations_are_centred_and_not_scaled():
    """On the mean of the first ones; the clip holds as ever. Rewards are as they were."""
    first = np.array([[50.0, 0.5], [54.0, 0.5]], np.float32)
    normalizer = init_normalizer(jnp.asarray(first), True, True)
    np.testing.assert_allclose(
        normalized_obs(normalizer.obs, jnp.array([[[53.0, 0.5], [30.0, 2.5]]])), [[[1.0, 0.0], [-10.0, 2.0]]], rtol=1e-6
    )
    np.testing.assert_allclose(scaled_reward(normalizer, jnp.array([[-3.0, 70.0]])), [[-3.0, 10.0]], rtol=1e-6)


@pytest.mark.parametrize("which", [(False, False), (True, False), (False, True), (True, True)])
def test_what_is_not_normalised_passes_unchanged(which):
    """And has no statistics, before and after a rollout."""
    obs, reward, done = map(jnp.asarray, rollout_of(0))
    normalizer = updated(init_normalizer(obs[0], *which), obs, reward, done)
    assert (normalizer.obs is not None, normalizer.returns is not None) == which
    assert (normalized_obs(normalizer.obs, obs) is obs) == (not which[0])
    assert (scaled_reward(normalizer, reward) is reward) == (not which[1])


@pytest.mark.parametrize("shards", [1, E])
def test_statistics_are_those_of_all_rollouts_so_far(shards):
    """Of every observation and every discounted return, an episode's last one included, over two rollouts."""
    normalizer = init_normalizer(jnp.zeros((E, 2)), True, True)
    running, returns, seen = np.zeros(E), [], []
    for seed in range(2):
        obs, reward, done = rollout_of(seed)
        normalizer = updated(normalizer, obs, reward, done, shards=shards)
        seen.append(obs.reshape(-1, 2).astype(np.float64))
        for t in range(T):
            running = GAMMA * running + reward[t]
            returns.append(running)
            running = np.where(done[t], 0.0, running)
        rows = np.concatenate(seen)
        np.testing.assert_allclose(normalizer.obs.mean, rows.mean(0), rtol=1e-5)
        np.testing.assert_allclose(normalizer.obs.var, rows.var(0), rtol=1e-4)
        np.testing.assert_allclose(normalizer.returns.var, np.var(returns), rtol=1e-4)
        np.testing.assert_allclose(normalizer.discounted, running, rtol=1e-5, atol=1e-6)
        assert float(normalizer.obs.rows) == float(normalizer.returns.rows) == T * E * (seed + 1)


def test_of_several_arrays_those_of_floats_that_are_seen_are_normalised():
    """Each by statistics of its own; a mask, integers and what nobody sees stay as they are."""
    obs, *_ = rollout_of(0)
    whole = {
        "obs": obs,
        "critic": 3 + 2 * obs[..., :1],
        "action_mask": np.ones((T, E, 2), bool),
        "goal": obs,
    }
    unseen = {"image": np.full((T, E, 2, 2), 200, np.uint8), "place": obs}
    for arrays, names in ((whole, {"obs", "critic"}), (unseen, {"place"})):
        first = jax.tree.map(lambda x: x[0], arrays)
        normalizer = init_normalizer(first, True, False)
        assert normalizer.obs.keys() == names
        seen = {name: moments(arrays[name].reshape(1, T * E, -1)) for name in names}
        normalizer = update_normalizer(normalizer, seen, None, None, T * E)
        found = normalized_obs(normalizer.obs, arrays)
        assert found.keys() == arrays.keys()
        for name, x in arrays.items():
            if name in names:
                rows = x.reshape(T * E, -1).astype(np.float64)
                np.testing.assert_allclose(normalizer.obs[name].mean, rows.mean(0), rtol=1e-5)
                np.testing.assert_allclose(
                    found[name], np.clip((x - rows.mean(0)) / rows.std(0), -10, 10), rtol=1e-3, atol=1e-3
                )
            else:
                assert found[name] is x


# --- rewards ----------------------------------------------------------------------------------------------------------


def test_rewards_are_divided_by_the_spread_of_the_returns():
    """Not shifted, so that their sign stays; clipped to +-10."""
    returns = np.random.default_rng(1).normal(-40.0, 5.0, 1000).astype(np.float32)
    normalizer = Normalizer(None, update_stats(empty_stats(()), jnp.asarray(returns)), jnp.zeros(1))
    reward = np.array([[-3.0, 0.0, 0.7, 1e6, -1e6]], np.float32)
    expected = np.clip(reward / np.sqrt(returns.astype(np.float64).var() + NORMALIZER_EPSILON), -10, 10)
    np.testing.assert_allclose(scaled_reward(normalizer, jnp.asarray(reward)), expected, rtol=1e-5)


def test_discounted_returns_go_on_in_the_next_rollout():
    """Two rollouts of half the length are one."""
    _, reward, done = map(jnp.asarray, rollout_of(3))
    whole, end = discounted_returns(reward, done, jnp.zeros(E), GAMMA)
    front, middle = discounted_returns(reward[:5], done[:5], jnp.zeros(E), GAMMA)
    back, last = discounted_returns(reward[5:], done[5:], middle, GAMMA)
    np.testing.assert_allclose(whole, jnp.concatenate([front, back]), rtol=1e-6)
    np.testing.assert_allclose(end, last, rtol=1e-6)
