"""Shapes, initial weights and sharing of the networks, for every kind of observation and action."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_once import QUICKLY

from purejaxppo.config import TrainConfig
from purejaxppo.core.distributions import Categorical, DiagGaussian, MultiCategorical, TanhDiagGaussian
from purejaxppo.core.target import compiling_for
from purejaxppo.core.types import Box, Discrete, MultiDiscrete, VecEnv
from purejaxppo.errors import ConfigError, EnvError
from purejaxppo.policies import layers
from purejaxppo.policies.registry import make_policy

T, E = 3, 2
IMAGE = (6, 5, 4)
OBSERVATIONS = {"vector": (4,), "image": IMAGE, "one-hot": (16,), "matrix": (1, 1), "scalar": ()}
BOUNDED = Box((2,), (-1.0, -2.0), (1.0, 2.0))
FACTORS = MultiDiscrete((3, 2))
GRID = Box((2, 3), -1.0, 1.0)


def spaces(obs_shape, action_space):
    """An environment of which the network may only look at the spaces."""
    return VecEnv(None, None, Box(obs_shape), action_space, E)


def make(obs_shape=(4,), action_space=Discrete(3), **settings):  # noqa: B008 - immutable
    """A network for these spaces."""
    config = TrainConfig(**{"hidden_sizes": (16, 8), **settings})
    return make_policy(config, spaces(obs_shape, action_space)).network


@functools.cache
def build(*args, **settings):
    """A network and its initial parameters; not jitted, so that JAX reuses what it compiled for each layer's shape."""
    network = make(*args, **settings)
    obs_shape = args[0] if args else (4,)
    return network, network.init(jax.random.key(0), jnp.zeros((E, *obs_shape)))


def shapes(network, obs_shape, lead):
    """What the network returns for observations [*lead, *obs_shape], and its parameters, as shapes only."""
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((E, *obs_shape)))
    return *jax.eval_shape(network.apply, params, jnp.zeros((*lead, *obs_shape))), params


