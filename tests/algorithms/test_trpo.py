"""TRPO's parts against dense linear algebra in float64, and its promises: inside the region, no worse, or no step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_once import QUICKLY
from hand_batch import CONFIG, HP, make_batch, make_policy, make_trajectory
from jax.flatten_util import ravel_pytree

from purejaxppo.algorithms.gradient_steps import standardize_batch
from purejaxppo.algorithms.trpo import conjugate_gradient, line_search, policy_step, trpo
from purejaxppo.config import Hyperparams
from purejaxppo.core.losses import importance_surrogate
from purejaxppo.core.shards import Shards

TRPO = dataclasses.replace(CONFIG, algorithm="trpo", num_epochs=1)
POLICY, PARAMS = make_policy()
ROWS = 32


@functools.cache
def batch_of(seed):
    batch = make_batch(POLICY, PARAMS, seed, rows=ROWS // 4)
    return batch._replace(advantage=standardize_batch(Shards(), batch.advantage))


@functools.cache
def step_program():
    def run(hp, batch):
        return policy_step(TRPO, POLICY, hp, PARAMS, batch, Shards())

    return jax.jit(run, compiler_options=QUICKLY)


def step(batch, **options):
    hp = Hyperparams(**{"target_kl": 0.01, "ent_coef": 0.0, **options})
    return step_program()(jax.tree.map(jnp.float32, hp), batch)


@functools.cache
def policy_program(policy):
    """(params, batch) -> the policy at the batch's observations, and its log-probabilities of the batch's actions."""

    def run(params, batch):
        pi, _ = policy.evaluate(params, (), batch.obs, batch.start)
        return pi, pi.log_prob(batch.action)

    return jax.jit(run, compiler_options=QUICKLY)


def same_bits(a, b):
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


# --- conjugate gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5, 12])
@pytest.mark.parametrize("seed", range(3))
def test_conjugate_gradient_solves(size, seed):
    """Random symmetric positive definite matrices, in as many iterations as there are unknowns."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    a, b = root @ root.T + np.eye(size), rng.normal(size=size)
    with jax.enable_x64(True):
        x = conjugate_gradient(lambda v: jnp.asarray(a) @ v, jnp.asarray(b), 2 * size)
        assert x.dtype == jnp.float64
    # It rests at a residual of 1e-6 of b; the smallest eigenvalue is 1.
    np.testing.assert_allclose(x, np.linalg.solve(a, b), atol=2e-6 * np.linalg.norm(b))


def test_conjugate_gradient_by_hand():
    """diag(1, 2, 4) x = (1, 1, 1); the first iterate is b (b b) / (b A b) = 3/7 b."""
    diagonal, b = jnp.asarray([1.0, 2.0, 4.0]), jnp.ones(3)
    np.testing.assert_allclose(conjugate_gradient(lambda v: diagonal * v, b, 1), [3 / 7] * 3, rtol=1e-6)
    np.testing.assert_allclose(conjugate_gradient(lambda v: diagonal * v, b, 3), [1, 0.5, 0.25], rtol=1e-5)


@pytest.mark.parametrize("iterations", [1, 50])
def test_conjugate_gradient_of_nothing_and_beyond_the_solution(iterations):
    """b = 0 gives 0, not 0 / 0; after the solution is found, further iterations leave it."""
    np.testing.assert_array_equal(conjugate_gradient(lambda v: 2.0 * v, jnp.zeros(4), iterations), 0.0)
    np.testing.assert_allclose(conjugate_gradient(lambda v: 2.0 * v, jnp.arange(4.0), iterations), [0, 0.5, 1, 1.5])


# --- line search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "steps", "found"),
    [(2.0, 4, 1.0), (1.0, 4, 1.0), (0.99, 4, 0.5), (0.3, 4, 0.25), (0.125, 4, 0.125), (0.1, 4, 0.0), (0.9, 1, 0.0)],
)
def test_line_search_takes_the_largest_acceptable_fraction(limit, steps, found):
    assert line_search(lambda fraction: fraction <= limit, steps) == found


def test_line_search_with_a_gap():
    """The larger of two acceptable fractions, whatever lies between; and not NaN comparisons either."""
    assert line_search(lambda fraction: (fraction == 0.5) | (fraction == 0.125), 5) == 0.5
    assert line_search(lambda fraction: jnp.nan * fraction < 1.0, 5) == 0.0


# --- the policy's step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_direction_and_length_are_those_of_dense_linear_algebra(kind):
    """float64: (F + damping) x = g solved directly, F being the Hessian of the mean KL, made by forward over forward.

    The target is small enough for the whole step to be accepted.
    """
    target_kl, damping, ent_coef = 1e-8, 0.1, 0.02
    policy, params = make_policy(kind)
    batch = make_batch(policy, params, rows=ROWS // 4)
    with jax.enable_x64(True):
        params, batch = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64 if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype),
            (params, batch),
        )
        pi, log_prob = policy_program(policy)(params, batch)
        batch = batch._replace(pi=pi, log_prob=log_prob)
        old, unravel = ravel_pytree(params)

        def kl(flat):
            return jnp.mean(batch.pi.kl(policy.evaluate(unravel(flat), (), batch.obs, batch.start)[0]))

        def objective(flat):
            new, _ = policy.evaluate(unravel(flat), (), batch.obs, batch.start)
            ratio = jnp.exp(new.log_prob(batch.action) - batch.log_prob)
            return importance_surrogate(ratio, batch.advantage) + ent_coef * jnp.mean(new.entropy())

        second_derivative = jax.jit(jax.jacfwd(jax.jacfwd(kl)), compiler_options=QUICKLY)
        fisher = np.asarray(second_derivative(old)) + damping * np.eye(old.size)
        gradient = jax.jit(jax.grad(objective), compiler_options=QUICKLY)
        direction = np.linalg.solve(fisher, np.asarray(gradient(old)))
        length = np.sqrt(2 * target_kl / (direction @ fisher @ direction))
        config = dataclasses.replace(TRPO, cg_iterations=60)
        hp = Hyperparams(target_kl=target_kl, cg_damping=damping, ent_coef=ent_coef)
        step = jax.jit(functools.partial(policy_step, config, policy, hp, shards=Shards()), compiler_options=QUICKLY)
        new, metrics = step(params, batch)
        moved = np.asarray(ravel_pytree(new)[0] - old)
        assert metrics["step_fraction"] == 1
        np.testing.assert_allclose(moved, length * direction, atol=1e-4 * np.abs(length * direction).max())
        assert 0.5 * target_kl < jax.jit(kl, compiler_options=QUICKLY)(ravel_pytree(new)[0]) <= target_kl


