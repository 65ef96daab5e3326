"""The handler of each command, from parsed arguments to the exit code.

Modules that import JAX are imported within the handlers, so that errors in the arguments and finished runs are reported
without it.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from purejaxppo.cli.arguments import (
    Command,
    Common,
    Compare,
    Doctor,
    Envs,
    Evaluate,
    Export,
    Extract,
    Plot,
    Resume,
    ResumeSweep,
    Sweep,
    Together,
    Train,
    Verify,
)
from purejaxppo.cli.output import (
    describe_checkpoints,
    describe_envs,
    describe_evaluation,
    describe_run,
    describe_seconds,
    note,
    print_table,
    show,
)
from purejaxppo.config.presets import PRESETS, target_of
from purejaxppo.config.resolve import describe_settings
from purejaxppo.config.validate import seeds_from, validate_config, validate_evaluation, validate_hyperparams
from purejaxppo.errors import CheckpointError, ConfigError
from purejaxppo.experiment.atomic_files import is_file
from purejaxppo.experiment.checkpoints.directory import survey
from purejaxppo.experiment.directory import RunSettings, read_run_settings
from purejaxppo.experiment.lock import locked
from purejaxppo.experiment.phases import Phases, process_age
from purejaxppo.experiment.signals import STOPPED, stop_process_on_signal
from purejaxppo.experiment.watchdog import announced
from purejaxppo.sweeps.directory import is_sweep, read_sweep, survey_batches
from purejaxppo.sweeps.spec import MAX_RUNS, SweepSettings

if TYPE_CHECKING:
    from purejaxppo.experiment.load_run import SavedRun


def validate(command: Command | ResumeSweep) -> None:
    """Raises ConfigError for arguments that can be refused without JAX, whose import takes seconds."""
    if isinstance(command, Train | Resume):
        _settings(command).validate()
    if isinstance(command, Evaluate):
        validate_evaluation(command.episodes, command.seed)
    if isinstance(command, Compare):
        _validate_compare(command)
    if isinstance(command, Train | Resume | Sweep | ResumeSweep):
        _validate_together(command.together, command.common.devices)


def _validate_together(together: Together, devices: str) -> None:
    """Raises ConfigError for options of several processes that do not fit together."""
    given = (together.coordinator, together.num_processes, together.process_id)
    if any(option is None for option in given) and any(option is not None for option in given):
        raise ConfigError("--coordinator, --num-processes and --process-id belong together; give all three, or none.")
    if together.several and devices not in ("auto", "all"):
        raise ConfigError(f"--devices {devices} chooses among one process's; several use all, leave it out.")
    if together.coordinator is None or together.num_processes is None or together.process_id is None:
        return
    host, _, port = together.coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ConfigError(
            f"--coordinator {together.coordinator} is no address; give HOST:PORT, such as 10.0.0.1:12345."
        )
    if not 0 <= together.process_id < together.num_processes:
        raise ConfigError(
            f"--process-id {together.process_id} is not one of {together.num_processes} processes, which are counted "
            f"from 0; each of them has a number of its own."
        )


def report_finished(command: Command | ResumeSweep) -> int | None:
    """Reports on a finished run or sweep that is to be resumed, without JAX, and returns the exit code.

    Returns None if the command is another one, if there may be something left to do, or if the outcome was an error.
    """
    if isinstance(command, Resume):
        return _report_finished_run(command)
    return _report_finished_sweep(command) if isinstance(command, ResumeSweep) else None


def _report_finished_run(command: Resume) -> int | None:
    from purejaxppo.experiment.finished import already_finished, finished_run
    from purejaxppo.experiment.progress import Terminal, say

    with locked(command.run_dir):
        summary = finished_run(command.run_dir, command.settings)
    if summary is None or not is_file(command.run_dir / "plots" / "learning_curve.png"):
        return None
    say(Terminal(), already_finished(summary))
    return _report(_for_output(summary, command.common), command.common)


def _report_finished_sweep(command: ResumeSweep) -> int | None:
    from purejaxppo.experiment.progress import Terminal, say
    from purejaxppo.sweeps.finished import already_finished, finished_sweep

    sweep, _ = read_sweep(command.run_dir)
    with locked(command.run_dir):
        summary = finished_sweep(command.run_dir)
    changed = command.options.eval_episodes != sweep.options.eval_episodes
    if summary is None or changed or summary["diverged"] == summary["runs"]:
        return None
    say(Terminal(), already_finished(summary))
    return _report_sweep(_for_output(summary, command.common), sweep, command.common)


def _for_output(summary: dict[str, Any], common: Common) -> dict[str, Any]:
    """Returns a summary for output, without seconds unless it is JSON: they are those of the command that trained."""
    return summary if common.json else {name: value for name, value in summary.items() if name != "seconds"}


def _settings(command: Train | Resume) -> RunSettings:
    return RunSettings(command.settings, command.hp, command.seed, command.options)


def _validate_compare(command: Compare) -> None:
    """Raises ConfigError for arguments that `compare` would refuse later, with JAX."""
    if not 1 <= command.seeds <= MAX_RUNS:
        raise ConfigError(f"--seeds {command.seeds} is no number of runs; give one from 1 to {MAX_RUNS}.")
    seeds_from(command.seed, command.seeds)
    for config, hp in command.resolved:
        validate_config(config)
        validate_hyperparams(hp)


def _startup_phases() -> Phases:
    """Returns the phases of a command; everything until now, from the start of the process, is the phase `start`."""
    phases = Phases(process_age())
    phases.end("start")
    return phases


def _train(command: Train) -> int:
    from purejaxppo.experiment.run import run_experiment

    with stop_process_on_signal() as stop:
        summary = run_experiment(
            command.settings,
            command.hp,
            command.seed,
            options=command.options,
            out=command.out,
            allow_download=command.common.allow_download,
            stop=stop,
            phases=_startup_phases(),
        )
    return _report(summary, command.common)


def _resume(command: Resume) -> int:
    from purejaxppo.experiment.run import resume_experiment

    with stop_process_on_signal() as stop:
        summary = resume_experiment(
            command.run_dir,
            settings=_settings(command),
            strict=command.strict,
            allow_download=command.common.allow_download,
            stop=stop,
            phases=_startup_phases(),
        )
    return _report(summary, command.common)


def _report(summary: dict[str, Any], common: Common) -> int:
    """Prints the summary of a run; returns the exit code."""
    show(common, summary, lambda: print(describe_run(summary)))
    return _exit_code(summary["exit_reason"], summary["run_dir"])


def _exit_code(exit_reason: str, directory: str) -> int:
    """Returns 0 for a finished run; for one that a signal stopped, prints how to resume it and returns `STOPPED`."""
    if exit_reason == "finished":
        return 0
    note(f"stopped by {exit_reason}; the state is saved, `purejaxppo resume {directory}` goes on")
    return STOPPED


def _compare(command: Compare) -> int:
    from purejaxppo.sweeps.compare import compare
    from purejaxppo.sweeps.scoring import comparison_table

    target = target_of(command.settings) if command.target is None else command.target
    summary = compare(
        command.resolved,
        seeds_from(command.seed, command.seeds),
        out=command.out,
        eval_episodes=command.eval_episodes,
        target=target,
        allow_download=command.common.allow_download,
        phases=_startup_phases(),
    )

    def print_text() -> None:
        print_table(comparison_table(summary["algorithms"], target))
        _print_end(summary, sum(row.get("unfinished", 0) for row in summary["algorithms"]))
        print(f"results in {summary['out']}: comparison.png, table.md, results.csv, curves.csv")

    show(command.common, summary, print_text)
    return 0


def _sweep(command: Sweep) -> int:
    from purejaxppo.sweeps.plan import describe_plan, make_plan, plan_record
    from purejaxppo.sweeps.run import run_sweep

    sweep, allow_download = command.resolved, command.common.allow_download
    assert sweep is not None  # `parse` sets it
    if command.plan:
        note(describe_settings(sweep.settings))
        with announced(note, "compiling, to see what fits into memory"):
            record = plan_record(make_plan(sweep, allow_download=allow_download))
        show(command.common, record, lambda: print_table([["plan", ""], *describe_plan(record)]))
        return 0
    with stop_process_on_signal() as stop:
        summary = run_sweep(sweep, out=command.out, allow_download=allow_download, stop=stop, phases=_startup_phases())
    return _report_sweep(summary, sweep, command.common)


def _resume_sweep(command: ResumeSweep) -> int:
    from purejaxppo.sweeps.run import resume_sweep

    with stop_process_on_signal() as stop:
        summary = resume_sweep(
            command.run_dir,
            options=command.options,
            strict=command.strict,
            allow_download=command.common.allow_download,
            stop=stop,
            phases=_startup_phases(),
        )
    return _report_sweep(summary, read_sweep(command.run_dir)[0], command.common)


def _report_sweep(summary: dict[str, Any], sweep: SweepSettings, common: Common) -> int:
    """Prints the summary of a sweep; returns the exit code."""
    from purejaxppo.sweeps.tables import settings_table

    def print_text() -> None:
        if summary["settings"]:
            print_table(settings_table(summary["settings"], sweep))
            _print_end(summary, summary.get("unfinished", 0))
            print(f"results in {summary['out']}: table.md, results.csv, metrics.csv, plots/")

    show(common, summary, print_text)
    return _exit_code(summary["exit_reason"], summary["out"])


def _print_end(summary: dict[str, Any], unfinished: int) -> None:
    """Prints how many episodes were cut off before their end, if any were, and the seconds of each phase."""
    if unfinished:
        print(f"{unfinished:,} episodes of the evaluation were broken off unfinished; their returns until then count")
    if "seconds" in summary:
        print(describe_seconds(summary["seconds"]))


def _load_policy(command: Evaluate | Export) -> "SavedRun":
    """Loads the run that a command names, from a run directory or, with --member, from a sweep's."""
    from purejaxppo.experiment.checkpoints.store import CheckpointChoice
    from purejaxppo.experiment.load_run import load_run
    from purejaxppo.sweeps.extract import load_member

    which, allow_download = CheckpointChoice(command.step, command.strict, note), command.common.allow_download
    with announced(note, f"checking and loading a checkpoint of {command.run_dir}"):
        if command.member is None:
            return load_run(command.run_dir, which, allow_download=allow_download)
        return load_member(command.run_dir, command.member, which, allow_download=allow_download)


