"""A trained policy as files that need nothing of this package: StableHLO for JAX, and weights with a NumPy reader."""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from purejaxppo.config.fields import AnyPath
from purejaxppo.core.sums import RELATIVE_FLOOR
from purejaxppo.core.types import Box, Discrete
from purejaxppo.devices.machine import installed_versions, pip_install
from purejaxppo.envs.wrappers import (
    NORMALIZER_CLIP,
    NORMALIZER_EPSILON,
    action_bound,
    action_units,
    observation_stats,
    standardize_by,
)
from purejaxppo.errors import ConfigError
from purejaxppo.experiment.atomic_files import write_bytes, write_json, write_text
from purejaxppo.experiment.directory import create_dir
from purejaxppo.experiment.load_run import SavedRun
from purejaxppo.experiment.signals import when_interrupted
from purejaxppo.policies.networks import make_network

_PLATFORMS = ("cpu", "cuda", "tpu")
_FORMAT_VERSION = 2  # of policy.json, as numpy_policy.py reads it; before 2 actions had no centre and unit


def export_saved(run: SavedRun, out: AnyPath) -> dict[str, Any]:
    """Writes the greedy policy of a saved run into a directory that can be used without this package.

    - `policy.stablehlo`: for `jax.export.deserialize`; what `greedy_policy` returns, its parameters baked in, for a
      batch of any size on CPU, CUDA and TPU. It returns a dictionary, whose arrays policy.json lists.
    - `weights.safetensors`: the whole network, value function included, and the observation normaliser.
    - `policy.json`: what they are and how they fit together.
    - `numpy_policy.py`: reads the two and acts, with NumPy alone.

    Args:
      run: of `restore`, or of `sweeps.members.restore_member`.
      out: missing, or an empty directory.

    Returns:
      out, files (name -> bytes), env, algorithm, env_steps, observation_space, action_space, parameters (how many
      numbers the network has).

    Raises:
      CheckpointError: a directory that is not empty or cannot be written.
      ConfigError: the packages of the extra `export` are missing.
    """
    out = Path(out)
    save_weights = _safetensors_save()
    weights = _weights(run)
    packed = save_weights(weights)
    program = _export(greedy_policy(run), run.env.observation_space.shape)
    hashed = {"weights_sha256": hashlib.sha256(packed).hexdigest()}
    spec = {**_spec(run, weights), "stablehlo": _signature(program), **hashed}

    create_dir(out, out.name)
    when_interrupted(f"{out} is whole if it has a policy.json.")
    write_bytes(out / "policy.stablehlo", program.serialize())
    write_bytes(out / "weights.safetensors", packed)
    write_text(out / "numpy_policy.py", Path(__file__).with_name("numpy_policy.py").read_text(encoding="utf-8"))
    write_json(out / "policy.json", spec)  # last: no reader takes a directory without it for whole
    return {
        "out": str(out),
        "files": {file.name: file.stat().st_size for file in sorted(out.iterdir())},
        **{name: spec[name] for name in ("env", "algorithm", "env_steps", "observation_space", "action_space")},
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(run.runner.learner.params)),
    }


def greedy_policy(run: SavedRun) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """A run's policy, its normaliser frozen, as a function of observations [b, *shape] as `from_gymnax` gives them.

    It returns `action`, what the environment is to get ([b] int32, or [b, *shape] float32 within the bounds), and the
    distribution that this is the mode of: `logits` [b, n], or `mean` and `log_std` [b, A] of the Gaussian before it is
    clipped or squashed.
    """
    apply = make_network(run.config, run.env).apply
    stats = observation_stats(run.runner.env_state)
    bound = action_bound(run.config, run.env.action_space)
    params = run.runner.learner.params

    def policy(obs: jax.Array) -> dict[str, jax.Array]:
        pi: Any = apply(params, obs if stats is None else standardize_by(stats, obs))[0]
        action = pi.mode() if bound is None else bound(pi.mode())
        return {"action": action, **pi._asdict()}

    return policy


def _safetensors_save() -> Callable[[dict[str, np.ndarray]], bytes]:
    try:
        import flatbuffers  # noqa: F401  jax.export writes with it
        from safetensors.numpy import save
    except ImportError as error:
        remedy = pip_install("safetensors", "flatbuffers")
        raise ConfigError(f"exporting needs {error.name}, which is not installed; `{remedy}` installs it.") from error
    return save


