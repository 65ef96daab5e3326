"""Running a sweep, from its settings to its tables and pictures, and resuming one that was stopped."""

import csv
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from rich.console import Console

from purejaxppo.config import RunOptions
from purejaxppo.config.fields import AnyPath
from purejaxppo.config.resolve import describe_settings
from purejaxppo.config.validate import validate_options
from purejaxppo.core.nonfinite import every_run_diverged
from purejaxppo.devices import processes
from purejaxppo.devices.vectorize import Runs
from purejaxppo.errors import CheckpointError, ConfigError
from purejaxppo.experiment.at_work import at_work, console_of
from purejaxppo.experiment.atomic_files import is_file, whole_file, write_json, write_text
from purejaxppo.experiment.checkpoints.directory import clean
from purejaxppo.experiment.directory import add_command, changed_versions, create_dir, write_origin
from purejaxppo.experiment.metrics_log import whole_rows
from purejaxppo.experiment.parts import Parts, know_parts, with_parts
from purejaxppo.experiment.phases import Phases
from purejaxppo.experiment.progress import ProgressDisplay, remark, say
from purejaxppo.experiment.signals import INTERRUPTED, StopRequest, listening, when_interrupted
from purejaxppo.experiment.watchdog import Watchdog, announced
from purejaxppo.sweeps.batches import Finished, RunBatch, batches_of_rung, survivors
from purejaxppo.sweeps.directory import METRICS, read_sweep, write_sweep
from purejaxppo.sweeps.finished import already_finished, finished_sweep
from purejaxppo.sweeps.metrics_csv import metrics_head
from purejaxppo.sweeps.plan import Plan, describe_plan, plan_record
from purejaxppo.sweeps.plots import plot_sweep
from purejaxppo.sweeps.scoring import markdown_table
from purejaxppo.sweeps.spec import NO_EVALUATION_WHILE_TRAINING, SweepSettings
from purejaxppo.sweeps.tables import (
    Outcome,
    read_causes,
    read_curves,
    run_columns,
    run_rows,
    setting_rows,
    settings_table,
)
from purejaxppo.sweeps.train_batch import ActiveSweep, finished_result, new_runs, promoted_runs, train_batch


def run_sweep(
    sweep: SweepSettings,
    *,
    out: AnyPath | None = None,
    allow_download: bool = False,
    console: Console | None = None,
    stop: StopRequest | None = None,
    phases: Phases | None = None,
    **parts: Unpack[Parts],
) -> dict[str, Any]:
    """Trains and evaluates a sweep, writes its directory with tables and pictures, and returns its summary.

    Args:
      sweep: what to train.
      out: new directory; by default runs/<env>__sweep__<UTC time>.
      allow_download: let an environment fetch its data set.
      console: for progress; by default standard error.
      stop: asks the sweep to stop; by default SIGINT, SIGTERM and SIGUSR1 do.
      phases: measures the seconds that the summary reports, by default from this call on.
      **parts: env, policy, algorithm, optimizer or schedule in place of what the settings name (`Parts`).

    Raises:
      PureJaxPPOError: a subclass for each kind of failure; the files that were written remain.
    """
    console, phases = console_of(console), phases or Phases()
    sweep = sweep.with_configs(with_parts([config for config, _ in sweep.settings], **parts)).plain()
    sweep.validate()
    with listening(stop) as stop:
        with stop.ending_at_once("no run had begun.", INTERRUPTED):
            plan = Plan(sweep, allow_download)
            directory = Path(processes.from_leader(lambda: str(create_dir(out, f"{sweep.env}__sweep"))))
        with at_work(directory):
            if processes.leads():
                write_origin(directory)
            say(console, describe_settings(sweep.settings))
            phases.end("setup")
            say(console, "compiling, to see what fits into memory")
            with stop.ending_at_once("no run had begun.", INTERRUPTED), Watchdog(partial(remark, console)):
                plan.fit()
            phases.end("compilation")
            if processes.leads():
                write_sweep(directory, sweep, plan.sizes)
            when_interrupted(f"`purejaxppo resume {directory}` goes on from its checkpoints, if it has any.")
            say(console, "\n".join(f"{name:<20} {text}" for name, text in describe_plan(plan_record(plan))))
            say(console, f"{sweep.env}  {directory}")
            return _train_and_report(directory, plan, console, stop, phases)


