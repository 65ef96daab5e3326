"""Generalised advantage estimation and rewards-to-go by hand, by a float64 loop, and at the limits of lambda."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.advantage import ESTIMATORS, estimate, gae, rewards_to_go
from purejaxppo.core.types import Trajectory

T, E = 7, 3
compiled = jax.jit(gae)
flags = arrays(bool, (T, E))
unit = st.floats(0.0, 1.0, width=32)


def gae64(reward, value, next_value, terminated, truncated, gamma, gae_lambda):
    """The recursion, one environment and one step at a time."""
    advantage = np.zeros(reward.shape)
    for env in range(reward.shape[1]):
        following = 0.0
        for t in reversed(range(reward.shape[0])):
            future = 0.0 if terminated[t, env] else gamma * next_value[t, env]
            if terminated[t, env] or truncated[t, env]:
                following = 0.0
            following = reward[t, env] + future - value[t, env] + gamma * gae_lambda * following
            advantage[t, env] = following
    return advantage


def random_rollout(seed, terminated, truncated):
    """Rewards and values whose next_value agrees with value wherever the episode goes on."""
    rng = np.random.default_rng(seed)
    reward, value, next_value = rng.normal(size=(3, *terminated.shape)).astype(np.float32)
    goes_on = ~(terminated | truncated)[:-1]
    next_value[:-1] = np.where(goes_on, value[1:], next_value[:-1])
    return reward, value, next_value, terminated, truncated


def test_three_steps_by_hand():
    """One environment per kind of end; exact, since every number is a small binary fraction.

    gamma = lambda = 1/2, so gamma lambda = 1/4. All environments share r = (1, 2, 3) and V = (1, 3, 4); V(s_3) = 8.
    V(s_2) = 4 where step 1 does not end the episode; where it does, the old episode's last observation is worth 6.

        delta_0 = 1 + 3/2 - 1 = 3/2,   delta_2 = 3 + 8/2 - 4 = 3,   in all of them; hence A_2 = 3.

    column 0, no end:          delta_1 = 2 + 4/2 - 3 = 1;  A_1 = 1 + 3/4 = 7/4;  A_0 = 3/2 + 7/16 = 31/16
    column 1, terminated at 1: delta_1 = 2 +   0 - 3 = -1; A_1 = -1;             A_0 = 3/2 - 1/4  = 5/4
    column 2, truncated at 1:  delta_1 = 2 + 6/2 - 3 = 2;  A_1 = 2;              A_0 = 3/2 + 1/2  = 2
    column 3, both at 1:       as column 1, nothing is bootstrapped
    """
    reward = jnp.tile(jnp.asarray([[1.0], [2.0], [3.0]]), (1, 4))
    value = jnp.tile(jnp.asarray([[1.0], [3.0], [4.0]]), (1, 4))
    next_value = jnp.asarray([[3.0, 3.0, 3.0, 3.0], [4.0, 6.0, 6.0, 6.0], [8.0, 8.0, 8.0, 8.0]])
    terminated = jnp.zeros((3, 4), bool).at[1].set(jnp.asarray([False, True, False, True]))
    truncated = jnp.zeros((3, 4), bool).at[1].set(jnp.asarray([False, False, True, True]))

    advantage, target = gae(reward, value, next_value, terminated, truncated, 0.5, 0.5)

    by_hand = np.array([[31 / 16, 5 / 4, 2.0, 5 / 4], [7 / 4, -1.0, 2.0, -1.0], [3.0, 3.0, 3.0, 3.0]])
    np.testing.assert_array_equal(advantage, by_hand)
    np.testing.assert_array_equal(target, by_hand + np.asarray(value))


@given(st.integers(0, 2**31), flags, flags, unit, unit)
def test_against_a_float64_loop(seed, terminated, truncated, gamma, gae_lambda):
    """Any mixture of flags, also both at once; the target is advantage + value."""
    rng = np.random.default_rng(seed)
    reward, value, next_value = 3 * rng.normal(size=(3, T, E)).astype(np.float32)
    advantage, target = compiled(reward, value, next_value, terminated, truncated, gamma, gae_lambda)
    expected = gae64(reward, value, next_value, terminated, truncated, gamma, gae_lambda)
    np.testing.assert_allclose(advantage, expected, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(target, expected + value, rtol=1e-5, atol=2e-5)


@given(st.integers(0, 2**31), flags, flags)
def test_nothing_is_bootstrapped_at_a_termination(seed, terminated, truncated):
    """The next value is irrelevant wherever `terminated` holds, with or without `truncated`, even if it is NaN."""
    data = random_rollout(seed, terminated, truncated)
    poisoned = (data[0], data[1], np.where(terminated, np.float32(np.nan), data[2]), terminated, truncated)
    np.testing.assert_array_equal(compiled(*data, 0.9, 0.8)[0], compiled(*poisoned, 0.9, 0.8)[0])


@given(st.integers(0, 2**31), flags, flags)
def test_nothing_leaks_across_an_end(seed, terminated, truncated):
    """Changing everything after an episode's end changes no advantage up to it."""
    data = random_rollout(seed, terminated, truncated)
    done = terminated | truncated
    done[-1] = True
    after_end = np.arange(T)[:, None] > done.argmax(0)[None]  # [T, E], behind the first end of each environment
    changed = [np.where(after_end, 7.0 * x - 1.0, x).astype(np.float32) for x in data[:3]]
    before, after = compiled(*data, 0.9, 0.8)[0], compiled(*changed, terminated, truncated, 0.9, 0.8)[0]
    np.testing.assert_array_equal(np.asarray(before)[~after_end], np.asarray(after)[~after_end])


