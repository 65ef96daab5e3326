"""The recurrent policy against the formula of its docstring, unrolled in float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_once import QUICKLY

from purejaxppo.config import TrainConfig
from purejaxppo.core.types import Box, Discrete, VecEnv
from purejaxppo.errors import ConfigError
from purejaxppo.policies.layers import COLUMNS_FROM
from purejaxppo.policies.recurrent import gru

OBS, ACTIONS, WIDTHS = 2, 3, (5, 4)
# (sequences B, steps L); the second has as many rows as it takes for feature-major activations.
LAYOUTS = {"row-major": (3, 7), "feature-major": (16, 9)}
SHARING = pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


@functools.cache
def make(shared):
    """(policy, random parameters, compiled evaluate, compiled act); at the initial ones, all biases would be 0."""
    config = TrainConfig(hidden_sizes=WIDTHS, shared_torso=shared)
    policy = gru(config, VecEnv(None, None, Box((OBS,)), Discrete(ACTIONS), 4))
    shapes = jax.eval_shape(policy.init, jax.random.key(0), jnp.zeros((4, OBS)))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: jnp.asarray(0.6 * rng.normal(size=x.shape), x.dtype), shapes)
    return policy, params, jax.jit(policy.evaluate), jax.jit(policy.act, compiler_options=QUICKLY)


@functools.cache
def sequences(layout, shared):
    """Random memory [B, H], obs [B, L, OBS] and start [B, L]: some start at once, all at random places."""
    b, length = LAYOUTS[layout]
    rng = np.random.default_rng(2)
    memory = {name: rng.normal(size=(b, WIDTHS[-1])) for name in (("both",) if shared else ("actor", "critic"))}
    start = rng.random((b, length)) < 0.25
    start[:2] = np.arange(length) == np.arange(2)[:, None]  # one that begins with a start, and one that does not
    as_float32 = jax.tree.map(np.float32, (memory, rng.normal(size=(b, length, OBS))))
    return *as_float32, start


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def unrolled(params, memory, obs, start, shared):
    """(memory after, logits [B, L, A], values [B, L]), step by step in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["params"]
    memory, obs = jax.tree.map(lambda x: np.asarray(x, np.float64), (memory, obs))

    def dense(layer, x):
        return x @ layer["kernel"] + layer["bias"]

    states = {}
    for i, unit in enumerate(memory):
        h, states[unit] = memory[unit], []
        x_r, x_z, x_n = (np.zeros(0),) * 3
        u_r, u_z, u_n = np.split(p[f"{unit}_gru"]["kernel"], 3, axis=1)
        for t in range(obs.shape[1]):
            x = obs[:, t]
            for layer in range(len(WIDTHS)):
                x = np.tanh(dense(p[f"MLPTorso_{i}"][f"Dense_{layer}"], x))
            x_r, x_z, x_n = np.split(dense(p[f"{unit}_gates"], x), 3, axis=1)
            h = np.where(start[:, t, None], 0.0, h)
            r, z = sigmoid(x_r + h @ u_r), sigmoid(x_z + h @ u_z)
            n = np.tanh(x_n + r * (h @ u_n + p[f"{unit}_gru"]["bias"]))
            h = (1 - z) * n + z * h
            states[unit].append(h)
    first, last = (np.stack(states[unit], axis=1) for unit in (min(memory), max(memory)))
    head = p["value_head"]
    after = {unit: of_unit[-1] for unit, of_unit in states.items()}
    return after, dense(p["CategoricalHead_0"]["Dense_0"], first), dense(head, last)[..., 0]


def test_both_layouts_occur():
    (few_b, few_l), (many_b, many_l) = LAYOUTS.values()
    assert few_b * few_l < COLUMNS_FROM <= many_b * many_l


@SHARING
@LAYOUT
def test_evaluate_is_the_unrolled_loop(layout, shared):
    _, params, evaluate, _ = make(shared)
    memory, obs, start = sequences(layout, shared)
    pi, value = evaluate(params, memory, obs, start)
    _, logits, wanted = unrolled(params, memory, obs, start, shared)
    np.testing.assert_allclose(pi.logits, logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5)


@SHARING
@LAYOUT
def test_acting_step_by_step_is_evaluating_the_sequence(layout, shared):
    """And the memory at the end is that of the unrolled loop."""
    _, params, evaluate, act = make(shared)
    memory, obs, start = sequences(layout, shared)
    whole, _ = evaluate(params, memory, obs, start)
    after = memory
    for t in range(obs.shape[1]):
        after, pi = act(params, after, obs[:, t], start[:, t])
        np.testing.assert_allclose(pi.logits, whole.logits[:, t], rtol=1e-5, atol=1e-5)
    wanted, _, _ = unrolled(params, memory, obs, start, shared)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), dict(after), wanted)