def resume_sweep(
    directory: AnyPath,
    *,
    options: RunOptions | None = None,
    strict: bool = False,
    allow_download: bool = False,
    console: Console | None = None,
    stop: StopRequest | None = None,
    phases: Phases | None = None,
    **parts: Unpack[Parts],
) -> dict[str, Any]:
    """Resumes a sweep that was stopped and returns its summary. Its tables are those of an uninterrupted sweep.

    They are so byte for byte. A finished sweep is left as it is.

    Args:
      directory: of the sweep.
      options: how often and how many checkpoints are kept; by default the sweep's own. `eval_episodes` cannot change.
      strict: refuse to fall back to an older checkpoint than the newest.
      allow_download, console, stop, phases: as in `run_sweep`.
      **parts: those of one's own that the sweep's settings name (`Parts`).

    Raises:
      PureJaxPPOError: a subclass for each kind of failure.
    """
    console, phases = console_of(console), phases or Phases()
    directory = Path(directory)
    sweep, sizes = read_sweep(directory)
    know_parts([config for config, _ in sweep.settings], **parts)
    sweep = sweep._replace(options=_other_options(sweep, options or sweep.options))
    processes.check_same({"strict": strict})
    with listening(stop) as stop, at_work(directory):
        when_interrupted(f"`purejaxppo resume {directory}` goes on from its checkpoints, if it has any.")
        summary = processes.from_leader(lambda: finished_sweep(directory))
        if summary:
            say(console, already_finished(summary))
            return _unless_all_diverged(summary)
        with stop.ending_at_once("nothing was done yet."):
            plan = Plan(sweep, allow_download, sizes)
        processes.from_leader(lambda: _check_columns(directory, plan))
        for change in changed_versions(directory):
            remark(console, f"{change} since the sweep began; its results may differ, as those of another seed do.")
        if processes.leads():
            clean(directory)
            (directory / "summary.json").unlink(missing_ok=True)  # written when the sweep was stopped
            write_sweep(directory, sweep, sizes)
            add_command(directory)
        say(console, f"{sweep.env}  {sweep.num_runs:,} runs  {directory}  resumed")
        return _train_and_report(directory, plan, console, stop, phases, strict)


def _unless_all_diverged(summary: dict[str, Any]) -> dict[str, Any]:
    if summary["diverged"] == summary["runs"]:
        raise every_run_diverged(read_causes(Path(summary["out"]) / METRICS), summary["out"])
    return summary


def _check_columns(directory: Path, plan: Plan) -> None:
    """Raises CheckpointError if metrics.csv has other columns than the sweep would write, so as not to overwrite it."""
    path, head = directory / METRICS, metrics_head(plan.sweep, plan.metric_names())
    size = len(head.encode())
    if is_file(path) and path.stat().st_size >= size:
        with path.open("rb") as file:
            if file.read(size) != head.encode():
                raise CheckpointError(
                    f"{path} has other columns than this sweep: it is of another version, or "
                    f"{directory / 'sweep.json'} has been changed; change that back, or start a new sweep."
                )


def _other_options(sweep: SweepSettings, options: RunOptions) -> RunOptions:
    if options.eval_episodes != sweep.options.eval_episodes:
        raise ConfigError(
            f"a resumed sweep keeps its evaluation, but eval_episodes {sweep.options.eval_episodes} -> "
            f"{options.eval_episodes}; leave it out."
        )
    validate_options(options)
    if options.eval_every:
        raise ConfigError(f"eval_every = {options.eval_every}: {NO_EVALUATION_WHILE_TRAINING}")
    return options


def _train_and_report(
    directory: Path, plan: Plan, console: Console, stop: StopRequest, phases: Phases, strict: bool = False
) -> dict[str, Any]:
    """Trains every batch that is not finished, rung by rung, then writes tables and pictures; returns the summary."""
    columns = plan.metric_names()
    head = metrics_head(plan.sweep, columns)
    metrics = directory / METRICS
    if processes.leads() and whole_rows(metrics, len(head.encode())) < len(head.encode()):  # missing, or torn
        write_text(metrics, head)
    phases.end("setup")
    with ProgressDisplay(console, plan.env_steps) as progress:
        active_sweep = ActiveSweep(directory, plan, columns, console, progress, stop, phases, strict)
        finished = _train_all(active_sweep, len(head.encode()))
    if finished is None:
        return _stopped(active_sweep)
    with stop.ending_at_once(f"every run is trained; `purejaxppo resume {directory}` makes the tables."):
        summary = _report(active_sweep, finished) if processes.leads() else {"settings": []}
        summary |= processes.from_leader(lambda: {name: summary[name] for name in ("exit_reason", "runs", "diverged")})
    return _unless_all_diverged({**summary, "out": str(directory)})


