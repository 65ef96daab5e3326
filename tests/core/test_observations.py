"""Which parts of an observation are standardised, and by what: float64 statistics of all rows so far."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_once import QUICKLY
from probe_envs import shown

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.normalizer import NORMALIZER_CLIP, init_normalizer, normalized_obs
from purejaxppo.core.observations import actor_keys, standardized_part, with_part
from purejaxppo.core.types import Algorithm, Box, LearnerState
from purejaxppo.policies.registry import make_policy
from purejaxppo.train import advance, make_trainer

E, T, ROLLOUTS = 4, 8, 3
CONFIG = TrainConfig(
    num_envs=E,
    num_steps=T,
    num_minibatches=1,
    num_shards=2,
    total_timesteps=E * T * ROLLOUTS,
    hidden_sizes=(4,),
    normalize_observation=True,
)


def reporting(key, hp, learner, trajectory):
    """An update that learns nothing, and reports the observations that it was given."""
    return learner, {"obs": trajectory.obs, "next_obs": trajectory.next_obs}


@functools.cache
def played(observation):
    """(first obs, normaliser at the end, obs and next_obs [ROLLOUTS, T, E, ...]) of a run with frozen parameters."""
    env = shown(E, observation)
    algorithm = Algorithm(lambda key, hp, params: LearnerState(params, (), ()), reporting)
    trainer = make_trainer(CONFIG, env, make_policy(CONFIG, env), algorithm)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def run(key):
        runner = trainer.init(key, Hyperparams())
        return runner.obs, *advance(trainer, Hyperparams(), runner, ROLLOUTS)

    first, runner, metrics = jax.device_get(run(jax.random.key(0)))
    return first, runner.normalizer, metrics["obs"], metrics["next_obs"]


def test_statistics_of_a_dict_are_those_of_all_rows():
    """`raw`, which nobody sees, is left as the environment returned it, and so has the numbers before standardising."""
    first, normalizer, obs, next_obs = played("dict")
    assert set(normalizer.obs) == {"obs", "critic"}
    for i, key in enumerate(("obs", "critic")):
        raw = np.float64(obs["raw"][..., i])
        np.testing.assert_allclose(normalizer.obs[key].mean, [raw.mean()], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(normalizer.obs[key].var, [raw.var()], rtol=1e-4)
        assert normalizer.obs[key].rows == raw.size
        for name, seen in (("obs", obs), ("next_obs", next_obs)):
            for rollout in range(ROLLOUTS):
                # By the statistics of earlier rollouts; in the first, by the mean of the first observations.
                before = raw[:rollout]
                mean, std = (before.mean(), before.std()) if rollout else (np.float64(first["raw"][:, i]).mean(), 1.0)
                wanted = np.clip((np.float64(seen["raw"][rollout, ..., i]) - mean) / std, -10, 10)
                np.testing.assert_allclose(seen[key][rollout, ..., 0], wanted, rtol=1e-4, atol=1e-4, err_msg=name)


def test_masks_and_what_nobody_sees_stay_as_they_are():
    _, _, obs, _ = played("dict")
    position, time = obs["raw"][..., 0], obs["raw"][..., 1]
    assert time.min() == 5.0
    assert obs["action_mask"].dtype == bool
    np.testing.assert_array_equal(obs["action_mask"], np.stack([time > 0, time % 2 == 0, position > 0], axis=-1))


def test_whole_numbers_of_a_dict_stay_as_they_are():
    _, normalizer, obs, _ = played("parts")
    assert set(normalizer.obs) == {"place"}
    assert obs["clock"].dtype == np.int32
    assert set(np.unique(obs["clock"])) == {5, 6, 7}
    assert np.abs(obs["place"][1:].mean()) < 0.5
    assert 0.5 < obs["place"][1:].std() < 2.0


def test_a_dict_of_nothing_that_is_standardised():
    pixels = {"obs": jnp.full((E, 2), 200, jnp.uint8), "unseen": jnp.ones((E, 1))}
    normalizer = init_normalizer(pixels, True, False)
    assert normalizer.obs == {}
    jax.tree.map(np.testing.assert_array_equal, normalized_obs(normalizer.obs, pixels), pixels)


@pytest.mark.parametrize(
    ("keys", "seen"),
    [
        (["obs", "critic", "action_mask", "own"], ["obs"]),
        (["z", "critic", "a", "action_mask"], ["a", "z"]),
        (["critic", "action_mask"], []),
    ],
)
def test_what_the_policy_sees(keys, seen):
    assert actor_keys(dict.fromkeys(keys, Box(()))) == seen


def test_part_and_whole():
    """The parts that are standardised go back to where they were; an array is its own part."""
    x, mask = jnp.ones((E, 2)), jnp.ones((E, 3), bool)
    obs = {"obs": x, "critic": 2 * x, "action_mask": mask, "own": 3 * x}
    assert set(standardized_part(obs)) == {"obs", "critic"}
    assert set(standardized_part({"a": x, "critic": mask, "b": mask})) == {"a"}
    whole = with_part(obs, {"obs": 4 * x})
    assert set(whole) == set(obs)
    np.testing.assert_array_equal(whole["obs"], 4 * x)
    np.testing.assert_array_equal(whole["critic"], 2 * x)
    assert obs["obs"] is x
    assert standardized_part(x) is x
    assert with_part(x, mask) is mask


def test_far_out_parts_are_clipped():
    normalizer = init_normalizer({"obs": jnp.zeros((E, 1)), "critic": jnp.zeros((E, 1))}, True, False)
    far = {"obs": jnp.full((E, 1), 1e6), "critic": jnp.full((E, 1), -1e6)}
    found = normalized_obs(normalizer.obs, far)
    np.testing.assert_array_equal(found["obs"], NORMALIZER_CLIP)
    np.testing.assert_array_equal(found["critic"], -NORMALIZER_CLIP)