@given(st.integers(0, 2**31), flags, flags, unit)
def test_lambda_0_is_the_td_error(seed, terminated, truncated, gamma):
    """r + gamma V' - V, without V' at a termination."""
    reward, value, next_value, *_ = data = random_rollout(seed, terminated, truncated)
    td_error = reward + np.where(terminated, 0.0, gamma * next_value.astype(np.float64)) - value
    np.testing.assert_allclose(compiled(*data, gamma, 0.0)[0], td_error, rtol=1e-5, atol=1e-5)


@given(st.integers(0, 2**31), flags, flags, unit)
def test_lambda_1_is_rewards_to_go_minus_value(seed, terminated, truncated, gamma):
    """Discounted rewards up to the end, plus the discounted value of what a truncation or the rollout's end hides."""
    reward, value, next_value, *_ = data = random_rollout(seed, terminated, truncated)
    to_go = np.zeros((T, E))
    for env in range(E):
        for start in range(T):
            for t in range(start, T):
                discount = float(gamma) ** (t - start)
                to_go[start, env] += discount * reward[t, env]
                if terminated[t, env]:
                    break
                if truncated[t, env] or t == T - 1:
                    to_go[start, env] += discount * gamma * next_value[t, env]
                    break
    advantage, target = compiled(*data, gamma, 1.0)
    np.testing.assert_allclose(target, to_go, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(advantage, to_go - value, rtol=1e-5, atol=2e-5)


def test_jit_changes_nothing():
    """Eager and compiled agree."""
    rng = np.random.default_rng(0)
    data = [jnp.asarray(x) for x in random_rollout(1, *(rng.random((2, T, E)) < 0.2))]
    for a, b in zip(gae(*data, 0.97, 0.9), compiled(*data, 0.97, 0.9), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_vmap_over_gamma_and_lambda_is_a_loop():
    """A sweep over both discounts gives what single runs give."""
    rng = np.random.default_rng(0)
    data = random_rollout(2, *(rng.random((2, T, E)) < 0.2))
    gammas, lambdas = jnp.asarray([0.0, 0.5, 0.99, 1.0]), jnp.asarray([1.0, 0.0, 0.95, 1.0])
    swept = jax.jit(jax.vmap(lambda g, la: gae(*data, g, la)))(gammas, lambdas)
    for i in range(4):
        for whole, one in zip(swept, compiled(*data, gammas[i], lambdas[i]), strict=True):
            np.testing.assert_allclose(whole[i], one, rtol=1e-6, atol=1e-6)


def test_no_dtype_is_promoted_silently():
    """float32 in, float32 out, where JAX refuses mixed types."""
    real, flag = jnp.ones((T, E), jnp.float32), jnp.zeros((T, E), bool)
    with jax.numpy_dtype_promotion("strict"):
        advantage, target = jax.eval_shape(gae, real, real, real, flag, flag, 0.99, 0.95)
    assert advantage.dtype == target.dtype == jnp.float32


def test_shapes_are_checked_at_the_door():
    """A next_value of another rollout, or one without the time axis, is refused."""
    real, flag = jnp.ones((T, E)), jnp.zeros((T, E), bool)
    with pytest.raises(AssertionError):
        gae(real, real, real[:-1], flag, flag, 0.99, 0.95)
    with pytest.raises(AssertionError):
        gae(*(x[0] for x in (real, real, real, flag, flag)), 0.99, 0.95)


# --- rewards-to-go ----------------------------------------------------------------------------------------------------

# Every way in which three steps can end or go on: 64 environments, a column each.
PATTERNS = np.array(list(itertools.product([(False, False), (False, True), (True, False), (True, True)], repeat=3)))
TERMINATED, TRUNCATED = PATTERNS.transpose(2, 1, 0)


def rewards_to_go64(reward, next_value, terminated, truncated, gamma):
    """Forwards from every step: add rewards until the episode or the rollout ends, and what is hidden behind that."""
    total = np.zeros(reward.shape)
    for env in range(reward.shape[1]):
        for start in range(len(reward)):
            for t in range(start, len(reward)):
                total[start, env] += gamma ** (t - start) * reward[t, env]
                if terminated[t, env]:
                    break
                if truncated[t, env] or t == len(reward) - 1:
                    total[start, env] += gamma ** (t - start + 1) * next_value[t, env]
                    break
    return total


def test_rewards_to_go_by_hand():
    """gamma = 1/2, r = (1, 2, 3), V(s_3) = 8, and 6 for the last observation of what is cut off after step 1.

    no end:        G_2 = 3 + 8/2 = 7,  G_1 = 2 + 7/2 = 11/2,  G_0 = 1 + 11/4 = 15/4
    terminated:    G_1 = 2,            G_0 = 1 + 2/2 = 2
    truncated:     G_1 = 2 + 6/2 = 5,  G_0 = 1 + 5/2 = 7/2
    """
    reward = jnp.tile(jnp.asarray([[1.0], [2.0], [3.0]]), (1, 3))
    next_value = jnp.asarray([[9.0, 9.0, 9.0], [9.0, 6.0, 6.0], [8.0, 8.0, 8.0]])
    terminated = jnp.zeros((3, 3), bool).at[1, 1].set(True)
    truncated = jnp.zeros((3, 3), bool).at[1, 2].set(True)
    total = rewards_to_go(reward, next_value, terminated, truncated, 0.5)
    np.testing.assert_array_equal(total, [[15 / 4, 2.0, 7 / 2], [11 / 2, 2.0, 5.0], [7.0, 7.0, 7.0]])


@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0])
def test_rewards_to_go_of_every_pattern_of_ends(gamma):
    """Against the loop; values in the middle of an episode do not matter, nor those behind a termination."""
    reward, next_value = np.random.default_rng(0).normal(size=(2, 3, 64)).astype(np.float32)
    goes_on = ~(TERMINATED | TRUNCATED)
    goes_on[-1] = False
    poisoned = np.where(TERMINATED | goes_on, np.float32(np.nan), next_value)
    expected = rewards_to_go64(reward, next_value, TERMINATED, TRUNCATED, gamma)
    np.testing.assert_allclose(
        rewards_to_go(reward, poisoned, TERMINATED, TRUNCATED, gamma), expected, rtol=1e-5, atol=1e-6
    )


