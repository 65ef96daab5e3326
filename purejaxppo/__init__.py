"""PPO for JAX: rollout, advantage and update in one jitted function over vmapped environments."""

import importlib
from typing import TYPE_CHECKING, Any

from purejaxppo.devices import cpu as _cpu  # sets XLA's number of CPU threads, before JAX is used
from purejaxppo.devices import gpu as _gpu  # sets XLA's flags for NVIDIA GPUs, before JAX is used

if TYPE_CHECKING:
    from purejaxppo.algorithms import policy_gradient, ppo_clip, ppo_kl, register_algorithm, trpo
    from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
    from purejaxppo.core.optimizer import register_optimizer, register_schedule
    from purejaxppo.core.types import Box, Discrete, EnvStep, MultiDiscrete, VecEnv
    from purejaxppo.devices.compile_cache import keep_programs
    from purejaxppo.devices.cpu import use_all_cores
    from purejaxppo.devices.data_parallel import spread_trainer
    from purejaxppo.devices.selection import use_devices
    from purejaxppo.devices.vectorize import advance_runs, grid, make_runs
    from purejaxppo.envs.autoreset import autoreset
    from purejaxppo.envs.gymnax_adapter import from_gymnax
    from purejaxppo.envs.presets import preset
    from purejaxppo.envs.registry import register_env
    from purejaxppo.experiment.export.export import export_saved
    from purejaxppo.experiment.load_run import SavedRun, load_run
    from purejaxppo.experiment.plots import plot_runs
    from purejaxppo.experiment.run import evaluate_saved, resume_experiment, run_experiment
    from purejaxppo.policies.feed_forward import FeedForward
    from purejaxppo.policies.registry import make_policy, register_policy
    from purejaxppo.sweeps.compare import compare
    from purejaxppo.sweeps.extract import extract_member, load_member
    from purejaxppo.sweeps.run import resume_sweep, run_sweep
    from purejaxppo.sweeps.spec import SweepSettings, sweep_grid
    from purejaxppo.train import advance, make_trainer, trainer_from_config

_MODULES = {
    "Box": "core.types",
    "Discrete": "core.types",
    "EnvStep": "core.types",
    "FeedForward": "policies.feed_forward",
    "Hyperparams": "core.types",  # where it becomes a pytree
    "MultiDiscrete": "core.types",
    "RunOptions": "config",
    "SavedRun": "experiment.load_run",
    "SweepSettings": "sweeps.spec",
    "TrainConfig": "config",
    "VecEnv": "core.types",
    "advance": "train",
    "advance_runs": "devices.vectorize",
    "autoreset": "envs.autoreset",
    "compare": "sweeps.compare",
    "evaluate_saved": "experiment.run",
    "export_saved": "experiment.export.export",
    "extract_member": "sweeps.extract",
    "from_gymnax": "envs.gymnax_adapter",
    "grid": "devices.vectorize",
    "keep_programs": "devices.compile_cache",
    "load_member": "sweeps.extract",
    "load_run": "experiment.load_run",
    "make_policy": "policies.registry",
    "make_runs": "devices.vectorize",
    "make_trainer": "train",
    "plot_runs": "experiment.plots",
    "policy_gradient": "algorithms",
    "ppo_clip": "algorithms",
    "ppo_kl": "algorithms",
    "preset": "envs.presets",
    "register_algorithm": "algorithms",
    "register_env": "envs.registry",
    "register_optimizer": "core.optimizer",
    "register_policy": "policies.registry",
    "register_schedule": "core.optimizer",
    "resume_experiment": "experiment.run",
    "resume_sweep": "sweeps.run",
    "run_experiment": "experiment.run",
    "run_sweep": "sweeps.run",
    "spread_trainer": "devices.data_parallel",
    "sweep_grid": "sweeps.spec",
    "trainer_from_config": "train",
    "trpo": "algorithms",
    "use_all_cores": "devices.cpu",
    "use_devices": "devices.selection",
}
__all__ = sorted(_MODULES)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `purejaxppo --help` does not wait for JAX.
    if name not in _MODULES:
        raise AttributeError(f"module 'purejaxppo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"purejaxppo.{_MODULES[name]}"), name)