def _evaluate(command: Evaluate) -> int:
    from purejaxppo.experiment.run import evaluate_saved

    result = evaluate_saved(
        _load_policy(command),
        episodes=command.episodes,
        greedy=not command.sampled,
        seed=command.seed,
        allow_download=command.common.allow_download,
        note=note,
    )
    show(
        command.common,
        result,
        lambda: print(f"policy of {result['env_steps']:,} env steps, {describe_evaluation(result)}"),
    )
    return 0


def _export(command: Export) -> int:
    from purejaxppo.experiment.export.export import export_saved

    saved = _load_policy(command)
    with announced(note, "writing the policy"):
        written = export_saved(saved, command.out)
    text = f"policy of {written['env_steps']:,} env steps written to {command.out}: {', '.join(written['files'])}"
    show(command.common, written, lambda: print(text))
    return 0


def _extract(command: Extract) -> int:
    from purejaxppo.experiment.checkpoints.store import CheckpointChoice
    from purejaxppo.sweeps.extract import extract_member

    which, allow_download = CheckpointChoice(command.step, command.strict, note), command.common.allow_download
    with announced(note, f"taking a run out of {command.run_dir}"):
        made = extract_member(command.run_dir, command.member, command.out, which, allow_download=allow_download)
    text = (
        f"run {made['member']} (seed {made['seed']}) of {made['env_steps']:,} env steps is now {made['run_dir']}; "
        f"`purejaxppo resume {made['run_dir']}` goes on with it, --total-timesteps as far as you say"
    )
    show(command.common, made, lambda: print(text))
    return 0


