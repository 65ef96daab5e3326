"""Checks of an environment: that it keeps the contract of `VecEnv`.

They trace once and compare shapes and types; nothing is computed. A mismatch that JAX would broadcast silently, or
report from deep inside a trace, becomes an error of one line.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.config.fields import EPISODE_METRICS
from purejaxppo.core.faults import describe
from purejaxppo.core.observations import ACTION_MASK
from purejaxppo.core.types import ActionSpace, Box, Discrete, EnvStep, MultiDiscrete, VecEnv
from purejaxppo.errors import EnvError

UNFIT = re.compile(r'\s*[,"\r\n]+\s*')  # in the name of an entry, which becomes that of a column of metrics.csv


def check_env(env: VecEnv, name: str = "the environment") -> None:
    """Raises EnvError for an environment that breaks the contract of `VecEnv` and `EnvStep`, naming the wrong part.

    Args:
      env: E environments.
      name: of the environment, for the message.
    """
    _check_declaration(env, name)
    state, obs = _traced_pair(name, env.reset, env_keys(env))
    _check_observation(env, name, "reset's second value", obs)
    check_step(env, state, name, obs)


def check_step(env: VecEnv, state: Any, name: str = "the environment", obs: Any = None) -> None:
    """Raises EnvError for a step that breaks the contract.

    Args:
      env: E environments.
      state: theirs, or its shapes.
      name: of the environment, for the message.
      obs: what reset returned, if the step's observations are to be compared with it.
    """
    next_state, result = _traced_pair(
        name, lambda keys, *args: env.step(env.draw(keys), *args), env_keys(env), state, env_actions(env)
    )
    if not isinstance(result, EnvStep):
        raise EnvError(f"{name}'s step returns the state and a {type(result).__name__}; it has to be an EnvStep.")
    for what, seen in (("step's obs", result.obs), ("step's final_obs", result.final_obs)):
        _check_observation(env, name, what, seen)
        for x, first in zip(jax.tree.leaves(seen), jax.tree.leaves(obs), strict=False):
            if x.dtype != first.dtype:
                raise EnvError(
                    f"{name} returns observations {spec(x)} ({what}), but {spec(first)} in reset; choose one."
                )
    _check_outcome(env, name, result)
    if jax.tree.map(signature, next_state) != jax.tree.map(signature, state):
        raise EnvError(f"{name}'s step returns a state of other shapes or types than its reset; make them the same.")


def _check_declaration(env: VecEnv, name: str) -> None:
    """Checks the fields of a `VecEnv` that are not functions."""
    gap, limit, space, seen = env.truncation_gap, env.step_limit, env.action_space, env.observation_space
    if gap < 1 or (limit is not None and gap > limit):
        raise EnvError(
            f"{name} has truncation_gap = {gap}, which has to be from 1 to its step_limit ({limit}); leave it out: "
            f"1 is always right."
        )
    if isinstance(space, Discrete) and space.n < 1:
        raise EnvError(f"{name} has {space.n} discrete actions; it needs at least one.")
    if isinstance(seen, dict) and ACTION_MASK in seen:
        wanted, mask = _choices(space), seen[ACTION_MASK].shape
        if mask != wanted:  # one of a single element would be broadcast over all actions
            raise EnvError(
                f"{name} declares {ACTION_MASK!r} of shape {list(mask)}, but has {_actions(space)}; a mask has one "
                f"element for each discrete action. Give it that shape, or the key another name."
            )
    if isinstance(space, Discrete):
        return
    if isinstance(space, MultiDiscrete):
        if not space.sizes or min(space.sizes) < 1:
            raise EnvError(
                f"{name} has actions with factors of the sizes {space.sizes}; it needs at least one factor, and one "
                f"choice in each."
            )
        return
    if 0 in space.shape:
        raise EnvError(f"{name} has actions of shape {space.shape}, without an element; it needs at least one.")
    try:
        low, high = space.bounds()
    except ValueError as error:
        raise EnvError(
            f"{name} has actions of shape {space.shape}, but bounds {space.low} and {space.high}; give one per element."
        ) from error
    if not np.all(low <= high):
        raise EnvError(f"{name} has actions with bounds {space.low} and {space.high}; no low may be above its high.")


def _choices(space: ActionSpace) -> tuple[int] | None:
    """Returns the shape of a mask: all choices of all factors side by side; None for continuous actions."""
    if isinstance(space, Box):
        return None
    return (space.n if isinstance(space, Discrete) else sum(space.sizes),)


def _traced_pair(name: str, function: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """Returns the shapes of the pair that an environment's reset or step returns."""

    def pair(*args: Any) -> tuple[Any, Any]:
        first, second = function(*args)
        return first, second

    return traced(name, pair, *args)


