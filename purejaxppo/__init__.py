"""PPO for JAX: rollout, advantage and update in one jitted function over vmapped environments."""

import importlib
from typing import TYPE_CHECKING, Any

from purejaxppo.devices import cpu as _cpu  # sets XLA's number of CPU threads, before JAX is used

if TYPE_CHECKING:
    from purejaxppo.algorithms import policy_gradient, ppo_clip, ppo_kl, register_algorithm, trpo
    from purejaxppo.config import Hyperparams, TrainConfig
    from purejaxppo.core.optimizer import register_optimizer, register_schedule
    from purejaxppo.devices.cpu import use_all_cores
    from purejaxppo.devices.data_parallel import spread_trainer
    from purejaxppo.devices.vectorize import advance_runs, grid, make_runs
    from purejaxppo.envs.autoreset import autoreset
    from purejaxppo.envs.gymnax_adapter import from_gymnax
    from purejaxppo.envs.presets import preset
    from purejaxppo.envs.registry import register_env
    from purejaxppo.experiment.run import run_experiment
    from purejaxppo.policies.registry import make_policy, register_policy
    from purejaxppo.train import advance, make_trainer, trainer_from_config

_MODULES = {
    "Hyperparams": "core.types",  # where it becomes a pytree
    "TrainConfig": "config",
    "advance": "train",
    "advance_runs": "devices.vectorize",
    "autoreset": "envs.autoreset",
    "from_gymnax": "envs.gymnax_adapter",
    "grid": "devices.vectorize",
    "make_policy": "policies.registry",
    "make_runs": "devices.vectorize",
    "make_trainer": "train",
    "policy_gradient": "algorithms",
    "ppo_clip": "algorithms",
    "ppo_kl": "algorithms",
    "preset": "envs.presets",
    "register_algorithm": "algorithms",
    "register_env": "envs.registry",
    "register_optimizer": "core.optimizer",
    "register_policy": "policies.registry",
    "register_schedule": "core.optimizer",
    "run_experiment": "experiment.run",
    "spread_trainer": "devices.data_parallel",
    "trainer_from_config": "train",
    "trpo": "algorithms",
    "use_all_cores": "devices.cpu",
}
__all__ = sorted(_MODULES)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `purejaxppo --help` does not wait for JAX.
    if name not in _MODULES:
        raise AttributeError(f"module 'purejaxppo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"purejaxppo.{_MODULES[name]}"), name)
