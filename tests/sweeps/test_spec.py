"""Which sweeps are accepted, and which are refused: in one line, with the number or the value that is wrong."""

import dataclasses
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from sample_sweeps import sweep_of

from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.errors import ConfigError
from purejaxppo.sweeps import spec as module
from purejaxppo.sweeps.directory import sweep_record
from purejaxppo.sweeps.spec import MAX_RUNS, SweepSettings, sweep_grid

CLIPS = [{"clip_eps": 0.1}, {"clip_eps": 0.2}, {"clip_eps": 0.3}]


def sweep(**changes):
    """Returns a sweep of three settings and two seeds, with fields of SweepSettings changed."""
    return sweep_of(CLIPS)._replace(**changes)


def one_setting(number, **changes):
    """Returns the three settings, one of which has other fields of TrainConfig or Hyperparams."""
    settings = list(sweep().settings)
    pair = settings[number]
    for name, value in changes.items():
        pair = tuple(dataclasses.replace(x, **{name: value}) if hasattr(x, name) else x for x in pair)
    settings[number] = pair
    return sweep(settings=tuple(settings))


def refused(sweep):
    """Returns the text of the error, which is one line."""
    with pytest.raises(ConfigError) as caught:
        sweep.validate()
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_runs_are_settings_times_seeds():
    assert sweep().num_runs == 6
    assert sweep(seeds=(1, 2, 3, 4)).num_runs == 12
    assert sweep().env == "CartPole-v1"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seeds": (0,)},
        {"seeds": (2**32 - 1, 0)},
        {"halving": 2},
        {"halving": 3},  # the number of settings
        {"target": 0.0},
        {"target": -5},
        {"exact": True},
        {"options": RunOptions(eval_episodes=1, checkpoint_seconds=0, keep_newest=2, keep_best=0)},
    ],
)
def test_what_is_allowed(changes):
    sweep(**changes).validate()


def test_settings_of_their_own_sizes_are_allowed():
    """Networks, budgets, algorithms and batches may differ within one environment."""
    sweep_of([{"hidden_sizes": ()}, {"num_envs": 4}, {"total_timesteps": 800}, {"algorithm": "trpo"}]).validate()


@pytest.mark.parametrize("changes", [{"settings": (), "points": ()}, {"seeds": ()}])
def test_nothing_to_train(changes):
    assert refused(sweep(**changes)) == "a sweep takes at least one setting and one seed."


def test_plain_settings_are_what_json_knows():
    """Whatever number types a program passed in; the points' values are those of their settings."""
    points = [{"clip_eps": np.float64(0.1)}, {"num_envs": 16.0}, {"hidden_sizes": np.array([8])}]
    pairs = [(TrainConfig(), Hyperparams(clip_eps=np.float64(0.1))), (TrainConfig(num_envs=np.int8(16)), Hyperparams())]
    pairs.append((TrainConfig(hidden_sizes=np.array([8])), Hyperparams(gamma=jnp.float32(0.5))))
    axes = ("clip_eps", "num_envs", "hidden_sizes")
    given = SweepSettings(axes, points, pairs, np.arange(2), RunOptions(), np.int64(2), np.bool_(False), np.float32(4))
    plain = given.plain()
    plain.validate()
    assert json.loads(json.dumps(sweep_record(plain)))["seeds"] == [0, 1]
    assert plain.points == ({"clip_eps": 0.1}, {"num_envs": 16}, {"hidden_sizes": (8,)})
    assert (plain.halving, plain.exact, plain.target) == (2, False, 4.0)


def test_too_many_runs():
    """It is refused before a seed is looked at: these are all equal."""
    many = sweep(settings=sweep().settings * 400, seeds=(0,) * 1000)
    assert f"1200 settings x 1000 seeds = 1200000 runs are more than {MAX_RUNS}" in refused(many)
    assert MAX_RUNS == 10**6


@pytest.mark.parametrize(("most", "fits"), [(6, True), (5, False)])
def test_as_many_runs_as_are_allowed(monkeypatch, most, fits):
    monkeypatch.setattr(module, "MAX_RUNS", most)
    if fits:
        sweep().validate()
    else:
        assert "3 settings x 2 seeds = 6 runs are more than 5" in refused(sweep())


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "3", None, True])
def test_seeds_that_would_be_another_one(seed):
    assert f"seed = {seed!r} is not a whole number in [0, 2**32)" in refused(sweep(seeds=(7, seed)))


def test_a_seed_that_is_given_twice():
    assert refused(sweep(seeds=(4, 7, 5, 7))).startswith("seed 7 is given twice")


