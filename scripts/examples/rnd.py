"""Random network distillation: a bonus for observations that a predictor does not know yet.

The environment is a chain whose only reward is at its far end, where random actions practically never lead. The bonus
has value head, normaliser and optimizer state of its own (Burda et al. 2019, arXiv:1810.12894).

    purejaxppo train --plugin scripts/examples/rnd.py --env sparse-chain --algorithm rnd --num-envs 8
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import purejaxppo
from purejaxppo.algorithms.gradient_steps import fit
from purejaxppo.algorithms.ppo_clip import clipped_loss
from purejaxppo.algorithms.surrogate import surrogate_steps
from purejaxppo.core.advantage import estimate, gae
from purejaxppo.core.minibatch import cut
from purejaxppo.core.normalizer import RunningStats, discounted_returns, empty_stats, update_stats
from purejaxppo.core.optimizer import make_optimizer
from purejaxppo.core.sums import merged, moments
from purejaxppo.core.types import Algorithm, Box, Discrete, LearnerState, Params
from purejaxppo.envs.autoreset import autoreset

LENGTH, LIMIT, BONUS, GAMMA = 70, 100, 0.5, 0.99  # BONUS is the weight of its advantage, GAMMA its discount


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
        never = jnp.zeros_like(trajectory.start)  # the bonus goes on where an episode ends
        discounted, _ = discounted_returns(bonus, never, jnp.zeros(bonus.shape[1]), GAMMA)
        returns = update_stats(returns, merged(shards.gather(moments(shards.flat(discounted.T)))), config.batch_size)
        bonus = bonus / jnp.sqrt(returns.var + 1e-8)
        of_bonus, bonus_target = gae(bonus, value, next_value, never, never, GAMMA, hp.gae_lambda)
        advantage, value_target = estimate(config, hp, trajectory)
        batch = cut(config, trajectory, advantage + BONUS * of_bonus, value_target, (trajectory.next_obs, bonus_target))
        key, key_of_own = jax.random.split(key)
        learner, metrics = learn(key, hp, learner, batch)

        def loss(params, minibatch):
            distillation = jnp.mean(look(params, target, minibatch.extra[0])[0])
            critic = jnp.mean((look(params, target, minibatch.obs)[1] - minibatch.extra[1]) ** 2)
            return distillation + critic, {"loss/distillation": distillation, "loss/bonus_value": critic}

        predictor, own = fit(config, shards, key_of_own, hp, predictor, batch, loss)
        return learner._replace(algo_state=Distillation(target, predictor, returns)), {**own, **metrics}

    return Algorithm(init, update, shards)


def sparse_chain(num_envs):
    """Returns E chains: in each state one of two actions leads on and the other one back; which, is drawn once."""
    onward = jax.random.bernoulli(jax.random.key(7), shape=(LENGTH,)).astype(jnp.int32)

    def step(key, place, action):
        place = jnp.maximum(place + jnp.where(action == onward[place], 1, -1), 0)
        arrived = place == LENGTH - 1
        return place, jax.nn.one_hot(place, LENGTH), 1.0 * arrived, arrived, False

    begin = (jnp.int32(0), jax.nn.one_hot(0, LENGTH))
    return autoreset(lambda _: begin, step, Box((LENGTH,)), Discrete(2), num_envs, step_limit=LIMIT)


purejaxppo.register_env("sparse-chain", sparse_chain)
purejaxppo.register_algorithm("rnd", rnd)
