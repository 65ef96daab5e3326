"""The penalty coefficient's rule, and its life from one update to the next."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_once import QUICKLY
from hand_batch import CONFIG, make_policy, make_trajectory

from purejaxppo.algorithms.ppo_kl import KLPenalty, adapted_kl_coef, ppo_kl
from purejaxppo.config import Hyperparams
from purejaxppo.config.fields import KL_COEF_BOUNDS

LOW, HIGH = KL_COEF_BOUNDS


@pytest.mark.parametrize(
    ("kl_coef", "kl", "factor", "expected"),
    [
        pytest.param(1.0, 0.03, 2.0, 2.0, id="above"),
        pytest.param(1.0, 0.02, 2.0, 1.0, id="at-kl_max"),
        pytest.param(1.0, 0.01, 2.0, 1.0, id="inside"),
        pytest.param(1.0, 0.005, 2.0, 1.0, id="at-kl_min"),
        pytest.param(1.0, 0.004, 2.0, 0.5, id="below"),
        pytest.param(1.0, 0.0, 1.5, 1 / 1.5, id="another-factor"),
        pytest.param(3.0, 9.0, 1.0, 3.0, id="factor-1-above"),
        pytest.param(3.0, 0.0, 1.0, 3.0, id="factor-1-below"),
        pytest.param(HIGH / 1.5, 9.0, 2.0, HIGH, id="up-to-the-bound"),
        pytest.param(HIGH, 9.0, 2.0, HIGH, id="at-the-upper-bound"),
        pytest.param(HIGH, 0.0, 2.0, HIGH / 2, id="back-from-the-upper-bound"),
        pytest.param(LOW * 1.5, 0.0, 2.0, LOW, id="down-to-the-bound"),
        pytest.param(LOW, 0.0, 2.0, LOW, id="at-the-lower-bound"),
        pytest.param(LOW, 9.0, 2.0, 2 * LOW, id="back-from-the-lower-bound"),
    ],
)
def test_rule(kl_coef, kl, factor, expected):
    found = adapted_kl_coef(jnp.float32(kl_coef), jnp.float32(kl), 0.005, 0.02, factor)
    np.testing.assert_allclose(found, np.float32(expected), rtol=1e-6)
    assert found.dtype == jnp.float32


@pytest.fixture(scope="module")
def parts():
    """(algorithm, compiled update, params, trajectory) with a KL of some hundredths per update."""
    policy, params = make_policy()
    algorithm = ppo_kl(dataclasses.replace(CONFIG, num_epochs=1), policy)
    return algorithm, jax.jit(algorithm.update, compiler_options=QUICKLY), params, make_trajectory(policy, params)


def hyperparams(**changes):
    return jax.tree.map(jnp.float32, Hyperparams(learning_rate=2e-2, **changes))


@pytest.mark.parametrize(
    ("thresholds", "coefficients"),
    [((0.0, 1e-7), [3.0, 6.0, 12.0]), ((1e2, 1e3), [3.0, 1.5, 0.75]), ((0.0, 1e3), [3.0, 3.0, 3.0])],
)
def test_coefficient_goes_on_from_one_update_to_the_next(parts, thresholds, coefficients):
    """KL always above, always below, always inside. What is logged is what was used; hp.kl_coef is only the start."""
    algorithm, update, params, trajectory = parts
    hp = hyperparams(kl_coef=3.0, kl_min=thresholds[0], kl_max=thresholds[1])
    learner = algorithm.init(jax.random.key(0), hp, params)
    assert learner.algo_state == KLPenalty(3.0)
    logged = []
    for i in range(3):
        assert float(learner.algo_state.kl_coef) == coefficients[i]
        learner, metrics = update(jax.random.key(i), hp, learner, trajectory)
        logged.append(float(metrics["kl_coef"]))
    assert logged == coefficients
    ignored = dataclasses.replace(hp, kl_coef=jnp.float32(500.0))
    assert update(jax.random.key(9), ignored, learner, trajectory)[1]["kl_coef"] == learner.algo_state.kl_coef


def test_penalty_holds_the_policies_together(parts):
    """The coefficient in the state is what the loss weighs the KL with."""
    algorithm, update, params, trajectory = parts

    def kl(coefficient):
        hp = hyperparams(ent_coef=0.0)
        learner = algorithm.init(jax.random.key(0), hp, params)._replace(algo_state=KLPenalty(jnp.float32(coefficient)))
        for i in range(5):
            learner, metrics = update(jax.random.key(i), hp, learner, trajectory)
        return metrics["kl"]

    assert kl(500.0) < 0.5 * kl(1e-3)
