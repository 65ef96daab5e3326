"""From the command line's words to a command. Nothing slow is imported here."""

import argparse
import contextlib
import dataclasses
import io
from pathlib import Path
from typing import Any

import tyro

from purejaxppo.cli.arguments import COMMANDS, Command, Compare, Resume, ResumeSweep, Sweep, Train
from purejaxppo.cli.parse_sweep import split_settings, sweep_settings
from purejaxppo.cli.usage import refused_arguments, unknown_arguments
from purejaxppo.config import RunOptions, TrainConfig
from purejaxppo.config.resolve import (
    FIELDS,
    OPTION_FIELDS,
    for_algorithm,
    read_settings,
    refuse_changes,
    refuse_foreign,
    refuse_foreign_in_file,
    resolve,
    settings_record,
    without_foreign,
)
from purejaxppo.config.validate import suggestion
from purejaxppo.config.words import value_rules
from purejaxppo.errors import ConfigError
from purejaxppo.experiment.atomic_files import is_file
from purejaxppo.experiment.directory import program_name, read_run_settings
from purejaxppo.sweeps.directory import is_sweep, read_sweep


def parse(argv: list[str]) -> Command | ResumeSweep:
    """The command that the arguments spell out. Raises ConfigError; leaves the process only for --help."""
    if not argv or argv[0] in ("-h", "--help"):
        everything: Any = Command
        begin = f"PPO in JAX. Begin with: {_program()} train --env CartPole-v1"
        return _tyro(everything, ["--help"], prog=_program(), description=begin)
    name = argv[0]
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}.{suggestion(name, COMMANDS)} It is one of {', '.join(COMMANDS)}.")
    args = argv[1:]
    if COMMANDS[name] is Sweep:
        return _parse_sweep(args)
    if COMMANDS[name] is Resume and (directory := next(filter(is_sweep, map(Path, args)), None)):
        _refuse_keep_best(args)
        if given := _given(args):
            raise ConfigError(
                f"--{given[0].replace('_', '-')}: a sweep's settings are fixed; `purejaxppo extract` makes a run of "
                f"one member, which `resume` goes on with as far as you say."
            )
        saved = ResumeSweep(directory, read_sweep(directory)[0].options)
        return _tyro(ResumeSweep, args, prog=f"{_program()} resume", default=saved)
    default = {Train: _train_default, Resume: _resume_default, Compare: _compare_default}.get(COMMANDS[name])
    options = {"default": default(args)} if default else {}
    command = _tyro(COMMANDS[name], args, prog=f"{_program()} {name}", **options)
    if isinstance(command, Train):
        refuse_foreign(_given(args), [command.settings.algorithm])
    if isinstance(command, Resume):
        _refuse_changes(command)
    return _resolve_all(command, args) if isinstance(command, Compare) else command


def _program() -> str:
    """The command, or how else it was started: it need not be installed."""
    name = program_name()
    return name if " -m purejaxppo" in name else "purejaxppo"


def _tyro(kind: Any, args: list[str], *, prog: str, **options: Any) -> Any:
    """tyro's result; what it refuses, or does not know, is a ConfigError of one sentence."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            command, unknown = tyro.cli(
                kind, args=args, prog=prog, registry=value_rules(), return_unknown_args=True, **options
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(refused_arguments(prog, kind, stop, errors.getvalue())) from stop
    if unknown:
        raise ConfigError(unknown_arguments(prog, kind, args, unknown))
    return command


def _train_default(args: list[str]) -> Train:
    """What `train` is without its flags: defaults, preset and file for the given --env, --algorithm and --config."""
    env, algorithm, settings, others = _base(args)
    seed = others.pop("seed", 0)
    algorithm = algorithm or settings.get("algorithm", TrainConfig.algorithm)
    refuse_foreign_in_file(settings, [algorithm])
    config, hp = resolve(env, for_algorithm(env, settings, algorithm))
    return Train(config, hp, RunOptions(**others), seed=seed)


def _resume_default(args: list[str]) -> Resume:
    """The run's own settings, once its directory is found among the arguments."""
    run_dir = next((path for path in map(Path, args) if is_file(path / "config.json")), None)
    if run_dir is None:
        return Resume(tyro.MISSING, *resolve(None, {}))
    config, hp, seed, options = read_run_settings(run_dir)
    return Resume(run_dir, config, hp, options, seed=seed)


