"""Action distributions against scipy, closed forms in float64 and brute-force integration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from purejaxppo.distributions import Categorical, DiagGaussian, TanhDiagGaussian

GAUSSIANS = [DiagGaussian, TanhDiagGaussian]
BATCH = (5, 3)  # two batch axes in front of the actions' one
ACTIONS = 4


def make(kind, seed, scale=1.0):
    """A distribution of the given kind with random parameters [*BATCH, ACTIONS]."""
    rng = np.random.default_rng(seed)
    draw = [jnp.asarray(scale * rng.normal(size=(*BATCH, ACTIONS)), jnp.float32) for _ in kind._fields]
    return kind(*draw)


def in64(pi):
    """The parameters as float64 NumPy arrays."""
    return [np.asarray(x, np.float64) for x in pi]


def log_softmax64(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def log_slope64(u):
    """log(1 - tanh(u)^2) = -2 log cosh(u), in a form that does not saturate."""
    return -2 * (np.abs(u) + np.log1p(np.exp(-2 * np.abs(u))) - np.log(2))


def tanh_entropy64(mean, std):
    """Entropy of tanh(u), u ~ N(mean, std^2): brute-force integration of -p(u) (log p(u) - log slope(u))."""
    u = mean + std * np.linspace(-12, 12, 4001)
    p = stats.norm.pdf(u, mean, std)
    return np.trapezoid(-p * (stats.norm.logpdf(u, mean, std) - log_slope64(u)), u)


# --- log_prob ---------------------------------------------------------------------------------------------------------


def test_categorical_log_prob():
    """log softmax at the chosen action, for every action."""
    pi = make(Categorical, 0, scale=3.0)
    expected = log_softmax64(*in64(pi))
    for action in range(ACTIONS):
        found = pi.log_prob(jnp.full(BATCH, action))
        assert found.shape == BATCH
        np.testing.assert_allclose(found, expected[..., action], rtol=1e-5, atol=1e-5)


def test_categorical_log_prob_ignores_a_shift_of_the_logits():
    """Logits are defined up to a constant, also a large one."""
    pi, action = make(Categorical, 0), jnp.ones(BATCH, int)
    np.testing.assert_allclose(Categorical(pi.logits + 500).log_prob(action), pi.log_prob(action), atol=1e-4)


def test_gaussian_log_prob():
    """Sum of scipy's normal log densities over the action dimensions."""
    pi = make(DiagGaussian, 1)
    mean, log_std = in64(pi)
    action = mean + np.exp(log_std) * np.random.default_rng(2).normal(size=mean.shape)
    expected = stats.norm.logpdf(action, mean, np.exp(log_std)).sum(-1)
    found = pi.log_prob(jnp.asarray(action, jnp.float32))
    assert found.shape == BATCH
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_tanh_log_prob():
    """Normal density of u over the slope of tanh, far into saturation as well."""
    pi = make(TanhDiagGaussian, 3)
    mean, log_std = in64(pi)
    for scale in (0.1, 1.0, 30.0):
        u = scale * np.random.default_rng(4).normal(size=mean.shape)
        expected = (stats.norm.logpdf(u, mean, np.exp(log_std)) - log_slope64(u)).sum(-1)
        np.testing.assert_allclose(pi.log_prob(jnp.asarray(u, jnp.float32)), expected, rtol=2e-5, atol=1e-4)


def test_tanh_log_prob_is_the_density_that_scipy_transforms():
    """d/dx of scipy's CDF of atanh(x), by central differences: no formula for the Jacobian on this side."""
    mean, std = 0.3, 0.8
    x = np.linspace(-0.9, 0.9, 19)
    step = 1e-6
    cdf = [stats.norm.cdf(np.arctanh(x + d), mean, std) for d in (-step, step)]
    pi = TanhDiagGaussian(jnp.full((19, 1), mean), jnp.full((19, 1), np.log(std)))
    found = jnp.exp(pi.log_prob(jnp.asarray(np.arctanh(x), jnp.float32)[:, None]))
    np.testing.assert_allclose(found, (cdf[1] - cdf[0]) / (2 * step), rtol=1e-4)