@SHARING
@LAYOUT
def test_nothing_before_a_start_matters_at_or_after_it(layout, shared):
    """Bit for bit; not even infinity or NaN. Without the start it all matters."""
    _, params, evaluate, _ = make(shared)
    memory, obs, _ = sequences(layout, shared)
    t = 3
    start, never = np.zeros(obs.shape[:2], bool), np.zeros(obs.shape[:2], bool)
    start[:, t] = True
    for change in (0.5, np.nan, np.inf):
        other_memory = jax.tree.map(lambda x: x + np.float32(change), memory)  # noqa: B023
        other_obs = obs.copy()
        other_obs[:, :t] += change
        one, two = evaluate(params, memory, obs, start), evaluate(params, other_memory, other_obs, start)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
            np.testing.assert_array_equal(a[:, t:], b[:, t:])
            assert not np.any(np.asarray(a[:, :t]) == np.asarray(b[:, :t]))
        one, two = evaluate(params, memory, obs, never), evaluate(params, other_memory, other_obs, never)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
            assert not np.any(np.asarray(a[:, t]) == np.asarray(b[:, t]))


@SHARING
def test_a_sequence_in_pieces_is_the_sequence(shared):
    """The memory of the rollout at the beginning of a piece takes the place of all that was before."""
    _, params, evaluate, act = make(shared)
    memory, obs, start = sequences("row-major", shared)
    cut, after = 4, memory
    for t in range(cut):
        after, _ = act(params, after, obs[:, t], start[:, t])
    whole, piece = evaluate(params, memory, obs, start), evaluate(params, after, obs[:, cut:], start[:, cut:])
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(piece), strict=True):
        np.testing.assert_allclose(a[:, cut:], b, rtol=1e-5, atol=1e-5)


@SHARING
@LAYOUT
def test_gradient_through_time(layout, shared):
    """Of a sum over all steps, against central differences of the float64 loop; every parameter moves it."""
    policy, params, _, _ = make(shared)
    memory, obs, start = sequences(layout, shared)
    rng = np.random.default_rng(3)
    of_logits, of_value = rng.normal(size=(*start.shape, ACTIONS)), rng.normal(size=start.shape)

    def loss(params, memory):
        pi, value = policy.evaluate(params, memory, obs, start)
        return jnp.mean(of_logits * pi.logits) + jnp.mean(of_value * value)

    def exact(params, memory):
        _, logits, value = unrolled(params, memory, obs, start, shared)
        return np.mean(of_logits * logits) + np.mean(of_value * value)

    found = jax.jit(jax.grad(loss, (0, 1)))(params, memory)
    args = jax.tree.map(lambda x: np.array(x, np.float64), (params, memory))
    for leaf, gradient in zip(jax.tree.leaves(args), jax.tree.leaves(found), strict=True):
        for where in list(np.ndindex(leaf.shape))[:: max(1, leaf.size // 8)]:  # eight elements of each array
            sides = []
            value, step = leaf[where], 1e-5
            for side in (step, -step):
                leaf[where] = value + side
                sides.append(exact(*args))
            leaf[where] = value
            np.testing.assert_allclose(gradient[where], (sides[0] - sides[1]) / (2 * step), rtol=1e-3, atol=2e-6)
    assert all(np.any(np.asarray(x)) for x in jax.tree.leaves(found))


def test_initial_parameters_and_memory():
    """Orthogonal squares, a policy that is nearly uniform, and no memory; the parameters do not depend on E."""
    policy, _, evaluate, _ = make(False)
    assert jax.tree.map(lambda x: x.shape, policy.initial_memory(6)) == {"actor": (6, 4), "critic": (6, 4)}
    assert not any(np.any(x) for x in jax.tree.leaves(policy.initial_memory(6)))
    init = jax.jit(policy.init, compiler_options=QUICKLY)
    params, others = (init(jax.random.key(0), jnp.ones((n, OBS))) for n in (1, 3))
    jax.tree.map(np.testing.assert_array_equal, params, others)
    for unit in ("actor_gru", "critic_gru"):
        for square in np.split(np.asarray(params["params"][unit]["kernel"]), 3, axis=1):
            np.testing.assert_allclose(square @ square.T, np.eye(4), atol=1e-5)
    memory, obs, start = sequences("row-major", False)
    assert np.ptp(evaluate(params, memory, obs, start)[0].logits) < 0.1


def test_without_a_hidden_layer_there_is_no_width():
    with pytest.raises(ConfigError, match="hidden_sizes"):
        gru(TrainConfig(hidden_sizes=()), VecEnv(None, None, Box((OBS,)), Discrete(ACTIONS), 4))
