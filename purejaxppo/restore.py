"""A saved run, back from its directory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.envs import from_gymnax
from purejaxppo.errors import CheckpointError
from purejaxppo.run_dir import read_run_settings
from purejaxppo.settings import CHANGEABLE, differences, settings_record
from purejaxppo.store import load_newest
from purejaxppo.train import trainer_from_config
from purejaxppo.types import RunnerState, Trainer, VecEnv


class SavedRun(NamedTuple):
    """What a run directory says and holds."""

    config: TrainConfig
    env: VecEnv  # of config.num_envs copies
    runner: RunnerState
    meta: dict[str, Any]  # the checkpoint's meta.json


def restore(
    run_dir: Path,
    *,
    env_steps: int | None = None,
    strict: bool = False,
    note: Callable[[str], None] = lambda _: None,
    allow_download: bool = False,
) -> SavedRun:
    """The newest checkpoint of a run that passes verification, with everything that is needed to use it.

    Args:
      run_dir: of the run; it may be in use.
      env_steps: take the checkpoint of so many env steps, and no other.
      strict: refuse to fall back to an older one.
      note: told why a newer one was passed over.
      allow_download: let the environment fetch its data set.

    Raises:
      CheckpointError: there is no checkpoint that can be used.
      EnvError: the environment cannot be built.
    """
    config, hp, _, _ = read_run_settings(run_dir)
    env = from_gymnax(config.env, config.num_envs, allow_download=allow_download, **dict(config.env_params))
    trainer = trainer_from_config(config, env)
    runner, meta = load_runner(run_dir, config, hp, trainer, env_steps=env_steps, strict=strict, note=note)
    return SavedRun(config, env, runner, meta)


def load_runner(
    run_dir: Path, config: TrainConfig, hp: Hyperparams, trainer: Trainer, **options: Any
) -> tuple[RunnerState, dict[str, Any]]:
    """The state and meta.json of a run's checkpoint, for settings that differ from its own in CHANGEABLE only.

    `options` as in `load_newest`. Raises CheckpointError.
    """
    expected = jax.eval_shape(trainer.init, jax.random.key(0), jax.tree.map(jnp.float32, hp))
    runner, meta = load_newest(run_dir, expected, **options)
    changed = differences(meta["settings"], settings_record(config, hp))
    changed = {name: change for name, change in changed.items() if name not in CHANGEABLE}
    if changed:
        raise CheckpointError(
            f"{run_dir / 'config.json'} has been changed since the checkpoint was saved: "
            f"{', '.join(changed.values())}; change it back, or train anew with the new settings."
        )
    return runner, meta