@pytest.mark.parametrize("changes", [{"env": "Acrobot-v1"}, {"env_params": {"max_steps_in_episode": 9}}])
@pytest.mark.parametrize("number", [0, 2])
def test_several_environments(changes, number):
    assert "the settings are of different environments" in refused(one_setting(number, **changes))


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"learning_rate": 0.0}, "learning_rate = 0.0 is outside (0, inf)"),
        ({"learning_rate": float("nan")}, "learning_rate = nan is outside"),
        ({"gamma": 1.01}, "gamma = 1.01 is outside [0, 1]"),
        ({"kl_min": 0.5}, "kl_min = 0.5 is not below kl_max = 0.02"),
        ({"num_envs": 0}, "num_envs = 0 is not a whole number"),
        ({"num_minibatches": 3}, "num_envs * num_steps = 8 is not divisible by num_minibatches = 3"),
        ({"total_timesteps": 7}, "total_timesteps = 7 is below one update; it needs at least 8"),
        ({"hidden_sizes": (4, 0)}, "a layer of width 0"),
        ({"activation": "tahn"}, "Did you mean 'tanh'?"),
        ({"algorithm": "trpo", "shared_torso": True}, "trpo needs separate torsos"),
        ({"on_nonfinite": "skip"}, "on_nonfinite = skip: a sweep freezes the runs that diverge"),
        ({"on_nonfinite": "rollback"}, "on_nonfinite = rollback: a sweep freezes"),
    ],
)
def test_what_is_wrong_in_one_setting(number, changes, says):
    """It is found whichever setting it is in."""
    assert says in refused(one_setting(number, **changes))


@pytest.mark.parametrize(
    "points",
    [
        (),
        CLIPS[:2],
        CLIPS[::-1],
        [*CLIPS[:2], {"clip_eps": 0.31}],
        [*CLIPS[:2], {"clip_eps": 0.3, "gamma": 0.99}],
        [*CLIPS[:2], {"nonsense": 1}],
    ],
)
def test_points_that_are_not_the_settings(points):
    assert "point" in refused(sweep(points=tuple(points)))


def test_environment_parameters_that_are_no_numbers():
    assert "env_params: a = [1] is not a number" in refused(one_setting(0, env_params={"a": [1]}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"eval_episodes": 0}, "eval_episodes = 0 is not a whole number from 1"),
        ({"keep_newest": 1}, "keep_newest = 1 is not a whole number from 2"),
        ({"keep_best": -1}, "keep_best = -1"),
        ({"eval_every": 64}, "eval_every = 64: a sweep and a comparison evaluate their runs when they are trained"),
        ({"checkpoint_seconds": -0.5}, "checkpoint_seconds = -0.5"),
        ({"checkpoint_seconds": float("nan")}, "checkpoint_seconds = nan"),
    ],
)
def test_options_out_of_range(changes, says):
    assert says in refused(sweep(options=RunOptions(**changes)))


@pytest.mark.parametrize("target", [float("nan"), float("inf"), -float("inf"), 10**400, -(10**400), "3", True])
def test_a_target_that_is_no_return(target):
    assert refused(sweep(target=target)) == f"target = {target!r}; it takes a finite return."


@pytest.mark.parametrize("halving", [-2, 0, 1, 4, 10**9, 2.0, 2.5, "2", True, float("nan")])
def test_halving_out_of_range(halving):
    """The range depends on the three settings, not on the number of runs."""
    message = refused(sweep(halving=halving))
    assert message.startswith(f"halving = {halving!r}:")
    assert "N is 2 to 3, the number of settings" in message


def test_a_single_setting_has_nothing_to_choose_from():
    assert "halving = 2:" in refused(sweep_of([{}], halving=2))


# --- sweep_grid -------------------------------------------------------------------------------------------------------


def test_a_grid_over_both_kinds_of_settings():
    """The first axis changes slowest, and what is not swept is as it was given; seeds may be a range."""
    config, hp = TrainConfig(num_envs=8, total_timesteps=4096), Hyperparams(gamma=0.9)
    sweep = sweep_grid(config, hp, range(3), learning_rate=(1e-3, np.float32(0.5)), num_envs=[4, 8.0], target=7)
    assert sweep.axes == ("learning_rate", "num_envs")
    assert [tuple(point.values()) for point in sweep.points] == [(1e-3, 4), (1e-3, 8), (0.5, 4), (0.5, 8)]
    assert [(c.num_envs, h.learning_rate) for c, h in sweep.settings] == [(4, 1e-3), (8, 1e-3), (4, 0.5), (8, 0.5)]
    assert all(c.total_timesteps == 4096 and h.gamma == 0.9 for c, h in sweep.settings)
    assert (sweep.seeds, sweep.target, sweep.options) == ((0, 1, 2), 7, RunOptions())
    assert sweep_grid(config, hp, [5]).points == ({},)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"learning_rat": [1e-3]},
            "learning_rat is no field of TrainConfig or Hyperparams. Did you mean 'learning_rate'",
        ),
        ({"learning_rate": []}, "learning_rate has no value; give at least one."),
        ({"learning_rate": [-1.0]}, "learning_rate = -1.0"),
        ({"seeds": (1, 1)}, "seed 1 is given twice"),
        ({"halving": 2}, "halving = 2"),
    ],
)
def test_a_grid_that_cannot_be_trained(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        sweep_grid(**{"config": TrainConfig(), "hp": Hyperparams(), "seeds": (0,), **arguments})
