"""States in and out of the checkpoint directories of a run, trusted only after verification."""

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from purejaxppo.config.fields import AnyPath
from purejaxppo.errors import CheckpointError
from purejaxppo.experiment.atomic_files import read_json, sync, write_json
from purejaxppo.experiment.checkpoints.directory import Step, commit, fault, first_line, list_steps, remove
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
_NO_SPACE = re.compile(r"No space left|os_error_code='28'")  # as Python and as TensorStore say it


class JaxSettingError(CheckpointError):
    """A checkpoint that is sound, but was made under other variables of JAX's; `settings` are those, as NAME=value."""

    def __init__(self, message: str, settings: str) -> None:
        super().__init__(message)
        self.settings = settings


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
        commit(temporary)
        if step_dir.exists():
            remove(step_dir)
        temporary.replace(step_dir)
        sync(step_dir.parent)
    except Exception as error:
        _discard(temporary)
        reason = "no space left on the disk" if _NO_SPACE.search(str(error)) else first_line(error)
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
        raise CheckpointError(f"cannot be read: {first_line(error)}") from error
    if not is_finite(getattr(state, "learner", state)):
        raise CheckpointError("a parameter or an optimizer state is not finite")
    return state, meta


class CheckpointChoice(NamedTuple):
    """Which checkpoint of a run to take: by default the newest sound one."""

    env_steps: int | None = None  # this one and no other
    strict: bool = False  # refuse to fall back to an older one than the newest
    note: Callable[[str], None] = lambda _: None  # told why a newer one was passed over


NEWEST = CheckpointChoice()


def load_newest(run_dir: AnyPath, expected: State, which: CheckpointChoice = NEWEST) -> tuple[State, dict[str, Any]]:
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


def _other_state(saved: dict[str, str], expected: dict[str, str]) -> CheckpointError:
    """Why a state cannot be read as the one that is expected."""
    settings, difference = " ".join(sorted(jax_settings(saved, expected))), _first_difference(saved, expected)
    if settings:
        return JaxSettingError(f"was made under {settings}: {difference}", settings)
    return CheckpointError(f"holds another state than config.json describes: {difference}")


def _first_difference(saved: dict[str, str], expected: dict[str, str]) -> str:
    path = next(path for path in sorted(saved.keys() | expected.keys()) if saved.get(path) != expected.get(path))
    return f"{path} is {saved.get(path, 'absent')} instead of {expected.get(path, 'absent')}"
