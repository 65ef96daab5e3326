"""One run over several CPU devices is the run on one of them, up to the order of sums."""

import collections
import dataclasses
import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_once import QUICKLY
from jax.flatten_util import ravel_pytree
from probe_envs import constant_reward, spoiled, walk

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.config import Hyperparams, TrainConfig, fields
from purejaxppo.core.distributions import Categorical
from purejaxppo.core.types import Batch
from purejaxppo.devices import data_parallel
from purejaxppo.devices.cpu import one_thread_is_enough
from purejaxppo.devices.data_parallel import devices_for, spread_trainer
from purejaxppo.envs.presets import preset
from purejaxppo.errors import ConfigError, EnvError
from purejaxppo.train import advance, trainer_from_config

SMALL = {"env": "CartPole-v1", "num_envs": 8, "num_steps": 16, "num_epochs": 2, "num_minibatches": 2}
CONFIG = TrainConfig(total_timesteps=128 * 8, hidden_sizes=(8,), **SMALL)  # of eight shards, by the fixture below
HP = Hyperparams(learning_rate=1e-3)
NORMALISED = {"env": "Pendulum-v1", "normalize_observation": True, "normalize_reward": True}


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(fields, "ROWS_PER_SHARD", 1)


def trained(trainer, updates=1, hp=HP):
    run = jax.jit(begin_and_train, static_argnums=(0, 1), compiler_options=QUICKLY)
    return run(trainer, updates, hp)  # traced, as nan would be refused at the door


def begin_and_train(trainer, updates, hp):
    return advance(trainer, hp, trainer.init(jax.random.key(3), hp), updates)


def leaves(tree):
    return [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
            for x in jax.tree.leaves(tree)]  # fmt: skip


def distance(one, two, floor=1e-3):
    """Of two trees, relative to the largest number of each leaf, or to the floor if all are smaller."""
    differences = []
    for a, b in zip(leaves(one), leaves(two), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        a, b = np.nan_to_num(a), np.nan_to_num(b)
        differences.append(np.max(np.abs(a - b), initial=0.0) / np.max(np.abs(a), initial=floor))
    return max(differences, default=0)


@pytest.mark.parametrize(
    ("settings", "hyperparams"),
    [
        ({"algorithm": "ppo_kl", "learning_rate_schedule": "kl_adaptive", **NORMALISED}, {}),
        ({"algorithm": "trpo", **NORMALISED}, {}),
        ({"algorithm": "policy_gradient", "normalize_advantage": "batch"}, {"vf_clip_eps": 0.2, "target_kl": 1e-5}),
        ({"on_nonfinite": "skip"}, {"learning_rate": float("nan")}),
    ],
    ids=["ppo_kl", "trpo", "policy_gradient", "skip"],
)
def test_two_devices_do_what_one_does(settings, hyperparams):
    """In the first update; later ones make the rounding grow until the runs differ as seeds do."""
    config = dataclasses.replace(CONFIG, **settings)
    assert len(devices_for(config)) == 2
    check_same(config, dataclasses.replace(HP, **hyperparams), jax.devices()[:2])


def check_same(config, hp, devices):
    """Compares the first update on several devices with that on one."""
    one, two = trained(trainer_from_config(config), hp=hp), trained(spread_trainer(config, devices=devices), hp=hp)
    assert len(two[0].obs.sharding.device_set) == len(devices)
    one_vector, two_vector = (np.asarray(ravel_pytree(x[0].learner.params)[0]) for x in (one, two))
    assert np.linalg.norm(one_vector - two_vector) < (1e-5 if config.algorithm == "trpo" else 1e-6)
    assert distance(one[0].normalizer, two[0].normalizer) < 1e-6
    assert distance((one[0].env_state, one[0].obs, one[0].key), (two[0].env_state, two[0].obs, two[0].key)) < 1e-5
    assert distance(one[1], two[1], floor=1e-2) < 1e-4  # losses are differences of larger numbers


def on_more_devices(algorithms, numbers):
    """Compares numbers of (shards, devices), with normalisers; run by a process that has four devices."""
    for algorithm, (num_shards, number) in itertools.product(algorithms, numbers):
        config = dataclasses.replace(CONFIG, **NORMALISED, algorithm=algorithm, num_shards=num_shards)
        check_same(config, HP, jax.devices()[:number])


@pytest.mark.parametrize(
    ("algorithms", "numbers"),
    [
        (["ppo_clip"], [(8, 4)]),
        pytest.param(sorted(ALGORITHMS), [(4, 2), (4, 4), (8, 2), (8, 4)], marks=pytest.mark.slow),
    ],
    ids=["ppo_clip", "every algorithm"],
)
def test_four_devices_do_what_one_does(server, tmp_path, algorithms, numbers):
    here = Path(__file__)
    script = (
        f"import sys; sys.path.append({str(here.parent)!r}); import {here.stem} as here; "
        f"here.on_more_devices({algorithms}, {numbers})"
    )
    code, _, errors = server.script(tmp_path / "log", script, JAX_NUM_CPU_DEVICES="4")
    assert code == 0, errors


def test_devices_that_cannot_share_the_shards_are_refused():
    config = dataclasses.replace(CONFIG, num_shards=1)
    with pytest.raises(
        ConfigError, match="2 devices cannot share num_shards = 1 equally; use 1 of them, or --num-shards 2"
    ):
        spread_trainer(config, devices=jax.devices()[:2])
    for devices in ([], jax.devices()[:1] * 2):
        with pytest.raises(ConfigError, match="at least one device, and none of them twice"):
            spread_trainer(CONFIG, devices=devices)


def test_a_single_device_that_is_not_the_first():
    runner, _ = trained(spread_trainer(CONFIG, devices=jax.devices()[1:2]))
    assert runner.obs.sharding.device_set == {jax.devices()[1]}


def test_environments_are_shared_out_and_parameters_are_not():
    runner, _ = trained(spread_trainer(CONFIG))
    assert runner.obs.sharding.shard_shape(runner.obs.shape) == (4, 4)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(runner.learner))


