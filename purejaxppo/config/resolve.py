"""The merge of settings: defaults are overridden by presets, presets by a configuration file, files by flags."""

import contextlib
import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from purejaxppo.config.fields import ALGORITHMS_WITH, AnyPath, Hyperparams, RunOptions, TrainConfig
from purejaxppo.config.presets import HIDDEN, PRESETS, REMEMBERED, tuned_settings
from purejaxppo.config.validate import ACTION_DISTRIBUTIONS, suggestion, validate_config
from purejaxppo.errors import ConfigError

_MAX_BYTES = 2**20
FIELDS = {field.name: field for kind in (TrainConfig, Hyperparams) for field in dataclasses.fields(kind)}
OPTION_FIELDS = {field.name: field for field in dataclasses.fields(RunOptions)}
# Settings that may be changed when a run is resumed, as they do not alter the updates that are done.
CHANGEABLE = ("total_timesteps", "on_nonfinite")


def resolve(env: str | None, settings: Mapping[str, Any]) -> tuple[TrainConfig, Hyperparams]:
    """Returns the defaults, overridden by the preset of environment and algorithm, overridden by `settings`.

    Args:
      env: id of the environment; if None, the one in `settings`, or else the default.
      settings: field -> value of either dataclass, for example from `read_settings`.
    """
    env = env or settings.get("env") or TrainConfig.env
    algorithm = settings.get("algorithm", TrainConfig.algorithm)
    merged = {**tuned_settings(env, algorithm), **settings, "env": env}
    return TrainConfig(**_fields_of(TrainConfig, merged)), Hyperparams(**_fields_of(Hyperparams, merged))


def upgraded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings that were saved by this version or an earlier one, under the names of this one.

    `policy` was the name of the action distribution; no policy can be registered under the name of one.
    """
    if settings.get("policy") not in ACTION_DISTRIBUTIONS:
        return dict(settings)
    return {"action_distribution" if name == "policy" else name: value for name, value in settings.items()}


def tenth_of_budget(config: TrainConfig) -> int:
    """Returns the environment steps of about a tenth of the budget, in whole updates; 0 for invalid settings.

    The command line evaluates a run each time that so many are done.
    """
    try:
        validate_config(config)
    except ConfigError:  # it is reported where settings are checked
        return 0
    return max(1, (config.num_updates + 5) // 10) * config.batch_size


def describe_settings(pairs: Sequence[tuple[TrainConfig, Hyperparams]]) -> str:
    """Returns one line on settings: which differ from the tuned preset, and what the environment hides.

    Args:
      pairs: the settings of several runs in one environment.
    """
    env = pairs[0][0].env
    expected = {name: _record(resolve(env, {"algorithm": name})) for name in {config.algorithm for config, _ in pairs}}
    records = [_record(pair) for pair in pairs]
    changed = [name for name in FIELDS if any(x[name] != expected[x["algorithm"]][name] for x in records)]
    source = f"the tuned preset of {env}" if env in PRESETS else f"the defaults, as {env} has no tuned preset"
    but = f", but for {', '.join(changed)}" if changed else ""
    # A policy of one's own is taken to have no memory: its name does not tell.
    seen = env in REMEMBERED and all(config.policy == "gru" for config, _ in pairs)
    hidden = f"; {env}: {HIDDEN[env]}" if env in HIDDEN and not seen else ""
    return f"settings: {source}{but}{hidden}"


def for_algorithm(env: str | None, settings: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
    """Returns the settings of a file that apply to an algorithm: those that it has.

    A run's config.json contains every field. For an algorithm other than the file's own, fields that equal the preset
    of the file's algorithm are left out too, so that the preset of `algorithm` applies.

    Args:
      env: id of the environment, if the file names none.
      settings: field -> value from the file.
      algorithm: the algorithm that they are to be used with.
    """
    own = settings.get("algorithm", algorithm)
    kept = without_foreign(algorithm, settings)
    if own != algorithm:
        its_env = settings.get("env", env)
        preset = _record(resolve(its_env, {"algorithm": own}))
        given = _record(resolve(its_env, settings))
        kept = {name: value for name, value in kept.items() if name == "env" or given[name] != preset[name]}
    return {**kept, "algorithm": algorithm}


def without_foreign(algorithm: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that an algorithm has."""
    return {name: value for name, value in settings.items() if has_option(algorithm, name)}


def has_option(algorithm: str, name: str) -> bool:
    """Returns whether an algorithm has a setting.

    An algorithm that no declaration names has all settings: it may be a user's own, whose name is not known here, as
    the registry of algorithms imports JAX.
    """
    having = ALGORITHMS_WITH.get(name, (algorithm,))
    return algorithm in having or not any(algorithm in names for names in ALGORITHMS_WITH.values())