def traced(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Returns the shapes of what an environment's function returns. Raises EnvError, with its line, if it raises."""
    try:
        return jax.eval_shape(function, *args)
    except EnvError:
        raise
    except Exception as error:
        wide = getattr(jax.config, "jax_enable_x64", False)
        advice = " JAX_ENABLE_X64 is on, which not every environment supports; unset it." if wide else ""
        raise EnvError(f"{name} raises when it is traced: {describe(error)}.{advice}") from error


def _check_observation(env: VecEnv, name: str, what: str, obs: Any) -> None:
    space = env.observation_space
    spaces = space if isinstance(space, dict) else {"": space}
    arrays: dict[str, Any] = obs if isinstance(obs, dict) else {"": obs}
    if spaces.keys() != arrays.keys():
        raise EnvError(
            f"{name} returns observations {_names(obs)} ({what}), but declares {_names(space)} by observation_space; "
            f"make them agree."
        )
    for key, box in spaces.items():
        x, declared = arrays[key], (env.num_envs, *box.shape)
        if getattr(x, "shape", None) != declared:
            raise EnvError(
                f"{name} returns observations {f'{key!r} ' * bool(key)}{spec(x)} ({what}), but declares "
                f"{list(declared)} by num_envs and observation_space; make them agree."
            )
    mask = arrays.get(ACTION_MASK)
    if mask is not None and mask.dtype != jnp.bool_:
        raise EnvError(f"{name} returns {ACTION_MASK!r} {spec(mask)} ({what}); it has to be bool, one per action.")


def _names(obs: Any) -> str:
    """Returns the keys of an observation or of its space as text."""
    return f"with the keys {', '.join(sorted(obs))}" if isinstance(obs, dict) else "that are one array"


def _actions(space: ActionSpace) -> str:
    choices = _choices(space)
    kind = "actions" if isinstance(space, Discrete) else "choices"
    return f"{choices[0]} discrete {kind}" if choices else "continuous actions"


def _check_outcome(env: VecEnv, name: str, result: EnvStep) -> None:
    """Checks reward, flags and info of a step."""
    each = (env.num_envs,)
    for what, x, dtype in (
        ("reward", result.reward, jnp.float32),
        ("terminated", result.terminated, jnp.bool_),
        ("truncated", result.truncated, jnp.bool_),
    ):
        if signature(x) != (each, jnp.dtype(dtype)):
            wanted = jax.ShapeDtypeStruct(each, dtype)
            raise EnvError(f"{name} returns {what} {spec(x)}; it has to be {spec(wanted)}, one per environment.")
    if not isinstance(result.info, dict):
        raise EnvError(f"{name} returns an info {spec(result.info)}; it has to be a dict, which may be empty.")
    for what, x in result.info.items():
        if getattr(x, "shape", None) != each or not _is_numeric(x):
            raise EnvError(
                f"{name} returns info[{what!r}] {spec(x)}; it has to be {list(each)}, one number per environment."
            )
        if not isinstance(what, str) or UNFIT.search(what):
            raise EnvError(
                f"{name} returns info[{what!r}], which cannot be the name of a column in a table; leave out commas, "
                f"quotes and line breaks."
            )
        if what in EPISODE_METRICS:
            raise EnvError(f"{name} returns info[{what!r}], which is the name of a metric; give it another one.")


def env_keys(env: VecEnv) -> Any:
    return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), env.num_envs))


def env_actions(env: VecEnv) -> jax.ShapeDtypeStruct:
    """Returns the shape and type of the actions that the environments take."""
    one = env.action_space.element()
    return jax.ShapeDtypeStruct((env.num_envs, *one.shape), one.dtype)


def _is_numeric(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.number) or x.dtype == jnp.bool_


def signature(x: Any) -> tuple[Any, Any]:
    return getattr(x, "shape", None), getattr(x, "dtype", None)


def spec(x: Any) -> str:
    """Returns an array's type and shape as text, for example float32[4, 1]."""
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else f"of the type {type(x).__name__}"
