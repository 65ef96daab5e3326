"""A rollout and a policy small enough to call an update rule by itself, without a trainer around it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from compiled_once import QUICKLY

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.core.advantage import estimate
from purejaxppo.core.minibatch import cut
from purejaxppo.core.types import Box, Discrete, Trajectory, VecEnv
from purejaxppo.policies import registry

T, E, OBS = 4, 4, 3
CONFIG = TrainConfig(
    num_envs=E, num_steps=T, num_epochs=2, num_minibatches=2, hidden_sizes=(4,), total_timesteps=5 * E * T
)
HP = Hyperparams(gamma=0.9, gae_lambda=0.8)
_ACTIONS = {
    "categorical": Discrete(3),
    "gaussian": Box((2,), (-1.0, -1.0), (1.0, 1.0)),
    "tanh_gaussian": Box((2,), (-1.0, -1.0), (1.0, 1.0)),
}
POLICIES = tuple(_ACTIONS)


def make_policy(policy="categorical", seed=0):
    """(policy, params) of a network with a policy that is not nearly uniform."""
    config = (
        CONFIG if policy == "categorical" else TrainConfig(hidden_sizes=CONFIG.hidden_sizes, action_distribution=policy)
    )
    env = VecEnv(None, None, Box((OBS,)), _ACTIONS[policy], E)
    made = registry.make_policy(config, env)
    shapes = jax.eval_shape(made.init, jax.random.key(0), jnp.zeros((1, OBS)))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes)
    return made, params


def make_trajectory(policy, params, seed=0, *, rows=E):
    """T steps of `rows` environments by the policy of `params`: actions its own, all else random, both kinds of end."""
    return _programs(policy, rows)[0](params, jax.random.key(seed + 100))


def make_batch(policy, params, seed=0, *, rows=E):
    """The batch of `make_trajectory`, with the discount and the lambda of `HP`."""
    return _programs(policy, rows)[1](params, jax.random.key(seed + 100))


@functools.cache
def _programs(policy, rows):
    """The compiled functions of `make_trajectory` and `make_batch`."""

    def trajectory(params, key):
        return _trajectory(policy, params, key, rows)

    def batch(params, key):
        seen = trajectory(params, key)
        return cut(CONFIG, seen, *estimate(CONFIG, HP, seen))

    return jax.jit(trajectory, compiler_options=QUICKLY), jax.jit(batch, compiler_options=QUICKLY)


def _trajectory(policy, params, key, rows):
    keys = iter(jax.random.split(key, 6))
    shape = (T, rows)
    obs, start = jax.random.normal(next(keys), (*shape, OBS)), jnp.zeros(shape, bool)
    pi, value = policy.evaluate(params, (), obs, start)
    action = pi.sample(pi.noise(next(keys)))
    reward, next_value = jax.random.normal(next(keys), shape), jax.random.normal(next(keys), shape)
    terminated, truncated = (jax.random.bernoulli(next(keys), 0.25, shape) for _ in range(2))
    return Trajectory(
        obs=obs,
        action=action,
        pi=pi,
        log_prob=pi.log_prob(action),
        value=value,
        next_value=next_value,
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        next_obs=obs,
        start=start,
        memory=(),
        info={},
    )
