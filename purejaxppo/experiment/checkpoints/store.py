"""The checkpoints of a run: named, hashed, committed, found again, and trusted only after verification.

    checkpoints/step_000000012345/     env steps
      state/                           orbax
      meta.json                        what the state belongs to
      MANIFEST.json                    every file -> size, sha256
      COMMIT                           sha256 of the manifest, written last

A checkpoint is prepared under another name and renamed when it is on the disk, so that a crash at any moment leaves it
whole or absent; what happens to its bytes afterwards, the hashes tell.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from purejaxppo.config.fields import AnyPath
from purejaxppo.errors import CheckpointError
from purejaxppo.experiment.atomic_files import is_temporary, read_json, sync, write_json, write_text
from purejaxppo.experiment.checkpoints.state import (
    Snapshot,
    is_finite,
    jax_settings,
    read_state,
    tree_spec,
    write_state,
)

State = TypeVar("State")

# In version 1 the sums of returns lacked what rounding leaves out, and actions were not in units of their bounds.
FORMAT_VERSION = 2
_STEP = re.compile(r"step_(\d{12,19})")
_LEFTOVER = re.compile(r"step_\d{12,19}\.tmp-\d+")
_NO_SPACE = re.compile(r"No space left|os_error_code='28'")  # as Python and as TensorStore say it
_MAX_MANIFEST = 2**24  # bytes; far above any real one


class JaxSettingError(CheckpointError):
    """A checkpoint that is sound, but was made under other variables of JAX's; `settings` are those, as NAME=value."""

    def __init__(self, message: str, settings: str) -> None:
        super().__init__(message)
        self.settings = settings


class Step(NamedTuple):
    """A checkpoint's place."""

    env_steps: int
    path: Path


def list_steps(run_dir: AnyPath) -> list[Step]:
    """What is named like a checkpoint, newest first; nothing is said yet of what it holds.

    Raises CheckpointError if the directory is there and cannot be read: that is not the same as there being none.
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


def save_step(run_dir: Path, env_steps: int, state: Snapshot, meta: dict[str, Any]) -> Path:
    """Writes a checkpoint and returns its directory, once it is on the disk.

    Nothing is written if the same state is there already, and sound; anything else under its name is replaced.

    Args:
      run_dir: of the run.
      env_steps: names the checkpoint.
      state: from `snapshot`.
      meta: JSON to be kept along with it.

    Raises:
      CheckpointError: it cannot be written. Older checkpoints are untouched, and nothing half-written stays.
    """
    step_dir = run_dir / "checkpoints" / f"step_{env_steps:012d}"
    content = {"format_version": FORMAT_VERSION, "env_steps": env_steps, "tree": state.spec, "sha256": state.sha256()}
    if step_dir.exists() and fault(step_dir) is None and content.items() <= read_json(step_dir / "meta.json").items():
        return step_dir
    temporary = step_dir.with_name(f"{step_dir.name}.tmp-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_state(temporary / "state", state.tree)
        write_json(temporary / "meta.json", {**content, **meta})
        _commit(temporary)
        if step_dir.exists():
            _remove(step_dir)
        temporary.replace(step_dir)
        sync(step_dir.parent)
    except Exception as error:
        _discard(temporary)
        reason = "no space left on the disk" if _NO_SPACE.search(str(error)) else _first_line(error)
        advice = f"mend that, and `purejaxppo resume {run_dir}` goes on"
        raise CheckpointError(f"cannot save the checkpoint {step_dir}: {reason}; {advice}.") from error
    return step_dir


def _discard(directory: Path) -> None:
    """Removes what could not be written whole, even if threads of orbax are still at it for a moment."""
    for _ in range(20):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.05)


def _commit(step_dir: Path) -> None:
    """Hashes and syncs all that is there, and writes the two files that say so."""
    manifest = {}
    for name, path in _files(step_dir):
        manifest[name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
        sync(path)
    write_json(step_dir / "MANIFEST.json", manifest)
    write_text(step_dir / "COMMIT", _sha256(step_dir / "MANIFEST.json") + "\n")
    for directory in [step_dir, *(path for path in step_dir.rglob("*") if path.is_dir())]:
        sync(directory)


def fault(step_dir: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None: every file is there, no other, and each has its size and hash."""
    try:
        return _fault(step_dir)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"cannot be read: {_first_line(error)}"  # also what is vouched for, but none of ours


