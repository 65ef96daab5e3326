"""What every section of the benchmark has in common: its command line, its JSON file and its table.

A section is a program, `python benchmarks/SECTION.py [--quick] --out FILE`. It prints a table and writes an object with
a list `rows`. A row may hold `figures`, which is what `regression.py` compares between two files.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that each section has."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="fewer cases and repetitions")
    options.add_argument("--out", type=Path, help="JSON file to write")
    return options


def figure(name: str, unit: str, samples: Sequence[float], better: str = "higher") -> Row:
    """A number to be compared between two runs of the benchmark, with every repetition; `better`: higher or lower."""
    return {"name": name, "unit": unit, "better": better, "samples": list(samples)}


def write(out: Path | None, rows: Sequence[Row], **more: Any) -> None:
    """The section's file, if one is wanted."""
    if out:
        out.write_text(json.dumps({"rows": list(rows), **more}, indent=1) + "\n")


def progress(text: str) -> None:
    """One line of what is going on."""
    print(f"  {text}", file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left, the rest to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, rows)])


def rounded(x: float | None, digits: int = 3) -> str:
    """With three digits that count, thousands apart; a dash for what is not there."""
    if x is None:
        return "-"
    return f"{float(f'{x:.{digits}g}'):,.0f}" if abs(x) >= 10 ** (digits - 1) else f"{x:.{digits}g}"