def random_obs(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def leaves(params):
    """{path: array} of all parameters."""
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("obs_shape", OBSERVATIONS.values(), ids=OBSERVATIONS)
@pytest.mark.parametrize("lead", [(E,), (T, E), ()], ids=["[E]", "[T, E]", "[]"])
def test_discrete_shapes(obs_shape, lead):
    """Any number of batch axes in front, also none: logits [..., A] and value [...]."""
    pi, value, _ = shapes(make(obs_shape), obs_shape, lead)
    assert isinstance(pi, Categorical)
    assert pi.logits.shape == (*lead, 3)
    assert value.shape == lead
    assert pi.logits.dtype == value.dtype == jnp.float32


@pytest.mark.parametrize(("policy", "kind"), [("gaussian", DiagGaussian), ("tanh_gaussian", TanhDiagGaussian)])
@pytest.mark.parametrize("lead", [(E,), (T, E)], ids=["[E]", "[T, E]"])
def test_continuous_shapes(policy, kind, lead):
    """Mean and log_std [..., A], both with the batch axes."""
    pi, value, _ = shapes(make((4,), BOUNDED, action_distribution=policy), (4,), lead)
    assert isinstance(pi, kind)
    assert pi.mean.shape == pi.log_std.shape == (*lead, 2)
    assert value.shape == lead


@pytest.mark.parametrize("lead", [(E,), (T, E), ()], ids=["[E]", "[T, E]", "[]"])
def test_shapes_of_several_choices(lead):
    """Logits [..., A_f] of every factor, from one layer; actions [..., F]."""
    pi, value, params = shapes(make((4,), FACTORS), (4,), lead)
    assert isinstance(pi, MultiCategorical)
    assert [factor.logits.shape for factor in pi.factors] == [(*lead, 3), (*lead, 2)]
    assert value.shape == lead
    assert jax.eval_shape(lambda pi: pi.mode(), pi).shape == (*lead, 2)
    assert params["params"]["MultiCategoricalHead_0"]["Dense_0"]["kernel"].shape == (8, 5)


@pytest.mark.parametrize("policy", ["gaussian", "tanh_gaussian"])
def test_an_action_of_two_axes_is_flat_to_the_policy(policy):
    pi, _, _ = shapes(make((4,), GRID, action_distribution=policy), (4,), (E,))
    assert pi.mean.shape == pi.log_std.shape == (E, 6)
    pi, _, _ = shapes(make((4,), Box((), -1.0, 1.0), action_distribution=policy), (4,), (E,))
    assert pi.mean.shape == (E, 1)


def test_factors_are_cut_from_one_layer_in_their_order():
    """And the first policy is nearly uniform in each."""
    network, params = build((4,), FACTORS)
    pi, _ = jax.jit(network.apply)(params, random_obs(100, 4))
    np.testing.assert_allclose(pi.entropy(), math.log(6), atol=2e-3)
    head = params["params"]["MultiCategoricalHead_0"]["Dense_0"]
    head["bias"] = jnp.arange(5.0)
    pi, _ = jax.jit(network.apply)(params, random_obs(E, 4))
    head["bias"] = jnp.zeros(5)
    for factor, bias in zip(pi.factors, ([0, 1, 2], [3, 4]), strict=True):
        np.testing.assert_allclose(factor.logits, [bias] * E, atol=0.1)


@pytest.mark.parametrize("obs_shape", [(4,), IMAGE], ids=["vector", "image"])
def test_batch_axes_are_only_a_reshape(obs_shape):
    """[T, E, ...] gives what each row alone gives."""
    network, params = build(obs_shape)
    apply = jax.jit(network.apply)
    obs = random_obs(T, E, *obs_shape)
    pi, value = apply(params, obs)
    for t in range(T):
        row_pi, row_value = apply(params, obs[t])
        np.testing.assert_allclose(pi.logits[t], row_pi.logits, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(value[t], row_value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shared_torso", [False, True])
@pytest.mark.parametrize("action_space", [Discrete(3), FACTORS, BOUNDED], ids=["discrete", "factors", "continuous"])
@pytest.mark.parametrize("obs_shape", [(4,), IMAGE], ids=["vector", "image"])
def test_columns_are_rows_turned_over(monkeypatch, obs_shape, action_space, shared_torso):
    """Outputs and gradients, which must not depend on how many rows there are."""
    network, params = build(obs_shape, action_space, shared_torso=shared_torso)
    obs = random_obs(T, E, *obs_shape)

    def loss(params):
        pi, value = network.apply(params, obs)
        return jnp.sum(pi.mode() * 1.0) + jnp.sum(pi.entropy()) + jnp.sum(value**2)

    def everything(params):
        return network.init(jax.random.key(0), obs[0]), network.apply(params, obs), jax.grad(loss)(params)

    found = []
    for columns_from in (1, T * E + 1):
        monkeypatch.setattr(layers, "COLUMNS_FROM", columns_from)
        found.append(jax.tree.leaves(jax.jit(lambda params: everything(params), compiler_options=QUICKLY)(params)))
    for columns, rows in zip(*found, strict=True):
        np.testing.assert_allclose(columns, rows, rtol=1e-4, atol=1e-5)


def test_activations_are_row_major_on_a_gpu():
    many, few = jnp.zeros((layers.COLUMNS_FROM, 4)), jnp.zeros((layers.COLUMNS_FROM - 1, 4))
    for target, columns in (("cpu", True), ("tpu", True), ("gpu", False)):
        with compiling_for(target):
            assert layers.feature_major(many) == columns
            assert not layers.feature_major(few)


@pytest.mark.parametrize("sizes", [(), (5,), (7, 6, 5)])
def test_hidden_sizes_are_the_widths(sizes):
    """One layer per entry and torso; none leaves a linear policy and value."""
    params = shapes(make(hidden_sizes=sizes), (4,), (E,))[2]
    widths = sorted(leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
    inputs = [4, *sizes]
    torso = list(itertools.pairwise(inputs))
    assert widths == sorted([*torso, *torso, (inputs[-1], 3), (inputs[-1], 1)])


# --- what is computed -------------------------------------------------------------------------------------------------


ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_against_numpy(activation):
    """Two hidden layers and the value head, multiplied out in float64."""
    network, (_, params) = make(activation=activation, shared_torso=True), build(shared_torso=True)
    params = jax.tree.map(lambda x: x + 0.1, params)  # biases must count
    dense = {kernel.shape: (kernel, bias) for kernel, bias in kernels_and_biases(params).values()}
    obs = random_obs(E, 4)
    x = np.asarray(obs, np.float64)
    for shape in ((4, 16), (16, 8)):
        kernel, bias = dense[shape]
        x = ACTIVATIONS[activation](x @ kernel + bias)
    pi, value = jax.jit(network.apply)(params, obs)
    np.testing.assert_allclose(value, (x @ dense[8, 1][0] + dense[8, 1][1])[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pi.logits, x @ dense[8, 3][0] + dense[8, 3][1], rtol=1e-4, atol=1e-5)


def test_convolution_against_numpy():
    """A 3 x 3 convolution without padding, 16 features, by four nested loops; then the hidden layers."""
    network, (_, params) = make(IMAGE, shared_torso=True, activation="relu"), build(IMAGE, shared_torso=True)
    params = jax.tree.map(lambda x: x + 0.05, params)
    by_size = {kernel.size: (kernel, bias) for kernel, bias in kernels_and_biases(params).values()}
    height, width, channels = IMAGE[0] - 2, IMAGE[1] - 2, IMAGE[2]
    kernel, bias = by_size[9 * channels * 16]
    kernel = kernel.reshape(3, 3, channels, 16)
    obs = random_obs(E, *IMAGE)
    image = np.asarray(obs, np.float64)
    features = np.zeros((E, height, width, 16))
    for row in range(height):
        for column in range(width):
            patch = image[:, row : row + 3, column : column + 3]
            features[:, row, column] = np.einsum("ehwc,hwcf->ef", patch, kernel) + bias
    x = np.maximum(features, 0).reshape(E, -1)
    for size in (height * width * 16 * 16, 16 * 8, 8):
        kernel, bias = by_size[size]
        x = x @ kernel + bias
        x = np.maximum(x, 0) if size != 8 else x
    np.testing.assert_allclose(jax.jit(network.apply)(params, obs)[1], x[:, 0], rtol=1e-4, atol=1e-5)


# --- initial weights --------------------------------------------------------------------------------------------------


def kernels_and_biases(params):
    """{layer: (kernel, bias)} of every layer, float64."""
    found = leaves(params)
    layers = {path.removesuffix("['kernel']") for path in found if path.endswith("['kernel']")}
    return {layer: tuple(np.float64(found[f"{layer}['{name}']"]) for name in ("kernel", "bias")) for layer in layers}


def assert_orthogonal(kernel, gain):
    """Rows or columns, whichever are fewer, are orthogonal and of length `gain`."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    np.testing.assert_allclose(gram, gain**2 * np.eye(len(gram)), atol=1e-5 * gain**2)


@pytest.mark.parametrize("shared_torso", [False, True])
@pytest.mark.parametrize(
    ("obs_shape", "action_space", "num_actions"),
    [((4,), Discrete(3), 3), ((4,), FACTORS, 5), ((4,), BOUNDED, 2), (IMAGE, Discrete(3), 3)],
    ids=["mlp-discrete", "mlp-factors", "mlp-continuous", "conv"],
)
def test_weights_are_orthogonal_with_the_right_gain(obs_shape, action_space, num_actions, shared_torso):
    """sqrt 2 in hidden layers, 0.01 in the policy's head, 1 in the value's; all biases 0."""
    _, params = build(obs_shape, action_space, shared_torso=shared_torso)
    hidden = 0
    for kernel, bias in kernels_and_biases(params).values():
        width = kernel.shape[-1]
        gain = {num_actions: 0.01, 1: 1.0}.get(width, math.sqrt(2))
        hidden += gain == math.sqrt(2)
        assert_orthogonal(kernel, gain)
        np.testing.assert_array_equal(bias, 0.0)
        assert bias.shape == (width,)
    assert hidden == (2 + (obs_shape == IMAGE)) * (1 if shared_torso else 2)


def test_separate_torsos_start_differently():
    """Policy and value function do not begin as the same features."""
    _, params = build()
    first = [kernel for kernel, _ in kernels_and_biases(params).values() if kernel.shape == (4, 16)]
    assert len(first) == 2
    assert not np.allclose(*first)


def test_the_first_policy_is_nearly_uniform():
    """The small gain of the head: no action is preferred before learning."""
    network, params = build()
    pi, _ = jax.jit(network.apply)(params, random_obs(100, 4))
    assert np.abs(np.asarray(pi.entropy()) - math.log(3)).max() < 1e-3


@pytest.mark.parametrize("policy", ["gaussian", "tanh_gaussian"])
def test_log_std_is_one_parameter_that_starts_at_zero(policy):
    """The same for every state: [A] in the parameters, and what is put there comes out everywhere."""
    network, (_, params) = make((4,), BOUNDED, action_distribution=policy), build((4,), BOUNDED)
    (path,) = (path for path in leaves(params) if "log_std" in path)
    np.testing.assert_array_equal(leaves(params)[path], np.zeros(2))
    shifted = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.asarray([0.5, -0.5]) if "log_std" in jax.tree_util.keystr(path) else x, params
    )
    pi, _ = jax.jit(network.apply)(shifted, random_obs(E, 4))
    np.testing.assert_allclose(pi.log_std, np.tile([0.5, -0.5], (E, 1)))


# --- sharing ----------------------------------------------------------------------------------------------------------


def touched(loss, params):
    """The parameters that a scalar depends on: those with a gradient other than 0."""
    return {path for path, grad in leaves(jax.jit(jax.grad(loss))(params)).items() if np.any(grad != 0)}


@pytest.mark.parametrize("obs_shape", [(4,), IMAGE], ids=["vector", "image"])
@pytest.mark.parametrize("shared_torso", [False, True])
def test_what_policy_and_value_share(obs_shape, shared_torso):
    """Separate: not a single parameter. Shared: everything but the heads. Together: all there is."""
    network, params = build(obs_shape, shared_torso=shared_torso)
    obs = random_obs(E, *obs_shape)
    policy = touched(lambda p: (network.apply(p, obs)[0].logits ** 2).sum(), params)
    value = touched(lambda p: (network.apply(p, obs)[1] ** 2).sum(), params)
    assert policy | value == set(leaves(params))
    heads = {path for path, leaf in leaves(params).items() if leaf.shape[-1] in (3, 1)}
    assert policy & value == (set(leaves(params)) - heads if shared_torso else set())
    assert policy
    assert value


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "space",
    [
        Box((1,)),
        Box((2,), (-1.0, -math.inf), (1.0, 1.0)),
        Box((2,), (-1.0, -1.0), (1.0, 3.4e38)),
        Box((1,), (math.nan,), (1.0,)),
        Box((1,), (-1.0,), None),
    ],
    ids=["undeclared", "infinite", "float32-max", "nan", "one-sided"],
)
def test_tanh_policy_needs_finite_bounds(space):
    """Squashing into infinite bounds is meaningless: refused when built, naming environment and remedy."""
    config = TrainConfig(env="Somewhere-v0", action_distribution="tanh_gaussian")
    with pytest.raises(EnvError, match=r"tanh_gaussian.*Somewhere-v0.*use gaussian"):
        make_policy(config, spaces((4,), space))
    make_policy(TrainConfig(action_distribution="gaussian"), spaces((4,), space))


def test_tanh_policy_is_refused_for_discrete_actions():
    """The setting concerns continuous actions only."""
    with pytest.raises(ConfigError, match="3 discrete"):
        make(action_distribution="tanh_gaussian")
    with pytest.raises(ConfigError, match="3 x 2 discrete"):
        make(action_space=FACTORS, action_distribution="tanh_gaussian")
