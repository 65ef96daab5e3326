"""Loading a saved run from its directory."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.config import TrainConfig
from purejaxppo.config.fields import AnyPath
from purejaxppo.config.resolve import refuse_changes
from purejaxppo.core.distributions import MultiCategorical
from purejaxppo.core.normalizer import Normalizer
from purejaxppo.core.observations import CRITIC
from purejaxppo.core.types import Memory, Observation, Params, RunnerState, Trainer, VecEnv
from purejaxppo.envs.registry import make_env
from purejaxppo.envs.wrappers import action_bound
from purejaxppo.errors import CheckpointError, ConfigError
from purejaxppo.evaluate import frozen
from purejaxppo.experiment.checkpoints.store import NEWEST, CheckpointChoice, load_newest
from purejaxppo.experiment.directory import RunSettings, read_run_settings
from purejaxppo.experiment.parts import Parts, know_parts
from purejaxppo.policies.registry import make_policy
from purejaxppo.train import trainer_from_config


@dataclass(frozen=True, eq=False)
class SavedRun:
    """A run loaded from one of its checkpoints."""

    config: TrainConfig
    env: VecEnv  # of config.num_envs copies
    runner: RunnerState
    meta: dict[str, Any]  # the checkpoint's meta.json

    @property
    def params(self) -> Params:
        """The policy's parameters."""
        return self.runner.learner.params

    @property
    def normalizer(self) -> Normalizer:
        """The statistics by which observations and rewards are normalised; None for what is not."""
        return self.runner.normalizer

    @property
    def seen(self) -> Observation:
        """Observations [E, ...] as the policy needs them to act: without what the value function alone sees."""
        obs = self.runner.obs
        return {key: x for key, x in obs.items() if key != CRITIC} if isinstance(obs, dict) else obs

    def policy(self, obs: Any, memory: Memory = None) -> tuple[Any, Memory]:
        """Returns the greedy actions for raw observations, as the environment takes them, and the memory after them.

        Args:
          obs: of one environment [...], or of several [b, ...]; "critic" may be left out.
          memory: what the call before has returned; None at the beginning of episodes. It is () for a policy without
            memory.
        """
        like = self.seen
        arrays = {key: np.asarray(obs[key]) for key in like} if isinstance(like, dict) else np.asarray(obs)
        one = jax.tree.map(np.ndim, arrays) == jax.tree.map(lambda x: x.ndim - 1, like)
        rows = jax.tree.map(lambda x, y: x.astype(y.dtype)[None] if one else x.astype(y.dtype), arrays, like)
        number = len(jax.tree.leaves(rows)[0])
        if memory is None:
            memory = make_policy(self.config, self.env).initial_memory(number)
            taken, after = self._compiled_step(rows, memory, np.ones(number, np.bool_))
        else:
            before = jax.tree.map(lambda x: x[None], memory) if one else memory
            taken, after = self._compiled_step(rows, before, np.zeros(number, np.bool_))
        action = taken["action"]
        return (action[0], jax.tree.map(lambda x: x[0], after)) if one else (action, after)

    @cached_property
    def _compiled_step(self) -> Callable[..., Any]:
        return jax.jit(self.step)

    def step(self, obs: Any, memory: Memory, start: jax.Array) -> tuple[dict[str, jax.Array], Memory]:
        """Takes one step of the greedy policy with its normaliser frozen: obs, memory and start [b] -> (dict, memory).

        The dictionary has `action`, as the environment takes it ([b] or [b, F] int32, or [b, *shape] float32 within the
        bounds), and the parameters of the distribution whose mode it is: `logits` [b, n], or those of all factors side
        by side [b, sum(sizes)], or `mean` and `log_std` [b, A] of the Gaussian before it is clipped or squashed.
        """
        policy = frozen(make_policy(self.config, self.env), self.runner)
        bound = action_bound(self.config, self.env.action_space)
        pi: Any
        memory, pi = policy.act(self.params, memory, obs, start)
        action = pi.mode() if bound is None else bound(pi.mode())
        parameters = {"logits": pi.logits} if isinstance(pi, MultiCategorical) else pi._asdict()
        return {"action": action, **parameters}, memory


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
