"""The command lines, JSON files and tables of the benchmark programs.

A section is a program, `python -m benchmarks.sections.NAME [--quick] --out FILE`. It prints a table and writes an
object with a list `rows`. A row may hold `figures`, which `compare_results.py` compares between two files.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Returns a parser whose help is a module's docstring as it stands."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def section_parser(doc: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the options that each section has."""
    options = parser(doc)
    options.add_argument("--quick", action="store_true", help="fewer cases and repetitions, nothing is installed")
    options.add_argument("--out", type=Path, help="JSON file to write")
    return options


def shape(text: str) -> str:
    """Returns a shape such as 64x128 (environments x steps) as it is; argparse refuses any other text."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; give environments x steps, such as 64x128")
    return text


def add_shapes(options: argparse.ArgumentParser, default: list[str] | None = None) -> None:
    """Adds the option --shapes, which several programs share."""
    help_text = f"environments x steps, by default {' '.join(default)}" if default else "environments x steps"
    options.add_argument("--shapes", nargs="+", type=shape, default=default, help=help_text)


def sizes(shape: str) -> dict[str, Any]:
    """Returns the `num_envs` and `num_steps` of a shape."""
    return dict(zip(("num_envs", "num_steps"), map(int, shape.split("x")), strict=True))


def figure(name: str, unit: str, samples: Sequence[float], better: str = "higher") -> Row:
    """Returns a number to be compared between two files, with every repetition; `better` is higher or lower."""
    return {"name": name, "unit": unit, "better": better, "samples": list(samples)}


def count(name: str, unit: str, number: float) -> Row:
    """Returns a figure without noise, of which less is better; one sample is enough to judge it."""
    return {**figure(name, unit, [number], "lower"), "exact": True}


def write(out: Path | None, rows: Sequence[Row], **more: Any) -> None:
    """Writes the section's file, if one is wanted."""
    if out:
        out.write_text(json.dumps({**more, "rows": list(rows)}, indent=1) + "\n")


def progress(text: str) -> None:
    """Prints one line about the progress on standard error."""
    print(f"  {text}", file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns aligned columns, the first to the left and the rest to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, rows)])


def rounded(x: float | None, digits: int = 3) -> str:
    """Returns a number with three significant digits and its thousands apart; a dash for None."""
    if x is None:
        return "-"
    return f"{float(f'{x:.{digits}g}'):,.0f}" if abs(x) >= 10 ** (digits - 1) else f"{x:.{digits}g}"
