"""The adaptive learning rate's rule, and its life from one update to the next."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_once import QUICKLY
from hand_batch import CONFIG, make_policy, make_trajectory

from purejaxppo.algorithms.adaptive_lr import KLAdaptive, adapted_learning_rate, kl_adaptive
from purejaxppo.algorithms.policy_gradient import policy_gradient
from purejaxppo.config import Hyperparams

TARGET = 0.01


@pytest.mark.parametrize(
    ("learning_rate", "kl", "expected"),
    [
        pytest.param(1e-3, 0.021, 1e-3 / 1.5, id="above-twice"),
        pytest.param(1e-3, 0.019, 1e-3, id="below-twice"),
        pytest.param(1e-3, 0.01, 1e-3, id="at-the-target"),
        pytest.param(1e-3, 0.0051, 1e-3, id="above-half"),
        pytest.param(1e-3, 0.0049, 1.5e-3, id="below-half"),
        pytest.param(1.2e-6, 1.0, 1e-6, id="down-to-the-bound"),
        pytest.param(1e-6, 1.0, 1e-6, id="at-the-lower-bound"),
        pytest.param(1e-6, 0.0, 1.5e-6, id="back-from-the-lower-bound"),
        pytest.param(9e-3, 0.0, 1e-2, id="up-to-the-bound"),
        pytest.param(1e-2, 0.0, 1e-2, id="at-the-upper-bound"),
        pytest.param(1e-2, 1.0, 1e-2 / 1.5, id="back-from-the-upper-bound"),
        pytest.param(0.3, 0.0, 0.3, id="beyond-the-bound-no-further"),
        pytest.param(0.3, 1.0, 0.2, id="beyond-the-bound-back"),
        pytest.param(1e-8, 1.0, 1e-8, id="below-the-bound-no-further"),
        pytest.param(1e-8, 0.0, 1.5e-8, id="below-the-bound-back"),
    ],
)
def test_rule(learning_rate, kl, expected):
    found = adapted_learning_rate(jnp.float32(learning_rate), jnp.float32(kl), TARGET)
    np.testing.assert_allclose(found, np.float32(expected), rtol=1e-6)


@pytest.fixture(scope="module")
def parts():
    """(algorithm, compiled update, params, trajectory)."""
    policy, params = make_policy()
    algorithm = kl_adaptive(policy_gradient(dataclasses.replace(CONFIG, num_epochs=1), policy))
    return algorithm, jax.jit(algorithm.update, compiler_options=QUICKLY), params, make_trajectory(policy, params)


def hyperparams(**changes):
    return jax.tree.map(jnp.float32, Hyperparams(**{"learning_rate": 1e-3, **changes}))


@pytest.mark.parametrize(
    ("target_kl", "factor"),
    [pytest.param(1e-9, 1 / 1.5, id="always-above"), pytest.param(1e3, 1.5, id="always-below")],
)
def test_rate_goes_on_from_one_update_to_the_next(parts, target_kl, factor):
    """What is logged is what was used; hp.learning_rate is only the start."""
    algorithm, update, params, trajectory = parts
    hp = hyperparams(target_kl=target_kl)
    learner = algorithm.init(jax.random.key(0), hp, params)
    assert learner.algo_state == KLAdaptive(hp.learning_rate, ())
    for i in range(3):
        np.testing.assert_allclose(learner.algo_state.learning_rate, 1e-3 * factor**i, rtol=1e-5)
        before = float(learner.algo_state.learning_rate)
        learner, metrics = update(jax.random.key(i), hp, learner, trajectory)
        assert float(metrics["learning_rate"]) == before
    ignored = dataclasses.replace(hp, learning_rate=jnp.float32(0.5))
    _, metrics = update(jax.random.key(9), ignored, learner, trajectory)
    assert metrics["learning_rate"] == learner.algo_state.learning_rate


def test_rate_in_the_state_is_the_one_that_steps(parts):
    """Ten times the rate moves the policy further, whatever hp says."""
    algorithm, update, params, trajectory = parts
    hp = hyperparams()
    learner = algorithm.init(jax.random.key(0), hp, params)
    faster = learner._replace(algo_state=KLAdaptive(jnp.float32(1e-2), ()))
    near, far = (update(jax.random.key(0), hp, x, trajectory)[1]["kl"] for x in (learner, faster))
    assert far > 10 * near


def test_target_kl_does_not_stop_an_update(parts):
    """All of the steps are taken, however small the target; the steps themselves are the same."""
    algorithm, update, params, trajectory = parts
    results = []
    for target_kl in (1e-9, 1e3):
        hp = hyperparams(learning_rate=2e-2, target_kl=target_kl)
        results.append(update(jax.random.key(0), hp, algorithm.init(jax.random.key(0), hp, params), trajectory)[0])
    counts = [x for path, x in jax.tree_util.tree_leaves_with_path(results[0].opt_state) if "count" in str(path)]
    assert int(counts[0]) == CONFIG.num_minibatches
    for x, y in zip(*(jax.tree.leaves(result.params) for result in results), strict=True):
        np.testing.assert_array_equal(x, y)


def test_no_target_is_the_default_one(parts):
    """0.01: a KL far below it raises the rate."""
    algorithm, _, params, trajectory = parts
    hp = dataclasses.replace(hyperparams(learning_rate=1e-5), target_kl=None)
    learner, metrics = jax.jit(algorithm.update, compiler_options=QUICKLY)(
        jax.random.key(0), hp, algorithm.init(jax.random.key(0), hp, params), trajectory
    )
    assert metrics["kl"] < 0.005
    np.testing.assert_allclose(learner.algo_state.learning_rate, 1.5e-5, rtol=1e-5)
