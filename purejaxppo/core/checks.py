"""Checks of what is passed to `make_trainer`: that environment, policy, algorithm and hyperparameters fit together.

They trace once and compare shapes and types; nothing is computed. A mismatch that JAX would broadcast silently, or
report from deep inside a trace, becomes an error of one line.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.config.validate import validate_kl_range, validate_seed, validate_value
from purejaxppo.core.distributions import Categorical, DiagGaussian, MultiCategorical, TanhDiagGaussian
from purejaxppo.core.observations import ACTION_MASK
from purejaxppo.core.types import ActionSpace, Algorithm, Box, Discrete, EnvStep, MultiDiscrete, Policy, VecEnv
from purejaxppo.errors import ConfigError, EnvError

EPISODE_METRICS = ("return", "length", "count")  # which no entry of an info may be called


def check_env(env: VecEnv, name: str = "the environment") -> None:
    """Raises EnvError for an environment that breaks the contract of `VecEnv` and `EnvStep`, naming the wrong part.

    Args:
      env: E environments.
      name: of the environment, for the message.
    """
    _check_declaration(env, name)
    state, obs = _traced_pair(name, env.reset, _keys(env))
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
        name, lambda keys, *args: env.step(env.draw(keys), *args), _keys(env), state, _action(env)
    )
    if not isinstance(result, EnvStep):
        raise EnvError(f"{name}'s step returns the state and a {type(result).__name__}; it has to be an EnvStep.")
    for what, seen in (("step's obs", result.obs), ("step's final_obs", result.final_obs)):
        _check_observation(env, name, what, seen)
        for x, first in zip(jax.tree.leaves(seen), jax.tree.leaves(obs), strict=False):
            if x.dtype != first.dtype:
                raise EnvError(
                    f"{name} returns observations {_text(x)} ({what}), but {_text(first)} in reset; choose one."
                )
    _check_outcome(env, name, result)
    if jax.tree.map(_signature, next_state) != jax.tree.map(_signature, state):
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
                f"{name} returns observations {f'{key!r} ' * bool(key)}{_text(x)} ({what}), but declares "
                f"{list(declared)} by num_envs and observation_space; make them agree."
            )
    mask = arrays.get(ACTION_MASK)
    if mask is not None and mask.dtype != jnp.bool_:
        raise EnvError(f"{name} returns {ACTION_MASK!r} {_text(mask)} ({what}); it has to be bool, one per action.")


def _names(obs: Any) -> str:
    """Returns the keys of an observation or of its space as text."""
    return f"with the keys {', '.join(sorted(obs))}" if isinstance(obs, dict) else "that are one array"


def _actions(space: ActionSpace) -> str:
    choices = _choices(space)
    return f"{choices[0]} discrete choices" if choices else "continuous actions"


def _check_outcome(env: VecEnv, name: str, result: EnvStep) -> None:
    """Checks reward, flags and info of a step."""
    each = (env.num_envs,)
    for what, x, dtype in (
        ("reward", result.reward, jnp.float32),
        ("terminated", result.terminated, jnp.bool_),
        ("truncated", result.truncated, jnp.bool_),
    ):
        if _signature(x) != (each, jnp.dtype(dtype)):
            wanted = jax.ShapeDtypeStruct(each, dtype)
            raise EnvError(f"{name} returns {what} {_text(x)}; it has to be {_text(wanted)}, one per environment.")
    if not isinstance(result.info, dict):
        raise EnvError(f"{name} returns an info {_text(result.info)}; it has to be a dict, which may be empty.")
    for what, x in result.info.items():
        if getattr(x, "shape", None) != each or not _is_numeric(x):
            raise EnvError(
                f"{name} returns info[{what!r}] {_text(x)}; it has to be {list(each)}, one number per environment."
            )
        if what in EPISODE_METRICS:
            raise EnvError(f"{name} returns info[{what!r}], which is the name of a metric; give it another one.")


def check_parts(config: TrainConfig, env: VecEnv, policy: Policy, algorithm: Algorithm) -> None:
    """Raises ConfigError or EnvError for parts from which no trainer can be made, or that do not fit together."""
    check_algorithm(algorithm)
    if env.num_envs != config.num_envs:
        raise ConfigError(
            f"the environment has {env.num_envs} copies, but num_envs = {config.num_envs}; make them equal."
        )
    check_env(env)
    check_policy(config, env, policy)
    if algorithm.shards and algorithm.shards.number != config.shard_count:
        raise ConfigError(
            f"the algorithm was made for {algorithm.shards.number} shards, but the run has {config.shard_count}; make "
            f"it from the run's own config."
        )


def check_policy(config: TrainConfig, env: VecEnv, policy: Policy) -> None:
    """Raises ConfigError for a policy that does not fit an environment that passes `check_env`."""
    missing = [name for name in ("init", "initial_memory", "act", "evaluate") if not hasattr(policy, name)]
    if missing:
        hint = "wrap a network in FeedForward" if hasattr(policy, "apply") else "see core.types.Policy"
        raise ConfigError(f"the policy, a {type(policy).__name__}, has no method {missing[0]}; {hint}.")
    each = (env.num_envs,)
    _, obs = jax.eval_shape(env.reset, _keys(env))
    memory = jax.eval_shape(lambda: policy.initial_memory(env.num_envs))
    length = (1,) if jax.tree.leaves(memory) else ()  # of a sequence; without memory there are rows
    _check_memory(config, memory)

    def act(key: jax.Array, memory: Any, obs: Any) -> tuple[Any, ...]:
        params, start = policy.init(key, obs), jnp.ones(each, jnp.bool_)
        after, pi = policy.act(params, memory, obs, start)
        action = pi.sample(pi.noise(key))
        return params, after, pi, action, pi.log_prob(action)

    params, after, pi, action, log_prob = jax.eval_shape(act, _key(), memory, obs)
    if jax.tree.map(_signature, memory) != jax.tree.map(_signature, after):
        raise ConfigError("the policy's act returns a memory of other shapes or types than its initial_memory.")
    steps = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*each, *length, *x.shape[1:]), x.dtype),
        (obs, jax.ShapeDtypeStruct(each, jnp.bool_)),
    )
    evaluated, value = jax.eval_shape(policy.evaluate, params, memory, *steps)
    _check_distribution(config, env, pi, action)
    for what, x, shape in (("value", value, (*each, *length)), ("log_prob", log_prob, each)):
        if x.shape != shape:
            raise ConfigError(
                f"the policy's {what} is {_text(x)} for {env.num_envs} observations; it has to be {list(shape)}."
            )
    for what, seen, lead in (("act", pi, each), ("evaluate", evaluated, (*each, *length))):
        for x in jax.tree.leaves(seen):
            if x.shape[: len(lead)] != lead:
                raise ConfigError(
                    f"the policy's distribution ({what}) has a leaf {_text(x)} for {env.num_envs} observations; it has "
                    f"to begin with {list(lead)}, as by jnp.broadcast_to(log_std, mean.shape)."
                )


def _check_memory(config: TrainConfig, memory: Any) -> None:
    """Raises ConfigError for a memory without a row for each environment, or sequences that do not fill minibatches."""
    if not jax.tree.leaves(memory):
        return
    for x in jax.tree.leaves(memory):
        if x.shape[:1] != (config.num_envs,):
            raise ConfigError(
                f"the policy's initial_memory has a leaf {_text(x)} for {config.num_envs} environments; give each a "
                f"row of its own."
            )
    length = config.sequence_length or config.num_steps
    sequences = config.batch_size // length // config.shard_count
    if sequences % config.num_minibatches:
        raise ConfigError(
            f"num_envs = {config.num_envs} environments x num_steps = {config.num_steps} / sequence_length = {length} "
            f"are {sequences} sequences in each of {config.shard_count} shards, which num_minibatches = "
            f"{config.num_minibatches} does not divide; change one of them."
        )


def _check_distribution(config: TrainConfig, env: VecEnv, pi: Any, action: Any) -> None:
    """Raises ConfigError for a distribution whose actions are not those that the environment takes."""
    space, wanted = env.action_space, _action(env)
    if isinstance(space, Discrete) and isinstance(pi, Categorical) and pi.logits.shape[-1] != space.n:
        raise ConfigError(f"the policy has {pi.logits.shape[-1]} logits for {space.n} actions; give it one for each.")
    if isinstance(space, MultiDiscrete) and isinstance(pi, MultiCategorical) and pi.sizes != space.sizes:
        raise ConfigError(
            f"the policy has factors of the sizes {pi.sizes} for actions of the sizes {space.sizes}; make them agree."
        )
    if isinstance(space, Box):  # the policy's action is flat, whatever the shape of the environment's
        wanted = jax.ShapeDtypeStruct((env.num_envs, math.prod(space.shape)), wanted.dtype)
    kind = jnp.floating if isinstance(space, Box) else jnp.integer
    if action.shape != wanted.shape or not jnp.issubdtype(action.dtype, kind):
        raise ConfigError(
            f"the policy draws actions {_text(action)} for {env.num_envs} observations, but the environment takes "
            f"{_text(wanted)}; give it another distribution or size."
        )
    squashes = {DiagGaussian: "gaussian", TanhDiagGaussian: "tanh_gaussian"}
    needed = squashes.get(type(pi), config.action_distribution)
    if needed != config.action_distribution:
        raise ConfigError(
            f"the policy's distribution is a {type(pi).__name__}, whose actions need action_distribution = {needed}, "
            f"not {config.action_distribution}."
        )


def check_algorithm(algorithm: Algorithm) -> None:
    """Raises ConfigError for what is no `Algorithm`, as `ppo_clip` itself instead of `ppo_clip(config, policy)`."""
    if not isinstance(algorithm, Algorithm):
        name = getattr(algorithm, "__name__", type(algorithm).__name__)
        raise ConfigError(f"{name} is no Algorithm; pass what a rule returns, as ppo_clip(config, policy) does.")


def check_hyperparams(hp: Hyperparams) -> None:
    """Raises ConfigError for a number that is not finite or outside its range; traced values cannot be checked.

    Args:
      hp: of one run with scalar leaves, or of R runs with leaves [R].
    """
    known = {name: np.asarray(value) for name, value in vars(hp).items() if not isinstance(value, jax.core.Tracer)}
    for field in dataclasses.fields(hp):
        if field.name in known:
            for value in set(known[field.name].ravel().tolist()):
                validate_value(field, value)
    if "kl_min" in known and "kl_max" in known:
        pairs = np.broadcast_arrays(known["kl_min"], known["kl_max"])
        for low, high in set(zip(*(x.ravel().tolist() for x in pairs), strict=True)):
            validate_kl_range(low, high)


def check_runs(hps: Hyperparams, seeds: Any) -> None:
    """Raises ConfigError unless hyperparameters and seeds are within range and have the same shape [R]."""
    check_hyperparams(hps)
    shape = np.shape(seeds)
    for name, value in vars(hps).items():
        if value is not None and (len(shape) != 1 or np.shape(value) != shape):
            raise ConfigError(
                f"{name} has the shape {np.shape(value)} and seeds {shape}, where both have to be [R], one per run; "
                f"purejaxppo.grid makes them."
            )
    if not isinstance(seeds, jax.core.Tracer):
        for seed in set(np.asarray(seeds).tolist()):
            validate_seed(seed)


def describe(error: Exception) -> str:
    """Returns the error, and the line of the environment's own code that raised it, as one line of text."""
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    ours = (jax.__file__.rpartition("/")[0] + "/", __file__.rpartition("/core/")[0] + "/")
    own = [f for f in frames if not f.filename.startswith(ours)]
    where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}{where}"


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _keys(env: VecEnv) -> Any:
    return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), env.num_envs))


def _action(env: VecEnv) -> jax.ShapeDtypeStruct:
    """Returns the shape and type of the actions that the environments take."""
    one = env.action_space.element()
    return jax.ShapeDtypeStruct((env.num_envs, *one.shape), one.dtype)


def _is_numeric(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.number) or x.dtype == jnp.bool_


def _signature(x: Any) -> tuple[Any, Any]:
    return getattr(x, "shape", None), getattr(x, "dtype", None)


def _text(x: Any) -> str:
    """Returns an array's type and shape as text, for example float32[4, 1]."""
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else f"of the type {type(x).__name__}"