def _refuse_changes(command: Resume) -> None:
    """Raises ConfigError for a setting that is another than the run's and would alter its result."""
    config, hp, _, _ = read_run_settings(command.run_dir)
    refuse_changes(
        settings_record(config, hp),
        settings_record(command.settings, command.hp),
        f"leave them out, or train anew with --config {command.run_dir / 'config.json'}.",
    )


def _compare_default(args: list[str]) -> Compare:
    env, _, settings, _ = _base(args)
    return Compare(*resolve(env, settings))


def _resolve_all(command: Compare, args: list[str]) -> Compare:
    """The command with each algorithm's settings: its own preset, the file, and what was given as flags."""
    given = _given(args)
    if not command.algorithms:
        raise ConfigError("--algorithms takes at least one name.")
    if "algorithm" in given:
        raise ConfigError("compare takes --algorithms, with all of their names, instead of --algorithm.")
    refuse_foreign(given, command.algorithms)
    flags = {name: getattr(command.settings if hasattr(command.settings, name) else command.hp, name) for name in given}
    _, _, settings, _ = _base(args)
    refuse_foreign_in_file(settings, command.algorithms)
    env = command.settings.env
    pairs = tuple(
        resolve(env, {**for_algorithm(env, settings, name), **without_foreign(name, flags)})
        for name in command.algorithms
    )
    return dataclasses.replace(command, resolved=pairs)


def _parse_sweep(args: list[str]) -> Sweep:
    """The settings among the arguments may have many words; tyro sees the others, and tells of all in its help."""
    _refuse_keep_best(args)
    words, rest = split_settings(args)
    env, _, settings, others = _base(rest)
    for name in ("seed", "keep_best"):  # of a run, not of a sweep
        others.pop(name, None)
    algorithm = settings.get("algorithm", TrainConfig.algorithm)
    if len(words.get("algorithm", ())) == 1:
        algorithm = words["algorithm"][0]
    default = Sweep(*resolve(env, for_algorithm(env, settings, algorithm)), RunOptions(**others))
    command = _tyro(Sweep, rest, prog=f"{_program()} sweep", default=default)
    return dataclasses.replace(command, resolved=sweep_settings(command, words, settings))


def _refuse_keep_best(args: list[str]) -> None:
    if any(arg.split("=")[0] in ("--keep-best", "--keep_best") for arg in args):
        raise ConfigError(
            "--keep-best is of single runs; a sweep's checkpoint holds many, good and bad. Leave it out; "
            "--keep-newest there is."
        )


def _base(args: list[str]) -> tuple[str | None, str | None, dict[str, Any], dict[str, Any]]:
    """What the defaults depend on: --env, --algorithm, the settings in --config, and its seed and run options."""
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scan.add_argument("--env")
    scan.add_argument("--algorithm")
    scan.add_argument("--config", type=Path)
    try:
        given, _ = scan.parse_known_args(args)
    except argparse.ArgumentError:  # a flag without its value: tyro will say so
        given = argparse.Namespace(env=None, algorithm=None, config=None)
    settings = read_settings(given.config) if given.config else {}
    others = {name: settings.pop(name) for name in ("seed", *OPTION_FIELDS) if name in settings}
    return given.env, given.algorithm, settings, others


def _given(args: list[str]) -> list[str]:
    """The settings that stand as flags among the arguments, --no-x counting as x."""
    words = [arg[2:].split("=")[0].replace("-", "_") for arg in args if arg.startswith("--")]
    return [name for name in (word if word in FIELDS else word.removeprefix("no_") for word in words) if name in FIELDS]
