"""Your own policy objective: a function of ratio, advantage and clip_eps, to be maximised.

Here a smooth relative of the clip: the advantage times a ratio that saturates by tanh, on whichever side is worse.
"""

import jax
import jax.numpy as jnp

from purejaxppo import Hyperparams, TrainConfig, advance, from_gymnax, make_policy, make_trainer, ppo_clip


def soft_clipped_surrogate(ratio, advantage, clip_eps):
    """Returns the mean of min(r A, (1 + eps tanh((r - 1) / eps)) A) over a minibatch [B]."""
    saturated = 1.0 + clip_eps * jnp.tanh((ratio - 1.0) / clip_eps)
    return jnp.mean(jnp.minimum(ratio * advantage, saturated * advantage))


def main(total_timesteps: int = 150_000) -> float:
    """Trains on CartPole and returns the last mean episode return, of at most 500."""
    config = TrainConfig(total_timesteps=total_timesteps, num_envs=8, num_steps=32, num_epochs=10)
    hp = Hyperparams(learning_rate=1e-3)
    env = from_gymnax(config.env, config.num_envs)
    policy = make_policy(config, env)
    algorithm = ppo_clip(config, policy, objective=soft_clipped_surrogate)
    trainer = make_trainer(config, env, policy, algorithm)
    run = jax.jit(lambda key: advance(trainer, hp, trainer.init(key, hp), config.num_updates))
    _, metrics = run(jax.random.key(0))
    episode_return = float(jnp.nanmean(metrics["episode/return"][-10:]))
    print(f"return after {config.env_steps:,} env steps: {episode_return:.0f} of 500")
    return episode_return


if __name__ == "__main__":
    main()
