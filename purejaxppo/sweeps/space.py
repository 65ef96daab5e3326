"""The space that a sweep searches: axes from command-line words, and points from axes.

It imports no JAX, as the command line's help has to be fast.
"""

import dataclasses
import itertools
import math
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from purejaxppo.config import Hyperparams
from purejaxppo.config.resolve import FIELDS, whole_number
from purejaxppo.config.setting import facts_of
from purejaxppo.config.validate import NUM_SEEDS, apart, seeds_from, validate_seeds, validate_value
from purejaxppo.config.words import parse_word
from purejaxppo.errors import ConfigError
from purejaxppo.sweeps.spec import MAX_RUNS

MAX_POINTS = 1_000_000
_HYPERPARAMS = tuple(field.name for field in dataclasses.fields(Hyperparams))
_TRIES = 100  # draws per point before the space counts as exhausted


class Span(NamedTuple):
    """The numbers from `low` to `high`, with a uniform distribution of the number or of its logarithm."""

    low: float
    high: float
    log: bool

    def __str__(self) -> str:
        return f"{'log:' if self.log else ''}{self.low:g}..{self.high:g}"


class Axis(NamedTuple):
    """A swept field and its values."""

    name: str
    values: tuple[Any, ...] | Span  # listed values are of the field's type and all different


def flag_of(name: str) -> str:
    """Returns the flag of a field: num_envs -> --num-envs."""
    return f"--{name.replace('_', '-')}"


def parse_axis(name: str, words: Sequence[str]) -> Axis:
    """Returns the axis that the words after a flag stand for; a single value is an axis of length 1.

    Widths of layers separated by spaces are one network (64 64). With commas each word is a network: 64,64 128,128,
    and 64, with a comma at its end is one layer. A span is low..high or log:low..high, alone after its flag.

    Args:
      name: a field of TrainConfig or Hyperparams.
      words: as typed.

    Raises:
      ConfigError: there is no word, one is of the wrong type or out of range, two are equal, or a span is not possible.
    """
    if not words:
        raise ConfigError(f"{flag_of(name)} has no value; give one or more.")
    if name == "hidden_sizes" and not any("," in word for word in words):
        return Axis(name, (_value(name, ",".join(words)),))
    spans = [word for word in words if ".." in word or word.startswith("log:")]
    if spans and len(words) > 1:
        raise ConfigError(f"{name} = {spans[0]} is a span, which stands alone after its flag; give it or a list.")
    if spans:
        return Axis(name, _span(name, spans[0]))
    values = tuple(_value(name, word) for word in words)
    _refuse_duplicates(name, values)
    return Axis(name, values)


def _value(name: str, word: str) -> Any:
    """Returns a word converted to its field's type. Raises ConfigError, which names the word."""
    try:
        value = parse_word(FIELDS[name].type, word)
    except ValueError as error:
        several = f"; write them apart: {apart(word)}" if "," in word and name != "hidden_sizes" else ""
        raise ConfigError(f"{name} = {error}{several}.") from None
    if facts_of(FIELDS[name]).built_in and "," in word:  # other unknown names are refused later, by the registries
        raise ConfigError(f"{name} = {word!r} is no name of one. Write them apart: {apart(word)}.")
    validate_value(FIELDS[name], value)
    return value


def _span(name: str, word: str) -> Span:
    """Returns the span written as low..high or log:low..high. Raises ConfigError, which names the word."""
    if name not in _HYPERPARAMS:
        raise ConfigError(
            f"{name} = {word} is a span, which only hyperparameters take, such as learning_rate; list its values."
        )
    match = re.fullmatch(r"(log:)?(.*)\.\.(.*)", word) if "..." not in word else None
    try:
        low, high = (float(number) for number in match.groups()[1:]) if match else (math.nan, math.nan)
    except ValueError:
        low = high = math.nan
    if match is None or math.isnan(low + high):
        raise ConfigError(f"{name} = {word} is no span; it is written low..high or log:low..high, as in 1e-5..1e-2.")
    log = match[1] is not None
    if not low < high or (log and not low > 0):
        order = "0 < low < high" if log else "low < high"
        raise ConfigError(f"{name} = {word} is an empty span; it takes {order}.")
    for number in (low, high):
        validate_value(FIELDS[name], number)
    return Span(low, high, log)


def _refuse_duplicates(name: str, values: Sequence[Any]) -> None:
    seen: dict[Any, Any] = {}
    for value in values:
        key = _identity(value)
        if key in seen:
            same = (
                f"{_text(value)} is given twice" if seen[key] == value else f"{seen[key]} and {value} are one float32"
            )
            raise ConfigError(f"{name}: {same}, which would train the same thing twice; leave one out.")
        seen[key] = value


