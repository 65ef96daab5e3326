"""Loading one run of a sweep for evaluation and export, and extracting it to a run directory of its own."""

import csv
import dataclasses
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import jax
import numpy as np

from purejaxppo.config import RunOptions
from purejaxppo.config.fields import AnyPath
from purejaxppo.errors import CheckpointError, ConfigError
from purejaxppo.experiment.atomic_files import read_json
from purejaxppo.experiment.checkpoints.directory import list_steps
from purejaxppo.experiment.checkpoints.state import snapshot
from purejaxppo.experiment.checkpoints.store import NEWEST, CheckpointChoice, save_step
from purejaxppo.experiment.directory import RunSettings, create_dir, write_inputs
from purejaxppo.experiment.load_run import SavedRun
from purejaxppo.experiment.lock import locked
from purejaxppo.experiment.metrics_log import JsonLines, recent_return
from purejaxppo.experiment.parts import Parts, know_parts
from purejaxppo.experiment.signals import when_interrupted
from purejaxppo.experiment.training import RECENT
from purejaxppo.sweeps.batches import RunBatch, batch_dir, begun_batches
from purejaxppo.sweeps.compiled_group import CompiledGroup
from purejaxppo.sweeps.directory import METRICS, read_sweep
from purejaxppo.sweeps.metrics_csv import used_name
from purejaxppo.sweeps.plan import Plan
from purejaxppo.sweeps.spec import SweepSettings
from purejaxppo.sweeps.train_batch import load_runs


class _Member(NamedTuple):
    """A run of a sweep, loaded."""

    number: int
    settings: RunSettings
    axes: tuple[str, ...]
    group: CompiledGroup
    saved: SavedRun
    diverged_at: int  # update, 0 for never


def load_member(
    directory: AnyPath,
    member: str | int,
    which: CheckpointChoice = NEWEST,
    *,
    allow_download: bool = False,
    **parts: Unpack[Parts],
) -> SavedRun:
    """Loads one run of a sweep, as `load_run` loads a single run.

    Args:
      directory: of the sweep; it may be in use.
      member: `best`, or the number of a run in results.csv and metrics.csv.
      which: its checkpoint, by default the newest valid one.
      allow_download: let the environment fetch its data set.
      **parts: those of one's own that the sweep's settings name (`Parts`).

    Raises:
      ConfigError: the sweep has no such member.
      CheckpointError: there is no valid checkpoint, or no best member yet.
    """
    return _load_member(Path(directory), str(member), which, allow_download, parts).saved


def extract_member(
    directory: AnyPath,
    member: str | int,
    out: AnyPath | None,
    which: CheckpointChoice = NEWEST,
    *,
    allow_download: bool = False,
    **parts: Unpack[Parts],
) -> dict[str, Any]:
    """Writes one run of a sweep as a run directory: settings, metrics and a checkpoint, from which it can be resumed.

    Args:
      directory, member, which, allow_download, **parts: as in `load_member`.
      out: new directory; by default runs/<env>__<algorithm>__s<seed>__<UTC time>.

    Returns:
      A dictionary of run_dir, member, seed, env_steps and diverged_at (the update, or None).

    Raises:
      PureJaxPPOError: a subclass for each kind of failure.
    """
    directory = Path(directory)
    found = _load_member(directory, str(member), which, allow_download, parts)
    config, _, seed, _ = found.settings
    env_steps = found.saved.meta["env_steps"]
    out = create_dir(out, f"{config.env}__{config.algorithm}__s{seed}")
    when_interrupted(f"{out} is whole if `purejaxppo verify {out}` lists a checkpoint.")
    with locked(out):
        write_inputs(out, found.settings, devices=None)
        with JsonLines(out / "metrics.jsonl", 0) as log:
            for row in _metric_rows(directory, found, env_steps):
                log(row["env_steps"], row)
            position = log.position()
            log.sync()
        meta = {
            "updates": env_steps // config.batch_size,
            "metrics_bytes": position,
            "seconds": found.saved.meta["seconds"],
            "train_return": recent_return(out / "metrics.jsonl", position, RECENT),
            "settings": found.settings.record(),
        }
        save_step(out, env_steps, snapshot(found.saved.runner), meta)
    return {
        "run_dir": str(out),
        "member": found.number,
        "seed": seed,
        "env_steps": env_steps,
        "diverged_at": found.diverged_at or None,
    }


