"""Tuned settings per environment, which replace the defaults of `TrainConfig` and `Hyperparams`.

The returns that they reach within their budgets are in benchmarks/learning.md.
"""

from typing import Any

from purejaxppo.config.fields import TrainConfig

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
        "num_steps": 128,
        "num_epochs": 10,
        "learning_rate": 3e-3,
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
        "num_steps": 128,
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
    "MemoryChain-bsuite": {
        "total_timesteps": 500_000,
        "num_envs": 16,
        "num_steps": 128,
        "num_epochs": 8,
        "hidden_sizes": (64,),
        "policy": "gru",
        "shared_torso": True,
        "learning_rate": 1e-3,
        "ent_coef": 0.0,
        "target_kl": 0.02,  # without it one run in ten forgot what it had learnt
    },
    "FourRooms-misc": {
        "total_timesteps": 1_000_000,
        "num_envs": 32,
        "normalize_observation": True,
    },
    "Asterix-MinAtar": _MINATAR,
    "Breakout-MinAtar": _MINATAR,
    "Freeway-MinAtar": _MINATAR,
    "Seaquest-MinAtar": _MINATAR,
    "SpaceInvaders-MinAtar": _MINATAR,
    "PointRobot-misc": _CONTINUOUS,
    "Reacher-misc": _CONTINUOUS,
    "Swimmer-misc": _CONTINUOUS,
}


# Settings of an algorithm that are added to those of the environment, or replace them: algorithm -> environment ->
# settings.
ALGORITHM_PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "trpo": {
        # The critic must not share the policy's torso.
        **{env: {"shared_torso": False} for env, settings in PRESETS.items() if settings.get("shared_torso")},
        # Every policy step goes to the boundary of the trust region, even if the gradient is mostly noise. The gradient
        # of a larger batch has less of it.
        "Pendulum-v1": {"num_steps": 256, "gamma": 0.9, "target_kl": 0.02},
    },
}

# Environment -> published return of PPO that a preset has to reach (benchmarks/learning.md).
TARGETS = {
    "CartPole-v1": 475,
    "Acrobot-v1": -90,
    "MountainCar-v0": -130,
    "MountainCarContinuous-v0": 85,
    "Pendulum-v1": -200,
    "Catch-bsuite": 0.95,
    "DiscountingChain-bsuite": 1.05,
    "FourRooms-misc": 0.9,
    "Asterix-MinAtar": 12,
    "Breakout-MinAtar": 25,
    "Freeway-MinAtar": 50,
    "SpaceInvaders-MinAtar": 110,
}

_UNSEEN_GOAL = "its goal is not shown, so a policy without memory cannot go back to it (--policy gru has memory)"
# Environment -> what it hides from a policy without memory, to which it is only partially observable (as read in gymnax
# 1.0.1). BernoulliBandit and GaussianBandit are not among them: their observations contain the last action and reward,
# so a policy can repeat an action that paid. UmbrellaChain and DiscountingChain show all that matters at every step.
HIDDEN = {
    "MemoryChain-bsuite": "the bit that it asks for at the end is shown in the first steps only, so a policy without "
    "memory does no better than chance (--policy gru has memory)",
    "SimpleBandit-bsuite": "which arm pays is drawn for every episode of one step and never shown, so no policy "
    "does better than chance",
    "MetaMaze-misc": _UNSEEN_GOAL,
    "PointRobot-misc": _UNSEEN_GOAL,
}
# Those of them in which a policy with memory has seen what it needs.
REMEMBERED = frozenset({"MemoryChain-bsuite", "MetaMaze-misc", "PointRobot-misc"})


def tuned_settings(env: str, algorithm: str) -> dict[str, Any]:
    """Returns the tuned settings of an environment and an algorithm; none for names that are not in the tables."""
    return {**PRESETS.get(env, {}), **ALGORITHM_PRESETS.get(algorithm, {}).get(env, {})}


def target_of(config: TrainConfig) -> float | None:
    """Returns the published return of an environment; None if there is none, or the parameters are not the default."""
    return None if config.env_params else TARGETS.get(config.env)
