"""gymnax environments as a `VecEnv`. This is the only file that imports gymnax, and only when it is first used."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.config.fields import EPISODE_METRICS, plain, whole
from purejaxppo.config.validate import suggestion
from purejaxppo.core.check_env import UNFIT, check_env
from purejaxppo.core.faults import describe
from purejaxppo.core.types import ActionSpace, Box, Discrete, EnvState, EnvStep, MultiDiscrete, VecEnv
from purejaxppo.envs.autoreset import Draw, ResettingStep, auto_resetting
from purejaxppo.envs.lazy_imports import imported_lazily
from purejaxppo.errors import EnvError

_DOWNLOADS = {"MNISTBandit-bsuite"}
_GYMNAX_INFO = {"final_observation", "terminated", "truncated", "discount"}


def from_gymnax(name: str, num_envs: int, *, allow_download: bool = False, **env_params: Any) -> VecEnv:
    """Returns `num_envs` copies of a registered gymnax environment, with exact time limits.

    Rewards are float32, whatever the environment declares, and so are observations, but for pictures of the type uint8.
    A discrete observation becomes a one-hot vector. A `gymnax.environments.spaces.Dict` of these becomes a dict of
    arrays, in which bool stays bool, as an "action_mask" has to be.

    Numbers and truth values in the environment's `info` are reported (`EnvStep.info`), but for those that gymnax adds.
    Of gymnax 1.0.1's own environments only FrozenLake reports one, the probability `p` of its transition.

    Args:
      name: a gymnax id.
      num_envs: E.
      allow_download: permits an environment to download its data set.
      **env_params: fields of the environment's parameters, or arguments of its constructor.

    Raises:
      EnvError: unknown id or parameter, an invalid value, an unsupported space, or an environment that does not
        trace.
    """
    num_envs = whole(num_envs)
    env, params = _make(name, allow_download, {field: plain(value) for field, value in env_params.items()})
    try:
        observation_space, action_space = env.observation_space(params), env.action_space(params)
    except Exception as error:
        raise EnvError(f"{name} cannot describe its spaces: {describe(error)}.") from error
    encode, obs_space = _observation(name, observation_space)
    decode, act_space = _action(name, action_space)

    draw, step_one = _own_step(name, env, params) if _has_own_step(env) else _gymnax_step(env, params)

    def reset(keys: jax.Array) -> tuple[EnvState, Any]:
        obs, state = jax.vmap(env.reset, in_axes=(0, None))(keys, params)
        return state, encode(obs)

    def step(draws: Any, state: EnvState, action: jax.Array) -> tuple[EnvState, EnvStep]:
        state, result = jax.vmap(step_one)(draws, state, decode(action))
        return state, EnvStep(
            obs=encode(result.obs),
            final_obs=encode(result.final_obs),
            reward=result.reward.astype(jnp.float32),
            terminated=result.terminated != 0,
            truncated=result.truncated != 0,
            info=result.info,
        )

    limit = _step_limit(params)
    # Between two truncations by a time limit lie at least `limit` steps; other rules promise nothing.
    gap = limit if limit and _truncates_by_limit_alone(env) else 1
    vec_env = VecEnv(reset, step, obs_space, act_space, num_envs, limit, gap, jax.vmap(draw))
    check_env(vec_env, name)
    return vec_env


def _gymnax_step(env: Any, params: Any) -> tuple[Draw, ResettingStep]:
    """Returns `draw` and a step of one environment, which together are gymnax's own step with its auto-reset."""

    def reset(key: jax.Array) -> tuple[EnvState, Any]:
        obs, state = env.reset_env(key, params)
        return state, obs

    def step(key: jax.Array, state: EnvState, action: jax.Array) -> tuple[Any, ...]:
        obs, state, reward, terminated, info = env.step_env(key, state, action, params)
        return state, obs, reward, terminated, env.is_truncated(state, params), _reported(info)

    return auto_resetting(reset, step)


def _own_step(name: str, env: Any, params: Any) -> tuple[Draw, ResettingStep]:
    """Returns the same for an environment with a `step` of its own, whose draw is its key."""

    def step(key: jax.Array, state: EnvState, action: jax.Array) -> tuple[EnvState, EnvStep]:
        result = env.step(key, state, action, params)
        if len(result) != 6:
            raise EnvError(
                f"{name}.step returns {len(result)} values; purejaxppo needs gymnax 1.0's six: "
                f"obs, state, reward, terminated, truncated, info."
            )
        obs, state, reward, terminated, truncated, info = result
        return state, EnvStep(obs, info["final_observation"], reward, terminated, truncated, _reported(info))

    return lambda key: key, step


