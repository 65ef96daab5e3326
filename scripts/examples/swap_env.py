"""Your own environment: write reset and step, wrap them in a `VecEnv`, hand it to the trainer.

A point on a line is pushed left or right and rewarded for staying near 0; an episode is truncated after 50 steps.
"""

import jax
import jax.numpy as jnp

from purejaxppo import Hyperparams, TrainConfig, advance, trainer_from_config
from purejaxppo.core.types import Box, Discrete, EnvStep, VecEnv

LIMIT = 50


def line_world(num_envs: int) -> VecEnv:
    """Returns E environments with state (position [E], time [E]), observation [E, 1], and actions left and right."""

    def observe(position):
        return position[:, None]

    def reset(keys):
        position = jax.vmap(lambda key: jax.random.uniform(key, minval=-1.0, maxval=1.0))(keys)
        return (position, jnp.zeros(len(keys), jnp.int32)), observe(position)

    def step(keys, state, action):
        position, time = state
        position, time = position + jnp.where(action == 1, 0.1, -0.1), time + 1
        terminated, truncated = jnp.abs(position) > 2.0, time >= LIMIT
        done = terminated | truncated
        (new_position, new_time), _ = reset(keys)
        final_obs = observe(position)
        reward = 1.0 - jnp.abs(position)
        position, time = jnp.where(done, new_position, position), jnp.where(done, new_time, time)
        result = EnvStep(observe(position), final_obs, reward, terminated, truncated, {})
        return (position, time), result

    return VecEnv(reset, step, Box((1,)), Discrete(2), num_envs, step_limit=LIMIT)


def main(total_timesteps: int = 100_000) -> float:
    """Trains and returns the last mean episode return, of at most 50."""
    config = TrainConfig(env="line-world", total_timesteps=total_timesteps, num_envs=32, num_steps=64)
    hp = Hyperparams(learning_rate=1e-3)
    trainer = trainer_from_config(config, line_world(config.num_envs))
    run = jax.jit(lambda key: advance(trainer, hp, trainer.init(key, hp), config.num_updates))
    _, metrics = run(jax.random.key(0))
    episode_return = float(metrics["episode/return"][-1])
    print(f"return after {config.env_steps:,} env steps: {episode_return:.1f} of {LIMIT}")
    return episode_return


if __name__ == "__main__":
    main()