@pytest.mark.parametrize("mean", [-1.5, 0.0, 0.7])
@pytest.mark.parametrize("std", [0.1, 0.5, 1.0, 2.0])
def test_tanh_density_integrates_to_one(mean, std):
    """The density over the bounded action x in (-1, 1), by the trapezoidal rule in x itself."""
    u = mean + std * np.linspace(-9, 9, 20_001)
    with jax.enable_x64(True):
        pi = TanhDiagGaussian(jnp.full((1, 1), mean), jnp.full((1, 1), np.log(std)))
        density = np.exp(np.asarray(pi.log_prob(jnp.asarray(u)[:, None])))
    inside = np.abs(u) < 17  # beyond, tanh(u) is 1 in float64; less than 1e-12 of the mass lies there
    assert np.trapezoid(density[inside], np.tanh(u[inside])) == pytest.approx(1.0, abs=1e-5)


# --- entropy ----------------------------------------------------------------------------------------------------------


def test_categorical_entropy():
    """scipy's entropy of the softmax."""
    pi = make(Categorical, 5, scale=2.0)
    expected = stats.entropy(np.exp(log_softmax64(*in64(pi))), axis=-1)
    np.testing.assert_allclose(pi.entropy(), expected, rtol=1e-5, atol=1e-6)


def test_categorical_entropy_limits():
    """log A where uniform, 0 where certain."""
    certain = jnp.asarray([0.0, 200.0, 0.0])
    np.testing.assert_allclose(Categorical(jnp.zeros(3)).entropy(), np.log(3), rtol=1e-6)
    np.testing.assert_allclose(Categorical(certain).entropy(), 0.0, atol=1e-6)