def _report(active_sweep: ActiveSweep, finished: Finished) -> dict[str, Any]:
    """Writes the tables and pictures of a sweep that has been trained, and returns its summary."""
    metrics, position = active_sweep.directory / METRICS, finished[-1][1].metrics_bytes
    os.truncate(metrics, min(position, metrics.stat().st_size))  # rows beyond the last batch, of a killed process
    with announced(active_sweep.note, "making tables and pictures"):
        return _write_results(active_sweep.directory, active_sweep.plan, finished, active_sweep.phases)


def _train_all(active_sweep: ActiveSweep, position: int) -> Finished | None:
    """Trains every batch that is not finished, rung by rung; returns all batches, or None if a signal has come.

    Args:
      active_sweep: the sweep.
      position: length of the head of metrics.csv, behind which the rows of the first batch begin.
    """
    directory, plan = active_sweep.directory, active_sweep.plan
    finished: Finished = []
    for rung in range(len(plan.rungs)):
        before = [batch for batch, _ in finished if batch.rung == rung - 1]
        settings = processes.from_leader(lambda: sorted(survivors(plan, rung, finished)))  # noqa: B023
        for batch in batches_of_rung(plan, rung, set(settings)):
            result = finished_result(active_sweep, batch)
            if result:
                steps = plan.groups[batch.group].config.batch_size * (batch.until - batch.since) * len(batch.runs)
                active_sweep.progress.skip(steps)
            else:
                result = train_batch(active_sweep, batch, partial(_begin, directory, plan, batch, before), position)
            if result is None:
                return None
            position = result.metrics_bytes
            finished.append((batch, result))
    return finished


def _begin(directory: Path, plan: Plan, batch: RunBatch, before: Sequence[RunBatch]) -> Runs:
    return promoted_runs(directory, plan, batch, before) if batch.rung else new_runs(plan, batch)


def _stopped(active_sweep: ActiveSweep) -> dict[str, Any]:
    """Writes and returns the summary of a sweep that a signal has stopped."""
    sweep, directory = active_sweep.plan.sweep, active_sweep.directory
    summary = {
        "env": sweep.env,
        "runs": sweep.num_runs,
        "settings": [],
        "exit_reason": active_sweep.stopped(),
        "seconds": active_sweep.phases.seconds(),
    }
    if processes.leads():
        write_json(directory / "summary.json", summary)
    return {**summary, "out": str(directory)}


def _write_results(directory: Path, plan: Plan, finished: Finished, phases: Phases) -> dict[str, Any]:
    sweep = plan.sweep
    outcome = _outcome(plan, finished)
    curves = read_curves(directory / METRICS, sweep)
    rows = setting_rows(sweep, outcome, curves)
    with whole_file(directory / "results.csv") as file:
        writer = csv.DictWriter(file, run_columns(sweep), lineterminator="\n")
        writer.writeheader()
        writer.writerows(run_rows(sweep, outcome, curves))
    write_text(directory / "table.md", markdown_table(settings_table(rows, sweep)))
    seconds = sum(result.seconds for _, result in finished)
    env_steps = int(outcome.env_steps.sum())
    unfinished = sum(result.unfinished for _, result in finished)
    summary = {
        "env": sweep.env,
        "axes": list(sweep.axes),
        "seeds": len(sweep.seeds),
        "runs": sweep.num_runs,
        "diverged": int(np.isnan(outcome.returns).sum()),
        "env_steps": env_steps,
        "train_seconds": round(seconds, 3),
        "env_steps_per_second": round(env_steps / seconds, 1) if seconds else None,
        "target": sweep.target,
        "best_run": rows[0]["best_run"],
        **({"unfinished": unfinished} if unfinished else {}),
        "settings": rows,
        "exit_reason": "finished",
    }
    plot_sweep(sweep, outcome, rows, curves, directory / "plots")
    phases.end("tables and pictures")
    summary["seconds"] = phases.seconds()
    write_json(directory / "summary.json", summary)
    return summary


def _outcome(plan: Plan, finished: Finished) -> Outcome:
    """Returns how every run ended, which is how it ended in the last rung that it trained in."""
    n = plan.sweep.num_runs
    outcome = Outcome(np.zeros(n, np.int64), np.full(n, np.nan), np.zeros(n, np.int64), np.zeros(n, np.int64))
    for batch, result in finished:
        runs = list(batch.runs)
        outcome.env_steps[runs] = np.array(result.updates) * plan.groups[batch.group].config.batch_size
        outcome.returns[runs] = [np.nan if value is None else value for value in result.returns]
        outcome.diverged_at[runs] = result.diverged_at
        outcome.rung[runs] = batch.rung
    return outcome
