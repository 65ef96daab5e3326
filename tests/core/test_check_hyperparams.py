"""Hyperparameters that cannot work are refused where their numbers are known, in one line."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import line
from probe_envs import walk

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.devices.vectorize import grid, make_runs
from purejaxppo.errors import ConfigError
from purejaxppo.train import advance, train, trainer_from_config

E = 4
CONFIG = TrainConfig(env="walk", num_envs=E, num_steps=4, hidden_sizes=(), total_timesteps=16)
HP = Hyperparams()


BAD = {
    "learning_rate": math.nan,
    "gamma": 1.5,
    "clip_eps": np.float32(0),
    "vf_coef": "0.5",
    "ent_coef": jnp.float32(-1),
    "kl_max": 1e-9,
    "max_grad_norm": None,
}


@pytest.fixture(scope="module")
def trainer():
    return trainer_from_config(CONFIG, walk(E))


@pytest.mark.parametrize("name", BAD)
def test_a_hyperparameter_that_cannot_work_is_refused_where_its_number_is_known(name, trainer):
    """Also under jit, as long as it is no argument."""
    hp = dataclasses.replace(HP, **{name: BAD[name]})
    for begin in (lambda key: trainer.init(key, hp), lambda key: advance(trainer, hp, None, 1)):
        with pytest.raises(ConfigError, match=name) as caught:
            jax.eval_shape(begin, jax.random.key(0))
        line(caught)


def test_train_refuses_it_too():
    with pytest.raises(ConfigError, match="learning_rate = nan"):
        train(dataclasses.replace(CONFIG, env="CartPole-v1"), Hyperparams(learning_rate=math.nan), jax.random.key(0))


def test_traced_hyperparameters_pass_and_the_others_are_looked_at(trainer):
    """Under vmap over one of them, to an array that is known, and without any number at all."""
    key = jax.random.key(0)

    def init(rate, hp):
        return trainer.init(key, dataclasses.replace(hp, learning_rate=rate))

    shapes = jax.eval_shape(jax.vmap(init, (0, None)), jnp.array([1e-3, jnp.nan]), HP)
    assert shapes.updates.shape == (2,)
    with pytest.raises(ConfigError, match="gamma"):
        jax.eval_shape(jax.vmap(partial(init, hp=Hyperparams(gamma=2))), jnp.ones(2))


@pytest.mark.parametrize(
    ("hps", "seeds", "says"),
    [
        ({"learning_rate": [1e-3, math.nan]}, [0, 1], "learning_rate = nan"),
        ({"kl_max": [0.02, 1e-9]}, [0, 1], "kl_max = "),
        ({}, [0, 1, 2], r"learning_rate has the shape \(2,\) and seeds \(3,\)"),
        ({"gamma": 0.9}, [0, 1], r"gamma has the shape \(\)"),
        ({}, [0, -1], "seed = -1"),
        ({}, [0.5, 1], "seed = 0.5"),
    ],
)
def test_runs_that_cannot_work_are_refused(hps, seeds, says, trainer):
    """`grid` makes none of these; arrays of one's own may be anything."""
    whole, _ = grid(HP, [0, 1])
    changed = dataclasses.replace(whole, **{name: np.float32(values) for name, values in hps.items()})
    with pytest.raises(ConfigError, match=says) as caught:
        make_runs(trainer, changed, np.array(seeds))
    line(caught)
