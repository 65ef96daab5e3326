"""The code that sb3.py and sbx.py share: the constructor of PPO, and the training of a block."""

import warnings
from typing import Any

from benchmarks.trainers.protocol import Settings

DIFFERENCES = (
    "environments are Gymnasium's in Python, stepped one after the other by DummyVecEnv",
    "given half of vf_coef, since its value loss has no factor 0.5",
)


def make_model(algorithm: Any, settings: Settings, **more: Any) -> Any:
    """Returns a model of the class `algorithm` on CartPole-v1."""
    import gymnasium
    from stable_baselines3.common.vec_env import DummyVecEnv

    batch = settings.num_envs * settings.num_steps
    holder: list[Any] = []  # of the model: stable-baselines3's own progress starts anew at every call of `learn`

    def learning_rate(_progress: float) -> float:
        update = holder[0].num_timesteps // batch - 1 if holder else 0
        return settings.learning_rate_after(max(update, 0))

    model = algorithm(
        "MlpPolicy",
        DummyVecEnv([lambda: gymnasium.make("CartPole-v1")] * settings.num_envs),
        learning_rate=learning_rate,
        n_steps=settings.num_steps,
        batch_size=batch // settings.num_minibatches,
        n_epochs=settings.num_epochs,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        clip_range=settings.clip_eps,
        vf_coef=0.5 * settings.vf_coef,
        ent_coef=settings.ent_coef,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        **more,
    )
    holder.append(model)
    return model


def train_blocks(model: Any, settings: Settings, blocks: int) -> None:
    """Trains on from where the model is, without its log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.learn(blocks * settings.block_steps, reset_num_timesteps=False, log_interval=None)
