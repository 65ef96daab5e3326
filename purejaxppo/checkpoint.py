"""The bytes of a state: to the host, to disk by orbax and back, their description and their hash.

Orbax writes the files; what makes them trustworthy is in `store.py`.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from purejaxppo.late import later

with later(("jax", "jax.numpy")):  # whoever only looks at a checkpoint's files does not wait for it
    import jax
    import jax.numpy as jnp

State = TypeVar("State")


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
