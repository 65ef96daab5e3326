"""The checkpoint directories of a run: their names, hashes, verification and pruning, without JAX.

    checkpoints/step_000000012345/     env steps
      state/                           orbax
      meta.json                        settings, tree and counters of the run that the state belongs to
      MANIFEST.json                    every file -> size, sha256
      COMMIT                           sha256 of the manifest, written last

A checkpoint is written under a temporary name, synced, and then renamed, so that after a crash at any moment it is
complete or absent. Damage to its bytes after that is detected by the hashes: COMMIT has the hash of the manifest, and
the manifest those of all other files, so a checkpoint is valid only if every byte is the one that was saved.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from purejaxppo.config.fields import AnyPath
from purejaxppo.errors import CheckpointError
from purejaxppo.experiment.atomic_files import is_temporary, read_json, sync, write_json, write_text

# Of the state in a checkpoint, and so of runs and sweeps that go on from one. Since version 2 sums of returns carry a
# remainder and actions are in units of their bounds; since 3 every environment has a key of its own; since 4 the
# running episodes are apart from the environments.
FORMAT_VERSION = 4
Ranking = Literal["train_return", "evaluation_return"]  # the field of meta.json by which checkpoints are ranked
_STEP = re.compile(r"step_(\d{12,19})")
_LEFTOVER = re.compile(r"step_\d{12,19}\.tmp-\d+")
_MAX_MANIFEST = 2**24  # bytes; far above any real one


class Step(NamedTuple):
    """A checkpoint's directory, and the env steps in its name."""

    env_steps: int
    path: Path


def list_steps(run_dir: AnyPath) -> list[Step]:
    """Returns the directories that are named like checkpoints, newest first, without looking into them.

    Raises CheckpointError if `checkpoints` exists and cannot be read. Were that treated as no checkpoint, a resumed run
    would begin again.
    """
    directory = Path(run_dir) / "checkpoints"
    try:
        found = list(directory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"cannot read {directory}: {error}") from error
    steps = [Step(int(match[1]), path) for path in found if (match := _STEP.fullmatch(path.name))]
    return sorted(steps, reverse=True)


