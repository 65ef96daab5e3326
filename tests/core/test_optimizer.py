"""Adam behind a global-norm clip, against a float64 transcription; the schedule at its ends and middle."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from purejaxppo.config import TrainConfig
from purejaxppo.core.optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    anneal,
    check_names,
    make_optimizer,
    register_optimizer,
    register_schedule,
)
from purejaxppo.core.types import Hyperparams  # from there, it is a pytree
from purejaxppo.errors import ConfigError

CONFIG = TrainConfig(total_timesteps=1000, num_envs=2, num_steps=5, num_minibatches=1)  # 100 updates
SHAPES = {"w": (3, 2), "b": (2,), "scalar": ()}


def adam64(gradients, learning_rate, max_norm):
    """Changes of the parameters, one per gradient: Kingma & Ba's algorithm 1 after scaling to the global norm."""
    first = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    second = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    changes = []
    for t, gradient in enumerate(gradients, start=1):
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        change = {}
        for name, g in gradient.items():
            g = g * min(1.0, max_norm / norm)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            mean, square = first[name] / (1 - 0.9**t), second[name] / (1 - 0.999**t)
            change[name] = -learning_rate * mean / (np.sqrt(square) + 1e-5)
        changes.append(change)
    return changes


def random_gradients(scale, count=4):
    rng = np.random.default_rng(0)
    return [{name: scale * rng.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(count)]


@pytest.mark.parametrize(
    ("scale", "max_norm"),
    [
        pytest.param(1.0, 0.5, id="clipped"),
        pytest.param(0.01, 0.5, id="within the norm"),
        pytest.param(1e-5, 0.5, id="as small as eps"),
        pytest.param(100.0, 1e-4, id="clipped down to eps"),
    ],
)
def test_steps_against_a_transcription(scale, max_norm):
    """Four steps in a row, whatever the gradient's size; only ratios to eps = 1e-5 and to the norm matter."""
    hp = Hyperparams(learning_rate=0.01, max_grad_norm=max_norm)
    gradients = random_gradients(scale)

    @jax.jit
    def run(hp, gradients):
        optimizer = make_optimizer(CONFIG, hp)
        params = jax.tree.map(lambda g: jnp.zeros(g.shape[1:]), gradients)
        return jax.lax.scan(lambda s, g: optimizer.update(g, s)[::-1], optimizer.init(params), gradients)[1]

    stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves), jnp.float32), *gradients)
    found = run(hp, stacked)
    for t, expected in enumerate(adam64(gradients, 0.01, max_norm)):
        for name in SHAPES:
            np.testing.assert_allclose(found[name][t], expected[name], rtol=2e-4, atol=1e-8)


def test_a_zero_gradient_moves_nothing():
    """Its norm is 0, by which nothing may be divided."""
    optimizer = make_optimizer(CONFIG, Hyperparams())
    params = {"w": jnp.ones(3)}
    updates, _ = optimizer.update({"w": jnp.zeros(3)}, optimizer.init(params))
    np.testing.assert_array_equal(updates["w"], 0.0)


def test_hyperparameters_may_be_swept():
    """Under vmap over learning rate and norm, each run steps as it would alone."""
    gradient = {"w": jnp.asarray([3.0, -4.0])}

    def first_step(learning_rate, max_grad_norm):
        optimizer = make_optimizer(CONFIG, Hyperparams(learning_rate=learning_rate, max_grad_norm=max_grad_norm))
        return optimizer.update(gradient, optimizer.init(gradient))[0]["w"]

    rates, norms = np.array([0.1, 0.01]), np.array([1e-5, 10.0])
    found = jax.jit(jax.vmap(first_step))(rates, norms)
    for i in range(2):
        g = np.array([3.0, -4.0]) * min(1.0, norms[i] / 5)
        np.testing.assert_allclose(found[i], -rates[i] * g / (np.abs(g) + 1e-5), rtol=1e-4)


@pytest.mark.parametrize(("updates", "factor"), [(0, 1.0), (1, 0.99), (50, 0.5), (99, 0.01), (100, 0.0), (150, 0.0)])
def test_linear_schedule(updates, factor):
    """From the full rate in the first update to one step above 0 in the last; never negative."""
    hp = anneal(CONFIG, Hyperparams(learning_rate=3e-4), jnp.asarray(updates, jnp.int32))
    np.testing.assert_allclose(hp.learning_rate, 3e-4 * factor, rtol=1e-5, atol=1e-11)


@pytest.mark.parametrize("updates", [0, 50, 100])
def test_constant_schedule(updates):
    """The same rate throughout."""
    config = TrainConfig(**{**vars(CONFIG), "learning_rate_schedule": "constant"})
    hp = anneal(config, Hyperparams(learning_rate=3e-4), jnp.asarray(updates, jnp.int32))
    np.testing.assert_allclose(hp.learning_rate, 3e-4, rtol=1e-6)


