"""Loading a saved run from its directory."""

from pathlib import Path
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from purejaxppo.config import TrainConfig
from purejaxppo.config.fields import AnyPath
from purejaxppo.config.resolve import refuse_changes
from purejaxppo.core.types import RunnerState, Trainer, VecEnv
from purejaxppo.envs.registry import make_env
from purejaxppo.errors import CheckpointError, ConfigError
from purejaxppo.experiment.checkpoints.store import NEWEST, CheckpointChoice, load_newest
from purejaxppo.experiment.directory import RunSettings, read_run_settings
from purejaxppo.experiment.parts import Parts, know_parts
from purejaxppo.train import trainer_from_config


class SavedRun(NamedTuple):
    """A run loaded from one of its checkpoints."""

    config: TrainConfig
    env: VecEnv  # of config.num_envs copies
    runner: RunnerState
    meta: dict[str, Any]  # the checkpoint's meta.json


def restore(
    run_dir: AnyPath, which: CheckpointChoice = NEWEST, *, allow_download: bool = False, **parts: Unpack[Parts]
) -> SavedRun:
    """Loads a checkpoint of a run, and builds its environment.

    Args:
      run_dir: the run's directory; training may be going on in it.
      which: the checkpoint, by default the newest valid one.
      allow_download: let the environment download its data set.
      **parts: those of one's own that the run's settings name (`Parts`).

    Raises:
      CheckpointError: there is no checkpoint that can be used.
      EnvError: the environment cannot be built.
    """
    run_dir = Path(run_dir)
    settings = read_run_settings(run_dir)
    config = settings.config
    know_parts([config], **parts)
    env = make_env(config, allow_download=allow_download)
    runner, meta = load_runner(run_dir, settings, trainer_from_config(config, env), which)
    return SavedRun(config, env, runner, meta)


def load_runner(
    run_dir: Path, settings: RunSettings, trainer: Trainer, which: CheckpointChoice = NEWEST
) -> tuple[RunnerState, dict[str, Any]]:
    """Loads the state and the meta.json of a run's checkpoint.

    Raises CheckpointError if there is no usable checkpoint, or if it was saved under settings from which these differ
    in more than a resumed run may change.
    """
    expected = jax.eval_shape(trainer.init, jax.random.key(0), jax.tree.map(jnp.float32, settings.hp))
    runner, meta = load_newest(run_dir, expected, which)
    path = run_dir / "config.json"
    try:
        refuse_changes(
            meta["settings"], settings.record(), f"change {path} back, or start a new run with the new settings."
        )
    except ConfigError as error:
        raise CheckpointError(f"{path} has been changed since the checkpoint was saved: {error}") from error
    return runner, meta
