"""Trust region policy optimization: the KL divergence as a constraint."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from purejaxppo.algorithms.surrogate import critic_loss, gradient_steps
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.config.fields import DEFAULT_TARGET_KL
from purejaxppo.core.diagnostics import drift
from purejaxppo.core.losses import importance_surrogate, standardize
from purejaxppo.core.optimizer import make_optimizer
from purejaxppo.core.types import Algorithm, Apply, Batch, LearnerState, Metrics, Params, Split, whole

Vector = jax.Array
_BACKTRACK = 0.5


def trpo(config: TrainConfig, apply: Apply, *, split: Split = whole) -> Algorithm:
    """One natural-gradient step of the policy per update, within the trust region; then the value function's fit.

    maximise  mean r A + ent_coef * entropy   subject to   mean KL(old || new) <= target_kl

    The value function is fitted by minibatch regression (learning_rate, num_epochs, num_minibatches). The network must
    not share parameters between the two: the regression would move the policy.

    Source: Schulman et al. 2015, arXiv:1502.05477, eq. 14 and appendix C. Deviations: the whole batch for the Fisher
    matrix; advantages standardised over the batch, unless that is off; an entropy bonus; trip counts that do not
    depend on data.
    """
    normalize = (lambda advantage: advantage) if config.normalize_advantage == "off" else standardize

    def init(hp: Hyperparams, params: Params) -> LearnerState:
        return LearnerState(params, make_optimizer(hp).init(params), ())

    def update(key: jax.Array, hp: Hyperparams, learner: LearnerState, batch: Batch) -> tuple[LearnerState, Metrics]:
        batch = batch._replace(advantage=normalize(batch.advantage))
        params, policy_metrics = policy_step(config, apply, hp, learner.params, batch)

        def value_loss(params: Params, minibatch: Batch) -> tuple[jax.Array, Metrics]:
            _, value = apply(params, minibatch.obs)
            loss = critic_loss(hp, value, minibatch)
            return loss, {"loss/value": loss}

        learner = learner._replace(params=params)
        gradient = split.mean(jax.grad(value_loss, has_aux=True))
        learner, steps = gradient_steps(key, config, dataclasses.replace(hp, target_kl=None), learner, batch, gradient)
        metrics = {"loss/value": jnp.mean(steps["loss/value"]), **policy_metrics}
        return learner, {**metrics, **drift(apply, learner.params, batch, split)}

    return Algorithm(init, update)


class _Measure(NamedTuple):
    """A policy against the one that acted."""

    surrogate: jax.Array
    objective: jax.Array  # with the entropy bonus
    kl: jax.Array
    entropy: jax.Array
    deviation: jax.Array


def policy_step(
    config: TrainConfig, apply: Apply, hp: Hyperparams, params: Params, batch: Batch
) -> tuple[Params, Metrics]:
    """The parameters after one step along the natural gradient, or as they were if no tried length was acceptable."""
    target_kl = DEFAULT_TARGET_KL if hp.target_kl is None else hp.target_kl
    old, unravel = ravel_pytree(params)

    def measure(flat: Vector) -> _Measure:
        pi, _ = apply(unravel(flat), batch.obs)
        ratio = jnp.exp(pi.log_prob(batch.action) - batch.log_prob)
        entropy = jnp.mean(pi.entropy())
        surrogate = importance_surrogate(ratio, batch.advantage)
        objective = surrogate + hp.ent_coef * entropy
        return _Measure(surrogate, objective, jnp.mean(batch.pi.kl(pi)), entropy, jnp.mean(jnp.abs(ratio - 1.0)))

    gradient = jax.grad(lambda flat: measure(flat).objective)(old)
    # The Hessian of KL(old || .) at the old policy is the Fisher matrix; linearised once, applied many times.
    _, hessian_product = jax.linearize(jax.grad(lambda flat: measure(flat).kl), old)

    def fisher_product(v: Vector) -> Vector:
        return hessian_product(v) + hp.cg_damping * v

    direction = conjugate_gradient(fisher_product, gradient, config.cg_iterations)
    curvature = direction @ fisher_product(direction)
    # Where the quadratic model of the KL, damping included, reaches target_kl.
    length = jnp.where(curvature > 0, jnp.sqrt(2 * target_kl / jnp.where(curvature > 0, curvature, 1.0)), 0.0)
    before = measure(old)

    def acceptable(flat: Vector) -> jax.Array:
        after = measure(flat)
        return (after.objective > before.objective) & (after.kl <= target_kl)

    fraction = line_search(lambda fraction: acceptable(old + fraction * length * direction), config.line_search_steps)
    new = jnp.where(fraction > 0, old + fraction * length * direction, old)
    after = measure(new)
    metrics = {
        "loss/policy": -after.surrogate,
        "entropy": after.entropy,
        "grad_norm": jnp.linalg.norm(gradient),
        "step_fraction": fraction,
        "ratio/first_minibatch_deviation": before.deviation,
    }
    return unravel(new), metrics


def conjugate_gradient(product: Callable[[Vector], Vector], b: Vector, iterations: int) -> Vector:
    """x with A x = b after a fixed number of iterations from 0, for a positive definite A given as v -> A v.

    It rests where the residual has fallen to what float32 can tell from 0.

    Source: Hestenes & Stiefel 1952, "Methods of conjugate gradients for solving linear systems".
    """
    enough = 1e-12 * (b @ b)

    def step(state: tuple[Vector, Vector, Vector], _: None) -> tuple[tuple[Vector, Vector, Vector], None]:
        x, residual, p = state
        squared = residual @ residual
        a_p = product(p)
        curvature = p @ a_p
        running = (squared > enough) & (curvature > 0)
        alpha = jnp.where(running, squared / jnp.where(running, curvature, 1.0), 0.0)
        residual = residual - alpha * a_p
        beta = jnp.where(running, (residual @ residual) / jnp.where(running, squared, 1.0), 0.0)
        return (x + alpha * p, residual, residual + beta * p), None

    (x, _, _), _ = jax.lax.scan(step, (jnp.zeros_like(b), b, b), length=iterations)
    return x


def line_search(acceptable: Callable[[jax.Array], jax.Array], steps: int) -> jax.Array:
    """The largest of 1, 1/2, 1/4, ... (`steps` of them) that is acceptable, or 0; all are tried."""

    def attempt(found: jax.Array, fraction: jax.Array) -> tuple[jax.Array, None]:
        return jnp.where((found == 0) & acceptable(fraction), fraction, found), None

    found, _ = jax.lax.scan(attempt, jnp.zeros(()), _BACKTRACK ** jnp.arange(steps, dtype=jnp.float32))
    return found