def _reported(info: Mapping[Any, Any]) -> dict[str, jax.Array]:
    """Returns the numbers of one environment's `info` by names that metrics can have; anything else is left out.

    What gymnax itself puts there says nothing that is not in the step: the last observation, both flags, and
    `discount`, which is 0 where the task has ended and 1 elsewhere.
    """
    found = {}
    for name, x in info.items():
        if not isinstance(name, str) or name in _GYMNAX_INFO or not isinstance(x, jax.Array | np.ndarray | Number):
            continue
        x = jnp.asarray(x)
        if x.shape == () and (jnp.issubdtype(x.dtype, jnp.number) or x.dtype == jnp.bool_):
            name = UNFIT.sub("_", name)
            found[f"env_{name}" if name in EPISODE_METRICS else name] = x
    return found


def _has_own_step(env: Any) -> bool:
    return type(env).step is not _gymnax().environments.environment.Environment.step


def registered_envs() -> list[str]:
    """Returns all ids that are registered with gymnax, including those of plugins."""
    gymnax = _gymnax()

    return list(gymnax.registration.registered_envs)


def refuse_unknown(name: str, known: Sequence[str] | None = None) -> None:
    """Raises EnvError, with a suggestion, for a name that is not among the known ones, by default gymnax's."""
    known = registered_envs() if known is None else known
    if name not in known:
        raise EnvError(
            f"unknown environment {name!r}.{suggestion(name, known)} `purejaxppo envs` lists all; one "
            f"of your own needs register_env({name!r}, ...) or gymnax.register, in a module that is given by --plugin "
            f"or in your program, which may pass it as env= instead."
        )


@functools.cache
def _gymnax() -> Any:
    """Returns gymnax, imported without its drawing libraries, which take 3 of the 3.5 s of that import."""
    try:
        with imported_lazily(("matplotlib", "matplotlib.colors", "matplotlib.pyplot", "seaborn")):
            import gymnax
    except (ImportError, AttributeError, ValueError):  # a version that uses them during its import
        import gymnax
    return gymnax


def _make(name: str, allow_download: bool, env_params: Mapping[str, float]) -> tuple[Any, Any]:
    """Returns a gymnax environment and its parameters. Raises EnvError."""
    gymnax = _gymnax()

    refuse_unknown(name)
    if name in _DOWNLOADS and not allow_download:
        raise EnvError(f"{name} downloads its data set when it is built; pass --allow-download to let it.")
    try:
        env, params = gymnax.make(name)
        fields = {field.name for field in dataclasses.fields(params)}
        arguments = {k: v for k, v in env_params.items() if k not in fields}
        accepted = _constructor_arguments(env)
        for unknown in arguments.keys() - accepted:
            known = sorted(fields | accepted)
            raise EnvError(
                f"{name} has no parameter {unknown!r}.{suggestion(unknown, known)} It has: {', '.join(known)}."
            )
        if arguments:
            env, params = gymnax.make(name, **arguments)
    except EnvError:
        raise
    except Exception as error:
        raise EnvError(f"{name} cannot be built: {describe(error)}.") from error
    changed = {k: _checked(name, k, v, getattr(params, k)) for k, v in env_params.items() if k in fields}
    return env, dataclasses.replace(params, **changed)