def commit(step_dir: Path) -> None:
    """Hashes and syncs all files of a checkpoint, and writes MANIFEST.json and COMMIT."""
    manifest = {}
    for name, path in _files(step_dir):
        manifest[name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
        sync(path)
    write_json(step_dir / "MANIFEST.json", manifest)
    write_text(step_dir / "COMMIT", _sha256(step_dir / "MANIFEST.json") + "\n")
    for directory in [step_dir, *(path for path in step_dir.rglob("*") if path.is_dir())]:
        sync(directory)


def invalid_reason(step_dir: Path) -> str | None:
    """Returns why a checkpoint is invalid, or None if it is valid.

    It is valid if it has exactly the files of its manifest, each with its size and hash, and meta.json agrees with its
    name.
    """
    try:
        return _invalid_reason(step_dir)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"cannot be read: {first_line(error)}"  # also files with the right hashes that are none of ours


def _invalid_reason(step_dir: Path) -> str | None:
    manifest_path = step_dir / "MANIFEST.json"
    if not step_dir.is_dir() or step_dir.is_symlink():
        return "not a directory"
    if (step_dir / "COMMIT").stat().st_size > 100 or manifest_path.stat().st_size > _MAX_MANIFEST:
        return "COMMIT or MANIFEST.json is too large"
    if (step_dir / "COMMIT").read_bytes() != f"{_sha256(manifest_path)}\n".encode():
        return "MANIFEST.json does not have the hash in COMMIT"
    manifest = json.loads(manifest_path.read_bytes())
    present = dict(_files(step_dir))
    for name, entry in manifest.items():
        if name not in present:
            return f"{name} is missing"
        if present[name].stat().st_size != entry["size"]:
            return f"{name} has {present[name].stat().st_size} bytes instead of {entry['size']}"
        if _sha256(present[name]) != entry["sha256"]:
            return f"{name} has changed"
    extra = sorted(present.keys() - manifest.keys())
    if extra:
        return f"{extra[0]} does not belong there"
    env_steps = read_json(step_dir / "meta.json")["env_steps"]
    return None if step_dir.name.startswith(f"step_{env_steps:012d}") else f"holds the state of {env_steps} env steps"


def _files(step_dir: Path) -> Iterator[tuple[str, Path]]:
    """Yields (path within the checkpoint, path) of every file and link but MANIFEST.json and COMMIT, in order."""
    for path in sorted(step_dir.rglob("*")):
        name = path.relative_to(step_dir).as_posix()
        if name not in ("MANIFEST.json", "COMMIT") and (path.is_symlink() or not path.is_dir()):
            yield name, path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prune(run_dir: Path, newest: int, best: int, by: Ranking = "train_return") -> None:
    """Removes valid checkpoints that are neither among the newest nor among the best.

    Invalid ones do not count, and are left for inspection. At least one valid checkpoint stays.

    Args:
      run_dir: of the run.
      newest: how many of the newest to keep.
      best: how many of those with the highest returns to keep.
      by: which return; `train_return` decides among those that do not have it, which rank worst, or have the same.
    """
    valid = [step for step in list_steps(run_dir) if invalid_reason(step.path) is None]
    ranked = sorted(valid, key=lambda step: (_return(step, by), _return(step, "train_return")), reverse=True)
    kept = {*valid[: max(1, newest)], *ranked[:best]}
    for step in valid:
        if step not in kept:
            with contextlib.suppress(OSError):
                remove(step.path)


def _return(step: Step, name: Ranking) -> float:
    value = read_json(step.path / "meta.json").get(name)
    return value if isinstance(value, int | float) and math.isfinite(value) else -math.inf


def survey(run_dir: AnyPath) -> list[dict[str, Any]]:
    """Returns a row for every checkpoint, newest first.

    Its fields are checkpoint, env_steps, train_return, evaluation_return, ranked_by (which of the two tells the best
    ones), bytes, fault.

    `fault` is the reason why it is invalid, or None. `purejaxppo verify` shows these rows.
    """
    rows = [_survey(step) for step in list_steps(run_dir)]
    present = {step.path.name for step in list_steps(run_dir)}  # training may have removed some meanwhile
    return [row for row in rows if row["checkpoint"] in present]


def _survey(step: Step) -> dict[str, Any]:
    reason = invalid_reason(step.path)
    meta = {} if reason else read_json(step.path / "meta.json")
    returns = {name: -math.inf if reason else _return(step, name) for name in get_args(Ranking)}
    return {
        "checkpoint": step.path.name,
        "env_steps": step.env_steps,
        **{name: value if math.isfinite(value) else None for name, value in returns.items()},
        "ranked_by": meta.get("ranked_by", "train_return"),
        "bytes": _size(step.path),
        "fault": reason,
    }


def _size(step_dir: Path) -> int:
    try:
        return sum(path.stat().st_size for path in step_dir.rglob("*") if path.is_file())
    except OSError:
        return 0


def clean(run_dir: Path) -> None:
    """Removes incomplete files and checkpoints of a killed process. The caller holds the run directory's lock."""
    for path in (run_dir / "checkpoints").glob("step_*"):
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    for path in run_dir.iterdir():
        if is_temporary(path) and path.is_file():
            path.unlink(missing_ok=True)


def remove(step_dir: Path) -> None:
    """Removes a checkpoint. Raises OSError."""
    # Renamed first, to a name that `clean` removes: an interrupted removal must not leave a checkpoint that looks
    # damaged.
    doomed = step_dir.with_name(f"{step_dir.name}.tmp-{os.getpid()}0")
    step_dir.replace(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, without the specification that TensorStore appends to it."""
    text = str(error).partition(" [tensorstore_spec=")[0].strip()  # several kilobytes
    return text.splitlines()[0] if text else type(error).__name__
