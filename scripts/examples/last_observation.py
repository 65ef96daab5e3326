"""A policy with memory: it remembers the last observation, on a CartPole that shows positions and no velocities.

purejaxppo train --plugin scripts/examples/last_observation.py --env still-cartpole --policy last_observation
"""

import jax.numpy as jnp

import purejaxppo
from purejaxppo.core.types import Box
from purejaxppo.policies.networks import mlp

STEP = 0.02  # seconds from one observation to the next


class LastObservation:
    """The `Policy` of a network that sees an observation and how fast it has changed since the last one."""

    def __init__(self, network, size):
        self.network, self.size = network, size

    def init(self, key, obs):
        """Returns the parameters, for observations like obs [E, size]."""
        return self.network.init(key, self.seen(obs, obs))

    def initial_memory(self, num_envs):
        """Returns what is remembered before the first observation [E, size]."""
        return jnp.zeros((num_envs, self.size))

    def act(self, params, memory, obs, start):
        """Takes one step: memory and obs [E, size], start [E] -> (memory after obs, distribution)."""
        last = jnp.where(start[:, None], obs, memory)  # where an episode begins there is none, and obs stands for it
        return obs, self.network.apply(params, self.seen(last, obs))[0]

    def evaluate(self, params, memory, obs, start):
        """Returns distributions and values of sequences: memory [B, size] before, obs [B, L, size], start [B, L]."""
        before = jnp.concatenate([memory[:, None], obs[:, :-1]], axis=1)
        last = jnp.where(start[..., None], obs, before)
        return self.network.apply(params, self.seen(last, obs))

    def seen(self, last, obs):
        """Returns what the network sees [..., 2 size]."""
        return jnp.concatenate([obs, (obs - last) / STEP], axis=-1)


def last_observation(config, env):
    """Returns the policy with the built-in MLP as its network, for vectors as observations."""
    (size,) = env.observation_space.shape
    return LastObservation(mlp(config, env._replace(observation_space=Box((2 * size,)))).network, size)


def still_cartpole(num_envs):
    """Returns E CartPoles that show the position of the cart and the angle of the pole alone."""
    full = purejaxppo.from_gymnax("CartPole-v1", num_envs)

    def reset(keys):
        state, obs = full.reset(keys)
        return state, obs[:, ::2]

    def step(draws, state, action):
        state, result = full.step(draws, state, action)
        return state, result._replace(obs=result.obs[:, ::2], final_obs=result.final_obs[:, ::2])

    return full._replace(reset=reset, step=step, observation_space=Box((2,)))


purejaxppo.register_policy("last_observation", last_observation)
purejaxppo.register_env("still-cartpole", still_cartpole)
