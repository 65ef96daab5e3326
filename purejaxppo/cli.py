"""The command line: what each command does. Nothing slow is imported before it is needed."""

import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from purejaxppo.commands import (
    Command,
    Common,
    Compare,
    Doctor,
    Envs,
    Evaluate,
    Export,
    Plot,
    Resume,
    Train,
    Verify,
)
from purejaxppo.errors import (
    CheckpointError,
    ConfigError,
    EnvError,
    OutOfMemoryError,
    PureJaxPPOError,
    is_out_of_memory,
)
from purejaxppo.flags import parse
from purejaxppo.presets import PRESETS, TARGETS
from purejaxppo.run_dir import RunSettings
from purejaxppo.signals import INTERRUPTED, SIGNALS, STOPPED, end_process, stop_process_on_signal
from purejaxppo.validation import validate_config, validate_hyperparams, validate_seed

_INTERRUPTED_MESSAGE = "interrupted; what was not saved is lost."
_MAX_RUNS = 65_536


def main() -> None:
    """Entry point; exits with the code of the error, or 0."""
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    sys.exit(run(sys.argv[1:]))


def _interrupt(number: int, _: object) -> None:
    """Ends the process at once; training has handlers of its own, which save the state first.

    No exception: one that is raised while an extension module is being loaded ends in a segmentation fault.
    """
    end_process(f"error: {_INTERRUPTED_MESSAGE}", INTERRUPTED)


def run(argv: Sequence[str]) -> int:
    """Runs one command and returns its exit code. An error becomes one line on standard error."""
    debug = "--debug" in argv
    try:
        return _execute(parse(list(argv)))
    except PureJaxPPOError as error:
        return _fail(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        return _fail(_INTERRUPTED_MESSAGE, INTERRUPTED, debug)
    except BrokenPipeError:
        # The reader has gone; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if is_out_of_memory(error):
            message = "out of memory on the device; lower num_envs, num_steps or the number of evaluation episodes."
            return _fail(message, OutOfMemoryError.exit_code, debug)
        return _fail(f"internal error, {type(error).__name__}: {error}; --debug shows where.", 1, debug)


def _execute(command: Command) -> int:
    if isinstance(command, Train | Resume):
        # Before JAX is loaded, so that a typing error costs no seconds.
        _settings(command).validate()
    if isinstance(command, Compare):
        _validate_compare(command)
    if not isinstance(command, Plot | Verify):
        _prepare(command.common, must_work=not isinstance(command, Doctor))
    return _RUN[type(command)](command)


def _settings(command: Train | Resume) -> RunSettings:
    return RunSettings(command.settings, command.hp, command.seed, command.options)


def _validate_compare(command: Compare) -> None:
    """What can be said before JAX is loaded; `compare` sees to the rest."""
    if not 1 <= command.seeds <= _MAX_RUNS:
        raise ConfigError(f"--seeds {command.seeds}; it takes 1 to {_MAX_RUNS}.")
    validate_seed(command.seed)
    if command.seed + command.seeds > 2**32:
        raise ConfigError(f"--seed {command.seed} --seeds {command.seeds} goes beyond 2**32 - 1; start lower.")
    for config, hp in command.resolved:
        validate_config(config)
        validate_hyperparams(hp)


def _prepare(common: Common, must_work: bool = True) -> None:
    """Chooses the device and imports the plugins; the doctor says by itself what does not work."""
    try:
        import jax
    except ImportError:
        if must_work:
            raise
        return
    if not common.debug:
        _quiet_orbax()
    if common.device != "auto":
        jax.config.update("jax_platforms", common.device)
    try:
        if must_work:
            jax.devices()
    except Exception as error:  # not only RuntimeError: an unknown platform is an AssertionError without a word
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"--device {common.device} is not available here ({reason}); use --device auto.") from error
    if common.plugin:
        sys.path.append(os.getcwd())  # last, so that nothing there hides an installed module
    for module in common.plugin:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise EnvError(f"plugin {module!r} cannot be imported: {type(error).__name__}: {error}") from error


