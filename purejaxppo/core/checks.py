"""Checks of what is passed to `make_trainer`: that environment, network, algorithm and hyperparameters fit together.

They trace once and compare shapes and types; nothing is computed. A mismatch that JAX would broadcast silently, or
report from deep inside a trace, becomes an error of one line.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.config import Hyperparams, TrainConfig
from purejaxppo.config.validate import validate_kl_range, validate_seed, validate_value
from purejaxppo.core.distributions import Categorical, DiagGaussian, TanhDiagGaussian
from purejaxppo.core.types import Algorithm, Box, Discrete, EnvStep, Network, VecEnv
from purejaxppo.errors import ConfigError, EnvError


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
    for what, x in (("step's obs", result.obs), ("step's final_obs", result.final_obs)):
        _check_observation(env, name, what, x)
        if obs is not None and x.dtype != obs.dtype:
            raise EnvError(f"{name} returns observations {_text(x)} ({what}), but {_text(obs)} in reset; choose one.")
    _check_outcome(env, name, result)
    if jax.tree.map(_signature, next_state) != jax.tree.map(_signature, state):
        raise EnvError(f"{name}'s step returns a state of other shapes or types than its reset; make them the same.")


def _check_declaration(env: VecEnv, name: str) -> None:
    """Checks the fields of a `VecEnv` that are not functions."""
    gap, limit, space = env.truncation_gap, env.step_limit, env.action_space
    if gap < 1 or (limit is not None and gap > limit):
        raise EnvError(
            f"{name} has truncation_gap = {gap}, which has to be from 1 to its step_limit ({limit}); leave it out: "
            f"1 is always right."
        )
    if isinstance(space, Discrete):
        if space.n < 1:
            raise EnvError(f"{name} has {space.n} discrete actions; it needs at least one.")
        return
    try:
        low, high = space.bounds()
    except ValueError as error:
        raise EnvError(
            f"{name} has actions of shape {space.shape}, but bounds {space.low} and {space.high}; give one per element."
        ) from error
    if not np.all(low <= high):
        raise EnvError(f"{name} has actions with bounds {space.low} and {space.high}; no low may be above its high.")


def _traced_pair(name: str, function: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """Returns the shapes of the pair that an environment's reset or step returns."""
    try:
        first, second = jax.eval_shape(function, *args)
    except EnvError:
        raise
    except Exception as error:
        wide = getattr(jax.config, "jax_enable_x64", False)
        advice = " JAX_ENABLE_X64 is on, which not every environment supports; unset it." if wide else ""
        raise EnvError(f"{name} raises when it is traced: {describe(error)}.{advice}") from error
    return first, second


def _check_observation(env: VecEnv, name: str, what: str, x: Any) -> None:
    declared = (env.num_envs, *env.observation_space.shape)
    if getattr(x, "shape", None) != declared:
        raise EnvError(
            f"{name} returns observations {_text(x)} ({what}), but declares {list(declared)} by num_envs and "
            f"observation_space; make them agree."
        )


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
        if getattr(x, "shape", None) != each:
            raise EnvError(f"{name} returns info[{what!r}] {_text(x)}; it has to be {list(each)}, one per environment.")


def check_network(config: TrainConfig, env: VecEnv, network: Network) -> None:
    """Raises ConfigError for a network whose policy or value does not fit an environment that passes `check_env`."""
    key, each, space = _key(), (env.num_envs,), env.action_space
    _, obs = jax.eval_shape(env.reset, _keys(env))

    def act(key: jax.Array, obs: jax.Array) -> tuple[Any, ...]:
        pi, value = network.apply(network.init(key, obs), obs)
        action = pi.sample(pi.noise(key))
        return pi, value, action, pi.log_prob(action)

    pi, value, action, log_prob = jax.eval_shape(act, key, obs)
    if isinstance(space, Discrete) and isinstance(pi, Categorical) and pi.logits.shape[-1] != space.n:
        raise ConfigError(f"the network has {pi.logits.shape[-1]} logits for {space.n} actions; give it one for each.")
    wanted = _action(env)
    kind = jnp.integer if isinstance(space, Discrete) else jnp.floating
    if action.shape != wanted.shape or not jnp.issubdtype(action.dtype, kind):
        raise ConfigError(
            f"the network's policy draws actions {_text(action)} for {env.num_envs} observations, but the environment "
            f"takes {_text(wanted)}; give it another distribution or size."
        )
    for what, x in (("value", value), ("policy's log_prob", log_prob)):
        if x.shape != each:
            raise ConfigError(
                f"the network's {what} is {_text(x)} for {env.num_envs} observations; it has to be {list(each)}."
            )
    for x in jax.tree.leaves(pi):
        if x.shape[:1] != each:
            raise ConfigError(
                f"the network's policy has a leaf {_text(x)} for {env.num_envs} observations; it has to begin with "
                f"{list(each)}, as by jnp.broadcast_to(log_std, mean.shape)."
            )
    squashes = {DiagGaussian: "gaussian", TanhDiagGaussian: "tanh_gaussian"}
    needed = squashes.get(type(pi), config.action_distribution)
    if needed != config.action_distribution:
        raise ConfigError(
            f"the network's policy is a {type(pi).__name__}, whose actions need action_distribution = {needed}, not "
            f"{config.action_distribution}."
        )


def check_algorithm(algorithm: Algorithm) -> None:
    """Raises ConfigError for what is no `Algorithm`, such as `ppo_clip` itself instead of `ppo_clip(config, apply)`."""
    if not isinstance(algorithm, Algorithm):
        name = getattr(algorithm, "__name__", type(algorithm).__name__)
        raise ConfigError(f"{name} is no Algorithm; pass what a rule returns, as ppo_clip(config, network.apply) does.")


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
    if isinstance(env.action_space, Box):
        return jax.ShapeDtypeStruct((env.num_envs, *env.action_space.shape), jnp.float32)
    return jax.ShapeDtypeStruct((env.num_envs,), jnp.int32)


def _signature(x: Any) -> tuple[Any, Any]:
    return getattr(x, "shape", None), getattr(x, "dtype", None)


def _text(x: Any) -> str:
    """Returns an array's type and shape as text, for example float32[4, 1]."""
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else f"of the type {type(x).__name__}"
