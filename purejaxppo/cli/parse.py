"""Parsing of the command line. It imports nothing slow.

tyro makes a command's dataclass from the arguments. Two things are found before that, by scanning the arguments: the
defaults, which depend on --env, --algorithm, --config or a run's directory; and the settings of `sweep`, whose flags
take several values.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from purejaxppo.cli.arguments import COMMANDS, Command, Compare, Resume, ResumeSweep, Sweep, Train
from purejaxppo.cli.help import add_headings, asks_for_help, overview
from purejaxppo.cli.usage import refused_arguments, unknown_arguments
from purejaxppo.config import RunOptions, TrainConfig
from purejaxppo.config.presets import target_of
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
    tenth_of_budget,
    without_foreign,
)
from purejaxppo.config.validate import suggestion
from purejaxppo.config.words import value_rules
from purejaxppo.errors import ConfigError
from purejaxppo.experiment.atomic_files import is_file
from purejaxppo.experiment.directory import program_name, read_run_settings
from purejaxppo.sweeps.directory import is_sweep, read_sweep
from purejaxppo.sweeps.space import Axis, Span, all_points, flag_of, parse_axis, parse_seeds, sample
from purejaxppo.sweeps.spec import MAX_RUNS, NO_EVALUATION_WHILE_TRAINING, SweepSettings

# Options of a single run; a sweep or a comparison refuses their flags, with the reason.
_SINGLE_RUN_OPTIONS = {
    "keep_best": "a checkpoint of a sweep holds many runs, good and bad. Leave it out; a sweep has --keep-newest.",
    "eval_every": NO_EVALUATION_WHILE_TRAINING,
    "eval_every_episodes": NO_EVALUATION_WHILE_TRAINING,
}
# Settings that a sweep cannot vary: it compares returns of one environment, and freezes runs that diverge.
_ONE_VALUE = ("env", "env_params", "on_nonfinite")


def parse(argv: list[str]) -> Command | ResumeSweep:
    """Parses the arguments into a command. Raises ConfigError; ends the process for --help and --version alone."""
    if not argv or argv[0] in ("-h", "--help"):
        begin = f"PPO in JAX. Begin with: {_program()} train --env CartPole-v1"
        return _parse_with_tyro(overview(), ["--help"], prog=_program(), description=begin)
    name = argv[0]
    if name == "--version":
        sys.stdout.write(f"purejaxppo {importlib.metadata.version('purejaxppo')}\n")
        sys.exit(0)
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}.{suggestion(name, COMMANDS)} It is one of {', '.join(COMMANDS)}.")
    args = argv[1:]
    if COMMANDS[name] is Sweep:
        return _parse_sweep(args)
    if COMMANDS[name] is Resume and (directory := next(filter(is_sweep, map(Path, args)), None)):
        _refuse_single_run_options(args)
        if given := _given_settings(args):
            raise ConfigError(
                f"--{given[0].replace('_', '-')}: a sweep's settings are fixed; `purejaxppo extract` makes a run of "
                f"one member, which `resume` goes on with as far as you say."
            )
        saved = ResumeSweep(directory, read_sweep(directory)[0].options)
        return _parse_with_tyro(ResumeSweep, args, prog=f"{_program()} resume", default=saved)
    if COMMANDS[name] is Compare:
        _refuse_single_run_options(args)
    default = {Train: _train_default, Resume: _resume_default, Compare: _compare_default}.get(COMMANDS[name])
    options = {"default": default(args)} if default else {}
    command = _parse_with_tyro(COMMANDS[name], args, prog=f"{_program()} {name}", **options)
    if isinstance(command, Train):
        refuse_foreign(_given_settings(args), [command.settings.algorithm])
        command = _with_eval_every(command, args)
    if isinstance(command, Resume):
        _refuse_changes(command)
    return _resolve_comparison(command, args) if isinstance(command, Compare) else command


def _program() -> str:
    """Returns how the program was started: as the command `purejaxppo`, or with `python -m`."""
    name = program_name()
    return name if " -m purejaxppo" in name else "purejaxppo"


def _parse_with_tyro(kind: Any, args: list[str], *, prog: str, **options: Any) -> Any:
    """Parses the arguments of one command with tyro. Raises ConfigError, in one sentence, if it refuses any."""
    errors = io.StringIO()
    registry = value_rules()
    if "default" in options and asks_for_help(args):
        add_headings(registry, kind, options["default"])
    try:
        with contextlib.redirect_stderr(errors):
            command, unknown = tyro.cli(
                kind, args=args, prog=prog, registry=registry, return_unknown_args=True, **options
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(refused_arguments(prog, kind, stop, errors.getvalue())) from stop
    if unknown:
        raise ConfigError(unknown_arguments(prog, kind, args, unknown))
    return command


def _train_default(args: list[str]) -> Train:
    """Returns `train` without its flags: defaults, preset and file for the given --env, --algorithm and --config."""
    env, algorithm, settings, others = _basis_of_defaults(args)
    seed = others.pop("seed", 0)
    algorithm = algorithm or settings.get("algorithm", TrainConfig.algorithm)
    refuse_foreign_in_file(settings, [algorithm])
    config, hp = resolve(env, for_algorithm(env, settings, algorithm))
    return Train(config, hp, RunOptions(**{"eval_every": tenth_of_budget(config), **others}), seed=seed)


def _with_eval_every(command: Train, args: list[str]) -> Train:
    """Returns the command with the default of --eval-every, unless a flag or the file says otherwise.

    The budget and the size of an update, which it is made from, are known only now that the flags are parsed.
    """
    if _gives(args, "eval_every") or "eval_every" in _basis_of_defaults(args)[3]:
        return command
    options = dataclasses.replace(command.options, eval_every=tenth_of_budget(command.settings))
    return dataclasses.replace(command, options=options)


def _resume_default(args: list[str]) -> Resume:
    """Returns `resume` with the settings of the run whose directory is among the arguments."""
    run_dir = next((path for path in map(Path, args) if is_file(path / "config.json")), None)
    if run_dir is None:
        return Resume(tyro.MISSING, *resolve(None, {}))
    config, hp, seed, options = read_run_settings(run_dir)
    return Resume(run_dir, config, hp, options, seed=seed)


def _refuse_changes(command: Resume) -> None:
    """Raises ConfigError for a setting that differs from the run's and would alter its result."""
    config, hp, _, _ = read_run_settings(command.run_dir)
    refuse_changes(
        settings_record(config, hp),
        settings_record(command.settings, command.hp),
        f"leave them out, or start a new run with --config {command.run_dir / 'config.json'}.",
    )


