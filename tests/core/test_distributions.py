"""Action distributions against scipy, closed forms in float64 and brute-force integration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from purejaxppo.core.distributions import Categorical, DiagGaussian, MultiCategorical, TanhDiagGaussian

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
    """Entropy of tanh(u), u ~ N(mean, std^2), by integration in float64, for any std.

    The log slope is 2 log 2 - 2 |u| - 2 log(1 + exp(-2 |u|)). scipy knows the mean of |u|; the rest is integrated on
    either side of its kink, over the part of the density where it is not nothing.
    """
    distance = stats.foldnorm.mean(abs(mean) / std, scale=std)
    left, right = max(-25.0, mean - 12 * std), min(25.0, mean + 12 * std)
    u = np.unique([0.0, *np.linspace(left, right, 8001)])
    rest = np.trapezoid(np.log1p(np.exp(-2 * np.abs(u))) * stats.norm.pdf(u, mean, std), u) if left < right else 0.0
    return stats.norm.entropy(mean, std) + 2 * (np.log(2) - distance - rest)


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


STDS = (1e-3, 0.03, 0.3, 1.0, 2.0, 5.0, 20.0, 100.0, 1e4, 1e6)
MEANS = (0.0, 0.5, -1.0, 3.0, 20.0)


def tanh_grid(dtype):
    """Every mean with every standard deviation: means, standard deviations and the distribution of one action each."""
    means, stds = (x.ravel() for x in np.meshgrid(MEANS, STDS))
    return means, stds, TanhDiagGaussian(jnp.asarray(means[:, None], dtype), jnp.asarray(np.log(stds)[:, None], dtype))


def test_tanh_entropy_by_integration():
    """Within the 1e-5 nats that the docstring promises, from hardly any noise to saturation at both bounds."""
    with jax.enable_x64(True):
        means, stds, pi = tanh_grid(jnp.float64)
        expected = [tanh_entropy64(mean, std) for mean, std in zip(means, stds, strict=True)]
        np.testing.assert_allclose(jax.jit(TanhDiagGaussian.entropy)(pi), expected, rtol=0, atol=1e-5)


def test_tanh_entropy_in_float32():
    """As good as the numbers allow: at std 1e6 the entropy is -1.6e6 nats, whose float32 neighbour is 0.125 away."""
    means, stds, pi = tanh_grid(jnp.float32)
    expected = [tanh_entropy64(mean, std) for mean, std in zip(means, stds, strict=True)]
    np.testing.assert_allclose(jax.jit(TanhDiagGaussian.entropy)(pi), expected, rtol=1e-6, atol=2e-5)


def test_the_closed_form_agrees_with_the_definition_of_entropy():
    """The oracle above is no rearrangement that could be wrong: -E[log p] by brute force, where that can be done."""
    for mean, std in ((0.0, 1.0), (-1.0, 0.3), (3.0, 5.0)):
        u = mean + std * np.linspace(-12, 12, 40_001)
        p = stats.norm.pdf(u, mean, std)
        entropy = np.trapezoid(-p * (stats.norm.logpdf(u, mean, std) - log_slope64(u)), u)
        assert tanh_entropy64(mean, std) == pytest.approx(entropy, abs=5e-6)


@pytest.mark.parametrize("std", [0.2, 1.0, 2.0])
def test_tanh_entropy_by_monte_carlo(std):
    """-E[log_prob] over its own samples, several action dimensions at once."""
    mean = jnp.asarray([-2.0, 0.0, 0.5])
    pi = TanhDiagGaussian(mean, jnp.full(3, np.log(std)))
    many = TanhDiagGaussian(*(jnp.broadcast_to(x, (50_000, 3)) for x in pi))
    surprise = -np.asarray(many.log_prob(many.sample(many.noise(jax.random.key(0)))), np.float64)
    error = surprise.std() / np.sqrt(len(surprise))
    assert abs(surprise.mean() - float(pi.entropy())) < 4.5 * error + 3e-3


def test_tanh_entropy_gradient():
    """With respect to mean and log_std, in float32, against differences of the integral, for every mean and std."""
    means, stds, pi = tanh_grid(jnp.float32)
    by_mean, by_log_std = (np.ravel(x) for x in jax.jit(jax.grad(lambda pi: pi.entropy().sum()))(pi))
    for i, (mean, std) in enumerate(zip(means, stds, strict=True)):
        step = 1e-3 * min(1.0, std)
        shifted = [tanh_entropy64(mean + d, std) for d in (step, -step)]
        scaled = [tanh_entropy64(mean, std * np.exp(d)) for d in (1e-3, -1e-3)]
        assert by_mean[i] == pytest.approx((shifted[0] - shifted[1]) / (2 * step), abs=2e-4), (mean, std)
        assert by_log_std[i] == pytest.approx((scaled[0] - scaled[1]) / 2e-3, rel=1e-4, abs=2e-4), (mean, std)


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
    action = many_p.sample(many_p.noise(jax.random.key(1)))
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


# --- masked actions ---------------------------------------------------------------------------------------------------

OPEN = np.array([0, 2])  # of three actions, of which the middle one is masked


def masked(logits):
    """Three actions of which two are possible, with these logits [2]."""
    return Categorical(jnp.full(3, -jnp.inf).at[OPEN].set(logits))


def test_a_masked_action_adds_nothing():
    """Two equal actions beside it: ln 2 nats, and no distance from itself."""
    entropy, kl, log_prob = jax.jit(lambda pi: (pi.entropy(), pi.kl(pi), pi.log_prob(jnp.arange(3))))(
        masked(np.zeros(2))
    )
    assert entropy == pytest.approx(np.log(2))
    assert kl == 0
    np.testing.assert_allclose(log_prob, [-np.log(2), -np.inf, -np.log(2)], rtol=1e-6)


def test_a_masked_action_is_as_good_as_absent():
    """Entropy, KL, log_prob and their first and second derivatives are those of the two actions that are left."""

    def measures(make):
        def f(p, q):
            pi, last = make(p), jnp.array(make(p).logits.size - 1)
            return jnp.stack([pi.entropy(), pi.kl(make(q)), pi.log_prob(last)])

        return jax.jit(lambda p, q: (f(p, q), jax.jacobian(f, (0, 1))(p, q), jax.hessian(f, (0, 1))(p, q)))

    p, q = jnp.array([0.3, -1.0]), jnp.array([2.0, 0.5])
    found, expected = measures(masked)(p, q), measures(Categorical)(p, q)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, expected)


def test_derivatives_at_a_masked_logit_are_0():
    """Also where the mask is a logit of its own, and not put over one."""
    pi, other = masked(jnp.array([0.3, -1.0])), masked(jnp.array([2.0, 0.5]))

    def f(logits):
        pi = Categorical(logits)
        return pi.entropy() + pi.kl(other) + other.kl(pi) + pi.log_prob(jnp.array(2))

    gradient, hessian = jax.jit(lambda x: (jax.grad(f)(x), jax.hessian(f)(x)))(pi.logits)
    assert finite((gradient, hessian))
    assert gradient[1] == 0
    assert not np.any(hessian[1])
    assert not np.any(hessian[:, 1])
    assert np.all(gradient[OPEN] != 0)


def test_kl_is_infinite_where_the_other_masks_what_may_happen():
    """Not the other way round: p never does what it masks."""
    half, free = masked(jnp.zeros(2)), Categorical(jnp.zeros(3))
    assert free.kl(half) == np.inf
    assert half.kl(free) == pytest.approx(np.log(1.5))


def test_a_masked_action_is_never_drawn():
    """Whatever the others' logits, and be there one only."""
    logits = jnp.array([[0.0, -jnp.inf, 0.0], [-1e6, -jnp.inf, 1e6], [-jnp.inf, -jnp.inf, -50.0]])
    pi = Categorical(jnp.broadcast_to(logits[:, None], (3, 10_000, 3)))
    assert not np.any(pi.sample(pi.noise(jax.random.key(9))) == 1)
    assert Categorical(logits).mode().tolist() == [0, 2, 2]
    assert Categorical(logits).entropy().tolist() == [pytest.approx(np.log(2)), 0, 0]


