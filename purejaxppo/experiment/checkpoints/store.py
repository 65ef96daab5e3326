"""Saving states as checkpoints of a run, and loading them after verification.

A save is a transaction. All files are written to `step_<env steps>.tmp-<pid>`, hashed and synced; one rename makes them
the checkpoint; then the parent directory is synced. A process that is killed on the way leaves a temporary directory,
which nobody takes for a checkpoint and `directory.clean` removes. `metrics.jsonl` is synced before (by the caller's
`describe`), so a checkpoint never refers to rows that are lost.

Loading verifies in the order of cost and of danger: the hashes of all files, then the tree against the expected one,
and only then are numbers read, and checked to be finite.
"""

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from purejaxppo.config.fields import AnyPath
from purejaxppo.devices import processes
from purejaxppo.errors import CheckpointError
from purejaxppo.experiment.atomic_files import read_json, sync, write_json
from purejaxppo.experiment.checkpoints.directory import (
    FORMAT_VERSION,
    Step,
    commit,
    first_line,
    invalid_reason,
    list_steps,
    remove,
)
from purejaxppo.experiment.checkpoints.state import (
    Snapshot,
    is_finite,
    jax_settings,
    read_state,
    tree_spec,
    write_state,
)

State = TypeVar("State")

_SEEN_S = 90  # within which a file system shows to one machine what another one has written
_NO_SPACE = re.compile(r"No space left|os_error_code='28'")  # as Python and as TensorStore word it


class JaxSettingError(CheckpointError):
    """The error for a valid checkpoint that was saved under other environment variables of JAX's.

    Args:
      message: what differs.
      settings: the variables to set, as NAME=value, with spaces between them.
    """

    def __init__(self, message: str, settings: str) -> None:
        super().__init__(message)
        self.settings = settings


def save_step(run_dir: Path, env_steps: int, state: Snapshot, meta: dict[str, Any]) -> Path:
    """Writes a checkpoint, and returns its directory once it is on the disk.

    If there is a valid checkpoint of the same state, nothing is written. Any other one of that name is replaced.

    Args:
      run_dir: of the run.
      env_steps: the checkpoint is named after them.
      state: from `snapshot`.
      meta: further content of meta.json.

    Raises:
      CheckpointError: it cannot be written. Older checkpoints are untouched, and no incomplete file is left.
    """
    step_dir = run_dir / "checkpoints" / f"step_{env_steps:012d}"
    content = {"format_version": FORMAT_VERSION, "env_steps": env_steps, "tree": state.spec, "sha256": state.sha256()}
    if (
        step_dir.exists()
        and invalid_reason(step_dir) is None
        and content.items() <= read_json(step_dir / "meta.json").items()
    ):
        return step_dir
    temporary = step_dir.with_name(f"{step_dir.name}.tmp-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_state(temporary / "state", state.tree)
        write_json(temporary / "meta.json", {**content, **meta})
        commit(temporary)
        if step_dir.exists():  # a directory cannot be renamed over another one that has files
            remove(step_dir)
        temporary.replace(step_dir)
        sync(step_dir.parent)
    except Exception as error:
        _discard(temporary)
        reason = "no space left on the disk" if _NO_SPACE.search(str(error)) else first_line(error)
        advice = f"fix that, and `purejaxppo resume {run_dir}` goes on"
        raise CheckpointError(f"cannot save the checkpoint {step_dir}: {reason}; {advice}.") from error
    return step_dir


def _discard(directory: Path) -> None:
    """Removes an incomplete checkpoint, in several tries, as threads of orbax may still write to it for a moment."""
    for _ in range(20):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.05)


