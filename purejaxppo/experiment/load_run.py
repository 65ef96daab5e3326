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
from purejaxppo.core.observations import CRITIC, OBS
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

    def policy(self, obs: Any, memory: Memory = None, start: Any = None) -> tuple[Any, Memory]:
        """Returns the greedy action for an observation as `env` returns it, and the policy's memory after it.

        The action is as the environment takes it: int32 [], int32 [F], or float32 [*shape] within the bounds; with the
        leading axis [b] for several environments.

        Args:
          obs: of one environment [...], or of several [b, ...]: arrays or lists, or a dict of them, in which
            "critic" is not used and may be left out.
          memory: what the call before has returned; None where episodes begin. It is () for a policy without memory.
          start: bool [] or [b], where an episode begins although there is a memory, as after an auto-reset; by default
            nowhere.

        Raises:
          ConfigError: an argument of another shape, or numbers that the observation's type does not have.
        """
        rows, one = _rows(obs, self.seen)
        number = len(jax.tree.leaves(rows)[0])
        if memory is None:
            before, begins = make_policy(self.config, self.env).initial_memory(number), np.ones(number, np.bool_)
        else:
            before = jax.tree.map(lambda x: jnp.asarray(x)[None], memory) if one else memory
            begins = np.zeros(number, np.bool_) if start is None else np.atleast_1d(np.asarray(start, np.bool_))
            if _shapes(before) != jax.tree.map(lambda x: (number, *x.shape[1:]), self.runner.memory):
                raise ConfigError(
                    f"the memory is not that of {number} environments; pass what the call before has returned, or None "
                    f"where episodes begin."
                )
            if begins.shape != (number,):
                raise ConfigError(
                    f"start has the shape {list(begins.shape)}, not {[number]}; give one per environment."
                )
        taken, after = self._compiled_step(rows, before, begins)
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
        if isinstance(pi, MultiCategorical):
            parameters = {"logits": pi.logits}
        else:
            parameters = pi._asdict() if hasattr(pi, "_asdict") else {}  # a distribution of one's own may have no names
        return {"action": action, **parameters}, memory


def _rows(obs: Any, like: Any) -> tuple[Any, bool]:
    """Returns observations [b, ...] in the types of `like` [E, ...], and whether they were those of one environment.

    Raises ConfigError for other keys than those of `like` and "critic", other shapes, or other numbers.
    """
    expected = like if isinstance(like, dict) else {OBS: like}
    given = {OBS: obs}
    if isinstance(like, dict) and isinstance(obs, dict):
        given = {key: x for key, x in obs.items() if key != CRITIC}
    if isinstance(obs, dict) != isinstance(like, dict) or given.keys() != expected.keys():
        raise ConfigError(f"the observation is {_kind(obs)}; the policy takes {_kind(like)}.")
    arrays = {key: _array(key, x, expected[key].dtype) for key, x in given.items()}
    first = next(iter(arrays))
    one = arrays[first].ndim < expected[first].ndim
    lead = () if one else arrays[first].shape[:1]
    for key, x in arrays.items():
        shape = expected[key].shape[1:]
        if x.shape != (*lead, *shape):
            several = f"[{', '.join(['b', *map(str, shape)])}]"
            raise ConfigError(
                f"the observation{_name(key)} has the shape {list(x.shape)}; it has to be {list(shape)}, or {several} "
                f"for b environments{'' if len(arrays) == 1 else ', with all keys alike'}."
            )
    rows = {key: x[None] if one else x for key, x in arrays.items()}
    return (rows if isinstance(like, dict) else rows[OBS]), one


def _array(key: str, x: Any, dtype: Any) -> np.ndarray:
    """Returns x in an observation's type. Raises ConfigError for what is no array of numbers which that type has."""
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise ConfigError(f"the observation{_name(key)} is no array: {error}") from error
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == np.bool_):
        raise ConfigError(f"the observation{_name(key)} is of the type {array.dtype}; give numbers, {dtype}.")
    with np.errstate(invalid="ignore"):
        converted = array.astype(dtype)
    # Fractions would become 0 without a word, such as a picture from 0 to 1 in place of 0 to 255.
    if not jnp.issubdtype(dtype, jnp.floating) and not np.array_equal(converted, array):
        raise ConfigError(
            f"the observation{_name(key)} has numbers that are no {dtype}; give them as env returns them."
        )
    return converted


def _name(key: str) -> str:
    return "" if key == OBS else f" {key!r}"


def _kind(obs: Any) -> str:
    return f"a dict with the keys {', '.join(sorted(map(str, obs)))}" if isinstance(obs, dict) else "one array"


def _shapes(tree: Any) -> Any:
    return jax.tree.map(np.shape, tree)


def load_run(
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