def test_limits_of_lambda_for_every_pattern_of_ends():
    """The target of GAE: at lambda = 1 the rewards-to-go, at lambda = 0 one reward and the next value."""
    data = random_rollout(1, TERMINATED, TRUNCATED)
    reward, _, next_value, *_ = data
    total = rewards_to_go(reward, next_value, TERMINATED, TRUNCATED, 0.7)
    np.testing.assert_allclose(gae(*data, 0.7, 1.0)[1], total, rtol=1e-5, atol=1e-6)
    one_step = reward + 0.7 * np.where(TERMINATED, 0.0, next_value)
    np.testing.assert_allclose(gae(*data, 0.7, 0.0)[1], one_step, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 1.0])
def test_estimators(gae_lambda):
    """Both give GAE's advantage; the targets are GAE's, and the rewards-to-go whatever lambda is."""
    data = random_rollout(2, TERMINATED, TRUNCATED)
    plain = ESTIMATORS["gae"](*data, 0.7, gae_lambda)
    advantage, target = ESTIMATORS["rewards_to_go"](*data, 0.7, gae_lambda)
    np.testing.assert_array_equal(advantage, plain[0])
    np.testing.assert_array_equal(target, rewards_to_go(data[0], data[2], TERMINATED, TRUNCATED, 0.7))
    assert np.allclose(target, plain[1], atol=1e-5) == (gae_lambda == 1.0)


def test_estimate_by_hand():
    """Two steps, then a time limit, then one more step; [T, E] as in the rollout.

    With gamma = 1/2 and lambda = 1/4 the errors are 1 + 2 - 2 = 1, 4 + 4 - 4 = 4 and 2 + 1 - 8 = -5: the advantages are
    1 + 4 / 8, 4 and -5. The rewards-to-go are 1 + 8 / 2, 4 + 8 / 2 and 2 + 2 / 2.
    """
    reward, value, next_value = (np.float32(x)[:, None] for x in ([1, 4, 2], [2, 4, 8], [4, 8, 2]))
    ends = np.array([[False], [True], [False]])
    seen = Trajectory(*[None] * len(Trajectory._fields))._replace(
        reward=reward, value=value, next_value=next_value, terminated=np.zeros((3, 1), bool), truncated=ends
    )
    hp = Hyperparams(gamma=0.5, gae_lambda=0.25)
    advantage, target = estimate(TrainConfig(value_target="gae"), hp, seen)
    np.testing.assert_array_equal(advantage[:, 0], [1.5, 4, -5])
    np.testing.assert_array_equal(target[:, 0], [3.5, 8, 3])
    advantage, target = estimate(TrainConfig(value_target="rewards_to_go"), hp, seen)
    np.testing.assert_array_equal(advantage[:, 0], [1.5, 4, -5])
    np.testing.assert_array_equal(target[:, 0], [5, 8, 3])


def test_rewards_to_go_checks_shapes_and_keeps_the_dtype():
    x, flag = jnp.ones((3, 2)), jnp.zeros((3, 2), bool)
    with jax.numpy_dtype_promotion("strict"):
        assert rewards_to_go(x, x, flag, flag, 0.9).dtype == jnp.float32
    with pytest.raises(AssertionError):
        rewards_to_go(x, jnp.ones(2), flag, flag, 0.9)
    with pytest.raises(AssertionError):
        rewards_to_go(x[0], x[0], flag[0], flag[0], 0.9)