def _constructor_arguments(env: Any) -> set[str]:
    parameters = inspect.signature(type(env).__init__).parameters.values()
    return {p.name for p in parameters if p.name != "self" and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _checked(name: str, field: str, value: Any, default: Any) -> Any:
    """Returns a parameter's value, converted to the type of its default. Raises EnvError for an invalid one.

    gymnax checks nothing: a gravity of NaN or a limit of 0 steps would run.
    """
    if np.ndim(default) > 0:
        raise EnvError(f"{name}'s parameter {field} is an array, which cannot be set from here; use the Python API.")
    if isinstance(default, bool):
        if value not in (0, 1):
            raise EnvError(f"{name}: {field} = {value!r} is not true or false.")
        return bool(value)
    if isinstance(value, str | bool) or not math.isfinite(value):
        raise EnvError(f"{name}: {field} = {value!r} is not a finite number.")
    if field == "max_steps_in_episode" and (value < 1 or value != int(value) or value >= 2**31):
        raise EnvError(f"{name}: {field} = {value!r} is not a whole number from 1 to 2**31 - 1.")
    if isinstance(default, int):
        if value != int(value) or abs(value) >= 2**31:
            raise EnvError(f"{name}: {field} = {value!r} is not a whole number below 2**31, as {default!r} is.")
        return int(value)
    return float(value)


def _truncates_by_limit_alone(env: Any) -> bool:
    """Returns whether episodes are truncated by gymnax's step limit only; a subclass may have a rule of its own."""
    gymnax = _gymnax()

    rule = gymnax.environments.environment.Environment.is_truncated
    return _is_gymnax_own(env) and type(env).is_truncated is rule


def _is_gymnax_own(env: Any) -> bool:
    return type(env).__module__.startswith("gymnax.")


def _step_limit(params: Any) -> int | None:
    limit = getattr(params, "max_steps_in_episode", None)  # some environments declare it as a float
    return None if limit is None else int(limit)


def _observation(name: str, space: Any) -> tuple[Callable[[Any], Any], Box | dict[str, Box]]:
    """Returns a function that encodes observations, and the space of the encoded ones."""
    parts = getattr(space, "spaces", None)
    if not isinstance(parts, Mapping):
        return _array(name, space, kept=(jnp.uint8,))
    nested = [key for key, part in parts.items() if isinstance(getattr(part, "spaces", None), Mapping)]
    if nested:
        raise EnvError(
            f"{name} has observations with a Dict in a Dict, {nested[0]!r}; a dict of observations has arrays only, so "
            f"make one Dict of all."
        )
    encoded = {key: _array(f"{name}, {key!r},", part, kept=(jnp.uint8, jnp.bool_)) for key, part in parts.items()}

    def encode(obs: Any) -> Any:
        if not isinstance(obs, Mapping) or obs.keys() != encoded.keys():
            return obs  # `check_env` says what is wrong with it
        return {key: part(obs[key]) for key, (part, _) in encoded.items()}

    return encode, {key: box for key, (_, box) in encoded.items()}


def _array(name: str, space: Any, kept: tuple[Any, ...]) -> tuple[Callable[[jax.Array], jax.Array], Box]:
    """Returns the same for an observation of one array: float32, or of its own type if that is one of those `kept`."""
    if hasattr(space, "n"):
        return lambda obs: jax.nn.one_hot(obs, space.n, dtype=jnp.float32), Box((int(space.n),))
    if hasattr(space, "low"):
        return lambda obs: obs if obs.dtype in kept else obs.astype(jnp.float32), Box(
            tuple(int(n) for n in space.shape)
        )
    raise EnvError(f"{name} has observations {type(space).__name__}; supported are Discrete, Box and a Dict of these.")


def _action(name: str, space: Any) -> tuple[Callable[[jax.Array], Any], ActionSpace]:
    """Returns a function from actions [E, ...] to what the environment takes, and the space of the former."""
    if hasattr(space, "n"):
        return lambda action: action.astype(np.dtype(space.dtype)), Discrete(int(space.n))
    if hasattr(space, "low"):
        shape = tuple(int(n) for n in space.shape)
        low, high = (np.broadcast_to(np.asarray(x, np.float64), shape) for x in (space.low, space.high))
        return lambda action: action.astype(np.dtype(space.dtype)), Box(shape, _nested(low), _nested(high))
    factors = getattr(space, "spaces", None)
    if isinstance(factors, tuple | list) and factors and all(hasattr(factor, "n") for factor in factors):
        # One scalar per factor, each of its own type.
        dtypes = [np.dtype(factor.dtype) for factor in factors]
        sizes = tuple(int(factor.n) for factor in factors)
        return lambda action: tuple(action[..., i].astype(d) for i, d in enumerate(dtypes)), MultiDiscrete(sizes)
    raise EnvError(f"{name} has actions {space!r}; supported are Discrete, Box and a Tuple of Discrete.")


def _nested(x: np.ndarray) -> Any:
    """Returns an array as nested tuples of numbers, which are hashable."""
    return tuple(_nested(row) for row in x) if x.ndim else x.item()
