"""Memory: what a program needs, what a device has, and what to reduce if that does not suffice."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import subjaxprs

from purejaxppo.config import TrainConfig
from purejaxppo.config.validate import validate_config
from purejaxppo.core.rollout import rollout
from purejaxppo.core.types import Actors, VecEnv
from purejaxppo.devices import selection
from purejaxppo.devices.machine import memory_bytes, ram_bytes
from purejaxppo.envs.wrappers import bound_action
from purejaxppo.errors import ConfigError, OutOfMemoryError, is_out_of_memory
from purejaxppo.policies.registry import make_policy

_TRIES = 1000  # smaller values of a setting that are tried at most


def program_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the bytes that a compiled program needs at once, by XLA's analysis: arguments, results and temporaries.

    Donated buffers count once. If the backend has no analysis, it is 0.
    """
    figures: Any = compiled.memory_analysis()
    if figures is None:
        return 0
    return (
        figures.argument_size_in_bytes
        + figures.output_size_in_bytes
        + figures.temp_size_in_bytes
        - figures.alias_size_in_bytes
    )


def traced_bytes(f: Callable[..., Any], *shapes: Any) -> int:
    """Returns the bytes of all intermediate arrays of a function, traced for arguments of these shapes.

    This is an upper bound: it counts every intermediate, as if XLA reused no buffer. The body of a loop counts once.
    """
    return _traced_bytes(jax.make_jaxpr(f)(*shapes).jaxpr)


def _traced_bytes(jaxpr: Any) -> int:
    own = sum(x.aval.size * x.aval.dtype.itemsize for equation in jaxpr.eqns for x in equation.outvars)
    return own + sum(map(_traced_bytes, subjaxprs(jaxpr)))


def device_bytes(device: jax.Device) -> int | None:
    """Returns the bytes that JAX may use of a device, for a CPU those of the machine; None if they are unknown."""
    return memory_bytes(device) or (ram_bytes() if device.platform == "cpu" else None)


@contextmanager
def out_of_memory_explained(explanation: Callable[[], OutOfMemoryError]) -> Iterator[None]:
    """Turns an out-of-memory error of JAX or Python within the context into `explanation()`; other errors pass."""
    try:
        yield
    except OutOfMemoryError:  # explained already
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise explanation() from error
        raise


def rollout_bytes(config: TrainConfig, env: VecEnv) -> int:
    """Returns the bytes of one rollout."""
    policy = make_policy(config, env)

    def collect(key: jax.Array) -> Any:
        wrapped = bound_action(config, env)
        state, obs = wrapped.reset(jax.random.split(key, env.num_envs))
        actors = Actors(state, obs, policy.initial_memory(env.num_envs), start=jnp.ones(env.num_envs, jnp.bool_))
        params, env_ids = policy.init(key, obs), jnp.arange(env.num_envs)
        _, trajectory = rollout(key, wrapped, policy, params, actors, env_ids, config.num_steps)
        return trajectory._asdict() | {"start": ()}  # which follows from the ends of the step before

    shapes = jax.tree.leaves(jax.eval_shape(collect, jax.random.key(0)))
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in shapes)


def explain(config: TrainConfig, env: VecEnv, program: int | None) -> OutOfMemoryError:
    """Returns the error to raise: what the rollout and the compiled program need, and up to three settings to reduce.

    Args:
      config: of the run.
      env: its environments.
      program: from `program_bytes`, or None if compilation did not finish.
    """
    available = device_bytes(selection.first())
    needs = [f"its rollout buffer takes {readable(rollout_bytes(config, env))}"]
    needs += [f"the compiled program {readable(program)}"] if program else []
    needs += [f"the device has {readable(available)}"] if available else []
    advice = ", or ".join(_reductions(config)) or "a device with more memory"
    return OutOfMemoryError(f"out of memory: {', '.join(needs)}; try {advice}.")


def _reductions(config: TrainConfig) -> list[str]:
    """Returns up to three flags with valid smaller values of settings that determine the memory."""
    smaller: dict[str, Iterable[Any]] = {
        "num_envs": range(config.num_envs // 2, 0, -1),
        "num_steps": range(config.num_steps // 2, 0, -1),
        "num_minibatches": range(config.num_minibatches * 2, config.batch_size),
        "hidden_sizes": [tuple(width // 2 for width in config.hidden_sizes)] if config.hidden_sizes else [],
    }
    flags = []
    for name, values in smaller.items():
        value = next((value for value in islice(values, _TRIES) if _is_valid(config, name, value)), None)
        if value is not None:
            text = " ".join(map(str, value)) if isinstance(value, tuple) else value
            flags.append(f"--{name.replace('_', '-')} {text}")
    return flags[:3]


def _is_valid(config: TrainConfig, name: str, value: Any) -> bool:
    try:
        validate_config(dataclasses.replace(config, **{name: value}))
    except ConfigError:
        return False
    return True


def readable(size: float) -> str:
    """Returns a number of bytes as text, with three digits and a unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
