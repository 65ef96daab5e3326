"""Settings are checked before anything is built: what is wrong, why, and what would work."""

import dataclasses
import difflib
import math
import numbers
import re
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from purejaxppo.config.fields import KL_COEF_BOUNDS, Hyperparams, RunOptions, TrainConfig
from purejaxppo.config.synonyms import note_on, our_name
from purejaxppo.errors import ConfigError

_MAX_WIDTH = 65_536
_FLOAT32_MAX = 3.4e38

# Field -> (lowest, highest, is the lowest allowed); infinite bounds are never allowed values.
_RANGES = {
    "learning_rate": (0.0, math.inf, False),
    "gamma": (0.0, 1.0, True),
    "gae_lambda": (0.0, 1.0, True),
    "clip_eps": (0.0, math.inf, False),
    "vf_coef": (0.0, math.inf, True),
    "ent_coef": (0.0, math.inf, True),
    "max_grad_norm": (0.0, math.inf, False),
    "vf_clip_eps": (0.0, math.inf, False),
    "target_kl": (0.0, math.inf, False),
    "kl_coef": (*KL_COEF_BOUNDS, True),
    "kl_coef_factor": (1.0, math.inf, True),
    "kl_min": (0.0, math.inf, True),
    "kl_max": (0.0, math.inf, False),
    "cg_damping": (0.0, math.inf, True),
}
_KINDS: dict[str, Any] = {
    field.name: field.type for kind in (TrainConfig, Hyperparams) for field in dataclasses.fields(kind)
}
_COUNTS = tuple(name for name, kind in _KINDS.items() if kind is int)
_MAY_BE_NONE = tuple(name for name, kind in _KINDS.items() if kind == float | None)
_CHOICES = {name: get_args(kind) for name, kind in _KINDS.items() if get_origin(kind) is Literal}


