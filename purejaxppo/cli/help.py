"""The layout of the help: a line for each command, and a command's flags under headings."""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from purejaxppo.cli.arguments import COMMANDS, Common
from purejaxppo.config.resolve import FIELDS, OPTION_FIELDS
from purejaxppo.config.setting import Heading, facts_of

_GENERAL = "general"  # the heading of the options that every command has
_HEADINGS = (*get_args(Heading), _GENERAL)


def overview() -> Any:
    """Returns the union of all commands for tyro, each described by the first line of its docstring alone."""
    lines = {kind: kind.__doc__.partition("\n")[0] for kind in COMMANDS.values()}
    kinds: list[Any] = [Annotated[kind, tyro.conf.subcommand(description=line)] for kind, line in lines.items()]
    return functools.reduce(operator.or_, kinds)


def asks_for_help(args: Sequence[str]) -> bool:
    """Returns whether tyro will show the help or refuse the arguments; either way it will not make a command."""
    return any(arg in ("-h", "--help") for arg in itertools.takewhile("--".__ne__, args))


@dataclasses.dataclass(frozen=True, eq=False)
class _Section:
    """The arguments under one heading."""

    arguments: tuple[StructFieldSpec, ...]


def add_headings(registry: ConstructorRegistry, kind: Any, default: Any) -> None:
    """Adds the rules by which tyro shows a command's flags under headings. With them it cannot make the command.

    tyro has a heading for each dataclass inside the command, and cannot divide the flags of one dataclass. These rules
    therefore present the command as one nested record for each heading.

    Args:
      registry: the rules to add to, which must not be active yet.
      kind: the command's dataclass, from `arguments`.
      default: the command with the defaults to show.
    """
    sections: dict[str, list[StructFieldSpec]] = {heading: [] for heading in _HEADINGS}
    for heading, argument in _arguments(kind, default):
        sections[heading].append(argument)
    without_prefix: Any = tyro.conf.OmitArgPrefixes[_Section]  # the flags keep their names
    records = tuple(
        StructFieldSpec(heading, without_prefix, default=_Section(tuple(arguments)), helptext="")
        for heading, arguments in sections.items()
    )

    @registry.struct_rule
    def under_headings(info: StructTypeInfo) -> StructConstructorSpec | None:
        if info.type is kind:
            return StructConstructorSpec(kind, records)  # tyro takes the description from `kind`
        if info.type is _Section:
            return StructConstructorSpec(dict, info.default.arguments)
        return None


def _arguments(kind: Any, default: Any) -> Iterator[tuple[str, StructFieldSpec]]:
    """Yields heading and argument for a dataclass and those that are its fields; its own arguments come first."""
    spec = ConstructorRegistry.get_struct_spec(StructTypeInfo.make(kind, default, in_union_context=False))
    assert isinstance(spec, StructConstructorSpec)
    nested = []
    for argument in spec.fields:
        record = get_args(argument.type)[0] if get_origin(argument.type) is Annotated else argument.type
        if dataclasses.is_dataclass(record):
            nested.append((record, argument.default))
        else:
            yield _heading(kind, argument.name), argument
    for record, value in nested:
        yield from _arguments(record, value)


def _heading(kind: Any, name: str) -> str:
    """Returns the heading of a dataclass's field; what a command takes beside the settings belongs to its run."""
    known = FIELDS | OPTION_FIELDS
    if name in known:
        return facts_of(known[name]).heading
    return _GENERAL if kind is Common else "run"
