"""The records of settings: immutable, hashable, free of JAX, with the sizes that follow from them."""

import dataclasses
import subprocess
import sys

import pytest

from purejaxppo.config import Hyperparams, RunOptions, TrainConfig


def test_derived_sizes():
    """Batch, minibatch, updates and the steps that really run."""
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
