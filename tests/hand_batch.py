"""A batch and a network small enough to call an update rule by itself, without a trainer around it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from compiled_once import QUICKLY

from purejaxppo.config import TrainConfig
from purejaxppo.core.advantage import ESTIMATORS
from purejaxppo.core.types import Batch, Box, Discrete, VecEnv
from purejaxppo.policies.registry import make_network

T, E, OBS = 4, 4, 3
CONFIG = TrainConfig(
    num_envs=E, num_steps=T, num_epochs=2, num_minibatches=2, hidden_sizes=(4,), total_timesteps=5 * E * T
)
_ACTIONS = {
    "categorical": Discrete(3),
    "gaussian": Box((2,), (-1.0, -1.0), (1.0, 1.0)),
    "tanh_gaussian": Box((2,), (-1.0, -1.0), (1.0, 1.0)),
}
POLICIES = tuple(_ACTIONS)


def make_policy(policy="categorical", seed=0):
    """(apply, params) of a network with a policy that is not nearly uniform."""
    config = (
        CONFIG if policy == "categorical" else TrainConfig(hidden_sizes=CONFIG.hidden_sizes, action_distribution=policy)
    )
    env = VecEnv(None, None, Box((OBS,)), _ACTIONS[policy], E)
    network = make_network(config, env)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, OBS)))
    rng = np.random.default_rng(seed)
    return network.apply, jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes)


def make_batch(apply, params, seed=0, *, gamma=0.9, gae_lambda=0.8, value_target="gae", rows=E):
    """T steps of `rows` environments by the policy of `params`: actions its own, all else random, both kinds of end."""
    return _batch(apply, value_target, rows)(params, jax.random.key(seed + 100), gamma, gae_lambda)


@functools.cache
def _batch(apply, value_target, rows):
    def make(params, key, gamma, gae_lambda):
        return _rollout(apply, params, key, gamma, gae_lambda, ESTIMATORS[value_target], rows)

    return jax.jit(make, compiler_options=QUICKLY)


def _rollout(apply, params, key, gamma, gae_lambda, estimate, rows):
    keys = iter(jax.random.split(key, 6))
    shape = (T, rows)
    obs = jax.random.normal(next(keys), (*shape, OBS))
    pi, value = apply(params, obs)
    action = pi.sample(pi.noise(next(keys)))
    reward, next_value = jax.random.normal(next(keys), shape), jax.random.normal(next(keys), shape)
    terminated, truncated = (jax.random.bernoulli(next(keys), 0.25, shape) for _ in range(2))
    advantage, target = estimate(reward, value, next_value, terminated, truncated, gamma, gae_lambda)
    batch = Batch(obs, action, pi, pi.log_prob(action), value, advantage, target)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