def _fault(step_dir: Path) -> str | None:
    manifest_path = step_dir / "MANIFEST.json"
    if not step_dir.is_dir() or step_dir.is_symlink():
        return "not a directory"
    if (step_dir / "COMMIT").stat().st_size > 100 or manifest_path.stat().st_size > _MAX_MANIFEST:
        return "COMMIT or MANIFEST.json is too large to be one"
    if (step_dir / "COMMIT").read_bytes() != f"{_sha256(manifest_path)}\n".encode():
        return "MANIFEST.json is not what COMMIT vouches for"
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
    return None if step_dir.name.startswith(f"step_{env_steps:012d}") else f"is that of {env_steps} env steps"


def _files(step_dir: Path) -> Iterator[tuple[str, Path]]:
    """Everything but directories and the two files that vouch for the rest, by its path within the checkpoint."""
    for path in sorted(step_dir.rglob("*")):
        name = path.relative_to(step_dir).as_posix()
        if name not in ("MANIFEST.json", "COMMIT") and (path.is_symlink() or not path.is_dir()):
            yield name, path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_step(step: Step, expected: State) -> tuple[State, dict[str, Any]]:
    """A checkpoint's state and meta.json, both verified.

    Args:
      step: from `list_steps`.
      expected: the state's tree of `jax.ShapeDtypeStruct`, from `jax.eval_shape`.

    Raises:
      CheckpointError: with the reason alone, if it is damaged, of another version or another tree, or not finite.
    """
    reason = fault(step.path)
    if reason:
        raise CheckpointError(reason)
    meta = read_json(step.path / "meta.json")
    version, tree, spec = meta.get("format_version"), meta.get("tree", {}), tree_spec(expected)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"has format version {version}, where this version of purejaxppo reads {FORMAT_VERSION}; train anew, or "
            f"use the version that made it"
        )
    if tree != spec:
        raise _other_state(tree, spec)
    try:
        state = read_state(step.path / "state", expected)
    except MemoryError:  # no fault of the checkpoint's
        raise
    except Exception as error:
        raise CheckpointError(f"cannot be read: {_first_line(error)}") from error
    if not is_finite(getattr(state, "learner", state)):
        raise CheckpointError("a parameter or an optimizer state is not finite")
    return state, meta


class Which(NamedTuple):
    """Which checkpoint of a run to take: by default the newest sound one."""

    env_steps: int | None = None  # this one and no other
    strict: bool = False  # refuse to fall back to an older one than the newest
    note: Callable[[str], None] = lambda _: None  # told why a newer one was passed over


NEWEST = Which()


def load_newest(run_dir: AnyPath, expected: State, which: Which = NEWEST) -> tuple[State, dict[str, Any]]:
    """The newest checkpoint that passes verification, or another one if `which` says so.

    Args:
      run_dir: of the run; training may be going on in it.
      expected: as in `load_step`.

    Raises:
      CheckpointError: there is none, or none that can be used, with the reason for each.
    """
    found = list_steps(run_dir)
    steps = [step for step in found if which.env_steps in (None, step.env_steps)]
    if not steps:
        none = "no checkpoint" if which.env_steps is None else f"no checkpoint of {which.env_steps} env steps"
        raise CheckpointError(f"{run_dir} holds {none} that could be used; `purejaxppo verify` lists those of a run.")
    reasons, settings = [], ""
    for step in steps[:1] if which.strict else steps:
        try:
            state, meta = load_step(step, expected)
        except CheckpointError as error:
            reasons.append(f"{step.path.name}: {error}")
            settings = settings or getattr(error, "settings", "")
            continue
        for reason in reasons:
            which.note(f"{reason}; passed over for {step.path.name}")
        return state, meta
    if list_steps(run_dir) != found:  # the run goes on, and has replaced what was being read
        return load_newest(run_dir, expected, which)
    advice = f"set {settings} to read what was made so" if settings else "train it anew"
    if not settings and len(found) > 1 and (which.strict or which.env_steps is not None):
        advice = "leave --strict and --step out to take another one"
    raise CheckpointError(f"no checkpoint of {run_dir} can be used ({'; '.join(reasons)}); {advice}.")