def _verify(command: Verify) -> int:
    check, list_checkpoints = (read_sweep, survey_batches) if is_sweep(command.run_dir) else (read_run_settings, survey)
    check(command.run_dir)  # raises if it is no directory of a run or sweep
    with announced(note, f"checking every checkpoint of {command.run_dir}"):
        rows = list_checkpoints(command.run_dir)
    if not rows:
        raise CheckpointError(
            f"{command.run_dir} holds no checkpoint; `purejaxppo resume` starts it from the beginning."
        )
    show(command.common, rows, lambda: print_table(describe_checkpoints(rows)))
    damaged = [row for row in rows if row["fault"]]
    if damaged:
        raise CheckpointError(
            f"{len(damaged)} of {len(rows)} checkpoints of {command.run_dir} are damaged; resume and evaluate pass "
            f"over them, and their directories may be removed."
        )
    return 0


def _doctor(command: Doctor) -> int:
    from purejaxppo.cli.doctor import describe_checks, examine
    from purejaxppo.devices.machine import describe_machine
    from purejaxppo.devices.selection import use_devices

    with contextlib.suppress(RuntimeError, AssertionError):  # JAX cannot start, which a check reports
        use_devices(command.common.devices)
    with announced(note, "looking at this machine"):
        report = examine(command.directory)

    def print_text() -> None:
        print_table(describe_machine(report))
        print_table(describe_checks(report))
        print("\n".join(f"- {sentence}" for sentence in report["recommendations"]))

    show(command.common, report, print_text)
    return 0 if report["ok"] else ConfigError.exit_code


def _plot(command: Plot) -> int:
    from purejaxppo.experiment.plots import plot_runs

    if not command.run_dirs:
        raise ConfigError("plot needs at least one run directory, such as runs/CartPole-v1__*.")
    single = command.run_dirs[0] / "plots" / "learning_curve.png"
    out = command.out or (single if len(command.run_dirs) == 1 else Path("learning_curves.png"))
    with announced(note, f"drawing {out}"):
        plot_runs(command.run_dirs, out)
    show(command.common, {"picture": str(out)}, lambda: print(out))
    return 0


def _envs(command: Envs) -> int:
    from purejaxppo.envs.env_table import env_table

    with announced(note, "building every environment"):
        rows = [{**row, "preset": row["env"] in PRESETS} for row in env_table(command.common.allow_download)]
    show(command.common, rows, lambda: print_table(describe_envs(rows)))
    return 0


ACTIONS: dict[type, Callable[[Any], int]] = {
    Train: _train,
    Resume: _resume,
    ResumeSweep: _resume_sweep,
    Compare: _compare,
    Sweep: _sweep,
    Evaluate: _evaluate,
    Export: _export,
    Extract: _extract,
    Plot: _plot,
    Verify: _verify,
    Envs: _envs,
    Doctor: _doctor,
}