def _compare_default(args: list[str]) -> Compare:
    env, _, settings, _ = _basis_of_defaults(args)
    return Compare(*resolve(env, settings))


def _resolve_comparison(command: Compare, args: list[str]) -> Compare:
    """Returns the command with each algorithm's settings, from its own preset, the file and the flags."""
    given = _given_settings(args)
    if not command.algorithms:
        raise ConfigError("--algorithms takes at least one name.")
    if "algorithm" in given:
        raise ConfigError("compare takes --algorithms, with all of their names, instead of --algorithm.")
    refuse_foreign(given, command.algorithms)
    flags = {name: getattr(command.settings if hasattr(command.settings, name) else command.hp, name) for name in given}
    _, _, settings, _ = _basis_of_defaults(args)
    refuse_foreign_in_file(settings, command.algorithms)
    env = command.settings.env
    pairs = tuple(
        resolve(env, {**for_algorithm(env, settings, name), **without_foreign(name, flags)})
        for name in command.algorithms
    )
    return dataclasses.replace(command, resolved=pairs)


def _parse_sweep(args: list[str]) -> Sweep:
    """Parses `sweep`: the settings, which may have several values, apart; all other flags, and --help, with tyro."""
    _refuse_single_run_options(args)
    words, rest = split_settings(args)
    env, _, settings, others = _basis_of_defaults(rest)
    for name in ("seed", *_SINGLE_RUN_OPTIONS):
        others.pop(name, None)
    algorithm = settings.get("algorithm", TrainConfig.algorithm)
    if len(words.get("algorithm", ())) == 1:
        algorithm = words["algorithm"][0]
    # The defaults in the help are those of the one algorithm, if there is one. Settings are resolved after that.
    default = Sweep(*resolve(env, for_algorithm(env, settings, algorithm)), RunOptions(**others))
    command = _parse_with_tyro(Sweep, rest, prog=f"{_program()} sweep", default=default)
    return dataclasses.replace(command, resolved=sweep_settings(command, words, settings))