def _export(policy: Callable[[jax.Array], Any], obs_shape: tuple[int, ...]) -> jax.export.Exported:
    obs = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), *obs_shape), jnp.float32)
    with _without_source_paths():
        return jax.export.export(jax.jit(policy), platforms=_PLATFORMS)(obs)


def _signature(program: jax.export.Exported) -> dict[str, Any]:
    """What the program takes, and the arrays of the dictionary that it returns; "b" is the size of the batch."""

    def describe(x: jax.core.ShapedArray) -> dict[str, Any]:
        return {"shape": [n if isinstance(n, int) else str(n) for n in x.shape], "dtype": str(x.dtype)}

    (obs,), returned = program.in_avals, jax.tree.unflatten(program.out_tree, program.out_avals)
    return {"observation": describe(obs), "returns": {name: describe(x) for name, x in returned.items()}}


@contextlib.contextmanager
def _without_source_paths() -> Iterator[None]:
    """Keeps this machine's paths out of the program: they are nobody's business, and make equal policies differ."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _weights(run: SavedRun) -> dict[str, np.ndarray]:
    """Every parameter by its path in the network, and the normaliser's mean and var."""
    weights = flax.traverse_util.flatten_dict(run.runner.learner.params, sep="/")
    stats = observation_stats(run.runner.env_state)
    if stats is not None:
        weights |= {"normalizer/mean": stats.mean, "normalizer/var": stats.var}
    return {name: np.asarray(weight) for name, weight in weights.items()}


def _spec(run: SavedRun, weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """policy.json, but for the hash. Layers go by the prefix of their kernel and bias."""
    config, space = run.config, run.env.action_space
    normalizer = {
        "mean": "normalizer/mean",
        "var": "normalizer/var",
        "epsilon": NORMALIZER_EPSILON,
        "relative_floor": RELATIVE_FLOOR,
        "clip": NORMALIZER_CLIP,
    }
    return {
        "format_version": _FORMAT_VERSION,
        "env": config.env,
        "env_params": dict(config.env_params),
        "algorithm": config.algorithm,
        "env_steps": int(run.runner.updates) * config.batch_size,
        "observation_space": {"shape": list(run.env.observation_space.shape)},
        "action_space": _action_space(space),
        "policy": "categorical" if isinstance(space, Discrete) else config.policy,
        "network": {
            "hidden_sizes": list(config.hidden_sizes),
            "activation": config.activation,
            "shared_torso": config.shared_torso,
            **_layers(run, weights),
        },
        "normalizer": normalizer if normalizer["mean"] in weights else None,
        "versions": installed_versions(),
    }


def _layers(run: SavedRun, weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """The kind of torso, and which weights belong to which layer, in order.

    The first layer of a convolutional torso is applied to the 3 x 3 patches [b, H - 2, W - 2, 9 * C].
    """
    is_conv = "params/ConvTorso_0/Dense_0/kernel" in weights
    discrete = isinstance(run.env.action_space, Discrete)
    head = "params/CategoricalHead_0" if discrete else "params/GaussianHead_0"

    def torso(number: int) -> list[str]:
        hidden = [f"Dense_{i}" for i in range(len(run.config.hidden_sizes))]
        if is_conv:
            return [f"params/ConvTorso_{number}/{layer}" for layer in ("Dense_0", *(f"MLPTorso_0/{x}" for x in hidden))]
        return [f"params/MLPTorso_{number}/{layer}" for layer in hidden]

    return {
        "torso": "conv" if is_conv else "mlp",
        "actor": torso(0),
        "head": f"{head}/Dense_0",
        "log_std": None if discrete else f"{head}/log_std",
        "critic": torso(0 if run.config.shared_torso else 1),
        "value_head": "params/Dense_0",
    }


def _action_space(space: Discrete | Box) -> dict[str, Any]:
    """The environment's actions, and how continuous ones come of the policy's: `wrappers.action_bound` has the formula.

    JSON has no infinity: a side without a bound is null.
    """
    if isinstance(space, Discrete):
        return {"kind": "discrete", "n": space.n}
    low, high = ([x if math.isfinite(x) else None for x in side.tolist()] for side in space.bounds())
    centre, unit = (x.tolist() for x in action_units(space))
    return {"kind": "continuous", "shape": list(space.shape), "low": low, "high": high, "centre": centre, "unit": unit}