@pytest.mark.parametrize("settings", [{}, NORMALISED], ids=["plain", "normalised"])
def test_one_exchange_per_gradient_step_and_three_per_update(settings):
    """In the compiled program: one in the body of the loop over gradient steps, and none in any other loop."""
    trainer = spread_trainer(dataclasses.replace(CONFIG, **settings))
    runner = jax.jit(trainer.init)(jax.random.key(0), HP)
    text = jax.jit(lambda runner: trainer.update(HP, runner)).lower(runner).compile().as_text()
    loops = set(re.findall(r"body=%?([\w.-]+)", text))
    entry, *in_loops = sorted(all_reduces(text).items(), key=lambda item: item[0] in loops)
    assert 1 <= entry[1] <= 3
    assert [count for _, count in in_loops] == [1]
    assert not re.search(r" (all-gather|all-to-all|collective-permute)", text)


def all_reduces(text):
    """Name of a computation -> how many all-reduces it holds, for those that hold any."""
    found, name = collections.Counter(), ""
    for line in text.splitlines():
        if heading := re.match(r"(?:ENTRY )?%?([\w.-]+) \(", line):
            name = heading[1]
        found[name] += bool(re.search(r" all-reduce(?:-start)?\(", line))
    return +found


def test_an_environment_that_cannot_be_shared_out_is_refused():
    """With the remedy; on one device it may be as it is."""
    config = dataclasses.replace(CONFIG, env="walk")
    with pytest.raises(EnvError, match=r"a leaf of shape \[\], which does not begin with num_envs = 8"):
        spread_trainer(config, spoiled(walk(8), after=1))
    with pytest.raises(EnvError, match="cannot step 4 of its 8 copies on a device of their own"):
        spread_trainer(config, constant_reward(8))
    trainer_from_config(config, constant_reward(8))


def test_an_update_rule_without_shards_is_trained_on_one_device():
    """It would learn something else on each of several."""
    rule = ALGORITHMS.lookup("ppo_clip")
    ALGORITHMS.register("mine", lambda config, apply, shards: rule(config, apply)._replace(shards=None))
    try:
        runner, _ = trained(spread_trainer(dataclasses.replace(CONFIG, algorithm="mine")))
    finally:
        ALGORITHMS.remove("mine")
    assert len(runner.obs.sharding.device_set) == 1


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
        ({"normalize_observation": True}, 2),
        ({"algorithm": "trpo"}, 2),
        ({"num_shards": 1}, 1),
        ({"num_shards": 4}, 2),
    ],
)
def test_devices(settings, number):
    config = TrainConfig(total_timesteps=10**4, **{**SMALL, **settings})
    assert len(devices_for(config)) == number


def test_small_minibatches_stay_on_one_device(monkeypatch):
    monkeypatch.setattr(fields, "ROWS_PER_SHARD", 512)
    assert len(devices_for(CONFIG)) == 1
    assert len(devices_for(dataclasses.replace(CONFIG, num_shards=2))) == 1
    large = TrainConfig(total_timesteps=10**6, env="CartPole-v1", num_envs=64, num_steps=128, num_minibatches=4)
    assert len(devices_for(large)) == 2


@pytest.mark.parametrize(
    ("env", "settings", "enough"),
    [
        ("CartPole-v1", {}, True),
        ("CartPole-v1", {"num_envs": 64, "num_steps": 128, "num_minibatches": 4}, True),  # is spread
        ("CartPole-v1", {"num_envs": 64, "num_steps": 128, "num_minibatches": 1, "algorithm": "trpo"}, True),
        ("Breakout-MinAtar", {}, False),
        ("MountainCarContinuous-v0", {}, True),
        ("Pendulum-v1", {}, True),
    ],
)
def test_threads_of_presets(monkeypatch, env, settings, enough):
    monkeypatch.setattr(fields, "ROWS_PER_SHARD", 512)
    config, _ = preset(env)
    assert one_thread_is_enough(dataclasses.replace(config, **settings), 2) == enough


def test_pieces_of_rows_change_nothing(monkeypatch):
    """The mean over pieces of eight rows is the mean over all of them."""
    monkeypatch.setattr(data_parallel, "ROWS_PER_PIECE", 8)
    sizes = []

    def means(params, rows):
        sizes.append(len(rows.advantage))
        return params + jnp.mean(rows.obs, axis=0), jnp.mean(rows.advantage)

    obs, x = jax.random.normal(jax.random.key(0), (32, 3)), jnp.arange(32.0)
    rows = Batch(obs, x, Categorical(obs), x, x, x, x, x, ())
    found = jax.jit(data_parallel._by_pieces(means))(jnp.ones(3), rows)
    assert set(sizes) == {8}
    for one, two in zip(found, means(jnp.ones(3), rows), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "number"), [(1, 1), (512, 1), (513, 1), (640, 2), (1024, 2), (8192, 16), (1021, 1), (1025, 1), (1500, 3)]
)
def test_pieces(rows, number):
    """As few as fit; one, if rows cannot be divided."""
    assert data_parallel.pieces_of(rows) == number