def closest(word: str, known: Iterable[str]) -> str | None:
    """Returns the known word that is meant: what we call it if it is another trainer's, or else the most similar."""
    by_folded = {name.casefold(): name for name in reversed(list(known))}
    ours = our_name(word)
    if ours in by_folded:
        return by_folded[ours]
    similar = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.5)
    return by_folded[similar[0]] if similar else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean ...?` for the known word that is meant, or the empty string."""
    known = list(known)
    if "," in word and set(apart(word).split()) <= set(known):
        return f" Write them apart: {apart(word)}."
    close = closest(word, known)
    if close is None:
        return ""
    note = f" ({note_on(word)})" if note_on(word) else ""
    return f" Did you mean {close!r}{note}?"


def apart(words: str) -> str:
    """Returns words with commas between them, maybe in brackets, as the command line takes them: with blanks."""
    return " ".join(re.findall(r"[^\s,\[\](){}]+", words))


def validate_algorithm(name: str, known: Iterable[str]) -> None:
    """Raises ConfigError, with a suggestion, for an algorithm that is not among the known ones."""
    if name not in (known := list(known)):
        raise ConfigError(
            f"algorithm {name!r} is unknown; choose from {', '.join(known)}.{suggestion(name, known)} One of your own "
            f"needs its --plugin."
        )


def validate_seed(seed: int) -> None:
    """Raises ConfigError outside [0, 2^32): `jax.random.key` wraps there, so that two seeds would be one."""
    if not _is_whole(seed) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed = {seed!r} is not a whole number in [0, 2**32); choose one there.")


def validate_value(name: str, value: Any) -> None:
    """Raises ConfigError for what a field of TrainConfig or Hyperparams cannot be, whatever the others are."""
    if name in _RANGES:
        if value is not None or name not in _MAY_BE_NONE:
            _validate_range(name, value)
    elif name in _COUNTS:
        if not _is_whole(value) or not 1 <= value < 2**63:
            raise ConfigError(f"{name} = {value!r} is not a whole number from 1 to 2**63 - 1.")
    elif name in _CHOICES:
        known = _CHOICES[name]
        if value not in known:
            likely = suggestion(str(value), known)
            raise ConfigError(f"{name} = {value!r} is unknown; choose from {', '.join(known)}.{likely}")
    elif name == "hidden_sizes":
        _validate_widths(value)
    elif (kind := _KINDS.get(name)) is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{name} = {value!r} is not true or false.")
    elif kind is str:
        if not isinstance(value, str):
            raise ConfigError(f"{name} = {value!r} is not text.")
    elif name != "env_params":  # see validate_config
        raise ConfigError(f"{name} has no range yet; give it a line in _RANGES of purejaxppo/config/validate.py.")


def _validate_widths(widths: Iterable[Any]) -> None:
    for width in widths:
        if not _is_whole(width) or not 1 <= width <= _MAX_WIDTH:
            raise ConfigError(
                f"hidden_sizes has a layer of width {width!r}; a width is a whole number from 1 to {_MAX_WIDTH}."
            )


def _validate_range(name: str, value: Any) -> None:
    low, high, low_allowed = _RANGES[name]
    if not _is_number(value):
        raise ConfigError(f"{name} = {value!r} is not a number.")
    number = float(value) if abs(value) < _FLOAT32_MAX else math.inf
    above = number >= low if low_allowed else number > low
    if not (math.isfinite(number) and above and number <= high):
        bounds = f"{'[' if low_allowed else '('}{low:g}, {f'{high:g}]' if math.isfinite(high) else 'inf)'}"
        raise ConfigError(f"{name} = {value} is outside {bounds}.")


def validate_config(config: TrainConfig) -> None:
    """Raises ConfigError, with the numbers and the remedy, for settings that cannot train."""
    for field in dataclasses.fields(config):
        validate_value(field.name, getattr(config, field.name))
    for name, value in config.env_params:
        if not _is_number(value) and not isinstance(value, bool):
            raise ConfigError(f"env_params: {name} = {value!r} is not a number.")
    if config.batch_size >= 2**31:
        raise ConfigError(
            f"num_envs * num_steps = {config.batch_size} rows per update are more than 2**31 - 1; lower one of them."
        )
    _validate_minibatches(config)
    if config.algorithm == "trpo":
        _validate_trpo(config)
    if config.num_updates < 1:
        raise ConfigError(
            f"total_timesteps = {config.total_timesteps} is below one update; it needs at least {config.batch_size} "
            f"(num_envs {config.num_envs} * num_steps {config.num_steps})."
        )
    if config.num_updates >= 2**31:
        raise ConfigError(
            f"total_timesteps = {config.total_timesteps} makes {config.num_updates} updates, more than 2**31 - 1; "
            f"raise num_envs or num_steps."
        )


def _is_whole(value: Any) -> bool:
    """A whole number of Python or NumPy; bool is one by inheritance only."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _validate_minibatches(config: TrainConfig) -> None:
    size, count = config.batch_size, config.num_minibatches
    if size == 1 and config.normalize_advantage != "off":
        raise ConfigError(
            "num_envs * num_steps = 1 row per update, whose advantage cannot be standardised; "
            "raise one of them, or set normalize_advantage to off."
        )
    lonely = config.normalize_advantage == "minibatch"  # one row alone would have no spread
    if size % count:
        near = [d for d in sorted(nearest_divisors(size, count)) if d < size or not lonely]
        raise ConfigError(
            f"num_envs * num_steps = {size} is not divisible by num_minibatches = {count}; "
            f"try {', '.join(map(str, near[:-1]))}{' or ' if near[:-1] else ''}{near[-1]}."
        )
    if size == count and lonely:
        raise ConfigError(
            f"num_minibatches = {count} leaves one row per minibatch, whose advantage cannot be standardised; "
            f"lower it, or set normalize_advantage to batch or off."
        )


def _validate_trpo(config: TrainConfig) -> None:
    if config.shared_torso:
        raise ConfigError(
            "trpo needs separate torsos (shared_torso off): fitting the value function would move a shared one, and "
            "with it the policy, out of the trust region."
        )
    if config.learning_rate_schedule == "kl_adaptive":
        raise ConfigError(
            "learning_rate_schedule = kl_adaptive is for ppo_clip, ppo_kl and policy_gradient; trpo's line search "
            "bounds the KL itself; use linear or constant, or leave trpo out."
        )


def nearest_divisors(number: int, target: int) -> list[int]:
    """The up to three divisors of `number` that are closest to `target`."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    divisors = {*small, *(number // d for d in small)}
    return sorted(divisors, key=lambda d: abs(d - target))[:3]


def validate_hyperparams(hp: Hyperparams) -> None:
    """Raises ConfigError for a value that is not finite or outside its range. Concrete scalars only."""
    for field in dataclasses.fields(hp):
        validate_value(field.name, getattr(hp, field.name))
    validate_kl_range(hp.kl_min, hp.kl_max)


def validate_kl_range(kl_min: float, kl_max: float) -> None:
    """Raises ConfigError for thresholds that are not in order."""
    if kl_min >= kl_max:
        raise ConfigError(f"kl_min = {kl_min} is not below kl_max = {kl_max}; leave a gap between them.")


def validate_evaluation(episodes: int, seed: int) -> None:
    """Raises ConfigError for a number that is out of range."""
    validate_seed(seed)
    if not _is_whole(episodes) or not 1 <= episodes < 2**31:
        raise ConfigError(f"episodes = {episodes!r} is not a whole number from 1 to 2**31 - 1.")


def validate_options(options: RunOptions) -> None:
    """Raises ConfigError for a number that is out of range."""
    for name, low in (("eval_episodes", 1), ("keep_newest", 2), ("keep_best", 0)):
        value = getattr(options, name)
        if not _is_whole(value) or not low <= value < 2**31:
            raise ConfigError(f"{name} = {value!r} is not a whole number from {low} to 2**31 - 1.")
    seconds = options.checkpoint_seconds
    if not _is_number(seconds) or not 0 <= seconds < math.inf:
        raise ConfigError(f"checkpoint_seconds = {seconds!r} is not a number of seconds, 0 or more.")
