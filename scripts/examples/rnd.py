"""Random network distillation: a bonus for observations that a predictor does not know yet.

The environment is a chain whose only reward is at its far end, where random actions practically never lead. The bonus
has a value head, a normaliser and an optimizer state of its own.

    purejaxppo train --plugin scripts/examples/rnd.py --env sparse-chain --algorithm rnd

Source: Burda et al. 2019, "Exploration by random network distillation", arXiv:1810.12894.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import purejaxppo
from purejaxppo.algorithms.ppo_clip import clipped_loss
from purejaxppo.algorithms.surrogate import GradientStep, gradient_steps, surrogate_steps
from purejaxppo.core.advantage import estimate, gae
from purejaxppo.core.minibatch import cut, minibatch_rows
from purejaxppo.core.normalizer import RunningStats, discounted_returns, empty_stats, update_stats
from purejaxppo.core.optimizer import make_optimizer
from purejaxppo.core.sums import merged, moments
from purejaxppo.core.types import Algorithm, Box, Discrete, LearnerState, Params
from purejaxppo.envs.autoreset import autoreset

LENGTH, LIMIT = 40, 100
BONUS, GAMMA = 0.5, 0.99  # weight of the bonus's advantage, and its discount


class Novelty(nn.Module):
    """Maps observations [..., O] to features [..., 32], and to the value [...] of the bonus."""

    @nn.compact
    def __call__(self, obs):
        features = nn.Dense(32)(nn.relu(nn.Dense(64)(obs)))
        return features, nn.Dense(1)(nn.relu(nn.Dense(64)(obs)))[..., 0]


class Distillation(NamedTuple):
    """What is carried from one update to the next beside the policy."""

    target: Params  # never trained
    predictor: LearnerState
    returns: RunningStats  # of the bonus's discounted returns


def rnd(config, policy, *, shards):
    """Takes the steps of ppo_clip, with the advantage of the bonus added to that of the reward."""
    learn, network = surrogate_steps(config, policy, clipped_loss(), shards), Novelty()

    def look(params, target, obs):
        features, value = network.apply(params, obs)
        return jnp.mean((features - network.apply(target, obs)[0]) ** 2, axis=-1), value

    def init(key, hp, params):
        target, own = (network.init(k, jnp.zeros((1, LENGTH))) for k in jax.random.split(key))
        optimizer = make_optimizer(config, hp)
        state = Distillation(target, LearnerState(own, optimizer.init(own), ()), empty_stats(()))
        return LearnerState(params, optimizer.init(params), state)

    def update(key, hp, learner, trajectory):
        target, predictor, returns = learner.algo_state
        bonus, next_value = look(predictor.params, target, trajectory.next_obs)  # [T, E]
        _, value = look(predictor.params, target, trajectory.obs)
        never = jnp.zeros_like(trajectory.terminated)  # the bonus goes on where an episode ends
        discounted, _ = discounted_returns(bonus, never, jnp.zeros(bonus.shape[1]), GAMMA)
        returns = update_stats(returns, merged(shards.gather(moments(shards.flat(discounted.T)))), config.batch_size)
        bonus = bonus / jnp.sqrt(returns.var + 1e-8)
        of_bonus, bonus_target = gae(bonus, value, next_value, never, never, GAMMA, hp.gae_lambda)
        advantage, value_target = estimate(config, hp, trajectory)
        extra = trajectory.next_obs, bonus_target
        batch = cut(config, trajectory, advantage + BONUS * of_bonus, value_target, extra)
        learner, metrics = learn(key, hp, learner, batch)

        def loss(params, minibatch):
            next_obs, bonus_target = minibatch.extra
            distillation = jnp.mean(look(params, target, next_obs)[0])
            critic = jnp.mean((look(params, target, minibatch.obs)[1] - bonus_target) ** 2)
            measured = {"loss/distillation": distillation, "loss/bonus_value": critic}
            return distillation + critic, GradientStep(measured, jnp.zeros(()), jnp.zeros(()))

        rows = minibatch_rows(key, shards, len(batch.advantage), config.num_epochs, config.num_minibatches)
        gradient = shards.gradient(loss)
        predictor, steps = gradient_steps(config, hp, predictor, batch, rows, batch.advantage[rows], gradient)
        own = {name: jnp.mean(x) for name, x in steps.metrics.items() if name.startswith("loss")}
        return learner._replace(algo_state=Distillation(target, predictor, returns)), {**metrics, **own}

    return Algorithm(init, update, shards)


def sparse_chain(num_envs):
    """Returns E chains: in each state one of two actions leads on and the other one back; which, is drawn once."""
    onward = jax.random.bernoulli(jax.random.key(7), shape=(LENGTH,)).astype(jnp.int32)

    def observe(place):
        return jax.nn.one_hot(place, LENGTH)

    def reset(key):
        place = jnp.zeros((), jnp.int32)
        return place, observe(place)

    def step(key, place, action):
        place = jnp.maximum(place + jnp.where(action == onward[place], 1, -1), 0)
        arrived = place == LENGTH - 1
        return place, observe(place), arrived.astype(jnp.float32), arrived, False

    return autoreset(reset, step, Box((LENGTH,)), Discrete(2), num_envs, step_limit=LIMIT)


purejaxppo.register_env("sparse-chain", sparse_chain)
purejaxppo.register_algorithm("rnd", rnd)
