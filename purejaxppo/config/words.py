"""Conversion of command-line words to values: the spelling of each type, for the flags of runs and of sweeps."""

import contextlib
from typing import Any, Literal, get_args

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from purejaxppo.config.fields import EnvParams
from purejaxppo.config.resolve import whole_number
from purejaxppo.config.validate import apart, suggestion

_SCALARS: dict[Any, str] = {
    int: "INT",
    float: "FLOAT",
    int | None: "INT|none",
    float | None: "FLOAT|none",
    str | None: "NAME|none",
}


def parse_word(kind: Any, word: str) -> Any:
    """Converts a word to the type of its field.

    Whole numbers may be written 1e6. A list of them has commas in between, and may have one after a single number.

    Args:
      kind: the field's type.
      word: as it was typed.

    Raises:
      ValueError: the word is not of that type; the message is a clause, without a full stop.
    """
    if kind == tuple[int, ...]:
        try:
            return tuple(whole_number(width) for width in word.removesuffix(",").split(","))
        except ValueError:
            raise ValueError(f"{word!r} is not a list of whole numbers, such as 64,64") from None
    if type(None) in get_args(kind):
        if word.lower() == "none" or kind == str | None:
            return None if word.lower() == "none" else word
        return _number(get_args(kind)[0], word, "neither a {}number nor none")
    if kind is bool:
        if word.lower() not in ("true", "false"):
            raise ValueError(f"{word!r} is neither true nor false")
        return word.lower() == "true"
    return _number(kind, word) if kind in (int, float) else word


def _number(kind: type, word: str, otherwise: str = "not a {}number") -> int | float:
    try:
        return whole_number(word) if kind is int else float(word)
    except ValueError:
        raise ValueError(f"{word!r} is {otherwise.format('whole ' * (kind is int))}") from None


def value_rules() -> ConstructorRegistry:
    """Returns tyro's rules for our types: numbers, choices, lists of widths, and environment parameters."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def scalar(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if info.type not in _SCALARS:
            return None
        kinds = get_args(info.type) or (info.type,)
        numbers = (*kinds, int) if float in kinds else kinds
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=_SCALARS[info.type],
            instance_from_str=lambda words: parse_word(info.type, words[0]),
            is_instance=lambda x: isinstance(x, numbers) and not isinstance(x, bool),
            str_from_instance=lambda x: [str(x)],
        )

    @registry.primitive_rule
    def choice(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if info.type_origin is not Literal:
            return None
        choices = get_args(info.type)
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"{{{','.join(choices)}}}",
            instance_from_str=lambda words: _choice(words[0], choices),
            is_instance=lambda x: x in choices,
            str_from_instance=lambda x: [str(x)],
        )

    @registry.primitive_rule
    def widths(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if info.type_origin is not tuple or get_args(info.type) != (int, ...):  # tyro passes typing.Tuple
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="[INT [INT ...]]",
            instance_from_str=lambda words: tuple(map(_width, words)),
            is_instance=lambda x: isinstance(x, tuple),
            str_from_instance=lambda x: list(map(str, x)),
        )

    @registry.primitive_rule
    def pairs(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if info.type != EnvParams:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="[NAME=VALUE ...]",
            instance_from_str=lambda words: tuple(map(_pair, words)),
            is_instance=lambda x: isinstance(x, tuple),
            str_from_instance=lambda x: [f"{name}={value}" for name, value in x],
        )

    return registry


def _choice(word: str, choices: tuple[str, ...]) -> str:
    if word not in choices:
        raise ValueError(f"{word!r} is unknown; choose from {', '.join(choices)}.{suggestion(word, choices)}")
    return word


def _width(word: str) -> int:
    if "," in word:
        raise ValueError(f"{word!r} is not a whole number; write {apart(word)}")
    return whole_number(word)


def _pair(word: str) -> tuple[str, float]:
    """Converts `name=value`, whose value is a number, true or false."""
    name, equals, value = word.partition("=")
    if "," in word:
        raise ValueError(f"{word!r} is not of the form name=value; write {apart(word)}")
    if not (name and equals):
        raise ValueError(f"{word!r} is not of the form name=value")
    for kind in (bool, int, float):
        with contextlib.suppress(ValueError):
            return name, int(value) if kind is int else parse_word(kind, value)
    raise ValueError(f"{word!r}: {value!r} is not a number, true or false")
