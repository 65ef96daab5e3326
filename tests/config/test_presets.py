"""Presets: each names existing fields and can train, and there is one for every environment with a target."""

import dataclasses

import gymnax
import jax
import numpy as np
import pytest
from compiled_once import QUICKLY

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.config.fields import ALGORITHMS_WITH
from purejaxppo.config.presets import ALGORITHM_PRESETS, HIDDEN, PRESETS, TARGETS
from purejaxppo.config.resolve import resolve
from purejaxppo.config.validate import validate_config, validate_hyperparams
from purejaxppo.envs.presets import preset
from purejaxppo.errors import ConfigError, EnvError

BUDGETS = {"CartPole-v1": 150_000, "Acrobot-v1": 500_000, "MountainCarContinuous-v0": 250_000, "Catch-bsuite": 250_000}
FIELDS = {field.name: field for kind in (TrainConfig, Hyperparams) for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("env", PRESETS)
def test_preset_names_real_fields_of_a_registered_environment(env):
    assert env in gymnax.registration.registered_envs
    assert PRESETS[env].keys() <= FIELDS.keys() - {"env"}
    config, hp = resolve(env, {})
    for name, value in PRESETS[env].items():
        assert getattr(config if hasattr(config, name) else hp, name) == value


@pytest.mark.parametrize("env", PRESETS)
def test_preset_can_train(env):
    config, hp = resolve(env, {})
    validate_config(config)
    validate_hyperparams(hp)
    assert config.env == env
    assert config.num_updates >= 10


@pytest.mark.parametrize("env", PRESETS)
def test_preset_holds_numbers_and_words_as_json_would(env):
    """There is no float where a whole number belongs, which the comparison above would not notice."""
    for name, value in PRESETS[env].items():
        kind = FIELDS[name].type
        if kind in (int, bool, str):
            assert type(value) is kind
        elif name == "hidden_sizes":
            assert all(type(width) is int for width in value)


@pytest.mark.parametrize("env", TARGETS)
def test_every_target_has_a_preset_within_its_budget(env):
    config, _ = resolve(env, {})
    assert env in PRESETS
    assert config.total_timesteps <= BUDGETS.get(env, 10_000_000)


def test_preset_is_what_the_command_line_has():
    assert preset("CartPole-v1") == resolve("CartPole-v1", {})
    assert preset("Pendulum-v1", "trpo") == resolve("Pendulum-v1", {"algorithm": "trpo"})


def test_a_misspelt_name_is_refused_with_a_suggestion():
    """An environment without a preset, by contrast, has no settings."""
    with pytest.raises(EnvError, match=r"'Cartpole'.*Did you mean 'CartPole-v1'"):
        preset("Cartpole")
    with pytest.raises(ConfigError, match=r"'ppo-kl' is unknown.*Did you mean 'ppo_kl'"):
        preset("CartPole-v1", "ppo-kl")
    assert preset("FrozenLake-misc") == (TrainConfig(env="FrozenLake-misc"), Hyperparams())


PAIRS = [(algorithm, env) for algorithm, presets in ALGORITHM_PRESETS.items() for env in presets]


@pytest.mark.parametrize(("algorithm", "env"), PAIRS)
def test_preset_of_an_algorithm_is_its_own(algorithm, env):
    """It names existing settings, none of another algorithm; they override the environment's, and can train."""
    mine = ALGORITHM_PRESETS[algorithm][env]
    assert algorithm in ALGORITHMS
    assert mine.keys() <= FIELDS.keys() - {"env", "algorithm"}
    assert all(algorithm in ALGORITHMS_WITH.get(name, ALGORITHMS) for name in mine)
    config, hp = resolve(env, {"algorithm": algorithm})
    for name, value in {**PRESETS.get(env, {}), **mine}.items():
        assert getattr(config if hasattr(config, name) else hp, name) == value
    validate_config(config)
    validate_hyperparams(hp)


def test_preset_of_an_algorithm_is_not_that_of_another():
    for algorithm, env in PAIRS:
        config, hp = preset(env, algorithm)
        assert (dataclasses.replace(config, algorithm="ppo_clip"), hp) != preset(env)


def test_what_is_said_to_be_hidden_is_of_registered_environments():
    assert set(gymnax.registration.registered_envs) >= HIDDEN.keys()


# What differs between two worlds of an environment, and decides which action is right: field -> its two values.
WORLDS = {
    "MemoryChain-bsuite": ("context", [0], [1]),
    "SimpleBandit-bsuite": ("rewards", np.linspace(0, 1, 11), np.linspace(1, 0, 11)),
    "MetaMaze-misc": ("goal", [1, 1], [9, 9]),
    "PointRobot-misc": ("goal", [1.0, 0.0], [-1.0, 0.0]),
    "UmbrellaChain-bsuite": ("need_umbrella", 0, 1),
    "DiscountingChain-bsuite": ("context", 0, 1),
    "FourRooms-misc": ("goal", [1, 1], [2, 2]),
}


@pytest.mark.parametrize("env", WORLDS)
def test_what_is_hidden_cannot_be_told_from_an_observation(env):
    """What is not listed as hidden can be told from it."""
    game, params = gymnax.make(env)
    _, state = jax.jit(game.reset, compiler_options=QUICKLY)(jax.random.key(0), params)
    field, *values = WORLDS[env]
    names = {name: np.asarray(getattr(state, name)).dtype for name in (field, "time")}

    def seen(value):
        fields = {field: np.asarray(value, names[field]), "time": np.asarray(2, names["time"])}
        return np.asarray(game.get_obs(state.replace(**fields), params=params, key=jax.random.key(1)))

    assert np.array_equal(*map(seen, values)) == (env in HIDDEN)