def prune(run_dir: Path, newest: int, best: int) -> None:
    """Removes sound checkpoints that are neither among the newest nor among the best by `train_return`.

    A damaged one neither counts nor is removed: it may be what somebody wants to look at. At least one stays.
    """
    sound = [step for step in list_steps(run_dir) if fault(step.path) is None]
    kept = {*sound[: max(1, newest)], *sorted(sound, key=_train_return, reverse=True)[:best]}
    for step in sound:
        if step not in kept:
            with contextlib.suppress(OSError):
                _remove(step.path)


def _train_return(step: Step) -> float:
    value = read_json(step.path / "meta.json").get("train_return")
    return value if isinstance(value, int | float) and math.isfinite(value) else -math.inf


def survey(run_dir: AnyPath) -> list[dict[str, Any]]:
    """What `verify` tells of every checkpoint, newest first: checkpoint, env_steps, train_return, bytes, fault."""
    rows = [_survey(step) for step in list_steps(run_dir)]
    there = {step.path.name for step in list_steps(run_dir)}  # training may have removed some meanwhile
    return [row for row in rows if row["checkpoint"] in there]


def _survey(step: Step) -> dict[str, Any]:
    reason = fault(step.path)
    train_return = -math.inf if reason else _train_return(step)
    return {
        "checkpoint": step.path.name,
        "env_steps": step.env_steps,
        "train_return": train_return if math.isfinite(train_return) else None,
        "bytes": _size(step.path),
        "fault": reason,
    }


def _size(step_dir: Path) -> int:
    try:
        return sum(path.stat().st_size for path in step_dir.rglob("*") if path.is_file())
    except OSError:
        return 0


def clean(run_dir: Path) -> None:
    """Removes what a killed process left half-written. Call it with the run directory locked."""
    for path in (run_dir / "checkpoints").glob("step_*"):
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    for path in run_dir.iterdir():
        if is_temporary(path) and path.is_file():
            path.unlink(missing_ok=True)


def _remove(step_dir: Path) -> None:
    """Under another name first: a removal that is broken off must not look like a damaged checkpoint."""
    doomed = step_dir.with_name(f"{step_dir.name}.tmp-{os.getpid()}0")
    step_dir.replace(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _other_state(saved: dict[str, str], expected: dict[str, str]) -> CheckpointError:
    """Why a state cannot be read as the one that is expected."""
    settings, difference = " ".join(sorted(jax_settings(saved, expected))), _first_difference(saved, expected)
    if settings:
        return JaxSettingError(f"was made under {settings}: {difference}", settings)
    return CheckpointError(f"holds another state than config.json describes: {difference}")


def _first_difference(saved: dict[str, str], expected: dict[str, str]) -> str:
    path = next(path for path in sorted(saved.keys() | expected.keys()) if saved.get(path) != expected.get(path))
    return f"{path} is {saved.get(path, 'absent')} instead of {expected.get(path, 'absent')}"


def _first_line(error: Exception) -> str:
    text = str(error).partition(" [tensorstore_spec=")[0].strip()  # kilobytes that say nothing of the error
    return text.splitlines()[0] if text else type(error).__name__
