"""What is measured of a rollout, against float64 over all of its rows, in one shard or in several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxppo.config import Hyperparams
from purejaxppo.core.distributions import Categorical
from purejaxppo.core.normalizer import init_normalizer
from purejaxppo.core.rollout_metrics import measure_rollout, rollout_metrics
from purejaxppo.core.shards import Shards
from purejaxppo.core.sums import merged
from purejaxppo.core.types import Batch, Transition

T, E, WIDTH = 6, 8, 3
GAMMA = 0.9


def rollout_of(seed):
    """Random rows [T, E, ...], their batch in environment-major order, and the observation after them."""
    rng = np.random.default_rng(seed)
    numbers = {name: rng.normal(5, 2, (T, E)).astype(np.float32) for name in ("reward", "value", "target")}
    obs, last_obs = (rng.normal(3, 1, (*lead, WIDTH)).astype(np.float32) for lead in ((T, E), (E,)))
    ends = rng.random((2, T, E)) < 0.2
    zeros = np.zeros((T, E), np.float32)
    pi = Categorical(np.zeros((T, E, 2), np.float32))
    transition = Transition(obs, zeros, pi, zeros, numbers["value"], zeros, numbers["reward"], *ends, obs)
    rows = (numbers[name].T.ravel() for name in ("value", "reward", "target"))
    return transition, Batch(obs, zeros, pi, zeros, *rows), last_obs


@pytest.mark.parametrize("number", [1, 2, 4])
def test_against_float64(number):
    transition, batch, last_obs = rollout_of(0)
    shards, hp = Shards(number), Hyperparams(gamma=GAMMA)
    ended = {name: np.arange(E, dtype=np.float32) for name in ("episode/return", "episode/length", "episode/count")}
    normalizer = init_normalizer(transition.obs[0], normalize_observation=True, normalize_reward=True)

    def measure():
        stats, discounted = measure_rollout(
            hp, shards, normalizer, transition, last_obs, batch, {"coins": jnp.ones(E), **ended}
        )
        return stats, discounted, rollout_metrics(hp, stats)

    stats, discounted, metrics = jax.jit(measure)()
    returns, running = [], np.zeros(E)
    for reward, ends in zip(transition.reward, transition.terminated | transition.truncated, strict=True):
        running = GAMMA * running + reward
        returns.append(running)
        running = np.where(ends, 0, running)
    np.testing.assert_allclose(discounted, running, rtol=1e-5)
    rows = transition.obs.reshape(-1, WIDTH).astype(np.float64)
    for found, x in ((stats.obs, rows), (stats.returns, np.array(returns).ravel())):
        assert found.mean.shape[0] == number
        np.testing.assert_allclose(merged(found).mean, x.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(merged(found).var, x.var(axis=0), rtol=1e-4)
    error, target = (np.asarray(x, np.float64) for x in (batch.target - batch.value, batch.target))
    np.testing.assert_allclose(metrics["explained_variance"], 1 - error.var() / target.var(), rtol=1e-4)
    assert metrics["episode/count"] == ended["episode/count"].sum()
    assert metrics["episode/return"] == metrics["episode/length"] == 1.0  # the sum of each over the count
    assert metrics["coins"] == E


@pytest.mark.parametrize("where", ["obs", "last_obs", "next_obs", "reward"])
def test_a_shard_with_a_number_that_is_not_finite_is_marked(where):
    """And no other one; a successor counts unless its episode terminated."""
    transition, batch, last_obs = rollout_of(1)
    transition = transition._replace(terminated=np.zeros((T, E), bool))
    if where == "last_obs":
        last_obs = last_obs.copy()
        last_obs[5, 0] = np.inf
    else:
        spoiled = getattr(transition, where).copy()
        spoiled[2, 5] = np.nan
        transition = transition._replace(**{where: spoiled})

    def marks(terminated):
        normalizer = init_normalizer(transition.obs[0], normalize_observation=False, normalize_reward=False)
        stats, _ = measure_rollout(
            Hyperparams(), Shards(4), normalizer, transition._replace(terminated=terminated), last_obs, batch, {}
        )
        return stats.reward_marks if where == "reward" else stats.obs_marks

    np.testing.assert_array_equal(np.isnan(marks(transition.terminated)), [False, False, True, False])
    ended = np.zeros((T, E), bool)
    ended[2, 5] = True
    assert np.isnan(marks(ended)).any() == (where != "next_obs")
