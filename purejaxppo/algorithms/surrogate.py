"""The loss of ppo_clip, ppo_kl and policy_gradient, minimised by minibatch gradient steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from purejaxppo.algorithms.gradient_steps import (
    ExtraLoss,
    GradientStep,
    critic_loss,
    gradient_steps,
    minibatch_advantages,
)
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.advantage import estimate
from purejaxppo.core.diagnostics import diagnose
from purejaxppo.core.minibatch import cut, minibatch_rows
from purejaxppo.core.optimizer import make_optimizer
from purejaxppo.core.shards import Shards
from purejaxppo.core.types import Algorithm, Batch, Distribution, LearnerState, Metrics, Params, Policy, Trajectory
from purejaxppo.errors import ConfigError

# (hp, algo_state, pi, ratio [B], minibatch) -> (loss, metrics)
PolicyLoss = Callable[[Hyperparams, Any, Distribution, jax.Array, Batch], tuple[jax.Array, Metrics]]


# (key, hp, learner, batch) -> (learner, metrics)
Learn = Callable[[jax.Array, Hyperparams, LearnerState, Batch], tuple[LearnerState, Metrics]]


def surrogate_algorithm(
    config: TrainConfig,
    policy: Policy,
    policy_loss: PolicyLoss,
    shards: Shards | None = None,
    extra_loss: ExtraLoss | None = None,
) -> Algorithm:
    """Returns an update rule of minibatch gradient steps on policy loss + vf_coef * value loss - ent_coef * entropy.

    Args:
      config: counts of epochs and minibatches, and the kinds of advantage and of its normalisation.
      policy: what is trained.
      policy_loss: the loss of the policy, in which the algorithms of the family differ.
      shards: of the run; by default those of the config, on one device.
      extra_loss: added to the loss: a mean over the minibatch's rows, with metrics that are such means too.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 9 and algorithm 1. Deviations, all common practice: Adam with
    eps 1e-5 and a global-norm clip, advantages standardised, optional value clipping, optional stop at a target KL.
    """
    shards = shards or Shards(config.shard_count)
    learn = surrogate_steps(config, policy, policy_loss, shards, extra_loss)

    def init(key: jax.Array, hp: Hyperparams, params: Params) -> LearnerState:
        return LearnerState(params, make_optimizer(config, hp).init(params), ())

    def update(
        key: jax.Array, hp: Hyperparams, learner: LearnerState, trajectory: Trajectory
    ) -> tuple[LearnerState, Metrics]:
        return learn(key, hp, learner, cut(config, trajectory, *estimate(config, hp, trajectory)))

    return Algorithm(init, update, shards)


def surrogate_steps(
    config: TrainConfig,
    policy: Policy,
    policy_loss: PolicyLoss,
    shards: Shards,
    extra_loss: ExtraLoss | None = None,
) -> Learn:
    """Returns what `surrogate_algorithm` does with a batch, for algorithms that make the batch themselves."""

    def learn(key: jax.Array, hp: Hyperparams, learner: LearnerState, batch: Batch) -> tuple[LearnerState, Metrics]:
        def loss(params: Params, minibatch: Batch) -> tuple[jax.Array, GradientStep]:
            pi, value = policy.evaluate(params, minibatch.memory, minibatch.obs, minibatch.start)
            # A difference of logarithms, since the quotient of two tiny densities would be 0 / 0.
            ratio = jnp.exp(pi.log_prob(minibatch.action) - minibatch.log_prob)
            of_policy, metrics = policy_loss(hp, learner.algo_state, pi, ratio, minibatch)
            of_critic = critic_loss(hp, value, minibatch)
            entropy = jnp.mean(pi.entropy())
            measured = GradientStep(
                {**metrics, "loss/policy": of_policy, "loss/value": of_critic, "entropy": entropy},
                kl=jnp.mean(minibatch.pi.kl(pi)),
                ratio_deviation=jnp.mean(jnp.abs(ratio - 1.0)),
            )
            total = of_policy + hp.vf_coef * of_critic - hp.ent_coef * entropy
            if extra_loss is not None:  # a choice of the trace: without one, the program has nothing of it
                of_extra, further = extra_loss(params, minibatch)
                _refuse_same_names(further, measured.metrics)
                total, measured = total + of_extra, measured._replace(metrics={**measured.metrics, **further})
            return total, measured

        rows = minibatch_rows(key, shards, len(batch.advantage), config.num_epochs, config.num_minibatches)
        # Before the loop, as every shuffle is known: their statistics are one exchange, not one for each step.
        advantage = minibatch_advantages(config.normalize_advantage, shards, batch.advantage, rows)
        learner, steps = gradient_steps(config, hp, learner, batch, rows, advantage, shards.gradient(loss))
        # Over all steps, also those that an early stop discarded: `stop_early` computes them all the same.
        metrics = jax.tree.map(jnp.mean, steps.metrics)
        # 0 up to rounding, since the first step starts from the policy that acted.
        metrics["ratio/first_minibatch_deviation"] = steps.ratio_deviation[0]
        diagnosed = diagnose(policy, learner.params, batch, shards)
        _refuse_same_names(metrics, diagnosed)  # the names are known when the update is traced
        return learner, {**metrics, **diagnosed}

    return learn


def _refuse_same_names(one: Metrics, other: Metrics) -> None:
    """Raises ConfigError for a metric of a user's own that would replace another one."""
    same = sorted(one.keys() & other.keys())
    if same:
        raise ConfigError(
            f"a loss returns a metric {same[0]!r}, which the package reports itself; give it another name."
        )
