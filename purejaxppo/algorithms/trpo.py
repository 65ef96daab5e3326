"""Trust region policy optimisation: policy improvement under a constraint on the KL divergence."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from purejaxppo.algorithms.gradient_steps import critic_loss, fit, standardize_batch
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.config.fields import DEFAULT_TARGET_KL
from purejaxppo.core.advantage import estimate
from purejaxppo.core.diagnostics import diagnose
from purejaxppo.core.losses import importance_surrogate
from purejaxppo.core.minibatch import cut
from purejaxppo.core.optimizer import make_optimizer
from purejaxppo.core.shards import Shards
from purejaxppo.core.types import Algorithm, Batch, LearnerState, Metrics, Params, Policy, Trajectory

Vector = jax.Array  # the parameters, or a direction in their space, as one flat array [P]
_BACKTRACK = 0.5


def trpo(config: TrainConfig, policy: Policy, *, shards: Shards | None = None) -> Algorithm:
    """Takes one natural-gradient step of the policy per update, within the trust region, and fits the value function.

        maximise  mean r A + ent_coef * entropy   subject to   mean KL(old || new) <= target_kl

    The value function is fitted by minibatch regression (learning_rate, num_epochs, num_minibatches). Policy and value
    function must not share parameters, since the regression would then move the policy.

    Args:
      config: trip counts of conjugate gradient and line search, and those of the regression.
      policy: what is trained.
      shards: of the run; by default those of the config, on one device.

    Source: Schulman et al. 2015, arXiv:1502.05477, eq. 14 and appendix C. Deviations: the whole batch for the Fisher
    matrix; advantages standardised over the batch, unless that is off; an entropy bonus; trip counts that do not
    depend on data.
    """

    shards = shards or Shards(config.shard_count)

    def init(key: jax.Array, hp: Hyperparams, params: Params) -> LearnerState:
        return LearnerState(params, make_optimizer(config, hp).init(params), ())

    def update(
        key: jax.Array, hp: Hyperparams, learner: LearnerState, trajectory: Trajectory
    ) -> tuple[LearnerState, Metrics]:
        batch = cut(config, trajectory, *estimate(config, hp, trajectory))
        if config.normalize_advantage != "off":
            batch = batch._replace(advantage=standardize_batch(shards, batch.advantage))
        params, policy_metrics = policy_step(config, policy, hp, learner.params, batch, shards)

        def value_loss(params: Params, minibatch: Batch) -> tuple[jax.Array, Metrics]:
            _, value = policy.evaluate(params, minibatch.memory, minibatch.obs, minibatch.start)
            loss = critic_loss(hp, value, minibatch)
            return loss, {"loss/value": loss}

        learner, value_metrics = fit(config, shards, key, hp, learner._replace(params=params), batch, value_loss)
        metrics = {**value_metrics, **policy_metrics}  # both have a grad_norm: the policy's counts
        return learner, {**metrics, **diagnose(policy, learner.params, batch, shards)}

    return Algorithm(init, update, shards)


class _Measure(NamedTuple):
    """A policy compared with the one that acted, as means over rows."""

    surrogate: jax.Array
    objective: jax.Array  # the surrogate with the entropy bonus
    kl: jax.Array  # KL(old || new), nats
    entropy: jax.Array  # nats
    deviation: jax.Array  # |r - 1|


def policy_step(
    config: TrainConfig, policy: Policy, hp: Hyperparams, params: Params, batch: Batch, shards: Shards
) -> tuple[Params, Metrics]:
    """Returns the parameters after one step along the natural gradient, and the step's metrics.

    The direction is F^-1 g, with the objective's gradient g and the damped Fisher matrix F. Its length is the one at
    which the quadratic model of the KL reaches `target_kl`, times the largest fraction 1, 1/2, 1/4, ... that improves
    the objective and keeps the exact KL within `target_kl`. If no tried fraction does, the parameters are unchanged.
    """
    target_kl = DEFAULT_TARGET_KL if hp.target_kl is None else hp.target_kl
    old, unravel = ravel_pytree(params)

    def measure(flat: Vector) -> _Measure:
        pi, _ = policy.evaluate(unravel(flat), batch.memory, batch.obs, batch.start)
        ratio = jnp.exp(pi.log_prob(batch.action) - batch.log_prob)
        entropy = jnp.mean(pi.entropy())
        surrogate = importance_surrogate(ratio, batch.advantage)
        objective = surrogate + hp.ent_coef * entropy
        return _Measure(surrogate, objective, jnp.mean(batch.pi.kl(pi)), entropy, jnp.mean(jnp.abs(ratio - 1.0)))

    gradient = shards.mean(jax.grad(lambda flat: measure(flat).objective)(old))
    # The Fisher matrix is the Hessian of KL(old || .) at the old policy. It is never formed: the KL's gradient is
    # linearised once (forward over reverse), and each product with a vector evaluates that linear map.
    _, hessian_product = jax.linearize(jax.grad(lambda flat: measure(flat).kl), old)

    def fisher_product(v: Vector) -> Vector:
        return shards.mean(hessian_product(v)) + hp.cg_damping * v

    direction = conjugate_gradient(fisher_product, gradient, config.cg_iterations)
    curvature = direction @ fisher_product(direction)
    # The model 1/2 length^2 x^T F x of the KL, damping included, reaches target_kl at this length. The inner `where`
    # keeps the unused branch finite; without curvature, as for a zero gradient, no step is taken.
    length = jnp.where(curvature > 0, jnp.sqrt(2 * target_kl / jnp.where(curvature > 0, curvature, 1.0)), 0.0)
    before = shards.mean(measure(old))

    def acceptable(flat: Vector) -> jax.Array:
        after = shards.mean(measure(flat))
        return (after.objective > before.objective) & (after.kl <= target_kl)

    fraction = line_search(lambda fraction: acceptable(old + fraction * length * direction), config.line_search_steps)
    new = jnp.where(fraction > 0, old + fraction * length * direction, old)
    after = shards.mean(measure(new))
    metrics = {
        "loss/policy": -after.surrogate,
        "entropy": after.entropy,
        "grad_norm": jnp.linalg.norm(gradient),
        "step_fraction": fraction,
        "ratio/first_minibatch_deviation": before.deviation,
    }
    return unravel(new), metrics


def conjugate_gradient(product: Callable[[Vector], Vector], b: Vector, iterations: int) -> Vector:
    """Returns an approximation of x with A x = b, after a fixed number of iterations from x = 0.

    Iterates no longer change once the squared residual is below 1e-12 of the initial one (float32 rounding).

    Args:
      product: v -> A v of a positive definite A.
      b: the right-hand side.
      iterations: static count.

    Source: Hestenes & Stiefel 1952, "Methods of conjugate gradients for solving linear systems".
    """
    tolerance = 1e-12 * (b @ b)

    def step(state: tuple[Vector, Vector, Vector], _: None) -> tuple[tuple[Vector, Vector, Vector], None]:
        x, residual, p = state
        squared = residual @ residual
        a_p = product(p)
        curvature = p @ a_p
        # Converged iterates are masked instead of ending the loop, so that the trip count stays static: alpha and
        # beta are 0, which leaves x and the residual as they are and sets p to the residual. The inner `where`s avoid
        # a division by 0 in the branch that is not used.
        running = (squared > tolerance) & (curvature > 0)
        alpha = jnp.where(running, squared / jnp.where(running, curvature, 1.0), 0.0)
        residual = residual - alpha * a_p
        beta = jnp.where(running, (residual @ residual) / jnp.where(running, squared, 1.0), 0.0)
        return (x + alpha * p, residual, residual + beta * p), None

    (x, _, _), _ = jax.lax.scan(step, (jnp.zeros_like(b), b, b), length=iterations)
    return x


def line_search(acceptable: Callable[[jax.Array], jax.Array], steps: int) -> jax.Array:
    """Returns the largest of the fractions 1, 1/2, 1/4, ... (`steps` of them) that is acceptable, or 0.

    All of them are tried, so that the trip count stays static.
    """

    def attempt(found: jax.Array, fraction: jax.Array) -> tuple[jax.Array, None]:
        return jnp.where((found == 0) & acceptable(fraction), fraction, found), None

    found, _ = jax.lax.scan(attempt, jnp.zeros(()), _BACKTRACK ** jnp.arange(steps, dtype=jnp.float32))
    return found
