"""Export of a trained policy to files that do not need this package: StableHLO for JAX, weights with a NumPy reader."""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from purejaxppo.config.fields import AnyPath
from purejaxppo.core.normalizer import NORMALIZER_CLIP, NORMALIZER_EPSILON, RunningStats
from purejaxppo.core.observations import actor_keys
from purejaxppo.core.sums import RELATIVE_FLOOR
from purejaxppo.core.types import ActionSpace, Box, Discrete, MultiDiscrete
from purejaxppo.devices.machine import installed_versions, pip_install
from purejaxppo.envs.wrappers import action_units
from purejaxppo.errors import ConfigError
from purejaxppo.experiment.atomic_files import write_bytes, write_json, write_text
from purejaxppo.experiment.directory import create_dir
from purejaxppo.experiment.load_run import SavedRun
from purejaxppo.experiment.signals import when_interrupted
from purejaxppo.policies.registry import POLICIES

_PLATFORMS = ("cpu", "cuda", "tpu")
_HEADS = {Discrete: "CategoricalHead", MultiDiscrete: "MultiCategoricalHead", Box: "GaussianHead"}
_DISCRETE_POLICIES = {Discrete: "categorical", MultiDiscrete: "multi_categorical"}
_FORMAT_VERSION = 3  # of policy.json, as numpy_policy.py reads it


def export_saved(run: SavedRun, out: AnyPath) -> dict[str, Any]:
    """Writes the greedy policy of a saved run into a directory that can be used without this package.

    - `policy.stablehlo`: the function `SavedRun.step` with its parameters as constants, for a batch of any size on CPU,
      CUDA and TPU; to be loaded by `jax.export.deserialize`. policy.json lists the arrays that it takes and returns.
    - `weights.safetensors`: the whole network, value function included, and the observation normaliser.
    - `policy.json`: the description of both, by which a reader puts the weights together to a network; it has no
      description of a network of one's own.
    - `numpy_policy.py`: a reader that needs NumPy alone; not for a network of one's own.

    Args:
      run: from `load_run` or `load_member`.
      out: the directory to create; it may exist if it is empty.

    Returns:
      out, files (name -> bytes), env, algorithm, env_steps, observation_space, action_space, and parameters (the number
      of the network's parameters).

    Raises:
      CheckpointError: the directory is not empty or cannot be written.
      ConfigError: the packages of the extra `export` are not installed.
    """
    out = Path(out)
    save_weights = _safetensors_save()
    weights = _weights(run)
    packed = save_weights(weights)
    program = _export(run)
    hashed = {"weights_sha256": hashlib.sha256(packed).hexdigest()}
    spec = {**_spec(run), "stablehlo": _signature(program), **hashed}

    create_dir(out, out.name)
    when_interrupted(f"{out} is complete if it has a policy.json.")
    write_bytes(out / "policy.stablehlo", program.serialize())
    write_bytes(out / "weights.safetensors", packed)
    if spec["network"] is not None:
        write_text(out / "numpy_policy.py", Path(__file__).with_name("numpy_policy.py").read_text(encoding="utf-8"))
    write_json(out / "policy.json", spec)  # last: without it the directory is recognised as incomplete
    return {
        "out": str(out),
        "files": {file.name: file.stat().st_size for file in sorted(out.iterdir())},
        **{name: spec[name] for name in ("env", "algorithm", "env_steps", "observation_space", "action_space")},
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(run.runner.learner.params)),
    }


def _safetensors_save() -> Callable[[dict[str, np.ndarray]], bytes]:
    """Returns `safetensors.numpy.save`. Raises ConfigError if a package of the extra `export` is not installed."""
    try:
        import flatbuffers  # noqa: F401  jax.export needs it to serialise a program
        from safetensors.numpy import save
    except ImportError as error:
        remedy = pip_install("safetensors", "flatbuffers")
        raise ConfigError(f"exporting needs {error.name}, which is not installed; `{remedy}` installs it.") from error
    return save


def _export(run: SavedRun) -> jax.export.Exported:
    """Returns the program of `run.step`, but without a memory and its start for a policy that has none."""
    (batch,) = jax.export.symbolic_shape("b")

    def rows(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)

    obs, memory = jax.tree.map(rows, (run.seen, run.runner.memory))
    start = jax.ShapeDtypeStruct((batch,), jnp.bool_)
    with _without_source_paths():
        if not jax.tree.leaves(memory):
            never = jnp.zeros(1, jnp.bool_)  # without memory, where an episode starts makes no difference
            return jax.export.export(jax.jit(lambda obs: run.step(obs, (), never)[0]), platforms=_PLATFORMS)(obs)
        return jax.export.export(jax.jit(run.step), platforms=_PLATFORMS)(obs, memory, start)


