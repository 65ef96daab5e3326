"""The scalar losses and their gradients against float64 transcriptions and cases worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_once import QUICKLY

from purejaxppo.core import losses
from purejaxppo.core.distributions import Categorical, DiagGaussian, TanhDiagGaussian
from purejaxppo.core.losses import (
    clipped_surrogate,
    clipped_value_loss,
    importance_surrogate,
    kl_penalized_surrogate,
    value_loss,
)
from purejaxppo.core.sums import merged, moments

EPS = 0.2
BETA = 1.7
STEP = 1e-6  # of the finite differences
surrogate_and_gradient = jax.jit(jax.value_and_grad(clipped_surrogate), compiler_options=QUICKLY)
value_loss_and_gradient = jax.jit(jax.value_and_grad(clipped_value_loss), compiler_options=QUICKLY)


def surrogate64(ratio, advantage, eps):
    total = 0.0
    for r, a in zip(ratio, advantage, strict=True):
        total += min(r * a, min(max(r, 1 - eps), 1 + eps) * a)
    return total / len(ratio)


def value64(value, target):
    return sum((v - t) ** 2 for v, t in zip(value, target, strict=True)) / 2 / len(value)


def clipped_value64(value, target, old_value, eps):
    total = 0.0
    for v, t, old in zip(value, target, old_value, strict=True):
        near = min(max(v, old - eps), old + eps)
        total += max((v - t) ** 2, (near - t) ** 2)
    return total / 2 / len(value)


def differences(function, x):
    """The gradient of a scalar function of a vector, by central differences."""
    steps = STEP * np.eye(len(x))
    return np.array([(function(x + step) - function(x - step)) / (2 * STEP) for step in steps])


def assert_same_value_and_gradient(function, oracle, x):
    """Value and gradient with respect to the vector x, both in float64."""
    with jax.enable_x64(True):
        value, gradient = jax.jit(jax.value_and_grad(function), compiler_options=QUICKLY)(jnp.asarray(x))
    np.testing.assert_allclose(value, oracle(x), rtol=1e-12)
    np.testing.assert_allclose(gradient, differences(oracle, x), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("eps", [0.05, 0.2, 1.5])
def test_clipped_surrogate_and_its_gradient(eps):
    """In ratio and in advantage, with ratios on both sides of the range and inside it."""
    rng = np.random.default_rng(0)
    ratio, advantage = np.exp(0.5 * rng.normal(size=64)), rng.normal(size=64)
    assert_same_value_and_gradient(
        lambda r: clipped_surrogate(r, jnp.asarray(advantage), eps), lambda r: surrogate64(r, advantage, eps), ratio
    )
    assert_same_value_and_gradient(
        lambda a: clipped_surrogate(jnp.asarray(ratio), a, eps), lambda a: surrogate64(ratio, a, eps), advantage
    )


def categorical64(logits, action):
    """log-probabilities of the actions, and of all actions; row by row."""
    log_p = [row - max(row) - np.log(sum(np.exp(row - max(row)))) for row in logits]
    chosen = np.array([row[a] for row, a in zip(log_p, action, strict=True)])
    return chosen, np.array(log_p)


def categorical_kl64(old, new):
    old, new = categorical64(old, [0] * len(old))[1], categorical64(new, [0] * len(new))[1]
    return np.array(
        [sum(np.exp(p) * (p - q) for p, q in zip(*rows, strict=True)) for rows in zip(old, new, strict=True)]
    )


def gaussian64(mean, action, std):
    return np.array(
        [
            sum(-((u - m) ** 2) / (2 * std**2) - np.log(std * np.sqrt(2 * np.pi)) for m, u in zip(*rows, strict=True))
            for rows in zip(mean, action, strict=True)
        ]
    )


def gaussian_kl64(old, new, old_std, std):
    constant = np.log(std / old_std) + old_std**2 / (2 * std**2) - 0.5
    return np.array(
        [
            sum((p - q) ** 2 / (2 * std**2) + constant for p, q in zip(*x, strict=True))
            for x in zip(old, new, strict=True)
        ]
    )


def policy_losses(ratio, advantage, kl):
    """What each member of the family maximises, one row at a time."""
    rows = list(zip(ratio, advantage, kl, strict=True))
    return {
        "clipped": surrogate64(ratio, advantage, EPS),
        "importance": sum(r * a for r, a, _ in rows) / len(rows),
        "kl_penalized": sum(r * a - BETA * d for r, a, d in rows) / len(rows),
    }


SURROGATES = {
    "clipped": lambda ratio, advantage, kl: clipped_surrogate(ratio, advantage, EPS),
    "importance": lambda ratio, advantage, kl: importance_surrogate(ratio, advantage),
    "kl_penalized": lambda ratio, advantage, kl: kl_penalized_surrogate(ratio, advantage, kl, BETA),
}


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("seed", range(3))
def test_policy_loss_of_logits(name, seed):
    """Value and gradient through the categorical distribution: the ratio, and the KL in its right direction."""
    rng = np.random.default_rng(seed)
    old, new = rng.normal(size=(2, 8, 3))
    action, advantage = rng.integers(0, 3, 8), rng.normal(size=8)
    old_log_prob, _ = categorical64(old, action)

    def loss(flat):
        pi = Categorical(flat.reshape(8, 3))
        ratio = jnp.exp(pi.log_prob(jnp.asarray(action)) - jnp.asarray(old_log_prob))
        return SURROGATES[name](ratio, jnp.asarray(advantage), Categorical(jnp.asarray(old)).kl(pi))

    def oracle(flat):
        logits = flat.reshape(8, 3)
        ratio = np.exp(categorical64(logits, action)[0] - old_log_prob)
        return policy_losses(ratio, advantage, categorical_kl64(old, logits))[name]

    assert_same_value_and_gradient(loss, oracle, new.ravel())


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("distribution", [DiagGaussian, TanhDiagGaussian])
def test_policy_loss_of_means(name, distribution):
    """The same through the Gaussians, of different widths; tanh cancels in ratio and KL."""
    rng = np.random.default_rng(3)
    old = rng.normal(size=(6, 2))
    new, action = old + 0.4 * rng.normal(size=(2, 6, 2))
    advantage, old_std, std = rng.normal(size=6), 0.9, 1.2
    old_log_prob = gaussian64(old, action, old_std)

    def loss(flat):
        pi = distribution(flat.reshape(6, 2), jnp.full((6, 2), np.log(std)))
        old_pi = distribution(jnp.asarray(old), jnp.full((6, 2), np.log(old_std)))
        ratio = jnp.exp(pi.log_prob(jnp.asarray(action)) - old_pi.log_prob(jnp.asarray(action)))
        return SURROGATES[name](ratio, jnp.asarray(advantage), old_pi.kl(pi))

    def oracle(flat):
        mean = flat.reshape(6, 2)
        ratio = np.exp(gaussian64(mean, action, std) - old_log_prob)
        return policy_losses(ratio, advantage, gaussian_kl64(old, mean, old_std, std))[name]

    assert_same_value_and_gradient(loss, oracle, new.ravel())


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        # eps = 0.2: the clipped ratio lies in [0.8, 1.2].
        pytest.param(1.5, 2.0, 2.4, 0.0, id="good-action-already-likelier: 1.2 * 2, flat"),
        pytest.param(0.5, 2.0, 1.0, 2.0, id="good-action-less-likely: 0.5 * 2, pulled back up"),
        pytest.param(1.5, -2.0, -3.0, -2.0, id="bad-action-likelier: 1.5 * -2, pushed back down"),
        pytest.param(0.5, -2.0, -1.6, 0.0, id="bad-action-already-less-likely: 0.8 * -2, flat"),
        pytest.param(1.1, 2.0, 2.2, 2.0, id="good-action-inside-the-range"),
        pytest.param(0.9, -2.0, -1.8, -2.0, id="bad-action-inside-the-range"),
        pytest.param(1.5, 0.0, 0.0, 0.0, id="no-advantage"),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, value, slope):
    """Each sign of the advantage on each side of the range."""
    found, gradient = surrogate_and_gradient(jnp.asarray([ratio]), jnp.asarray([advantage]), EPS)
    np.testing.assert_allclose(found, value, rtol=1e-6)
    np.testing.assert_allclose(gradient, [slope], rtol=1e-6)


def test_clipped_surrogate_before_the_first_step():
    """At ratio 1 it is the mean advantage, and so is its gradient: PPO starts as the policy gradient."""
    advantage = jnp.asarray([1.0, -2.0, 4.0])
    value, gradient = surrogate_and_gradient(jnp.ones(3), advantage, EPS)
    np.testing.assert_allclose(value, 1.0, rtol=1e-6)
    np.testing.assert_allclose(gradient, advantage / 3, rtol=1e-6)


def test_value_loss_and_its_gradient():
    """Half the mean square."""
    value, target = np.random.default_rng(1).normal(size=(2, 32))
    assert_same_value_and_gradient(lambda v: value_loss(v, jnp.asarray(target)), lambda v: value64(v, target), value)
    np.testing.assert_allclose(value_loss(jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, 5.0])), (4 + 9) / 4)


@pytest.mark.parametrize("eps", [0.1, 0.5, 2.0])
def test_clipped_value_loss_and_its_gradient(eps):
    """Changes of the value inside and outside the range, towards the target and away from it."""
    value, target, old_value = np.random.default_rng(2).normal(size=(3, 64))
    assert_same_value_and_gradient(
        lambda v: clipped_value_loss(v, jnp.asarray(target), jnp.asarray(old_value), eps),
        lambda v: clipped_value64(v, target, old_value, eps),
        value,
    )


@pytest.mark.parametrize(
    ("value", "target", "loss", "slope"),
    [
        # old value 0, eps 0.2: the near value lies in [-0.2, 0.2].
        pytest.param(0.5, 1.0, 0.32, 0.0, id="far-towards-the-target: (0.2 - 1)^2 / 2, flat"),
        pytest.param(0.5, -1.0, 1.125, 1.5, id="far-from-the-target: (0.5 + 1)^2 / 2, pulled back"),
        pytest.param(-0.5, -1.0, 0.32, 0.0, id="far-down-towards-the-target: (-0.2 + 1)^2 / 2, flat"),
        pytest.param(-0.5, 1.0, 1.125, -1.5, id="far-down-from-the-target: (-0.5 - 1)^2 / 2, pulled back"),
    ],
)
def test_clipped_value_loss_by_hand(value, target, loss, slope):
    """Each direction of the target on each side of the range."""
    found, gradient = value_loss_and_gradient(jnp.asarray([value]), jnp.asarray([target]), jnp.zeros(1), EPS)
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    np.testing.assert_allclose(gradient, [slope], rtol=1e-6, atol=1e-7)


def test_clipped_value_loss_inside_the_range_is_the_plain_one():
    """Value clipping is inactive until the value has moved by eps."""
    value, target = jnp.asarray([0.1, -0.1]), jnp.asarray([1.0, 2.0])
    np.testing.assert_allclose(
        clipped_value_loss(value, target, jnp.zeros(2), EPS), value_loss(value, target), rtol=1e-6
    )


@jax.jit
def standardize(x):
    """By its own moments."""
    return losses.standardize(x, merged(moments(x[None])))


def test_standardize():
    """Mean 0 and standard deviation 1, as (x - mean) / (std + 1e-8) in float64 has it."""
    x = 5 + 3 * np.random.default_rng(3).normal(size=1000)
    found = np.asarray(standardize(jnp.asarray(x, jnp.float32)), np.float64)
    np.testing.assert_allclose(found, (x - x.mean()) / (x.std() + 1e-8), rtol=1e-4, atol=1e-5)
    assert abs(found.mean()) < 1e-6
    assert abs(found.std() - 1) < 1e-5


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4, 1e7])
@pytest.mark.parametrize("offset", [0.0, 1e-3, 1.0, 1e3, 1e7])
def test_standardize_at_any_scale(offset, scale):
    """As float64 has it; a spread that float32 cannot tell from the rounding of the mean stays small."""
    x = (offset + scale * np.random.default_rng(4).normal(size=1000)).astype(np.float32)
    exact = x.astype(np.float64)
    std = max(exact.std(), 2.0**-20 * abs(exact.mean()))
    rounding = 2.0**-24 * abs(exact.mean()) / std  # of the mean
    np.testing.assert_allclose(
        standardize(jnp.asarray(x)), (exact - exact.mean()) / (std + 1e-8), rtol=1e-5, atol=1e-5 + rounding
    )


@pytest.mark.parametrize("constant", [3.0, 0.1, 1234.567, -1e7 / 3])
@pytest.mark.parametrize("size", [1, 8, 1000, 1024])
def test_standardize_a_constant(constant, size):
    """Equal advantages become exactly 0, also where the mean of equal float32 numbers is not quite that number."""
    np.testing.assert_array_equal(standardize(np.full(size, constant, np.float32)), 0.0)


def test_standardize_does_not_blow_up_rounding():
    """Advantages that differ in their last bit alone are nearly 0, and not +-1."""
    x = np.full(512, 0.1, np.float32)
    x[::2] = np.nextafter(x[::2], np.float32(1))
    assert np.abs(standardize(jnp.asarray(x))).max() < 0.1


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (clipped_surrogate, 2),
        (importance_surrogate, 2),
        (kl_penalized_surrogate, 3),
        (value_loss, 2),
        (clipped_value_loss, 3),
        (standardize, 1),
    ],
)
def test_no_dtype_is_promoted_silently(function, arguments):
    """float32 in, a float32 scalar (or vector) out, where JAX refuses mixed types."""
    rest = (EPS,) if function in (clipped_surrogate, clipped_value_loss, kl_penalized_surrogate) else ()
    with jax.numpy_dtype_promotion("strict"):
        assert jax.eval_shape(lambda *x: function(*x, *rest), *[jnp.ones(4)] * arguments).dtype == jnp.float32


@pytest.mark.parametrize(
    ("function", "rest"),
    [
        (clipped_surrogate, (EPS,)),
        (importance_surrogate, ()),
        (kl_penalized_surrogate, (jnp.ones(4), EPS)),
        (value_loss, ()),
        (clipped_value_loss, (jnp.ones(4), EPS)),
    ],
)
def test_shapes_are_checked_at_the_door(function, rest):
    """[B] against [B, 1] would broadcast to a matrix in silence."""
    with pytest.raises(AssertionError):
        function(jnp.ones(4), jnp.ones((4, 1)), *rest)
