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
from purejaxppo.core.types import Trajectory

T, E, WIDTH = 6, 8, 3
GAMMA = 0.9


def rollout_of(seed):
    """A trajectory of random rows [T, E, ...], and the observation after them."""
    rng = np.random.default_rng(seed)
    reward = rng.normal(5, 2, (T, E)).astype(np.float32)
    obs, last_obs = (rng.normal(3, 1, (*lead, WIDTH)).astype(np.float32) for lead in ((T, E), (E,)))
    terminated, truncated = rng.random((2, T, E)) < 0.2
    zeros = np.zeros((T, E), np.float32)
    trajectory = Trajectory(
        obs=obs,
        action=zeros,
        pi=Categorical(np.zeros((T, E, 2), np.float32)),
        log_prob=zeros,
        value=zeros,
        next_value=zeros,
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        next_obs=obs,
        start=np.zeros((T, E), bool),
        memory=(),
        info={},
    )
    return trajectory, last_obs


def ended_of(trajectory):
    """What is summed of the episodes that ended: here the number of them, and 1 per environment."""
    count = np.sum(trajectory.terminated | trajectory.truncated, axis=0, dtype=np.float32)
    return {"episode/return": np.ones(E, np.float32), "episode/length": np.ones(E, np.float32), "episode/count": count}


def measured(trajectory, last_obs, ended, number=1, normalize=False):
    """(stats, discounted returns to go on from, metrics) of a rollout in this many shards."""
    hp, normalizer = Hyperparams(gamma=GAMMA), init_normalizer(trajectory.obs[0], normalize, normalize)

    def measure():
        stats, discounted = measure_rollout(hp, Shards(number), normalizer, trajectory, last_obs, ended)
        return stats, discounted, rollout_metrics(hp, stats)

    return jax.jit(measure)()


@pytest.mark.parametrize("number", [1, 2, 4])
def test_against_float64(number):
    trajectory, last_obs = rollout_of(0)
    ended = {name: np.arange(E, dtype=np.float32) for name in ended_of(trajectory)}
    stats, discounted, metrics = measured(trajectory, last_obs, ended, number, normalize=True)
    returns, running = [], np.zeros(E)
    for reward, ends in zip(trajectory.reward, trajectory.terminated | trajectory.truncated, strict=True):
        running = GAMMA * running + reward
        returns.append(running)
        running = np.where(ends, 0, running)
    np.testing.assert_allclose(discounted, running, rtol=1e-5)
    rows = trajectory.obs.reshape(-1, WIDTH).astype(np.float64)
    for found, x in ((stats.obs, rows), (stats.returns, np.array(returns).ravel())):
        assert found.mean.shape[0] == number
        np.testing.assert_allclose(merged(found).mean, x.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(merged(found).var, x.var(axis=0), rtol=1e-4)
    assert metrics["episode/count"] == ended["episode/count"].sum()
    assert metrics["episode/return"] == metrics["episode/length"] == 1.0  # the sum of each over the count
    assert metrics["learning_rate"] == np.float32(Hyperparams().learning_rate)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_what_environments_report_is_averaged_over_steps_and_over_ended_episodes(number):
    """A loop over all steps; of an episode counts what its last step reported. Truth values are shares."""
    trajectory, last_obs = rollout_of(2)
    rng = np.random.default_rng(3)
    info = {
        "speed": rng.normal(4, 2, (T, E)).astype(np.float32),
        "lives": rng.integers(0, 9, (T, E)).astype(np.int32),
        "success": rng.random((T, E)) < 0.5,
    }
    ended = ended_of(trajectory)
    stats, _, metrics = measured(trajectory._replace(info=info), last_obs, ended, number)
    assert stats.step_means["step/speed"].shape == stats.sums["episode/speed"].shape == (number,)
    for name, reported in info.items():
        steps, ends = [], []
        for t in range(T):
            for e in range(E):
                steps.append(float(reported[t, e]))
                if trajectory.terminated[t, e] or trajectory.truncated[t, e]:
                    ends.append(float(reported[t, e]))
        assert 1 < len(ends) < len(steps)
        np.testing.assert_allclose(metrics[f"step/{name}"], np.mean(steps), rtol=1e-6)
        np.testing.assert_allclose(metrics[f"episode/{name}"], np.mean(ends), rtol=1e-6)
        assert metrics[f"step/{name}"].dtype == metrics[f"episode/{name}"].dtype == jnp.float32
        assert name not in metrics


def test_without_an_ended_episode_only_the_steps_have_a_mean():
    """What no episode reported at its end is NaN, like the return."""
    trajectory, last_obs = rollout_of(4)
    never = np.zeros((T, E), bool)
    trajectory = trajectory._replace(terminated=never, truncated=never, info={"speed": trajectory.reward})
    _, _, metrics = measured(trajectory, last_obs, ended_of(trajectory))
    assert metrics["episode/count"] == 0
    assert np.isnan(metrics["episode/speed"])
    assert np.isnan(metrics["episode/return"])
    np.testing.assert_allclose(metrics["step/speed"], trajectory.reward.mean(), rtol=1e-6)


@pytest.mark.parametrize("where", ["obs", "last_obs", "next_obs", "reward"])
def test_a_shard_with_a_number_that_is_not_finite_is_marked(where):
    """And no other one; a successor counts unless its episode terminated."""
    trajectory, last_obs = rollout_of(1)
    trajectory = trajectory._replace(terminated=np.zeros((T, E), bool))
    if where == "last_obs":
        last_obs = last_obs.copy()
        last_obs[5, 0] = np.inf
    else:
        spoiled = getattr(trajectory, where).copy()
        spoiled[2, 5] = np.nan
        trajectory = trajectory._replace(**{where: spoiled})

    def marks(terminated):
        stats, _, _ = measured(trajectory._replace(terminated=terminated), last_obs, ended_of(trajectory), 4)
        return stats.reward_marks if where == "reward" else stats.obs_marks

    np.testing.assert_array_equal(np.isnan(marks(trajectory.terminated)), [False, False, True, False])
    ended = np.zeros((T, E), bool)
    ended[2, 5] = True
    assert np.isnan(marks(ended)).any() == (where != "next_obs")
