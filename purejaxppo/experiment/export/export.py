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
from purejaxppo.core.distributions import MultiCategorical
from purejaxppo.core.normalizer import NORMALIZER_CLIP, NORMALIZER_EPSILON
from purejaxppo.core.sums import RELATIVE_FLOOR
from purejaxppo.core.types import ActionSpace, Box, Discrete, MultiDiscrete
from purejaxppo.devices.machine import installed_versions, pip_install
from purejaxppo.envs.wrappers import action_bound, action_units
from purejaxppo.errors import ConfigError
from purejaxppo.evaluate import frozen
from purejaxppo.experiment.atomic_files import write_bytes, write_json, write_text
from purejaxppo.experiment.directory import create_dir
from purejaxppo.experiment.load_run import SavedRun
from purejaxppo.experiment.signals import when_interrupted
from purejaxppo.policies.registry import POLICIES, make_policy

_PLATFORMS = ("cpu", "cuda", "tpu")
_HEADS = {Discrete: "CategoricalHead", MultiDiscrete: "MultiCategoricalHead", Box: "GaussianHead"}
_DISCRETE_POLICIES = {Discrete: "categorical", MultiDiscrete: "multi_categorical"}
_FORMAT_VERSION = 2  # of policy.json, as numpy_policy.py reads it; since version 2 actions have a centre and a unit


def export_saved(run: SavedRun, out: AnyPath) -> dict[str, Any]:
    """Writes the greedy policy of a saved run into a directory that can be used without this package.

    - `policy.stablehlo`: the function of `greedy_policy` with its parameters as constants, for a batch of any size on
      CPU, CUDA and TPU; to be loaded by `jax.export.deserialize`. It returns a dictionary, whose arrays policy.json
      lists.
    - `weights.safetensors`: the whole network, value function included, and the observation normaliser.
    - `policy.json`: the description of both, by which a reader puts the weights together to a network; it has no
      description of a network of one's own.
    - `numpy_policy.py`: a reader that needs NumPy alone; not for a network of one's own.

    Args:
      run: from `load_run.restore`, or from `sweeps.extract.restore_member`.
      out: the directory to create; it may exist if it is empty.

    Returns:
      out, files (name -> bytes), env, algorithm, env_steps, observation_space, action_space, and parameters (the number
      of the network's parameters).

    Raises:
      CheckpointError: the directory is not empty or cannot be written.
      ConfigError: the packages of the extra `export` are not installed, or the run's observations or actions are of a
        kind that the files have no words for.
    """
    out = Path(out)
    save_weights = _safetensors_save()
    _check_exportable(run)
    weights = _weights(run)
    packed = save_weights(weights)
    program = _export(greedy_policy(run), run.env.observation_space.shape)
    hashed = {"weights_sha256": hashlib.sha256(packed).hexdigest()}
    spec = {**_spec(run, weights), "stablehlo": _signature(program), **hashed}

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


def _check_exportable(run: SavedRun) -> None:
    """Raises ConfigError unless observations are one array, and actions of a kind that policy.json can describe."""
    name, observation, action = run.config.env, run.env.observation_space, run.env.action_space
    if isinstance(observation, dict):
        raise ConfigError(
            f"{name} has observations of several arrays, which cannot be exported yet; `purejaxppo evaluate` plays it."
        )
    if type(action) not in _HEADS:
        kinds = ", ".join(kind.__name__ for kind in _HEADS)
        raise ConfigError(
            f"{name} has actions {type(action).__name__}, which cannot be exported; they have to be one of {kinds}."
        )


def greedy_policy(run: SavedRun) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Returns a run's greedy policy, with its normaliser frozen, as a function of raw observations [b, *shape].

    The function returns a dictionary with `action`, as the environment takes it ([b] or [b, F] int32, or [b, *shape]
    float32 within the bounds), and the parameters of the distribution whose mode it is: `logits` [b, n], or those of
    all factors side by side [b, sum(sizes)], or `mean` and `log_std` [b, A] of the Gaussian before it is clipped or
    squashed.
    """
    frozen_policy = frozen(make_policy(run.config, run.env), run.runner)
    bound = action_bound(run.config, run.env.action_space)
    params = run.runner.learner.params

    def policy(obs: jax.Array) -> dict[str, jax.Array]:
        pi: Any = frozen_policy.evaluate(params, (), obs, jnp.zeros(len(obs), jnp.bool_))[0]
        action = pi.mode() if bound is None else bound(pi.mode())
        parameters = {"logits": pi.logits} if isinstance(pi, MultiCategorical) else pi._asdict()
        return {"action": action, **parameters}

    return policy


def _safetensors_save() -> Callable[[dict[str, np.ndarray]], bytes]:
    """Returns `safetensors.numpy.save`. Raises ConfigError if a package of the extra `export` is not installed."""
    try:
        import flatbuffers  # noqa: F401  jax.export needs it to serialise a program
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
    """Returns the shapes and dtypes of a program's argument and results; the size of the batch is "b"."""

    def describe(x: jax.core.ShapedArray) -> dict[str, Any]:
        return {"shape": [n if isinstance(n, int) else str(n) for n in x.shape], "dtype": str(x.dtype)}

    (obs,), returned = program.in_avals, jax.tree.unflatten(program.out_tree, program.out_avals)
    return {"observation": describe(obs), "returns": {name: describe(x) for name, x in returned.items()}}


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
    """Returns all parameters by their paths in the network, and the normaliser's mean and var."""
    leaves = jax.tree_util.tree_leaves_with_path(run.runner.learner.params)
    weights = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    stats = run.runner.normalizer.obs
    if stats is not None:
        weights |= {"normalizer/mean": stats.mean, "normalizer/var": stats.var}
    return {name: np.asarray(weight) for name, weight in weights.items()}


def _spec(run: SavedRun, weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the content of policy.json but for `stablehlo` and the hash."""
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
        "policy": _DISCRETE_POLICIES.get(type(space), config.action_distribution),
        "network": None if config.policy not in (None, *POLICIES.built_in()) else _network(run, weights),
        "normalizer": normalizer if normalizer["mean"] in weights else None,
        "versions": installed_versions(),
    }


def _network(run: SavedRun, weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the description of a built-in network, as numpy_policy.py reads it."""
    config = run.config
    return {
        "hidden_sizes": list(config.hidden_sizes),
        "activation": config.activation,
        "shared_torso": config.shared_torso,
        **_layers(run, weights),
    }


def _layers(run: SavedRun, weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the kind of torso, and the layers in order, each as the common prefix of its kernel's and bias's names.

    The first layer of a convolutional torso is applied to the 3 x 3 patches [b, H - 2, W - 2, 9 * C].
    """
    is_conv = "params/ConvTorso_0/Dense_0/kernel" in weights
    space = run.env.action_space
    head = f"params/{_HEADS[type(space)]}_0"

    def torso(number: int) -> list[str]:
        hidden = [f"Dense_{i}" for i in range(len(run.config.hidden_sizes))]
        if is_conv:
            return [f"params/ConvTorso_{number}/{layer}" for layer in ("Dense_0", *(f"MLPTorso_0/{x}" for x in hidden))]
        return [f"params/MLPTorso_{number}/{layer}" for layer in hidden]

    return {
        "torso": "conv" if is_conv else "mlp",
        "actor": torso(0),
        "head": f"{head}/Dense_0",
        "log_std": f"{head}/log_std" if isinstance(space, Box) else None,
        "critic": torso(0 if run.config.shared_torso else 1),
        "value_head": "params/Dense_0",
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