def _refuse_single_run_options(args: list[str]) -> None:
    """Raises ConfigError if the flag of an option is given that only a single run has."""
    for name, reason in _SINGLE_RUN_OPTIONS.items():
        if _gives(args, name):
            raise ConfigError(f"{flag_of(name)} is for single runs; {reason}")


def _gives(args: list[str], name: str) -> bool:
    """Returns whether the flag of a field is among the arguments."""
    return any(arg.startswith("--") and arg[2:].split("=")[0].replace("-", "_") == name for arg in args)


def _basis_of_defaults(args: list[str]) -> tuple[str | None, str | None, dict[str, Any], dict[str, Any]]:
    """Returns --env, --algorithm, the settings in --config, and its seed and run options; defaults depend on these."""
    # argparse passes over what it does not know. Abbreviations are off, as tyro has none.
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scan.add_argument("--env")
    scan.add_argument("--algorithm")
    scan.add_argument("--config", type=Path)
    try:
        given, _ = scan.parse_known_args(args)
    except argparse.ArgumentError:  # a flag without its value, which tyro will refuse
        given = argparse.Namespace(env=None, algorithm=None, config=None)
    settings = read_settings(given.config) if given.config else {}
    others = {name: settings.pop(name) for name in ("seed", *OPTION_FIELDS) if name in settings}
    return given.env, given.algorithm, settings, others


def _given_settings(args: list[str]) -> list[str]:
    """Returns the settings that are given as flags; --no-x counts as x."""
    words = [arg[2:].split("=")[0].replace("-", "_") for arg in args if arg.startswith("--")]
    return [name for name in (word if word in FIELDS else word.removeprefix("no_") for word in words) if name in FIELDS]


# --- the flags of `sweep`: a setting with several values is an axis --------------------------------------------------


class _Flag(NamedTuple):
    """A flag and the words after it. Words before the first flag have one without a name."""

    name: str  # of the field
    words: list[str]  # its values
    args: list[str]  # the flag and its values, as typed