def _load_member(directory: Path, member: str, which: CheckpointChoice, allow_download: bool, parts: Parts) -> _Member:
    sweep, sizes = read_sweep(directory)
    know_parts([config for config, _ in sweep.settings], **parts)
    number = _run_number(directory, sweep, member)
    plan = Plan(sweep, allow_download, sizes)
    batch = _last_batch(directory, plan, number, which)
    runs, meta = load_runs(directory, plan, batch, which)
    i = batch.runs.index(number)
    runner = jax.tree.map(lambda leaf: leaf[i], runs.runner)
    diverged_at = int(runs.diverged[i])
    if diverged_at:
        which.note(f"run {number} diverged at update {diverged_at}; this is its state before that")
    setting, seed = divmod(number, len(sweep.seeds))
    config, hp = sweep.settings[setting]
    group = plan.groups[batch.group]
    # The seconds of the batch are divided equally among its runs.
    meta = {**meta, "env_steps": int(runner.updates) * config.batch_size, "seconds": meta["seconds"] / len(batch.runs)}
    settings = RunSettings(
        config, hp, sweep.seeds[seed], dataclasses.replace(sweep.options, keep_best=RunOptions.keep_best)
    )
    return _Member(number, settings, sweep.axes, group, SavedRun(config, group.env, runner, meta), diverged_at)


def _run_number(directory: Path, sweep: SweepSettings, member: str) -> int:
    if member == "best":
        best = read_json(directory / "summary.json").get("best_run") if _is_finished(directory) else None
        if best is None:
            why = "no run has a return" if _is_finished(directory) else "the sweep is not finished"
            raise CheckpointError(f"{directory} has no best member: {why}; give a run's number.")
        return int(best)
    if not (member.isascii() and member.isdigit() and int(member) < sweep.num_runs):
        raise ConfigError(
            f"member {member!r} is unknown; it is best, or a run's number from 0 to {sweep.num_runs - 1}."
        )
    return int(member)


def _is_finished(directory: Path) -> bool:
    path = directory / "summary.json"
    return path.is_file() and read_json(path).get("exit_reason") == "finished"


def _last_batch(directory: Path, plan: Plan, number: int, which: CheckpointChoice) -> RunBatch:
    """Returns the last batch that holds a checkpoint of the run, of the chosen env steps if there is a choice."""
    for batch in reversed(list(begun_batches(directory, plan))):
        steps = [step.env_steps for step in list_steps(batch_dir(directory, batch))]
        if number in batch.runs and which.env_steps in (None, *steps):
            return batch
    none = "" if which.env_steps is None else f" of {which.env_steps} env steps"
    raise CheckpointError(f"{directory} has no checkpoint{none} of run {number}; `purejaxppo resume` goes on with it.")


def _metric_rows(directory: Path, found: _Member, env_steps: int) -> Iterator[dict[str, Any]]:
    """Yields the run's rows of metrics.csv up to its checkpoint, with the keys of a single run's metrics.jsonl."""
    path = directory / METRICS
    names = {name: used_name(found.axes, name) for name in sorted(found.group.metric_names())}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            own = (row for row in csv.DictReader(file) if row["run"] == str(found.number))
            for row in takewhile(lambda row: int(row["env_steps"]) <= env_steps, own):
                counts = {name: int(row[name]) for name in ("update", "env_steps")}
                metrics = {name: _float32_of(row[column]) for name, column in names.items()}
                yield {**counts, **metrics, "episode/count": int(row["episode/count"])}
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise CheckpointError(f"cannot read {path}: {error!r}") from error


def _float32_of(text: str) -> float | None:
    """Returns the float32 that a cell holds; None for an empty one."""
    return float(np.float32(text)) if text else None