def _quiet_orbax() -> None:
    """Its threads tell the traceback of an error which is raised as well, some of them after that.

    Those in Python log it, and TensorStore's give it to the hook for what nobody can catch.
    """
    from absl import logging

    logging.set_verbosity(logging.FATAL)
    tell = sys.__unraisablehook__
    ours = ("tensorstore", "Event loop is closed")
    sys.unraisablehook = lambda what: None if any(part in str(what.exc_value) for part in ours) else tell(what)


def _train(command: Train) -> int:
    from purejaxppo.experiment import run_experiment

    with stop_process_on_signal() as stop:
        summary = run_experiment(
            command.settings,
            command.hp,
            command.seed,
            options=command.options,
            out=command.out,
            allow_download=command.common.allow_download,
            stop=stop,
        )
    return _report(summary, command.common)


def _resume(command: Resume) -> int:
    from purejaxppo.experiment import resume_experiment

    with stop_process_on_signal() as stop:
        summary = resume_experiment(
            command.run_dir,
            settings=_settings(command),
            strict=command.strict,
            allow_download=command.common.allow_download,
            stop=stop,
        )
    return _report(summary, command.common)


def _report(summary: dict[str, Any], common: Common) -> int:
    """Prints what a run came to; returns the exit code."""
    if common.json:
        _print_json(summary)
    else:
        print(_describe(summary))
    if summary["exit_reason"] == "finished":
        return 0
    run_dir = summary["run_dir"]
    stopped = f"stopped by {summary['exit_reason']}; the state is saved, `purejaxppo resume {run_dir}` goes on"
    print(f"purejaxppo: {stopped}", file=sys.stderr)
    return STOPPED


def _compare(command: Compare) -> int:
    from purejaxppo.compare import compare
    from purejaxppo.comparison import table_cells

    config, target = command.settings, command.target
    if target is None and not config.env_params:  # which make another environment of it
        target = TARGETS.get(config.env)
    summary = compare(
        command.resolved,
        range(command.seed, command.seed + command.seeds),
        out=command.out,
        eval_episodes=command.eval_episodes,
        target=target,
        allow_download=command.common.allow_download,
    )
    if command.common.json:
        _print_json(summary)
        return 0
    _print_table(table_cells(summary["algorithms"], target))
    print(f"results in {summary['out']}: comparison.png, table.md, results.csv, curves.csv")
    return 0


def _evaluate(command: Evaluate) -> int:
    from purejaxppo.experiment import evaluate_run
    from purejaxppo.store import Which

    result = evaluate_run(
        command.run_dir,
        which=Which(command.step, command.strict, _note),
        episodes=command.episodes,
        greedy=not command.sampled,
        seed=command.seed,
        allow_download=command.common.allow_download,
    )
    if command.common.json:
        _print_json(result)
    else:
        print(f"policy of {result['env_steps']:,} env steps, {_describe_evaluation(result)}")
    return 0


def _export(command: Export) -> int:
    from purejaxppo.export import export_run
    from purejaxppo.store import Which

    written = export_run(
        command.run_dir,
        command.out,
        Which(command.step, command.strict, _note),
        allow_download=command.common.allow_download,
    )
    if command.common.json:
        _print_json(written)
    else:
        print(f"policy of {written['env_steps']:,} env steps written to {command.out}: {', '.join(written['files'])}")
    return 0


def _verify(command: Verify) -> int:
    from purejaxppo.run_dir import read_run_settings
    from purejaxppo.store import survey

    read_run_settings(command.run_dir)
    rows = survey(command.run_dir)
    if not rows:
        raise CheckpointError(
            f"{command.run_dir} holds no checkpoint; `purejaxppo resume` starts it from the beginning."
        )
    if command.common.json:
        _print_json(rows)
    else:
        table = [["checkpoint", "env steps", "training return", "MB", "state"]]
        for row in rows:
            known = "-" if row["train_return"] is None else f"{row['train_return']:.4g}"
            size = f"{row['bytes'] / 1e6:.2f}"
            table.append([row["checkpoint"], f"{row['env_steps']:,}", known, size, row["fault"] or "sound"])
        _print_table(table)
    damaged = [row for row in rows if row["fault"]]
    if damaged:
        raise CheckpointError(
            f"{len(damaged)} of {len(rows)} checkpoints of {command.run_dir} are damaged; resume and evaluate pass "
            f"over them, and their directories may be removed."
        )
    return 0


