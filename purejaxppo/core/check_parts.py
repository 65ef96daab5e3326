"""Checks of what is passed to `make_trainer`: that environment, policy and algorithm fit together.

Like those of `check_env.py` they trace once and compute nothing.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from purejaxppo.config import TrainConfig
from purejaxppo.core.check_env import check_env, env_actions, env_keys, signature, spec
from purejaxppo.core.distributions import Categorical, DiagGaussian, MultiCategorical, TanhDiagGaussian
from purejaxppo.core.faults import faults_of
from purejaxppo.core.types import Algorithm, Box, Discrete, MultiDiscrete, Policy, VecEnv
from purejaxppo.errors import ConfigError


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
    _, obs = jax.eval_shape(env.reset, env_keys(env))
    memory = jax.eval_shape(lambda: policy.initial_memory(env.num_envs))
    length = (1,) if jax.tree.leaves(memory) else ()  # of a sequence; without memory there are rows
    _check_memory(config, memory)

    def act(key: jax.Array, memory: Any, obs: Any) -> tuple[Any, ...]:
        params, start = policy.init(key, obs), jnp.ones(each, jnp.bool_)
        after, pi = policy.act(params, memory, obs, start)
        action = pi.sample(pi.noise(key))
        return params, after, pi, action, pi.log_prob(action)

    with faults_of("the policy's init or act"):
        params, after, pi, action, log_prob = jax.eval_shape(act, _key(), memory, obs)
    if jax.tree.map(signature, memory) != jax.tree.map(signature, after):
        raise ConfigError("the policy's act returns a memory of other shapes or types than its initial_memory.")
    steps = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*each, *length, *x.shape[1:]), x.dtype),
        (obs, jax.ShapeDtypeStruct(each, jnp.bool_)),
    )
    with faults_of("the policy's evaluate"):
        evaluated, value = jax.eval_shape(policy.evaluate, params, memory, *steps)
    _check_distribution(config, env, pi, action)
    for what, x, shape in (("value", value, (*each, *length)), ("log_prob", log_prob, each)):
        if x.shape != shape:
            raise ConfigError(
                f"the policy's {what} is {spec(x)} for {env.num_envs} observations; it has to be {list(shape)}."
            )
    if not length:  # rows may have any leading axes
        column = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*each, 1, *x.shape[1:]), x.dtype), steps)
        with faults_of("the policy's evaluate"):
            _, of_column = jax.eval_shape(policy.evaluate, params, memory, *column)
        if of_column.shape != (*each, 1):
            raise ConfigError(
                f"the policy's value is {spec(of_column)} for observations [{env.num_envs}, 1, ...]; it has to keep "
                f"all axes before those of an observation, as value[..., 0] does."
            )
    for what, seen, lead in (("act", pi, each), ("evaluate", evaluated, (*each, *length))):
        for x in jax.tree.leaves(seen):
            if x.shape[: len(lead)] != lead:
                raise ConfigError(
                    f"the policy's distribution ({what}) has a leaf {spec(x)} for {env.num_envs} observations; it has "
                    f"to begin with {list(lead)}, as by jnp.broadcast_to(log_std, mean.shape)."
                )


def _check_memory(config: TrainConfig, memory: Any) -> None:
    """Raises ConfigError for a memory without a row for each environment, or sequences that do not fill minibatches."""
    if not jax.tree.leaves(memory):
        return
    for x in jax.tree.leaves(memory):
        if x.shape[:1] != (config.num_envs,):
            raise ConfigError(
                f"the policy's initial_memory has a leaf {spec(x)} for {config.num_envs} environments; give each a "
                f"row of its own."
            )
    length = config.sequence_length or config.num_steps
    sequences = config.batch_size // length // config.shard_count
    if sequences % config.num_minibatches:
        raise ConfigError(
            f"num_envs = {config.num_envs} environments x num_steps = {config.num_steps} / sequence_length = {length} "
            f"are {sequences} sequences in each of {config.shard_count} shards, which num_minibatches = "
            f"{config.num_minibatches} does not divide; change one of them, or num_shards (1 is always right)."
        )


def _check_distribution(config: TrainConfig, env: VecEnv, pi: Any, action: Any) -> None:
    """Raises ConfigError for a distribution whose actions are not those that the environment takes."""
    space, wanted = env.action_space, env_actions(env)
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
            f"the policy draws actions {spec(action)} for {env.num_envs} observations, but the environment takes "
            f"{spec(wanted)}; give it another distribution or size."
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


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))
