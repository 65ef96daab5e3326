"""Writes the tables of docs/hyperparameters.md: python scripts/settings_tables.py

They are those of the declarations in purejaxppo/config/fields.py; the text around them is written by hand.
"""

import ast
import dataclasses
import inspect
import itertools
import math
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from purejaxppo.config import Hyperparams, RunOptions, TrainConfig
from purejaxppo.config.setting import Range, facts_of

DOCS = Path(__file__).resolve().parent.parent / "docs" / "hyperparameters.md"


def main() -> None:
    DOCS.write_text(with_tables(DOCS.read_text()))


def with_tables(text: str) -> str:
    """Returns the documentation with each dataclass's table in place of the first one below its heading."""
    for record in (Hyperparams, TrainConfig, RunOptions):
        match = re.search(rf"(?ms)^## {record.__name__}\b.*?\n((?:^\|[^\n]*\n)+)", text)
        if match is None:
            raise ValueError(f"the documentation has no heading ## {record.__name__} with a table below.")
        text = text[: match.start(1)] + table(record) + text[match.end(1) :]
    return text


def table(record: Any) -> str:
    """Returns a row for each field of a dataclass of settings; columns that would be empty are left out."""
    helps = help_of(record)
    rows = [_row(field, helps[field.name]) for field in dataclasses.fields(record)]
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    lines = [columns, *([row[name] for name in columns] for row in rows)]
    head, *body = (f"| {' | '.join(cells)} |\n" for cells in lines)
    return f"{head}|{'---|' * len(columns)}\n{''.join(body)}"


def help_of(record: Any) -> dict[str, str]:
    """Returns field -> the docstring under it, which Python itself does not keep, on one line."""
    (definition,) = ast.parse(inspect.getsource(record)).body
    assert isinstance(definition, ast.ClassDef)
    helps = {}
    for line, below in itertools.pairwise(definition.body):
        if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr):
            helps[ast.unparse(line.target)] = " ".join(ast.literal_eval(below.value).split())
    return helps


def _row(field: dataclasses.Field[Any], text: str) -> dict[str, str]:
    facts = facts_of(field)
    if len(facts.of) == 1:  # named in a column of its own
        text = text.removeprefix(f"{facts.of[0]}: ")
    cells = {
        "name": _code(field.name),
        "default": _code(_spelt(field.default)),
        "unit": facts.unit,
        "values": ", ".join(map(_code, _values(field))),
        "algorithms": ", ".join(map(_code, facts.of)),
        "meaning": text,
        "source": facts.source,
    }
    return {name: cell.replace("|", r"\|") for name, cell in cells.items()}


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _spelt(value: Any) -> str:
    """Returns a value as it is typed after its flag or into a file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(field: dataclasses.Field[Any]) -> list[str]:
    """Returns the values of a setting: choices, or a range and possibly None."""
    if field.type is bool:
        return ["true", "false"]
    if get_origin(field.type) is Literal:
        return [*get_args(field.type)]
    bounds, parts = facts_of(field).range, facts_of(field).built_in
    extent = [*parts] if parts else [_extent(bounds)] if bounds else []
    return [*extent, "None"] if type(None) in get_args(field.type) else extent


def _extent(bounds: Range) -> str:
    low, high = _spelt(bounds.low), _spelt(bounds.high)
    if bounds.low_allowed and math.isfinite(bounds.high):
        return f"{low} to {high}"
    above = f"{'>=' if bounds.low_allowed else '>'} {low}"
    return above if math.isinf(bounds.high) else f"{above}, <= {high}"


if __name__ == "__main__":
    main()
