"""One run over two CPU devices is the run on one of them, up to the order of sums."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.rollout import rollout
from purejaxppo.core.types import Batch
from purejaxppo.devices import cpu, data_parallel
from purejaxppo.devices.cpu import one_thread_is_enough
from purejaxppo.devices.data_parallel import (
    devices_for,
    env_shardings,
    gather_rows,
    mesh_of,
    split_rows,
    spread_trainer,
)
from purejaxppo.envs.gymnax_adapter import from_gymnax
from purejaxppo.envs.presets import preset
from purejaxppo.envs.wrappers import training_env
from purejaxppo.policies.networks import make_network
from purejaxppo.train import advance, trainer_from_config

SMALL = {"env": "CartPole-v1", "num_envs": 4, "num_steps": 32, "num_epochs": 2, "num_minibatches": 2}
CONFIG = TrainConfig(total_timesteps=128 * 8, **SMALL)
HP = Hyperparams(learning_rate=1e-3)


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(cpu, "ROWS_PER_DEVICE", 1)


def trained(trainer, updates=1):
    runner = jax.jit(trainer.init)(jax.random.key(3), HP)
    return jax.jit(lambda runner: advance(trainer, HP, runner, updates))(runner)


def leaves(tree):
    return [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
            for x in jax.tree.leaves(tree)]  # fmt: skip


@pytest.mark.parametrize("algorithm", ["ppo_clip", "ppo_kl", "policy_gradient"])
def test_two_devices_do_what_one_does(algorithm):
    """What is promised of the first update; later ones make the rounding grow until the runs differ as seeds do."""
    config = TrainConfig(total_timesteps=128 * 8, algorithm=algorithm, **SMALL)
    for one, two in zip(
        leaves(trained(trainer_from_config(config))), leaves(trained(spread_trainer(config))), strict=True
    ):
        np.testing.assert_allclose(one, two, rtol=2e-4, atol=2e-5)


def test_advantages_are_standardized_by_the_rows_of_all_devices():
    """By those of its own share alone, the gradient would be another one."""
    one, two = trained(trainer_from_config(CONFIG)), trained(spread_trainer(CONFIG))
    np.testing.assert_allclose(one[1]["grad_norm"], two[1]["grad_norm"], rtol=1e-5)


def test_environments_are_shared_out_and_parameters_are_not():
    runner, _ = trained(spread_trainer(CONFIG))
    assert runner.obs.sharding.shard_shape(runner.obs.shape) == (2, 4)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(runner.learner))


def test_one_exchange_per_gradient_step_and_none_per_environment_step():
    trainer = spread_trainer(CONFIG)
    runner = jax.jit(trainer.init)(jax.random.key(0), HP)
    jaxpr = str(jax.make_jaxpr(lambda runner: trainer.update(HP, runner))(runner))
    assert jaxpr.count("psum") == 1
    assert jaxpr.count("all_gather[") == 2  # the batch, and what the policy of the end says of it


def test_the_rollout_exchanges_nothing():
    mesh = mesh_of(jax.devices()[:2])
    env = training_env(CONFIG, from_gymnax("CartPole-v1", 4))
    network = make_network(CONFIG, env)
    key, everywhere = jax.random.key(0), NamedSharding(mesh, PartitionSpec())
    state = *env.reset(jax.random.split(key, 4)), jnp.arange(4)
    params = jax.device_put(network.init(key, state[1]), everywhere)
    state = jax.device_put(state, env_shardings(4, mesh, state))

    def collect(key, params, env_state, obs, env_ids):
        return rollout(key, env, network.apply, params, env_state, obs, env_ids, 32)[
            :3
        ]  # without sums over all environments

    text = jax.jit(collect).lower(jax.device_put(key, everywhere), params, *state).compile().as_text()
    assert "num_partitions=2" in text
    assert not [line for line in text.splitlines() if " all-" in line or "collective" in line]


def test_rows_of_any_kind_are_gathered():
    rows = {
        "number": jnp.arange(8.0),
        "integer": jnp.arange(16, dtype=jnp.int32).reshape(8, 2),
        "bool": jnp.arange(8) % 3 == 0,
        "byte": jnp.arange(32, dtype=jnp.uint8).reshape(8, 4),
        "half": jnp.arange(8, dtype=jnp.bfloat16),
        "nan": jnp.full((8, 1), jnp.nan),
    }
    found = jax.jit(gather_rows(mesh_of(jax.devices()[:2])))(rows)
    for name, row in rows.items():
        assert found[name].dtype == row.dtype
        np.testing.assert_array_equal(np.asarray(found[name], np.float32), np.asarray(row, np.float32))


def test_rows_that_cannot_be_shared_out_equally_are_refused():
    split = split_rows(mesh_of(jax.devices()[:2]))
    rows = Batch(*[jnp.zeros(7)] * 7)
    with pytest.raises(ValueError, match="7 rows cannot be sharded equally over 2 devices"):
        split.mean(lambda _, rows: rows.advantage.mean())({}, rows)


def test_a_saved_state_goes_back_to_where_it_was_computed():
    trainer = spread_trainer(CONFIG)
    runner, _ = trained(trainer)
    restored = trainer.place(jax.device_put(runner, jax.devices()[0]))
    for was, is_now in zip(jax.tree.leaves(runner), jax.tree.leaves(restored), strict=True):
        assert was.sharding.is_equivalent_to(is_now.sharding, was.ndim)
    for was, is_now in zip(leaves(runner), leaves(restored), strict=True):
        np.testing.assert_array_equal(was, is_now)


def test_halves_are_the_whole_bit_for_bit():
    trainer = spread_trainer(CONFIG)
    runner = jax.jit(trainer.init)(jax.random.key(3), HP)
    step = jax.jit(lambda runner: advance(trainer, HP, runner, 1)[0])
    two = jax.jit(lambda runner: advance(trainer, HP, runner, 2)[0])(runner)
    for a, b in zip(leaves(step(step(runner))), leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({}, 2),
        ({"num_envs": 3, "num_minibatches": 1}, 1),
        ({"normalize_observation": True}, 1),
        ({"normalize_reward": True}, 1),
        ({"algorithm": "trpo"}, 1),
    ],
)
def test_devices(settings, number):
    config = TrainConfig(total_timesteps=10**4, **{**SMALL, **settings})
    assert len(devices_for(config)) == number


def test_small_minibatches_stay_on_one_device(monkeypatch):
    monkeypatch.setattr(cpu, "ROWS_PER_DEVICE", 512)
    assert len(devices_for(CONFIG)) == 1
    large = TrainConfig(total_timesteps=10**6, env="CartPole-v1", num_envs=64, num_steps=128, num_minibatches=4)
    assert len(devices_for(large)) == 2


@pytest.mark.parametrize(
    ("env", "settings", "enough"),
    [
        ("CartPole-v1", {}, True),
        ("CartPole-v1", {"num_envs": 64, "num_steps": 128, "num_minibatches": 4}, True),  # is spread
        ("CartPole-v1", {"num_envs": 64, "num_steps": 128, "num_minibatches": 1, "algorithm": "trpo"}, False),
        ("Breakout-MinAtar", {}, False),
        ("MountainCarContinuous-v0", {}, True),
        ("Pendulum-v1", {}, False),
    ],
)
def test_threads_of_presets(monkeypatch, env, settings, enough):
    monkeypatch.setattr(cpu, "ROWS_PER_DEVICE", 512)
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    chosen = {name: value for name, value in preset(env).items() if name in names}
    assert one_thread_is_enough(TrainConfig(env=env, **{**chosen, **settings}), 2) == enough


@pytest.mark.parametrize(
    ("settings", "hyperparams"),
    [
        ({}, {"target_kl": 1e-5}),
        ({"learning_rate_schedule": "kl_adaptive"}, {}),
        ({"on_nonfinite": "skip"}, {"learning_rate": float("nan")}),
        ({"env": "Pendulum-v1"}, {}),
        ({"normalize_advantage": "batch"}, {"vf_clip_eps": 0.2}),
    ],
    ids=["target_kl", "kl_adaptive", "skip", "continuous", "batch"],
)
def test_options(settings, hyperparams):
    config = TrainConfig(total_timesteps=128 * 8, **{**SMALL, **settings})
    hp = dataclasses.replace(HP, **hyperparams)
    found = []
    for trainer in (trainer_from_config(config), spread_trainer(config)):
        runner = jax.jit(trainer.init)(jax.random.key(3), hp)
        # Traced, as nan would be refused at the door.
        found.append(leaves(jax.jit(lambda hp, runner, trainer=trainer: advance(trainer, hp, runner, 2))(hp, runner)))
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, rtol=5e-4, atol=5e-5)


def test_blocks_of_rows_change_nothing(monkeypatch):
    whole = trained(spread_trainer(CONFIG))
    monkeypatch.setattr(data_parallel, "ROWS_PER_BLOCK", 8)
    text = str(jax.make_jaxpr(lambda: trained(spread_trainer(CONFIG)))())
    assert "f32[4,8,4]" in text  # of the 32 rows that a device has of a minibatch, four blocks of eight observations
    for one, two in zip(leaves(whole), leaves(trained(spread_trainer(CONFIG))), strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("rows", "number"), [(1, 1), (512, 1), (513, 1), (640, 2), (1024, 2), (8192, 16), (1021, 1), (1025, 1), (1500, 3)]
)
def test_blocks(rows, number):
    """As few as fit; one, if rows cannot be divided."""
    assert data_parallel.blocks(rows) == number