def _text(value: Any) -> str:
    """Returns a value as it is typed."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _identity(value: Any) -> Any:
    """Returns a key that is equal for values that train alike: floats are float32 in the program, and -0 is 0."""
    return struct.pack("f", value + 0.0) if isinstance(value, float) else value


def all_points(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """Returns all combinations of the axes' values as points (field -> value); the first axis changes most slowly.

    Raises:
      ConfigError: an axis is a span, or there are more than 10^6 combinations.
    """
    for axis in axes:
        if isinstance(axis.values, Span):
            raise ConfigError(
                f"{axis.name} = {axis.values} is a span, whose values have no end; say by --samples how many settings "
                f"to draw, or list values."
            )
    size = _size(axes)
    if size > MAX_POINTS:
        raise ConfigError(
            f"{' x '.join(str(len(axis.values)) for axis in axes)} = {size} settings are more than {MAX_POINTS}; take "
            f"fewer values, or draw some of the settings by --samples."
        )
    names = [axis.name for axis in axes]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes))]


def _size(axes: Sequence[Axis]) -> float:
    """Returns the number of combinations of the axes' values; it is infinite with a span among them."""
    return math.prod(math.inf if isinstance(axis.values, Span) else len(axis.values) for axis in axes)


def sample(axes: Sequence[Axis], count: int, seed: int) -> list[dict[str, Any]]:
    """Returns random points (field -> value), all different.

    Listed values have equal probability, spans their own distribution. A larger count with the same seed begins with
    the points of a smaller one.

    Args:
      axes: at least one.
      count: how many points, from 1 to 10^6.
      seed: of NumPy's generator; the points depend on nothing else.

    Raises:
      ConfigError: there is no axis, or the count is out of range or above the number of different points.
    """
    import numpy as np

    if not axes:
        raise ConfigError(
            "--samples draws values of swept settings, and there are none; give several values or a span to a flag, as "
            "in --learning-rate log:1e-4..1e-2."
        )
    if not 1 <= count <= MAX_POINTS:
        raise ConfigError(f"--samples {count}; it takes 1 to {MAX_POINTS}.")
    if not 0 <= seed < NUM_SEEDS:
        raise ConfigError(f"--sample-seed {seed}; it takes a whole number in [0, 2**32).")
    size = _size(axes)
    if count > size:
        raise ConfigError(f"--samples {count}, but there are only {size} settings; leave it out to take them all.")
    rng = np.random.default_rng(seed)
    if size <= MAX_POINTS:  # a permutation draws without replacement, down to the last point
        points = all_points(axes)
        return [points[i] for i in rng.permutation(len(points))[:count]]
    # The space is too large to be listed: draw with replacement, and drop what is there already.
    found: dict[Any, dict[str, Any]] = {}
    for point in itertools.islice(_draws(axes, rng), _TRIES * count):
        found.setdefault(tuple(map(_identity, point.values())), point)
        if len(found) == count:
            return list(found.values())
    raise ConfigError(f"--samples {count}: the spans hold fewer different float32 numbers; widen them or take fewer.")


def _draws(axes: Sequence[Axis], rng: Any) -> Iterator[dict[str, Any]]:
    """Yields random points without end, some of which may be equal."""
    while True:
        yield {axis.name: _draw(axis.values, rng) for axis in axes}


def _draw(values: tuple[Any, ...] | Span, rng: Any) -> Any:
    if not isinstance(values, Span):
        return values[rng.integers(len(values))]
    low, high, log = values
    if not log:
        return float(rng.uniform(low, high))
    # Rounding in exp must not leave the span.
    return min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high)


def parse_seeds(words: Sequence[str], first: int) -> tuple[int, ...]:
    """Returns the seeds that the words after --seeds stand for: a single number is a count, several are the seeds.

    Args:
      words: as typed.
      first: the first seed of a count; the others follow it.

    Raises:
      ConfigError: there is no word, one is not a whole number, a count is outside [1, 10^6], a seed is outside
        [0, 2**32), or two seeds are equal.
    """
    if not words:
        raise ConfigError("--seeds has no value; give their number, or two and more seeds.")
    try:
        numbers = [whole_number(word) for word in words]
    except ValueError as error:
        several = f"; write them apart: {apart(' '.join(words))}" if "," in "".join(words) else ""
        raise ConfigError(f"--seeds: {error}{several}.") from None
    if len(numbers) == 1:
        return _count_seeds(numbers[0], first)
    if first:
        raise ConfigError(
            f"--seed {first} is the first of a count, but --seeds {' '.join(words)} is a list; leave it out."
        )
    validate_seeds(numbers, "--seeds: {} is given twice, which would be the same run twice; leave one out.")
    return tuple(numbers)


def _count_seeds(count: int, first: int) -> tuple[int, ...]:
    if not 1 <= count <= MAX_RUNS:
        raise ConfigError(
            f"--seeds {count} is no number of runs: one number alone is a count, from 1 to {MAX_RUNS}; a certain "
            f"seed N is --seeds 1 --seed N."
        )
    return tuple(seeds_from(first, count))
