"""PPO for JAX: rollout, advantage and update in one jitted function over vmapped environments."""

import contextlib
import importlib
import os
from typing import TYPE_CHECKING, Any

# With fewer than four worker threads XLA's CPU client can wait for itself forever inside a vmapped training loop; it
# sizes its pool by this variable when the first device is used, and otherwise by the cores that this process may use.
# See docs/architecture.md.
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_CHOSE_THREADS = _CORES < 4 and "NPROC" not in os.environ
if _CHOSE_THREADS:
    os.environ["NPROC"] = "4"


def use_all_cores() -> None:
    """Makes a CPU device of each core, with one thread each, for the runs of `make_runs` to be spread over.

    Before JAX uses its first device; later it changes nothing. JAX_NUM_CPU_DEVICES and NPROC of the environment
    stand. Not for programs that `vmap` a training loop on a CPU: with so few threads they may hang.
    """
    import jax

    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # JAX has started already
            jax.config.update("jax_num_cpu_devices", _CORES)
    if _CHOSE_THREADS:
        os.environ["NPROC"] = str(_CORES)


if TYPE_CHECKING:
    from purejaxppo.algorithms import policy_gradient, ppo_clip, ppo_kl, trpo
    from purejaxppo.config import Hyperparams, TrainConfig
    from purejaxppo.envs import from_gymnax
    from purejaxppo.experiment import run_experiment
    from purejaxppo.networks import make_network
    from purejaxppo.presets import preset
    from purejaxppo.runs import advance_runs, grid, make_runs
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
    "trainer_from_config": "train",
    "trpo": "algorithms",
}


def __getattr__(name: str) -> Any:
    # Late, so that `purejaxppo --help` does not wait for JAX.
    if name not in _MODULES:
        raise AttributeError(f"module 'purejaxppo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"purejaxppo.{_MODULES[name]}"), name)
