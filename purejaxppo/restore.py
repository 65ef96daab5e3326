"""A saved run, back from its directory."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.checkpoint import load_checkpoint
from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.envs import from_gymnax
from purejaxppo.run_dir import read_config
from purejaxppo.train import trainer_from_config
from purejaxppo.types import RunnerState, VecEnv


class SavedRun(NamedTuple):
    """What a run directory says and holds."""

    config: TrainConfig
    hp: Hyperparams
    env: VecEnv  # of config.num_envs copies
    runner: RunnerState


def restore(run_dir: Path, *, allow_download: bool = False) -> SavedRun:
    """The newest checkpoint of a run, with everything that is needed to use it.

    Raises CheckpointError for a directory or a checkpoint that cannot be used.
    """
    config, hp = read_config(run_dir)
    env = from_gymnax(config.env, config.num_envs, allow_download=allow_download, **dict(config.env_params))
    trainer = trainer_from_config(config, env)
    expected = jax.eval_shape(trainer.init, jax.random.key(0), jax.tree.map(jnp.float32, hp))
    return SavedRun(config, hp, env, load_checkpoint(run_dir, expected))
