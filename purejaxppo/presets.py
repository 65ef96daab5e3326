"""Tuned settings per environment: what is set instead of the defaults of `TrainConfig` and `Hyperparams`.

The budgets and the returns reached with them are in benchmarks/learning.md.
"""

from typing import Any

_CONTINUOUS = {
    "normalize_observation": True,
    "normalize_reward": True,
    "ent_coef": 0.0,
}
_MINATAR = {
    "total_timesteps": 10_000_000,
    "num_envs": 64,
    "num_steps": 128,
    "num_epochs": 2,
    "num_minibatches": 32,
    "hidden_sizes": (128,),
    "activation": "relu",
    "shared_torso": True,
    "learning_rate": 2.5e-3,
    "gamma": 0.999,
}

PRESETS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "total_timesteps": 150_000,
        "num_envs": 8,
        "num_steps": 128,
        "num_epochs": 10,
        "learning_rate": 1e-3,
        "gamma": 0.98,
        "gae_lambda": 0.9,
    },
    "Acrobot-v1": {
        "total_timesteps": 500_000,
        "num_envs": 16,
        "num_steps": 128,
        "learning_rate": 1e-3,
    },
    "MountainCar-v0": {
        "total_timesteps": 1_000_000,
        "num_envs": 16,
        "num_steps": 256,
        "gamma": 0.99,
        "gae_lambda": 0.98,
        "normalize_observation": True,
        "normalize_reward": True,
    },
    "MountainCarContinuous-v0": {
        **_CONTINUOUS,
        "total_timesteps": 250_000,
        "num_envs": 8,
        "num_steps": 256,
        "gamma": 0.999,
    },
    "Pendulum-v1": {
        **_CONTINUOUS,
        "total_timesteps": 1_000_000,
        "num_envs": 32,
        "num_steps": 64,
        "num_epochs": 10,
        "gamma": 0.95,
        "learning_rate": 1e-3,
    },
    "Catch-bsuite": {
        "total_timesteps": 250_000,
        "num_envs": 16,
        "learning_rate": 1e-3,
    },
    "DiscountingChain-bsuite": {
        "total_timesteps": 250_000,
        "num_envs": 16,
        "gamma": 0.9,
        "learning_rate": 1e-3,
    },
    "FourRooms-misc": {
        "total_timesteps": 1_000_000,
        "num_envs": 32,
        "normalize_observation": True,
    },
    "Asterix-MinAtar": _MINATAR,
    "Breakout-MinAtar": {**_MINATAR, "total_timesteps": 5_000_000},
    "Freeway-MinAtar": _MINATAR,
    "Seaquest-MinAtar": _MINATAR,
    "SpaceInvaders-MinAtar": _MINATAR,
    "PointRobot-misc": _CONTINUOUS,
    "Reacher-misc": _CONTINUOUS,
    "Swimmer-misc": _CONTINUOUS,
}


def preset(env: str) -> dict[str, Any]:
    """Field -> value for an environment; empty for one without a preset, which takes the defaults."""
    return dict(PRESETS.get(env, {}))
