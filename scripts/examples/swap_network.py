"""Your own network: any object with `init(key, obs)` and `apply(params, obs) -> (distribution, value)`.

`FeedForward` makes a policy without memory of it. Here the network is one wide layer of random Fourier features that is
never trained, under linear heads that are.
"""

import jax
import jax.numpy as jnp

from purejaxppo import Hyperparams, TrainConfig, advance, from_gymnax, make_trainer, ppo_clip
from purejaxppo.core.distributions import Categorical
from purejaxppo.core.types import Discrete
from purejaxppo.policies.feed_forward import FeedForward


class RandomFeatures:
    """Maps obs [..., O] -> cos and sin of W obs [..., features] -> logits [..., A], value [...]."""

    def __init__(self, num_actions: int, features: int = 256):
        self.num_actions, self.features = num_actions, features

    def init(self, key, obs):
        return {
            "weight": jax.random.normal(key, (obs.shape[-1], self.features // 2)),
            "policy": jnp.zeros((self.features, self.num_actions)),
            "value": jnp.zeros((self.features, 1)),
        }

    def apply(self, params, obs):
        angle = obs @ jax.lax.stop_gradient(params["weight"])
        features = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1) / jnp.sqrt(self.features)
        return Categorical(features @ params["policy"]), (features @ params["value"])[..., 0]


def main(total_timesteps: int = 200_000) -> float:
    """Trains on CartPole and returns the last mean episode return, of at most 500."""
    config = TrainConfig(total_timesteps=total_timesteps, num_envs=8, num_steps=64, num_epochs=10)
    hp = Hyperparams(learning_rate=1e-2)
    env = from_gymnax(config.env, config.num_envs)
    assert isinstance(env.action_space, Discrete)
    policy = FeedForward(RandomFeatures(env.action_space.n))
    trainer = make_trainer(config, env, policy, ppo_clip(config, policy))
    run = jax.jit(lambda key: advance(trainer, hp, trainer.init(key, hp), config.num_updates))
    _, metrics = run(jax.random.key(0))
    episode_return = float(jnp.nanmean(metrics["episode/return"][-10:]))
    print(f"return after {config.env_steps:,} env steps: {episode_return:.0f} of 500")
    return episode_return


if __name__ == "__main__":
    main()
