"""Settings from presets and configuration files, merged into the two dataclasses."""

import contextlib
import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from purejaxppo.config.fields import ALGORITHMS_WITH, AnyPath, Hyperparams, RunOptions, TrainConfig
from purejaxppo.config.presets import HIDDEN, PRESETS, tuned_settings
from purejaxppo.config.validate import suggestion
from purejaxppo.errors import ConfigError

_MAX_BYTES = 2**20
FIELDS = {field.name: field for kind in (TrainConfig, Hyperparams) for field in dataclasses.fields(kind)}
OPTION_FIELDS = {field.name: field for field in dataclasses.fields(RunOptions)}
# What a resumed run may change: it does not alter the updates that are done.
CHANGEABLE = ("total_timesteps", "on_nonfinite")


def resolve(env: str | None, settings: Mapping[str, Any]) -> tuple[TrainConfig, Hyperparams]:
    """The defaults, overridden by the preset of environment and algorithm, overridden by `settings`.

    Args:
      env: id; without one, that in `settings`, or else the default.
      settings: field -> value of either dataclass, e.g. from `read_settings`.
    """
    env = env or settings.get("env") or TrainConfig.env
    algorithm = settings.get("algorithm", TrainConfig.algorithm)
    merged = {**tuned_settings(env, algorithm), **settings, "env": env}
    return TrainConfig(**_of(TrainConfig, merged)), Hyperparams(**_of(Hyperparams, merged))


def describe_settings(pairs: Sequence[tuple[TrainConfig, Hyperparams]]) -> str:
    """One line: whether settings, all of one environment, are its tuned preset; and what it hides from the policy."""
    env = pairs[0][0].env
    usual = {name: _record(resolve(env, {"algorithm": name})) for name in {config.algorithm for config, _ in pairs}}
    records = [_record(pair) for pair in pairs]
    changed = [name for name in FIELDS if any(x[name] != usual[x["algorithm"]][name] for x in records)]
    source = f"the tuned preset of {env}" if env in PRESETS else f"the defaults, as {env} has no tuned preset"
    but = f", but for {', '.join(changed)}" if changed else ""
    hidden = f"; {env}: {HIDDEN[env]}" if env in HIDDEN else ""
    return f"settings: {source}{but}{hidden}"


def for_algorithm(env: str | None, settings: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
    """Settings from a file, made to suit an algorithm: without the options that it does not have.

    A run's config.json holds every field. For another algorithm than the file's own, what the file's algorithm has by
    its preset anyway is left out too, so that the other one's preset stands.
    """
    own = settings.get("algorithm", algorithm)
    kept = without_foreign(algorithm, settings)
    if own != algorithm:
        its_env = settings.get("env", env)
        usual = _record(resolve(its_env, {"algorithm": own}))
        given = _record(resolve(its_env, settings))
        kept = {name: value for name, value in kept.items() if name == "env" or given[name] != usual[name]}
    return {**kept, "algorithm": algorithm}


def without_foreign(algorithm: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that an algorithm has."""
    return {name: value for name, value in settings.items() if has_option(algorithm, name)}


def has_option(algorithm: str, name: str) -> bool:
    """Whether an update rule has a setting. The names of the rules themselves are not known before JAX is loaded."""
    having = ALGORITHMS_WITH.get(name, (algorithm,))
    return algorithm in having or not any(algorithm in names for names in ALGORITHMS_WITH.values())


def refuse_foreign_in_file(settings: Mapping[str, Any], algorithms: Sequence[str]) -> None:
    """`refuse_foreign` for a file that is not another algorithm's; what stands at its default is no wish."""
    if settings.get("algorithm", algorithms[0]) in algorithms:
        defaults = _record((TrainConfig(), Hyperparams()))
        refuse_foreign((name for name, value in settings.items() if value != defaults.get(name)), algorithms)


def _record(pair: tuple[TrainConfig, Hyperparams]) -> dict[str, Any]:
    return {**vars(pair[0]), **vars(pair[1])}


def refuse_foreign(names: Iterable[str], algorithms: Sequence[str]) -> None:
    """Raises ConfigError for an option that none of the algorithms has, naming those that have it."""
    for name in names:
        if not any(has_option(algorithm, name) for algorithm in algorithms):
            raise ConfigError(
                f"{name} is an option of {', '.join(ALGORITHMS_WITH[name])}, not of {', '.join(algorithms)}; leave it "
                f"out, or choose that algorithm."
            )


def settings_record(config: TrainConfig, hp: Hyperparams) -> dict[str, Any]:
    """Every field of both, as JSON has it."""
    record = {**dataclasses.asdict(config), **dataclasses.asdict(hp), "env_params": dict(config.env_params)}
    return {**record, "hidden_sizes": list(config.hidden_sizes)}


def refuse_changes(old: Mapping[str, Any], new: Mapping[str, Any], advice: str) -> None:
    """Raises ConfigError, with all differences, if a resumed run would become another one.

    Args:
      old, new: of `settings_record`, with the seed; what an older version did not know has its default.
      advice: what to do about it.
    """
    defaults = settings_record(TrainConfig(), Hyperparams())
    changed = differences({**defaults, **old}, {**defaults, **new})
    changed = {name: change for name, change in changed.items() if name not in CHANGEABLE}
    if changed:
        raise ConfigError(
            f"a resumed run keeps its settings, but these differ: {', '.join(changed.values())}; {advice}"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """What differs between two records: name -> `name old -> new`."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return {name: f"{name} {old.get(name, 'absent')} -> {new.get(name, 'absent')}" for name in names}


def _of(kind: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: settings[field.name] for field in dataclasses.fields(kind) if field.name in settings}


def whole_number(text: str) -> int:
    """The number that a text spells out, maybe as 1e6. Raises ValueError."""
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        if float(text).is_integer():
            return int(float(text))
    raise ValueError(f"{text!r} is not a whole number")


def read_settings(path: AnyPath) -> dict[str, Any]:
    """Field -> value from a JSON or TOML file, names spelled with - or _.

    The seed and the run options may be among them; `format_version` is dropped: a run's config.json is such a file.

    Raises:
      ConfigError: a file that cannot be read, is over 1 MB, is not valid (with line and column), or has an unknown
        key or a value of the wrong type.
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
    settings = {key.replace("-", "_"): value for key, value in content.items()}
    settings.pop("format_version", None)
    return {key: _typed(path, key, value) for key, value in settings.items()}


def _typed(path: Path, key: str, value: Any) -> Any:
    """A value as its field's type, where that is unambiguous; whole numbers may be written 1e6."""
    known: dict[str, Any] = {**{name: field.type for name, field in (FIELDS | OPTION_FIELDS).items()}, "seed": int}
    if key not in known:
        raise ConfigError(f"{path} has an unknown key {key!r}.{suggestion(key, known)}")
    kind = known[key]
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is str and not isinstance(value, str):
        raise ConfigError(f"{path}: {key} = {value!r} is not text.")
    if key == "hidden_sizes" and not isinstance(value, list):
        raise ConfigError(f"{path}: hidden_sizes = {value!r} is not a list of whole numbers.")
    if key == "env_params":
        pairs = dict(value) if isinstance(value, dict) else None
        if pairs is None or not all(isinstance(v, int | float) for v in pairs.values()):
            raise ConfigError(f"{path}: env_params = {value!r} is not a table of numbers.")
        return pairs
    return value