def load_step(step: Step, expected: State) -> tuple[State, dict[str, Any]]:
    """Loads a checkpoint after verifying it, and returns its state and the content of its meta.json.

    Args:
      step: from `list_steps`.
      expected: the state's tree of `jax.ShapeDtypeStruct`, from `jax.eval_shape`.

    Raises:
      CheckpointError: it is damaged, of another format version, has another tree, or is not finite. The message is the
        reason alone, without the checkpoint's name.
    """
    reason = invalid_reason(step.path)
    if reason:
        raise CheckpointError(reason)
    meta = read_json(step.path / "meta.json")
    version, tree, spec = meta.get("format_version"), meta.get("tree", {}), tree_spec(expected)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"has format version {version}, where this version of purejaxppo reads {FORMAT_VERSION}; use the "
            f"version that made it"
        )
    if tree != spec:
        raise _other_state(tree, spec)
    try:
        state = read_state(step.path / "state", expected)
    except MemoryError:  # this says nothing about the checkpoint
        raise
    except Exception as error:
        raise CheckpointError(f"cannot be read: {first_line(error)}") from error
    if not is_finite(getattr(state, "learner", state)):
        raise CheckpointError("a parameter or an optimizer state is not finite")
    return state, meta


class CheckpointChoice(NamedTuple):
    """The choice of one of a run's checkpoints; by default the newest valid one."""

    env_steps: int | None = None  # take the checkpoint of this many env steps, and no other
    strict: bool = False  # take the newest one or none, instead of falling back to an older one
    note: Callable[[str], None] = lambda _: None  # called with the reason for each newer one that was passed over


NEWEST = CheckpointChoice()


def load_newest(run_dir: AnyPath, expected: State, which: CheckpointChoice = NEWEST) -> tuple[State, dict[str, Any]]:
    """Loads the newest checkpoint that passes verification, or the one that `which` chooses.

    Args:
      run_dir: of the run; training may be going on in it.
      expected: as in `load_step`.
      which: by default the newest valid one.

    Returns:
      The state, and the content of meta.json.

    Raises:
      CheckpointError: there is no checkpoint, or none that can be used, with the reason for each.
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
    # A run that is still training may have pruned the checkpoints while they were read: look again at those of now.
    if list_steps(run_dir) != found:
        return load_newest(run_dir, expected, which)
    advice = f"set {settings} to read it" if settings else "train it again"
    if not settings and len(found) > 1 and (which.strict or which.env_steps is not None):
        advice = "leave --strict and --step out to take another one"
    raise CheckpointError(f"no checkpoint of {run_dir} can be used ({'; '.join(reasons)}); {advice}.")


def load_together(
    run_dir: Path, load: Callable[[CheckpointChoice], tuple[State, dict[str, Any]]], which: CheckpointChoice
) -> tuple[State, dict[str, Any]]:
    """Loads a checkpoint in all processes: the first one chooses and verifies it, and the others load the same.

    Args:
      run_dir: whose checkpoint it is.
      load: loads one, as `load_newest` does.
      which: the choice of the first process.

    Returns:
      What `load` returns.

    Raises:
      CheckpointError: there is none that can be used.
    """
    loaded = load(which) if processes.leads() else None
    chosen = processes.from_leader(lambda: loaded and loaded[1]["env_steps"])
    if loaded:
        return loaded
    end = time.monotonic() + _SEEN_S
    while all(step.env_steps != chosen for step in list_steps(run_dir)) and time.monotonic() < end:
        time.sleep(0.2)
    return load(CheckpointChoice(env_steps=chosen))


def _other_state(saved: dict[str, str], expected: dict[str, str]) -> CheckpointError:
    """Returns the error for a saved state whose tree is not the expected one."""
    settings, difference = " ".join(sorted(jax_settings(saved, expected))), _first_difference(saved, expected)
    if settings:
        return JaxSettingError(f"was made under {settings}: {difference}", settings)
    return CheckpointError(f"holds another state than config.json describes: {difference}")


def _first_difference(saved: dict[str, str], expected: dict[str, str]) -> str:
    path = next(path for path in sorted(saved.keys() | expected.keys()) if saved.get(path) != expected.get(path))
    return f"{path} is {saved.get(path, 'absent')} instead of {expected.get(path, 'absent')}"
