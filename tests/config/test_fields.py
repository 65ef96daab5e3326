"""The records of settings: immutable, hashable, free of JAX, with the sizes that follow from them."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.config.fields import whole
from purejaxppo.config.resolve import settings_record
from purejaxppo.config.validate import validate_config, validate_hyperparams, validate_options
from purejaxppo.core.types import RunnerState  # noqa: F401, which makes a tree of Hyperparams


def test_derived_sizes():
    """Batch, minibatch, updates, and the steps that are trained."""
    config = TrainConfig(total_timesteps=1000, num_envs=6, num_steps=10, num_minibatches=4)
    assert (config.batch_size, config.minibatch_size, config.num_updates, config.env_steps) == (60, 15, 16, 960)


def test_config_is_hashable_whatever_it_was_built_from():
    """A dict of env_params and a list of widths give the same hashable record as tuples do, in any order."""
    written = TrainConfig(env_params={"b": 2.0, "a": 1.0}, hidden_sizes=[32, 16])
    read = TrainConfig(env_params=(("a", 1.0), ("b", 2.0)), hidden_sizes=(32, 16))
    from_json = TrainConfig(env_params=[["b", 2.0], ["a", 1.0]], hidden_sizes=[32, 16])
    assert written == read == from_json
    assert len({written, read, from_json}) == 1
    assert written.env_params == (("a", 1.0), ("b", 2.0))
    assert written.hidden_sizes == (32, 16)
    assert hash(written) != hash(dataclasses.replace(written, hidden_sizes=(16, 32)))


@pytest.mark.parametrize("record", [TrainConfig(), Hyperparams(), RunOptions()])
def test_records_are_frozen(record):
    """Settings cannot change under the function that reads them."""
    name = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, name, 1)


def test_config_does_not_load_jax():
    """`--help` reads the dataclasses without waiting for jax."""
    code = "import sys, purejaxppo.config; sys.exit('jax' in sys.modules or 'gymnax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


# --- numbers that are not Python's own --------------------------------------------------------------------------------


OF_NUMPY = TrainConfig(
    env=np.str_("CartPole-v1"),
    env_params={"max_steps_in_episode": np.int64(200), "gravity": np.float32(9.5)},
    total_timesteps=np.float64(1280.0),
    num_envs=np.int64(8),
    num_steps=16.0,
    num_epochs=np.uint8(2),
    num_minibatches=np.array(4),
    hidden_sizes=np.array([32, 16]),
    shared_torso=np.bool_(True),
    cg_iterations=jnp.int32(3),
)
OF_PYTHON = TrainConfig(
    env="CartPole-v1",
    env_params={"max_steps_in_episode": 200, "gravity": 9.5},
    total_timesteps=1280,
    num_envs=8,
    num_steps=16,
    num_epochs=2,
    num_minibatches=4,
    hidden_sizes=(32, 16),
    shared_torso=True,
    cg_iterations=3,
)


def test_numbers_of_numpy_and_whole_floats_make_the_same_record():
    """The records are equal, with the same hash, and all values have a type that JSON knows."""
    assert OF_NUMPY == OF_PYTHON
    assert hash(OF_NUMPY) == hash(OF_PYTHON)
    validate_config(OF_NUMPY)
    hp = Hyperparams(np.float32(3e-4), np.float64(0.5), target_kl=np.array(0.25), kl_coef=np.int8(2))
    validate_hyperparams(hp)
    assert json.dumps(settings_record(OF_NUMPY, hp)) == json.dumps(settings_record(OF_PYTHON, hp))
    assert [type(x) for x in (hp.learning_rate, hp.gamma, hp.target_kl, hp.kl_coef)] == [float, float, float, int]
    assert hp.learning_rate == float(np.float32(3e-4))  # not a bit is lost
    options = RunOptions(np.int64(5), np.float32(0.5), 3.0, np.array(0))
    validate_options(options)
    assert json.dumps(dataclasses.asdict(options)) == json.dumps(dataclasses.asdict(RunOptions(5, 0.5, 3, 0)))


@pytest.mark.parametrize(
    ("written", "settled"),
    [(1e6, 1_000_000), (np.float32(3.0), 3), (np.longdouble(2), 2), (2.0**63, 2.0**63), (1.5, 1.5), (True, True)],
)
def test_whole(written, settled):
    """A float above every count stays as it is, to be refused as it was given; a bool is no number."""
    assert whole(written) == settled
    assert type(whole(written)) is type(settled)


def test_hyperparameters_hold_whatever_jax_puts_into_them():
    """Arrays, tracers, shapes and axes keep their types when a tree of them is built again."""
    hp = jax.tree.map(jnp.float32, Hyperparams())
    assert all(isinstance(x, jax.Array) and not x.weak_type for x in jax.tree.leaves(hp))
    stacked = jax.tree.map(lambda x: np.full(3, x, np.float32), hp)
    doubled = jax.jit(jax.vmap(lambda hp: jax.tree.map(lambda x: 2 * x, hp)))(stacked)
    assert doubled.gamma.shape == (3,)
    axes = jax.tree.map(lambda _: None, hp, is_leaf=lambda x: x is None)
    axes = dataclasses.replace(axes, gamma=0)
    mixed = dataclasses.replace(hp, gamma=stacked.gamma)
    assert jax.vmap(lambda hp: hp.gamma * hp.gae_lambda, in_axes=(axes,))(mixed).shape == (3,)
    assert jax.eval_shape(lambda hp: hp, hp).gamma.dtype == jnp.float32


def test_plain_hyperparameters_are_those_of_one_run():
    """Values that were taken from a grid, or computed by JAX, can be written as JSON."""
    hp = jax.tree.map(jnp.float32, Hyperparams(gamma=0.5)).plain()
    assert {type(value) for value in vars(hp).values()} == {float, type(None)}
    assert hp.gamma == 0.5