def refuse_foreign_in_file(settings: Mapping[str, Any], algorithms: Sequence[str]) -> None:
    """Raises ConfigError for an option in a file that none of the algorithms has.

    Options with their default value are ignored, and so is the whole file if it is that of another algorithm: then
    `for_algorithm` leaves such options out.
    """
    if settings.get("algorithm", algorithms[0]) in algorithms:
        defaults = _record((TrainConfig(), Hyperparams()))
        refuse_foreign((name for name, value in settings.items() if value != defaults.get(name)), algorithms)


def _record(pair: tuple[TrainConfig, Hyperparams]) -> dict[str, Any]:
    return {**vars(pair[0]), **vars(pair[1])}


def refuse_foreign(names: Iterable[str], algorithms: Sequence[str]) -> None:
    """Raises ConfigError for an option that none of the algorithms has, with the names of those that have it."""
    for name in names:
        if not any(has_option(algorithm, name) for algorithm in algorithms):
            raise ConfigError(
                f"{name} is an option of {', '.join(ALGORITHMS_WITH[name])}, not of {', '.join(algorithms)}; leave it "
                f"out, or choose that algorithm."
            )


def settings_record(config: TrainConfig, hp: Hyperparams) -> dict[str, Any]:
    """Returns field -> value of both dataclasses, as JSON values."""
    record = {**dataclasses.asdict(config), **dataclasses.asdict(hp), "env_params": dict(config.env_params)}
    return {**record, "hidden_sizes": list(config.hidden_sizes)}


def refuse_changes(old: Mapping[str, Any], new: Mapping[str, Any], advice: str) -> None:
    """Raises ConfigError, with all differences, if settings differ in more than a resumed run may change.

    Args:
      old: `settings_record` with the seed, also that of an earlier version: a setting that is missing has its default.
      new: as `old`.
      advice: the end of the error message.
    """
    defaults = settings_record(TrainConfig(), Hyperparams())
    changed = differences({**defaults, **upgraded(old)}, {**defaults, **upgraded(new)})
    changed = {name: change for name, change in changed.items() if name not in CHANGEABLE}
    if changed:
        raise ConfigError(
            f"a resumed run keeps its settings, but these differ: {', '.join(changed.values())}; {advice}"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Returns the differences between two records, as name -> `name old -> new`."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return {name: f"{name} {old.get(name, 'absent')} -> {new.get(name, 'absent')}" for name in names}


def _fields_of(kind: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: settings[field.name] for field in dataclasses.fields(kind) if field.name in settings}


def whole_number(text: str) -> int:
    """Returns the whole number that a text denotes, also in the form 1e6. Raises ValueError if it denotes none."""
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        if float(text).is_integer():
            return int(float(text))
    raise ValueError(f"{text!r} is not a whole number")


def read_settings(path: AnyPath) -> dict[str, Any]:
    """Reads a JSON or TOML file of settings, whose names may be spelt with - or _.

    The seed and the run options are allowed too. `format_version` is left out, so that a run's config.json is such a
    file.

    Returns:
      Field -> value.

    Raises:
      ConfigError: the file cannot be read, is over 1 MB, is not valid (with line and column), or has an unknown key or
        a value of the wrong type.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path} is over 1 MB, which no configuration is; is it the right file?")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"cannot read the configuration file {str(path)!r}: {error}") from error
    try:
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}.") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}.") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply to be a configuration.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no table of settings.")
    settings = upgraded({key.replace("-", "_"): value for key, value in content.items()})
    settings.pop("format_version", None)
    return {key: _typed(path, key, value) for key, value in settings.items()}


def _typed(path: Path, key: str, value: Any) -> Any:
    """Returns a value as its field's type if that is unambiguous: a whole number may be written 1e6."""
    known: dict[str, Any] = {**{name: field.type for name, field in (FIELDS | OPTION_FIELDS).items()}, "seed": int}
    if key not in known:
        raise ConfigError(f"{path} has an unknown key {key!r}.{suggestion(key, known)}")
    kind = known[key]
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind in (str, str | None) and not isinstance(value, kind):
        raise ConfigError(f"{path}: {key} = {value!r} is not text.")
    if key == "hidden_sizes" and not isinstance(value, list):
        raise ConfigError(f"{path}: hidden_sizes = {value!r} is not a list of whole numbers.")
    if key == "env_params":
        pairs = dict(value) if isinstance(value, dict) else None
        if pairs is None or not all(isinstance(v, int | float) for v in pairs.values()):
            raise ConfigError(f"{path}: env_params = {value!r} is not a table of numbers.")
        return pairs
    return value
