"""Which devices a process uses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.devices import data_parallel, selection
from purejaxppo.devices.data_parallel import devices_for, spread_trainer
from purejaxppo.devices.selection import use_devices
from purejaxppo.devices.vectorize import layout_for
from purejaxppo.errors import ConfigError
from purejaxppo.train import advance

# On one device, by the rule.
TINY = TrainConfig("CartPole-v1", num_envs=4, num_steps=8, num_minibatches=2, total_timesteps=64, num_shards=2)


@pytest.fixture(autouse=True)
def afterwards():
    yield
    use_devices("auto")


@pytest.mark.parametrize(
    ("which", "numbers"), [("all", [0, 1]), ("2", [0, 1]), ("1", [0]), ("1,", [1]), ("1,0", [1, 0]), (" 0, 1", [0, 1])]
)
def test_what_is_named_is_used(which, numbers):
    use_devices(which)
    assert selection.devices() == [jax.devices()[number] for number in numbers]
    assert jnp.zeros(3).devices() == {jax.devices()[numbers[0]]}
    assert devices_for(TINY) == selection.devices()
    assert set(layout_for(4).mesh.devices.flat) == set(selection.devices())


def test_by_default_a_run_has_as_many_as_have_enough_to_do():
    assert not selection.were_chosen()
    assert devices_for(TINY) == jax.devices()[:1]
    assert layout_for(4).mesh.size == 2
    use_devices("2")
    use_devices("auto")
    assert devices_for(TINY) == jax.devices()[:1]
    assert jnp.zeros(3).devices() == {jax.devices()[0]}


@pytest.mark.parametrize(
    ("shards", "before", "number"), [(2, 2, 2), (2, 1, 1), (2, None, 1), (2, 3, 1), (1, 2, 1), (4, 2, 2)]
)
def test_a_resumed_run_has_as_many_as_before_if_they_are_there_and_share_its_shards(shards, before, number):
    config = dataclasses.replace(TINY, num_shards=shards)
    assert devices_for(config, before) == jax.devices()[:number]
    use_devices("1,")
    assert devices_for(config, before) == [jax.devices()[1]]


@pytest.mark.parametrize(("rows", "number"), [(2**15, 1), (2**16 - 2, 1), (2**16, 2), (2**17, 2), (2**18, 2)])
def test_accelerators_share_large_minibatches(monkeypatch, rows, number):
    class Gpu:
        platform = "gpu"

    monkeypatch.setattr(jax, "devices", lambda: [Gpu(), Gpu()])
    config = TrainConfig(num_envs=rows, num_steps=1, num_minibatches=1, total_timesteps=rows)
    assert len(devices_for(config)) == number
    assert data_parallel.ROWS_PER_ACCELERATOR == 2**15


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("", "is neither all nor a count nor numbers as in 0,2; give one of these."),
        ("two", "is neither all"),
        ("-1", "is neither all"),
        ("0,,1", "is neither all"),
        (",", "is neither all"),
        ("0", "something has to train; give 1 or more."),
        ("0,0", "names one of them twice; give each once."),
        ("3", r"devices = 3, but there are only 2, 0 to 1. JAX_NUM_CPU_DEVICES makes more of a CPU."),
        ("0,7", "devices = 0,7, but there are only 2"),
    ],
)
def test_what_cannot_be_is_refused(which, message):
    with pytest.raises(ConfigError, match=message):
        use_devices(which)
    assert not selection.were_chosen()


def test_a_run_that_devices_cannot_share_names_the_numbers_that_can():
    use_devices("2")
    with pytest.raises(
        ConfigError, match="2 devices cannot share num_shards = 1 equally; use 1 of them, or --num-shards 2"
    ):
        spread_trainer(TrainConfig("CartPole-v1", num_envs=4, num_steps=8, num_shards=1, total_timesteps=64))


def test_the_second_device_alone_trains():
    use_devices("1,")
    trainer = spread_trainer(TINY)
    runner, _ = jax.jit(lambda key: advance(trainer, Hyperparams(), trainer.init(key, Hyperparams()), 1))(
        jax.random.key(0)
    )
    assert {device for leaf in jax.tree.leaves(runner) for device in leaf.devices()} == {jax.devices()[1]}


def test_from_the_command_line(server, tmp_path):
    """Two of four devices train a run that the rule would leave on one, and it goes on on two, or as it is told."""
    out = tmp_path / "run"
    settings = ["--num-envs", "4", "--num-steps", "8", "--num-minibatches", "2", "--num-shards", "2"]
    settings += ["--eval-episodes", "2"]
    argv = ["train", "--total-timesteps", "64", "--devices", "0,2", "--out", str(out), *settings]
    script = "import sys\nfrom purejaxppo.cli.main import run\nsys.exit(run({}))"
    code, _, errors = server.script(tmp_path / "log", script.format(argv), JAX_NUM_CPU_DEVICES="4")
    assert code == 0, errors
    assert "device 2 x cpu" in errors
    assert json.loads((out / "versions.json").read_text())["devices"] == 2
    argv = ["resume", str(out), "--total-timesteps", "96"]
    code, _, errors = server.script(tmp_path / "log", script.format(argv), JAX_NUM_CPU_DEVICES="4")
    assert code == 0, errors
    assert "device 2 x cpu" in errors
    assert "since the run began" not in errors
    argv = ["resume", str(out), "--total-timesteps", "128", "--devices", "1"]
    code, _, errors = server.script(tmp_path / "log", script.format(argv), JAX_NUM_CPU_DEVICES="4")
    assert code == 0, errors
    assert "devices 2 -> 1 since the run began" in errors
    argv = ["train", "--devices", "5", "--out", str(tmp_path / "none"), *settings]
    code, _, errors = server.script(tmp_path / "log", script.format(argv), JAX_NUM_CPU_DEVICES="4")
    assert code == 2
    assert "devices = 5, but there are only 4, 0 to 3." in errors
    assert not (tmp_path / "none").exists()