@pytest.mark.parametrize("target_kl", [1e-4, 1e-2, 0.5, 5.0])
def test_step_stays_inside_the_region_and_is_no_worse(target_kl):
    """Over several batches, measured from outside; the longer ones have to be shortened."""
    fractions = []
    for seed in range(6):
        batch = batch_of(seed)
        params, metrics = step(batch, target_kl=target_kl, cg_damping=1e-3)
        pi, log_prob = policy_program(POLICY)(params, batch)
        ratio = np.exp(np.asarray(log_prob - batch.log_prob, np.float64))
        surrogate = (ratio * np.asarray(batch.advantage)).mean()
        assert float(jnp.mean(batch.pi.kl(pi))) <= target_kl * (1 + 1e-3)
        assert surrogate >= np.asarray(batch.advantage, np.float64).mean() - 1e-6
        assert metrics["loss/policy"] == pytest.approx(-surrogate, rel=1e-4, abs=1e-6)
        assert metrics["ratio/first_minibatch_deviation"] < 1e-6
        fractions.append(float(metrics["step_fraction"]))
    assert set(fractions) <= {0.5**i for i in range(10)}  # 0 is none of them: a step was taken
    if target_kl == 5.0:
        assert min(fractions) < 1


def test_no_target_is_the_default_one():
    default = dataclasses.replace(Hyperparams(ent_coef=0.0), target_kl=None)
    step_by_default = functools.partial(policy_step, TRPO, POLICY, default, PARAMS, shards=Shards())
    params, _ = jax.jit(step_by_default, compiler_options=QUICKLY)(batch_of(0))
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(step(batch_of(0))[0]), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_entropy_bonus_is_part_of_the_objective():
    """With a large one the policy becomes more random, and the surrogate does not matter."""
    batch = batch_of(0)
    before = float(jnp.mean(batch.pi.entropy()))
    assert step(batch, ent_coef=100.0)[1]["entropy"] > before + 0.01


def test_no_step_where_no_length_is_acceptable():
    """A policy that is outside the region before it moves stays as it is, bit by bit."""
    batch = batch_of(0)
    elsewhere = batch._replace(pi=batch.pi._replace(logits=-batch.pi.logits))
    params, metrics = step(elsewhere, target_kl=1e-6)
    assert same_bits(params, PARAMS)
    assert metrics["step_fraction"] == 0


@pytest.mark.parametrize("seed", range(2))
def test_a_target_below_float32_moves_nothing_that_float32_can_tell(seed):
    """A mean KL of 1e-14 is rounding error, which may be negative: a step of a few last bits can pass."""
    params, metrics = step(batch_of(seed), target_kl=1e-14)
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)
    assert all(np.isfinite(x) for x in metrics.values())


def test_no_step_without_an_advantage():
    """No gradient, no direction, no 0 / 0."""
    batch = batch_of(0)
    params, metrics = step(batch._replace(advantage=jnp.zeros(ROWS)))
    assert same_bits(params, PARAMS)
    assert metrics["step_fraction"] == 0
    assert all(np.isfinite(x) for x in metrics.values())


# --- the whole update -------------------------------------------------------------------------------------------------


def test_value_regression_does_not_move_the_policy():
    """Bit by bit, at any learning rate; and the value function does move."""
    algorithm = trpo(TRPO, POLICY)
    init, update = (jax.jit(x, compiler_options=QUICKLY) for x in (algorithm.init, algorithm.update))
    key, batch, trajectory = jax.random.key(0), batch_of(0), make_trajectory(POLICY, PARAMS, rows=ROWS // 4)
    of_value = jax.jit(jax.grad(lambda params: jnp.sum(POLICY.evaluate(params, (), batch.obs, batch.start)[1])))(PARAMS)
    is_policy = [not np.any(x) for x in jax.tree.leaves(of_value)]
    assert 0 < sum(is_policy) < len(is_policy)
    results = []
    for learning_rate in (0.0, 1e-3, 1.0):
        hp = dataclasses.replace(HP, learning_rate=learning_rate, ent_coef=0.0, target_kl=0.01)
        hp = jax.tree.map(jnp.float32, hp)
        learner, metrics = update(key, hp, init(key, hp, PARAMS), trajectory)
        results.append(jax.tree.leaves(learner.params))
        assert 0 < metrics["kl"] <= 0.01 * (1 + 1e-3)
    for old, still, policy, *moved in zip(jax.tree.leaves(PARAMS), results[0], is_policy, *results[1:], strict=True):
        assert same_bits(moved, [still, still]) == policy
        assert np.array_equal(still, old) != policy  # the other half: the policy's step leaves the value function
    after_step = jax.tree.leaves(step(batch)[0])
    for x, y, policy in zip(results[1], after_step, is_policy, strict=True):
        if policy:
            np.testing.assert_allclose(x, y, atol=2e-5)
