"""Your own environment: write reset and step of one copy, let `autoreset` make a `VecEnv` of them, hand it over.

A point on a line is pushed left or right and rewarded for staying near 0; an episode is truncated after 50 steps.
"""

import jax
import jax.numpy as jnp

from purejaxppo import Hyperparams, TrainConfig, advance, autoreset, trainer_from_config
from purejaxppo.core.types import Box, Discrete

LIMIT = 50


def reset(key):
    """Returns the state, here the position [], and the observation [1]."""
    position = jax.random.uniform(key, minval=-1.0, maxval=1.0)
    return position, position[None]


def step(key, position, action):
    """Returns state, observation, reward, terminated and truncated; it need not know of limit and resets."""
    position = position + jnp.where(action == 1, 0.1, -0.1)
    return position, position[None], 1.0 - jnp.abs(position), jnp.abs(position) > 2.0, False


def main(total_timesteps: int = 100_000) -> float:
    """Trains and returns the last mean episode return, of at most 50."""
    config = TrainConfig(env="line-world", total_timesteps=total_timesteps, num_envs=32, num_steps=64)
    hp = Hyperparams(learning_rate=1e-3)
    env = autoreset(reset, step, Box((1,)), Discrete(2), config.num_envs, step_limit=LIMIT)
    trainer = trainer_from_config(config, env)
    run = jax.jit(lambda key: advance(trainer, hp, trainer.init(key, hp), config.num_updates))
    _, metrics = run(jax.random.key(0))
    episode_return = float(metrics["episode/return"][-1])
    print(f"return after {config.env_steps:,} env steps: {episode_return:.1f} of {LIMIT}")
    return episode_return


if __name__ == "__main__":
    main()