def test_schedule_of_the_longest_run():
    """2^31 - 1 updates, the most that a config may ask for, overflow nothing."""
    config = TrainConfig(total_timesteps=8 * (2**31 - 1), num_envs=2, num_steps=4)
    hp = anneal(config, Hyperparams(learning_rate=1.0), jnp.asarray(2**30, jnp.int32))
    np.testing.assert_allclose(hp.learning_rate, 0.5, rtol=1e-6)


def test_anneal_changes_only_the_learning_rate():
    """Everything else is passed on."""
    before = Hyperparams(learning_rate=1.0, gamma=0.9, target_kl=0.01)
    after = anneal(CONFIG, before, jnp.asarray(50))
    for name in vars(before):
        assert name == "learning_rate" or getattr(before, name) == getattr(after, name)


@pytest.mark.parametrize("name", OPTIMIZERS.built_in())
def test_every_optimizer_minimises(name):
    """From a network's tree of parameters, jitted, and vmapped over the learning rate, which is traced."""
    config, rates = dataclasses.replace(CONFIG, optimizer=name), np.array([0.01, 0.03])
    start = {"params": {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, "log_std": jnp.ones(1)}}

    def run(learning_rate):
        optimizer = make_optimizer(config, Hyperparams(learning_rate=learning_rate))

        def step(carry, _):
            params, state = carry
            gradient = jax.grad(lambda tree: sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))(params)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (start, optimizer.init(start)), length=20)[0]

    params, state = jax.jit(jax.vmap(run))(rates)
    norms = jnp.sqrt(sum(jnp.sum(x.reshape(2, -1) ** 2, axis=1) for x in jax.tree.leaves(params)))
    assert norms[1] < norms[0] < 3.0  # the nine ones at the start
    assert all(isinstance(x, jax.Array) and np.isfinite(x).all() for x in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("linear", [1, 0.95, 0.9, 0.45, 0]),
        (
            "cosine",
            [1, *((1 + np.cos(np.pi * np.array([0.05, 0.1, 0.55]))) / 2), 0],
        ),
        ("warmup_cosine", [0.1, 0.55, 1, 0.5, 0]),
        ("kl_adaptive", [1, 1, 1, 1, 1]),
    ],
)
def test_courses(name, factors):
    """At the start, within the warm-up, at its end, halfway from there, and at the end."""
    config = dataclasses.replace(CONFIG, learning_rate_schedule=name)
    found = [anneal(config, Hyperparams(learning_rate=1.0), jnp.asarray(n)).learning_rate for n in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(found, factors, atol=1e-6)


def test_ones_own_optimizer_and_schedule():
    """The gradient is clipped before the optimizer sees it."""
    register_optimizer("halving", lambda hp: optax.scale(-0.5 * hp.learning_rate))
    register_schedule("square", lambda progress: (1 - progress) ** 2)
    try:
        config = dataclasses.replace(CONFIG, optimizer="halving", ent_coef_schedule="square")
        check_names(config)
        optimizer = make_optimizer(config, Hyperparams(learning_rate=1.0, max_grad_norm=1.0))
        updates, _ = optimizer.update(jnp.array([3.0, 4.0]), optimizer.init(jnp.zeros(2)))
        np.testing.assert_allclose(updates, [-0.3, -0.4], rtol=1e-6)
        assert float(anneal(config, Hyperparams(ent_coef=1.0), jnp.asarray(50)).ent_coef) == pytest.approx(0.25)
    finally:
        OPTIMIZERS.remove("halving")
        SCHEDULES.remove("square")
    for name in ("optimizer", "ent_coef_schedule"):
        with pytest.raises(ConfigError, match="is unknown"):
            check_names(dataclasses.replace(config, **{"optimizer": "adam", "ent_coef_schedule": "linear", name: "x"}))


def by_hand(name, gradient, params, learning_rate):
    """The first step of an optimizer from its formula, in float64; the gradient's norm is below the clip."""
    adam = -learning_rate * gradient / (np.abs(gradient) + 1e-5)  # both moments are corrected for their start
    return {
        "adam": adam,
        "adamw": adam - learning_rate * 1e-4 * params,
        "sgd": -learning_rate * gradient,
        "rmsprop": -learning_rate * gradient / np.sqrt(0.1 * gradient**2 + 1e-8),
    }[name]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop"])
def test_the_first_step_is_that_of_the_formula(name):
    optimizer = make_optimizer(dataclasses.replace(CONFIG, optimizer=name), Hyperparams(learning_rate=0.03))
    params, gradient = np.array([1.0, -2.0, 300.0]), np.array([0.1, -0.2, 1e-4])
    updates, _ = optimizer.update(jnp.asarray(gradient), optimizer.init(jnp.asarray(params)), jnp.asarray(params))
    np.testing.assert_allclose(updates, by_hand(name, gradient, params, 0.03), rtol=1e-4)
