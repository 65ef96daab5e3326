"""CartPole-v1 as a brax environment with one continuous action; brax itself ends an episode after its time."""

from typing import Any

import jax
import jax.numpy as jnp
from brax.envs.base import Env, State

from benchmarks.trainers import cartpole_numpy as cartpole


class CartPole(Env):
    """The cart is pushed to the right by a positive action, to the left by any other."""

    observation_size, action_size, backend = 4, 1, "none"

    def reset(self, rng: Any) -> Any:
        obs = jax.random.uniform(rng, (4,), minval=-0.05, maxval=0.05)
        return State(obs, obs, jnp.zeros(()), jnp.zeros(()))

    def step(self, state: Any, action: Any) -> Any:
        obs = cartpole.step(state.pipeline_state[None], action > 0, jnp)
        done = cartpole.fell(obs, jnp)[0].astype(jnp.float32)
        return state.replace(pipeline_state=obs[0], obs=obs[0], reward=jnp.ones(()), done=done)
