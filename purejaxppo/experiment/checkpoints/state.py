"""The bytes of a state: to the host, to disk by orbax and back, their description and their hash.

Orbax writes the files; what makes them trustworthy is in `store.py`.
"""

import contextlib
import functools
import hashlib
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

State = TypeVar("State")
_WIDE = {"float64": "float32", "int64": "int32", "uint64": "uint32", "complex128": "complex64"}
_KEYS = ("threefry2x32", "threefry4x32", "rbg", "unsafe_rbg", "philox2x32", "philox4x32")  # of some version of JAX


class Snapshot(NamedTuple):
    """A state on the host."""

    tree: Any  # of NumPy arrays of their own; a random key is its data
    spec: dict[str, str]  # path -> dtype[shape], a key's dtype naming its implementation

    def sha256(self) -> str:
        """Over the leaves in tree order, each with its path, dtype and shape."""
        digest = hashlib.sha256()
        for (path, spec), array in zip(self.spec.items(), jax.tree.leaves(self.tree), strict=True):
            digest.update(f"{path} {spec}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def snapshot(state: Any) -> Snapshot:
    """Copies a state to the host; waits until it has been computed."""
    return Snapshot(jax.tree.map(lambda leaf: np.array(_data(leaf)), state), tree_spec(state))


def tree_spec(state: Any) -> dict[str, str]:
    """Path -> dtype[shape] of every leaf, of arrays or of `jax.ShapeDtypeStruct`."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def jax_settings(saved: dict[str, str], expected: dict[str, str]) -> set[str]:
    """Which of JAX's variables, as NAME=value, a state was made under that is expected to be another one.

    Args:
      saved, expected: of `tree_spec`.

    Returns:
      Nothing if that does not explain every difference.
    """
    differing = [name for name in saved | expected if saved.get(name) != expected.get(name)]
    settings = {_jax_setting(saved.get(name, ""), expected.get(name, "")) for name in differing}
    return set() if None in settings else {setting for setting in settings if setting}


def _jax_setting(saved: str, expected: str) -> str | None:
    """That which makes a leaf of the one type and shape what would else be of the other."""
    (dtype, _, shape), (other, _, other_shape) = saved.partition("["), expected.partition("[")
    if shape != other_shape:
        return None
    if dtype in _key_names() and other.startswith("key<"):
        return f"JAX_DEFAULT_PRNG_IMPL={_key_names()[dtype]}"
    if _WIDE.get(dtype) == other:
        return "JAX_ENABLE_X64=1"
    return "JAX_ENABLE_X64=0" if _WIDE.get(other) == dtype else None


@functools.cache
def _key_names() -> dict[str, str]:
    """A random key's dtype -> the name of its implementation."""
    names = {}
    for name in _KEYS:
        with contextlib.suppress(ValueError):  # which another version of JAX has
            names[str(jax.eval_shape(functools.partial(jax.random.key, 0, impl=name)).dtype)] = name
    return names


def write_state(directory: Path, tree: Any) -> None:
    """Writes a snapshot's tree into a new directory. Raises whatever orbax does."""
    from orbax.checkpoint import v1 as ocp

    ocp.save(directory.resolve(), tree)


def read_state(directory: Path, expected: State) -> State:
    """Reads what `write_state` wrote, bit by bit, onto the default device, or where the expected leaves' sharding says.

    `expected` is the state's tree of `jax.ShapeDtypeStruct`, from `jax.eval_shape`. Compare its `tree_spec` first with
    what was saved, since orbax casts a type silently. Raises whatever orbax does.
    """
    from orbax.checkpoint import v1 as ocp

    target = jax.tree.map(lambda leaf: np.empty(*_data_shape(leaf)), expected)
    tree = ocp.load(directory.resolve(), target)
    return jax.tree.map(_like, expected, tree)


def state_sha256(state: Any) -> str:
    """The hash of a state's snapshot."""
    return snapshot(state).sha256()


def is_finite(tree: Any) -> bool:
    """Whether every number in a tree of arrays is."""
    return all(np.isfinite(np.asarray(_data(leaf))).all() for leaf in jax.tree.leaves(tree))


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _data_shape(leaf: Any) -> tuple[tuple[int, ...], Any]:
    data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return data.shape, data.dtype


def _like(expected: Any, data: np.ndarray) -> "jax.Array":
    if _is_key(expected):
        impl = jax.random.key_impl(jnp.empty((), expected.dtype))
        return jax.random.wrap_key_data(jax.device_put(data, expected.sharding), impl=impl)
    return jax.device_put(data, expected.sharding)
