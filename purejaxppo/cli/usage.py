"""Error messages for wrong arguments: one sentence each, which says what to write instead."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import tyro

from purejaxppo.config.synonyms import note_on
from purejaxppo.config.validate import closest

_POSITIONAL, _SUPPRESS = (marker[int].__metadata__[0] for marker in (tyro.conf.Positional, tyro.conf.Suppress))


class _Argument(NamedTuple):
    """An argument that a command takes."""

    name: str  # of its field
    kind: Any  # its type
    positional: bool
    required: bool


def unknown_arguments(command: str, kind: Any, args: Sequence[str], unknown: Sequence[str]) -> str:
    """Returns the error message for arguments that a command does not take.

    Args:
      command: as it is typed.
      kind: its dataclass, from `arguments`.
      args: all of its arguments.
      unknown: those that tyro left over, in their order; at least one.
    """
    word = next((word for word in unknown if _is_flag(word)), unknown[0])
    takes = list(_arguments(kind))
    if not _is_flag(word):
        return _stray_word(command, takes, args, word)
    flag = word.partition("=")[0]
    known = [argument.name for argument in takes if not argument.positional]
    close = closest(flag.lstrip("-").replace("-", "_"), known)
    note = f" ({note_on(flag.lstrip('-'))})" if note_on(flag.lstrip("-")) else ""
    likely = f" Did you mean {_flag(close)}{note}?" if close else ""
    return f"{flag} is unknown.{likely} `{command} --help` lists what there is."


def refused_arguments(command: str, kind: Any, error: SystemExit, text: str) -> str:
    """Returns the error message for arguments that tyro has refused.

    Args:
      command: as it is typed.
      kind: its dataclass, from `arguments`.
      error: raised by tyro; its context is the error of a rule of `config.words`, if that refused the argument.
      text: printed by tyro, with a box drawn around it.
    """
    said = _without_box(text)
    if wrong := re.search(r"Error parsing (\S+):", said):
        reason = _reason(error) or said[wrong.end() :].strip()
        return f"{wrong[1]}: {reason.removesuffix('.')}{'' if reason.endswith('?') else '.'}"
    if empty := re.search(r"Missing value for argument '(\S+)'", said):
        return f"{empty[1]} has no value; give it one, as `{command} --help` has it."
    if said.startswith("Required options"):
        shape = " ".join(map(_typed, filter(lambda argument: argument.required, _arguments(kind))))
        return f"the command is not complete: it is `{command} {shape}`, which `{command} --help` explains."
    return said


def _without_box(text: str) -> str:
    """Returns the text of tyro's box in one line, its title first."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return " ".join(re.sub(r"[│─╭╮╰╯]|-{5,}", " ", text).split())


def _reason(error: BaseException | None) -> str:
    """Returns the text of the first ValueError in a chain of contexts, as rules of `config.words` raise it, or ""."""
    while error is not None:
        if isinstance(error, ValueError):
            return str(error)
        error = error.__context__
    return ""


def _stray_word(command: str, takes: Sequence[_Argument], args: Sequence[str], word: str) -> str:
    """Returns the error message for a word that belongs to no flag."""
    index = max(i for i, arg in enumerate(args) if arg == word or arg.endswith(f"={word}"))
    before = next((arg for arg in reversed(args[: index + 1]) if _is_flag(arg)), None)
    if before is None:
        positional = [argument for argument in takes if argument.positional]
        if positional:
            return f"{word!r} is one too many: {command} takes {_typed(positional[0])} and flags."
        example = f", such as --env {word}" if any(argument.name == "env" for argument in takes) else ""
        return f"{word!r} stands alone, but {command} takes flags only{example}."
    flag = before.partition("=")[0]
    name = flag[2:].replace("-", "_")
    kinds = {argument.name: argument.kind for argument in takes}
    if kinds.get(name) is bool or kinds.get(name.removeprefix("no_")) is bool:
        name = name if name in kinds else name.removeprefix("no_")
        return f"{flag} takes no value, but {word!r} follows; write {_flag(name)} or {_flag(f'no_{name}')} alone."
    return f"{flag} takes one value, and {word!r} is one more; leave it out."


def _arguments(kind: Any) -> Iterator[_Argument]:
    """Yields the arguments of a command's dataclass, and of the dataclasses that are its fields."""
    for field in dataclasses.fields(kind):
        annotated = get_origin(field.type) is Annotated
        bare: Any = get_args(field.type)[0] if annotated else field.type
        marks = get_args(field.type)[1:] if annotated else ()
        if dataclasses.is_dataclass(bare):
            yield from _arguments(bare)
        elif _SUPPRESS not in marks:
            required = field.default is dataclasses.MISSING
            yield _Argument(field.name, bare, _POSITIONAL in marks, required)


def _typed(argument: _Argument) -> str:
    """Returns an argument with its value, as the help shows it."""
    name = argument.name.upper()
    return name if argument.positional else f"{_flag(argument.name)} {name}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _is_flag(word: str) -> bool:
    """Returns whether a word is a flag; a negative number is a value."""
    return re.match(r"--?[A-Za-z]", word) is not None