# --- several choices at once ------------------------------------------------------------------------------------------

SIZES = (3, 1, 4)
JOINT = np.array(list(itertools.product(*map(range, SIZES))))  # every joint action [12, F]


def make_factors(seed, scale=1.0, shut=()):
    """A distribution over SIZES with random logits [*BATCH, n], and -inf for the pairs (factor, choice) in `shut`."""
    rng = np.random.default_rng(seed)
    logits = [scale * rng.normal(size=(*BATCH, n)) for n in SIZES]
    for factor, choice in shut:
        logits[factor][..., choice] = -np.inf
    return MultiCategorical(tuple(Categorical(jnp.asarray(x, jnp.float32)) for x in logits))


def joint64(pi):
    """The probabilities of JOINT [..., 12], each a product, in float64."""
    parts = [np.exp(log_softmax64(np.asarray(factor.logits, np.float64))) for factor in pi.factors]
    return np.prod([part[..., JOINT[:, i]] for i, part in enumerate(parts)], axis=0)


SHUT = {"free": (), "masked": ((0, 1), (2, 0), (2, 3))}


@pytest.mark.parametrize("shut", SHUT.values(), ids=SHUT)
def test_factors_against_all_joint_actions(shut):
    """log_prob of each; entropy and KL as sums over all of them, where 0 log 0 = 0; the mode is the likeliest."""
    p, q = make_factors(20, 2.0, shut), make_factors(21, 2.0, shut)
    joint, other = joint64(p), joint64(q)
    np.testing.assert_allclose(joint.sum(-1), 1.0, rtol=1e-12)
    with np.errstate(divide="ignore"):
        for i, action in enumerate(JOINT):
            found = p.log_prob(jnp.broadcast_to(jnp.asarray(action, jnp.int32), (*BATCH, len(SIZES))))
            assert found.shape == BATCH
            np.testing.assert_allclose(found, np.log(joint[..., i]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(p.entropy(), stats.entropy(joint, axis=-1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(p.kl(q), stats.entropy(joint, other, axis=-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(p.mode(), JOINT[joint.argmax(-1)])


def test_factors_are_drawn_independently_with_their_probabilities():
    """chi-square of 50 000 joint draws, int32; what is masked is never drawn."""
    pi = jax.tree.map(lambda x: jnp.broadcast_to(x[0, 0], (50_000, x.shape[-1])), make_factors(22, 1.0, SHUT["masked"]))
    action = np.asarray(pi.sample(pi.noise(jax.random.key(10))))
    assert action.shape == (50_000, len(SIZES))
    assert action.dtype == np.int32
    number = np.bincount(np.ravel_multi_index(action.T, SIZES), minlength=len(JOINT))
    expected = 50_000 * joint64(pi)[0]
    assert not number[expected == 0].any()
    assert stats.chisquare(number[expected > 0], expected[expected > 0]).pvalue > 1e-3


def test_a_masked_choice_of_a_factor_costs_nothing():
    """Entropy and KL are those of the choices that are left, and every gradient is finite, 0 at the mask."""
    p, q = (make_factors(seed, 1.0, SHUT["masked"]) for seed in (23, 24))
    left = [[0, 2], [0], [1, 2]]

    def smaller(pi):
        return MultiCategorical(
            tuple(Categorical(f.logits[..., jnp.array(i)]) for f, i in zip(pi.factors, left, strict=True))
        )

    np.testing.assert_allclose(p.entropy(), smaller(p).entropy(), rtol=1e-6)
    np.testing.assert_allclose(p.kl(q), smaller(p).kl(smaller(q)), rtol=1e-5, atol=1e-6)
    value, gradient = everything_and_gradient(p, q, p.sample(p.noise(jax.random.key(11))))
    assert finite((value, gradient))
    for pi in gradient:
        assert not any(np.any(pi.factors[factor].logits[..., choice]) for factor, choice in SHUT["masked"])
    uniform = MultiCategorical(tuple(Categorical(jnp.zeros(n)) for n in SIZES))
    assert uniform.entropy() == pytest.approx(np.log(len(JOINT)))


def test_one_factor_is_a_categorical():
    """Bit for bit, noise included."""
    pi, other = make(Categorical, 25), make(Categorical, 26)
    one, another = MultiCategorical((pi,)), MultiCategorical((other,))
    noise = pi.noise(jax.random.key(12))
    np.testing.assert_array_equal(one.noise(jax.random.key(12)), noise)
    action = pi.sample(noise)
    np.testing.assert_array_equal(one.sample(noise)[..., 0], action)
    np.testing.assert_array_equal(one.log_prob(action[..., None]), pi.log_prob(action))
    np.testing.assert_array_equal(one.entropy(), pi.entropy())
    np.testing.assert_array_equal(one.kl(another), pi.kl(other))


def test_factors_under_jit_vmap_and_strict_types():
    pi, other = make_factors(27), make_factors(28)
    action = pi.sample(pi.noise(jax.random.key(13)))
    compiled = jax.jit(calls)(pi, other, action)
    for a, b in zip(calls(pi, other, action), compiled, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    mapped = jax.jit(jax.vmap(jax.vmap(calls)))(pi, other, action)
    for a, b in zip(mapped[:4], compiled[:4], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    with jax.numpy_dtype_promotion("strict"):
        results = jax.eval_shape(calls, pi, pi, action)
    assert [x.dtype for x in results[:3]] == [jnp.float32] * 3
    assert pi.sizes == SIZES
    assert pi.logits.shape == (*BATCH, sum(SIZES))


# --- sample and mode --------------------------------------------------------------------------------------------------


def test_categorical_samples_follow_the_probabilities():
    """chi-square of 50 000 draws; the draws are integers."""
    probabilities = np.array([0.1, 0.2, 0.3, 0.4])
    pi = Categorical(jnp.broadcast_to(jnp.log(jnp.asarray(probabilities)), (50_000, 4)))
    action = pi.sample(pi.noise(jax.random.key(2)))
    assert action.shape == (50_000,)
    assert action.dtype == jnp.int32
    assert stats.chisquare(np.bincount(action, minlength=4), 50_000 * probabilities).pvalue > 1e-3


@pytest.mark.parametrize("kind", GAUSSIANS)
def test_gaussian_samples_are_normal_before_tanh(kind):
    """Kolmogorov-Smirnov per dimension, and no correlation between dimensions."""
    mean, std = np.array([-3.0, 0.0, 5.0]), np.array([0.1, 1.0, 4.0])
    pi = kind(*(jnp.broadcast_to(jnp.asarray(x, jnp.float32), (50_000, 3)) for x in (mean, np.log(std))))
    action = np.asarray(pi.sample(pi.noise(jax.random.key(3))))
    assert action.shape == (50_000, 3)
    for i in range(3):
        assert stats.kstest(action[:, i], stats.norm(mean[i], std[i]).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(action.T) - np.eye(3)).max() < 0.02


def test_samples_of_one_key_agree_and_of_two_keys_differ():
    """Randomness comes from the key alone."""
    for kind in (Categorical, *GAUSSIANS):
        pi = make(kind, 13)
        np.testing.assert_array_equal(pi.sample(pi.noise(jax.random.key(4))), pi.sample(pi.noise(jax.random.key(4))))
        assert np.any(np.asarray(pi.sample(pi.noise(jax.random.key(4))) != pi.sample(pi.noise(jax.random.key(5)))))


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
    return pi.log_prob(action), pi.entropy(), pi.kl(other), pi.mode(), pi.sample(pi.noise(jax.random.key(6)))


@pytest.mark.parametrize("kind", [Categorical, *GAUSSIANS])
def test_jit_and_vmap_change_nothing(kind):
    """Compiled and eager agree; mapping over the batch axes is a loop."""
    pi, other = make(kind, 16), make(kind, 17)
    action = pi.sample(pi.noise(jax.random.key(7)))
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
    action = pi.sample(pi.noise(jax.random.key(8)))
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
