"""A plain environment, one `reset` and one `step` without any auto-reset, as a `VecEnv`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.config.fields import whole
from purejaxppo.core.check_env import check_env, traced
from purejaxppo.core.types import ActionSpace, Box, EnvState, EnvStep, VecEnv
from purejaxppo.errors import EnvError

_SMALL = 64  # numbers of an observation and a state that may be stored for every step

# Of one environment, as `autoreset` takes them.
Reset = Callable[[jax.Array], tuple[EnvState, Any]]  # key -> (state, obs)
Step = Callable[[jax.Array, EnvState, jax.Array], tuple[Any, ...]]  # key, state, action -> state, obs, reward, ...

# Of one environment, with auto-reset; vmapped they are the fields of a `VecEnv`.
Draw = Callable[[jax.Array], Any]  # key -> draws
ResettingStep = Callable[[Any, EnvState, jax.Array], tuple[EnvState, EnvStep]]  # draws, state, action


def autoreset(
    reset: Reset,
    step: Step,
    observation_space: Box | dict[str, Box],
    action_space: ActionSpace,
    num_envs: int,
    *,
    step_limit: int | None = None,
    pool: int | None = None,
) -> VecEnv:
    """Returns E copies of an environment of which one copy is described, without its auto-reset.

    An episode ends where `step` says so, or after `step_limit` steps. The end's `final_obs` is what `step` returned,
    and its `obs` is the first observation of the next episode, which `reset` makes from the environment's own key. A
    small first state and observation (64 numbers) are drawn ahead, with the other random numbers of a rollout
    (`VecEnv.draw`).

    **A pool of starts.** Without one, `reset` is computed in every step of every environment, since a vmapped program
    has no branches. If it is dear, `pool = n` computes it when the run begins only: each environment makes n starts
    from its own key, begins with the first of them, and draws one of the n, with equal chances, for each further
    episode. The price: an environment knows no other starts than its n, so the distribution of starts is that of the
    E n ones; and the environments' state, and with it a checkpoint, holds E n states and observations. Each
    environment has a pool of its own, so that nothing depends on how many of them there are, or on how many devices
    they lie.

    Args:
      reset: key -> (state, obs), where the state is any pytree of arrays, and the observation an array or a mapping of
        arrays, of any dtype.
      step: key, state, action -> (state, obs, reward, terminated, truncated), and optionally a sixth, `info`, a dict of
        scalars. The reward is a number, the flags are bool; both flags at once count as terminated. If there is no
        truncation but by `step_limit`, return the constant False, which makes the rollout cheaper.
      observation_space: of one environment.
      action_space: of one environment; `step` gets int32 [], int32 [F] or float32 [*shape].
      num_envs: E.
      step_limit: the number of steps after which an episode is truncated; the environment need not count them.
      pool: the number of starts per environment, if they are to be made at the beginning.

    Raises:
      EnvError: a function that does not trace, or does not return what it should; a number below 1.
    """
    num_envs = _count("num_envs", num_envs)
    begin = _checked_reset(reset)
    key = jax.eval_shape(lambda: jax.random.key(0))
    first_state, first_obs = traced("the environment", begin, key)
    advance = _checked_step(step, first_state, first_obs)
    traced("the environment", advance, key, first_state, action_space.element())
    gap = 1
    if step_limit is not None:
        step_limit = _count("step_limit", step_limit)
        # Between two truncations by the limit lie at least `step_limit` steps; the environment's own promise nothing.
        gap = 1 if _truncates(step, first_state, action_space) else step_limit
        begin, advance = _counted(begin, advance, step_limit)
    if pool is None:
        draw, resetting_step = auto_resetting(begin, advance)
    else:
        begin, draw, resetting_step = _pooled(begin, advance, _count("pool", pool))
    env = VecEnv(
        reset=jax.vmap(begin),
        step=jax.vmap(resetting_step),
        observation_space=observation_space,
        action_space=action_space,
        num_envs=num_envs,
        step_limit=step_limit,
        truncation_gap=gap,
        draw=jax.vmap(draw),
    )
    check_env(env)
    return env


def auto_resetting(reset: Reset, step: Step) -> tuple[Draw, ResettingStep]:
    """Returns `draw` and a step with auto-reset of one environment.

    The start of the next episode depends on the key alone. If it is small it is drawn ahead, whether or not the episode
    ends; a large one, such as a picture, would be stored for every step of a rollout.

    Args:
      reset: key -> (state, obs).
      step: key, state, action -> (state, obs, reward, terminated, truncated, info).
    """
    first = jax.tree.leaves(jax.eval_shape(reset, jax.eval_shape(lambda: jax.random.key(0))))
    is_small = sum(x.size for x in first) <= _SMALL

    def draw(key: jax.Array) -> Any:
        key_step, key_reset = jax.random.split(key)
        return key_step, reset(key_reset) if is_small else key_reset

    def resetting_step(draws: Any, state: EnvState, action: jax.Array) -> tuple[EnvState, EnvStep]:
        key, drawn = draws
        return _next(step(key, state, action), drawn if is_small else reset(drawn))

    return draw, resetting_step


def _next(result: tuple[Any, ...], start: tuple[EnvState, Any]) -> tuple[EnvState, EnvStep]:
    """Returns the state and the result of a step that has returned `result`; after an end the state is `start`."""
    state, final_obs, reward, terminated, truncated, info = result
    done = jnp.logical_or(terminated, truncated)
    state, obs = jax.tree.map(functools.partial(jnp.where, done), start, (state, final_obs))
    return state, EnvStep(obs, final_obs, reward, terminated, truncated, info)


class _Counted(NamedTuple):
    """The state of an environment whose steps are counted."""

    state: EnvState
    steps: jax.Array  # int32 [], of the running episode


def _counted(reset: Reset, step: Step, step_limit: int) -> tuple[Reset, Step]:
    """Returns the environment with episodes that are truncated after `step_limit` steps."""

    def begin(key: jax.Array) -> tuple[_Counted, Any]:
        state, obs = reset(key)
        return _Counted(state, jnp.zeros((), jnp.int32)), obs

    def advance(key: jax.Array, counted: _Counted, action: jax.Array) -> tuple[Any, ...]:
        state, obs, reward, terminated, truncated, info = step(key, counted.state, action)
        steps = counted.steps + 1
        return _Counted(state, steps), obs, reward, terminated, truncated | (steps >= step_limit), info

    return begin, advance


class _Pooled(NamedTuple):
    """The state of an environment with a pool of starts."""

    state: EnvState
    starts: tuple[EnvState, Any]  # states and observations [n, ...]; they do not change


def _pooled(reset: Reset, step: Step, pool: int) -> tuple[Reset, Draw, ResettingStep]:
    """Returns reset, draw and a step with auto-reset of one environment that begins each episode from a pool."""

    def begin(key: jax.Array) -> tuple[_Pooled, Any]:
        starts = jax.vmap(reset)(jax.random.split(key, pool))
        state, obs = _row(starts, 0)
        return _Pooled(state, starts), obs

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_step, key_start = jax.random.split(key)
        return key_step, jax.random.randint(key_start, (), 0, pool)

    def resetting_step(draws: Any, pooled: _Pooled, action: jax.Array) -> tuple[_Pooled, EnvStep]:
        key, drawn = draws
        state, result = _next(step(key, pooled.state, action), _row(pooled.starts, drawn))
        return _Pooled(state, pooled.starts), result

    return begin, draw, resetting_step


def _row(tree: Any, row: int | jax.Array) -> Any:
    return jax.tree.map(lambda x: x[row], tree)


def _checked_reset(reset: Reset) -> Reset:
    """Returns reset with arrays for numbers, and an error that names what a trace finds wrong."""

    def begin(key: jax.Array) -> tuple[EnvState, Any]:
        result = reset(key)
        if not isinstance(result, tuple) or len(result) != 2:
            raise EnvError(f"the environment's reset returns {_number(result)}; it has to return two: state, obs.")
        return jax.tree.map(strongly_typed, result)

    return begin


def _checked_step(step: Step, first_state: Any, first_obs: Any) -> Step:
    """Returns step with arrays for numbers and an info, and errors as above; `first...` are the shapes of a start."""

    def advance(key: jax.Array, state: EnvState, action: jax.Array) -> tuple[Any, ...]:
        result = step(key, state, action)
        if not isinstance(result, tuple) or len(result) not in (5, 6):
            raise EnvError(
                f"the environment's step returns {_number(result)}; it has to return five: state, obs, reward, "
                f"terminated, truncated, or six with an info."
            )
        state, obs = jax.tree.map(strongly_typed, result[:2])
        _refuse_difference("a state", state, first_state)
        _refuse_difference("an observation", obs, first_obs)
        reward = _scalar("reward", result[2], jnp.number).astype(jnp.float32)
        terminated, truncated = _scalar("terminated", result[3], jnp.bool_), _scalar("truncated", result[4], jnp.bool_)
        return state, obs, reward, terminated, truncated, result[5] if len(result) == 6 else {}

    return advance


def _truncates(step: Step, state: Any, action_space: ActionSpace) -> bool:
    """Returns whether an environment may truncate episodes by itself: `step` says it does not by the constant False."""
    constant = []

    def look(key: jax.Array, state: EnvState, action: jax.Array) -> None:
        truncated = step(key, state, action)[4]
        constant.append(not isinstance(truncated, jax.core.Tracer) and not truncated)

    key = jax.eval_shape(lambda: jax.random.key(0))
    traced("the environment", look, key, state, action_space.element())
    return not all(constant)


def _count(name: str, value: Any) -> int:
    number = whole(value)
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number < 2**31:
        raise EnvError(f"{name} = {value!r} is not a whole number from 1 to 2**31 - 1.")
    return number


def _number(result: Any) -> str:
    """Returns how many values a function has returned, in words."""
    return f"{len(result)} values" if isinstance(result, tuple) else f"one {type(result).__name__}"


def strongly_typed(x: Any) -> jax.Array:
    """Returns x, which may be a Python number, as an array without JAX's weak type.

    The state then has the same types before and after a step, and after it has been restored from a checkpoint.
    """
    x = jnp.asarray(x)
    return jax.lax.convert_element_type(x, x.dtype)


def _scalar(what: str, x: Any, kind: Any) -> jax.Array:
    """Returns a single number or flag of `step` as an array []. Raises EnvError if it is anything else."""
    is_array = hasattr(x, "shape") or isinstance(x, bool | int | float)
    array = jnp.asarray(x) if is_array else None
    if array is None or array.shape != () or not jnp.issubdtype(array.dtype, kind):
        found = f"of the type {type(x).__name__}" if array is None else f"{array.dtype}{list(array.shape)}"
        wanted = "flag, bool[]" if kind is jnp.bool_ else "number, float32[]"
        raise EnvError(f"the environment's step returns {what} {found}; it has to be a single {wanted}.")
    return array


def _refuse_difference(what: str, found: Any, first: Any) -> None:
    """Raises EnvError where what `step` returns has not the structure, shapes and types of what `reset` returned."""
    structure: Any = jax.tree.structure(found)
    if structure != jax.tree.structure(first):
        raise EnvError(
            f"the environment's step returns {what} of another structure than its reset; make them the same."
        )
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(first), strict=True):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            where = f" at {jax.tree_util.keystr(path)}" if path else ""
            raise EnvError(
                f"the environment's step returns {what} that is {x.dtype}{list(x.shape)}{where}, but "
                f"{y.dtype}{list(y.shape)} in its reset; make them the same."
            )
