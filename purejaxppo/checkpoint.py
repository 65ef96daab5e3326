"""The bytes of a run: a checkpoint of the complete state, its hash, and small files that are whole or absent."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

import jax
import numpy as np

from purejaxppo.errors import CheckpointError

State = TypeVar("State")

_STEP = re.compile(r"step_(\d{12,})")


def save_checkpoint(run_dir: Path, env_steps: int, state: Any) -> Path:
    """Writes a state to run_dir/checkpoints/step_<env steps>/state. Raises CheckpointError if that fails."""
    from orbax.checkpoint import v1 as ocp

    step_dir = run_dir / "checkpoints" / f"step_{env_steps:012d}"
    try:
        step_dir.mkdir(parents=True)
        ocp.save((step_dir / "state").resolve(), state)
        write_json(step_dir / "meta.json", {"format_version": 1, "env_steps": env_steps, "tree": _tree_spec(state)})
    except Exception as error:
        raise CheckpointError(
            f"cannot save a checkpoint in {step_dir}: {error}; free some space, or choose another --out."
        ) from error
    return step_dir


def load_checkpoint(run_dir: Path, expected: State) -> State:
    """The newest checkpoint of a run.

    Args:
      run_dir: of the run.
      expected: the state's tree of `jax.ShapeDtypeStruct`, from `jax.eval_shape`.

    Raises:
      CheckpointError: there is none, or it is not of the expected tree, or cannot be read.
    """
    steps = sorted(
        (int(match[1]), path)
        for path in (run_dir / "checkpoints").glob("step_*")
        if (match := _STEP.fullmatch(path.name)) and (path / "meta.json").is_file()
    )
    if not steps:
        raise CheckpointError(f"{run_dir} holds no finished checkpoint; train it to the end first.")
    step_dir = steps[-1][1]
    if read_json(step_dir / "meta.json").get("tree") != _tree_spec(expected):
        raise CheckpointError(f"{step_dir} holds another state than {run_dir}/config.json describes; was it edited?")
    from orbax.checkpoint import v1 as ocp

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), expected)
    try:
        return ocp.load((step_dir / "state").resolve(), placed)
    except Exception as error:
        raise CheckpointError(f"cannot read the checkpoint {step_dir}: {str(error).splitlines()[0]}") from error


def state_sha256(state: Any) -> str:
    """SHA-256 over the leaves in tree order, each with its path, dtype and shape."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Writes JSON by `write_text`; NumPy's scalars are written as numbers."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, default=lambda scalar: scalar.item()) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a whole text by `whole_file`."""
    with whole_file(path) as file:
        file.write(text)


def write_bytes(path: Path, content: bytes | bytearray) -> None:
    """Writes whole bytes by `whole_file`."""
    with whole_file(path) as file:
        file.buffer.write(content)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A file to write that is, after a crash at any moment, either the old one or the new one.

    Raises CheckpointError if it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError for a file that is missing, unreadable or not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"cannot read {path}: it holds no JSON object.")
    return content


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _tree_spec(state: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}
