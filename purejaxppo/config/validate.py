"""Checks of settings before anything is built, with messages that say what is wrong, why, and what would work.

The values that a single field takes follow from its declaration in `fields.py`; checks across fields are written here.
"""

import dataclasses
import difflib
import math
import numbers
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args, get_origin

from purejaxppo.config.fields import ActionDistribution, EnvParams, Hyperparams, RunOptions, TrainConfig
from purejaxppo.config.setting import Range, facts_of, range_of
from purejaxppo.config.synonyms import note_on, our_name
from purejaxppo.errors import ConfigError

NUM_SEEDS = 2**32  # `jax.random.key` wraps larger seeds, so that two of them would be the same
ACTION_DISTRIBUTIONS: tuple[str, ...] = get_args(ActionDistribution)
_FLOAT32_MAX = 3.4e38
_INT64_MAX = 2**63 - 1
_POWERS: dict[float, str] = {_INT64_MAX: "2**63 - 1", 2**31 - 1: "2**31 - 1"}


def closest(word: str, known: Iterable[str]) -> str | None:
    """Returns the known word that is probably meant: our name for another trainer's, or else the most similar one."""
    by_folded = {name.casefold(): name for name in reversed(list(known))}
    ours = our_name(word)
    if ours in by_folded:
        return by_folded[ours]
    similar = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.5)
    return by_folded[similar[0]] if similar else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean ...?` with the word of `closest`, or the empty string if there is none.

    For known words that are joined by commas it is ` Write them apart: ...`.
    """
    known = list(known)
    if "," in word and set(apart(word).split()) <= set(known):
        return f" Write them apart: {apart(word)}."
    close = closest(word, known)
    if close is None:
        return ""
    note = f" ({note_on(word)})" if note_on(word) else ""
    return f" Did you mean {close!r}{note}?"


def apart(words: str) -> str:
    """Returns words that were separated by commas, possibly in brackets, with spaces in between, as for a flag."""
    return " ".join(re.findall(r"[^\s,\[\](){}]+", words))


def validate_seed(seed: int) -> None:
    """Raises ConfigError if a seed is not a whole number in [0, NUM_SEEDS)."""
    if not _is_whole(seed) or not 0 <= seed < NUM_SEEDS:
        raise ConfigError(f"seed = {seed!r} is not a whole number in [0, 2**32); choose one there.")


def validate_seeds(seeds: Sequence[int], repeated: str) -> None:
    """Raises ConfigError if a seed is not valid or occurs twice.

    Args:
      seeds: of several runs; at least one.
      repeated: the message for a seed that occurs twice, with {} in its place.
    """
    for seed in seeds:
        validate_seed(seed)
    double, times = Counter(seeds).most_common(1)[0]
    if times > 1:
        raise ConfigError(repeated.format(double))


def seeds_from(first: int, count: int) -> range:
    """Returns `count` seeds, from `first` on. Raises ConfigError, naming the flags, if one is out of range."""
    validate_seed(first)
    if first + count > NUM_SEEDS:
        raise ConfigError(f"--seed {first} --seeds {count} goes beyond 2**32 - 1; start lower.")
    return range(first, first + count)


def validate_value(field: dataclasses.Field[Any], value: Any) -> None:
    """Raises ConfigError if a value is not valid for a setting, by the type and range of its declaration.

    Args:
      field: of TrainConfig, Hyperparams or RunOptions.
      value: a value of Python's own, as those dataclasses hold it.

    Raises:
      TypeError: the field's type is one that this function has no check for.
    """
    kind = field.type
    if type(None) in get_args(kind):
        if value is None:
            return
        kind = get_args(kind)[0]
    if kind is float:
        _validate_number(field, value)
    elif kind is int:
        _validate_count(field, field.name, value)
    elif kind == tuple[int, ...]:
        _validate_widths(field, value)
    elif get_origin(kind) is Literal:
        known = get_args(kind)
        if value not in known:
            likely = suggestion(str(value), known)
            raise ConfigError(f"{field.name} = {value!r} is unknown; choose from {', '.join(known)}.{likely}")
    elif kind is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{field.name} = {value!r} is not true or false.")
    elif kind is str:
        if not isinstance(value, str):
            raise ConfigError(f"{field.name} = {value!r} is not text.")
    elif kind != EnvParams:  # see validate_config
        raise TypeError(f"{field.name} is declared as {kind}, a type for which there is no check here.")


def _validate_number(field: dataclasses.Field[Any], value: Any) -> None:
    """Raises ConfigError if a value is not a number in the field's range, as a float32 on the device."""
    if not _is_number(value):
        raise ConfigError(f"{field.name} = {value!r} is not a number.")
    number = float(value) if abs(value) < _FLOAT32_MAX else math.inf
    if number not in range_of(field):
        raise ConfigError(f"{field.name} = {value} is outside {range_of(field)}.")


def _validate_count(field: dataclasses.Field[Any], name: str, value: Any) -> None:
    low, high = _whole_ends(field)
    if not _is_whole(value) or not low <= value <= high:
        raise ConfigError(f"{name} = {value!r} is not a whole number from {low} to {_POWERS.get(high, high)}.")


def _validate_widths(field: dataclasses.Field[Any], widths: Iterable[Any]) -> None:
    low, high = _whole_ends(field)
    for width in widths:
        if not _is_whole(width) or not low <= width <= high:
            raise ConfigError(
                f"{field.name} has a layer of width {width!r}; a width is a whole number from {low} to "
                f"{_POWERS.get(high, high)}."
            )


def _whole_ends(field: dataclasses.Field[Any]) -> tuple[float, float]:
    """Returns the lowest and the highest whole number in the field's range, within int64."""
    bounds = range_of(field)
    return bounds.low if bounds.low_allowed else bounds.low + 1, min(bounds.high, _INT64_MAX)


def validate_config(config: TrainConfig) -> None:
    """Raises ConfigError if settings are not valid, by themselves or together, with the numbers and a remedy."""
    for field in dataclasses.fields(config):
        validate_value(field, getattr(config, field.name))
    for name, value in config.env_params:
        if not _is_number(value) and not isinstance(value, bool):
            raise ConfigError(f"env_params: {name} = {value!r} is not a number.")
    if config.batch_size >= 2**31:
        raise ConfigError(
            f"num_envs * num_steps = {config.batch_size} rows per update are more than 2**31 - 1; lower one of them."
        )
    _validate_names(config)
    _validate_minibatches(config)
    _validate_shards(config)
    if config.sequence_length is not None and config.num_steps % config.sequence_length:
        near = nearest_divisors(config.num_steps, config.sequence_length)
        raise ConfigError(
            f"sequence_length = {config.sequence_length} does not divide num_steps = {config.num_steps}; try "
            f"{_one_of(near)}."
        )
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


def _validate_names(config: TrainConfig) -> None:
    """Raises ConfigError for names that are no part's, whatever is registered; the registries know the others."""
    if config.policy in ACTION_DISTRIBUTIONS:
        raise ConfigError(
            f"policy = {config.policy} is no network, but a distribution of actions; set action_distribution "
            f"(--action-distribution {config.policy}) instead."
        )
    for name in ("ent_coef_schedule", "clip_eps_schedule"):
        if getattr(config, name) == "kl_adaptive":
            raise ConfigError(f"{name} = kl_adaptive is for the learning rate alone; choose linear or cosine.")


def _is_whole(value: Any) -> bool:
    """Returns whether a value is a whole number of Python or NumPy; bool, a subclass of int, is none."""
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
    # The standard deviation of a minibatch of one row would be 0.
    by_minibatch = config.normalize_advantage == "minibatch"
    if size % count:
        near = [d for d in nearest_divisors(size, count) if d < size or not by_minibatch]
        raise ConfigError(
            f"num_envs * num_steps = {size} is not divisible by num_minibatches = {count}; try {_one_of(near)}."
        )
    if size == count and by_minibatch:
        raise ConfigError(
            f"num_minibatches = {count} leaves one row per minibatch, whose advantage cannot be standardised; "
            f"lower it, or set normalize_advantage to batch or off."
        )


def _validate_shards(config: TrainConfig) -> None:
    number = config.shard_count
    if config.num_envs % number or config.minibatch_size % number:
        common = math.gcd(config.num_envs, config.minibatch_size)
        raise ConfigError(
            f"num_shards = {number} must divide num_envs = {config.num_envs} and the {config.minibatch_size} rows of a "
            f"minibatch; try {_one_of(nearest_divisors(common, number))}."
        )


def _validate_trpo(config: TrainConfig) -> None:
    if config.shared_torso:
        raise ConfigError(
            "trpo needs separate torsos (shared_torso off): fitting the value function would move a shared one, and "
            "with it the policy, out of the trust region."
        )
    if config.optimizer == "adamw":
        raise ConfigError(
            "optimizer = adamw would move trpo's policy by its weight decay, out of the trust region; use adam."
        )
    if config.learning_rate_schedule == "kl_adaptive":
        raise ConfigError(
            "learning_rate_schedule = kl_adaptive is for ppo_clip, ppo_kl and policy_gradient; trpo's line search "
            "bounds the KL itself; use linear, cosine or constant, or leave trpo out."
        )


def _one_of(numbers: Iterable[int]) -> str:
    """Returns numbers as a choice in ascending order, such as `2, 4 or 8`."""
    *others, last = map(str, sorted(numbers))
    return f"{', '.join(others)} or {last}" if others else last


def nearest_divisors(number: int, target: int) -> list[int]:
    """Returns up to three divisors of `number`, those that are closest to `target`, nearest first."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    divisors = {*small, *(number // d for d in small)}
    return sorted(divisors, key=lambda d: abs(d - target))[:3]


def validate_hyperparams(hp: Hyperparams) -> None:
    """Raises ConfigError if a value is not finite or outside its range. For one run; not for traced values."""
    for field in dataclasses.fields(hp):
        validate_value(field, getattr(hp, field.name))
    validate_kl_range(hp.kl_min, hp.kl_max)


def validate_kl_range(kl_min: float, kl_max: float) -> None:
    """Raises ConfigError if kl_min is not below kl_max."""
    if kl_min >= kl_max:
        raise ConfigError(f"kl_min = {kl_min} is not below kl_max = {kl_max}; leave a gap between them.")


def validate_evaluation(episodes: int, seed: int) -> None:
    """Raises ConfigError if the number of episodes, with the range of `eval_episodes`, or the seed is not valid."""
    validate_seed(seed)
    field = next(field for field in dataclasses.fields(RunOptions) if field.name == "eval_episodes")
    _validate_count(field, "episodes", episodes)


def validate_options(options: RunOptions) -> None:
    """Raises ConfigError if a value is outside its range."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.type is float:
            _validate_host_number(field, value)
        else:
            validate_value(field, value)


def _validate_host_number(field: dataclasses.Field[Any], value: Any) -> None:
    """Raises ConfigError if a value is not a number in the field's range, as a float on the host."""
    bounds = range_of(field)
    if not _is_number(value) or value not in bounds:
        extent = f", {bounds.low:g} or more" if bounds == Range(bounds.low) else f" in {bounds}"
        raise ConfigError(f"{field.name} = {value!r} is not a number of {facts_of(field).unit}{extent}.")