def test_gaussian_entropy():
    """Sum of scipy's normal entropies."""
    pi = make(DiagGaussian, 6)
    expected = stats.norm.entropy(scale=np.exp(in64(pi)[1])).sum(-1)
    np.testing.assert_allclose(pi.entropy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("std", [0.05, 0.3, 1.0, 1.5, 2.0])
def test_tanh_entropy_by_integration(std):
    """Within the 1e-3 nats that the docstring promises up to std 2, for means from 0 to deep saturation."""
    means = np.linspace(-6, 6, 49)
    pi = TanhDiagGaussian(jnp.asarray(means, jnp.float32)[:, None], jnp.full((49, 1), np.log(std), jnp.float32))
    expected = [tanh_entropy64(mean, std) for mean in means]
    np.testing.assert_allclose(pi.entropy(), expected, atol=1e-3)


@pytest.mark.parametrize("std", [0.2, 1.0, 2.0])
def test_tanh_entropy_by_monte_carlo(std):
    """-E[log_prob] over its own samples, several action dimensions at once."""
    mean = jnp.asarray([-2.0, 0.0, 0.5])
    pi = TanhDiagGaussian(mean, jnp.full(3, np.log(std)))
    many = TanhDiagGaussian(*(jnp.broadcast_to(x, (50_000, 3)) for x in pi))
    surprise = -np.asarray(many.log_prob(many.sample(jax.random.key(0))), np.float64)
    error = surprise.std() / np.sqrt(len(surprise))
    assert abs(surprise.mean() - float(pi.entropy())) < 4.5 * error + 3e-3


def test_tanh_entropy_gradient():
    """With respect to mean and log_std, against differences of the brute-force integral."""
    mean, log_std, step = 0.6, np.log(0.7), 1e-4
    found = jax.grad(lambda p: TanhDiagGaussian(*p).entropy())((jnp.asarray([mean]), jnp.asarray([log_std])))
    up_mean, down_mean = (tanh_entropy64(mean + d, np.exp(log_std)) for d in (step, -step))
    up_std, down_std = (tanh_entropy64(mean, np.exp(log_std + d)) for d in (step, -step))
    np.testing.assert_allclose(found[0][0], (up_mean - down_mean) / (2 * step), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found[1][0], (up_std - down_std) / (2 * step), rtol=1e-3, atol=1e-4)


# --- kl ---------------------------------------------------------------------------------------------------------------


def test_categorical_kl():
    """scipy's relative entropy, in the direction KL(self || other)."""
    p, q = make(Categorical, 7, scale=2.0), make(Categorical, 8, scale=2.0)
    expected = stats.entropy(np.exp(log_softmax64(*in64(p))), np.exp(log_softmax64(*in64(q))), axis=-1)
    np.testing.assert_allclose(p.kl(q), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", GAUSSIANS)
def test_gaussian_kl(kind):
    """float64 closed form; tanh does not change it."""
    p, q = make(kind, 9, scale=0.7), make(kind, 10, scale=0.7)
    (mean_p, log_p), (mean_q, log_q) = in64(p), in64(q)
    var_p, var_q = np.exp(2 * log_p), np.exp(2 * log_q)
    expected = (0.5 * np.log(var_q / var_p) + (var_p + (mean_p - mean_q) ** 2) / (2 * var_q) - 0.5).sum(-1)
    np.testing.assert_allclose(p.kl(q), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Categorical, *GAUSSIANS])
def test_kl_by_monte_carlo(kind):
    """E_p[log p - log q] over samples of p: a formula for the wrong direction or the wrong density fails."""
    p, q = (jax.tree.map(lambda x: x[0, 0], make(kind, seed, scale=0.6)) for seed in (11, 12))
    many_p, many_q = (kind(*(jnp.broadcast_to(x, (50_000, ACTIONS)) for x in pi)) for pi in (p, q))
    action = many_p.sample(jax.random.key(1))
    gap = np.asarray(many_p.log_prob(action) - many_q.log_prob(action), np.float64)
    assert abs(gap.mean() - float(p.kl(q))) < 4.5 * gap.std() / np.sqrt(len(gap))


@pytest.mark.parametrize("kind", [Categorical, *GAUSSIANS])
@given(seeds=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), scale=st.floats(0.01, 2.0))
def test_kl_is_not_negative_and_zero_only_for_equals(kind, seeds, scale):
    """KL(p || p) is 0; KL(p || q) is not negative, and positive where p and q differ noticeably."""
    p, q = make(kind, seeds[0], scale), make(kind, seeds[1], scale)
    np.testing.assert_allclose(p.kl(p), 0.0, atol=1e-6)
    kl = np.asarray(p.kl(q))
    assert np.all(kl >= -1e-6)
    if seeds[0] != seeds[1] and scale > 0.1:
        assert np.all(kl > 0)


# --- sample and mode --------------------------------------------------------------------------------------------------


def test_categorical_samples_follow_the_probabilities():
    """chi-square of 50 000 draws; the draws are integers."""
    probabilities = np.array([0.1, 0.2, 0.3, 0.4])
    pi = Categorical(jnp.broadcast_to(jnp.log(jnp.asarray(probabilities)), (50_000, 4)))
    action = pi.sample(jax.random.key(2))
    assert action.shape == (50_000,)
    assert action.dtype == jnp.int32
    assert stats.chisquare(np.bincount(action, minlength=4), 50_000 * probabilities).pvalue > 1e-3


@pytest.mark.parametrize("kind", GAUSSIANS)
def test_gaussian_samples_are_normal_before_tanh(kind):
    """Kolmogorov-Smirnov per dimension, and no correlation between dimensions."""
    mean, std = np.array([-3.0, 0.0, 5.0]), np.array([0.1, 1.0, 4.0])
    pi = kind(*(jnp.broadcast_to(jnp.asarray(x, jnp.float32), (50_000, 3)) for x in (mean, np.log(std))))
    action = np.asarray(pi.sample(jax.random.key(3)))
    assert action.shape == (50_000, 3)
    for i in range(3):
        assert stats.kstest(action[:, i], stats.norm(mean[i], std[i]).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(action.T) - np.eye(3)).max() < 0.02


def test_samples_of_one_key_agree_and_of_two_keys_differ():
    """Randomness comes from the key alone."""
    for kind in (Categorical, *GAUSSIANS):
        pi = make(kind, 13)
        np.testing.assert_array_equal(pi.sample(jax.random.key(4)), pi.sample(jax.random.key(4)))
        assert np.any(np.asarray(pi.sample(jax.random.key(4)) != pi.sample(jax.random.key(5))))


