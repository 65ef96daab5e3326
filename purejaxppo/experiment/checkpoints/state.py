"""The bytes of a state: copying it to the host, writing and reading it with orbax, its description and its hash.

Orbax writes and reads the files. `directory.py` verifies them, since orbax loads damaged files silently.
"""

import contextlib
import functools
import hashlib
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.devices.processes import from_leader, on_host, on_leaders_host, place

State = TypeVar("State")
_NARROWED = {  # by JAX without JAX_ENABLE_X64
    "float64": "float32",
    "int64": "int32",
    "uint64": "uint32",
    "complex128": "complex64",
}
# Random number generators of this or another version of JAX.
_KEY_IMPLS = ("threefry2x32", "threefry4x32", "rbg", "unsafe_rbg", "philox2x32", "philox4x32")


class Snapshot(NamedTuple):
    """A copy of a state on the host."""

    tree: Any  # the state's tree with NumPy arrays as leaves; random keys are replaced by their key data
    spec: dict[str, str]  # path -> dtype[shape]; the dtype of a random key names its generator

    def sha256(self) -> str:
        """Returns the SHA-256 of all leaves in tree order, each with its path, dtype and shape."""
        digest = hashlib.sha256()
        for (path, spec), array in zip(self.spec.items(), jax.tree.leaves(self.tree), strict=True):
            digest.update(f"{path} {spec}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def snapshot(state: Any) -> Snapshot:
    """Copies a state to the host, after waiting for its computation.

    All processes that train it have to do so together, and the first one has the copy.
    """
    return Snapshot(on_leaders_host(state), tree_spec(state))


def tree_spec(state: Any) -> dict[str, str]:
    """Returns path -> dtype[shape] of every leaf of a tree of arrays or of `jax.ShapeDtypeStruct`."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def jax_settings(saved: dict[str, str], expected: dict[str, str]) -> set[str]:
    """Returns the environment variables of JAX's that explain why a saved state differs from the expected one.

    Args:
      saved: `tree_spec` of the saved state.
      expected: `tree_spec` of the state that is expected.

    Returns:
      Each as NAME=value, as it was when the state was saved; empty if they do not explain every difference.
    """
    differing = [name for name in saved | expected if saved.get(name) != expected.get(name)]
    settings = {_jax_setting(saved.get(name, ""), expected.get(name, "")) for name in differing}
    return set() if None in settings else {setting for setting in settings if setting}


def _jax_setting(saved: str, expected: str) -> str | None:
    """Returns the variable, as NAME=value, that explains the difference of one leaf, or None."""
    (dtype, _, shape), (other, _, other_shape) = saved.partition("["), expected.partition("[")
    if shape != other_shape:
        return None
    if dtype in _key_names() and other.startswith("key<"):
        return f"JAX_DEFAULT_PRNG_IMPL={_key_names()[dtype]}"
    if _NARROWED.get(dtype) == other:
        return "JAX_ENABLE_X64=1"
    return "JAX_ENABLE_X64=0" if _NARROWED.get(other) == dtype else None


@functools.cache
def _key_names() -> dict[str, str]:
    """Returns the dtype of a random key -> the name of its generator."""
    names = {}
    for name in _KEY_IMPLS:
        with contextlib.suppress(ValueError):  # this version of JAX does not have it
            names[str(jax.eval_shape(functools.partial(jax.random.key, 0, impl=name)).dtype)] = name
    return names


def write_state(directory: Path, tree: Any) -> None:
    """Writes a snapshot's tree into a new directory, from one process. Raises any error of orbax's."""
    if jax.process_count() == 1:
        from orbax.checkpoint import v1 as ocp

        ocp.save(directory.resolve(), tree)
        return
    # Orbax's new interface waits for all processes, whichever are to save (0.12.8); the old one writes the same files.
    import orbax.checkpoint as old

    alone = old.options.MultiprocessingOptions(**_alone())
    handler = old.PyTreeCheckpointHandler(multiprocessing_options=alone)
    old.Checkpointer(handler, multiprocessing_options=alone).save(directory.resolve(), tree)


def read_state(directory: Path, expected: State) -> State:
    """Reads a state that `write_state` wrote, with the same bits.

    The caller has compared the `tree_spec` of `expected` with the saved one, since orbax casts types silently.

    Args:
      directory: the one that was written.
      expected: the state's tree of `jax.ShapeDtypeStruct`, from `jax.eval_shape`. A leaf with a sharding is loaded onto
        its devices, one without onto the default device.

    Raises:
      Exception: any error of orbax's.
    """
    from orbax.checkpoint import v1 as ocp

    # Leaf by leaf, without a target: orbax compares a target's structure with the saved one, down to nodes without a
    # leaf, of which another version of a state may have others.
    options = ocp.options.MultiprocessingOptions(**_alone())
    with ocp.Context(multiprocessing_options=options) if jax.process_count() > 1 else contextlib.nullcontext():
        leaves = jax.tree_util.tree_leaves_with_path(ocp.load(directory.resolve()))
    saved = {_names(path): np.asarray(leaf) for path, leaf in leaves}
    return jax.tree_util.tree_map_with_path(lambda path, leaf: placed_like(leaf, saved[_names(path)]), expected)


def _alone() -> dict[str, Any]:
    """Returns orbax's options for this process, which is to wait for no other one: the first writes, and all read."""
    index = jax.process_index()
    return {"primary_host": index, "active_processes": {index}, "barrier_sync_key_prefix": f"process_{index}"}


def _names(path: Any) -> tuple[str, ...]:
    """Returns the names along a path of a tree; orbax has those of fields as keys, and numbers of items."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def state_sha256(state: Any) -> str:
    """Returns the SHA-256 of a state, as `Snapshot.sha256` does."""
    return from_leader(snapshot(state).sha256)


def is_finite(tree: Any) -> bool:
    """Returns whether every number in a tree of arrays is finite."""
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(on_host(tree)))


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def placed_like(expected: Any, data: np.ndarray) -> jax.Array:
    """Returns a leaf of a `Snapshot` as the array that is expected: on its devices, and with random keys as such."""
    if _is_key(expected):
        impl = jax.random.key_impl(jnp.empty((), expected.dtype))
        return jax.random.wrap_key_data(place(data, expected.sharding), impl=impl)
    return place(data, expected.sharding)
