"""From the flags of `purejaxppo sweep` to what a sweep is asked for: a setting with several values is an axis."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from purejaxppo.cli.arguments import Sweep
from purejaxppo.config import TrainConfig
from purejaxppo.config.presets import target_of
from purejaxppo.config.resolve import (
    FIELDS,
    for_algorithm,
    refuse_foreign,
    refuse_foreign_in_file,
    resolve,
    without_foreign,
)
from purejaxppo.errors import ConfigError
from purejaxppo.sweeps.space import Axis, Span, flag_of, grid, parse_axis, parse_seeds, sample
from purejaxppo.sweeps.spec import MAX_RUNS, SweepSettings

# A sweep compares returns, which are of one environment, and freezes what diverges.
_ONE_VALUE = ("env", "env_params", "on_nonfinite")


class _Flag(NamedTuple):
    name: str  # as a field is called; empty before the first flag
    words: list[str]  # what stands after it
    args: list[str]  # all of it, as typed


def split_settings(args: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The settings among the arguments: field -> the words after its flag, in the order given; and the other arguments.

    Fields that take one value are in both. A boolean flag alone is the word true, and with no- before it false.

    Raises:
      ConfigError: a setting that is given twice, or has several values although it takes one.
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
    """The arguments, cut before each flag; a negative number is a word."""
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
    """--x and --no-x of a boolean as a flag with a word."""
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
    """What the sweep is asked for: each point as `train` would have it, from preset, file, flags and the point itself.

    A point is without the fields that its algorithm does not have; those that are equal then are trained once.

    Args:
      command: with everything but the words of the settings.
      words: of `split_settings`.
      settings: of the --config file.

    Raises:
      ConfigError: for anything that cannot be swept.
    """
    axes, flags = _axes_and_flags(command, words)
    algorithms = _algorithms(axes, flags, settings)
    refuse_foreign(words, algorithms)
    refuse_foreign_in_file(settings, algorithms)
    seeds = parse_seeds(command.seeds, command.seed)
    if command.sample_seed and command.samples is None:
        raise ConfigError(f"--sample-seed {command.sample_seed} is that of --samples; give both, or neither.")
    drawn = grid(axes) if command.samples is None else sample(axes, command.samples, command.sample_seed)
    points = _without_foreign(drawn, algorithms[0])
    _refuse_too_many(len(points), len(seeds))
    if command.halving is not None and len(points) < 2:
        raise ConfigError(
            f"--halving {command.halving} chooses among settings, and there is only one; give several values to a flag."
        )

    env = command.settings.env
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
    """What is swept, in the order given, and field -> value for what has one value."""
    parsed = [parse_axis(name, after) for name, after in words.items() if name not in _ONE_VALUE]
    axes = [axis for axis in parsed if isinstance(axis.values, Span) or len(axis.values) > 1]
    flags = {axis.name: axis.values[0] for axis in parsed if axis not in axes}
    return axes, flags | {name: getattr(command.settings, name) for name in words if name in _ONE_VALUE}


def _algorithms(axes: Sequence[Axis], flags: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The algorithms of the sweep: swept, or one of a flag, of the file, or the default.

    Whether there are such ones is the registry's to say, which takes JAX and the plugins.
    """
    swept = next((axis.values for axis in axes if axis.name == "algorithm"), None)
    return swept or (flags.get("algorithm", settings.get("algorithm", TrainConfig.algorithm)),)


def _without_foreign(points: Sequence[dict[str, Any]], algorithm: str) -> tuple[dict[str, Any], ...]:
    """Each point without what its algorithm (by default this one) does not have; once each."""
    own = (without_foreign(point.get("algorithm", algorithm), point) for point in points)
    return tuple({tuple(point.items()): point for point in own}.values())


def _refuse_too_many(settings: int, seeds: int) -> None:
    """Before the settings are built, which takes a while for a million of them."""
    if settings * seeds > MAX_RUNS:
        raise ConfigError(
            f"{settings} settings x {seeds} seeds = {settings * seeds} runs are more than {MAX_RUNS}; take fewer."
        )
