"""PPO for JAX: rollout, advantage and update in one jitted function over vmapped environments."""

import importlib
from typing import TYPE_CHECKING, Any

from purejaxppo import threads as _threads  # noqa: F401, which chooses how many there are, before JAX is used

if TYPE_CHECKING:
    from purejaxppo.algorithms import policy_gradient, ppo_clip, ppo_kl, trpo
    from purejaxppo.config import Hyperparams, TrainConfig
    from purejaxppo.envs import from_gymnax
    from purejaxppo.experiment import run_experiment
    from purejaxppo.networks import make_network
    from purejaxppo.presets import preset
    from purejaxppo.runs import advance_runs, grid, make_runs
    from purejaxppo.spread import spread_trainer
    from purejaxppo.threads import use_all_cores
    from purejaxppo.train import advance, make_trainer, trainer_from_config

__all__ = [
    "Hyperparams",
    "TrainConfig",
    "advance",
    "advance_runs",
    "from_gymnax",
    "grid",
    "make_network",
    "make_runs",
    "make_trainer",
    "policy_gradient",
    "ppo_clip",
    "ppo_kl",
    "preset",
    "run_experiment",
    "spread_trainer",
    "trainer_from_config",
    "trpo",
    "use_all_cores",
]

_MODULES = {
    "Hyperparams": "types",  # where it becomes a pytree
    "TrainConfig": "config",
    "advance": "train",
    "advance_runs": "runs",
    "from_gymnax": "envs",
    "grid": "runs",
    "make_network": "networks",
    "make_runs": "runs",
    "make_trainer": "train",
    "policy_gradient": "algorithms",
    "ppo_clip": "algorithms",
    "ppo_kl": "algorithms",
    "preset": "presets",
    "run_experiment": "experiment",
    "spread_trainer": "spread",
    "trainer_from_config": "train",
    "trpo": "algorithms",
    "use_all_cores": "threads",
}


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:
    # Late, so that `purejaxppo --help` does not wait for JAX.
    if name not in _MODULES:
        raise AttributeError(f"module 'purejaxppo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"purejaxppo.{_MODULES[name]}"), name)