def _doctor(command: Doctor) -> int:
    from purejaxppo.doctor import describe_checks, examine
    from purejaxppo.machine import describe_machine

    report = examine(command.directory)
    if command.common.json:
        _print_json(report)
    else:
        _print_table(describe_machine(report))
        _print_table(describe_checks(report))
        print("\n".join(f"- {sentence}" for sentence in report["recommendations"]))
    return 0 if report["ok"] else ConfigError.exit_code


def _note(text: str) -> None:
    print(f"purejaxppo: {text}", file=sys.stderr)


def _plot(command: Plot) -> int:
    from purejaxppo.plot import plot_runs

    if not command.run_dirs:
        raise ConfigError("plot needs at least one run directory, such as runs/CartPole-v1__*.")
    single = command.run_dirs[0] / "plots" / "learning_curve.png"
    out = command.out or (single if len(command.run_dirs) == 1 else Path("learning_curves.png"))
    plot_runs(command.run_dirs, out)
    if command.common.json:
        _print_json({"picture": str(out)})
    else:
        print(out)
    return 0


def _envs(command: Envs) -> int:
    from purejaxppo.envs import env_table

    rows = [{**row, "preset": row["env"] in PRESETS} for row in env_table(command.common.allow_download)]
    if command.common.json:
        _print_json(rows)
        return 0
    table = [["environment", "observation", "actions", "step limit", "preset"]]
    for row in rows:
        if "error" in row:
            table.append([row["env"], row["error"]])
        else:
            shape = " x ".join(map(str, row["observation"]))
            limit = str(row["step_limit"] or "-")
            table.append([row["env"], shape, row["actions"], limit, "yes" if row["preset"] else ""])
    _print_table(table)
    return 0


_RUN: dict[type, Callable[[Any], int]] = {
    Train: _train,
    Resume: _resume,
    Compare: _compare,
    Evaluate: _evaluate,
    Export: _export,
    Plot: _plot,
    Verify: _verify,
    Envs: _envs,
    Doctor: _doctor,
}


def _describe(summary: dict[str, Any]) -> str:
    ended = "finished" if summary["exit_reason"] == "finished" else f"stopped by {summary['exit_reason']}"
    lines = [
        f"{ended}: {summary['env_steps']:,} env steps in {summary['train_seconds']:.1f} s "
        f"(+ {summary['compile_seconds']:.1f} s compilation), {summary['env_steps_per_second']:,.0f} env steps/s",
    ]
    if summary["evaluation"]:
        lines.append(_describe_evaluation(summary["evaluation"]))
    lines.append(f"run directory {summary['run_dir']}")
    return "\n".join(lines)


def _describe_evaluation(result: dict[str, Any]) -> str:
    unfinished = f", {result['unfinished']} broken off unfinished" if "unfinished" in result else ""
    mean, std, iqm = (
        "not finite" if result[name] is None else f"{result[name]:.{digits}g}"
        for name, digits in (("return_mean", 4), ("return_std", 3), ("return_iqm", 4))
    )
    return (
        f"evaluation over {result['episodes']} episodes{unfinished}: return {mean} +- {std} "
        f"(interquartile mean {iqm}), length {result['length_mean']:.4g}"
    )


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Rows of text, the first being the head."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    name, *others = rows[0]
    table = Table(Column(name, no_wrap=True, overflow="fold"), *others, box=box.SIMPLE_HEAD)
    for row in rows[1:]:
        table.add_row(*map(Text, row))  # not a string, which may look like markup
    Console().print(table)


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, allow_nan=False))


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"purejaxppo: error: {' '.join(message.split())}", file=sys.stderr)
    return code
