"""The declaration of a setting: the metadata of its dataclass field, with its range, unit, algorithms, source, heading.

Its type, default and help (the docstring under it) are those of the field itself. Validation, the refusal of flags that
an algorithm does not have, the headings of the command line's help and the tables of docs/hyperparameters.md are
derived from the declarations in `fields.py`.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple, TypeVar, get_args

# Of the command line's help, in its order: what is changed most often comes first.
Heading = Literal[
    "run",
    "environment",
    "rollout and batch",
    "optimisation",
    "algorithm",
    "policy",
    "normalisation",
    "evaluation",
    "checkpoint",
]

T = TypeVar("T")
_KEY = "setting"  # of `Facts` in the metadata of a field


@dataclasses.dataclass(frozen=True)
class Range:
    """The finite numbers from `low`, which is included or not, to `high`, which is included."""

    low: float
    high: float = math.inf
    low_allowed: bool = True

    def __contains__(self, number: float) -> bool:
        above = number >= self.low if self.low_allowed else number > self.low
        return above and number <= self.high and number < math.inf

    def __str__(self) -> str:
        high = f"{self.high:g}]" if math.isfinite(self.high) else "inf)"
        return f"{'[' if self.low_allowed else '('}{self.low:g}, {high}"


class Facts(NamedTuple):
    """The part of a declaration beside type, default and help."""

    range: Range | None = None  # of a number, or of each number in a tuple
    unit: str = ""
    of: tuple[str, ...] = ()  # the algorithms that have the setting; empty if all have it
    source: str = ""
    heading: Heading = "algorithm"
    built_in: tuple[str, ...] = ()  # the parts of the package that a name may be; one's own are registered


def setting(
    default: T,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float = math.inf,
    unit: str = "",
    of: tuple[str, ...] = (),
    source: str = "",
    heading: Heading = "algorithm",
    built_in: tuple[str, ...] = (),
) -> T:
    """Returns the dataclass field of a setting.

    Args:
      default: of the field's type.
      above: the lower end of the range, excluded.
      at_least: the lower end of the range, included. A number has exactly one of the two.
      at_most: the upper end of the range, included.
      unit: for the documentation and messages.
      of: the algorithms that have the setting, by default all of them; with any other one its flag is refused.
      source: the paper that it is from, as abbreviated in docs/hyperparameters.md.
      heading: where the command line's help has it.
      built_in: for the name of a part, those that the package has; a registry knows the others (`config/registry.py`).

    Raises:
      TypeError: both `above` and `at_least` are given.
    """
    if above is not None and at_least is not None:
        raise TypeError(f"setting({default!r}) is above {above} or at least {at_least}, not both.")
    low = at_least if above is None else above
    bounds = None if low is None else Range(low, at_most, low_allowed=above is None)
    return dataclasses.field(default=default, metadata={_KEY: Facts(bounds, unit, of, source, heading, built_in)})


def facts_of(field: dataclasses.Field[Any]) -> Facts:
    """Returns the declaration of a field; it is empty if the field was not made by `setting`."""
    return field.metadata.get(_KEY, Facts())


def range_of(field: dataclasses.Field[Any]) -> Range:
    """Returns the range of a numeric field. Raises TypeError if none was declared."""
    bounds = facts_of(field).range
    if bounds is None:
        raise TypeError(
            f"{field.name} has no range; declare it as setting({field.default!r}, above=...) or "
            f"setting({field.default!r}, at_least=...)."
        )
    return bounds


def _fields(*records: Any) -> tuple[dataclasses.Field[Any], ...]:
    """Returns the fields of several dataclasses."""
    return tuple(field for record in records for field in dataclasses.fields(record))


def with_ranges(record: type[T]) -> type[T]:
    """Returns a dataclass unchanged. Raises TypeError if it has a number without a range, hence at import."""
    for field in _fields(record):
        if {int, float} & {field.type, *get_args(field.type)}:
            range_of(field)
    return record


def owners(*records: Any) -> dict[str, tuple[str, ...]]:
    """Returns setting -> its algorithms, for the settings of these dataclasses that not all algorithms have."""
    return {field.name: facts_of(field).of for field in _fields(*records) if facts_of(field).of}