def split_settings(args: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Separates the settings, which a sweep may vary, from the other arguments.

    A boolean flag without a value stands for the word true, and with no- before its name for false.

    Returns:
      field -> the words after its flag, in the order given; and the other arguments, as typed. Fields that a sweep
      keeps at one value are in both, as tyro parses them, too.

    Raises:
      ConfigError: a setting is given twice, or has several values although a sweep keeps it at one.
    """
    words: dict[str, list[str]] = {}
    rest: list[str] = []
    for flag in map(_without_no, _flags(args)):
        if flag.name in words:
            behind = "" if flag.name in _ONE_VALUE else ", with all of its values"
            raise ConfigError(f"{flag_of(flag.name)} is given twice; give it once{behind}.")
        if flag.name in FIELDS:
            words[flag.name] = flag.words
        if flag.name in _ONE_VALUE:
            _refuse_several(flag)
        if flag.name not in FIELDS or flag.name in _ONE_VALUE:
            rest += flag.args
    return words, rest


def _flags(args: Sequence[str]) -> Iterator[_Flag]:
    """Yields the arguments flag by flag; a negative number is a word."""
    flag = _Flag("", [], [])
    for arg in args:
        if arg.startswith("--") or arg == "-h":
            yield flag
            name, equals, word = arg.removeprefix("--").partition("=")
            flag = _Flag(name.replace("-", "_"), [word] if equals else [], [arg])
        else:
            flag.words.append(arg)
            flag.args.append(arg)
    yield flag


def _without_no(flag: _Flag) -> _Flag:
    """Returns --x or --no-x of a boolean as the flag --x with the word true or false; other flags as they are."""
    positive = flag.name.removeprefix("no_")
    if positive not in FIELDS or FIELDS[positive].type is not bool:
        return flag
    if positive != flag.name and flag.words:
        raise ConfigError(
            f"{' '.join(flag.args)}: {flag.args[0]} takes no value; write {flag_of(positive)} true false."
        )
    return flag._replace(name=positive, words=flag.words or ["true" if positive == flag.name else "false"])


def _refuse_several(flag: _Flag) -> None:
    names = [word.partition("=")[0] for word in flag.words]
    several = len(names) > len(set(names)) if flag.name == "env_params" else len(names) > 1
    if several:
        raise ConfigError(
            f"{flag_of(flag.name)} {' '.join(flag.words)}: a sweep keeps {flag.name} at one value; sweep each apart."
        )


def sweep_settings(command: Sweep, words: Mapping[str, Sequence[str]], settings: Mapping[str, Any]) -> SweepSettings:
    """Returns the settings of a sweep. Each is what `train` would make of preset, file, flags and the point.

    Fields that a point's algorithm does not have are removed from it; points that are equal then are trained once.

    Args:
      command: parsed by tyro, without the settings.
      words: from `split_settings`.
      settings: from the --config file.

    Raises:
      ConfigError: a value cannot be swept, or values contradict each other.
    """
    axes, flags = _axes_and_flags(command, words)
    algorithms = _algorithms(axes, flags, settings)
    refuse_foreign(words, algorithms)
    refuse_foreign_in_file(settings, algorithms)
    seeds = parse_seeds(command.seeds, command.seed)
    if command.sample_seed and command.samples is None:
        raise ConfigError(f"--sample-seed {command.sample_seed} is that of --samples; give both, or neither.")
    drawn = all_points(axes) if command.samples is None else sample(axes, command.samples, command.sample_seed)
    points = _without_foreign(drawn, algorithms[0])
    _refuse_too_many(len(points), len(seeds))
    if command.halving is not None and len(points) < 2:
        raise ConfigError(
            f"--halving {command.halving} chooses among settings, and there is only one; give several values to a flag."
        )

    env = command.settings.env
    # What all settings of an algorithm have in common: its preset and the file, overridden by the flags.
    bases = {
        name: {**for_algorithm(env, settings, name), **without_foreign(name, flags), "algorithm": name}
        for name in algorithms
    }
    pairs = tuple(resolve(env, {**bases[point.get("algorithm", algorithms[0])], **point}) for point in points)
    sweep = SweepSettings(
        axes=tuple(axis.name for axis in axes),
        points=points,
        settings=pairs,
        seeds=seeds,
        options=command.options,
        halving=command.halving,
        exact=command.exact,
        target=target_of(pairs[0][0]) if command.target is None else command.target,
    )
    sweep.validate()
    return sweep


def _axes_and_flags(command: Sweep, words: Mapping[str, Sequence[str]]) -> tuple[list[Axis], dict[str, Any]]:
    """Returns the swept fields, in the order given, and field -> value for those that have one value."""
    parsed = [parse_axis(name, after) for name, after in words.items() if name not in _ONE_VALUE]
    axes = [axis for axis in parsed if isinstance(axis.values, Span) or len(axis.values) > 1]
    flags = {axis.name: axis.values[0] for axis in parsed if axis not in axes}
    return axes, flags | {name: getattr(command.settings, name) for name in words if name in _ONE_VALUE}


def _algorithms(axes: Sequence[Axis], flags: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the algorithms of the sweep: the swept ones, or that of the flag, the file, or the default.

    They may be unknown: the registry knows, but it takes JAX and the plugins.
    """
    swept = next((axis.values for axis in axes if axis.name == "algorithm"), None)
    return swept or (flags.get("algorithm", settings.get("algorithm", TrainConfig.algorithm)),)


def _without_foreign(points: Sequence[dict[str, Any]], algorithm: str) -> tuple[dict[str, Any], ...]:
    """Returns the points, without fields that their algorithm (by default this one) lacks, and without duplicates."""
    own = (without_foreign(point.get("algorithm", algorithm), point) for point in points)
    return tuple({tuple(point.items()): point for point in own}.values())


def _refuse_too_many(settings: int, seeds: int) -> None:
    """Raises ConfigError if there are too many runs, before their settings are built, which would take a while."""
    if settings * seeds > MAX_RUNS:
        raise ConfigError(
            f"{settings} settings x {seeds} seeds = {settings * seeds} runs are more than {MAX_RUNS}; take fewer."
        )