def test_categorical_mode():
    """The most probable action."""
    pi = make(Categorical, 14)
    np.testing.assert_array_equal(pi.mode(), in64(pi)[0].argmax(-1))


@pytest.mark.parametrize("kind", GAUSSIANS)
def test_gaussian_mode(kind):
    """The mean of the normal, which no other point beats in its density."""
    pi = make(kind, 15)
    np.testing.assert_array_equal(pi.mode(), pi.mean)
    nearby = pi.mode() + 0.01
    gaussian = DiagGaussian(pi.mean, pi.log_std)
    assert np.all(np.asarray(gaussian.log_prob(pi.mode()) > gaussian.log_prob(nearby)))


# --- transformations --------------------------------------------------------------------------------------------------


def calls(pi, other, action):
    """Everything a distribution can say, as one pytree."""
    return pi.log_prob(action), pi.entropy(), pi.kl(other), pi.mode(), pi.sample(jax.random.key(6))


@pytest.mark.parametrize("kind", [Categorical, *GAUSSIANS])
def test_jit_and_vmap_change_nothing(kind):
    """Compiled and eager agree; mapping over the batch axes is a loop."""
    pi, other = make(kind, 16), make(kind, 17)
    action = pi.sample(jax.random.key(7))
    compiled = jax.jit(calls)(pi, other, action)
    for a, b in zip(calls(pi, other, action), compiled, strict=True):
        assert a.shape[:2] == BATCH
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    mapped = jax.jit(jax.vmap(jax.vmap(calls)))(pi, other, action)
    row = jax.jit(calls)(*jax.tree.map(lambda x: x[2, 1], (pi, other, action)))
    for whole, deterministic in zip(mapped[:4], compiled[:4], strict=True):
        np.testing.assert_allclose(whole, deterministic, rtol=1e-5, atol=1e-5)
    for whole, one in zip(mapped, row, strict=True):
        np.testing.assert_allclose(whole[2, 1], one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [Categorical, *GAUSSIANS])
def test_no_dtype_is_promoted_silently(kind):
    """All methods work, in float32, where JAX refuses mixed types."""
    pi = make(kind, 18)
    action = pi.sample(jax.random.key(8))
    with jax.numpy_dtype_promotion("strict"):
        results = jax.eval_shape(calls, pi, pi, action)
    for name, result in zip(("log_prob", "entropy", "kl"), results, strict=False):
        assert result.dtype == jnp.float32, name


def finite(tree):
    return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


@jax.jit
def everything_and_gradient(pi, other, action):
    return jax.value_and_grad(everything, (0, 1))(pi, other, action)


def everything(pi, other, action):
    return pi.log_prob(action).sum() + pi.entropy().sum() + pi.kl(other).sum()


def test_categorical_gradients_are_finite_at_extremes():
    """Certain, impossible and equally absurd actions."""
    logits = jnp.asarray([[1e4, -1e4, 0.0], [-1e6, 1e6, 1e6], [1e-30, 0.0, -1e-30], [80.0, -80.0, 0.0]])
    for action in range(3):
        chosen = jnp.full(4, action)
        assert finite(everything_and_gradient(Categorical(logits), Categorical(-logits), chosen))


@pytest.mark.parametrize("kind", GAUSSIANS)
def test_gaussian_gradients_are_finite_at_extremes(kind):
    """Far-away means and actions, wide and narrow spreads; for tanh that is full saturation on both sides."""
    mean = jnp.asarray([[1e3, -1e3], [0.0, 1e-30], [-100.0, 100.0]])
    log_std = jnp.asarray([[8.0, 8.0], [-8.0, -8.0], [0.0, -3.0]])
    for action in (mean, jnp.zeros_like(mean), mean + 100.0, mean - 1e3):
        pi, other = kind(mean, log_std), kind(mean + 1.0, log_std + 1.0)
        assert finite(everything_and_gradient(pi, other, action))