def _signature(program: jax.export.Exported) -> dict[str, Any]:
    """Returns the shapes and dtypes of a program's arguments and results; the size of the batch is "b"."""

    def describe(x: jax.core.ShapedArray) -> dict[str, Any]:
        return {"shape": [n if isinstance(n, int) else str(n) for n in x.shape], "dtype": str(x.dtype)}

    arguments, _ = jax.tree.unflatten(program.in_tree, map(describe, program.in_avals))
    returned = jax.tree.unflatten(program.out_tree, map(describe, program.out_avals))
    if len(arguments) == 1:
        return {"observation": arguments[0], "returns": returned}
    observation, memory, start = arguments
    return {"observation": observation, "memory": memory, "start": start, "returns": list(returned)}


@contextlib.contextmanager
def _without_source_paths() -> Iterator[None]:
    """Keeps the paths of source files out of the program within the context.

    They are private to this machine, and would make the files of equal policies differ.
    """
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _weights(run: SavedRun) -> dict[str, np.ndarray]:
    """Returns all parameters by their paths in the network, and the normaliser's mean and var of each array."""
    leaves = jax.tree_util.tree_leaves_with_path(run.params)
    weights = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    for prefix, stats in _normalizers(run).items():
        weights |= {f"{prefix}/mean": stats.mean, f"{prefix}/var": stats.var}
    return {name: np.asarray(weight) for name, weight in weights.items()}


def _normalizers(run: SavedRun) -> dict[str, RunningStats]:
    """Returns the statistics of observations by the prefix of their names among the weights."""
    stats = run.normalizer.obs
    if isinstance(stats, RunningStats):
        return {"normalizer": stats}
    return {f"normalizer/{key}": x for key, x in (stats or {}).items()}


def _spec(run: SavedRun) -> dict[str, Any]:
    """Returns the content of policy.json but for `stablehlo` and the hash."""
    config, space = run.config, run.env.action_space
    normalizer = {
        "statistics": list(_normalizers(run)),
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
        "observation_space": _observation_space(run),
        "action_space": _action_space(space),
        "policy": _DISCRETE_POLICIES.get(type(space), config.action_distribution),
        "network": _network(run) if config.policy in (None, *POLICIES.built_in()) else None,
        "normalizer": normalizer if normalizer["statistics"] else None,
        "versions": installed_versions(),
    }


def _observation_space(run: SavedRun) -> dict[str, Any]:
    """Returns shape and dtype of observations, or those of each of their arrays under `arrays`."""

    def describe(x: jax.Array) -> dict[str, Any]:
        return {"shape": list(x.shape[1:]), "dtype": str(x.dtype)}

    obs = run.seen
    return {"arrays": {key: describe(x) for key, x in obs.items()}} if isinstance(obs, dict) else describe(obs)


def _network(run: SavedRun) -> dict[str, Any]:
    """Returns the description of a built-in network, as numpy_policy.py reads it.

    It has the layers in order, each as the common prefix of its kernel's and bias's names. The first layer of a
    convolutional torso is applied to the 3 x 3 patches [b, H - 2, W - 2, 9 * C].
    """
    config, obs = run.config, run.seen
    layers = run.params["params"]
    head = f"params/{_HEADS[type(run.env.action_space)]}_0"
    units = sorted(run.runner.memory)  # the names of the recurrent units, if there are any; the policy's comes first

    def torso(number: int) -> list[str]:
        hidden = [f"Dense_{i}" for i in range(len(config.hidden_sizes))]
        if "ConvTorso_0" in layers:
            return [f"params/ConvTorso_{number}/{layer}" for layer in ("Dense_0", *(f"MLPTorso_0/{x}" for x in hidden))]
        return [f"params/MLPTorso_{number}/{layer}" for layer in hidden]

    def gru(name: str) -> dict[str, str]:
        return {"memory": name, "gates": f"params/{name}_gates", "unit": f"params/{name}_gru"}

    return {
        "hidden_sizes": list(config.hidden_sizes),
        "activation": config.activation,
        "shared_torso": config.shared_torso,
        "scale_pixels": config.scale_pixels,
        "sees": actor_keys(obs) if isinstance(obs, dict) else None,
        "torso": "conv" if "ConvTorso_0" in layers else "mlp",
        "actor": torso(0),
        "gru": gru(units[0]) if units else None,
        "head": f"{head}/Dense_0",
        "log_std": f"{head}/log_std" if isinstance(run.env.action_space, Box) else None,
        "critic": torso(0 if config.shared_torso else 1),
        "critic_gru": gru(units[-1]) if units else None,
        "value_head": "params/value_head" if units else "params/Dense_0",
    }


def _action_space(space: ActionSpace) -> dict[str, Any]:
    """Returns the description of the action space.

    For a continuous one it has the bounds, null where there is none since JSON has no infinity, and the centre and unit
    by which `wrappers.action_bound` maps the policy's actions into them; each is a flat list in row-major order.
    """
    if isinstance(space, Discrete):
        return {"kind": "discrete", "n": space.n}
    if isinstance(space, MultiDiscrete):
        return {"kind": "multi_discrete", "sizes": list(space.sizes)}
    low, high = ([x if math.isfinite(x) else None for x in side.ravel().tolist()] for side in space.bounds())
    centre, unit = (x.ravel().tolist() for x in action_units(space))
    return {"kind": "continuous", "shape": list(space.shape), "low": low, "high": high, "centre": centre, "unit": unit}
